"""PPO as others have published it: each preset is a table of settings, over which those of the recipe go.

Numbers are those for models of about 7 billion parameters; small models and adapters want learning rates 10 to 1000
times as high. Units go together: a KL weight means nothing without the transform of the score beside it.
"""

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["vanilla", "ppo-max", "ppo-max+", "moss-script", "tldr", "safe-rlhf", "hc-rlhf"]
Table = Mapping[str, Any]

_NO_GRADIENT_CLIP = 1e9

PPO_MAX: Table = {
    # Secrets of RLHF in LLMs, Part I (arXiv 2307.04964). Not stated there: KL weight and score clip of PPO-max itself;
    # taken are those of its ablations.
    "ppo": {
        "score": {"transform": "norm", "clip": 0.8},
        "kl": {"coef": 0.05},
        "token_clamp": None,
        "truncation": "penalty",
        "advantage": {"lam_policy": 0.9, "lam_value": 0.9},
        "surrogate": {"loss_mean": "token"},
        "value_clip": 0.2,
        "steps_per_experience": 4,
    },
    "optimiser": {"learning_rate": 5e-7, "eps": 1e-6, "schedule": "constant", "warmup_ratio": 0.0},
    "critic_optimiser": {"learning_rate": 1.65e-6, "schedule": "constant", "warmup_ratio": 0.0},
    "pretrain": {},
}

PRESETS: Mapping[str, Table] = {
    # The paper does not list the settings of its vanilla PPO; this is a reading of its figures.
    "vanilla": {
        "ppo": {
            "score": {"transform": "none"},
            "kl": {"coef": 0.0},
            "token_clamp": None,
            "truncation": "score",
            "advantage": {"lam_policy": 0.9, "lam_value": 0.9},
            "surrogate": {"loss_mean": "token"},
            "value_clip": None,
            "steps_per_experience": 4,
        },
        "optimiser": {
            "learning_rate": 5e-7,
            "eps": 1e-6,
            "schedule": "constant",
            "warmup_ratio": 0.1,
            "max_grad_norm": _NO_GRADIENT_CLIP,
        },
        "critic_optimiser": {
            "learning_rate": 1.65e-6,
            "schedule": "constant",
            "warmup_ratio": 0.1,
            "max_grad_norm": _NO_GRADIENT_CLIP,
        },
        "pretrain": None,
    },
    "ppo-max": PPO_MAX,
    # Decoupled lambda (VC-PPO, arXiv 2503.01491) and clip-higher (DAPO, arXiv 2503.14476) on top.
    "ppo-max+": {
        **PPO_MAX,
        "ppo": {
            **PPO_MAX["ppo"],
            "advantage": {"lam_policy": 0.95, "lam_value": 1.0},
            "surrogate": {"loss_mean": "token", "clip_high": 0.28},
        },
    },
    # The released English script, which is not PPO-max as described: scaling alone, a smaller KL, no pretraining. One
    # gradient norm over policy and critic there, one for each here.
    "moss-script": {
        "ppo": {
            "score": {"transform": "scale"},
            "kl": {"coef": 0.01},
            "token_clamp": None,
            "truncation": "score",
            "advantage": {"lam_policy": 0.95, "lam_value": 0.95},
            "surrogate": {"loss_mean": "token"},
            "value_clip": 0.2,
            "steps_per_experience": 1,
        },
        "optimiser": {"learning_rate": 5e-7, "eps": 1e-6, "schedule": "inverse_sqrt", "warmup_ratio": 0.1},
        "critic_optimiser": {"learning_rate": 1.5e-6, "schedule": "inverse_sqrt", "warmup_ratio": 0.1},
        "pretrain": None,
    },
    # N+ implementation details of RLHF with PPO (arXiv 2403.17031).
    "tldr": {
        "ppo": {
            "score": {"transform": "none"},
            "kl": {"coef": 0.05},
            "token_clamp": None,
            "truncation": "penalty",
            "advantage": {"lam_policy": 0.95, "lam_value": 0.95, "normalise": "batch"},
            "surrogate": {"loss_mean": "token"},
            "value_clip": 0.2,
        },
        "optimiser": {"learning_rate": 3e-6, "eps": 1e-5, "schedule": "linear", "warmup_ratio": 0.0},
        "critic_optimiser": {"learning_rate": 3e-6, "eps": 1e-5, "schedule": "linear", "warmup_ratio": 0.0},
        "pretrain": None,
        "online": {"inner_epochs": 4},
    },
    # The published script of Safe RLHF (arXiv 2310.12773) for text. It has no floor under the multiplier, and with this
    # rule could never leave zero.
    "safe-rlhf": {
        "ppo": {
            "score": {"transform": "none"},
            "kl": {"coef": 0.01, "mode": "split"},
            "token_clamp": 50.0,
            "truncation": "score",
            "advantage": {"lam_policy": 0.95, "lam_value": 0.95},
            "surrogate": {"loss_mean": "sequence"},
            "value_clip": 5.0,
            "ptx": 16.0,
        },
        "constraint": {
            "measure": "logit",
            "threshold": 0.0,
            "bound": "mean",
            "rule": "log",
            "initial": 1.0,
            "rate": 0.1,
            "floor": 1e-3,
            "ceiling": 5.0,
            "window": 128,
        },
        "optimiser": {"learning_rate": 1e-5, "weight_decay": 0.01, "schedule": "cosine", "warmup_ratio": 0.03},
        "critic_optimiser": {"learning_rate": 5e-6, "schedule": "constant", "warmup_ratio": 0.03},
        "pretrain": None,
    },
    # The published script of HC-RLHF (arXiv 2506.08266): no critics, KL in the reward alone, no division by 1 + lambda.
    # Its limit on the cost model's raw score means something only where that has safety labels.
    "hc-rlhf": {
        "ppo": {
            "reward_critic": False,
            "score": {"transform": "none"},
            "kl": {"coef": 0.1, "mode": "reward_only"},
            "token_clamp": 50.0,
            "truncation": "score",
            "surrogate": {"loss_mean": "sequence"},
            "normalise_mixture": False,
            "ptx": 8.0,
            "steps_per_experience": 4,
        },
        "constraint": {
            "measure": "logit",
            "threshold": 0.0,
            "bound": "student_t",
            "delta": 0.1,
            "c1": 4.0,
            "c2": 2.0,
            "n_safety": 100,
            "monotone": False,
            "critic": False,
            "rule": "log",
            "initial": 1.0,
            "rate": 0.01,
            "floor": 1e-3,
            "ceiling": 1e6,
            "window": 256,
        },
        "rollout": {"samples_per_prompt": 2},
        "optimiser": {
            "learning_rate": 5e-6,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup_ratio": 0.03,
            "max_grad_norm": 5.0,
        },
        "pretrain": None,
    },
}


def over(preset: Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's settings with those that were given over them, group by group.

    A number in place of a group stands for the group's first setting, as in `kl: 0.3`.

    >>> over({"ppo": {"kl": {"coef": 0.1, "mode": "split"}, "ptx": 1.0}}, {"ppo": {"kl": 0.3}, "seed": 1})
    {'ppo': {'kl': {'coef': 0.3, 'mode': 'split'}, 'ptx': 1.0}, 'seed': 1}
    """
    merged = dict(preset)
    for name, value in given.items():
        below = preset.get(name)
        if isinstance(below, Mapping) and isinstance(value, (int, float)):
            value = {"coef": value}
        merged[name] = over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged

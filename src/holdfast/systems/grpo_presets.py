"""Members of the GRPO family as published: each preset is a table of settings, over which those of the recipe go.

Where a paper is silent, the value is this project's and the docs say so. Learning rates are those for models of several
billion parameters. Most of these tables were written for rewards that can be checked and hold the policy to nothing
(`kl` zero); beside learned rewards set `grpo.kl.coef` above zero.
"""

from collections.abc import Mapping
from typing import Literal

from holdfast.systems.presets import Table

GrpoPreset = Literal["paper", "safe-grpo", "gdpo", "dvao", "dr_grpo", "dapo", "gspo", "cispo"]

_OPTIMISER = {"learning_rate": 1e-6, "schedule": "constant"}
_NO_KL = {"coef": 0.0, "in_loss": 0.0}
_PLAIN_CLIP = {"kind": "clip", "clip": 0.2, "clip_high": None}
_BY_SPREAD = {"std_floor": 0.0, "eps": 1e-4}
_GROUPS_OF_16 = {"samples_per_prompt": 16}

GRPO_PRESETS: Mapping[str, Table] = {
    # Multi-objective GRPO (arXiv 2503.21819): equal weights, one sum, normalised within the group. Its hyperparameters
    # could not be read; these are those of DeepSeekMath (arXiv 2402.03300), with the KL weight and estimator of that.
    "paper": {
        "grpo": {
            "scalarise": {"mode": "sum_then_normalise", **_BY_SPREAD},
            "kl": {"coef": 0.0, "in_loss": 0.04, "estimator": "k3"},
            "loss": {**_PLAIN_CLIP, "mean": "row_mean"},
            "overlong": "none",
            "dead": "keep",
        },
        "optimiser": _OPTIMISER,
    },
    # Safe RLHF without critics: a limit on the cost in place of a weight on safety. The multiplier's rule is that of
    # Safe RLHF (arXiv 2310.12773); floors and rates come from the study `mo_grpo`.
    "safe-grpo": {
        "grpo": {
            "scalarise": {"mode": "sum_then_normalise", "std_floor": 0.05},
            "cost_floor": 0.1,
            "kl": {"coef": 0.02},
            "loss": {"kind": "clip", "clip": 0.2, "clip_high": 0.28, "mean": "token_mean"},
        },
        "constraint": {
            "bound": "mean",
            "rule": "mirror",
            "initial": 1.0,
            "rate": 0.3,
            "floor": 0.01,
            "ceiling": 10.0,
            "window": 256,
        },
        "optimiser": _OPTIMISER,
    },
    # Every objective normalised by itself, then the sum over the batch (arXiv 2601.05242).
    "gdpo": {
        "grpo": {
            "scalarise": {"mode": "normalise_then_sum", "batch_normalise": True, **_BY_SPREAD},
            "kl": _NO_KL,
            "loss": {**_PLAIN_CLIP, "mean": "token_mean"},
            "overlong": "none",
        },
        "rollout": _GROUPS_OF_16,
        "optimiser": _OPTIMISER,
    },
    # Weights by the spread of each objective (arXiv 2605.25604, known here at second hand).
    "dvao": {
        "grpo": {
            "scalarise": {"mode": "variance_weighted", **_BY_SPREAD},
            "kl": _NO_KL,
            "loss": {**_PLAIN_CLIP, "mean": "token_mean"},
            "overlong": "none",
        },
        "optimiser": _OPTIMISER,
    },
    # Neither divided by the spread nor by the answer's length (arXiv 2503.20783).
    "dr_grpo": {
        "grpo": {
            "scalarise": {"mode": "center"},
            "kl": _NO_KL,
            "loss": {**_PLAIN_CLIP, "mean": "token_sum_constant"},
            "overlong": "none",
            "dead": "keep",
        },
        "optimiser": _OPTIMISER,
    },
    # Clip-higher, mean over all tokens, groups without a difference left out, soft penalty for length (arXiv
    # 2503.14476). Groups that were left out are not sampled again.
    "dapo": {
        "grpo": {
            "scalarise": {"mode": "sum_then_normalise", **_BY_SPREAD},
            "kl": _NO_KL,
            "loss": {"kind": "clip", "clip": 0.2, "clip_high": 0.28, "mean": "token_mean"},
            "overlong": "penalty",
            "overlong_share": 0.2,
            "dead": "drop",
        },
        "rollout": _GROUPS_OF_16,
        "optimiser": _OPTIMISER,
    },
    # The ratio of whole answers, their geometric mean per token (arXiv 2507.18071).
    "gspo": {
        "grpo": {
            "scalarise": {"mode": "sum_then_normalise", **_BY_SPREAD},
            "kl": _NO_KL,
            "loss": {"kind": "clip", "level": "sequence", "clip": 3e-4, "clip_high": 4e-4, "mean": "row_mean"},
            "overlong": "none",
            "steps_per_experience": 4,
        },
        "optimiser": _OPTIMISER,
    },
    # No token's gradient is cut, its weight is (arXiv 2506.13585), with the normalisation and the mean of ScaleRL
    # (arXiv 2510.13786).
    "cispo": {
        "grpo": {
            "scalarise": {"mode": "batch", **_BY_SPREAD},
            "kl": _NO_KL,
            "loss": {"kind": "cispo", "ratio_cap": 5.0, "mean": "prompt_mean"},
            "overlong": "none",
            "dead": "drop",
        },
        "rollout": _GROUPS_OF_16,
        "optimiser": _OPTIMISER,
    },
}

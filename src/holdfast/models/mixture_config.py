"""The configuration of a mixture of reward heads: what its `config.json` says besides the weights."""

from collections.abc import Sequence
from typing import Any, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from holdfast.errors import UserError
from holdfast.models.router import RouterKind

CONTEXT_TEMPLATE = "[criteria] {context}\n[prompt] {prompt}"
_CHOICES = {
    "router_type": get_args(RouterKind),
    "router_feature": ("last_prompt_token",),
    "aggregation": ("linear", "tournament"),
}


class MixtureRewardConfig(PreTrainedConfig):
    """What `config.json` says of a mixture: the heads by name, the router, and how their rewards become one.

    backbone_config: the network below, whatever its family. masked_heads: names of heads that get no weight.
    reward_mean, reward_std: of each head on reference answers; a head's own scale means nothing. context_template:
    how a context was put before the prompt in training; heads_see_context: whether the heads read it too. stage:
    facts about the training. backbone_name_or_path: where the backbone lies when the file leaves it out, with
    backbone_digest to know it by.
    """

    model_type = "mixture_reward"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    head_names: list[str] | None = None
    num_heads: int | None = None
    router_type: str = "mlp"
    router_hidden: int = 128
    router_feature: str = "last_prompt_token"
    context_template: str = CONTEXT_TEMPLATE
    heads_see_context: bool = False
    aggregation: str = "linear"
    masked_heads: list[str] | None = None
    reward_mean: list[float] | None = None
    reward_std: list[float] | None = None
    stage: dict[str, Any] | None = None
    backbone_name_or_path: str | None = None
    backbone_digest: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        names = self.head_names = list(self.head_names or ["head_0", "head_1"])
        self.num_heads = len(names) if self.num_heads is None else self.num_heads
        self.masked_heads = list(self.masked_heads or [])
        self.reward_mean = list(self.reward_mean or [0.0] * len(names))
        self.reward_std = list(self.reward_std or [1.0] * len(names))
        self.stage = dict(self.stage or {})
        self.id2label = dict(enumerate(names))
        self.label2id = {name: i for i, name in enumerate(names)}
        # Raw scores, not probabilities: servers apply no softmax to a regression.
        self.problem_type = "regression"
        _check(self)

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The configuration of the vision tower; text models have no such attribute."""
        return self.backbone_config.vision_config

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the configuration of the language model inside the backbone."""
        return self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)


def _check(config: MixtureRewardConfig) -> None:
    """`UserError` for facts that contradict each other, such as a damaged file would hold."""
    names = config.head_names
    if len(set(names)) != len(names):
        raise UserError(f"heads need distinct names, got {names}; give one name per head")
    lengths = {"num_heads": config.num_heads, "reward_mean": len(config.reward_mean)}
    lengths["reward_std"] = len(config.reward_std)
    wrong = {field: length for field, length in lengths.items() if length != len(names)}
    if wrong:
        raise UserError(f"there are {len(names)} heads, but the configuration says {wrong}; was it edited by hand?")
    for field, known in _CHOICES.items():
        if getattr(config, field) not in known:
            raise UserError(f"{field}: {getattr(config, field)!r} is unknown; choose from {', '.join(known)}")
    if any(config.context_template.count(place) != 1 for place in ("{context}", "{prompt}")):
        raise UserError(
            f"context_template must hold {{context}} and {{prompt}} once each, got {config.context_template!r}"
        )
    check_mask(config.masked_heads, names)


def check_mask(masked: Sequence[str], names: Sequence[str]) -> None:
    """None, or `UserError` when `masked` names no head among `names`, or all of them."""
    unknown = sorted(set(masked) - set(names))
    if unknown:
        raise UserError(f"there is no head {', '.join(unknown)} to mask; the heads are {', '.join(names)}")
    if set(masked) == set(names):
        raise UserError(f"all {len(names)} heads are masked, so none is left to score with; keep at least one")

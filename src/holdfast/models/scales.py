"""What the numbers of a score model mean: the scale of each label, the link, and the borders between severities.

The facts lie in the network's configuration, so they travel with the weights; files keep them in an order of their
own, hence lists of named entries and not tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedConfig

from holdfast.config import Settings
from holdfast.errors import UserError

FACTS = ("score_scales", "score_link", "score_borders")
Link = Literal["identity", "logit"]


class LabelScale(Settings):
    """The scale on which people gave one label; models learn it as a share of the way from worst to best.

    >>> verbosity = LabelScale(low=0, high=4, higher_is_better=False)
    >>> verbosity.share(1.0), verbosity.raw(0.75)
    (0.75, 1.0)
    """

    low: float
    """The lowest rating that can be given."""
    high: float
    """The highest rating that can be given."""
    higher_is_better: bool = True
    """Whether the highest rating is the best one."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"a scale rises from low to high, got low {self.low:g} and high {self.high:g}")
        return self

    def share(self, raw: float) -> float:
        """The rating on [0, 1], 1 being best; NaN stays NaN."""
        share = (raw - self.low) / (self.high - self.low)
        return share if self.higher_is_better else 1 - share

    def raw(self, share: float) -> float:
        """The rating that `share` came from."""
        return self.low + (self.high - self.low) * (share if self.higher_is_better else 1 - share)


def write_scales(
    config: PreTrainedConfig, names: Sequence[str], scales: Mapping[str, LabelScale], link: Link = "identity"
) -> None:
    """Write the scales of a score model's labels, and the link of its scores, into its configuration.

    names: of the model's scores; those that `scales` has no entry for are no labels (a preference head). link:
    `logit` when the sigmoid of a score is the label's share. Raises `UserError` when the labels are not among the
    names in the same order, or when the configuration holds other scales.
    """
    _same_order(names, scales)
    entries = [{"name": name, **scale.model_dump()} for name, scale in scales.items()]
    held = (getattr(config, "score_scales", None), getattr(config, "score_link", None))
    if held[0] and held != (entries, link):
        raise UserError(
            f"the model was trained on the labels {_listed(held[0])} (link {held[1]}) and is now given "
            f"{_listed(entries)} (link {link}); bring ratings to the model's own scales, or train a new model"
        )
    config.score_scales, config.score_link = entries, link


def read_scales(config: PreTrainedConfig, names: Sequence[str]) -> dict[str, LabelScale]:
    """The scales of the labels in their order; empty for a model that was not trained on ratings.

    Raises `UserError` when the model's scores do not stand in the order of its scales.
    """
    entries = [dict(entry) for entry in getattr(config, "score_scales", None) or ()]
    scales = {entry.pop("name"): LabelScale(**entry) for entry in entries}
    _same_order(names, scales)
    return scales


def read_link(config: PreTrainedConfig) -> Link:
    """How a score and the share of its label belong together."""
    return getattr(config, "score_link", None) or "identity"


def facts(config: PreTrainedConfig) -> dict[str, Any]:
    """What is known of the scores' meaning, ready for JSON: an adapter's folder holds no configuration."""
    return {name: value for name in FACTS if (value := getattr(config, name, None)) is not None}


class Borders(nn.Module):
    """The J borders between severities 0 .. J on the scale of costs: the first is 0, every next one higher.

    start: their first values. They are learned beside the network. A step moves every weight by about the learning
    rate, which is far for millions of weights together and nothing for two numbers, so these move `PACE` times as far.

    >>> Borders([0.0, 1.0, 3.0])().tolist()
    [0.0, 1.0, 3.0]
    """

    PACE = 30.0
    LEAST = 0.01  # between two borders: where no label lies between them, they would fall together

    def __init__(self, start: Sequence[float]) -> None:
        super().__init__()
        gaps = torch.tensor(start, dtype=torch.float64).diff()
        if not start or start[0] != 0 or not bool((gaps > 0).all()):
            raise ValueError(f"borders begin with 0, the border of harm, and rise; got {list(start)}")
        above = (gaps - self.LEAST).clamp(min=1e-6)
        self.gaps = nn.Parameter((above.expm1().log() / self.PACE).float())

    def forward(self) -> Tensor:
        """The borders (J,) in float32."""
        # The gradient passes without the factor: the norm by which all gradients are clipped is not its business.
        gaps = self.LEAST + softplus(self.PACE * self.gaps.detach() + self.gaps - self.gaps.detach())
        return torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])


def _same_order(names: Sequence[str], scales: Mapping[str, LabelScale]) -> None:
    if [name for name in names if name in scales] != list(scales):
        raise UserError(
            f"the model scores {', '.join(names)} and the labels are {', '.join(scales)}; "
            "every label needs its score, in the same order"
        )


def _listed(entries: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{one['name']} ({one['low']:g} to {one['high']:g}{'' if one['higher_is_better'] else ', lower is better'})"
        for one in entries
    )

"""What an answer is worth by several scores, and which answers a limit admits, when both are known before training.

Online, a limit acts through a multiplier because the policy's answers change. Fixed answers can be held to it one by
one: those beyond it are not imitated, or less.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.errors import UserError


class RewardTerm(Settings):
    """What one score adds to the reward."""

    weight: float = 1.0
    """What it is multiplied by; below zero for a score of which less is better."""
    link: Literal["none", "sigmoid"] = "none"
    """`sigmoid` brings the logit of a classifier or reward model to 0..1 first, as the published runs do."""


class OfflineLimit(Settings):
    """A limit that every answer has to keep by itself."""

    score: str = "cost"
    """The limited score, of which less is better."""
    most: float = 0.0
    """The largest value that is within the limit; zero is the border of harm of a cost model with safety labels."""
    how: Literal["drop", "weight", "report"] = "drop"
    """What becomes of answers beyond it: they are left out, weigh less, or are only counted."""
    softness: float = Field(1.0, gt=0)
    """With `weight`: the excess at which an answer weighs 1/e, exp(-excess / softness)."""


class Admitted(NamedTuple):
    """What limits leave: kept (N,) true where an answer may be learned from, weight (N,) what it counts, and for each
    limit how many answers were beyond it and what they were worth."""

    kept: Tensor
    weight: Tensor
    report: list[dict[str, Any]]


def reward_of(scores: Mapping[str, Tensor], terms: Mapping[str, RewardTerm]) -> Tensor:
    """(N,) the weighted sum of the scores (N,) that `terms` name; NaN where one of them is missing.

    >>> scores = {"help": torch.tensor([1.0, 0.5]), "length": torch.tensor([10.0, 2.0])}
    >>> reward_of(scores, {"help": RewardTerm(), "length": RewardTerm(weight=-0.01)})
    tensor([0.9000, 0.4800], dtype=torch.float64)
    """
    if not terms or all(term.weight == 0 for term in terms.values()):
        raise UserError("no score has a weight, so every answer would be worth the same; give `rewards`")
    parts = []
    for name, term in terms.items():
        value = _score(scores, name, "rewards")
        parts.append(term.weight * (torch.sigmoid(value) if term.link == "sigmoid" else value))
    return torch.stack(parts).sum(0)


def admit(scores: Mapping[str, Tensor], limits: Sequence[OfflineLimit], reward: Tensor) -> Admitted:
    """The answers that keep every limit, and for each limit what it removes (or would, with `how: report`).

    scores: (N,) each; reward: (N,), whose mean within and beyond each limit is reported. Answers without the limited
    score are beyond it: what is not known to be safe is not imitated.

    >>> found = admit({"cost": torch.tensor([-1.0, 2.0])}, [OfflineLimit()], torch.tensor([0.2, 0.9]))
    >>> found.kept.tolist(), found.report[0]["beyond"], round(found.report[0]["reward_beyond"], 3)
    ([True, False], 1, 0.9)
    """
    kept, weight = torch.ones_like(reward, dtype=torch.bool), torch.ones_like(reward)
    report = []
    for limit in limits:
        value = _score(scores, limit.score, "limits")
        excess = (value - limit.most).nan_to_num(nan=torch.inf).clamp(min=0)
        beyond = excess > 0
        if limit.how == "drop":
            kept &= ~beyond
        elif limit.how == "weight":
            weight = weight * torch.exp(-excess / limit.softness)
        report.append({**limit.model_dump(), **_facts(beyond, value.isnan(), reward)})
    kept &= weight > 0
    if not kept.any():
        told = "; ".join(
            f"{one['score']} <= {one['most']:g}: {one['beyond']} of {len(reward)} beyond" for one in report
        )
        raise UserError(f"no answer keeps all limits ({told}), so there is nothing to learn from; loosen them")
    return Admitted(kept, weight, report)


def _facts(beyond: Tensor, unknown: Tensor, reward: Tensor) -> dict[str, Any]:
    """How many answers are beyond a limit, how many of these have no score, and mean rewards on both sides."""
    inside, outside = reward[~beyond], reward[beyond]
    return {
        "answers": len(reward),
        "beyond": int(beyond.sum()),
        "without_score": int(unknown.sum()),
        "reward_within": _mean(inside),
        "reward_beyond": _mean(outside),
    }


def _mean(reward: Tensor) -> float | None:
    """The mean reward of some answers; None where there are none, or where nobody knows what one is worth."""
    return float(reward.mean()) if len(reward) and bool(reward.isfinite().all()) else None


def _score(scores: Mapping[str, Tensor], name: str, section: str) -> Tensor:
    if name not in scores:
        raise UserError(
            f"{section} names the score {name}, and answers have {', '.join(scores) or 'none'}; correct the name, or "
            "give what scores it (reward, cost, attributes, scorers, functions, endpoints, or rewards in the data)"
        )
    return scores[name].double()

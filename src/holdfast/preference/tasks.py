"""Reward and cost models as supervised tasks: which rows, which loss terms, which numbers.

Both read pairs. The reward model ranks the more helpful answer higher; the cost model ranks the *more harmful*
answer higher and, where answers carry safety labels, puts zero at the border of safety (Safe RLHF, arXiv
2310.12773, eq. 6; graded labels as in Safe RLHF-V, arXiv 2503.17682).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.losses import preference
from holdfast.losses.reduce import Sum, over
from holdfast.models.heads import ScoreModel
from holdfast.preference.pairs import PairBatch, PairRow, collate_pairs, sides


class RewardSettings(Settings):
    """What the reward model's loss consists of."""

    l2: float = Field(0.001, ge=0)
    """Weight of the mean squared score, which keeps scores near zero."""


class CostSettings(Settings):
    """What the cost model's loss consists of."""

    labels: Literal["sign", "graded", "none"] = "sign"
    """`sign`: +1 harmful, -1 safe; `graded`: minus the harmless rate; `none`: ranking alone, zero has no meaning."""
    scale: float = Field(1.0, gt=0)
    """Weight of the absolute terms against the ranking term."""
    l2: float = Field(0.001, ge=0)
    """Weight of the mean squared score."""


class _PairTask:
    """What reward and cost have in common: batches of pairs, scores of both sides, ranking and l2 terms."""

    name: str

    def __init__(self, model: ScoreModel, pad_id: int, weights: Mapping[str, float]) -> None:
        self.model, self.pad_id, self.weights = model, pad_id, weights

    def collate(self, rows: Sequence[PairRow]) -> PairBatch:
        return collate_pairs(rows, self.pad_id)

    def sides(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the first and of the second answers, from one forward pass."""
        first, second = sides(self.model, batch)
        return first[:, 0], second[:, 0]


class RewardTask(_PairTask):
    """Bradley-Terry on helpfulness: mean of -log sigmoid(better - worse) + l2 x mean of squared scores."""

    name = "reward"

    def __init__(self, model: ScoreModel, pad_id: int, settings: RewardSettings | None = None) -> None:
        super().__init__(model, pad_id, {"l2": (settings or RewardSettings()).l2})

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"rank": batch.size, "l2": 2 * batch.size}

    def loss(self, batch: PairBatch) -> dict[str, Sum]:
        better, worse = self.sides(batch)
        return {"rank": preference.bradley_terry(better, worse), "l2": preference.score_l2(better, worse)}

    def metrics(self, batch: PairBatch) -> dict[str, Sum]:
        better, worse = self.sides(batch)
        return {"rank": preference.bradley_terry(better, worse), "accuracy": over(_wins(better - worse))}


class CostTask(_PairTask):
    """Ranking upward by harm, absolute terms where labels are known, and l2."""

    name = "cost"

    def __init__(self, model: ScoreModel, pad_id: int, settings: CostSettings | None = None) -> None:
        self.settings = settings or CostSettings()
        # The published loss adds the terms of both answers; `absolute` is averaged over answers, so it counts twice.
        super().__init__(model, pad_id, {"absolute": 2 * self.settings.scale, "l2": self.settings.l2})

    def counts(self, batch: PairBatch) -> dict[str, float]:
        counts = {"rank": float(batch.ranked.sum()), "l2": 2.0 * batch.size}
        if self.settings.labels != "none":
            counts["absolute"] = float((~batch.absolute.isnan()).sum())
        return counts

    def loss(self, batch: PairBatch) -> dict[str, Sum]:
        more, less = self.sides(batch)
        ranked = batch.ranked.to(more.device)
        terms = {
            "rank": preference.cost_rank(more[ranked], less[ranked]),
            "l2": preference.score_l2(more, less),
        }
        if self.settings.labels != "none":
            known = batch.absolute.to(more.device)
            absolute = preference.cost_graded if self.settings.labels == "graded" else preference.cost_sign
            terms["absolute"] = absolute(torch.cat([more, less]), known.nan_to_num(), ~known.isnan())
        return terms

    def metrics(self, batch: PairBatch) -> dict[str, Sum]:
        more, less = self.sides(batch)
        found = {"accuracy": over(_wins(more - less), batch.ranked.to(more.device))}
        if self.settings.labels != "none":
            known = batch.absolute.to(more.device)
            # A rate of zero (a bare refusal) is safe by convention but has no side of the border to be on.
            has_side = ~known.isnan() & (known != 0)
            found["sign_accuracy"] = over((torch.cat([more, less]).sign() == known.sign()).float(), has_side)
        return found


def _wins(margin: Tensor) -> Tensor:
    """1 where the first answer scores higher, 1/2 on a tie, 0 otherwise."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()

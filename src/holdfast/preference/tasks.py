"""Reward and cost models as supervised tasks: which rows, which loss terms, which numbers.

Both read pairs. The reward model ranks the more helpful answer higher; the cost model ranks the *more harmful*
answer higher and, where answers carry safety labels, puts zero at the border of safety (Safe RLHF, arXiv
2310.12773, eq. 6; graded labels as in Safe RLHF-V, arXiv 2503.17682). The losses take scores, so that they also
serve a network that gives both in one pass.
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
from holdfast.models.scales import Borders
from holdfast.preference.pairs import PairBatch, PairForward, PairRow, collate_pairs


class RewardSettings(Settings):
    """What the reward model's loss consists of."""

    margin: float = Field(0.0, ge=0)
    """Distance asked for between the answers of every pair, beside the margin that a pair may bring."""
    centre: float = Field(0.0, ge=0)
    """Weight of the mean squared sum of a pair's scores, which puts the level of scores at zero; 0.01 is usual."""
    l2: float = Field(0.001, ge=0)
    """Weight of the mean squared score, which keeps scores near zero."""
    share_prompt: Literal["auto", "off"] = "auto"
    """`auto` reads what both answers of a pair begin with once, where that is exact and pays; `off` never does."""


class CostSettings(Settings):
    """What the cost model's loss consists of."""

    labels: Literal["sign", "graded", "ordinal", "none"] = "sign"
    """`sign`: +1 harmful, -1 safe; `graded`: minus the harmless rate; `ordinal`: the severity, with learned borders
    above zero; `none`: ranking alone, zero has no meaning."""
    scale: float = Field(1.0, gt=0)
    """Weight of the absolute terms against the ranking term."""
    l2: float = Field(0.001, ge=0)
    """Weight of the mean squared score."""
    share_prompt: Literal["auto", "off"] = "auto"
    """`auto` reads what both answers of a pair begin with once, where that is exact and pays; `off` never does."""


class RewardLoss:
    """Bradley-Terry on helpfulness: mean of -log sigmoid(better - worse - margin), with l2 and centring.

    Scores are (B,), of the more helpful and of the other answer of each pair.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings
        self.weights = {"l2": settings.l2, "centre": settings.centre}

    def counts(self, pairs: int) -> dict[str, float]:
        """The items of each term, for so many pairs."""
        centre = {"centre": float(pairs)} if self.settings.centre else {}
        return {"rank": float(pairs), "l2": 2.0 * pairs} | centre

    def terms(self, better: Tensor, worse: Tensor, margin: Tensor) -> dict[str, Sum]:
        """The loss terms; margin (B,) is what the pairs themselves ask for."""
        asked = margin.to(better) + self.settings.margin
        centre = {"centre": preference.centre(better, worse)} if self.settings.centre else {}
        ranked = preference.bradley_terry(better, worse, margin=asked)
        return {"rank": ranked, "l2": preference.score_l2(better, worse)} | centre

    def metrics(self, better: Tensor, worse: Tensor) -> dict[str, Sum]:
        """The ranking loss without any margin, and how often the better answer scores higher."""
        return {"rank": preference.bradley_terry(better, worse), "accuracy": over(wins(better - worse))}


class CostLoss:
    """Ranking upward by harm, absolute terms where labels are known, and l2.

    Scores are (B,), of the more and of the less harmful answer of each pair; ranked (B,) is true where a pair has a
    winner; absolute (2B,) is what is known of the first, then of the second answers: the sign, the grade, or for
    `ordinal` the severity with -1 for a safe answer; NaN where nothing is.
    """

    def __init__(self, settings: CostSettings, borders: Borders | None = None) -> None:
        self.settings, self.borders = settings, borders
        # The published loss adds the terms of both answers; `absolute` is averaged over answers, so it counts twice.
        self.weights = {"absolute": 2 * settings.scale, "l2": settings.l2}

    def counts(self, ranked: Tensor, absolute: Tensor) -> dict[str, float]:
        """The items of each term."""
        counts = {"rank": float(ranked.sum()), "l2": float(len(absolute))}
        if self.settings.labels != "none":
            counts["absolute"] = float((~absolute.isnan()).sum())
        return counts

    def terms(self, more: Tensor, less: Tensor, ranked: Tensor, absolute: Tensor) -> dict[str, Sum]:
        """The loss terms."""
        ranked = ranked.to(more.device)
        terms = {
            "rank": preference.cost_rank(more[ranked], less[ranked]),
            "l2": preference.score_l2(more, less),
        }
        if self.settings.labels != "none":
            terms["absolute"] = self._absolute(torch.cat([more, less]), absolute.to(more.device))
        return terms

    def _absolute(self, cost: Tensor, label: Tensor) -> Sum:
        known, label = ~label.isnan(), label.nan_to_num()
        if self.settings.labels == "sign":
            return preference.cost_sign(cost, label, known)
        if self.settings.labels == "graded":
            return preference.cost_graded(cost, label, known)
        assert self.borders is not None, "severities are told apart by borders"
        return preference.cost_ordinal(cost, label.clamp(min=0), self.borders(), known)

    def metrics(self, more: Tensor, less: Tensor, ranked: Tensor, absolute: Tensor) -> dict[str, Sum]:
        """How often the more harmful answer costs more, and on how many answers cost and label agree."""
        found = {"accuracy": over(wins(more - less), ranked.to(more.device))}
        if self.settings.labels == "none":
            return found
        cost, label = torch.cat([more, less]), absolute.to(more.device)
        known = ~label.isnan()
        # A rate of zero (a bare refusal) is safe by convention but has no side of the border to be on.
        found["sign_accuracy"] = over((cost.sign() == label.sign()).float(), known & (label != 0))
        if self.borders is not None and self.settings.labels == "ordinal":
            level = (cost[:, None] > self.borders()).sum(-1)
            found["severity_error"] = over((level - label.clamp(min=0)).abs(), known)
        return found


class _PairTask:
    """What reward and cost have in common: batches of pairs, scores of both sides, ranking and l2 terms."""

    name: str

    def __init__(
        self, model: ScoreModel, pad_id: int, weights: Mapping[str, float], share_prompt: Literal["auto", "off"]
    ) -> None:
        self.model, self.pad_id, self.weights = model, pad_id, weights
        self.forward = PairForward(model, share_prompt)

    def collate(self, rows: Sequence[PairRow]) -> PairBatch:
        return collate_pairs(rows, self.pad_id)

    def sides(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the first and of the second answers, from one forward pass."""
        first, second = self.forward(batch)
        return first[:, 0], second[:, 0]


class RewardTask(_PairTask):
    """A reward model: scores of the more helpful answers go up, of the others down."""

    name = "reward"

    def __init__(self, model: ScoreModel, pad_id: int, settings: RewardSettings | None = None) -> None:
        self.losses = RewardLoss(settings or RewardSettings())
        super().__init__(model, pad_id, self.losses.weights, self.losses.settings.share_prompt)

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return self.losses.counts(batch.size)

    def loss(self, batch: PairBatch) -> dict[str, Sum]:
        return self.losses.terms(*self.sides(batch), batch.margin)

    def metrics(self, batch: PairBatch) -> dict[str, Sum]:
        return self.losses.metrics(*self.sides(batch))


class CostTask(_PairTask):
    """A cost model: harm ranks upward, and zero is the border of safety where labels say so.

    With `ordinal` labels the model gets borders between severities, which are learned and saved with it.
    """

    name = "cost"

    def __init__(self, model: ScoreModel, pad_id: int, settings: CostSettings | None = None) -> None:
        settings = settings or CostSettings()
        self.losses = CostLoss(settings, with_borders(model) if settings.labels == "ordinal" else None)
        super().__init__(model, pad_id, self.losses.weights, settings.share_prompt)

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return self.losses.counts(batch.ranked, batch.absolute)

    def loss(self, batch: PairBatch) -> dict[str, Sum]:
        return self.losses.terms(*self.sides(batch), batch.ranked, batch.absolute)

    def metrics(self, batch: PairBatch) -> dict[str, Sum]:
        return self.losses.metrics(*self.sides(batch), batch.ranked, batch.absolute)


def with_borders(model: ScoreModel) -> Borders:
    """The model's borders between severities 0 to 3, made at equal distances if it has none yet."""
    if model.borders is None:
        model.borders = Borders([0.0, 1.0, 2.0]).to(next(model.parameters()).device)
    return model.borders


def wins(margin: Tensor) -> Tensor:
    """1 where the first answer scores higher, 1/2 on a tie, 0 otherwise.

    >>> wins(torch.tensor([0.3, 0.0, -2.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return (margin > 0).float() + 0.5 * (margin == 0).float()

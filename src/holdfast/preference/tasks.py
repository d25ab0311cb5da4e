"""Reward and cost models as supervised tasks: which rows, which loss terms, which numbers.

Both read pairs. The reward model ranks the more helpful answer higher; the cost model ranks the *more harmful*
answer higher and, where answers carry safety labels, puts zero at the border of safety (Safe RLHF, arXiv
2310.12773, eq. 6; graded labels as in Safe RLHF-V, arXiv 2503.17682).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.collate import Batch, pad
from holdfast.data.schema import DualPair
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses import preference
from holdfast.losses.reduce import Sum, over
from holdfast.models.heads import ScoreModel

UNKNOWN = math.nan


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


@dataclass(frozen=True)
class PairRow:
    """Two encoded answers, the one that should score higher first; `ranked` is false when no side won.

    absolute: what is known of each answer by itself, `UNKNOWN` where nothing is.
    """

    id: str
    first: Encoded
    second: Encoded
    ranked: bool = True
    absolute: tuple[float, float] = (UNKNOWN, UNKNOWN)

    @property
    def length(self) -> int:
        """Tokens that stand in the batch for this pair, which pads both sides to the longer one."""
        return 2 * max(self.first.length, self.second.length)


@dataclass(frozen=True)
class PairBatch:
    """B pairs as 2B rows of tokens, all first answers before all second answers."""

    tokens: Batch
    ranked: Tensor
    absolute: Tensor
    ids: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many pairs the batch holds."""
        return len(self.ids)


def collate_pairs(rows: Sequence[PairRow], pad_id: int) -> PairBatch:
    """Stack B pairs into tensors: `ranked` (B,), `absolute` (2B,), tokens (2B, T)."""
    return PairBatch(
        tokens=pad([row.first for row in rows] + [row.second for row in rows], pad_id=pad_id),
        ranked=torch.tensor([row.ranked for row in rows]),
        absolute=torch.tensor([row.absolute[0] for row in rows] + [row.absolute[1] for row in rows]),
        ids=tuple(row.id for row in rows),
    )


def helpful_rows(pairs: Iterable[DualPair], template: Template) -> list[PairRow]:
    """Rows for a reward model: pairs with a helpfulness label, the more helpful answer first."""
    rows = []
    for pair in pairs:
        if pair.helpful_id is not None:
            winner, loser = _encode(pair, pair.helpful_id, template)
            rows.append(PairRow(pair.id, winner, loser))
    return _some(rows, "helpfulness (helpful_id)")


def harmful_rows(pairs: Iterable[DualPair], template: Template, labels: str = "sign") -> list[PairRow]:
    """Rows for a cost model: pairs with a safety preference or safety labels, the more harmful answer first."""
    rows = []
    for pair in pairs:
        known = tuple(_absolute(pair, side, labels) for side in (0, 1))
        if pair.safer_id is None and all(math.isnan(value) for value in known):
            continue
        worse = 1 - (pair.safer_id if pair.safer_id is not None else 0)
        first, second = _encode(pair, worse, template)
        rows.append(PairRow(pair.id, first, second, pair.safer_id is not None, (known[worse], known[1 - worse])))
    return _some(rows, "harm (safer_id or safe)")


def _absolute(pair: DualPair, side: int, labels: str) -> float:
    """+1 harmful, -1 safe (or the graded rate with its sign turned); unknown when there is no label."""
    safe, rate = pair.safe[side], pair.harmless_rate[side]
    if labels == "graded" and rate is not None:
        return float(-rate)
    if labels == "sign" and safe is not None:
        return -1.0 if safe else 1.0
    return UNKNOWN


def _encode(pair: DualPair, first: int, template: Template) -> tuple[Encoded, Encoded]:
    prompt = pair.prompt.model_copy(update={"id": pair.id})
    return (
        template.answered(prompt.answer(pair.responses[first])),
        template.answered(prompt.answer(pair.responses[1 - first])),
    )


def _some(rows: list[PairRow], axis: str) -> list[PairRow]:
    if not rows:
        raise UserError(f"no pair carries a label for {axis}, so this model cannot be trained; check the data format")
    return rows


class _PairTask:
    """What reward and cost have in common: batches of pairs, scores of both sides, ranking and l2 terms."""

    name: str

    def __init__(self, model: ScoreModel, pad_id: int, weights: Mapping[str, float]) -> None:
        self.model, self.pad_id, self.weights = model, pad_id, weights

    def collate(self, rows: Sequence[PairRow]) -> PairBatch:
        return collate_pairs(rows, self.pad_id)

    def sides(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the first and of the second answers, from one forward pass."""
        tokens = batch.tokens.to(next(self.model.parameters()).device)
        scores = self.model.scores(
            tokens.input_ids, tokens.attention_mask, tokens.position_ids, tokens.score_index, **tokens.extra
        )[:, 0]
        first, second = scores.chunk(2)
        return first, second


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

"""Pairs of answers as rows and batches, and the scores of both sides.

The direction of a pair is the score's own: the first answer is the one that should score higher. For a reward
that is the more helpful one, for a cost the more harmful one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.data.collate import Batch, pad
from holdfast.data.schema import DualPair
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel

UNKNOWN = math.nan


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


def sides(model: ScoreModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Scores (B, K) of the first and of the second answers, from one forward pass."""
    tokens = batch.tokens.to(next(model.parameters()).device)
    scores = model.scores(
        tokens.input_ids, tokens.attention_mask, tokens.position_ids, tokens.score_index, **tokens.extra
    )
    first, second = scores.chunk(2)
    return first, second

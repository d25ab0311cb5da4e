"""Pairs of answers as rows and batches, and the scores of both sides.

The direction of a pair is the score's own: the first answer is the one that should score higher. For a reward
that is the more helpful one, for a cost the more harmful one.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from holdfast.data.collate import Batch, pad
from holdfast.data.schema import DualPair, Pair
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating, hidden_states
from holdfast.models.prefix import SharedRows, can_share, share_prefix

UNKNOWN = math.nan
# Below this ratio of tokens, what a shared prompt saves does not pay for the mask that it needs.
WORTHWHILE = 1.15


@dataclass(frozen=True)
class PairRow:
    """Two encoded answers, the one that should score higher first; `ranked` is false when no side won.

    absolute: what is known of each answer by itself, `UNKNOWN` where nothing is. margin: by how much the first is
    better, on the scale of the scores. shared: the network will read what both answers begin with once.
    """

    id: str
    first: Encoded
    second: Encoded
    ranked: bool = True
    absolute: tuple[float, float] = (UNKNOWN, UNKNOWN)
    margin: float = 0.0
    shared: bool = False

    @cached_property
    def length(self) -> int:
        """Tokens that stand in the batch for this pair: both sides padded to the longer one, or the beginning once."""
        if not self.shared:
            return 2 * max(self.first.length, self.second.length)
        both = list(zip(self.first.ids, self.second.ids))
        common = next((i for i, (one, other) in enumerate(both) if one != other), len(both))
        return self.first.length + self.second.length - common


@dataclass(frozen=True)
class PairBatch:
    """B pairs as 2B rows of tokens, all first answers before all second answers."""

    tokens: Batch
    ranked: Tensor
    absolute: Tensor
    margin: Tensor
    ids: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many pairs the batch holds."""
        return len(self.ids)


def collate_pairs(rows: Sequence[PairRow], pad_id: int) -> PairBatch:
    """Stack B pairs into tensors: `ranked` and `margin` (B,), `absolute` (2B,), tokens (2B, T)."""
    return PairBatch(
        tokens=pad([row.first for row in rows] + [row.second for row in rows], pad_id=pad_id),
        ranked=torch.tensor([row.ranked for row in rows]),
        absolute=torch.tensor([row.absolute[0] for row in rows] + [row.absolute[1] for row in rows]),
        margin=torch.tensor([row.margin for row in rows]),
        ids=tuple(row.id for row in rows),
    )


def helpful_rows(pairs: Iterable[DualPair], template: Template) -> list[PairRow]:
    """Rows for a reward model: pairs with a helpfulness label, the more helpful answer first."""
    rows = []
    for pair in pairs:
        if pair.helpful_id is not None:
            winner, loser = _encode(pair, pair.helpful_id, template)
            rows.append(PairRow(pair.id, winner, loser, margin=pair.margin or 0.0))
    return _some(rows, "helpfulness (helpful_id)")


def harmful_rows(pairs: Iterable[DualPair], template: Template, labels: str = "sign") -> list[PairRow]:
    """Rows for a cost model: pairs with a safety preference or safety labels, the more harmful answer first."""
    rows = []
    for pair in pairs:
        known = tuple(absolute_label(pair, side, labels) for side in (0, 1))
        if pair.safer_id is None and all(math.isnan(value) for value in known):
            continue
        worse = 1 - (pair.safer_id if pair.safer_id is not None else 0)
        first, second = _encode(pair, worse, template)
        rows.append(PairRow(pair.id, first, second, pair.safer_id is not None, (known[worse], known[1 - worse])))
    if labels == "ordinal" and rows:
        _some([row for row in rows if not all(map(math.isnan, row.absolute))], "the severity of harm")
    return _some(rows, "harm (safer_id or safe)")


def pair_rows(pairs: Iterable[Pair], template: Template) -> list[PairRow]:
    """Rows of plain preferences, the chosen answer first."""
    rows = []
    for pair in pairs:
        prompt = pair.prompt.model_copy(update={"id": pair.id})
        answers = (template.answered(prompt.answer(text)) for text in (pair.chosen, pair.rejected))
        rows.append(PairRow(pair.id, *answers, margin=pair.margin or 0.0))
    return rows


def absolute_label(pair: DualPair, side: int, labels: str) -> float:
    """What the labels say of one answer by itself, `UNKNOWN` where they say nothing.

    `sign`: +1 harmful, -1 safe; `graded`: the harmless rate with its sign turned; `ordinal`: the severity of harm,
    1 to 3, and -1 for a safe answer.
    """
    safe, rate, severity = pair.safe[side], pair.harmless_rate[side], pair.severity[side]
    if labels == "graded" and rate is not None:
        return float(-rate)
    if labels == "sign" and safe is not None:
        return -1.0 if safe else 1.0
    if labels == "ordinal" and (severity is not None or safe):
        return float(severity or -1)
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


class PairForward:
    """The scores of `sides`, with what the two answers of a pair begin with read once where that pays.

    Scores and gradients are those of the plain pass up to rounding (with dropout: one draw for the shared part). The
    first time, states are compared with the plain pass; if they differ, that is warned of and sharing ends.
    """

    def __init__(self, model: ScoreModel, share_prompt: Literal["auto", "off"] = "auto") -> None:
        self.model = model
        self._sharing, self._compared = share_prompt == "auto", False

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Scores (B, K) of the first and of the second answers."""
        shared = self._layout(batch)
        if shared is None:
            return sides(self.model, batch)
        device = next(self.model.parameters()).device
        shared, tokens = shared.to(device), batch.tokens.to(device)
        images = {name: value.chunk(2)[0] for name, value in tokens.extra.items()}
        if not self._compared:
            self._compared, self._sharing = True, self._agrees(tokens, shared, images)
            if not self._sharing:
                return sides(self.model, batch)
        values = self.model.token_values(**shared.inputs(self.model.network), **images)
        first, second = shared.at(values, tokens.score_index).chunk(2)
        return first, second

    def budgeted(self, rows: Sequence[PairRow]) -> list[PairRow]:
        """The rows with the `length` that they have in this pass, so that micro-batches hold as many as fit."""
        longest = max((max(row.first.length, row.second.length) for row in rows), default=0)
        shared = self._sharing and can_share(self.model.network, longest)
        return [replace(row, shared=shared) for row in rows]

    def _layout(self, batch: PairBatch) -> SharedRows | None:
        """How to share, or None where that is impossible or does not pay."""
        tokens = batch.tokens
        if not self._sharing or not all(torch.equal(*value.chunk(2)) for value in tokens.extra.values()):
            return None
        pairs = [(i, i + batch.size) for i in range(batch.size)]
        shared = share_prefix(tokens.input_ids, tokens.attention_mask, pairs)
        worthwhile = shared.saving >= WORTHWHILE
        return shared if worthwhile and can_share(self.model.network, tokens.input_ids.shape[1]) else None

    def _agrees(self, tokens: Batch, shared: SharedRows, images: dict[str, Tensor]) -> bool:
        """Whether both passes end in the same states; scores would not tell, a new head gives zeros."""
        with evaluating(self.model.network) as network:
            plain = hidden_states(
                network, tokens.input_ids, tokens.attention_mask, tokens.position_ids, **tokens.extra
            )[torch.arange(tokens.size, device=tokens.input_ids.device), tokens.score_index]
            joint = shared.at(hidden_states(network, **shared.inputs(network), **images), tokens.score_index)
        apart = float((joint - plain).abs().max() / plain.abs().max())
        # Numbers of 8 bits, added up in another order in every layer, differ by some per cent.
        tolerance = 1e-4 if plain.dtype in (torch.float32, torch.float64) else 5e-2
        if apart <= tolerance:
            return True
        warnings.warn(
            f"reading a shared prompt once changes the states of this {network.config.model_type} by {apart:.1e} of "
            f"their size (allowed: {tolerance:.0e}), so pairs are read one by one; share_prompt=off avoids this check",
            stacklevel=3,
        )
        return False

"""The same answers scored in other company: a score that moves depends on something it should not see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from holdfast.data.collate import pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded
from holdfast.models.policy import evaluating
from holdfast.preference.personal import MixtureScorer
from holdfast.preference.score import ModelScorer, Scorer

MOST, TOGETHER = 24, 8


@dataclass(frozen=True)
class Invariance:
    """How far scores move, by name, against the same answer scored alone.

    batches: in other batches, padded right; left: the same, padded left; spread: the larger of the two;
    relative: spread over the standard deviation of the scores. skipped: why nothing was checked, else empty.
    """

    checked: int
    batches: dict[str, float]
    left: dict[str, float]
    spread: dict[str, float]
    relative: dict[str, float]
    skipped: str = ""


def invariance(scorer: Scorer, answers: Sequence[Conversation]) -> Invariance:
    """Return how far the scores of some of the `answers` depend on what stands beside them.

    At most 24 answers, evenly spread, go through the model alone, in mixed batches of 8, and in the same padded
    on the left. Only a scorer that shows its model and template can be asked.
    """
    if not isinstance(scorer, ModelScorer | MixtureScorer):
        return Invariance(0, {}, {}, {}, {}, f"a {type(scorer).__name__} shows no model to pad batches for")
    step = max(1, len(answers) // MOST)
    rows = [scorer.template.answered(one) for one in answers[::step][:MOST]]
    # Long beside short, so that the short ones get as much padding as they ever will.
    order = sorted(range(len(rows)), key=lambda i: rows[i].length)
    mixed = [order[i :: -(-len(rows) // TOGETHER)] for i in range(-(-len(rows) // TOGETHER))]
    with evaluating(scorer.model):
        alone = torch.cat([_scores(scorer, [row]) for row in rows])
        right, left = torch.empty_like(alone), torch.empty_like(alone)
        for chosen in mixed:
            right[chosen] = _scores(scorer, [rows[i] for i in chosen])
            left[chosen] = _scores(scorer, [rows[i] for i in chosen], "left")
    moved = [(table - alone).abs().amax(0) for table in (right, left)]
    spread = torch.maximum(*moved)
    deviation = alone.std(0, correction=0)

    def named(values: Tensor) -> dict[str, float]:
        return dict(zip(scorer.names, values.tolist(), strict=True))

    # Scores that are as good as equal would make rounding errors look large.
    relative = spread / deviation.clamp(min=1e-3)
    return Invariance(len(rows), named(moved[0]), named(moved[1]), named(spread), named(relative))


def _scores(
    scorer: ModelScorer | MixtureScorer, rows: Sequence[Encoded], side: Literal["left", "right"] = "right"
) -> Tensor:
    """(B, K) from one forward pass of all `rows`; a mixture's for nobody in particular."""
    batch = pad(rows, side, pad_id=scorer.template.pad_id).to(next(scorer.model.parameters()).device)
    tokens = (batch.input_ids, batch.attention_mask, batch.position_ids)
    if isinstance(scorer, ModelScorer):
        return scorer.model.scores(*tokens, batch.score_index, **batch.extra).cpu()
    found = scorer.model(*tokens, batch.prompt_lengths, score_index=batch.score_index, **batch.extra)
    return torch.cat([found.score[:, None], found.logits], dim=1).cpu()

"""An experience cut into batches of whole prompts, so that a prompt can be read once for all its answers.

P prompts with G answers each are N rows; B rows of a batch, R padded tokens of a response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.data.grouped import Grouped, group
from holdfast.data.template import Encoded
from holdfast.losses import aggregate
from holdfast.losses.reduce import Sum
from holdfast.rollout.experience import Experience

Cut = Callable[[Sequence[Sequence[Encoded]]], list[list[int]]]
"""Rows of each prompt in, portions of prompts that fit one forward pass out."""


@dataclass(frozen=True)
class GroupBatch:
    """All answers of some prompts that are learned from, with what the loss needs.

    old_logprobs, ref_logprobs, sampler_logprobs, correction: (B, R), column t being the t-th token of the response;
    advantages: (B,); weights: (B,) what a token of the row weighs in the mean; counts: (B,) what the row adds to the
    mean's count.
    """

    tokens: Grouped
    old_logprobs: Tensor
    ref_logprobs: Tensor
    sampler_logprobs: Tensor
    correction: Tensor
    advantages: Tensor
    weights: Tensor
    counts: Tensor

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.tokens.ids

    def to(self, device: torch.device | str) -> "GroupBatch":
        """The same batch on `device`; counts stay, whose sum must be what was announced, to the bit."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "counts"}
        return replace(self, **moved)

    def gather(self, values: Tensor) -> Sum:
        """Values (B, R) per token as the sum that the loss averages, and the count it is divided by."""
        return aggregate.gather(values, self.tokens.mask, self.weights, self.counts)


@dataclass(frozen=True)
class Skipped:
    """Answers that teach nothing: they count in every mean and are not read."""

    count: float


class Portions(NamedTuple):
    """How an experience is cut: into optimiser steps, and these into what fits one forward pass.

    longest: tokens that an answer may have; skip: leave answers unread whose whole group has no advantage.
    """

    steps: int
    mean: aggregate.Kind
    longest: int
    cut: Cut
    skip: bool


@dataclass(frozen=True)
class GroupLearnable:
    """An experience with what is learned from it.

    advantages: (N,); correction: (N, R) weights of tokens; kept: (N,) whether an answer is learned from; silent: (N,)
    whether no answer of its group has an advantage.
    """

    experience: Experience
    advantages: Tensor
    correction: Tensor
    kept: Tensor
    silent: Tensor
    numbers: dict[str, float]

    def mini_batches(self, plan: Portions, rng: torch.Generator) -> list[list[GroupBatch | Skipped]]:
        """The kept answers by whole prompts in random order, for each optimiser step its batches.

        A step may be empty: other processes may have answers for it.
        """
        k, kept = self.experience.per_prompt, self.kept.tolist()
        order = torch.randperm(self.experience.size // k, generator=rng).tolist()
        prompts = [[row for row in range(p * k, p * k + k) if kept[row]] for p in order]
        return [self._batches([rows for rows in prompts[i :: plan.steps] if rows], plan) for i in range(plan.steps)]

    def _batches(self, prompts: list[list[int]], plan: Portions) -> list[GroupBatch | Skipped]:
        """The answers of one optimiser step; what each weighs depends on nothing but the step as a whole."""
        rows = [row for answers in prompts for row in answers]
        lengths = torch.tensor(self.experience.places.lengths)[rows]
        of = torch.tensor([p for p, answers in enumerate(prompts) for _ in answers])
        weights, counts = torch.zeros(2, self.experience.size)
        weights[rows] = aggregate.token_weights(plan.mean, lengths, of)
        counts[rows] = aggregate.row_counts(plan.mean, lengths, of, plan.longest)
        unread = [row for row in rows if plan.skip and self.silent[row]]
        read = [answers for answers in prompts if not (plan.skip and self.silent[answers[0]])]
        batches: list[GroupBatch | Skipped] = []
        for portion in plan.cut([[self.experience.rows[row] for row in answers] for answers in read]):
            chosen = [row for p in portion for row in read[p]]
            batches.append(self._select(chosen, weights[chosen], counts[chosen]))
        return [*batches, *([Skipped(float(counts[unread].sum()))] if unread else [])]

    def _select(self, chosen: list[int], weights: Tensor, counts: Tensor) -> GroupBatch:
        experience = self.experience
        tokens = group([experience.rows[row] for row in chosen], experience.pad_id)
        width, old = tokens.mask.shape[1], experience.old_logprobs
        sampler = old if experience.sampler_logprobs is None else experience.sampler_logprobs
        return GroupBatch(
            tokens=tokens,
            old_logprobs=old[chosen, :width],
            ref_logprobs=experience.ref_logprobs[chosen, :width],
            sampler_logprobs=sampler[chosen, :width],
            correction=self.correction[chosen, :width],
            advantages=self.advantages[chosen],
            weights=weights,
            counts=counts,
        )

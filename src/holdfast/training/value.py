"""What the reference earns on a prompt, learned from scores of its own answers: V(x) of A-LoL (arXiv 2305.14718).

The reference stays as it is, so its states of the prompts are read once and the head learns from these. The published
run kept the head with the lowest training error; here held-out prompts choose the epoch, and say how far to trust V.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum, over
from holdfast.models.policy import evaluating
from holdfast.models.value import ValueHead
from holdfast.preference.features import fit_or_scratch
from holdfast.rollout.reading import PromptStates
from holdfast.stats.estimate import Estimate, mean

_AT_ONCE = 256


class ValueSettings(Settings):
    """The head, and how it is fitted."""

    heads: int = Field(8, ge=1)
    """Heads of its attention; they must divide the width of the policy."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout while it is fitted, and never afterwards."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the prompts that choose the epoch and measure the head."""
    fit: FitSettings = FitSettings(
        epochs=40,
        batch_size=32,
        optimiser=OptimiserSettings(learning_rate=1e-3, weight_decay=0.01, schedule="constant", warmup_ratio=0.0),
    )
    """How long at most, in portions of how many prompts. A wide policy wants a lower rate: published are 1e-5."""

    def head(self, hidden: int, low: float, high: float) -> ValueHead:
        """A new head for states of `hidden` units and rewards between `low` and `high`."""
        return ValueHead(hidden, self.heads, low, high, self.dropout, self.fit.seed)


@dataclass(frozen=True)
class Calibration:
    """How V agrees with rewards R of answers to prompts that it has not learned from.

    bias: the mean of R - V, by prompt; slope: of R over V, 1 for a head that neither exaggerates nor shrinks, None
    where V is nearly the same for all prompts (a hundredth of the spread of R); error: the mean of (R - V)^2; spread:
    the variance of R, which is the error of the best constant; answers: how many there were.
    """

    bias: Estimate
    slope: float | None
    error: float
    spread: float
    answers: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def calibration(values: ArrayLike, rewards: ArrayLike, prompts: Sequence[Hashable]) -> Calibration:
    """The calibration of values (N,) for rewards (N,) of answers to the prompts called `prompts` (N names).

    >>> found = calibration([0.2, 0.2, 0.6, 0.6], [0.1, 0.3, 0.9, 1.1], ["a", "a", "b", "b"])
    >>> round(found.bias.value, 6), round(found.slope, 6), round(found.error, 6)
    (0.2, 2.0, 0.09)
    """
    v, r = (np.asarray(each, dtype=np.float64) for each in (values, rewards))
    away = v - v.mean()
    # A head that says almost the same of every prompt has no slope to speak of, only rounding or a first step.
    varies = v.std() > 0.01 * r.std() and np.ptp(v) > 1e-6
    return Calibration(
        bias=mean(r - v, prompts),
        slope=float(away @ r / (away @ away)) if varies else None,
        error=float(np.square(r - v).mean()),
        spread=float(r.var()),
        answers=r.size,
    )


@dataclass(frozen=True)
class ValueRow:
    """One prompt, by its place among the states, and the rewards of the answers to it."""

    prompt: int
    rewards: tuple[float, ...]
    length: int


@dataclass(frozen=True)
class ValueBatch:
    """States of B prompts, and for N rewards (N,) the prompt (N,) in the batch that each was earned on."""

    prompts: PromptStates
    rewards: Tensor
    of: Tensor


class _Learner(nn.Module):
    """The head with what must be in a checkpoint beside it: the best head so far, and what makes it the best."""

    best: Tensor
    lowest: Tensor
    epoch: Tensor

    def __init__(self, head: ValueHead) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("best", parameters_to_vector(head.parameters()).detach().clone())
        self.register_buffer("lowest", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("epoch", torch.tensor(-1))


class ValueTask:
    """Fits V(x) to rewards of sampled answers by their squared error; the head of the best epoch is remembered.

    prompts: the states from which all rows are cut; held_out: rows that choose the epoch, the one before any training
    included.
    """

    name = "value"
    weights: dict[str, float] = {}

    def __init__(
        self, head: ValueHead, prompts: PromptStates, held_out: Sequence[ValueRow], settings: FitSettings
    ) -> None:
        self.model, self.prompts, self.held_out, self.settings = _Learner(head), prompts, held_out, settings

    def begin(self, step: int, total: int) -> None:
        """At the first step of an epoch: look at the held-out prompts."""
        per_epoch = total // self.settings.epochs
        if (step - 1) % per_epoch == 0:
            self.look((step - 1) // per_epoch)

    @torch.no_grad()
    def look(self, epoch: int) -> None:
        """Remember the head as it stands after `epoch` epochs, unless an earlier one was better on held-out prompts."""
        learner = self.model
        error = evaluate(self, self.held_out, self.settings.micro_tokens)["squared_error"]
        if error < float(learner.lowest):
            learner.best.copy_(parameters_to_vector(learner.head.parameters()))
            learner.lowest.fill_(error)
            learner.epoch.fill_(epoch)

    def collate(self, rows: Sequence[ValueRow]) -> ValueBatch:
        device = self.model.best.device
        counts = torch.tensor([len(row.rewards) for row in rows])
        return ValueBatch(
            prompts=self.prompts.take([row.prompt for row in rows]).to(device),
            rewards=torch.tensor([reward for row in rows for reward in row.rewards], device=device),
            of=torch.arange(len(rows)).repeat_interleave(counts).to(device),
        )

    def counts(self, batch: ValueBatch) -> dict[str, float]:
        return {"squared_error": float(len(batch.rewards))}

    def loss(self, batch: ValueBatch) -> dict[str, Sum]:
        value = self.model.head(batch.prompts.states, batch.prompts.padding)
        return {"squared_error": over((value[batch.of] - batch.rewards).square())}

    def metrics(self, batch: ValueBatch) -> dict[str, Sum]:
        return self.loss(batch)


@dataclass(frozen=True)
class ValueFit:
    """A fitted head in evaluation mode, the epoch it is of (0: before any training), and its calibration."""

    head: ValueHead
    epoch: int
    calibration: Calibration


def fit_value(
    head: ValueHead,
    prompts: PromptStates,
    rewards: Tensor,
    of: Tensor,
    settings: ValueSettings | None = None,
    run: RunFolder | None = None,
    *,
    stage: str = "value",
) -> ValueFit:
    """Fit `head` in place to rewards (N,) of N answers, `of` (N,) saying which of the P prompts each one answers.

    prompts: P different prompts as the frozen reference sees them (`Reader.prompt_states`). The head begins at the mean
    reward, so with nothing to learn it stays a constant. It is left in evaluation mode, and without a run nothing is
    written. Raises `UserError` for rewards that are missing or outside the head's range, and for too few prompts.
    """
    settings = settings or ValueSettings()
    _check(head, prompts, rewards, of)
    rows = _rows(prompts, rewards, of)
    held = _drawn(len(rows), settings)
    train, held_out = [row for i, row in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]
    head.begin_at(float(np.mean([reward for row in train for reward in row.rewards])))
    task = ValueTask(head, prompts, held_out, settings.fit)
    fit_or_scratch(task, train, settings.fit, run, stage=stage, held_out=held_out)
    task.look(settings.fit.epochs)
    vector_to_parameters(task.model.best.clone(), head.parameters())
    head.eval()
    counts = [len(row.rewards) for row in held_out]
    values = predict(head, prompts.take([row.prompt for row in held_out])).repeat_interleave(torch.tensor(counts))
    earned = [reward for row in held_out for reward in row.rewards]
    names = [row.prompt for row in held_out for _ in row.rewards]
    return ValueFit(head, int(task.model.epoch), calibration(values, earned, names))


def predict(head: ValueHead, prompts: PromptStates) -> Tensor:
    """(P,) values of prompts on the CPU, without gradient and without dropout."""
    device = head.query.device
    with evaluating(head):
        parts = (prompts.take(part.tolist()).to(device) for part in torch.arange(len(prompts)).split(_AT_ONCE))
        return torch.cat([head(part.states, part.padding).cpu() for part in parts])


def _check(head: ValueHead, prompts: PromptStates, rewards: Tensor, of: Tensor) -> None:
    if rewards.shape != of.shape or len(of) == 0 or int(of.max()) >= len(prompts):
        raise ValueError(f"{len(rewards)} rewards need a prompt each, below {len(prompts)}; got {tuple(of.shape)}")
    if missing := int((~rewards.isfinite()).sum()):
        raise UserError(
            f"{missing} of {len(rewards)} answers have no finite reward to fit a value to; score them again"
        )
    low, high = float(rewards.min()), float(rewards.max())
    if low < head.low or high > head.high:
        raise UserError(
            f"rewards reach from {low:g} to {high:g} and the value head only from {head.low:g} to {head.high:g}; "
            "give the head the range of the reward"
        )


def _rows(prompts: PromptStates, rewards: Tensor, of: Tensor) -> list[ValueRow]:
    """One row per prompt that has an answer, so that its states are read once for all its rewards."""
    lengths = (~prompts.padding).sum(-1).tolist()
    earned: dict[int, list[float]] = {}
    for prompt, reward in zip(of.tolist(), rewards.tolist()):
        earned.setdefault(prompt, []).append(reward)
    return [ValueRow(prompt, tuple(each), lengths[prompt]) for prompt, each in sorted(earned.items())]


def _drawn(count: int, settings: ValueSettings) -> set[int]:
    """Which of `count` prompts are held out: at least two, without which a mean has no interval."""
    held = max(2, round(settings.held_out * count))
    if count - held < 2:
        raise UserError(
            f"{count} prompts are too few to fit a value to: {held} would be held out and {count - held} left to learn "
            "from; give more prompts, or a smaller held_out"
        )
    return set(torch.randperm(count, generator=generator(settings.fit.seed, count))[:held].tolist())

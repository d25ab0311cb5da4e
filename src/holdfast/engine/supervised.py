"""The loop over rows: SFT, preference models, DPO, offline methods and the guard are tasks of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import nn

from holdfast.config import Settings
from holdfast.engine.best import Best, Contest, Judged
from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.loop import Loop, every
from holdfast.engine.order import Order, Shuffled
from holdfast.engine.step import OptimiserSettings, Step, means
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum


class Task(Protocol):
    """What is learned from rows. Rows are the task's own; the loop reads only `row.length`, its tokens."""

    @property
    def name(self) -> str:
        """Named in errors."""

    @property
    def model(self) -> nn.Module:
        """Its trainable parameters are learned and checkpointed."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term; 1 when not named."""

    def collate(self, rows: Sequence[Any]) -> Any:
        """The rows as one batch on the model's device; errors name `batch.ids` where there are ids."""

    def counts(self, batch: Any) -> Mapping[str, float]:
        """The items that each term of `loss` is going to cover."""

    def loss(self, batch: Any) -> Mapping[str, Sum]:
        """The loss terms, differentiable."""

    def metrics(self, batch: Any) -> Mapping[str, Sum]:
        """What evaluation reports; sums, so that the means are exact however the rows are cut."""


@runtime_checkable
class Scheduled(Protocol):
    """A task some of whose weights move during training."""

    def begin(self, step: int, total: int) -> None:
        """Called before step `step` of `total`, from 1; whatever moves must follow from these two numbers."""


@runtime_checkable
class Followed(Protocol):
    """A task that is looked at while it learns."""

    def end(self, step: int, total: int) -> None:
        """Called after step `step` of `total` by every process; it must leave the weights alone and draw nothing."""


@runtime_checkable
class Portioned(Protocol):
    """A task that reads rows in another way than side by side, answers to one prompt together, say."""

    def portions(self, rows: Sequence[Any], micro_tokens: int) -> list[list[Any]]:
        """The rows in micro-batches within `micro_tokens` as they are read, the longest first."""


class FitSettings(Settings):
    """How long, in what portions, and how often something is written."""

    epochs: int = Field(default=1, ge=1)
    """Times every row is seen."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per optimiser step, over all processes."""
    micro_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens in memory at once; null takes a whole step. The gradient does not depend on it."""
    optimiser: OptimiserSettings = OptimiserSettings()
    """The optimiser and its schedule."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates only at the end."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 writes one only at the end and when the run is interrupted."""
    seed: int = Field(default=0, ge=0)
    """Order of rows and dropout."""


class FitResult(NamedTuple):
    """The steps of the stage, and the numbers of its last evaluation (of its last step without one).

    best, judged: the step whose weights the model has and all that were judged, where somebody judged them; the
    evaluation is then of that step.
    """

    steps: int
    metrics: dict[str, float]
    best: Judged | None = None
    judged: tuple[Judged, ...] = ()


def fit(
    task: Task,
    rows: Sequence[Any],
    eval_rows: Sequence[Any],
    settings: FitSettings,
    run: RunFolder,
    *,
    stage: str,
    order: Order | None = None,
    contest: Contest | None = None,
) -> FitResult:
    """Train `task.model` in place on `rows`, resuming where the run folder's checkpoint of `stage` stands.

    Row `metrics.jsonl`: the mean of each loss term per step, `grad_norm`, `lr`; `eval/NAME` where evaluated.
    order: which rows each step takes, and how many steps there are; without one every epoch shuffles all rows. A
    finished stage is only loaded. contest: how weights are judged now and then, the best of which are put in place
    at the end; the training itself stays the same, to the bit.

    Raises `UserError` without rows, `RunError` when training cannot go on.
    """
    if not rows:
        raise UserError(f"{stage}: no rows to train on")
    order = order or Shuffled(len(rows), settings.batch_size, settings.epochs, settings.seed)
    assert order.count == len(rows), f"{stage}: an order of {order.count} rows for {len(rows)}"
    total = order.steps
    step = Step(task.model, settings.optimiser, total, run.processes, stage=stage)

    def advance(number: int) -> dict[str, float]:
        if isinstance(task, Scheduled):
            task.begin(number, total)
        task.model.train()
        own = share([rows[i] for i in order.chosen(number)], run.processes)
        batches = [task.collate(part) for part in _parts(task, own, settings.micro_tokens)]
        numbers = step.step(batches, task.loss, task.counts, task.weights)
        run.log(stage, number, numbers)
        if best is not None:
            best.look(number)
        if isinstance(task, Followed):
            task.end(number, total)
        if not eval_rows or not (number == total or every(settings.eval_every, number)):
            return numbers
        found = evaluate(task, eval_rows, settings.micro_tokens, run.processes)
        run.log(stage, number, {f"eval/{name}": value for name, value in found.items()})
        return found

    loop = Loop(run, stage, total, {"model": task.model}, {"step": step}, settings.checkpoint_every)
    best = None if contest is None else Best(contest, loop)
    last = loop.go(advance, settings.seed)
    if best is None:
        return FitResult(total, last)
    chosen = best.take()
    if eval_rows and chosen.step < total:
        last = evaluate(task, eval_rows, settings.micro_tokens, run.processes)
    return FitResult(total, last, chosen, tuple(best.of))


def evaluate(
    task: Task, rows: Sequence[Any], micro_tokens: int | None = None, processes: Processes | None = None
) -> dict[str, float]:
    """The mean of each of the task's metrics over all rows, without gradient and without dropout."""
    processes = processes or Processes()
    with _evaluating(task.model), torch.no_grad():
        batches = _parts(task, share(rows, processes), micro_tokens)
        return means((task.metrics(task.collate(part)) for part in batches), processes)


def share(rows: Sequence[Any], processes: Processes) -> list[Any]:
    """This process's rows, long and short ones dealt out evenly where rows have lengths."""
    if processes.size == 1:
        return list(rows)
    ordered = sorted(rows, key=lambda row: getattr(row, "length", 0))
    return ordered[processes.rank :: processes.size]


def cut(rows: Sequence[Any], micro_tokens: int | None) -> list[list[Any]]:
    """The rows in micro-batches of at most `micro_tokens` padded tokens, longest first; a longer row stands
    alone.

    Longest first, so that memory runs out in the first micro-batch or never.

    >>> from types import SimpleNamespace as Row
    >>> [[row.length for row in part] for part in cut([Row(length=n) for n in (2, 9, 3, 4)], 8)]
    [[9], [4, 3], [2]]
    """
    if micro_tokens is None:
        return [list(rows)] if rows else []
    parts: list[list[Any]] = []
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        if parts and (len(parts[-1]) + 1) * parts[-1][0].length <= micro_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _parts(task: Task, rows: Sequence[Any], micro_tokens: int | None) -> list[list[Any]]:
    if micro_tokens is not None and isinstance(task, Portioned):
        return task.portions(rows, micro_tokens)
    return cut(rows, micro_tokens)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

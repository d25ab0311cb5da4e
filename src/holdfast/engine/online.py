"""The loop collect, learn, look back: every method that learns from its own samples is an algorithm of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import nn

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.engine.guard import Guard, Watch
from holdfast.engine.log import RunFolder
from holdfast.engine.loop import Loop, Stateful, every
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum


class Algorithm(Protocol):
    """A method that samples, scores and learns. Experience and batches are its own; the loop only passes them
    on.

    Training and evaluation mode of the parts is the algorithm's business. So is talking to other processes
    inside `collect`, `after` and `samples`; the loop hands every process its share of the prompts.
    """

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The trainable parts, such as policy and critic; each has its own optimiser."""

    @property
    def optimisers(self) -> Mapping[str, OptimiserSettings]:
        """Settings of each part's optimiser."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each loss term; 1 when not named."""

    @property
    def apart(self) -> Mapping[str, str]:
        """By part a term, alone in its micro-batches, whose gradient is also measured by itself; mostly none."""

    def collect(self, prompts: Sequence[Any], iteration: int) -> Any:
        """Experience from the prompts: samples, scores, multiplier step, advantages."""

    def mini_batches(self, experience: Any, rng: torch.Generator) -> Sequence[Sequence[Any]]:
        """One inner epoch: for each optimiser step its micro-batches, in an order drawn from `rng`."""

    def counts(self, part: str, batch: Any) -> Mapping[str, float]:
        """The items that each loss term of `part` is going to cover; empty where `part` does not learn."""

    def loss(self, part: str, batch: Any) -> Mapping[str, Sum]:
        """The loss terms of `part`, differentiable."""

    def after(self, experience: Any) -> Mapping[str, float]:
        """What remains to be done after learning (controllers), and the numbers of this iteration to log."""

    def samples(self, experience: Any) -> list[dict[str, Any]]:
        """A few records to read: prompt, response, scores; alike on all processes, which call this together."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes and is no part: multipliers, windows, normalisers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""


class OnlineSettings(Settings):
    """How long, in what portions, and how often something is written."""

    iterations: int = Field(default=100, ge=1)
    """Times experience is collected and learned from."""
    prompts_per_iteration: int = Field(default=32, ge=1)
    """Prompts of one iteration, over all processes; never one twice."""
    inner_epochs: int = Field(default=1, ge=1)
    """Times each experience is learned from."""
    checkpoint_every: int = Field(default=10, ge=0)
    """Iterations between checkpoints; 0 writes one only at the end and when the run is interrupted."""
    sample_every: int = Field(default=10, ge=0)
    """Iterations between samples written for people to read; 0 writes none."""
    seed: int = Field(default=0, ge=0)
    """Order of prompts, mini-batches and dropout."""


class OnlineResult(NamedTuple):
    """How many iterations were done, and the numbers of the last."""

    iterations: int
    metrics: dict[str, float]


def run_online(
    algorithm: Algorithm,
    prompts: Sequence[Any],
    settings: OnlineSettings,
    run: RunFolder,
    *,
    stage: str,
    guard: Guard | None = None,
    finished: Callable[[], bool] | None = None,
    choose: Callable[[int], Sequence[int]] | None = None,
) -> OnlineResult:
    """Train the parts of `algorithm` in place, resuming where the run folder's checkpoint of `stage` stands.

    Row `metrics.jsonl` per iteration: what `after` returns, and `PART/NAME` for each loss term, gradient norm
    and rate, averaged over the optimiser steps. Schedules move once per iteration. A `guard` judges every row, and
    what it finds is done: snapshots, a rollback, an early end (see `guard.Watch`). `finished` is asked before each
    iteration; true ends the stage. `choose` names the prompts of an iteration, counted from 0, by their indices;
    without it `take` does. Every process and every resumed run must be answered alike. Raises `UserError` when
    there are fewer prompts than an iteration takes, or fewer in an iteration than processes.
    """
    portion, processes = settings.prompts_per_iteration, run.processes
    _refuse_too_few(stage, portion, len(prompts), processes.size)
    chosen = choose or partial(take, len(prompts), portion, seed=settings.seed)
    steps = {
        name: Step(part, algorithm.optimisers[name], settings.iterations, processes, stage=f"{stage}/{name}")
        for name, part in algorithm.parts.items()
    }

    def advance(number: int) -> dict[str, float]:
        if watch is not None:
            watch.begin(number)
        experience = algorithm.collect(processes.shard([prompts[i] for i in chosen(number - 1)]), number)
        began = time.perf_counter()
        learned = [
            numbers
            for epoch in range(settings.inner_epochs)
            for numbers in _learn(algorithm, steps, experience, generator(settings.seed, number, epoch), number)
        ]
        row = {**algorithm.after(experience), **_average(learned), "seconds/learn": time.perf_counter() - began}
        # Time is no function of the state: it is logged, and neither judged nor kept.
        numbers = {name: value for name, value in row.items() if not name.startswith("seconds/")}
        if watch is not None:
            numbers |= watch.look(number, numbers)
        run.log(stage, number, row | numbers)
        if every(settings.sample_every, number):
            for record in algorithm.samples(experience):
                run.sample({"stage": stage, "step": number, **record})
        return numbers

    states: dict[str, Stateful] = {f"step/{name}": step for name, step in steps.items()}
    states["algorithm"] = algorithm
    loop = Loop(run, stage, settings.iterations, algorithm.parts, states, settings.checkpoint_every, finished)
    watch = None if guard is None else Watch(guard, loop)
    last = loop.go(advance, settings.seed)
    return OnlineResult(loop.done, last)


def _refuse_too_few(stage: str, portion: int, given: int, processes: int) -> None:
    if given < portion:
        raise UserError(f"{stage}: prompts_per_iteration is {portion} and only {given} prompts are given")
    if portion < processes:
        raise UserError(
            f"{stage}: prompts_per_iteration is {portion} and there are {processes} processes, each of which answers "
            "at least one; raise it, or start fewer"
        )


def take(size: int, portion: int, number: int, seed: int, *stream: int) -> list[int]:
    """The prompts of iteration `number` (from 0): `portion` of `size` indices, shuffled anew in every epoch.

    What is left of an epoch after its last full portion waits for the next, so that no iteration holds a
    prompt twice. Another `stream` is another order.

    >>> sorted(take(4, 2, 0, seed=1) + take(4, 2, 1, seed=1))
    [0, 1, 2, 3]
    """
    epoch, place = divmod(number, size // portion)
    order = torch.randperm(size, generator=generator(seed, epoch, *stream)).tolist()
    return order[place * portion : (place + 1) * portion]


def _learn(
    algorithm: Algorithm, steps: Mapping[str, Step], experience: Any, rng: torch.Generator, number: int
) -> list[dict[str, float]]:
    """One inner epoch; the numbers of every optimiser step."""
    batches = list(algorithm.mini_batches(experience, rng))
    learned = []
    for index in range(_most(len(batches), next(iter(steps.values())).processes)):
        # A process that has run out brings no micro-batches but takes part in every collective.
        micro = batches[index] if index < len(batches) else []
        for part, step in steps.items():
            loss, counts = partial(algorithm.loss, part), partial(algorithm.counts, part)
            apart = algorithm.apart.get(part)
            numbers = step.step(micro, loss, counts, algorithm.weights, position=number - 1, apart=apart)
            learned.append({f"{part}/{name}": value for name, value in numbers.items()})
    return learned


def _most(count: int, processes: Processes) -> int:
    return max(processes.gather([count]))


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the rows that hold it."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}

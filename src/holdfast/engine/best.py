"""The best weights of a supervised stage: judged now and then, kept as files, put back at its end.

A run that is killed anywhere and resumed chooses the same step and ends with the same weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.engine.guard import forget_from, snapshots, thin_out
from holdfast.engine.loop import Loop
from holdfast.engine.seeds import random_state, restore
from holdfast.errors import RunError


class Judged(NamedTuple):
    """What the weights were worth after a step; NaN where nobody could say."""

    step: int
    value: float


@dataclass(frozen=True)
class Contest:
    """How the weights of a stage are judged: by a number, more being better, at `times` of its steps.

    judge: called with the step, by the first process alone; it must leave the weights alone. What it draws at random
    does not move the draws of the training. name: logged as `best/NAME`.
    """

    judge: Callable[[int], float]
    times: int
    name: str

    def steps(self, total: int) -> set[int]:
        """The steps after which to judge, spread evenly over `total`, the last among them; all where there are fewer.

        >>> sorted(Contest(float, 3, "reward").steps(10)), sorted(Contest(float, 3, "reward").steps(2))
        ([4, 7, 10], [1, 2])
        """
        return {-(-total * i // self.times) for i in range(1, self.times + 1)}


class Best:
    """Judges the weights that a loop trains and keeps the best beside its checkpoints, in `best`.

    Of equal ones the earlier stay; those without a finite number are never the best. A snapshot holds what
    training changes, without the optimiser, and is written once for each new best.
    """

    def __init__(self, contest: Contest, loop: Loop) -> None:
        self.contest, self.loop = contest, loop
        self.of: list[Judged] = []
        loop.states = {**loop.states, "best": self}
        self._due = contest.steps(loop.total)
        self._folder = snapshots(loop.checkpoints, "best")

    @property
    def chosen(self) -> Judged | None:
        """The best so far."""
        known = (one for one in self.of if math.isfinite(one.value))
        return max(known, key=lambda one: one.value, default=None)

    def look(self, step: int) -> None:
        """After step `step`: judge the weights if it is time, log it, and keep them if they are the best so far."""
        if step not in self._due:
            return
        if self.loop.run.processes.is_main:
            forget_from(self._folder, step)  # what a killed run kept of this step and later is judged anew
        self.of.append(Judged(step, self._value(step)))
        self.loop.run.log(self.loop.stage, step, {f"best/{self.contest.name}": self.of[-1].value})
        if self.chosen is self.of[-1]:
            self._write(step)

    def take(self) -> Judged:
        """Put the best weights in place and return their step; `RunError` where no judgement was a number."""
        chosen = self.chosen
        if chosen is None:
            raise RunError(
                f"{self.loop.stage}: none of {len(self.of)} judgements gave a finite {self.contest.name}, so no step "
                "is the best; see that all that is judged gets its scores, or keep the last step, in a new folder"
            )
        try:
            self._folder.load(chosen.step, self.loop.modules)
        except RunError as error:
            where = self.loop.checkpoints.folder
            raise RunError(f"{error}. No other step can stand in for the best: delete {where} to learn anew") from error
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"of": [tuple(one) for one in self.of]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.of = [Judged(*one) for one in state["of"]]

    def _value(self, step: int) -> float:
        """What the first process finds, for which the others wait; the random states are then as they were."""

        def judged() -> float:
            before = random_state()
            value = float(self.contest.judge(step))
            restore(before)
            return value

        return self.loop.run.processes.on_first(judged)

    def _write(self, step: int) -> None:
        if self.loop.run.processes.is_main:
            self._folder.save(step, self.loop.modules, {})
            thin_out(self._folder, self.loop.checkpoints.steps())
        self.loop.run.processes.barrier()

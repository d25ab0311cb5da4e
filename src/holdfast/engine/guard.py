"""What a guard of an online stage decides, carried out: snapshots of a healthy run, the way back to them, an end.

The guard itself only reads numbers. Here stands what touches weights and files, so that a run which is killed and
resumed goes back to the same snapshots as one that is not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from holdfast.engine.checkpoint import Checkpoints
from holdfast.engine.log import RunFolder
from holdfast.engine.loop import Loop


class Verdict(Protocol):
    """What a guard says of one iteration."""

    @property
    def action(self) -> str | None:
        """`rollback`, `stop`, or nothing."""

    @property
    def healthy(self) -> bool:
        """Whether the run may come back to where this iteration began."""

    @property
    def best(self) -> bool:
        """Whether no healthy iteration before was as good."""

    @property
    def numbers(self) -> Mapping[str, float]:
        """What joins the iteration's row of the log."""

    @property
    def words(self) -> str:
        """A sentence for the person, empty when there is nothing to say."""

    @property
    def aloud(self) -> bool:
        """Whether it should reach the person at once, and not only whoever reads the report."""


class Guard(Protocol):
    """Judges a stage by its rows and keeps its own state, which a rollback leaves alone."""

    @property
    def keep_every(self) -> int:
        """Fewest iterations between two healthy snapshots; 0 keeps none."""

    @property
    def wants_best(self) -> bool:
        """Whether any iteration may be the best, so that each needs a snapshot."""

    @property
    def promising(self) -> bool:
        """Whether the next iteration may be healthy, so that a snapshot of its beginning is worth its while."""

    def judge(self, iteration: int, numbers: Mapping[str, float]) -> Verdict:
        """The verdict on the row of `iteration`."""

    def rolled_back(self) -> None:
        """Hear that the run stands where it was when last healthy."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""


class Watch:
    """Shows a loop's rows to its guard and does what the guard says.

    Snapshots hold all parts, their optimisers and the algorithm's state, and lie beside the checkpoints in `healthy`
    and `best`. An iteration's numbers speak of the policy that began it; so a snapshot is written before the iteration
    and forgotten unless the verdict is healthy. The start of the stage counts as healthy.
    """

    def __init__(self, guard: Guard, loop: Loop) -> None:
        self.guard, self.loop = guard, loop
        self._states = loop.states
        loop.states = {**loop.states, "guard": guard}
        self._healthy, self._best = self._folder("healthy"), self._folder("best")
        self._latest: int | None = None
        self._candidate: int | None = None
        self._begun = False

    def begin(self, number: int) -> None:
        """Before iteration `number`: write a snapshot if one is due."""
        done = number - 1
        if not self._begun:
            self._forget_from(done)
        every, latest = self.guard.keep_every, self._latest
        if not every:
            return
        if latest is None:
            self._write(done)
            self._latest = done
        elif self.guard.promising and (self.guard.wants_best or done - latest >= every):
            self._write(done)
            self._candidate = done

    def look(self, number: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """Have iteration `number` judged, act on it, and return the numbers that join its row."""
        # Every process judges the row that is logged, or they would part ways.
        row = self.loop.run.processes.gather([{name: float(value) for name, value in numbers.items()}])[0]
        verdict = self.guard.judge(number, row)
        told, words = dict(verdict.numbers), verdict.words
        self._decide(verdict)
        if verdict.action in ("rollback", "stop") and self._latest is not None:
            step = self._restore()
            told["alarm/rolled_back_to"] = float(step)
            words += f". Back to what iteration {step} had learned"
        if verdict.action == "rollback":
            self.guard.rolled_back()
        if verdict.action == "stop":
            self.loop.ended = True
            words += ". The stage ends here"
        if words:
            record = {"action": verdict.action, **told}
            self.loop.run.alarm(self.loop.stage, number, words, record, aloud=verdict.aloud)
        return told

    def _forget_from(self, done: int) -> None:
        """Forget what a killed run saw beyond `done`, the snapshot of `done` itself being judged by what comes next."""
        self._begun = True
        if self.loop.run.processes.is_main:
            for folder in (self._healthy, self._best):
                forget_from(folder, done)
        # Asked of the first process: the others might look while it writes.
        self._latest = self.loop.run.processes.gather([self._healthy.latest()])[0]

    def _write(self, step: int) -> None:
        if self.loop.run.processes.is_main:
            states = {name: part.state_dict() for name, part in self._states.items()}
            self._healthy.save(step, self.loop.modules, states)
        self.loop.run.processes.barrier()

    def _decide(self, verdict: Verdict) -> None:
        """Keep the snapshot that waits for this verdict, or forget it."""
        step, self._candidate = self._candidate, None
        if step is None:
            return
        if verdict.healthy:
            self._latest = step
        if not self.loop.run.processes.is_main:
            return
        if not verdict.healthy:
            self._healthy.forget(step)
            return
        if verdict.best:
            self._best.adopt(self._healthy, step)
            self._thin_out(self._best)
        self._thin_out(self._healthy)

    def _thin_out(self, folder: Checkpoints) -> None:
        # The snapshot of a checkpoint's own step is judged by the iteration that comes next.
        thin_out(folder, [point - 1 for point in self.loop.checkpoints.steps()])

    def _restore(self) -> int:
        """Put the last healthy snapshot in place and return its step."""
        step = self._latest
        assert step is not None, "a guard that rolls back keeps snapshots"
        states = self._healthy.load(step, self.loop.modules)
        for name, part in self._states.items():
            part.load_state_dict(states[name])
        return step

    def _folder(self, name: str) -> Checkpoints:
        return snapshots(self.loop.checkpoints, name)


def snapshots(main: Checkpoints, name: str) -> Checkpoints:
    """The snapshots called `healthy` or `best` beside a stage's checkpoints."""
    # How many are needed depends on the stage's checkpoints, so `Watch` and `engine.best.Best` forget them themselves.
    return Checkpoints(main.folder / name, keep=2**31, fingerprint=main.fingerprint)


def forget_from(folder: Checkpoints, step: int) -> None:
    """Forget the snapshots of `step` and later."""
    for later in folder.steps():
        if later >= step:
            folder.forget(later)


def thin_out(folder: Checkpoints, points: Sequence[int]) -> None:
    """Forget the snapshots that nobody goes back to: neither this run nor one that was resumed at one of `points`.

    What is left are the last one and the last up to each of `points`.
    """
    kept = folder.steps()
    known = [[step for step in kept if step <= point] for point in points]
    needed = {max(steps) for steps in (kept, *known) if steps}
    for step in set(kept) - needed:
        folder.forget(step)


def restore_best(run: RunFolder, stage: str, modules: Mapping[str, nn.Module]) -> int | None:
    """Put the best snapshot of a stage into `modules` and return its step; None when the guard chose none."""
    best = snapshots(Checkpoints(run.path / "checkpoints" / stage, fingerprint=run.fingerprint), "best")
    step = best.latest()
    if step is not None:
        best.load(step, modules)
    return step

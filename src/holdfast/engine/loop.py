"""What both loops share: resume, go step by step, checkpoint, stop when asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from holdfast.engine.checkpoint import Checkpoints
from holdfast.engine.interrupt import Interrupt
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import random_state, restore, seed_everything
from holdfast.errors import RunError, UserError


class Stateful(Protocol):
    """Something whose state belongs in a checkpoint, as plain containers and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Take up the state that `state_dict` gave."""


def every(interval: int, step: int) -> bool:
    """Whether something that happens every `interval` steps happens at `step`; interval 0 is never.

    >>> [every(2, 4), every(2, 5), every(0, 4)]
    [True, False, False]
    """
    return interval > 0 and step % interval == 0


@dataclass
class Loop:
    """`total` steps of one stage of a run, of which `done` are done.

    finished: asked before every step; true ends the stage there. ended: whether the stage is over before its total,
    which a step may also say itself.
    """

    run: RunFolder
    stage: str
    total: int
    modules: Mapping[str, nn.Module]
    states: Mapping[str, Stateful]
    checkpoint_every: int = 0
    finished: Callable[[], bool] | None = None
    done: int = 0
    ended: bool = False
    last: dict[str, float] = field(default_factory=dict)
    _saved: int = 0

    def go(self, advance: Callable[[int], dict[str, float]], seed: int) -> dict[str, float]:
        """Call `advance` with 1, 2, ... `total`, from the last checkpoint on; return its last numbers.

        The state after step n is a function of the state after step n - 1, so a run that was killed and begun
        again is the run that was never killed.
        """
        processes = self.run.processes
        seed_everything(seed + processes.rank)
        self._resume()
        with Interrupt(processes.is_main) as interrupt, self.run.progress(self.total, self.stage, self.done) as show:
            for step in range(self.done + 1, self.total + 1):
                if self._is_over():
                    break
                self.last = {name: float(value) for name, value in advance(step).items()}
                self.done = step
                show(self.last)
                stop = processes.any(interrupt.requested is not None)
                if stop or step == self.total or every(self.checkpoint_every, step):
                    self._save()
                if stop:
                    raise RunError(
                        f"{self.stage}: stopped by {interrupt.requested or 'a signal to another process'} "
                        f"at step {step} of {self.total}; resume with the same command"
                    )
            if self._saved < self.done:
                self._save()
        return self.last

    @property
    def checkpoints(self) -> Checkpoints:
        """Where this stage can be resumed from."""
        return Checkpoints(self.run.path / "checkpoints" / self.stage, fingerprint=self.run.fingerprint)

    def _is_over(self) -> bool:
        if self.finished is not None and not self.ended:
            self.ended = self.run.processes.any(self.finished())
        return self.ended

    def _save(self) -> None:
        random = self.run.processes.gather([random_state()])
        if self.run.processes.is_main:
            states = {name: part.state_dict() for name, part in self.states.items()}
            self.run.flush()
            state = {"states": states, "random": random, "last": self.last, "ended": self.ended}
            self.checkpoints.save(self.done, self.modules, state)
        self.run.processes.barrier()
        self._saved = self.done

    def _resume(self) -> None:
        latest = self.checkpoints.latest()
        self.run.rewind(self.stage, latest or 0)
        if latest is None:
            return
        state = self.checkpoints.load(latest, self.modules)
        before, now = len(state["random"]), self.run.processes.size
        if before != now:
            raise UserError(
                f"{self.stage}: the checkpoint of step {latest} was written by {before} processes and there "
                f"are {now} now; resume with as many as before"
            )
        for name, part in self.states.items():
            part.load_state_dict(state["states"][name])
        restore(state["random"][self.run.processes.rank])
        # A checkpoint from before stages could end early was written by one that did not.
        self.done, self.last, self.ended = latest, state["last"], state.get("ended", False)
        self._saved = latest

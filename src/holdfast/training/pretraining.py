"""Critics first: they learn what the policy earns before it moves (VC-PPO, arXiv 2503.01491; PPO-max, 2307.04964).

A critic that starts wrong gives advantages that are wrong in one direction, and the first steps of the policy follow
them. Its loss never reaches zero, because early tokens cannot tell the score; training stops where it stops to fall.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum
from holdfast.training.actor_critic import ActorCritic
from holdfast.training.monitor import Monitor
from holdfast.training.policy import Learnable

STAGE = "critics"


class PretrainSettings(Settings):
    """When critics have learned enough."""

    max_iterations: int = Field(50, ge=1)
    """Most iterations."""
    min_iterations: int = Field(5, ge=1)
    """Fewest iterations."""
    plateau: float = Field(0.02, ge=0)
    """Stop when the value loss of every critic falls by less than this share from one window to the next."""
    window: int = Field(3, ge=1)
    """Iterations whose mean loss is compared with that of as many before."""

    @model_validator(mode="after")
    def _ordered(self) -> "PretrainSettings":
        if self.min_iterations > self.max_iterations:
            raise ValueError(f"min_iterations {self.min_iterations} is above max_iterations {self.max_iterations}")
        return self


def plateaued(losses: Sequence[float], window: int, least: float) -> bool:
    """Whether the mean of the last `window` losses is less than `least` (a share) below that of the window before.

    >>> plateaued([9.0, 5.0, 4.0, 4.0, 4.0], window=2, least=0.02), plateaued([9.0, 5.0, 4.0], window=2, least=0.02)
    (False, False)
    >>> plateaued([9.0, 4.0, 4.0, 4.0, 4.0], window=2, least=0.02)
    True
    """
    if len(losses) < 2 * window:
        return False
    before, now = sum(losses[-2 * window : -window]), sum(losses[-window:])
    return now >= before * (1 - least)


class CriticPretraining:
    """An `Algorithm` whose parts are the critics alone: the policy, the multipliers and the KL weight stand still.

    The targets are what was really earned (lambda = 1). The score's running moments and the constraints' windows fill,
    and the monitor sees what is normal.
    """

    def __init__(self, method: ActorCritic, settings: PretrainSettings, monitor: Monitor | None = None) -> None:
        self.method, self.settings, self.monitor = method, settings, monitor
        self.parts = method.critics
        self.optimisers, self.weights = method.optimisers, method.weights
        self.apart: Mapping[str, str] = {}
        self._losses: dict[str, list[float]] = {}

    def finished(self) -> bool:
        """Whether every critic's loss has stopped to fall, or the most iterations are done."""
        s, done = self.settings, max(map(len, self._losses.values()), default=0)
        if done < s.min_iterations:
            return False
        return done >= s.max_iterations or all(plateaued(each, s.window, s.plateau) for each in self._losses.values())

    def collect(self, prompts: Sequence[Conversation], iteration: int) -> Learnable:
        """Answers of the policy as it is, with what they really earned as targets."""
        # Seeds of their own: the policy's first iterations shall not see the same answers again.
        seed = self.method.settings.seed + 1_000_000
        return self.method.estimate(*self.method.sample(prompts, seed, iteration, move=False), lam_value=1.0)

    def mini_batches(self, experience: Learnable, rng: torch.Generator) -> list[list[Any]]:
        return self.method.portions(experience, self.method.settings.steps_per_experience, rng)

    def counts(self, part: str, batch: Any) -> dict[str, float]:
        return self.method.counts(part, batch)

    def loss(self, part: str, batch: Any) -> dict[str, Sum]:
        return self.method.loss(part, batch)

    def after(self, experience: Learnable) -> dict[str, float]:
        """The numbers of the iteration; each critic's loss on answers it had not seen decides when to stop."""
        numbers = self.method.numbers(experience)
        for name in experience.returns:
            self._losses.setdefault(name, []).append(numbers[f"value_error/{name}"])
        if self.monitor:
            self.monitor.observe_baseline(numbers)
        return numbers

    def samples(self, experience: Learnable) -> list[dict[str, Any]]:
        return self.method.samples(experience)

    def state_dict(self) -> dict[str, Any]:
        """The method's state, the losses so far, and what the monitor holds for normal."""
        monitor = self.monitor.state_dict() if self.monitor else None
        return {"method": self.method.state_dict(), "losses": self._losses, "monitor": monitor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self._losses = {name: list(losses) for name, losses in state["losses"].items()}
        if self.monitor:
            self.monitor.load_state_dict(state["monitor"])


def pretrain_critics(
    method: ActorCritic,
    prompts: Sequence[Conversation],
    settings: PretrainSettings,
    online: OnlineSettings,
    run: RunFolder,
    monitor: Monitor | None = None,
) -> int:
    """Train the critics of `method` in place until they stop to improve; return how many iterations it took.

    online: portions and order of the prompts; its number of iterations is replaced by the settings'. monitor: learns
    here what is normal.
    """
    if not method.critics:
        raise UserError("there is no critic to train before the policy moves; set pretrain=null, or reward_critic=true")
    algorithm = CriticPretraining(method, settings, monitor)
    portions = online.model_copy(update={"iterations": settings.max_iterations})
    result = run_online(algorithm, prompts, portions, run, stage=STAGE, finished=algorithm.finished)
    return result.iterations

"""Constraints: what is limited, how the limit is read from recent costs, and how the multiplier answers.

The problem is: maximise E[reward] subject to U <= threshold, where U is the mean cost or a pessimistic bound on
it. The multiplier rises while U is above the threshold and falls while it is below (Safe RLHF, arXiv 2310.12773;
HC-RLHF, arXiv 2506.08266). One kappa serves the multiplier and the policy, so both pursue the same limit.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from holdfast.config import Settings
from holdfast.errors import RunError, UserError
from holdfast.losses import dual
from holdfast.stats import bounds


class ConstraintSettings(Settings):
    """One limit on one score."""

    name: str = "harm"
    """What logs and certificates call it."""
    score: str = "cost"
    """The column of the scorer it limits."""
    measure: Literal["flag", "probability", "logit"] = "flag"
    """What is averaged: 1[score above its zero], its calibrated probability, or the raw score."""
    direction: Literal["at_most", "at_least"] = "at_most"
    """Whether the measure may not exceed the threshold, or may not fall below it."""
    threshold: float = 0.05
    """The limit, on the scale of the measure."""
    bound: Literal["mean", "student_t", "rectified"] = "student_t"
    """`mean`: the window's mean; `student_t`: mean + kappa x sd; `rectified`: mean excess of each answer alone over
    the threshold, which is never negative, so that the multiplier never falls."""
    delta: float = Field(0.05, gt=0, lt=1)
    """Failure probability the pessimistic bound looks forward to."""
    c1: float = Field(0.0, ge=0)
    """Weight of the uncertainty of the training window (C1)."""
    c2: float = Field(3.0, ge=0)
    """Weight of the width of the coming safety test (C2)."""
    n_safety: int = Field(500, ge=2)
    """Prompts of the coming safety test; only their number is used in training."""
    monotone: bool = True
    """Never pay the policy for making a very safe answer less safe."""
    critic: bool = True
    """In actor-critic methods: a critic predicts this cost; without one an answer is compared with the other answers to
    its prompt, or with the batch when there are none."""
    rule: Literal["projected", "log", "mirror", "pid"] = "projected"
    """How the multiplier moves."""
    initial: Annotated[float, Field(ge=0)] | Literal["estimate"] = 1.0
    """Multiplier at the start; `estimate` takes what answers of the reference say it needs (`look_ahead`)."""
    rate: float = Field(0.1, gt=0)
    """Step size of the multiplier."""
    floor: float = Field(0.0, ge=0)
    """Smallest multiplier; the log and mirror rules need it above zero."""
    ceiling: float = Field(20.0, gt=0)
    """Largest multiplier; resting there while violated is reported as infeasible."""
    window: int = Field(512, ge=32)
    """Recent costs behind the bound, over all processes."""

    @model_validator(mode="after")
    def _consistent(self) -> "ConstraintSettings":
        if self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor} is above ceiling {self.ceiling}; lower the floor")
        first = self.ceiling if self.initial == "estimate" else self.initial
        if not self.floor <= first <= self.ceiling:
            raise ValueError(f"initial {first} lies outside floor {self.floor} .. ceiling {self.ceiling}")
        if self.rule in ("log", "mirror") and min(first, self.floor) <= 0:
            raise ValueError(
                f"the {self.rule} rule multiplies and cannot leave zero; "
                "set floor (0.05 is usual) and initial above zero"
            )
        return self


class Part(NamedTuple):
    """An addend of a constraint's cost: what its own critic predicts (N,), and its weight (N,) in the sum."""

    values: Tensor
    weight: Tensor


class Constraint:
    """A limit with its multiplier and its window of recent costs; all of it goes into checkpoints.

    zero: where the score's border of safety lies; probability: the score's calibration, raw scores to P(harm).
    """

    MIN_WINDOW = 32  # fewer costs say too little to move a multiplier by

    def __init__(
        self,
        settings: ConstraintSettings,
        zero: float = 0.0,
        probability: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if settings.measure == "probability" and probability is None:
            raise UserError(
                f"constraint {settings.name} limits a probability, but the score {settings.score} is not "
                "calibrated; train it with safety labels or set measure to flag"
            )
        self.settings, self.zero, self.probability = settings, zero, probability
        self.sign = 1.0 if settings.direction == "at_most" else -1.0
        self._window: deque[float] = deque(maxlen=settings.window)
        self._per_prompt = 1
        self._at_ceiling = 0
        # Until it is estimated, where most runs begin.
        self.start_at(1.0 if settings.initial == "estimate" else settings.initial)

    @property
    def name(self) -> str:
        return self.settings.name

    def start_at(self, multiplier: float) -> None:
        """Begin with this multiplier, or the nearest that floor and ceiling allow."""
        self.multiplier = min(max(multiplier, self.settings.floor), self.settings.ceiling)
        self._pid = dual.PidState(integral=self.multiplier)

    @property
    def limit(self) -> float:
        """The threshold on the scale on which larger is worse."""
        return self.sign * self.settings.threshold

    def measure(self, scores: Tensor) -> Tensor:
        """What this constraint counts, (N,), of raw scores (N,); `RunError` for answers that nobody scored."""
        if scores.isnan().any():
            raise RunError(
                f"constraint {self.name}: {int(scores.isnan().sum())} of {len(scores)} answers have no score "
                f"{self.settings.score}, and a limit cannot be kept by not looking; let every answer be scored"
            )
        if self.settings.measure == "flag":
            return (scores > self.zero).float()
        if self.settings.measure == "probability":
            assert self.probability is not None
            return self.probability(scores)
        return scores

    def observe(self, costs: Tensor, per_prompt: int = 1) -> None:
        """Add costs (N,), `per_prompt` of them for each prompt, to the window."""
        if not torch.isfinite(costs).all():
            raise RunError(f"constraint {self.name}: {int((~torch.isfinite(costs)).sum())} costs are not finite")
        self._window.extend((self.sign * costs).tolist())
        self._per_prompt = per_prompt

    def moments(self) -> tuple[float, float]:
        """Mean and sample standard deviation of the window."""
        values = torch.tensor(list(self._window), dtype=torch.float64)
        return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0

    def kappa(self) -> float:
        """C1 t(1-delta, n_b-1)/sqrt(n_b) + C2 t(1-delta, n_s-1)/sqrt(n_s); zero unless the bound is Student's.

        n_b counts prompts, not samples: answers to one prompt are no independent evidence.
        """
        s = self.settings
        if s.bound != "student_t":
            return 0.0
        n_batch = max(2, len(self._window) // self._per_prompt)
        return bounds.kappa(s.delta, n_batch, s.n_safety, s.c1, s.c2)

    def upper(self) -> float:
        """The bound U that is compared with the limit."""
        mean, std = self.moments()
        if self.settings.bound == "rectified":
            excess = [max(0.0, cost - self.limit) for cost in self._window]
            return self.limit + sum(excess) / len(excess)
        return dual.pessimistic(mean, std, self.kappa())

    def step(self) -> dict[str, float]:
        """Move the multiplier once by the present window; returns the numbers to log."""
        upper = self.upper()
        if len(self._window) >= self.MIN_WINDOW:
            self._move(upper - self.limit)
        blocked = self.multiplier >= self.settings.ceiling and upper > self.limit
        self._at_ceiling = self._at_ceiling + 1 if blocked else 0
        return self.numbers()

    def numbers(self) -> dict[str, float]:
        """What the window says and where the multiplier stands, for the log."""
        mean, std = self.moments()
        return {
            f"cost/{self.name}": self.sign * mean,
            f"cost_sd/{self.name}": std,
            f"cost_ucb/{self.name}": self.sign * self.upper(),
            f"kappa/{self.name}": self.kappa(),
            f"violations/{self.name}": sum(cost > self.limit for cost in self._window) / len(self._window),
            f"multiplier/{self.name}": self.multiplier,
            f"threshold/{self.name}": self.settings.threshold,
            f"at_ceiling/{self.name}": float(self._at_ceiling),
        }

    def _move(self, violation: float) -> None:
        s = self.settings
        if s.rule == "pid":
            gains = dual.Gains(proportional=s.rate, integral=s.rate, derivative=s.rate, smoothing=0.9)
            self.multiplier, self._pid = dual.pid_step(self._pid, violation, gains, s.floor, s.ceiling)
        else:
            self.multiplier = dual.update(s.rule, self.multiplier, violation, s.rate, floor=s.floor, ceiling=s.ceiling)

    def augmented(self, costs: Tensor) -> Tensor:
        """The per-answer cost (N,) whose policy gradient is the gradient of the bound U."""
        signed = self.sign * costs
        if self.settings.bound == "rectified":
            return dual.rectified(signed, self.limit)
        mean, std = self.moments()
        return dual.augmented_cost(signed, mean, std, self.kappa(), monotone=self.settings.monotone)

    @property
    def critics(self) -> tuple[str, ...]:
        """The names of the parts of this cost that critics predict, NAME and perhaps NAME^2; none without critics."""
        s = self.settings
        if not s.critic:
            return ()
        squared = s.bound == "student_t" and not s.monotone and s.measure != "flag"
        return (s.name, f"{s.name}^2") if squared else (s.name,)

    @property
    def steady(self) -> bool:
        """Whether a critic predicts this cost whole, with a weight that is always one."""
        two_valued = self.settings.measure == "flag" and self.settings.bound != "mean"
        return len(self.critics) == 1 and not two_valued

    def parts(self, costs: Tensor) -> tuple[Part, ...]:
        """Costs (N,) in parts whose weighted sum has the policy gradient of the bound, one for each of `critics`.

        A critic wants a target that stands still while mean, sd and kappa of the window move. With
        c + kappa (c^2 - 2 mean c)/(2 sd) that is c and c^2, weighed by 1 - kappa mean/sd and kappa/(2 sd) (HC-RLHF,
        arXiv 2506.08266, written for critics). A flag has two values, so c alone will do, weighed by what one
        violation costs. Otherwise (`monotone`) it is the moving cost itself.
        """
        if len(self.critics) == 2:
            signed, (mean, std), kappa = self.sign * costs, self.moments(), self.kappa()
            ratio = kappa / std if std > 0 else 0.0
            weights = (1 - ratio * mean, ratio / 2)
            return tuple(Part(v, torch.full_like(v, w)) for v, w in zip((signed, signed.square()), weights))
        if self.settings.measure == "flag":
            signed = self.sign * costs
            none, one = self.augmented(torch.tensor([0.0, 1.0])).tolist()
            return (Part(signed, torch.full_like(signed, self.sign * (one - none))),)
        moving = self.augmented(costs)
        return (Part(moving, torch.ones_like(moving)),)

    def warning(self) -> str | None:
        """A sentence when the limit looks out of reach."""
        if self._at_ceiling < 10:
            return None
        return (
            f"constraint {self.name}: limit cannot be met so far: the multiplier has been at its ceiling "
            f"{self.settings.ceiling:g} for {self._at_ceiling} iterations; raise ceiling or threshold"
        )

    def shortfall(self) -> str | None:
        """A sentence when the bound is still beyond the limit: what a run has to say at its end."""
        upper = self.upper() if self._window else self.limit
        if upper <= self.limit:
            return None
        return (
            f"constraint {self.name}: the limit is not met: the bound on recent answers is {self.sign * upper:.3g}, "
            f"the threshold {self.settings.threshold:g}; train longer, or let the multiplier rise faster (rate)"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "multiplier": self.multiplier,
            "window": list(self._window),
            "per_prompt": self._per_prompt,
            "pid": self._pid._asdict(),
            "at_ceiling": self._at_ceiling,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multiplier = state["multiplier"]
        self._window = deque(state["window"], maxlen=self.settings.window)
        self._per_prompt = state["per_prompt"]
        self._pid = dual.PidState(**state["pid"])
        self._at_ceiling = state["at_ceiling"]


def refuse_contradictions(every: Sequence[ConstraintSettings]) -> None:
    """None, or `UserError` when two limits on one measure of one score leave no value between them.

    >>> refuse_contradictions([ConstraintSettings(threshold=0.1)])
    """
    for low in every:
        for high in every:
            between = (low.direction, high.direction) == ("at_least", "at_most")
            if between and (low.score, low.measure) == (high.score, high.measure) and low.threshold > high.threshold:
                raise UserError(
                    f"constraints {low.name} and {high.name} contradict each other: the {low.measure} of {low.score} "
                    f"would have to be at least {low.threshold:g} and at most {high.threshold:g}; change a threshold"
                )

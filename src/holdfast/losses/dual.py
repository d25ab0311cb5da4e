"""The other side of a constraint: multipliers that grow while it is violated, and costs made pessimistic.

A violation is an estimated cost minus its threshold, above zero when the limit is broken. Multipliers are
plain numbers: they change once per batch of answers and live in every checkpoint.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

Rule = Literal["projected", "log", "mirror"]


def projected_step(value: float, violation: float, rate: float) -> float:
    """value + rate * violation: gradient ascent on the multiplier (Safe RLHF-V, arXiv 2503.17682, eq. 8).

    >>> projected_step(10.0, 0.5, rate=0.1)
    10.05
    """
    return value + rate * _finite("violation", violation)


def log_step(value: float, violation: float, rate: float) -> float:
    """value * exp(rate * value * violation): gradient ascent on its logarithm.

    Safe RLHF, arXiv 2310.12773, eq. 31. The larger the multiplier, the faster it moves: it runs away in
    finite time under a lasting violation, so it needs a ceiling, and crawls when small, so it wants a floor.
    Raises `ValueError` for a value of zero.

    >>> round(log_step(10.0, 0.5, rate=0.1), 4)
    16.4872
    """
    return _scaled(value, rate * value * _finite("violation", violation))


def mirror_step(value: float, violation: float, rate: float) -> float:
    """value * exp(rate * violation): the same relative step at every size.

    Raises `ValueError` for a value of zero, which no factor can move.

    >>> round(mirror_step(10.0, 0.5, rate=0.1), 4)
    10.5127
    """
    return _scaled(value, rate * _finite("violation", violation))


_STEPS: dict[str, Callable[[float, float, float], float]] = {
    "projected": projected_step,
    "log": log_step,
    "mirror": mirror_step,
}


def update(rule: Rule, value: float, violation: float, rate: float, floor: float, ceiling: float) -> float:
    """The multiplier after one step of `rule`, kept within [floor, ceiling].

    Raises `ValueError` for a value or violation that is not finite (it would poison the multiplier for good),
    an unknown rule, bounds that are not 0 <= floor <= ceiling < infinity, and a value of zero under `log` or
    `mirror`.

    >>> update("log", 18.0, 0.5, rate=0.1, floor=0.0, ceiling=20.0)
    20.0
    """
    if rule not in _STEPS:
        raise ValueError(f"no multiplier rule {rule!r}; known are {', '.join(_STEPS)}")
    return _bounded(_STEPS[rule](_finite("value", value), violation, rate), floor, ceiling)


class Gains(NamedTuple):
    """How strongly a PID multiplier answers to the violation, its sum and its rise; 0 smoothing is none."""

    proportional: float
    integral: float
    derivative: float
    smoothing: float = 0.0


class PidState(NamedTuple):
    """What a PID multiplier remembers: its integral part, and the smoothed violation (none at first)."""

    integral: float = 0.0
    smoothed: float | None = None


def pid_step(state: PidState, violation: float, gains: Gains, floor: float, ceiling: float) -> tuple[float, PidState]:
    """The multiplier, and the state for the next step (PID Lagrangian, arXiv 2007.03964, algorithm 2).

    I <- clip(I + K_I violation), lambda = clip(I + K_P v + K_D max(v - v_before, 0)), where v is the
    exponentially smoothed violation. The integral is kept in units of the multiplier and within its bounds,
    so it starts at the initial multiplier and cannot wind up; with K_P = K_D = 0 this is the projected rule
    with rate K_I.

    >>> value, state = pid_step(PidState(integral=1.0), 2.0, Gains(0.5, 0.1, 0.0), floor=0.0, ceiling=20.0)
    >>> value, state
    (2.2, PidState(integral=1.2, smoothed=2.0))
    """
    integral = _bounded(state.integral + gains.integral * _finite("violation", violation), floor, ceiling)
    before = violation if state.smoothed is None else state.smoothed
    smoothed = gains.smoothing * before + (1 - gains.smoothing) * violation
    rise = max(smoothed - before, 0.0)
    value = integral + gains.proportional * smoothed + gains.derivative * rise
    return _bounded(value, floor, ceiling), PidState(integral, smoothed)


def pessimistic(mean: float, std: float, kappa: float) -> float:
    """mean + kappa std: the cost that a constraint with a safety margin looks at (HC-RLHF, arXiv 2506.08266).

    >>> pessimistic(-1.0, 2.0, kappa=0.25)
    -0.5
    """
    return mean + kappa * std


def augmented_cost(
    cost: Tensor, mean: float, std: float, kappa: float, *, centred: bool = True, monotone: bool = False
) -> Tensor:
    """(N,) costs whose expectation has the gradient of mean + kappa std (HC-RLHF, arXiv 2506.08266).

    c + kappa (c - mean)^2 / (2 std), with mean and std constants from a window of recent costs.
    `centred=False` is the equivalent c + kappa (c^2 - 2 c mean) / (2 std), lower by the constant kappa mean^2
    / (2 std). Below mean - std/kappa a safer answer would be punished for the spread it adds; `monotone`
    holds the deviation there, so that a lower cost is never worse. A std of zero leaves the costs as they
    are: a window of equal costs has no spread to reduce.

    >>> from torch import tensor
    >>> augmented_cost(tensor([0.0, 3.0]), mean=1.0, std=2.0, kappa=1.0)
    tensor([0.2500, 4.0000])
    """
    for name, number in (("std", std), ("kappa", kappa)):
        if _finite(name, number) < 0:
            raise ValueError(f"{name} must not be negative, got {number}")
    if kappa == 0 or std == 0:
        return cost
    deviation = cost - _finite("mean", mean)
    if monotone:
        deviation = deviation.clamp(min=-std / kappa)
    spread = deviation.square() if centred else deviation.square() - mean**2
    return cost + kappa / (2 * std) * spread


def rectified(cost: Tensor, threshold: float) -> Tensor:
    """max(cost - threshold, 0): what each answer alone is over the limit, so that none makes up for another.

    RePO, arXiv 2410.19933.

    >>> from torch import tensor
    >>> rectified(tensor([-5.0, 1.5]), threshold=1.0)
    tensor([0.0000, 0.5000])
    """
    return (cost - threshold).clamp(min=0)


def _scaled(value: float, exponent: float) -> float:
    if not value > 0:
        raise ValueError(f"this rule multiplies, so it cannot leave {value}; start and floor must be above 0")
    # exp overflows above 709; long before that the ceiling has taken over.
    return value * math.exp(min(exponent, 700.0))


def _bounded(value: float, floor: float, ceiling: float) -> float:
    if not 0 <= floor <= ceiling < math.inf:
        raise ValueError(f"bounds must satisfy 0 <= floor <= ceiling < infinity, got {floor} and {ceiling}")
    return min(max(value, floor), ceiling)


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number}")
    return number

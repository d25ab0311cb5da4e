"""Before the test: how many prompts are needed, what they allow, and what a retry may spend."""

import math
from typing import Literal

from scipy.special import betaincc

from holdfast.stats.bounds import clopper_pearson_upper

Schedule = Literal["single_use", "geometric", "inverse_square"]


def needed_n(tau: float, delta: float, k: int) -> int:
    """The smallest number of prompts at which k harmful answers still pass Clopper-Pearson at tau.

    >>> [needed_n(0.05, 0.05, k) for k in (0, 1, 2, 5, 10)]
    [59, 93, 124, 208, 336]
    """
    if not 0 < tau < 1:
        raise ValueError(f"tau is a rate between 0 and 1, got {tau}")
    high = k + 1
    while clopper_pearson_upper(k, high, delta) > tau:
        high *= 2
    low = k
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clopper_pearson_upper(k, middle, delta) <= tau else (middle, high)
    return high


def zero_harm_n(tau: float, delta: float) -> int:
    """The smallest number of prompts that can pass at all: with no harmful answer among them.

    >>> zero_harm_n(0.01, 0.05)
    299
    """
    return needed_n(tau, delta, 0)


def allowed_k(n: int, tau: float, delta: float) -> int | None:
    """The largest number of harmful answers among n that still passes; None when even zero does not.

    >>> allowed_k(313, 0.02, 0.05), allowed_k(58, 0.05, 0.05)
    (2, None)
    """
    low, high = -1, n  # n harmful answers never pass
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clopper_pearson_upper(middle, n, delta) <= tau else (low, middle)
    return low if low >= 0 else None


def pass_probability(n: int, tau: float, delta: float, rate: float) -> float:
    """The probability that a policy with this true harm rate passes Clopper-Pearson at tau with n prompts.

    >>> round(pass_probability(59, 0.05, 0.05, rate=0.01), 4)  # 0.99 ** 59
    0.5527
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate lies in [0, 1], got {rate}")
    k = allowed_k(n, tau, delta)
    return 0.0 if k is None else float(betaincc(k + 1, n - k, rate))


def spend(delta: float, attempt: int, schedule: Schedule = "single_use") -> float:
    """The error probability that attempt 1, 2, ... may use; over all attempts they sum to delta at most.

    geometric: delta / 2^k; inverse_square: 6 delta / (pi k)^2, better for many attempts; single_use: delta
    once, then nothing.

    >>> spend(0.05, 1), spend(0.05, 2), spend(0.05, 3, "geometric")
    (0.05, 0.0, 0.00625)
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    if schedule == "single_use":
        return delta if attempt == 1 else 0.0
    if schedule == "geometric":
        return math.ldexp(delta, -attempt)
    if schedule == "inverse_square":
        return 6 * delta / (math.pi * attempt) ** 2
    raise ValueError(f"no schedule {schedule!r}; known are single_use, geometric, inverse_square")

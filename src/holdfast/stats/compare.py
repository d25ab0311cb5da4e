"""Two systems on the same prompts, and several tests at once."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from holdfast.stats.estimate import Estimate, mean, per_cluster


@dataclass(frozen=True)
class Comparison:
    """A mean difference with its interval, and the two-sided p-value of "there is none"."""

    difference: Estimate
    p_value: float


def holm(p_values: Sequence[float], delta: float) -> list[bool]:
    """Which hypotheses are rejected so that any wrong rejection has probability delta at most (Holm 1979).

    From the smallest p-value on, the i-th of K is compared with delta / (K - i + 1), until one fails.

    >>> holm([0.004, 0.011, 0.02, 0.3], 0.05)
    [True, True, True, False]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > delta / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def paired_t(a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None) -> Comparison:
    """The mean of a - b over the same prompts with its 95 % t interval and p-value; a, b: (N,).

    With `clusters` the cluster means are compared. Equal differences have p 0, or 1 when they are all zero.

    >>> round(paired_t([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).p_value, 6)
    0.07418
    """
    units = _differences(a, b, clusters)
    difference = mean(units)
    error = units.std(ddof=1) / math.sqrt(units.size)
    if error == 0:
        return Comparison(difference, 0.0 if difference.value else 1.0)
    return Comparison(difference, float(2 * stdtr(units.size - 1, -abs(difference.value) / error)))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of a - b with a percentile bootstrap interval over prompts (or clusters); a, b: (N,).

    The same seed gives the same interval. Like every bootstrap it misses rare events: a claim needs a bound.

    >>> paired_bootstrap([1.0, 1.0], [0.0, 0.0], seed=0).low
    1.0
    """
    units = _differences(a, b, clusters)
    generator = np.random.default_rng(seed)
    # One draw at a time: draws * units numbers at once would not fit for large evaluations.
    means = [units[generator.integers(units.size, size=units.size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(units.mean()), float(low), float(high), units.size, "paired bootstrap")


def _differences(a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None) -> NDArray[np.float64]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a pair needs both sides: shapes {first.shape} and {second.shape}")
    return per_cluster(first - second, clusters)

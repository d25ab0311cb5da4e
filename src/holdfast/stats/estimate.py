"""A number that carries its interval and its sample size.

Tables and reports take `Estimate`, never a bare float. The sampling unit is the prompt: answers to one prompt
are correlated, so whoever has several per prompt passes `clusters` and is counted by prompts.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

_ROUNDING = 1e-9  # by this much an average may step over the ends of what it is made of


@dataclass(frozen=True)
class Estimate:
    """A value with a two-sided interval; `n` counts sampling units (clusters where there are clusters).

    >>> str(Estimate(0.031, 0.018, 0.049, 600, "wilson"))
    '0.031 [0.018, 0.049] n=600'
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def __str__(self) -> str:
        width = self.high - self.low
        # As many decimals as show two digits of the width; more would pretend.
        digits = max(0, 1 - math.floor(math.log10(width))) if 0 < width < math.inf else 3
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}] n={self.n}"

    def to_dict(self) -> dict[str, Any]:
        """The five fields, ready for JSON."""
        return asdict(self)


def rate(k: float, n: float, confidence: float = 0.95) -> Estimate:
    """The rate k/n with the two-sided Wilson score interval (Wilson 1927).

    Raises `ValueError` when n is not positive or k lies outside 0..n.

    >>> str(rate(0, 20))
    '0.00 [0.00, 0.16] n=20'
    """
    if n <= 0:
        raise ValueError(f"a rate needs at least one observation, got n={n}")
    if not 0 <= k <= n:
        raise ValueError(f"k counts some of the n={n} observations, got k={k}")
    low, high = _wilson(k / n, n, confidence)
    return Estimate(k / n, low, high, round(n), "wilson")


def mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean with a Student-t interval; with `clusters` (one label per value), that of the cluster means.

    within: ends that no value can pass, at which the interval is cut: (0, 1) for shares that are averages themselves,
    (-1, 1) for differences of shares. The share of flags or wins is `share`, whose interval needs no cut. Raises
    `ValueError` for values beyond the ends, and for fewer than two sampling units, which leave the spread unknown.

    >>> str(mean([1.0, 1.0, 3.0, 3.0], clusters=["a", "a", "b", "b"]))
    '2 [-11, 15] n=2'
    >>> str(mean([0.8, 0.9], within=(0, 1)))
    '0.85 [0.21, 1.00] n=2'
    """
    units = per_cluster(values, clusters)
    if units.size < 2:
        raise ValueError(f"an interval for a mean needs at least two sampling units, got {units.size}")
    if units.min() < within[0] - _ROUNDING or units.max() > within[1] + _ROUNDING:
        ends = f"[{within[0]:g}, {within[1]:g}]"
        raise ValueError(f"values lie in {ends}, got means from {units.min():g} to {units.max():g}")
    value = float(units.mean())
    half = stdtrit(units.size - 1, (1 + _level(confidence)) / 2) * units.std(ddof=1) / math.sqrt(units.size)
    method = "student_t" if clusters is None else "student_t, clustered"
    low, high = max(value - half, within[0]), min(value + half, within[1])
    return Estimate(value, float(low), float(high), units.size, method)


def proportion(flags: ArrayLike, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Estimate:
    """The share of true flags with a Wilson interval; with `clusters`, at the effective sample size.

    The effective size is p(1-p) over the squared standard error of the mean of cluster means, so correlated
    answers count for less. When every flag is equal it is the number of clusters: an interval of width zero
    would claim that nothing else can happen.

    >>> str(proportion([True, True, False, False]))
    '0.50 [0.15, 0.85] n=4'
    >>> str(proportion([True, True, False, False], clusters=[1, 1, 2, 2]))
    '0.50 [0.05, 0.95] n=2'
    """
    raw = np.asarray(flags)
    if raw.dtype != np.bool_ and not np.isin(raw, (0, 1)).all():
        raise ValueError("flags are true or false (or 1 and 0); other values were given")
    if clusters is None:
        units = per_cluster(raw, None)
        return rate(int(units.sum()), units.size, confidence)
    return share(raw, clusters, confidence)


def share(values: ArrayLike, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95) -> Estimate:
    """The mean of values in [0, 1] with a Wilson interval at the effective sample size of `proportion`.

    For wins of which a tie counts half: unlike the interval of `mean` it stays inside [0, 1], and it keeps a
    width when every value is equal.

    >>> str(share([1.0, 0.5, 1.0, 0.5]))
    '0.75 [0.30, 0.95] n=4'
    """
    numbers = np.asarray(values, dtype=np.float64)
    units = per_cluster(numbers, clusters)
    if units.min() < 0 or units.max() > 1:
        raise ValueError(f"shares lie in [0, 1], got values from {numbers.min():g} to {numbers.max():g}")
    p = float(units.mean())
    low, high = _wilson(p, _effective_size(p, units, numbers.size), confidence)
    return Estimate(p, low, high, units.size, "wilson" if clusters is None else "wilson, clustered")


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    n: int,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Any statistic of n rows with a percentile interval over resampled rows, or whole clusters of them.

    statistic: takes the numbers of the rows drawn, which repeat, and is NaN where they leave it undefined (an
    AUC without positives). Such draws are dropped; `ValueError` when they are more than 5 % of `samples`, when
    the data themselves leave it undefined, and for fewer than two sampling units.

    >>> values = np.array([1.0, 2.0, 3.0, 10.0])
    >>> str(bootstrap(lambda rows: float(np.median(values[rows])), 4))
    '2.5 [1.0, 10.0] n=4'
    """
    units = _Units.of(n, clusters)
    value = float(statistic(np.arange(n)))
    if not math.isfinite(value):
        raise ValueError(f"the statistic is not defined on these {n} rows")
    generator = np.random.default_rng(seed)
    draws = np.array([statistic(units.draw(generator)) for _ in range(samples)], dtype=np.float64)
    defined = draws[np.isfinite(draws)]
    if defined.size < 0.95 * samples:
        raise ValueError(f"the statistic is not defined in {samples - defined.size} of {samples} draws: too few cases")
    tail = (1 - _level(confidence)) / 2
    low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    return Estimate(value, low, high, units.size.size, "bootstrap" if clusters is None else "bootstrap, clustered")


@dataclass(frozen=True)
class _Units:
    """Rows sorted by sampling unit: unit i holds `size[i]` of them from `start[i]` on."""

    rows: NDArray[np.intp]
    start: NDArray[np.intp]
    size: NDArray[np.intp]

    @classmethod
    def of(cls, n: int, clusters: Sequence[Hashable] | None) -> "_Units":
        if clusters is not None and len(clusters) != n:
            raise ValueError(f"one cluster label per value: {n} values, {len(clusters)} labels")
        index = np.arange(n) if clusters is None else places(clusters)
        size = np.bincount(index)
        if size.size < 2:
            raise ValueError(f"resampling needs at least two sampling units, got {size.size}")
        return cls(np.argsort(index, kind="stable"), np.cumsum(size) - size, size)

    def draw(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """The rows of as many units as there are, drawn with replacement."""
        chosen = generator.integers(self.size.size, size=self.size.size)
        size = self.size[chosen]
        # The k-th row drawn is k minus where its unit begins in the draw, counted from where the unit lies.
        shift = self.start[chosen] - (np.cumsum(size) - size)
        return self.rows[np.arange(size.sum()) + np.repeat(shift, size)]


def places(labels: Sequence[Hashable]) -> NDArray[np.intp]:
    """Each label's number, from 0 on, in order of first appearance.

    >>> places(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    place: dict[Hashable, int] = {}
    return np.array([place.setdefault(label, len(place)) for label in labels], dtype=np.intp)


def _effective_size(p: float, units: NDArray[np.float64], flags: int) -> float:
    if units.size < 2 or p in (0.0, 1.0):
        return units.size
    squared_error = float(units.var(ddof=1)) / units.size
    return min(max(p * (1 - p) / squared_error, 1.0), flags) if squared_error > 0 else flags


def per_cluster(values: ArrayLike, clusters: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """One number per sampling unit: the values, or the mean of each cluster in order of appearance.

    >>> per_cluster([1.0, 3.0, 5.0], ["a", "a", "b"]).tolist()
    [2.0, 5.0]
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"expected a list of at least one value, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} values are not finite")
    if clusters is None:
        return numbers
    if len(clusters) != numbers.size:
        raise ValueError(f"one cluster label per value: {numbers.size} values, {len(clusters)} labels")
    index = places(clusters)
    return np.bincount(index, weights=numbers) / np.bincount(index)


def _wilson(p: float, n: float, confidence: float) -> tuple[float, float]:
    z = float(ndtri((1 + _level(confidence)) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At p = 0 and p = 1 the interval touches the end exactly; rounding must not step over it.
    return (0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half)


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, got {confidence}")
    return confidence

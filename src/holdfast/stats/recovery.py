"""How much of the distance between a weak supervisor and a strong ceiling a student recovers (arXiv 2312.09390).

The performance gap recovered is PGR = (student - weak) / (ceiling - weak), all three on one metric and the same test
items. Over a small gap it is noise: single seeds of a student below its supervisor have printed 7 and 300. So it is a
ratio of means, never a mean of ratios, it comes with an interval, and it is withheld, with the reason in words, where
the gap does not stand out.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.stats.estimate import Estimate, places

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recovery:
    """A PGR, or None and the `reason` why there is none, beside the three levels it is made of.

    gap: ceiling - weak; gain: student - weak; per_seed: each seed's own ratio, None where its ceiling is not above
    its supervisor, to be looked at and not to be averaged.
    """

    value: Estimate | None
    reason: str
    weak: Estimate
    student: Estimate
    ceiling: Estimate
    gap: Estimate
    gain: Estimate
    per_seed: tuple[float | None, ...]

    def __str__(self) -> str:
        return f"PGR: n/a ({self.reason})" if self.value is None else f"PGR: {self.value}"

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def pgr(weak: float, student: float, ceiling: float) -> float:
    """(student - weak) / (ceiling - weak): 0 at the supervisor's level, 1 at the ceiling's, negative below both.

    Raises `ValueError` where ceiling and supervisor are equal, which leaves nothing to recover.

    >>> round(pgr(weak=0.60, student=0.70, ceiling=0.80), 12)
    0.5
    """
    if ceiling == weak:
        raise ValueError(f"without a gap there is no PGR: supervisor and ceiling both have {weak}")
    return (student - weak) / (ceiling - weak)


def pgr_error(levels: Sequence[float], errors: Sequence[float]) -> float:
    """The standard error of a PGR from those of its three levels, were they independent (delta method).

    levels, errors: of supervisor, student and ceiling, in this order. With the gap G = ceiling - weak,
    SE^2 = (se_s / G)^2 + (se_w (ceiling - student) / G^2)^2 + (se_c (student - weak) / G^2)^2. Answers to the same
    items are not independent; `recovered` resamples them together.

    >>> levels = (0.70, 0.76, 0.82)
    >>> round(pgr_error(levels, [math.sqrt(p * (1 - p) / 2000) for p in levels]), 4)
    0.0971
    """
    (weak, student, ceiling), (of_weak, of_student, of_ceiling) = levels, errors
    gap, share = ceiling - weak, pgr(weak, student, ceiling)
    return math.hypot(of_student, of_weak * (1 - share), of_ceiling * share) / abs(gap)


def recovered(
    weak: ArrayLike,
    student: ArrayLike,
    ceiling: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    least: float = 0.03,
    samples: int = 1000,
    seed: int = 0,
) -> Recovery:
    """The PGR of the means over seeds, with 95 % intervals over items (or `groups` of them) and seeds.

    weak, student, ceiling: (N,) or (S, N) how right each was on each item, S seeds, most often 0 and 1; one row serves
    all seeds. Items and seeds are drawn with replacement, each for all three at once, so that what is hard for
    everybody cancels (the pigeonhole bootstrap, arXiv 0712.1111, is a little wide). Of seeds, which are few, S - 1 are
    drawn: means of S draws would vary less than the mean of S seeds does. A draw without a gap counts as a boundless
    PGR. It is withheld where the gap is below max(least, 2 standard errors), or an interval would have no end.

    >>> items = [[0, 0, 1, 1] * 50, [0, 1, 1, 1] * 50, [1, 1, 1, 1] * 50]
    >>> str(recovered(*items))
    'PGR: 0.50 [0.40, 0.61] n=200'
    >>> str(recovered(items[2], items[1], items[0]))
    'PGR: n/a (the weak model is better than the ceiling: PGR is undefined)'
    """
    table, size = _sums([weak, student, ceiling], groups)
    means = table.sum(-1) / size.sum()
    drawn = _draws(table, size, samples, seed)
    method = "bootstrap over items" + (" and seeds" if table.shape[1] > 1 else "")
    method += "" if groups is None else ", clustered"

    def estimate(value: float, draws: Array) -> Estimate:
        # The nearest draw: between a finite and an infinite one there is no number.
        low, high = (float(end) for end in np.quantile(draws, [0.025, 0.975], method="nearest"))
        return Estimate(float(value), low, high, size.size, method)

    w, s, c = (float(level) for level in means.mean(-1))
    gain, gap = drawn[1] - drawn[0], drawn[2] - drawn[0]
    boundless = np.where(gain == 0, 0.0, np.copysign(np.inf, gain))
    ratio = np.divide(gain, gap, out=boundless, where=gap > 0)
    reason = _withheld(c - w, float(gap.std()), least)
    found = None if reason else estimate(pgr(w, s, c), ratio)
    if found and not (math.isfinite(found.low) and math.isfinite(found.high)):
        found, reason = None, "gap too small: it vanishes in too many resamples"
    return Recovery(
        value=found,
        reason=reason,
        weak=estimate(w, drawn[0]),
        student=estimate(s, drawn[1]),
        ceiling=estimate(c, drawn[2]),
        gap=estimate(c - w, gap),
        gain=estimate(s - w, gain),
        per_seed=tuple(pgr(*levels) if levels[2] > levels[0] else None for levels in means.T.tolist()),
    )


def _withheld(gap: float, error: float, least: float) -> str:
    if gap < 0:
        return "the weak model is better than the ceiling: PGR is undefined"
    needed = max(least, 2 * error)
    if gap == 0 or gap < needed:
        return f"gap too small: {gap:.3g}, must be at least {needed:.3g}"
    return ""


def _sums(models: Sequence[ArrayLike], groups: Sequence[Hashable] | None) -> tuple[Array, Array]:
    """The sum over each group's items, (3, S, G), and how many these are, (G,)."""
    rows = [np.atleast_2d(np.asarray(model, dtype=np.float64)) for model in models]
    if len({row.shape[-1] for row in rows}) > 1 or len({len(row) for row in rows} - {1}) > 1:
        shapes = ", ".join(str(row.shape) for row in rows)
        raise ValueError(f"all three are judged on the same items and seeds: supervisor, student, ceiling {shapes}")
    table = np.stack(np.broadcast_arrays(*rows))
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} of {table.size} values are not finite")
    n = table.shape[-1]
    if groups is not None and len(groups) != n:
        raise ValueError(f"one group per item: {n} items, {len(groups)} groups")
    index = np.arange(n) if groups is None else places(groups)
    size = np.bincount(index).astype(np.float64)
    if size.size < 2:
        raise ValueError(f"resampling needs at least two items or groups, got {size.size}")
    sums = [[np.bincount(index, weights=row) for row in model] for model in table]
    return np.array(sums), size


def _draws(table: Array, size: Array, samples: int, seed: int) -> Array:
    """(3, D) the levels of supervisor, student and ceiling in each resample."""
    generator = np.random.default_rng(seed)

    def times(n: int, draws: int) -> Array:
        """How often each of n is drawn."""
        return np.bincount(generator.integers(n, size=draws), minlength=n).astype(np.float64)

    def level() -> Array:
        count = table.shape[1]
        items, seeds = times(size.size, size.size), times(count, max(count - 1, 1))
        return (table @ items) @ seeds / (size @ items * seeds.sum())

    return np.stack([level() for _ in range(samples)], axis=-1)

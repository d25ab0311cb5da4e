"""Upper confidence bounds: with probability at least 1 - delta the truth is not above the returned number.

Student-t is asymptotic (it assumes a normal mean and misses rare harm); every other bound here is exact for
independent, identically distributed observations. With no observation at all an exact bound is the largest
possible value. Sums are exact (`math.fsum`), so a bound does not depend on the order of the rows.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincc, betaincinv, rel_entr, stdtr, stdtrit


def clopper_pearson_upper(k: int, n: int, delta: float) -> float:
    """The upper bound for a rate of which k of n were seen: Beta quantile 1 - delta of (k + 1, n - k).

    Exact for binary outcomes (Clopper and Pearson 1934). 1 when k = n, also with n = 0.

    >>> round(clopper_pearson_upper(0, 59, 0.05), 6)
    0.049508
    """
    _counts(k, n)
    return 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - _level(delta)))


def clopper_pearson_lower(k: int, n: int, delta: float) -> float:
    """The lower bound for a rate of which k of n were seen; 0 when k = 0.

    >>> clopper_pearson_lower(0, 59, 0.05), round(clopper_pearson_lower(59, 59, 0.05), 6)
    (0.0, 0.950492)
    """
    _counts(k, n)
    return 0.0 if k == 0 else float(betaincinv(k, n - k + 1, _level(delta)))


def clopper_pearson_p(k: int, n: int, tau: float) -> float:
    """The p-value of "the rate is tau or more" when k of n were seen: the binomial distribution at k.

    >>> clopper_pearson_p(0, 2, 0.5)
    0.25
    """
    _counts(k, n)
    return _binomial_cdf(k, n, tau)


def student_t_upper(values: ArrayLike, delta: float) -> float:
    """mean + t(1 - delta, n - 1) s / sqrt(n): the safety test of HC-RLHF (arXiv 2506.08266). *Asymptotic.*

    With a spread of zero it returns the mean and is meaningless: the caller has to refuse such a sample.
    Raises `ValueError` for fewer than two values.

    >>> round(student_t_upper([-3.0, -1.0, 0.0, 2.0, -2.0], 0.1), 6)
    0.518914
    """
    centre, error, df = _t_parts(values)
    return centre + float(stdtrit(df, 1 - _level(delta))) * error


def student_t_p(values: ArrayLike, tau: float) -> float:
    """The p-value of "the mean is tau or more" by the t statistic. *Asymptotic.*

    >>> round(student_t_p([0.0, 1.0, 2.0], 1.0), 6)
    0.5
    """
    centre, error, df = _t_parts(values)
    if error == 0:
        return 0.0 if centre < tau else 1.0
    return float(stdtr(df, (centre - tau) / error))


def hoeffding_upper(values: ArrayLike, delta: float, *, lower: float = 0.0, upper: float = 1.0) -> float:
    """mean + sqrt(ln(1/delta) / 2n) for values in [lower, upper], at most `upper` (Hoeffding 1963).

    >>> round(hoeffding_upper([0.25] * 50, math.exp(-1)), 6)  # 0.25 + sqrt(1 / 100)
    0.35
    """
    unit = _unit(values, lower, upper)
    if not unit.size:
        return upper
    return _back(_mean(unit) + math.sqrt(-math.log(_level(delta)) / (2 * unit.size)), lower, upper)


def maurer_pontil_upper(values: ArrayLike, delta: float, *, lower: float = 0.0, upper: float = 1.0) -> float:
    """The empirical Bernstein bound for values in [lower, upper] (arXiv 0907.3740, theorem 4).

    mean + sqrt(2 s^2 ln(2/delta) / n) + 7 ln(2/delta) / (3 (n - 1)), s^2 with n - 1.

    >>> round(maurer_pontil_upper([0.25] * 51, 2 * math.exp(-3)), 6)  # 0.25 + 7 * 3 / 150
    0.39
    """
    unit = _unit(values, lower, upper)
    if unit.size < 2:
        return upper
    centre, surprise = _mean(unit), math.log(2 / _level(delta))
    spread = math.sqrt(2 * _variance(unit, centre) * surprise / unit.size)
    return _back(centre + spread + 7 * surprise / (3 * (unit.size - 1)), lower, upper)


def hoeffding_bentkus_p(values: ArrayLike, tau: float, *, lower: float = 0.0, upper: float = 1.0) -> float:
    """The p-value of "the mean is tau or more" for values in [lower, upper], not depending on their order.

    The smaller of exp(-n kl(mean, tau)) and e BinCDF(ceil(n mean); n, tau), both in units of the range
    (Learn then Test, arXiv 2110.01052).

    >>> round(hoeffding_bentkus_p([0.0, 0.0, 0.0], 0.5), 6)
    0.125
    """
    unit = _unit(values, lower, upper)
    return _hoeffding_bentkus(_mean(unit), unit.size, (tau - lower) / (upper - lower)) if unit.size else 1.0


def hoeffding_bentkus_upper(values: ArrayLike, delta: float, *, lower: float = 0.0, upper: float = 1.0) -> float:
    """The largest mean that the Hoeffding-Bentkus p-value does not reject at delta, to 1e-9 of the range.

    >>> round(hoeffding_bentkus_upper([0.0, 0.0, 0.0], 0.125), 6)
    0.5
    """
    unit = _unit(values, lower, upper)
    _level(delta)
    centre = _mean(unit) if unit.size else 1.0
    if centre >= 1:
        return upper
    top = crossing(lambda m: _hoeffding_bentkus(centre, unit.size, m) <= delta, centre, 1.0)
    return _back(top, lower, upper)


def dkw_upper(values: ArrayLike, delta: float, *, upper: float = 1.0) -> float:
    """The mean of the worst distribution in the band of Dvoretzky, Kiefer and Wolfowitz (Anderson 1969).

    Needs no lower end of the values; delta at most 0.5.

    >>> round(dkw_upper([0.0] * 50, math.exp(-1)), 6)
    0.1
    """
    return cvar_upper(values, delta, 1.0, upper=upper)


def cvar_upper(values: ArrayLike, delta: float, alpha: float, *, upper: float = 1.0) -> float:
    """The bound for the mean of the worst share `alpha` of values that never exceed `upper`.

    b - (1/alpha) sum_i (z_(i+1) - z_(i)) max(0, i/n - sqrt(ln(1/delta) / 2n) - (1 - alpha)), z_(n+1) = b
    (Thomas and Learned-Miller 2019). delta at most 0.5.

    >>> round(cvar_upper([0.0, 0.1, 0.2, 0.2, 0.9], 0.4, 0.5), 6)
    0.960541
    """
    ordered = np.sort(below(values, upper))
    if _level(delta) > 0.5:
        raise ValueError(f"this bound holds for delta up to 0.5, got {delta}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is the share of worst cases, above 0 and at most 1; got {alpha}")
    if not ordered.size:
        return upper
    share = np.arange(1, ordered.size + 1) / ordered.size
    band = math.sqrt(-math.log(delta) / (2 * ordered.size))
    steps = np.diff(ordered, append=upper)
    return float(upper - math.fsum(steps * np.maximum(0.0, share - band - (1 - alpha))) / alpha)


def quantile_upper(values: ArrayLike, delta: float, q: float) -> float:
    """The smallest order statistic that covers the q-quantile with probability 1 - delta.

    X_(j) for the smallest j with BinCDF(j - 1; n, q) >= 1 - delta. Raises `ValueError` when
    n < ln delta / ln q, because then no observation is large enough.

    >>> quantile_upper(range(1, 101), 0.05, 0.9)
    96.0
    """
    if not 0 < q < 1:
        raise ValueError(f"q lies between 0 and 1, got {q}")
    ordered = np.sort(_finite(values))
    j = np.arange(1, ordered.size + 1)
    # BinCDF(j - 1; n, q) for every j at once.
    enough = np.flatnonzero(betaincc(j, ordered.size - j + 1, q) >= 1 - _level(delta))
    if not enough.size:
        needed = math.ceil(math.log(delta) / math.log(q))
        raise ValueError(f"the {q} quantile at delta {delta} needs {needed} observations, got {ordered.size}")
    return float(ordered[enough[0]])


def kappa(delta: float, n_batch: float | None, n_safety: float | None, c1: float, c2: float) -> float:
    """The pessimism of candidate selection: how many standard deviations are added to the mean cost.

    c1 t(1 - delta, n_batch - 1) / sqrt(n_batch) + c2 t(1 - delta, n_safety - 1) / sqrt(n_safety)
    (official code of HC-RLHF, arXiv 2506.08266; c1 = 0, c2 = 2 is the Seldonian form). A size whose factor is
    zero may be None.

    >>> round(kappa(0.1, n_batch=32, n_safety=100, c1=4, c2=2), 6)
    1.183963
    """
    return _width(delta, n_batch, c1) + _width(delta, n_safety, c2)


def crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The point where `holds` turns true between `low` (false) and `high` (true), from the true side.

    Thirty halvings leave 1e-9 of the distance; a coarser grid than the arithmetic makes the result the same
    on every machine.

    >>> round(crossing(lambda x: x * x >= 2, 1.0, 2.0), 6)
    1.414214
    """
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def below(values: ArrayLike, upper: float) -> NDArray[np.float64]:
    """The values as float64, none of them above `upper`; `ValueError` otherwise."""
    numbers = _finite(values)
    if numbers.size and numbers.max() > upper:
        raise ValueError(f"the bound assumes values of at most {upper}, got {numbers.max()}")
    return numbers


def _width(delta: float, n: float | None, factor: float) -> float:
    if factor == 0:
        return 0.0
    if n is None or not n >= 2:
        raise ValueError(f"a spread needs at least two observations, got n={n} with factor {factor}")
    return 0.0 if n == math.inf else factor * float(stdtrit(n - 1, 1 - _level(delta))) / math.sqrt(n)


def _hoeffding_bentkus(centre: float, n: int, tau: float) -> float:
    """The p-value in units of the range."""
    if tau <= centre:
        return 1.0
    if tau >= 1:
        return 0.0
    hoeffding = math.exp(-n * float(rel_entr(centre, tau) + rel_entr(1 - centre, 1 - tau)))
    # A sum such as 4.000000000001 came from rounding and means four.
    bentkus = math.e * _binomial_cdf(math.ceil(n * centre - 1e-9), n, tau)
    return min(hoeffding, bentkus, 1.0)


def _binomial_cdf(k: int, n: int, p: float) -> float:
    if k >= n:
        return 1.0
    return float(betaincc(k + 1, n - k, min(max(p, 0.0), 1.0)))


def _t_parts(values: ArrayLike) -> tuple[float, float, int]:
    numbers = _finite(values)
    if numbers.size < 2:
        raise ValueError(f"the t bound needs at least two values, got {numbers.size}")
    centre = _mean(numbers)
    return centre, math.sqrt(_variance(numbers, centre) / numbers.size), numbers.size - 1


def _mean(numbers: NDArray[np.float64]) -> float:
    return math.fsum(numbers) / numbers.size


def _variance(numbers: NDArray[np.float64], centre: float) -> float:
    return math.fsum((numbers - centre) ** 2) / (numbers.size - 1)


def _unit(values: ArrayLike, lower: float, upper: float) -> NDArray[np.float64]:
    """The values in units of the range [lower, upper]."""
    if not lower < upper:
        raise ValueError(f"the range of values is empty: lower {lower}, upper {upper}")
    numbers = below(values, upper)
    if numbers.size and numbers.min() < lower:
        raise ValueError(f"the bound assumes values of at least {lower}, got {numbers.min()}")
    return (numbers - lower) / (upper - lower)


def _back(unit: float, lower: float, upper: float) -> float:
    return lower + (upper - lower) * min(unit, 1.0)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"expected one value per observation, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} values are not finite")
    return numbers


def _counts(k: int, n: int) -> None:
    if not 0 <= k <= n:
        raise ValueError(f"k counts some of n observations, so 0 <= k <= n; got k={k}, n={n}")


def _level(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability of error between 0 and 1, got {delta}")
    return delta

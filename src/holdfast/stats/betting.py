"""Betting against "the mean is m or more": if the bettor grows rich, m is too high.

Before each observation a stake is chosen from the past alone. Were the mean m or more, the wealth would be
a non-negative supermartingale, which by Ville's inequality reaches 1/delta with probability at most delta
(after Waudby-Smith and Ramdas, arXiv 2010.09686). Only an upper end of the values is needed, and the bound
holds at every stopping time. The order of the values matters: fix it before they are seen.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.stats.bounds import below, crossing


@dataclass(frozen=True)
class Bets:
    """How stakes are chosen; all of it is fixed before the first observation.

    prior_mean, prior_var: one fake observation that starts the running moments; best near the decision
    threshold tau with variance tau (1 - tau). c: the share of wealth that one observation can cost at most;
    c = 1 would let a single harmful answer ruin the bettor. sequential: stakes for an unknown number of
    observations. n: the planned number, by default that of the values.
    """

    prior_mean: float
    prior_var: float
    c: float = 0.75
    sequential: bool = False
    n: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.c < 1:
            raise ValueError(f"c lies between 0 and 1, got {self.c}")
        if not self.prior_var > 0:
            raise ValueError(f"prior_var has to be positive, got {self.prior_var}")
        if self.n is not None and self.n < 1:
            raise ValueError(f"n counts planned observations, got {self.n}")


def stakes(values: ArrayLike, delta: float, bets: Bets) -> NDArray[np.float64]:
    """The stake before each value, (n,), not yet capped; entry i is computed from the values before i.

    sqrt(2 ln(1/delta) / (n v_(i-1))), or i ln(1 + i) in place of n when sequential. v_i is the running
    variance around the running means, the fake observation included.

    >>> stakes([0.5, 0.4], 0.05, Bets(0.5, 0.25, n=6)).round(6).tolist()
    [1.998577, 2.826415]
    """
    z = np.asarray(values, dtype=np.float64)
    i = np.arange(1, z.size + 1)
    running = (bets.prior_mean + np.cumsum(z)) / (i + 1)
    squares = np.cumsum((z - running) ** 2)
    # v_(i-1) has i terms: the fake one and i - 1 real ones.
    variance = (bets.prior_var + np.concatenate([[0.0], squares[:-1]])[: z.size]) / i
    horizon = i * np.log1p(i) if bets.sequential else bets.n or z.size
    return np.sqrt(-2 * math.log(delta) / (horizon * variance))


def log_wealth(values: ArrayLike, m: float, delta: float, bets: Bets, *, upper: float = 1.0) -> NDArray[np.float64]:
    """The logarithm of the wealth after each value, (n,), of the bettor who doubts a mean of m or more.

    K_t(m) = prod_(i<=t) (1 - stake_i (z_i - m)), the stake capped at c / (upper - m). Non-decreasing in m.

    >>> values = [0.5, 0.4, 0.6, 0.5, 0.3, 0.7]
    >>> np.exp(log_wealth(values, 0.8, 0.05, Bets(0.5, 0.25))).round(6)[:3].tolist()
    [1.599573, 3.407996, 5.746747]
    """
    z = below(values, upper)
    if m > upper:
        raise ValueError(f"a mean of values up to {upper} cannot be m={m}")
    return _growth(z, m, stakes(z, delta, bets), bets.c, upper)


def betting_upper(values: ArrayLike, delta: float, bets: Bets, *, upper: float = 1.0) -> float:
    """The smallest mean at which the bettor once held 1/delta, to 1e-9 of the range; else `upper`.

    >>> round(betting_upper([0.5, 0.4, 0.6, 0.5, 0.3, 0.7], 0.05, Bets(0.5, 0.25)), 6)
    0.748601
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is a probability of error between 0 and 1, got {delta}")
    z = below(values, upper)
    chosen, goal = stakes(z, delta, bets), -math.log(delta)

    def rich(m: float) -> bool:
        return bool(_growth(z, m, chosen, bets.c, upper).max() >= goal)

    if not z.size or not rich(upper):
        return upper
    # At the smallest value no bet is ever won, so the search starts poor.
    return crossing(rich, float(z.min()), upper)


def betting_p(values: ArrayLike, tau: float, delta: float, bets: Bets, *, upper: float = 1.0) -> float:
    """The p-value of "the mean is tau or more": one over the largest wealth; delta only tunes the stakes.

    >>> betting_p([1.0, 1.0], 0.5, 0.05, Bets(0.5, 0.25))
    1.0
    """
    growth = log_wealth(values, tau, delta, bets, upper=upper)
    return math.exp(-max(0.0, float(growth.max(initial=0.0))))


def _growth(
    z: NDArray[np.float64], m: float, chosen: NDArray[np.float64], c: float, upper: float
) -> NDArray[np.float64]:
    cap = c / (upper - m) if m < upper else math.inf
    return np.cumsum(np.log1p(-np.minimum(chosen, cap) * (z - m)))

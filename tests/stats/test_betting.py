import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.stats.betting import Bets, betting_p, betting_upper, log_wealth, stakes

SIX = [0.5, 0.4, 0.6, 0.5, 0.3, 0.7]
WIDE = Bets(0.5, 0.25, n=6)
samples = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=25)


def test_stakes_and_wealth_step_by_step():
    expected = [1.998577, 2.826415, 3.431271, 3.886455, 4.345189, 4.528036]
    assert stakes(SIX, 0.05, WIDE) == pytest.approx(expected, abs=5e-7)
    wealth = np.exp(log_wealth(SIX, 0.8, 0.05, WIDE))
    assert wealth == pytest.approx([1.599573, 3.407996, 5.746747, 12.211838, 35.109033, 48.274920], abs=5e-6)
    assert betting_upper(SIX, 0.05, WIDE) == pytest.approx(0.748601, abs=5e-7)


def test_known_bound():
    values = [0, 0, 0.1, 0, 0.3, 0, 0, 0.05, 0, 0] * 5
    assert betting_upper(values, 0.05, Bets(0.05, 0.0475)) == pytest.approx(0.121061, abs=5e-7)


def _slow_wealth(values, m, delta, bets, upper):
    """The definition, one observation after the other."""
    wealth, path, total, squares = 1.0, [], bets.prior_mean, 0.0
    variance = bets.prior_var
    for i, z in enumerate(values, start=1):
        horizon = i * math.log(1 + i) if bets.sequential else bets.n or len(values)
        stake = min(math.sqrt(2 * math.log(1 / delta) / (horizon * variance)), bets.c / (upper - m))
        wealth *= 1 - stake * (z - m)
        path.append(wealth)
        total += z
        squares += (z - total / (i + 1)) ** 2
        variance = (bets.prior_var + squares) / (i + 1)
    return path


@pytest.mark.parametrize("bets", [Bets(0.1, 0.09), Bets(0.3, 0.2, c=0.5, n=40), Bets(0.2, 0.1, sequential=True)])
@settings(max_examples=40, deadline=None)
@given(values=samples, m=st.floats(0, 1.9))
def test_wealth_equals_the_definition(bets, values, m):
    fast = np.exp(log_wealth(values, m, 0.05, bets, upper=2.0))
    assert fast == pytest.approx(_slow_wealth(values, m, 0.05, bets, 2.0), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(values=samples, low=st.floats(0, 1), high=st.floats(0, 1))
def test_wealth_grows_with_m(values, low, high):
    low, high = sorted((low, high))
    poorer, richer = (log_wealth(values, m, 0.05, Bets(0.1, 0.09)) for m in (low, high))
    assert (richer >= poorer - 1e-9).all()


@pytest.mark.parametrize("sequential", [False, True])
def test_bisection_agrees_with_a_grid(sequential):
    values = np.random.default_rng(3).beta(1, 6, 80)
    bets = Bets(0.2, 0.16, sequential=sequential)
    grid = np.arange(1, 10_000) / 10_000
    rich = [m for m in grid if max(_slow_wealth(values, m, 0.1, bets, 1.0)) >= 10]
    assert rich[0] - 1e-4 <= betting_upper(values, 0.1, bets) <= rich[0]


@settings(max_examples=30, deadline=None)
@given(values=samples, shift=st.floats(-3, 3), scale=st.floats(0.2, 5))
def test_units_do_not_matter(values, shift, scale):
    # Without the rounding a value equal to the upper end would land above it.
    values = np.minimum(values, 1 - 1e-9)
    plain = betting_upper(values, 0.05, Bets(0.1, 0.09))
    moved_bets = Bets(shift + scale * 0.1, scale**2 * 0.09)
    moved = betting_upper(shift + scale * values, 0.05, moved_bets, upper=shift + scale)
    assert moved == pytest.approx(shift + scale * plain, abs=1e-7)


def test_no_lower_end_is_needed():
    values = [0.2, -40.0, 0.3, 0.1] * 20
    assert np.mean(values) < betting_upper(values, 0.05, Bets(0.05, 0.0475)) < 0.3


def test_zero_harm_counts():
    # The stake is at its cap throughout, so wealth is (1 + c tau / (1 - tau)) ** n.
    for tau, n in [(0.05, 78), (0.02, 198), (0.01, 397)]:
        assert n == math.ceil(math.log(20) / math.log(1 + 0.75 * tau / (1 - tau)))
        bets = Bets(tau, tau * (1 - tau))
        assert betting_upper(np.zeros(n), 0.05, bets) <= tau < betting_upper(np.zeros(n - 1), 0.05, bets)


def test_p_value_is_one_over_the_largest_wealth():
    largest = max(_slow_wealth(SIX, 0.8, 0.05, WIDE, 1.0))
    assert betting_p(SIX, 0.8, 0.05, WIDE) == pytest.approx(1 / largest, rel=1e-9)
    edge = betting_upper(SIX, 0.05, WIDE)
    assert betting_p(SIX, edge, 0.05, WIDE) <= 0.05 < betting_p(SIX, edge - 1e-8, 0.05, WIDE)
    assert betting_p(SIX, 0.1, 0.05, WIDE) == 1.0


def test_the_best_moment_counts_not_the_last():
    values = [0.0] * 200 + [1.0] * 200
    assert betting_upper(values, 0.05, Bets(0.1, 0.09, sequential=True)) < 0.1


def test_nothing_seen_or_only_harm_bounds_nothing():
    assert betting_upper([], 0.05, WIDE) == 1.0
    assert betting_upper([1.0] * 50, 0.05, WIDE) == 1.0
    assert betting_p([], 0.5, 0.05, WIDE) == 1.0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Bets(0.1, 0.09, c=1.0), "c lies between 0 and 1, got 1.0"),
        (lambda: Bets(0.1, 0.0), "prior_var has to be positive, got 0.0"),
        (lambda: Bets(0.1, 0.1, n=0), "got 0"),
        (lambda: betting_upper([1.5], 0.05, WIDE), "at most 1.0, got 1.5"),
        (lambda: betting_upper([math.nan], 0.05, WIDE), "not finite"),
        (lambda: betting_upper([0.5], 0.0, WIDE), "delta is a probability of error"),
        (lambda: log_wealth([0.5], 1.5, 0.05, WIDE), "cannot be m=1.5"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("sequential", [False, True])
def test_coverage(p, sequential):
    replications, bets = 1000, Bets(0.05, 0.0475, sequential=sequential)
    rows = (np.random.default_rng(5).random((replications, 200)) < p).astype(float)
    missed = np.mean([betting_upper(row, 0.05, bets) < p for row in rows])
    assert missed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / replications)

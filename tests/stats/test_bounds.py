import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, t

from holdfast.stats.bounds import (
    clopper_pearson_lower,
    clopper_pearson_p,
    clopper_pearson_upper,
    crossing,
    cvar_upper,
    dkw_upper,
    hoeffding_bentkus_p,
    hoeffding_bentkus_upper,
    hoeffding_upper,
    kappa,
    maurer_pontil_upper,
    quantile_upper,
    student_t_p,
    student_t_upper,
)

SAMPLE = [0, 0, 0.1, 0, 0.3, 0, 0, 0.05, 0, 0] * 5
BOUNDED = [hoeffding_upper, maurer_pontil_upper, hoeffding_bentkus_upper, dkw_upper]
MONOTONE = [hoeffding_upper, hoeffding_bentkus_upper, dkw_upper]
samples = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=30)
levels = st.floats(0.01, 0.5)


@pytest.mark.parametrize(
    "bound, expected",
    [
        (student_t_upper, 0.066721),
        (hoeffding_upper, 0.218082),
        (maurer_pontil_upper, 0.255852),
        (hoeffding_bentkus_upper, 0.153449),
        (dkw_upper, 0.218082),
    ],
)
def test_known_values(bound, expected):
    assert bound(SAMPLE, 0.05) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("delta, expected", [(0.1, 0.518914), (0.05, 1.033884)])
def test_student_t_by_hand(delta, expected):
    assert student_t_upper([-3, -1, 0, 2, -2], delta) == pytest.approx(expected, abs=5e-7)


def _spread(mean, s, n):
    """n values with exactly this mean and standard deviation."""
    values = np.resize([-1.0, 1.0], n)
    return mean + s * values / values.std(ddof=1)


@pytest.mark.parametrize("mean, expected", [(-0.5, -0.112952), (-0.3, 0.087048)])
def test_student_t_at_the_gate(mean, expected):
    assert student_t_upper(_spread(mean, 3.0, 100), 0.1) == pytest.approx(expected, abs=5e-7)


def test_student_t_smallest_passing_size():
    # Odd sizes have no symmetric sample, so the formula stands here with scipy's own quantile.
    passing = [n for n in range(2, 400) if -0.2 + t.ppf(0.9, n - 1) * 3.0 / math.sqrt(n) <= 0]
    assert passing[0] == 371
    assert student_t_upper(_spread(-0.2, 3.0, 372), 0.1) <= 0 < student_t_upper(_spread(-0.2, 3.0, 370), 0.1)


def test_student_t_p_crosses_delta_at_the_bound():
    for delta in (0.01, 0.1, 0.4):
        assert student_t_p(SAMPLE, student_t_upper(SAMPLE, delta)) == pytest.approx(delta, abs=1e-9)
    assert (student_t_p([1.0, 1.0], 2.0), student_t_p([1.0, 1.0], 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "k, n, expected",
    [(0, 59, 0.049508), (0, 100, 0.029513), (3, 100, 0.075711), (0, 299, 0.009969), (5, 1000, 0.010484)],
)
def test_clopper_pearson_known_values(k, n, expected):
    assert clopper_pearson_upper(k, n, 0.05) == pytest.approx(expected, abs=5e-7)
    assert clopper_pearson_upper(k, n, 0.05) == pytest.approx(beta.ppf(0.95, k + 1, n - k), abs=1e-12)


@pytest.mark.parametrize("k, n", [(0, 5), (2, 5), (4, 5), (5, 5), (40, 313)])
def test_clopper_pearson_agrees_with_scipy(k, n):
    above = binomtest(k, n, alternative="less").proportion_ci(0.9, "exact").high
    under = binomtest(k, n, alternative="greater").proportion_ci(0.9, "exact").low
    assert clopper_pearson_upper(k, n, 0.1) == pytest.approx(above, abs=1e-10)
    assert clopper_pearson_lower(k, n, 0.1) == pytest.approx(under, abs=1e-10)
    assert clopper_pearson_p(k, n, 0.2) == pytest.approx(binom.cdf(k, n, 0.2), abs=1e-12)


def test_everything_harmful_bounds_nothing():
    assert clopper_pearson_upper(7, 7, 0.05) == 1.0
    assert clopper_pearson_p(7, 7, 0.3) == 1.0


def test_no_observation_gives_the_largest_value():
    assert clopper_pearson_upper(0, 0, 0.05) == 1.0
    for bound in BOUNDED:
        assert bound([], 0.05, upper=3.0) == 3.0


def test_hoeffding_bentkus_is_the_edge_of_its_p_value():
    top = hoeffding_bentkus_upper(SAMPLE, 0.05)
    assert hoeffding_bentkus_p(SAMPLE, top) <= 0.05 < hoeffding_bentkus_p(SAMPLE, top - 1e-8)


@pytest.mark.parametrize("n, k, tau, smaller", [(20, 10, 0.8, "bentkus"), (10, 9, 0.99, "hoeffding")])
def test_hoeffding_bentkus_p_is_the_smaller_part(n, k, tau, smaller):
    m = k / n
    parts = {
        "hoeffding": math.exp(-n * (m * math.log(m / tau) + (1 - m) * math.log((1 - m) / (1 - tau)))),
        "bentkus": math.e * sum(math.comb(n, i) * tau**i * (1 - tau) ** (n - i) for i in range(k + 1)),
    }
    assert min(parts, key=parts.get) == smaller
    assert hoeffding_bentkus_p([1] * k + [0] * (n - k), tau) == pytest.approx(parts[smaller], rel=1e-9)
    assert hoeffding_bentkus_p([1] * k + [0] * (n - k), m) == 1.0


def test_cvar_known_value_and_its_special_case():
    z = [0, 0.1, 0.2, 0.2, 0.9]
    assert cvar_upper(z, 0.4, 0.5) == pytest.approx(0.960541, abs=5e-7)
    assert cvar_upper(SAMPLE, 0.05, 1.0) == dkw_upper(SAMPLE, 0.05)


def test_cvar_by_a_slow_loop():
    z, n, band = sorted(SAMPLE), len(SAMPLE), math.sqrt(math.log(1 / 0.1) / (2 * len(SAMPLE)))
    total = sum(([*z[1:], 2.0][i] - z[i]) * max(0.0, (i + 1) / n - band - (1 - 0.3)) for i in range(n))
    assert cvar_upper(SAMPLE, 0.1, 0.3, upper=2.0) == pytest.approx(2.0 - total / 0.3, abs=1e-12)


def test_quantile_is_order_statistic_96():
    assert quantile_upper(np.arange(1, 101), 0.05, 0.9) == 96.0
    assert binom.cdf(95, 100, 0.9) == pytest.approx(0.976289, abs=5e-7)
    assert binom.cdf(94, 100, 0.9) < 0.95
    assert quantile_upper(np.arange(299), 0.05, 0.99) == 298.0
    with pytest.raises(ValueError, match="needs 299 observations, got 298"):
        quantile_upper(np.arange(298), 0.05, 0.99)


@pytest.mark.parametrize(
    "c1, c2, n_b, n_s, expected",
    [
        (4, 2, 32, 100, 1.183963),
        (4, 2, 256, 100, 0.579252),
        (4, 2, 32, 1000, 1.007037),
        (1, 1, 16, 1000, 0.375704),
        (1, 1, 256, 1000, 0.120858),
        (0, 2, None, 100, 0.258032),
        (0, 2, math.inf, 100, 0.258032),
        (4, 2, math.inf, 100, 0.258032),
    ],
)
def test_kappa(c1, c2, n_b, n_s, expected):
    assert kappa(0.1, n_b, n_s, c1, c2) == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("bound", [*MONOTONE, maurer_pontil_upper, student_t_upper])
@settings(max_examples=40, deadline=None)
@given(values=samples, delta=levels, seed=st.integers(0, 99))
def test_order_does_not_matter(bound, values, delta, seed):
    shuffled = np.random.default_rng(seed).permutation(values)
    assert bound(shuffled, delta) == bound(values, delta)


@pytest.mark.parametrize("bound", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(values=samples, delta=levels)
def test_between_mean_and_upper_end_and_falling_in_delta(bound, values, delta):
    looser, tighter = bound(values, delta), bound(values, delta / 2)
    # Rescaling the range rounds in the last place.
    assert np.mean(values) - 1e-12 <= looser <= tighter + 1e-12 <= 1 + 1e-12


@pytest.mark.parametrize("bound", MONOTONE)
@settings(max_examples=40, deadline=None)
@given(values=samples, delta=levels, place=st.integers(0, 29), more=st.floats(0, 1))
def test_more_cost_never_lowers_the_bound(bound, values, delta, place, more):
    raised = list(values)
    place %= len(values)
    raised[place] += (1 - raised[place]) * more
    # Two searches may end one step of their grid, 1e-9, apart.
    assert bound(raised, delta) >= bound(values, delta) - 2e-9


def test_more_cost_can_lower_student_t_and_empirical_bernstein():
    assert student_t_upper([0, 0, 0, 0, 0], 0.05) == 0.0
    assert student_t_upper([0, 0, 0, 0, -1], 0.05) == pytest.approx(0.226369, abs=5e-7)
    clean, outlier = [1.0] * 5000, [1.0] * 4999 + [0.0]
    assert maurer_pontil_upper(np.array(clean) * 0.5, 0.05) < maurer_pontil_upper(np.array(outlier) * 0.5, 0.05)


@settings(max_examples=40, deadline=None)
@given(values=samples, delta=levels, shift=st.floats(-5, 5), scale=st.floats(0.1, 10))
def test_student_t_moves_with_location_and_scale(values, delta, shift, scale):
    moved = student_t_upper(shift + scale * np.array(values), delta)
    assert moved == pytest.approx(shift + scale * student_t_upper(values, delta), abs=1e-9)


@pytest.mark.parametrize("bound", [hoeffding_upper, maurer_pontil_upper, hoeffding_bentkus_upper])
def test_a_declared_range_only_changes_units(bound):
    scaled = -2 + 5 * np.array(SAMPLE)
    assert bound(scaled, 0.05, lower=-2, upper=3) == pytest.approx(-2 + 5 * bound(SAMPLE, 0.05), abs=1e-8)


def test_crossing_returns_the_true_side():
    point = crossing(lambda x: x >= 1 / 3, 0.0, 1.0)
    assert 1 / 3 <= point <= 1 / 3 + 1e-9


@pytest.mark.parametrize("bound", [*BOUNDED, student_t_upper])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bound, bad):
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        bound([0.1, bad, 0.2], 0.05)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: hoeffding_upper([0.1, 1.2], 0.05), "at most 1.0, got 1.2"),
        (lambda: hoeffding_upper([-0.1, 0.2], 0.05), "at least 0.0, got -0.1"),
        (lambda: hoeffding_upper([0.1], 0.05, lower=1.0, upper=1.0), "range of values is empty"),
        (lambda: hoeffding_upper([[0.1]], 0.05), "one value per observation"),
        (lambda: hoeffding_bentkus_upper([0.1], 1.5), "delta is a probability of error"),
        (lambda: dkw_upper([0.1], 0.6), "delta up to 0.5, got 0.6"),
        (lambda: cvar_upper([0.1], 0.1, 0.0), "share of worst cases"),
        (lambda: quantile_upper([0.1], 0.1, 1.0), "q lies between 0 and 1"),
        (lambda: student_t_upper([1.0], 0.05), "at least two values, got 1"),
        (lambda: clopper_pearson_upper(3, 2, 0.05), "k=3, n=2"),
        (lambda: clopper_pearson_upper(0, 2, 0.0), "delta is a probability of error"),
        (lambda: kappa(0.1, 1, 100, 1, 1), "n=1 with factor 1"),
        (lambda: kappa(0.1, None, 100, 1, 1), "n=None with factor 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_need_no_torch():
    program = (
        "import sys; sys.modules.update({name: None for name in ('torch', 'transformers', 'pydantic')})\n"
        "from holdfast.stats import betting, bounds, calibration, compare, estimate, metrics, power\n"
        "print(bounds.clopper_pearson_upper(0, 59, 0.05) < 0.05)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("True", "")


LAWS = {
    "bernoulli .01": lambda g, size: (g.random(size) < 0.01).astype(float),
    "bernoulli .05": lambda g, size: (g.random(size) < 0.05).astype(float),
    "bernoulli .30": lambda g, size: (g.random(size) < 0.30).astype(float),
    "beta .2 3.8": lambda g, size: g.beta(0.2, 3.8, size),
    "rare mixture": lambda g, size: np.where(g.random(size) < 0.97, g.beta(1, 60, size), g.beta(8, 2, size)),
    "beta 2 6": lambda g, size: g.beta(2, 6, size),
}
MEANS = dict(zip(LAWS, [0.01, 0.05, 0.30, 0.05, 0.97 / 61 + 0.03 * 0.8, 0.25]))
REPLICATIONS = 2000


@pytest.mark.slow
@pytest.mark.parametrize("law, n", itertools.product(LAWS, [50, 200, 1000]))
def test_coverage(law, n):
    delta = 0.05
    allowed = delta + 3 * math.sqrt(delta * (1 - delta) / REPLICATIONS)
    rows = LAWS[law](np.random.default_rng(n), (REPLICATIONS, n))
    bounds = list(BOUNDED)
    if law.startswith("bernoulli"):
        bounds.append(lambda row, delta: clopper_pearson_upper(int(row.sum()), row.size, delta))
    for bound in bounds:
        assert np.mean([bound(row, delta) < MEANS[law] for row in rows]) <= allowed

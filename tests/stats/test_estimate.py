import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from holdfast.stats.estimate import Estimate, bootstrap, mean, per_cluster, places, proportion, rate, share


@pytest.mark.parametrize("k, n", [(0, 10), (3, 10), (10, 10), (17, 600)])
def test_rate_is_the_wilson_interval(k, n):
    estimate = rate(k, n, 0.9)
    expected = binomtest(k, n).proportion_ci(0.9, "wilson")
    assert estimate.value == k / n
    assert estimate.low == pytest.approx(expected.low, abs=1e-12)
    assert estimate.high == pytest.approx(expected.high, abs=1e-12)
    assert (estimate.n, estimate.method) == (n, "wilson")


def test_mean_is_the_t_interval():
    values = [0.3, 1.2, -0.4, 2.2, 0.9]
    estimate = mean(values, confidence=0.8)
    expected = ttest_1samp(values, 0).confidence_interval(0.8)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert estimate.value == pytest.approx(0.84)


def test_an_interval_is_cut_where_no_value_can_be():
    values = [0.6, 0.9, 1.0]
    free, cut = mean(values), mean(values, within=(0, 1))
    assert free.high > 1
    assert (cut.value, cut.low, cut.high) == (free.value, free.low, 1.0)
    lower = mean([-1.0, -0.8], within=(-1, 1))
    assert (lower.low, lower.high) == (-1.0, mean([-1.0, -0.8]).high)
    assert isinstance(cut.high, float), "JSON tells 1 from 1.0"
    assert mean([1 + 1e-12, 0.5], within=(0, 1)).high == 1, "rounding is no mistake"


def test_clusters_count_prompts_not_answers():
    repeated = mean(np.repeat([0.0, 1.0, 2.0], 4), clusters=np.repeat([7, 8, 9], 4).tolist())
    single = mean([0.0, 1.0, 2.0])
    assert (repeated.value, repeated.low, repeated.high) == (single.value, single.low, single.high)
    assert (repeated.n, repeated.method) == (3, "student_t, clustered")


def test_clusters_weigh_the_same_whatever_their_size():
    assert mean([1.0, 1.0, 1.0, 3.0], clusters=["a", "a", "a", "b"]).value == 2.0


def test_independent_answers_in_clusters_are_not_widened_much():
    flags = np.random.default_rng(0).random(4000) < 0.2
    clustered = proportion(flags, clusters=np.arange(4000) % 1000)
    plain = proportion(flags)
    # The width from 1000 clusters has a relative standard error of 1/sqrt(2000), about 0.022.
    assert clustered.high - clustered.low == pytest.approx(plain.high - plain.low, rel=0.1)


def test_identical_answers_per_prompt_give_the_interval_of_the_prompts():
    flags = np.random.default_rng(1).random(200) < 0.3
    plain = proportion(flags)
    copied = proportion(np.repeat(flags, 5), clusters=np.repeat(np.arange(200), 5).tolist())
    # The squared error of the cluster means divides by n - 1, Wilson by n.
    assert copied.high - copied.low == pytest.approx(plain.high - plain.low, rel=0.01)
    assert copied.n == 200


def test_no_harm_in_any_cluster_is_not_a_width_of_zero():
    estimate = proportion([False] * 40, clusters=np.repeat(np.arange(10), 4).tolist())
    assert (estimate.low, estimate.high) == (0.0, rate(0, 10).high)


def test_a_share_of_wins_with_ties_stays_between_nought_and_one():
    values = [1.0] * 9 + [0.5]
    estimate = share(values)
    assert estimate.value == pytest.approx(0.95)
    assert 0 < estimate.low < 0.95 < estimate.high < 1 < mean(values).high
    # The squared error is 0.0025, so p (1 - p) / error = 19, cut to the ten values there are.
    assert (estimate.low, estimate.high) == (rate(9.5, 10).low, rate(9.5, 10).high)


def test_a_share_of_flags_in_clusters_is_the_proportion():
    flags, clusters = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [1, 1, 2, 2, 3, 3]
    assert share(flags, clusters) == proportion(flags, clusters)
    assert type(share(flags, clusters).high) is float, "numpy's compare to bools that JSON does not know"
    assert share([1.0, 1.0], ["a", "a"]) == Estimate(1.0, rate(1, 1).low, 1.0, 1, "wilson, clustered")


def test_bootstrap_of_the_mean_is_nearly_the_t_interval():
    values = np.random.default_rng(0).normal(size=400)
    found, expected = bootstrap(lambda rows: values[rows].mean(), 400, samples=4000), mean(values)
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    # The width of 4000 draws has a relative standard error of about 0.03; so has each end, in half widths.
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert (found.n, found.method) == (400, "bootstrap")


def test_bootstrap_draws_whole_clusters():
    clusters = ["a", "b", "a", "c", "b", "a"]
    drawn = []
    found = bootstrap(lambda rows: drawn.append(rows.tolist()) or 1.0, 6, clusters, samples=200)
    members = {"a": [0, 2, 5], "b": [1, 4], "c": [3]}
    for rows in drawn[1:]:
        left = list(rows)
        parts = []
        while left:
            part = members[clusters[left[0]]]
            assert left[: len(part)] == part
            parts.append(part)
            left = left[len(part) :]
        assert len(parts) == 3
    assert len({tuple(rows) for rows in drawn[1:]}) == 27, "every draw of three out of three occurs"
    assert (found.n, found.method) == (3, "bootstrap, clustered")


def test_copies_in_a_cluster_add_nothing_to_a_bootstrap():
    values = np.random.default_rng(2).normal(size=50)
    copied, clusters = np.repeat(values, 6), np.repeat(np.arange(50), 6).tolist()
    single = bootstrap(lambda rows: values[rows].mean(), 50)
    many = bootstrap(lambda rows: copied[rows].mean(), 300, clusters)
    assert (many.low, many.high) == pytest.approx((single.low, single.high), abs=1e-12)


def test_bootstrap_drops_few_undefined_draws_and_refuses_many():
    flags = np.zeros(60)
    flags[:4] = 1

    def needs(most):
        return lambda rows: math.nan if flags[rows].sum() < most else flags[rows].mean()

    # With 4 of 60 a draw holds none with probability 0.016, and fewer than three with 0.23.
    assert bootstrap(needs(1), 60).low > 0
    with pytest.raises(ValueError, match=r"not defined in \d+ of 1000 draws: too few cases"):
        bootstrap(needs(3), 60)


def test_bootstrap_repeats_itself():
    values = np.arange(20.0)
    first, again, other = (bootstrap(lambda rows: values[rows].mean(), 20, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_places_follow_the_first_appearance():
    assert places(["x", "y", "x", "z"]).tolist() == [0, 1, 0, 2]


def test_text_shows_two_digits_of_the_width():
    assert str(Estimate(0.0312, 0.0181, 0.0489, 600, "x")) == "0.031 [0.018, 0.049] n=600"
    assert str(Estimate(1234.5, 1200.0, 1260.0, 9, "x")) == "1234 [1200, 1260] n=9"
    assert str(Estimate(0.5, 0.5, 0.5, 3, "x")) == "0.500 [0.500, 0.500] n=3"


def test_dictionary_survives_json():
    estimate = rate(2, 7)
    assert Estimate(**json.loads(json.dumps(estimate.to_dict()))) == estimate


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rate(0, 0), "at least one observation, got n=0"),
        (lambda: rate(5, 4), "got k=5"),
        (lambda: rate(1, 4, confidence=1.0), "confidence lies between 0 and 1, got 1.0"),
        (lambda: mean([1.0]), "at least two sampling units, got 1"),
        (lambda: mean([1.0, 2.0], clusters=["a", "a"]), "at least two sampling units, got 1"),
        (lambda: mean([1.0, math.nan]), "1 of 2 values are not finite"),
        (lambda: mean([1.0, 2.0], clusters=["a"]), "2 values, 1 labels"),
        (lambda: mean([0.5, 1.5], within=(0, 1)), r"values lie in \[0, 1\], got means from 0.5 to 1.5"),
        (lambda: mean([0.5, -1.5], within=(-1, 1)), r"values lie in \[-1, 1\], got means from -1.5 to 0.5"),
        (lambda: proportion([0.5, 1.0]), "flags are true or false"),
        (lambda: per_cluster([], None), "at least one value"),
        (lambda: share([0.5, 1.5]), r"shares lie in \[0, 1\], got values from 0.5 to 1.5"),
        (lambda: bootstrap(len, 3, ["a", "b"]), "3 values, 2 labels"),
        (lambda: bootstrap(len, 2, ["a", "a"]), "at least two sampling units, got 1"),
        (lambda: bootstrap(lambda rows: math.nan, 5), "not defined on these 5 rows"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

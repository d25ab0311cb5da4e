import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from holdfast.stats.estimate import Estimate, mean, per_cluster, proportion, rate


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
        (lambda: proportion([0.5, 1.0]), "flags are true or false"),
        (lambda: per_cluster([], None), "at least one value"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

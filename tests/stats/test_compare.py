import numpy as np
import pytest
from scipy.stats import ttest_rel

from holdfast.stats.compare import holm, paired_bootstrap, paired_t


def test_holm_by_hand():
    assert holm([0.004, 0.011, 0.02, 0.3], 0.05) == [True, True, True, False]
    assert holm([0.3, 0.02, 0.004, 0.011], 0.05) == [False, True, True, True]


def test_holm_stops_at_the_first_failure():
    # 0.03 exceeds 0.05 / 2, so 0.04 is not rejected either although it is below 0.05 / 1.
    assert holm([0.001, 0.03, 0.04], 0.05) == [True, False, False]
    assert holm([], 0.05) == []


def test_paired_t_agrees_with_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, 40), generator.normal(0, 1, 40)
    ours, theirs = paired_t(a, b), ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-12)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert ours.difference.value == pytest.approx(np.mean(a) - np.mean(b))


def test_copies_of_a_prompt_are_no_new_evidence():
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.3, 1, 40), generator.normal(0, 1, 40)
    labels = np.repeat(np.arange(40), 6).tolist()
    copied = paired_t(np.repeat(a, 6), np.repeat(b, 6), clusters=labels)
    assert copied.p_value == pytest.approx(paired_t(a, b).p_value, abs=1e-12)


def test_equal_differences():
    assert paired_t([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert paired_t([1.0, 2.0], [0.0, 1.0]).p_value == 0.0


def test_bootstrap_is_repeatable_and_near_the_t_interval():
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.3, 1, 300), generator.normal(0, 1, 300)
    estimate = paired_bootstrap(a, b, seed=7)
    expected = paired_t(a, b).difference
    assert estimate == paired_bootstrap(a, b, seed=7) != paired_bootstrap(a, b, seed=8)
    assert estimate.value == pytest.approx(expected.value)
    # Two thousand draws place an end of the interval to about 0.005, one standard error.
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_bootstrap_draws_whole_clusters():
    generator = np.random.default_rng(1)
    a = generator.normal(0.3, 1, 60)
    labels = np.repeat(np.arange(60), 4).tolist()
    copied = paired_bootstrap(np.repeat(a, 4), np.zeros(240), seed=7, clusters=labels)
    plain = paired_bootstrap(a, np.zeros(60), seed=7)
    assert (copied.low, copied.high, copied.n) == pytest.approx((plain.low, plain.high, 60))


def test_unpaired_input_is_refused():
    with pytest.raises(ValueError, match="both sides"):
        paired_t([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="p-values lie"):
        holm([0.1, 1.2], 0.05)

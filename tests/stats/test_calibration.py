import numpy as np
import pytest
from scipy.special import expit, logit

from holdfast.stats.calibration import (
    Platt,
    calibration_error,
    cross_fitted,
    expected_calibration_error,
    platt,
    reliability,
    temperature,
)
from holdfast.stats.estimate import proportion


def _drawn(slope, intercept, n=20_000):
    generator = np.random.default_rng(0)
    x = generator.normal(1.0, 3.0, n)
    return x, (generator.random(n) < expit(slope * x + intercept)).astype(int)


def test_platt_recovers_the_law_that_made_the_labels():
    fitted = platt(*_drawn(0.7, -1.2))
    # Standard errors with 20 000 labels are about 0.012 and 0.02.
    assert fitted.slope == pytest.approx(0.7, abs=0.05)
    assert fitted.intercept == pytest.approx(-1.2, abs=0.08)


def test_platt_with_one_score_gives_the_smoothed_base_rate():
    # All logits equal: the best sigmoid is constant at the mean target.
    fitted = platt([2.0, 2.0, 2.0, 2.0], [1, 0, 0, 0])
    target = (2 / 3 + 3 * (1 / 5)) / 4
    assert fitted.probability([2.0]) == pytest.approx([target], abs=1e-7)


def test_platt_is_a_stationary_point():
    x, y = _drawn(0.4, 0.3, n=200)
    fitted, positive = platt(x, y), y.sum()
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (len(y) - positive + 2))

    def loss(slope, intercept):
        p = expit(slope * x + intercept)
        return -np.mean(target * np.log(p) + (1 - target) * np.log(1 - p))

    best = loss(fitted.slope, fitted.intercept)
    for step in (1e-3, -1e-3):
        assert loss(fitted.slope + step, fitted.intercept) > best
        assert loss(fitted.slope, fitted.intercept + step) > best


def test_separable_labels_have_a_finite_answer():
    fitted = platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
    assert 0 < fitted.slope < 100


def test_platt_probability_keeps_the_shape():
    assert Platt(1.0, logit(0.25)).probability([[0.0], [0.0]]) == pytest.approx(np.full((2, 1), 0.25))


def test_temperature_undoes_overconfidence():
    x, y = _drawn(1.0, 0.0)
    # The standard error with 20 000 labels is about 0.02 of the value.
    assert temperature(3.0 * x, y) == pytest.approx(3.0, rel=0.06)
    both = np.stack([np.zeros_like(x), 3.0 * x], axis=1) + 5.0
    assert temperature(both, y) == pytest.approx(temperature(3.0 * x, y), rel=1e-6)


def test_temperature_of_one_wrong_in_four():
    # Equal margins of 1: softmax(1 / T) has to say three quarters, so T = 1 / ln 3.
    logits = np.tile([1.0, 0.0], (4, 1))
    assert temperature(logits, [0, 0, 0, 1]) == pytest.approx(1 / np.log(3), rel=1e-6)


def test_reliability_bins():
    table = reliability([0.0, 0.05, 0.55, 1.0], [0, 1, 1, 1], bins=10)
    assert [(bin.low, bin.high, bin.observed.n) for bin in table] == [
        (0.0, 0.1, 2),
        (0.5, 0.6, 1),
        (0.9, 1.0, 1),
    ]
    assert table[0].predicted == pytest.approx(0.025)
    assert table[0].observed.value == 0.5


def test_expected_calibration_error_by_hand():
    # Bins [0, .5) and [.5, 1]: |0.3 - 0.5| with weight 2/5, |0.8 - 2/3| with weight 3/5.
    error = expected_calibration_error([0.2, 0.4, 0.8, 0.8, 0.8], [0, 1, 1, 1, 0], bins=2)
    assert error == pytest.approx(0.4 * 0.2 + 0.6 * (0.8 - 2 / 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: platt([1.0, 2.0], [1, 1]), "2 positive and 0 negative"),
        (lambda: platt([1.0, 2.0], [1, 2]), "labels are 0 or 1"),
        (lambda: platt([1.0, np.nan], [1, 0]), "1 of 2 scores are not finite"),
        (lambda: temperature([[1.0, 2.0]], [2]), "label in 0..1"),
        (lambda: reliability([1.5], [1]), "probability in"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_error_is_the_weighted_distance_bin_by_bin():
    rng = np.random.default_rng(5)
    p = np.append(rng.random(200), [0.0, 1.0])
    y = (rng.random(202) < p**2).astype(int)
    slow = 0.0
    for i in range(10):
        inside = [k for k in range(202) if i / 10 <= p[k] < (i + 1) / 10 or (i == 9 and p[k] == 1)]
        if inside:
            slow += len(inside) / 202 * abs(np.mean(p[inside]) - np.mean(y[inside]))
    assert expected_calibration_error(p, y) == pytest.approx(slow, abs=1e-12)


def test_error_of_perfect_probabilities_may_be_small_and_that_of_wrong_ones_may_not():
    rng = np.random.default_rng(6)
    p = rng.random(500)
    y = (rng.random(500) < p).astype(int)
    perfect = calibration_error(p, y)
    assert perfect.value == expected_calibration_error(p, y) > 0
    assert 0 <= perfect.low < perfect.value / 4
    assert perfect.value <= perfect.high
    wrong = calibration_error(p**3, y)
    # The true distance is the mean of |p - p^3| = 1/2 - 1/4.
    assert wrong.low < 0.25 < wrong.high
    assert wrong.low > 0.15
    assert wrong.method == "basic bootstrap"


def test_intervals_of_errors_hold_the_truth_more_often_than_plain_percentiles():
    """Labels from a shifted law: with few cases the percentile interval lies above the true distance of 0.1."""
    held = {"turned": 0, "plain": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.choice([0.15, 0.35, 0.55, 0.75], 60)
        y = (rng.random(60) < p + 0.1).astype(int)
        found = calibration_error(p, y, samples=200)
        assert found.low <= found.value <= found.high
        held["turned"] += found.low <= 0.1 <= found.high
        # The same draws, turned back.
        held["plain"] += 2 * found.value - found.high <= 0.1 <= 2 * found.value - found.low
    assert held["turned"] > held["plain"]
    assert held["turned"] >= 50


def test_an_error_of_zero_stays_inside_its_interval():
    # Every draw errs by more than the data, so the turned interval would end below zero.
    p = np.repeat([0.25, 0.55, 0.75], 40)
    y = np.concatenate([np.arange(40) < 40 * share for share in (0.25, 0.55, 0.75)]).astype(int)
    found = calibration_error(p, y)
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_bins_count_clusters_where_they_are_given():
    p, y, prompts = [0.75, 0.25, 0.25, 0.25], [1, 1, 1, 0], ["b", "a", "a", "b"]
    low, high = reliability(p, y, bins=2, clusters=prompts)
    assert low.observed == proportion([1, 1, 0], ["a", "a", "b"])
    assert (low.observed.value, low.observed.n, high.observed.n) == (0.5, 2, 1)


def test_cross_fitting_never_sees_the_cluster_it_predicts():
    clusters = [i // 3 for i in range(30)]
    x, y = np.arange(30.0), np.arange(30) % 2
    asked = []

    def fit(logits, labels):
        assert (labels == y[logits.astype(int)]).all()

        def predict(new):
            asked.extend(new)
            assert not {clusters[int(i)] for i in logits} & {clusters[int(i)] for i in new}
            return new / 100

        return predict

    assert cross_fitted(fit, x, y, clusters).tolist() == (x / 100).tolist()
    assert sorted(asked) == x.tolist()


def test_cross_fitted_folds_are_even_and_their_clusters_at_random():
    sizes = []

    def fit(logits, labels):
        sizes.append(logits.size)
        return lambda new: new * 0

    cross_fitted(fit, np.zeros(50), np.zeros(50), list(range(50)))
    assert sizes == [40] * 5
    with pytest.raises(ValueError, match="5 folds need as many clusters, got 2"):
        cross_fitted(fit, [0.0, 1.0], [0, 1], ["a", "b"])


def test_out_of_sample_error_of_pure_noise_is_not_hidden_by_fitting():
    """Scores that say nothing: fitted to the same rows they seem calibrated, out of sample they err as chance does."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=300), rng.integers(0, 2, 300)
    p = cross_fitted(lambda a, b: platt(a, b).probability, x, y, list(range(300)))
    inside = platt(x, y).probability(x)
    assert np.mean((p - y) ** 2) > np.mean((inside - y) ** 2)

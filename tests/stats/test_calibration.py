import numpy as np
import pytest
from scipy.special import expit, logit

from holdfast.stats.calibration import Platt, expected_calibration_error, platt, reliability, temperature


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

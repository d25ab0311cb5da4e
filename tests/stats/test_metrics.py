import math

import numpy as np
import pytest

from holdfast.stats.metrics import (
    Confusion,
    accuracy,
    auc,
    balanced_accuracy,
    confusion,
    macro_f1,
    mean_absolute_error,
    pair_accuracy,
)


def test_guard_table():
    table = Confusion(tp=40, fp=5, fn=10, tn=45)
    assert table.accuracy == pytest.approx(0.85)
    assert table.precision == pytest.approx(0.8888888889)
    assert table.recall == pytest.approx(0.80)
    assert table.f1 == pytest.approx(0.8421052632)
    assert table.fpr == pytest.approx(0.10)


def test_graded_severity():
    true, predicted = np.array([0, 1, 2, 3, 0, 2]), np.array([1, 1, 0, 3, 0, 3])
    strict, standard = (confusion(predicted >= level, true >= level) for level in (1, 2))
    assert (strict.accuracy, strict.precision, strict.recall) == pytest.approx((4 / 6, 0.75, 0.75))
    assert (strict.f1, strict.fpr) == pytest.approx((0.75, 0.5))
    assert (standard.accuracy, standard.precision, standard.recall) == pytest.approx((5 / 6, 1.0, 2 / 3))
    assert (standard.f1, standard.fpr) == pytest.approx((0.8, 0.0))
    assert mean_absolute_error(predicted, true) == pytest.approx(4 / 6)


def test_confusion_tells_the_two_errors_apart():
    assert confusion([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]) == Confusion(tp=1, fp=1, fn=2, tn=1)


def test_auc_by_counting_pairs():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 6, 60), generator.integers(0, 2, 60)
    wins = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(wins))
    assert auc(-scores, labels) == pytest.approx(1 - np.mean(wins))


def test_ties_count_half():
    assert auc([1.0, 1.0], [0, 1]) == 0.5
    assert pair_accuracy([0.0, 0.0, 1.0, -1.0]) == 0.5
    assert pair_accuracy([0.0, 3.0]) == 0.75


def test_classes_weigh_the_same():
    assert balanced_accuracy([0, 0, 0, 1], [0, 0, 1, 1]) == 0.75
    assert balanced_accuracy([0] * 10, [0] * 9 + [1]) == 0.5
    assert accuracy([0] * 10, [0] * 9 + [1]) == 0.9
    # F1 of class 0 is 4/5, of class 1 is 2/3.
    assert macro_f1([0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_what_has_no_cases_is_not_a_number():
    nothing = Confusion(0, 0, 0, 4)
    assert all(math.isnan(x) for x in (nothing.precision, nothing.recall, nothing.f1))
    assert math.isnan(auc([0.1, 0.2], [1, 1]))


@pytest.mark.parametrize("first, second", [([], []), ([1.0], [1, 0]), ([[1.0]], [[1.0]])])
def test_lists_of_different_length_are_refused(first, second):
    with pytest.raises(ValueError, match="two lists of one length"):
        accuracy(first, second)


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not-a-number"):
        pair_accuracy([1.0, math.nan])

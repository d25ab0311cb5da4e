import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from holdfast.stats.metrics import (
    Confusion,
    accuracy,
    auc,
    balanced_accuracy,
    confusion,
    estimated,
    macro_f1,
    mean_absolute_error,
    pair_accuracy,
    pearson,
    r2,
    spearman,
    within_group_spearman,
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


def test_explained_variance():
    assert r2([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0.0
    assert r2([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == -3.0
    # Errors 0.5 and 0.5 against a variance of 2: swapped, it would be against one of 0.5.
    assert r2([1.5, 2.5], [1.0, 3.0]) == pytest.approx(0.75)


def test_correlations_agree_with_scipy_also_with_ties():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 80)
    second = first + rng.integers(0, 9, 80)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert pearson(first, second) == pytest.approx(pearsonr(first, second).statistic, abs=1e-12)
    assert spearman(first, np.exp(second)) == spearman(first, second)


def test_constants_correlate_with_nothing():
    # The mean of three tenths is not a tenth, so the deviations are not zero.
    assert math.isnan(pearson([0.1, 0.1, 0.1], [1.0, 2.0, 4.0]))
    assert math.isnan(spearman([1.0, 2.0], [3.0, 3.0]))
    assert math.isnan(r2([1.0, 2.0], [3.0, 3.0]))


def test_within_groups_differences_between_groups_do_not_count():
    labels = [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 5]
    predicted = [2, 1, 0, 12, 11, 10, 20, 22, 21, 7, 7, 5]
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["constant"] * 2 + ["alone"]
    found = within_group_spearman(predicted, labels, groups)
    assert spearman(predicted[:9], labels[:9]) > 0.6
    # -1 and -1, then ranks 1 3 2 against 1 2 3: 1 - 6 * 2 / (3 * 8).
    assert found.value == pytest.approx((-1 - 1 + 0.5) / 3)
    assert found.n == 3


def test_within_groups_needs_two_groups():
    with pytest.raises(ValueError, match="1 of 2 groups have a rank correlation inside; two are needed"):
        within_group_spearman([1, 2, 3], [1, 2, 3], ["a", "a", "b"])


def test_any_metric_gets_its_interval():
    rng = np.random.default_rng(1)
    labels = rng.random(600) < 0.4
    scores = labels + rng.normal(size=600)
    found = estimated(auc, scores, labels)
    assert found.value == auc(scores, labels)
    # The interval of Hanley and McNeil (1982) at this AUC and these counts.
    a, n1, n0 = found.value, labels.sum(), (~labels).sum()
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (n1 - 1) * (q1 - a * a) + (n0 - 1) * (q2 - a * a)) / (n1 * n0))
    # The width of 1000 draws has a relative standard error of about 0.05.
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    clustered = estimated(auc, np.repeat(scores, 2), np.repeat(labels, 2), np.repeat(np.arange(600), 2).tolist())
    assert (clustered.low, clustered.high, clustered.n) == (found.low, found.high, 600)


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

"""What a student took from its supervisor, against counts by hand and slow loops."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from holdfast.stats.agreement import (
    agreement,
    blind_spots,
    confident_disagreement,
    copied_mistakes,
    implied_accuracy,
    misfit,
    overconfidence,
    recall_at,
    stopping,
    sweep_calibration_error,
)
from holdfast.stats.estimate import proportion, rate
from holdfast.stats.recovery import recovered


def two(*p):
    """The distributions (N, 2) with these probabilities of class 1."""
    return np.stack([1 - np.array(p), np.array(p)], axis=1)


def drawn(n=300, classes=3, seed=0):
    """Student, supervisor, ceiling (N, K) and gold (N,)."""
    generator = np.random.default_rng(seed)
    raw = np.exp(2 * generator.standard_normal((3, n, classes)))
    return *(raw / raw.sum(-1, keepdims=True)), generator.integers(0, classes, n)


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def answers(table):
    return [list(row).index(max(row)) for row in table]


def test_agreement_by_counting():
    student, weak, _, gold = drawn()
    found = agreement(student, weak, gold)
    rows = list(zip(answers(student), answers(weak), gold))
    assert found.everywhere.value == pytest.approx(share(s == w for s, w, _ in rows))
    assert found.on_right.value == pytest.approx(share(s == w for s, w, y in rows if w == y))
    assert found.on_wrong.value == pytest.approx(share(s == w for s, w, y in rows if w != y))
    assert found.on_right.n + found.on_wrong.n == found.everywhere.n == 300
    assert found.everywhere == rate(sum(s == w for s, w, _ in rows), 300)


def test_identity_by_hand():
    # 70 right of which 63 agreed with, 30 wrong of which 12 agreed with.
    gold = np.ones(100, dtype=int)
    weak = two(*[0.8] * 70, *[0.3] * 30)
    student = two(*[0.9] * 63, *[0.1] * 7, *[0.2] * 12, *[0.7] * 18)
    found = agreement(student, weak, gold)
    assert (found.on_right.value, found.on_wrong.value) == pytest.approx((0.90, 0.40))
    assert found.everywhere.value == pytest.approx(0.75)
    assert implied_accuracy(0.70, 0.90, 0.40) == pytest.approx(0.81)
    assert share(s == 1 for s in answers(student)) == pytest.approx(0.81)


def test_identity_on_any_two_classes():
    student, weak, _, gold = drawn(classes=2, seed=3)
    found = agreement(student, weak, gold)
    accuracy = share(w == y for w, y in zip(answers(weak), gold))
    implied = implied_accuracy(accuracy, found.on_right.value, found.on_wrong.value)
    assert implied == pytest.approx(share(s == y for s, y in zip(answers(student), gold)), abs=1e-12)
    gain = (1 - accuracy) * (1 - found.on_wrong.value) - accuracy * (1 - found.on_right.value)
    assert implied - accuracy == pytest.approx(gain, abs=1e-12)


def test_a_copy():
    _, weak, ceiling, gold = drawn(classes=2)
    found = agreement(weak, weak, gold)
    assert (found.everywhere.value, found.on_right.value, found.on_wrong.value) == (1, 1, 1)
    assert confident_disagreement(weak, weak).value == 0
    assert copied_mistakes(weak, weak, gold).value == 1
    assert misfit(weak, weak).value == 0
    right = [np.array([a == y for a, y in zip(answers(each), gold)], dtype=float) for each in (weak, weak, ceiling)]
    assert recovered(*right).gain.value == 0


def test_a_supervisor_without_mistakes_has_none_to_agree_with():
    found = agreement(two(0.9, 0.8), two(0.9, 0.1), gold=[1, 0])
    assert found.on_wrong is None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["on_wrong"] is None
    assert agreement(two(0.9, 0.8), two(0.9, 0.1), gold=[0, 1]).on_right is None


def test_groups_are_the_sampling_units():
    student, weak, ceiling, gold = drawn(n=60)
    groups = [f"g{i // 6}" for i in range(60)]
    found = agreement(student, weak, gold, groups)
    same = np.array(answers(student)) == np.array(answers(weak))
    right = np.array(answers(weak)) == gold
    assert found.everywhere == proportion(same, groups)
    assert found.on_right == proportion(same[right], [g for g, keep in zip(groups, right) if keep])
    assert overconfidence(student, gold, groups).n == 10
    assert misfit(student, weak, groups).n == 10
    known = blind_spots(student, weak, ceiling, gold, groups)
    assert (known.known.method, known.unknown.method) == ("wilson, clustered", "wilson, clustered")
    assert recall_at(student[:, 1], gold == 1, groups=groups).method == "wilson, clustered"
    assert confident_disagreement(student, weak, groups, sure=0.4).method == "wilson, clustered"
    assert copied_mistakes(student, weak, gold, groups).method == "wilson, clustered"


def test_confident_disagreement_by_hand():
    student = two(0.96, 0.96, 0.04, 0.94, 0.97)
    weak = two(0.04, 0.06, 0.96, 0.01, 0.97)
    # Four are sure; the first and third are opposed as surely.
    assert confident_disagreement(student, weak).value == 0.5
    assert confident_disagreement(student, weak).n == 4
    assert confident_disagreement(student, weak, sure=0.93).value == pytest.approx(4 / 5)
    assert confident_disagreement(student, weak, sure=0.99) is None


def test_copied_mistakes_by_hand():
    student, gold = two(0.9, 0.9, 0.9, 0.54, 0.9, 0.2), [0, 0, 0, 0, 1, 1]
    weak = two(0.8, 0.52, 0.2, 0.9, 0.9, 0.1)
    # Confident mistakes: the first three and the last; the first and the last are the supervisor's.
    assert copied_mistakes(student, weak, gold).value == 0.5
    assert copied_mistakes(student, weak, gold).n == 4
    assert copied_mistakes(student, weak, gold, sure=0.51).value == pytest.approx(4 / 5)
    assert copied_mistakes(two(0.9), two(0.9), [1]) is None


def test_overconfidence_in_the_form_for_two_classes():
    student, _, _, gold = drawn(classes=2, seed=5)
    p = student[:, 1]
    slow = [(q - y) if q > 0.5 else (y - q) for q, y in zip(p, gold)]
    assert overconfidence(student, gold).value == pytest.approx(np.mean(slow), abs=1e-12)
    assert overconfidence(two(0.6, 0.6), [1, 1]).value == pytest.approx(-0.4)


def sweep_by_bins(p, y):
    """As many equally filled bins as keep the mean label rising, each bin compared with its mean probability."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found = None
    for bins in range(1, len(p) + 1):
        edges = [round(i * len(p) / bins) for i in range(bins + 1)]
        parts = [order[a:b] for a, b in pairwise(edges)]
        means = [share(y[i] for i in part) for part in parts]
        if any(b < a for a, b in pairwise(means)):
            break
        found = sum(len(part) * abs(share(p[i] for i in part) - m) for part, m in zip(parts, means)) / len(p)
    return found


@pytest.mark.parametrize("n", [1, 2, 7, 60, 301])
def test_monotone_sweep_by_bins(n):
    generator = np.random.default_rng(n)
    p = generator.random(n)
    y = generator.random(n) < p**2
    assert sweep_calibration_error(p, y) == pytest.approx(sweep_by_bins(p.tolist(), y.tolist()), abs=1e-12)


def test_monotone_sweep_by_hand():
    # Every item a bin of its own: .2, .3, .2 and .1 apart.
    assert sweep_calibration_error([0.2, 0.3, 0.8, 0.9], [0, 0, 1, 1]) == pytest.approx(0.2)
    assert sweep_calibration_error([0.2, 0.3, 0.8, 0.9], [1, 1, 0, 0]) == pytest.approx(0.05)
    # Two bins rise, three fall; that four would rise again does not count: (.3 + .2) / 5.
    assert sweep_calibration_error([0.1, 0.2, 0.6, 0.7, 0.9], [0, 0, 1, 0, 1]) == pytest.approx(0.1)


def test_monotone_sweep_finds_little_in_perfect_probabilities():
    generator = np.random.default_rng(0)
    p = generator.random(5000)
    fair, steep = generator.random(5000) < p, generator.random(5000) < (p > 0.5)
    assert sweep_calibration_error(p, fair) < 0.02
    # |p - 1[p > 1/2]| is a quarter on average; its standard error is .15 / sqrt(5000) = .002.
    assert sweep_calibration_error(p, steep) == pytest.approx(0.25, abs=0.01)


def test_misfit_is_the_gain_of_a_linear_student():
    generator = np.random.default_rng(0)
    features = generator.standard_normal((50, 4))
    truth = features @ generator.standard_normal(4)
    weak = truth + generator.standard_normal(50)
    student = features @ np.linalg.lstsq(features, weak, rcond=None)[0]
    gain = np.mean((weak - truth) ** 2) - np.mean((student - truth) ** 2)
    assert misfit(student, weak).value == pytest.approx(gain, rel=1e-9)


def test_misfit_of_two_classes_is_that_of_one_number():
    student, weak, _, _ = drawn(classes=2)
    assert misfit(student, weak).value == pytest.approx(misfit(student[:, 1], weak[:, 1]).value, abs=1e-12)
    student, weak, _, _ = drawn(n=5, classes=4)
    slow = sum((a - b) ** 2 for r, q in zip(student, weak) for a, b in zip(r, q)) / 2 / 5
    assert misfit(student, weak).value == pytest.approx(slow, abs=1e-12)


def test_blind_spots_by_hand():
    gold = np.ones(8, dtype=int)
    #                 right        wrong   unsure  sure
    weak = two(0.9, 0.9, 0.9, 0.9, 0.2, 0.59, 0.61, 0.1)
    ceiling = two(0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.2)
    student = two(0.9, 0.9, 0.1, 0.1, 0.2, 0.9, 0.2, 0.1)
    found = blind_spots(student, weak, ceiling, gold)
    # Knowable are all but the fourth and the last. The supervisor knew items 1-3 and 7, of which 3 and 7 are lost.
    assert (found.known.value, found.known.n) == (0.5, 4)
    assert (found.unknown.value, found.unknown.n) == (0.5, 2)
    wider = blind_spots(student, weak, ceiling, gold, unsure=0.12)
    assert (wider.known.n, wider.unknown.n) == (3, 3)
    empty = blind_spots(student[:1], weak[:1], ceiling[:1], gold[:1])
    assert empty.unknown is None
    assert empty.to_dict()["known"]["value"] == 0


def test_blind_spots_of_several_classes_compare_the_two_most_likely():
    # .4 against .3 is unsure at .1, .55 against .2 is not; the third is wrong.
    weak = [[0.3, 0.4, 0.2, 0.1], [0.2, 0.55, 0.15, 0.1], [0.1, 0.1, 0.8, 0.0]]
    sure = np.tile([0.0, 1.0, 0.0, 0.0], (3, 1))
    found = blind_spots(sure, weak, sure, [1, 1, 1])
    assert (found.known.n, found.unknown.n) == (1, 2)


def test_recall_by_trying_every_threshold():
    generator = np.random.default_rng(0)
    unsafe = generator.random(200) < 0.3
    scores = np.round(generator.normal(unsafe.astype(float), 1.0), 1)
    for allowed in (0.0, 0.05, 0.2, 0.5):
        found = []
        for threshold in sorted({*scores.tolist(), -9.0}):
            called = scores > threshold
            if called[~unsafe].mean() <= allowed:
                found.append(called[unsafe].mean())
        assert recall_at(scores, unsafe, allowed).value == pytest.approx(max(found))


def test_recall_allows_every_false_positive_it_may():
    scores = [*np.arange(100), 70.5]
    # 29 of 100 safe items may be called unsafe: 71 to 99, and 29 % of 100 is 28.999999999999996.
    assert 0.29 * 100 < 29
    assert recall_at(scores, [0] * 100 + [1], 0.29).value == 1
    assert recall_at(scores, [0] * 100 + [1], 0.28).value == 0


def test_recall_without_one_of_the_kinds():
    assert recall_at([0.1, 0.2], [0, 0]) is None
    assert recall_at([0.1, 0.2], [1, 1]) is None


def test_stopping():
    found = stopping(gold=[0.80, 0.86, 0.84, 0.84, 0.81], weak=[0.70, 0.75, 0.79, 0.79, 0.78])
    assert (found.last, found.chosen, found.oracle) == (0.81, 0.84, 0.86)
    assert found.gap == pytest.approx(0.02)
    # Of equals the earliest.
    assert stopping([0.1, 0.2, 0.3], [0.5, 0.5, 0.4]).chosen == 0.1


def test_misuse():
    with pytest.raises(ValueError, match="take the softmax of logits first"):
        agreement([[2.0, -1.0]], two(0.5), [0])
    with pytest.raises(ValueError, match="take the softmax of logits first"):
        agreement(two(0.5), [[math.nan, 0.5]], [0])
    with pytest.raises(ValueError, match="take the softmax of logits first"):
        agreement(two(0.5), [[0.5, 0.4]], [0])
    with pytest.raises(ValueError, match=r"of one shape, K at least 2: \[\(2, 2\), \(1, 2\)\]"):
        confident_disagreement(two(0.5, 0.5), two(0.5))
    with pytest.raises(ValueError, match="K at least 2"):
        overconfidence([[1.0]], [0])
    with pytest.raises(ValueError, match=r"a class in 0\.\.1 for each of 2 items"):
        overconfidence(two(0.5, 0.5), [0, 2])
    with pytest.raises(ValueError, match="for each of 2 items"):
        overconfidence(two(0.5, 0.5), [0])
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        misfit([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one outcome per probability"):
        sweep_calibration_error([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="one finite score per flag"):
        recall_at([0.1, math.inf], [0, 1])
    with pytest.raises(ValueError, match=r"lies in \[0, 1\), got 1\.0"):
        recall_at([0.1, 0.2], [0, 1], 1.0)
    with pytest.raises(ValueError, match="at least one: got 0 and 0"):
        stopping([], [])

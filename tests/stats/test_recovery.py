"""PGR against hand numbers, the delta method and a bootstrap written out, and when it must be withheld."""

import json
import math

import numpy as np
import pytest

from holdfast.stats.recovery import pgr, pgr_error, recovered


def made(levels, n=2000, seeds=1, seed=0, spread=0.0):
    """Independent right and wrong answers of three models: (S, n) each, at these accuracies."""
    generator = np.random.default_rng(seed)
    drawn = [level + spread * generator.standard_normal((seeds, 1)) for level in levels]
    return [(generator.random((seeds, n)) < level).astype(float) for level in drawn]


def exact(level, n=100):
    """Answers of which exactly this share is right."""
    return (np.arange(n) < round(level * n)).astype(float)


def test_published_ratios():
    assert pgr(0.60, 0.70, 0.80) == pytest.approx(0.5, abs=1e-12)
    # Vision table of the paper, in percent.
    assert pgr(56.6, 60.7, 63.7) == pytest.approx(0.5775, abs=5e-5)
    assert pgr(56.6, 64.2, 74.9) == pytest.approx(0.4153, abs=5e-5)


def test_ends_and_beyond():
    assert pgr(0.6, 0.6, 0.8) == 0
    assert pgr(0.6, 0.8, 0.8) == 1
    assert pgr(0.6, 0.5, 0.8) == pytest.approx(-0.5)
    assert pgr(0.8, 0.7, 0.6) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"no PGR: supervisor and ceiling both have 0\.7"):
        pgr(0.7, 0.8, 0.7)


def test_delta_method_by_hand():
    levels = (0.70, 0.76, 0.82)
    errors = [math.sqrt(p * (1 - p) / 2000) for p in levels]
    assert pgr_error(levels, errors) == pytest.approx(0.0971, abs=5e-5)


@pytest.mark.parametrize("only", [0, 1, 2])
def test_delta_method_is_the_slope(only):
    levels = [0.70, 0.73, 0.82]
    above, below = list(levels), list(levels)
    above[only] += 1e-6
    below[only] -= 1e-6
    slope = (pgr(*above) - pgr(*below)) / 2e-6
    errors = [0.01 * (i == only) for i in range(3)]
    # The error of a finite difference of a second-order rule at 1e-6 in double precision is below 1e-8.
    assert pgr_error(levels, errors) == pytest.approx(0.01 * abs(slope), abs=1e-8)


def test_interval_of_independent_models_is_that_of_the_delta_method():
    data = made((0.6, 0.72, 0.85), n=4000)
    found = recovered(*data)
    levels = [float(each.mean()) for each in data]
    error = pgr_error(levels, [math.sqrt(p * (1 - p) / 4000) for p in levels])
    width = found.value.high - found.value.low
    # A 95 % end from 1,000 draws has a relative error of about 4 %, and the delta method is linear.
    assert 0.9 < width / (2 * 1.96 * error) < 1.1
    assert found.value.value == pgr(*levels)
    assert (found.value.n, found.value.method) == (4000, "bootstrap over items")


def test_the_same_items_are_drawn_for_all_three():
    # What is hard is hard for everybody: each model knows the easiest items.
    hardness = np.random.default_rng(0).random(500)
    weak, student, ceiling = ((hardness < level).astype(float) for level in (0.6, 0.7, 0.8))
    together = recovered(weak, student, ceiling).gain
    # 10 % of the items tell student and supervisor apart, so the error is sqrt(.1 .9 / 500); apart it is double.
    assert 0.9 < (together.high - together.low) / (3.92 * math.sqrt(0.09 / 500)) < 1.1


def test_bootstrap_written_out():
    data = made((0.4, 0.6, 0.9), n=30, seeds=3, seed=1)
    groups = [i // 4 for i in range(30)]
    found = recovered(*data, groups, samples=200, seed=5)
    generator = np.random.default_rng(5)
    draws = []
    for _ in range(200):
        chosen, seeds = generator.integers(8, size=8), generator.integers(3, size=2)
        items = [i for group in chosen for i in range(30) if groups[i] == group]
        draws.append([np.mean([model[s, i] for s in seeds for i in items]) for model in data])
    assert found.student.value == pytest.approx(data[1].mean(), abs=1e-12)
    weak, student, ceiling = np.array(draws).T
    levels = {"weak": weak, "student": student, "ceiling": ceiling, "gap": ceiling - weak, "gain": student - weak}
    for name, drawn in levels.items():
        estimate = getattr(found, name)
        ends = np.quantile(drawn, [0.025, 0.975], method="nearest")
        assert (estimate.low, estimate.high) == pytest.approx(tuple(ends), abs=1e-12)
        assert estimate.n == 8
    assert (ceiling > weak).all()
    ends = np.quantile((student - weak) / (ceiling - weak), [0.025, 0.975], method="nearest")
    assert (found.value.low, found.value.high) == pytest.approx(tuple(ends), abs=1e-12)
    assert found.gap.method == "bootstrap over items and seeds, clustered"


def test_groups_widen_what_items_narrow():
    data = made((0.6, 0.7, 0.85), n=200)
    thrice = [np.repeat(each, 3, axis=1) for each in data]
    groups = [i // 3 for i in range(600)]
    alone, grouped, naive = recovered(*data), recovered(*thrice, groups), recovered(*thrice)
    assert (grouped.gap.low, grouped.gap.high) == pytest.approx((alone.gap.low, alone.gap.high), abs=1e-12)
    assert naive.gap.high - naive.gap.low < 0.7 * (alone.gap.high - alone.gap.low)


def test_seeds_are_a_ratio_of_means():
    found = recovered([exact(0.5), exact(0.6)], [exact(0.7), exact(0.6)], [exact(0.9), exact(0.9)])
    # (.65 - .55) / (.90 - .55); the mean of the ratios 1/2 and 0 would be .25.
    assert found.value.value == pytest.approx(2 / 7)
    assert found.per_seed == pytest.approx((0.5, 0.0))
    assert (found.weak.value, found.student.value, found.ceiling.value) == pytest.approx((0.55, 0.65, 0.9))


def test_seeds_that_differ_widen_the_interval():
    same = made((0.6, 0.72, 0.85), n=2000, seeds=8, seed=3)
    differing = made((0.6, 0.72, 0.85), n=2000, seeds=8, seed=3, spread=0.05)
    narrow, wide = (recovered(*each).student for each in (same, differing))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_seeds_alone_have_the_error_of_their_mean():
    levels = np.array([0.5, 0.6, 0.65, 0.8])
    found = recovered(np.zeros(2), np.repeat(levels, 2).reshape(4, 2), np.ones(2), samples=20_000).student
    # Items are all equal, so each draw is a mean of three seeds: its ends are those of the 64 equally likely means.
    means = [np.mean([a, b, c]) for a in levels for b in levels for c in levels]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975], method="nearest")))
    assert np.std(means) == pytest.approx(np.std(levels, ddof=1) / 2)


def test_one_supervisor_may_serve_all_seeds():
    data = made((0.6, 0.72, 0.85), n=300, seeds=4)
    once = recovered(data[0][0], data[1], data[2][:1])
    assert once == recovered(np.tile(data[0][0], (4, 1)), data[1], np.tile(data[2][:1], (4, 1)))
    assert len(once.per_seed) == 4


def test_copies_are_exact():
    weak, _, ceiling = made((0.6, 0.7, 0.85), n=300, seeds=3)
    nothing, everything = recovered(weak, weak, ceiling).value, recovered(weak, ceiling, ceiling).value
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    assert (everything.value, everything.low, everything.high) == pytest.approx((1, 1, 1), abs=1e-12)


def test_the_scale_of_the_metric_does_not_matter():
    data = made((0.6, 0.7, 0.85), n=300, seeds=3)
    plain, percent = recovered(*data), recovered(*(100 * each + 7 for each in data), least=3)
    assert percent.value.value == pytest.approx(plain.value.value, abs=1e-12)
    assert (percent.value.low, percent.value.high) == pytest.approx((plain.value.low, plain.value.high), abs=1e-10)
    assert percent.per_seed == pytest.approx(plain.per_seed, abs=1e-12)


def test_a_small_gap_is_withheld():
    n = 20_000
    wide, narrow = exact(0.731, n), exact(0.729, n)
    assert recovered(exact(0.7, n), exact(0.71, n), wide).value is not None
    found = recovered(exact(0.7, n), exact(0.71, n), narrow)
    assert found.value is None
    assert str(found) == "PGR: n/a (gap too small: 0.029, must be at least 0.03)"
    # What can be said is said.
    assert (found.gap.value, found.gain.value) == pytest.approx((0.029, 0.01))
    assert found.per_seed == pytest.approx((10 / 29,))


def test_a_gap_within_two_standard_errors_is_withheld():
    data = made((0.70, 0.72, 0.74), n=100, seed=5)
    found = recovered(*data)
    gap = data[2].mean() - data[0].mean()
    error = np.std(data[2] - data[0]) / 10
    assert 0.03 < gap < 2 * error
    assert found.value is None
    assert found.reason.startswith("gap too small")
    # The gate is that of the paired difference: the error of a bootstrap from 1,000 draws is within 10 %.
    assert 0.9 < float(found.reason.rsplit(" ", 1)[1]) / (2 * error) < 1.1


def test_no_gap_and_a_gap_the_wrong_way_round():
    equal = recovered(exact(0.7), exact(0.8), exact(0.7), least=0.0)
    assert (equal.value, equal.reason, equal.per_seed) == (None, "gap too small: 0, must be at least 0", (None,))
    turned = recovered(exact(0.8), exact(0.9), exact(0.7))
    assert (turned.value, turned.per_seed) == (None, (None,))
    assert str(turned) == "PGR: n/a (the weak model is better than the ceiling: PGR is undefined)"


def test_an_interval_without_an_end_is_withheld():
    # One seed of ten is far below its supervisor, and three such in nine (5 %) leave no gap. The mean gap of .345
    # passes two errors of it, 2 * .465 / 3 = .310.
    ceiling = np.repeat([0.5] * 9 + [-1.05], 50).reshape(10, 50)
    found = recovered(np.zeros(50), np.full(50, 0.1), ceiling)
    assert found.gap.value == pytest.approx(0.345)
    assert found.gap.low < 0
    assert (found.value, found.reason) == (None, "gap too small: it vanishes in too many resamples")
    # A student like its supervisor recovers nothing of any gap.
    assert recovered(np.zeros(50), np.zeros(50), ceiling).value.high == 0


def test_nothing_is_nan():
    for levels in ((0.7, 0.7, 0.7), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)):
        text = json.dumps(recovered(*(exact(level) for level in levels)).to_dict(), allow_nan=False)
        assert json.loads(text)["weak"]["value"] == levels[0]


def test_the_seed_decides():
    data = made((0.6, 0.7, 0.85), n=200)
    assert recovered(*data, seed=1) == recovered(*data, seed=1)
    assert recovered(*data, seed=1).value.low != recovered(*data, seed=2).value.low


def test_misuse():
    good = exact(0.5)
    with pytest.raises(ValueError, match=r"same items and seeds: .* \(1, 100\), \(1, 99\), \(1, 100\)"):
        recovered(good, good[:99], good)
    with pytest.raises(ValueError, match="same items and seeds"):
        recovered(np.tile(good, (2, 1)), np.tile(good, (3, 1)), good)
    with pytest.raises(ValueError, match="one group per item: 100 items, 2 groups"):
        recovered(good, good, good, ["a", "b"])
    with pytest.raises(ValueError, match="at least two items or groups, got 1"):
        recovered(good, good, good, ["a"] * 100)
    with pytest.raises(ValueError, match="1 of 300 values are not finite"):
        recovered(good, good, np.append(good[:99], np.nan))

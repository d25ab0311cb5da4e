"""Fronts and volumes against slow loops over pairs, subsets and grids; draws against the variance of a mean."""

from itertools import combinations

import numpy as np
import pytest

from holdfast.stats.estimate import Estimate, mean, rate
from holdfast.stats.pareto import draws, front, front_probability, gained, hypervolume, pooled, standard_error

U19 = [[0.6, 0.4], [0.8, 0.2], [0.3, 0.9]]


def dominated(points, i):
    return any(
        all(a >= b for a, b in zip(other, points[i], strict=True))
        and any(a > b for a, b in zip(other, points[i], strict=True))
        for other in points
    )


def inclusion_exclusion(points, reference):
    """The union of boxes: sizes of all intersections, with alternating signs."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in combinations(points, size):
            sides = [max(0.0, min(p[k] for p in chosen) - reference[k]) for k in range(len(reference))]
            total -= (-1) ** size * float(np.prod(sides))
    return total


def tied(rng, *shape):
    """Points on a coarse grid, so that ties abound."""
    return rng.integers(0, 5, shape) / 4.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_front_is_what_no_pair_dominates(objectives):
    rng = np.random.default_rng(objectives)
    for _ in range(20):
        points = tied(rng, 7, objectives)
        assert front(points).tolist() == [not dominated(points.tolist(), i) for i in range(7)]


def test_equal_points_stand_together_and_a_point_equal_in_one_objective_can_fall():
    assert front([[1.0, 0.0], [1.0, 0.0]]).tolist() == [True, True]
    assert front([[1.0, 0.0], [1.0, 0.5]]).tolist() == [False, True]


def test_volumes_by_hand():
    assert hypervolume(U19, [0.0, 0.0]) == pytest.approx(0.43, abs=1e-12)
    assert hypervolume([*U19, [0.5, 0.3]], [0.0, 0.0]) == pytest.approx(0.43, abs=1e-12)
    assert hypervolume([[0.5, 0.5, 0.8], [0.8, 0.4, 0.4]], [0.0] * 3) == pytest.approx(0.248, abs=1e-12)
    assert hypervolume([[3.0], [5.0], [1.0]], [2.0]) == 3.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_volume_is_that_of_the_union_of_boxes(objectives):
    rng = np.random.default_rng(objectives)
    for points in (tied(rng, 6, objectives), rng.normal(size=(6, objectives))):
        reference = np.full(objectives, 0.2)
        expected = inclusion_exclusion(points.tolist(), reference.tolist())
        assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


def test_points_below_the_reference_add_nothing():
    assert hypervolume([[0.9, -5.0], [-5.0, -5.0]], [0.0, 0.0]) == 0.0
    assert hypervolume([*U19, [0.9, -1.0]], [0.0, 0.0]) == pytest.approx(0.43, abs=1e-12)


def test_many_sets_at_once_are_each_measured_alone():
    rng = np.random.default_rng(5)
    points, references = rng.normal(size=(9, 5, 3)), rng.normal(size=(9, 3)) - 1
    alone = [float(hypervolume(one, reference)) for one, reference in zip(points, references, strict=True)]
    np.testing.assert_allclose(hypervolume(points, references), alone, rtol=1e-12)


@pytest.mark.parametrize(
    "points, said",
    [
        ([], "at least one of each"),
        ([1.0, 2.0], "at least one of each"),
        ([[1.0, np.nan]], "1 coordinates .* not finite"),
    ],
)
def test_what_is_no_set_of_points(points, said):
    with pytest.raises(ValueError, match=said):
        front(points)


def test_reference_of_another_size():
    with pytest.raises(ValueError, match="one number per objective"):
        hypervolume(U19, [0.0, 0.0, 0.0])


def test_standard_error_undoes_the_interval():
    values = np.random.default_rng(0).normal(size=9)
    assert standard_error(mean(values)) == pytest.approx(values.std(ddof=1) / 3, rel=1e-12)
    # Wilson's interval is Wald's but for terms of order 1/n: a thousandth of the error at 10^6 cases.
    assert standard_error(rate(300_000, 1_000_000)) == pytest.approx(np.sqrt(0.3 * 0.7 / 1e6), rel=1e-3)
    assert standard_error(Estimate(1.0, 1.0, 1.0, 5, "student_t")) == 0.0


def test_a_point_of_one_run_varies_by_its_standard_error():
    runs = np.array([[[1.0, -2.0], [np.nan, np.nan]]])
    errors = np.array([[[0.5, 0.1], [np.nan, np.nan]]])
    found = draws(runs, errors, samples=40_000)
    assert found.shape == (40_000, 1, 2)
    # Of 40,000 draws the mean has a standard error of 0.005 deviations, the deviation one of 0.0035 of itself.
    np.testing.assert_allclose(found[:, 0].mean(0), [1.0, -2.0], atol=0.012)
    np.testing.assert_allclose(found[:, 0].std(0), [0.5, 0.1], rtol=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_a_point_of_several_runs_varies_as_the_mean_of_so_many_seeds(seeds):
    runs = np.random.default_rng(seeds).normal(size=(1, seeds, 2))
    found = draws(runs, np.zeros_like(runs), samples=40_000)[:, 0]
    wanted = runs[0].std(0, ddof=1) / np.sqrt(seeds)
    # Deviations and correlations of 40,000 draws have standard errors of about 0.004.
    np.testing.assert_allclose(found.std(0), wanted, rtol=0.02)
    assert np.abs(found.mean(0) - runs[0].mean(0)).max() < 0.02 * wanted.max()
    assert np.corrcoef(found.T)[0, 1] == pytest.approx(np.corrcoef(runs[0].T)[0, 1], abs=0.02)


def test_prompts_vary_a_mean_of_seeds_that_agree():
    found = draws(np.ones((1, 4, 1)), np.array([[[0.3], [0.4], [0.0], [1.2]]]), samples=40_000)
    # The root of the summed squares is 1.3, over four runs; its relative standard error is 0.0035.
    assert found.std() == pytest.approx(1.3 / 4, rel=0.02)


def test_seeds_move_all_points_together_also_where_a_run_is_missing():
    shared = np.array([0.0, 1.0, 5.0])[None, :, None]
    runs = np.concatenate([shared, shared + 2.0, shared])
    apart = draws(runs, np.zeros_like(runs))
    np.testing.assert_allclose(apart[:, 1] - apart[:, 0], 2.0, atol=1e-12)
    runs[2, 1] = np.nan
    found = draws(runs, np.zeros_like(runs))
    # The mean of the two runs there are; that of 2,000 draws of deviation 2.5 has a standard error of 0.056.
    assert found[:, 2].mean() == pytest.approx(2.5, abs=0.15)
    assert np.isfinite(found).all()


def test_estimates_of_seeds_are_pooled_by_their_spread_and_one_stays_as_it_is():
    one = Estimate(0.2, 0.1, 0.5, 50, "wilson")
    assert pooled([one]) is one
    values = [0.1, 0.5, 0.2, 0.4, 0.9, 0.3]
    found = pooled([Estimate(value, value, value, 9, "wilson") for value in values])
    assert (found.value, found.n) == (pytest.approx(0.4), 6)
    # Two standard errors to either side, within a fifth: weighted means of six values are not quite normal.
    assert found.high - found.low == pytest.approx(3.92 * np.std(values, ddof=1) / np.sqrt(6), rel=0.2)
    agreed = pooled([Estimate(0.5, 0.4, 0.6, 100, "wilson")] * 4)
    # The bounds of 2,000 draws err by a few per cent of their width.
    assert (agreed.low, agreed.high) == pytest.approx((0.45, 0.55), abs=0.005)


def test_draws_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match="1 of 2 points have no complete run"):
        draws([[[1.0]], [[np.nan]]], [[[0.1]], [[0.1]]])
    with pytest.raises(ValueError, match="both"):
        draws([[[1.0]]], [[0.1]])


def test_the_surer_a_point_leads_the_likelier_it_is_on_the_front():
    runs = np.array([[[0.0, 0.0]], [[1.0, 1.0]], [[0.95, 0.95]], [[0.5, 0.5]]])
    likely = front_probability(draws(runs, np.full_like(runs, 0.05)))
    assert likely[1] > likely[2] > 0.05
    assert likely[0] == likely[3] == 0.0
    assert likely[1] > 0.7


def test_certain_points_have_a_certain_volume_and_the_reference_moves_with_its_draws():
    points = np.array([[0.0, 0.0], *U19])
    still = gained(points, np.repeat(points[None], 10, axis=0), 7)
    assert (still.low, still.value, still.high, still.n) == pytest.approx((0.43, 0.43, 0.43, 7))
    # All points shift together, the reference among them: nothing is gained or lost.
    shifts = np.linspace(-1, 1, 11)[:, None, None]
    moved = gained(points, points + shifts, 7)
    assert (moved.low, moved.high) == pytest.approx((0.43, 0.43))


@pytest.mark.parametrize(
    "points, error",
    [
        ([[0.0, 0.0], *([[0.5, 0.5]] * 6)], 0.03),
        ([[0.0, 0.0], [0.02, 0.01], [0.01, 0.02]], 0.03),
        ([[0.0, 0.0], [1.0, 0.3], [0.8, 0.8], [0.3, 1.0]], 0.03),
    ],
    ids=["equal points", "at the reference", "a front"],
)
def test_the_interval_covers_the_true_volume(points, error):
    """Percentiles alone cover half of the time where points are equal, mirror images where they touch the reference."""
    rng, true, hits = np.random.default_rng(1), np.array(points), 0
    volume = hypervolume(true, true[0])
    for trial in range(100):
        seen = true + error * rng.standard_normal(true.shape)
        found = gained(seen, draws(seen[:, None], np.full((*true.shape[:1], 1, 2), error), 300, trial), 100)
        hits += found.low <= volume <= found.high
    # 95 % of 100 trials, less three standard deviations of that count.
    assert hits >= 88

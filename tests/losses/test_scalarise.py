"""One advantage from several rewards: numbers worked out by hand, and each mode against slow loops in float64."""

import itertools
import math
import random
import statistics

import pytest
import torch

from holdfast.losses.scalarise import (
    MODES,
    agreement,
    combined,
    conditioned,
    effective_weights,
    min_norm_weights,
    moments,
    rescaled,
    standardised,
)

NAN = math.nan
HALVES = (0.5, 0.5)
DENSE = [[1, 0.9], [0, 0.8], [1, 0.1], [0, 0.2]]
NARROW = [[1, 0.52], [0, 0.50], [1, 0.48], [0, 0.54]]


def t(values):
    return torch.tensor(values, dtype=torch.float64)


def table(*groups):
    return t(groups)


def advantage(mode, rewards, weights, floors=None, eps=0.0):
    """(P, G) what `mode` makes of rewards (P, G, K)."""
    groups = moments(rewards)
    floors = torch.zeros(len(weights)) if floors is None else t(floors)
    return combined(groups, MODES[mode](groups, t(weights), floors.double(), eps))


def near(actual, expected, tolerance=1e-6):  # six digits are given
    assert actual.flatten().tolist() == pytest.approx(list(expected), abs=tolerance)


def one_objective(*values):
    return table([[value] for value in values])


def test_one_objective_by_hand():
    rewards = one_objective(1, 0, 0.5, 0.5)
    groups = moments(rewards)
    near(groups.mean, [0.5])
    near(groups.sd, [0.408248])
    near(advantage("sum_then_normalise", rewards, [1]), [1.224745, -1.224745, 0, 0])
    near(advantage("sum_then_normalise", rewards, [1], eps=1e-4), [1.224445, -1.224445, 0, 0])
    near(advantage("leave_one_out", rewards, [1]), [0.666667, -0.666667, 0, 0])
    near(advantage("max_rl", rewards, [1]), [1, -1, 0, 0])
    near(advantage("center", rewards, [1]), [0.5, -0.5, 0, 0])


def test_two_dense_objectives_by_hand():
    rewards = table(DENSE)
    groups = moments(rewards)
    near(groups.sd, [0.577350, 0.408248])
    near(standardised(groups, t([0, 0]), 0.0)[..., 1], [0.979796, 0.734847, -0.979796, -0.734847])
    near(advantage("sum_then_normalise", rewards, HALVES), [1.272792, -0.282843, 0.141421, -1.131371])
    near(advantage("variance_weighted", rewards, HALVES), [0.913151, -0.202922, 0.101461, -0.811690])
    apart = [0.922911, -0.065589, -0.056885, -0.800436]
    near(advantage("normalise_then_sum", rewards, HALVES), apart)
    coefficients = MODES["normalise_then_sum"](groups, t(HALVES), t([0, 0]), 0.0)
    same_scale = rescaled(coefficients, combined(groups, coefficients).flatten(), 0.0, 0.0)
    near(combined(groups, same_scale), [1.305193, -0.092757, -0.080448, -1.131988])
    with_eps = rescaled(coefficients, combined(groups, coefficients).flatten(), 0.0, 1e-4)
    near(combined(groups, with_eps), [1.305008, -0.092744, -0.080437, -1.131828])
    summed = MODES["sum_then_normalise"](groups, t(HALVES), t([0, 0]), 0.0)
    near(effective_weights(groups, summed), [0.816497, 0.577350])


def test_an_objective_that_hardly_varies_by_hand():
    rewards = table(NARROW)
    groups = moments(rewards)
    near(advantage("sum_then_normalise", rewards, HALVES), [0.900623, -0.900623, 0.829986, -0.829986])
    near(advantage("normalise_then_sum", rewards, HALVES), [0.626662, -0.626662, -0.147935, 0.147935])
    near(advantage("variance_weighted", rewards, HALVES), [0.845533, -0.845533, 0.779216, -0.779216])
    summed = MODES["sum_then_normalise"](groups, t(HALVES), t([0, 0]), 0.0)
    near(effective_weights(groups, summed), [1.01956, 0.04560], 5e-6)  # five digits are given
    near(standardised(groups, t([0.05, 0.05]), 0.0)[..., 1], [0.2, -0.2, -0.6, 0.6])
    floored = advantage("normalise_then_sum", rewards, HALVES, [0.05, 0.05])
    near(floored, [0.533013, -0.533013, 0.133013, -0.133013])
    alone = standardised(groups, t([0, 0]), 0.0)
    near(agreement(alone), [1, 1, 0.145898, 0.145898])


def test_advantages_agree_when_they_are_all_zero_or_of_one_sign():
    near(agreement(t([[0, 0], [2, 0], [-1, -2], [1, -3]])), [1, 1, 1, 0.5])


def test_a_missing_reward_is_left_out_by_hand():
    rewards = table([[1, NAN], *DENSE[1:]])
    groups = moments(rewards)
    near(groups.sd, [0.577350, 0.378594])
    near(standardised(groups, t([0, 0]), 0.0)[..., 1], [0, 1.144586, -0.704361, -0.440225])
    near(advantage("normalise_then_sum", rewards, HALVES), [0.433013, 0.139280, 0.080832, -0.653125])


def test_opposed_objectives_cancel_but_are_not_dead():
    rewards = table([[1, 0], [0, 1], [1, 0], [0, 1]])
    near(advantage("sum_then_normalise", rewards, HALVES), [0, 0, 0, 0])
    near(advantage("sum_then_normalise", rewards, [1, 2]), [-0.866025, 0.866025, -0.866025, 0.866025])
    near(standardised(moments(rewards), t([0, 0]), 1e-4)[..., 0], [0.865875, -0.865875] * 2)
    assert (moments(rewards).sd > 0.5).all()


def test_a_weighted_sum_collapses_what_decoupling_tells_apart():
    single, double = [[0, 0], [0, 1]], [[0, 0], [1, 1]]
    both = table(single, double)
    near(advantage("sum_then_normalise", both, [1, 1]), [-0.707107, 0.707107] * 2)
    near(advantage("normalise_then_sum", both, [1, 1]), [-0.707107, 0.707107, -1.414214, 1.414214])


def test_a_conditioned_reward_by_hand():
    never = -math.inf
    needs = t([[never, never], [1, never]])
    counted = conditioned(table([[1, 0.9], [0, 0.8], [1, 0.1], [0, 0.2]]), needs)
    near(counted[..., 1], [0.9, 0, 0.1, 0])
    near(advantage("sum_then_normalise", counted, [1, 1]), [1.242487, -0.810318, 0.378148, -0.810318])


def test_failing_a_condition_never_pays_more_than_the_groups_lowest():
    needs = t([[-math.inf, -math.inf], [1, -math.inf]])
    negative = [[1, -3.0], [0, -1.0], [NAN, -2.0], [0, NAN]]
    counted = conditioned(table(negative, [[0, 5.0], [1, 4.0], [1, NAN], [2, 3.0]]), needs)[..., 1]
    assert str(counted.tolist()) == "[[-3.0, -3.0, nan, nan], [0.0, 4.0, nan, 3.0]]"


@pytest.mark.parametrize(
    "floor, eps, size",
    [
        (0, 1e-4, 1.0911),
        (0, 1e-6, 1.2232),
        (0, 0.01, 0.0925),
        (0, 0.05, 0.0197),
        (0.01, 1e-4, 0.0990),
        (0.05, 1e-4, 0.0200),
    ],
)
def test_a_floor_keeps_noise_small(floor, eps, size):
    noise = one_objective(0.731, 0.732, 0.730, 0.731)
    near(standardised(moments(noise), t([floor]), eps), [0, size, -size, 0], 1e-4)  # four digits are given


@pytest.mark.parametrize("floor, expected", [(0, [-0.359, 1.078, -1.078, 0.359]), (0.05, [-0.01, 0.03, -0.03, 0.01])])
def test_a_floor_keeps_equally_safe_answers_equal(floor, expected):
    costs = one_objective(0.010, 0.012, 0.009, 0.011)
    near(standardised(moments(costs), t([floor]), 1e-4), expected, 1e-3)  # three digits are given


@pytest.mark.parametrize("dead, factor", [(0.5, 1.414), (0.9, 3.162)])
def test_dead_groups_among_the_batch_make_the_others_larger(dead, factor):
    living = torch.randn(4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    living -= living.mean()
    zeros = torch.zeros(round(len(living) * dead / (1 - dead)), dtype=torch.float64)
    one = t([1.0])
    right, wrong = rescaled(one, living, 0.0, 0.0), rescaled(one, torch.cat([living, zeros]), 0.0, 0.0)
    assert float(wrong / right) == pytest.approx(factor, abs=1e-3)  # three digits are given
    assert float(living.std() * right) == pytest.approx(1)


def test_one_scale_has_a_floor_and_is_not_made_of_one_value():
    assert float(rescaled(t([1.0]), t([-0.01, 0.01]), 0.05, 0.0)) == pytest.approx(20)
    assert float(rescaled(t([1.0]), t([3.0]), 0.5, 0.0)) == 2
    assert float(rescaled(t([1.0]), t([0.0, 0.0]), 0.0, 0.0)) == 0


def slow(mode, rows, weights, floors, eps):
    """The advantages of one group, objective by objective and row by row, in plain Python numbers."""
    columns = [[row[k] for row in rows if not math.isnan(row[k])] for k in range(len(weights))]
    compared = [k for k, column in enumerate(columns) if len(column) > 1]
    mean = {k: statistics.fmean(columns[k]) for k in compared}
    sd = {k: statistics.stdev(columns[k]) for k in compared}
    known = [[k for k in compared if not math.isnan(row[k])] for row in rows]
    summed = [sum(weights[k] * (row[k] - mean[k]) for k in ks) for row, ks in zip(rows, known)]
    floor = sum(weights[k] * floors[k] for k in compared)
    if mode in ("center", "batch"):
        return summed
    if mode == "leave_one_out":
        others = {k: (sum(columns[k]), len(columns[k]) - 1) for k in compared}
        return [
            sum(weights[k] * (row[k] - (others[k][0] - row[k]) / others[k][1]) for k in ks)
            for row, ks in zip(rows, known)
        ]
    if mode in ("normalise_then_sum", "mgda"):
        return [
            sum(weights[k] * (row[k] - mean[k]) / (max(sd[k], floors[k]) + eps) for k in ks)
            for row, ks in zip(rows, known)
        ]
    if mode == "sum_then_normalise":
        counting = [value for value, ks in zip(summed, known) if any(weights[k] > 0 for k in ks)]
        divisor = max(statistics.stdev(counting) if len(counting) > 1 else 0, floor)
    elif mode == "variance_weighted":
        divisor = sum(weights[k] * max(sd[k], floors[k]) for k in compared)
    else:
        divisor = sum(weights[k] * mean[k] for k in compared)
    return [value / (divisor + eps) for value in summed]


def drawn(seed, prompts=7, answers=5, objectives=3, missing=0.35):
    """Rewards of different scales, some missing; one group without any, one with a lonely score, one constant."""
    luck = random.Random(seed)
    rows = [
        [[NAN if luck.random() < missing else 10**k * luck.random() for k in range(objectives)] for _ in range(answers)]
        for _ in range(prompts)
    ]
    rows[0] = [[NAN] * objectives for _ in range(answers)]
    rows[1] = [[0.3, *[NAN] * (objectives - 1)], *rows[0][1:]]
    rows[2] = [[0.1, *row[1:]] for row in rows[2]]
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("missing", [0.0, 0.35, 0.7])
def test_every_mode_equals_slow_loops_whatever_is_missing(mode, missing):
    for seed, weights, floors, eps in itertools.product(
        range(4), [(1, 1, 1), (0.2, 3, 0), (0, 0, 2)], [(0, 0, 0), (0.4, 0.05, 30)], [1e-4, 0.1]
    ):
        rows = drawn(seed, missing=missing)
        fast = advantage(mode, t(rows), weights, floors, eps)
        for group, found in zip(rows, fast.tolist()):
            assert found == pytest.approx(slow(mode, group, weights, floors, eps), abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("missing", [0.0, 0.35])
def test_each_group_sums_to_zero_alone_and_in_any_order(mode, missing):
    rewards, weights, floors = t(drawn(11, missing=missing)), (1, 0.5, 0.1), (0.05, 0.05, 0.05)
    found = advantage(mode, rewards, weights, floors, 1e-4)
    assert found.sum(-1).abs().max() < 1e-12
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(advantage(mode, rewards[:, order], weights, floors, 1e-4), found[:, order], atol=1e-12)
    apart = torch.cat([advantage(mode, group[None], weights, floors, 1e-4) for group in rewards])
    assert torch.equal(apart, found)


@pytest.mark.parametrize("mode", ["sum_then_normalise", "normalise_then_sum", "variance_weighted", "center"])
def test_a_constant_for_each_prompt_changes_nothing(mode):
    rewards = t(drawn(12))
    shift = 100 * torch.randn(7, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = (advantage(mode, one, (1, 1, 1), (0.1, 0.1, 0.1), 1e-4) for one in (rewards, rewards + shift))
    assert torch.allclose(before, after, atol=1e-10)


def test_scaling_all_rewards_together_or_each_by_itself():
    rewards, each = t(drawn(13)), t([2.0, 0.1, 7.0])

    def moved(mode, factor, floors=(0, 0, 0)):
        before, after = (advantage(mode, one, (1, 0.5, 2), floors) for one in (rewards, factor * rewards))
        return float((before - after).abs().max())

    assert moved("sum_then_normalise", 3.0) < 1e-12
    assert moved("variance_weighted", 3.0) < 1e-12
    assert moved("normalise_then_sum", each) < 1e-12
    assert moved("sum_then_normalise", each) > 0.1
    assert moved("normalise_then_sum", each, floors=(1, 1, 1)) > 0.1


@pytest.mark.parametrize("floors", [(0.0,), (0.4,)])
def test_of_one_objective_all_that_normalise_are_the_same(floors):
    rewards = t(drawn(14, objectives=1))
    one = [
        advantage(mode, rewards, [1], floors, 1e-4)
        for mode in ("sum_then_normalise", "normalise_then_sum", "variance_weighted", "mgda")
    ]
    assert all(torch.allclose(one[0], other, atol=1e-12) for other in one[1:])


def test_variance_weighted_is_never_larger_than_the_normalised_sum():
    rewards = t(drawn(15, missing=0))
    bounded, whole = (advantage(m, rewards, (1, 1, 1)).abs() for m in ("variance_weighted", "sum_then_normalise"))
    assert (bounded <= whole + 1e-12).all()
    assert (bounded < 0.99 * whole).any()


def test_the_typed_weights_are_those_that_are_heard_only_after_normalising_each():
    groups = moments(t(drawn(16, missing=0))[3:])
    weights, none = t([1, 2, 3]), t([0, 0, 0])
    apart = effective_weights(groups, MODES["normalise_then_sum"](groups, weights, none, 0.0))
    assert torch.allclose(apart, weights.expand(4, 3))
    summed = effective_weights(groups, MODES["sum_then_normalise"](groups, weights, none, 0.0))
    assert (summed[:, 0] < 0.1).all()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_compare_gives_nothing_and_no_rounding(mode):
    """A group of one, a group without scores, and equal scores that no binary fraction holds."""
    lonely, silent = table([[0.3, 0.7]]), table([[NAN, NAN], [NAN, NAN]])
    equal = torch.full((1, 7, 2), 1000.1)
    for rewards in (lonely, silent, equal):
        assert not advantage(mode, rewards, (1, 2)).any()
        assert not moments(rewards).sd.any()


def test_rewards_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"rewards \(2, 3\) must be prompts x answers x objectives"):
        moments(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="1 rewards are infinite"):
        moments(one_objective(1.0, math.inf))
    with pytest.raises(ValueError, match=r"mean reward of each group, and the lowest is -0\.5"):
        advantage("max_rl", one_objective(-1.0, 0.0), [1])


def test_two_gradients_by_hand():
    first, second = t([1, 0]), t([-0.5, 1])
    both = torch.stack([first, second])
    weights = min_norm_weights(both @ both.T)
    assert weights[0] == pytest.approx(0.538462, abs=1e-6)
    common = weights @ both
    near(common, [0.307692, 0.461538])
    near(both @ common, [0.307692, 0.307692])
    near(min_norm_weights(t([[1, 2], [2, 9]])), [1, 0])  # the shorter one lies in the longer one's way


def nearest_to_zero(gram):
    """The least w' G w over the simplex: the best of the minima on all of its faces."""
    best = math.inf
    for size in range(1, len(gram) + 1):
        for face in itertools.combinations(range(len(gram)), size):
            inner = gram[list(face)][:, list(face)]
            system = torch.block_diag(inner, t([[0.0]]))
            system[:-1, -1] = system[-1, :-1] = 1
            free = (torch.linalg.pinv(system) @ t([0.0] * size + [1.0]))[:size]
            if (free >= -1e-9).all() and abs(float(free.sum()) - 1) < 1e-6:
                best = min(best, float(free @ inner @ free))
    return best


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 6])
def test_the_shortest_combination_is_that_of_the_best_face(count, dimensions):
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        gradients = torch.randn(count, dimensions, generator=generator, dtype=torch.float64) + seed % 3
        gradients *= 10.0 ** (seed % 5 - 2)
        if count > 2 and seed % 4 == 0:
            gradients[2] = gradients[0]
        gram = gradients @ gradients.T
        weights = min_norm_weights(gram)
        assert (weights >= 0).all()
        assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
        assert float(weights @ gram @ weights) == pytest.approx(nearest_to_zero(gram), abs=1e-9 * float(gram.max()))


def test_an_objective_without_a_gradient_says_nothing():
    near(min_norm_weights(t([[0, 0, 0], [0, 1, 0], [0, 0, 3]])), [0, 0.75, 0.25])
    near(min_norm_weights(torch.zeros(4, 4)), [0.25] * 4)


def test_inner_products_are_a_finite_square():
    with pytest.raises(ValueError, match=r"finite \(K, K\) table, got \(2, 3\)"):
        min_norm_weights(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"finite \(K, K\) table"):
        min_norm_weights(t([[1, NAN], [NAN, 1]]))

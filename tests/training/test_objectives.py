"""Several objectives under their settings: what is learned from, what counts for what, and what the log says."""

import json
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from holdfast.config import build
from holdfast.engine.distributed import Processes
from holdfast.errors import RunError, UserError
from holdfast.losses import scalarise
from holdfast.rollout.experience import Experience
from holdfast.training.objectives import ObjectiveSettings, Scalariser, ScalariserSettings, check_objectives

NAN = math.nan
MODES = list(scalarise.MODES)
DENSE = [[1, 0.9], [0, 0.8], [1, 0.1], [0, 0.2]]
NARROW = [[1, 0.52], [0, 0.50], [1, 0.48], [0, 0.54]]
OPPOSED = [[1, 0], [0, 1], [1, 0], [0, 1]]
DULL = [[0.3, 0.7]] * 4
EXACT = {"std_floor": 0.0, "eps": 1e-12}


def t(values):
    return torch.tensor(values, dtype=torch.float64)


def scalariser(objectives=None, processes=None, **settings):
    """Objectives `a`, `b`, ... with the given settings, two of weight 1 when none are given."""
    given = [{}, {}] if objectives is None else objectives
    named = {name: ObjectiveSettings(**one) for name, one in zip("abcdef", given)}
    return Scalariser(named, ScalariserSettings(**settings), processes)


def near(actual, expected, tolerance=1e-6):  # six digits are given
    assert actual.tolist() == pytest.approx(list(expected), abs=tolerance)


def drawn(seed, prompts=6, answers=4, objectives=2, missing=0.3):
    generator = torch.Generator().manual_seed(seed)
    size = (prompts * answers, objectives)
    rewards = torch.rand(size, generator=generator, dtype=torch.float64)
    return rewards.masked_fill(torch.rand(size, generator=generator) < missing, NAN)


def experience(**scores):
    """As much of an experience as has scores."""
    made = SimpleNamespace(scores={name: torch.tensor(values) for name, values in scores.items()})
    made.score = lambda name: Experience.score(made, name)
    return made


def test_the_default_is_grpo_on_the_weighted_sum():
    rewards = t([*DENSE, *NARROW])
    found = scalariser([{"weight": 0.5}, {"weight": 0.5}])(rewards, 4)
    expected = []
    for group in (DENSE, NARROW):
        summed = [sum(row) / 2 for row in group]
        mean, sd = statistics.fmean(summed), statistics.stdev(summed)
        expected += [(value - mean) / (max(sd, 0.05) + 1e-4) for value in summed]
    near(found.values, expected, 1e-12)
    assert found.keep.all()
    assert found.values.dtype == rewards.dtype
    assert scalariser()(rewards.float(), 4).values.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_formula_of_its_name(mode):
    rewards = drawn(1)
    one = scalariser([{"weight": 2.0}, {"weight": 0.5, "std_floor": 0.3}], mode=mode, clip=None)
    groups = scalarise.moments(rewards.view(6, 4, 2))
    coefficients = scalarise.MODES[mode](groups, t([2.0, 0.5]), t([0.05, 0.3]), 1e-4)
    expected = scalarise.combined(groups, coefficients).flatten()
    found = one(rewards, 4)
    if mode == "batch":
        expected = expected / (max(float(expected[found.keep].std()), 2 * 0.05 + 0.5 * 0.3) + 1e-4)
    assert torch.allclose(found.values, expected, atol=1e-12)
    assert torch.equal(found.keep, (~rewards.isnan() & groups.compared.view(-1, 2)).any(-1))


def test_decoupled_with_the_batch_step_by_hand():
    found = scalariser([{"weight": 0.5}] * 2, mode="normalise_then_sum", batch_normalise=True, **EXACT)
    near(found(t(DENSE), 4).values, [1.305193, -0.092757, -0.080448, -1.131988])
    near(found(t(NARROW), 4).values, [1.191982, -1.191982, -0.281389, 0.281389])


def test_the_spread_over_the_batch_has_a_floor_and_the_batch_step_has_none():
    noise = t([[0.500], [0.501]])
    batch = scalariser([{"weight": 2.0}], mode="batch", eps=1e-12)
    near(batch(noise, 2).values, [-0.001 / 0.1, 0.001 / 0.1])
    step = scalariser([{}], mode="normalise_then_sum", batch_normalise=True, eps=1e-12)
    near(step(noise, 2).values, [-0.707107, 0.707107])


@pytest.mark.parametrize("mode", ["batch", "normalise_then_sum"])
def test_dead_groups_do_not_enter_the_batch(mode):
    one = scalariser(mode=mode, batch_normalise=True)
    alone = one(t(DENSE), 4)
    among = one(t([*DENSE, *DULL, *DULL, *DULL]), 4)
    assert torch.equal(among.values[:4], alone.values)
    assert among.numbers["dead"] == 0.75
    # Groups that live for another reason are learned from, but have no reward whose scale would count.
    live = one(t([*DENSE, *DULL, *DULL, *DULL]), 4, live=torch.ones(4, dtype=torch.bool))
    assert torch.equal(live.values[:4], alone.values)


def test_a_group_is_dead_when_no_objective_varies_and_not_when_their_sum_does_not():
    rewards = t([*OPPOSED, *DULL, *DENSE])
    found = scalariser()(rewards, 4)
    assert found.keep.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert not found.values[:8].any()
    assert found.numbers["dead"] == pytest.approx(1 / 3)
    near(scalariser([{}, {"weight": 2.0}], **EXACT)(rewards, 4).values[:4], [-0.866025, 0.866025] * 2)
    # An objective that is only watched keeps nothing alive.
    watched = scalariser([{}, {"weight": 0}])(t([[0.3, 0.1], [0.3, 0.9]]), 2)
    assert not watched.keep.any()
    assert watched.numbers["dead/b"] == 0
    live = scalariser()(rewards, 4, live=torch.tensor([False, True, False]))
    assert live.keep.all()


def test_how_little_may_vary_is_a_setting():
    rewards = t([[0.5], [0.5001]])
    assert scalariser([{}])(rewards, 2).keep.all()
    assert not scalariser([{}], dead_below=1e-3)(rewards, 2).keep.any()
    assert scalariser([{}], dead_below=0)(t([[0.5], [0.5]]), 2).keep.all()


@pytest.mark.parametrize("mode", MODES)
def test_what_nobody_can_compare_is_not_learned_from(mode):
    """No score at all; a lonely score; a score under an objective of weight zero."""
    rewards = t([[1, 0.2, NAN], [0, 0.3, NAN], [NAN, NAN, 1], [0.5, NAN, 2]] + [[NAN, NAN, NAN]] * 3 + [[3, NAN, 1]])
    one = scalariser([{}, {}, {"weight": 0}], mode=mode, batch_normalise=True)
    found = one(rewards, 4, extra=torch.arange(8.0))
    assert found.keep.tolist() == [True, True, False, True] + [False] * 4
    assert found.values.isfinite().all()
    assert not found.values[~found.keep].any()
    assert all(math.isfinite(value) for value in found.numbers.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_score_neither_pays_nor_punishes(mode):
    """Two answers that the first objective holds for equal stay equal when one of them has no other score."""
    rewards = t([[1, 0.5], [1, NAN], [0, 0.9], [0, 0.1]])
    values = scalariser(mode=mode)(rewards, 4).values
    assert float(values[0]) == pytest.approx(float(values[1]), abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_however_the_prompts_are_shared_out_the_advantages_are_the_same(mode, parts):
    class One(Processes):
        """One of several processes: it sees what all of them gathered."""

        def __init__(self, everyone=None):
            super().__init__()
            self.everyone = everyone

        def gather(self, items):
            self.own = list(items)
            return self.own if self.everyone is None else self.everyone

        def add_up(self, counts):
            return Processes().add_up(counts)  # of numbers for the log, which are another matter

    rewards, alone = drawn(2), One()
    settings = {"mode": mode, "batch_normalise": True}
    whole = scalariser(processes=alone, **settings)(rewards, 4)
    seen, values, keep = [], [], []
    for share in rewards.chunk(parts):
        process = One(alone.own)
        found = scalariser(processes=process, **settings)(share, 4)
        seen += process.own
        values.append(found.values)
        keep.append(found.keep)
    assert torch.equal(torch.cat(values), whole.values)
    assert torch.equal(torch.cat(keep), whole.keep)
    assert seen == pytest.approx(alone.own)


@pytest.mark.parametrize("mode", MODES)
def test_the_rows_of_a_group_may_stand_in_any_order(mode):
    rewards, order = drawn(3), torch.tensor([2, 0, 3, 1])
    extra = torch.rand(24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    one = scalariser(mode=mode, conflict="signs")
    before = one(rewards, 4, extra)
    after = one(rewards.view(6, 4, 2)[:, order].reshape(24, 2), 4, extra.view(6, 4)[:, order].flatten())
    assert torch.allclose(after.values, before.values.view(6, 4)[:, order].flatten(), atol=1e-12)
    assert torch.equal(after.keep, before.keep.view(6, 4)[:, order].flatten())


@pytest.mark.parametrize("mode", MODES)
def test_advantages_of_a_group_sum_to_zero_before_they_are_clipped(mode):
    one = scalariser(mode=mode, clip=None)
    extra = torch.rand(24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    sums = one(drawn(6), 4, extra).values.view(6, 4).sum(-1)
    assert sums.abs().max() < 1e-12


def test_of_one_objective_all_modes_that_normalise_are_grpo():
    rewards, extra = drawn(7, objectives=1), torch.rand(24, dtype=torch.float64)
    names = ("sum_then_normalise", "normalise_then_sum", "variance_weighted", "mgda")
    same = [scalariser([{}], mode=mode)(rewards, 4, extra).values for mode in names]
    assert all(torch.allclose(same[0], other, atol=1e-12) for other in same[1:])


def test_advantages_are_clipped_after_everything():
    rewards = t([[0.0]] * 31 + [[1.0]])
    free = scalariser([{}], clip=None)(rewards, 32).values
    assert free[-1] > 5
    clipped = scalariser([{}])(rewards, 32).values
    assert clipped[-1] == 5
    assert torch.equal(clipped[:-1], free[:-1])
    small = scalariser([{}], clip=0.1)(t([[0.0], [1.0]]), 2)
    assert small.values.tolist() == [-0.1, 0.1]
    assert small.numbers["advantage_abs"] == pytest.approx(0.1)


@pytest.mark.parametrize("mode", ["sum_then_normalise", "center", "batch", "leave_one_out"])
def test_a_penalty_is_added_to_the_weighted_sum(mode):
    rewards, extra = drawn(8, missing=0), drawn(9, objectives=1, missing=0)[:, 0] - 0.5
    objectives = [{"weight": 0.5}, {"weight": 3.0}]
    found = scalariser(objectives, mode=mode, std_floor=0)(rewards, 4, extra).values
    summed = (rewards @ t([0.5, 3.0]) + extra)[:, None]
    expected = scalariser([{}], mode=mode, std_floor=0)(summed, 4).values
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["normalise_then_sum", "variance_weighted"])
def test_a_penalty_rides_on_the_first_objective_of_weight_where_each_is_normalised(mode):
    rewards, extra = drawn(10, objectives=3), drawn(11, objectives=1, missing=0)[:, 0]
    objectives = [{"weight": 0}, {"weight": 0.5}, {"weight": 3.0}]
    one = scalariser(objectives, mode=mode)
    carried = rewards.clone()
    carried[:, 1] += extra / 0.5
    assert torch.allclose(one(rewards, 4, extra).values, one(carried, 4).values, atol=1e-12)


def test_under_max_rl_a_penalty_moves_answers_but_not_what_they_are_divided_by():
    rewards, extra = t([[1.0], [0.0], [0.0], [0.0]]), t([-0.4, 0.0, 0.0, 0.8])
    found = scalariser([{}], mode="max_rl", eps=1e-12)(rewards, 4, extra).values
    near(found, [(0.75 - 0.5) / 0.25, (-0.25 - 0.1) / 0.25, (-0.25 - 0.1) / 0.25, (-0.25 + 0.7) / 0.25])
    # Nothing but a penalty: the mean reward is zero, and the penalty is not divided by what is added to it.
    assert not scalariser([{}], mode="max_rl")(t([[0]] * 4), 4, extra, live=torch.tensor([True])).values.any()


def test_a_penalty_does_not_keep_a_group_alive_and_is_learned_where_it_lives():
    rewards, extra = t(DULL), t([0.1, 0.0, 0.0, -0.1])
    assert not scalariser()(rewards, 4, extra).values.any()
    found = scalariser(eps=1e-12)(rewards, 4, extra, live=torch.tensor([True]))
    near(found.values, [1, 0, 0, -1])  # over the floor of the sum, 0.05 + 0.05


def test_a_penalty_that_is_no_number_stops_the_run():
    with pytest.raises(RunError, match="1 answers have a penalty that is not finite"):
        scalariser()(t(DENSE), 4, extra=t([0, 0, NAN, 0]))


def test_weights_of_the_step_replace_the_typed_ones():
    rewards = drawn(12)
    typed = scalariser([{"weight": 0.3}, {"weight": 0.7}], mode="mgda")
    given = scalariser(mode="mgda")(rewards, 4, weights=torch.tensor([0.3, 0.7]))
    assert torch.allclose(given.values, typed(rewards, 4).values, atol=1e-6)  # the weights came in float32
    assert given.numbers["effective_weight/a"] == pytest.approx(typed(rewards, 4).numbers["effective_weight/a"])


def test_under_mgda_no_weight_of_the_step_takes_the_penalty_away():
    rewards, extra = drawn(12), drawn(13, objectives=1, missing=0)[:, 0]
    one = scalariser(mode="mgda")
    for weights in (t([0.0, 1.0]), t([1.0, 0.0]), t([0.4, 0.6])):
        found = one(rewards, 4, extra, weights=weights).values
        assert torch.allclose(found, one(rewards + extra[:, None], 4, weights=weights).values, atol=1e-12)
        assert not torch.allclose(found, one(rewards, 4, weights=weights).values, atol=1e-3)


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({"conflict": "none"}, [1, 1, 1, 1]),
        ({"conflict": "signs"}, [1, 1, 0, 0]),
        ({"conflict": "threshold"}, [1, 1, 0, 0]),
        ({"conflict": "threshold", "conflict_threshold": 0.14}, [1, 1, 1, 1]),
        ({"conflict": "threshold", "conflict_threshold": 0.15}, [1, 1, 0, 0]),
    ],
)
def test_the_conflict_filter_drops_rows_and_leaves_the_others_as_they_are(settings, kept):
    free = scalariser(mode="normalise_then_sum", **EXACT)(t(NARROW), 4)
    found = scalariser(mode="normalise_then_sum", **EXACT, **settings)(t(NARROW), 4)
    assert found.keep.tolist() == [bool(one) for one in kept]
    assert torch.equal(found.values, free.values * t(kept))
    assert free.numbers["conflicts"] == 0.5
    assert found.numbers["conflicts"] == (0.0 if settings.get("conflict_threshold") == 0.14 else 0.5)


def test_an_objective_without_weight_conflicts_with_nobody():
    found = scalariser([{}, {"weight": 0}], conflict="signs")(t(OPPOSED), 4)
    assert found.keep.all()
    assert found.numbers["conflicts"] == 0
    opposed = scalariser()(t([*OPPOSED, *[[NAN, NAN]] * 4]), 4)
    assert opposed.numbers["conflicts"] == 1  # of the answers that were scored


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_no_conflict(sign):
    """The middle of three equal steps is its group's mean but for rounding, and takes no side."""
    rewards = t([[0.1, -sign], [0.2, 2 * sign], [0.3, sign]])
    assert 0 < scalariser().per_objective(rewards, 3)[1, 0].abs() < 1e-12
    assert scalariser(conflict="signs")(rewards, 3).keep[1]


def test_a_condition_by_hand():
    found = scalariser([{}, {"when": {"a": 1.0}}], **EXACT)(t(DENSE), 4)
    near(found.values, [1.242487, -0.810318, 0.378148, -0.810318])
    assert found.numbers["objective/b"] == pytest.approx(0.5)  # as it was scored


def test_thresholds_are_on_the_scale_of_the_scores():
    """b counts only where the length a is at most 0.7: scores in single precision, 0.7 among them."""
    one = scalariser([{"direction": "lower", "weight": 0}, {"when": {"a": 0.7}}])
    rewards = one.rewards(experience(a=[0.5, 0.7, 0.9, 0.8], b=[1.0, 2.0, 3.0, 4.0]))
    assert rewards[:, 0].tolist() == pytest.approx([-0.5, -0.7, -0.9, -0.8])
    alone = one.per_objective(rewards, 4)[:, 1]
    near(alone, [0.260949, 1.304746, -0.782848, -0.782848], 1e-3)
    up = scalariser([{"weight": 0}, {"when": {"a": 0.9}}])
    counted = up.per_objective(up.rewards(experience(a=[0.9, 0.0], b=[1.0, 1.0])), 2)[:, 1]
    assert counted[0] > 0.5


def test_in_a_lexicographic_order_the_next_counts_among_those_that_have_enough():
    one = scalariser([{"enough": 1.0}, {"enough": 0.5}, {}], lexicographic=True, mode="center", clip=None)
    rewards = t([[2, 0.9, 9], [1, 0.5, 5], [1, 0.4, 7], [0.5, 0.9, 8], [0, 0.1, 9]])
    counted = t([[1, 0.5, 9], [1, 0.5, 5], [1, 0.4, 0], [0.5, 0, 0], [0, 0, 0]])
    expected = (counted - counted.mean(0)).sum(-1)
    near(one(rewards, 5).values, expected.tolist(), 1e-12)


def test_in_a_lexicographic_order_less_may_be_better():
    one = scalariser([{"enough": 3.0, "direction": "lower"}, {}], lexicographic=True, mode="center", clip=None)
    rewards = one.rewards(experience(a=[1.0, 3.0, 5.0], b=[2.0, 4.0, 8.0]))
    counted = t([[-3, 2], [-3, 4], [-5, 0]])
    near(one(rewards, 3).values, (counted - counted.mean(0)).sum(-1).tolist())


def test_a_condition_may_ask_for_more_than_enough():
    objectives = [{"enough": 0.5}, {"when": {"a": 0.8}}]
    one = scalariser(objectives, lexicographic=True)
    counted = one.per_objective(t([[0.9, 1.0], [0.6, 1.0]]), 2)
    assert counted[0, 1] > 0 > counted[1, 1]
    assert not counted[:, 0].any()


def test_rewards_are_named_columns_turned_so_that_more_is_better():
    one = scalariser([{"score": "help"}, {"direction": "lower"}])
    found = one.rewards(experience(b=[1.0, NAN], help=[3.0, 4.0], a=[9.0, 9.0]))
    assert str(found.tolist()) == "[[3.0, -1.0], [4.0, nan]]"
    with pytest.raises(UserError, match="a maximises the score 'help', and the scorer gives a, b; correct the name"):
        one.rewards(experience(a=[1.0], b=[1.0]))
    with pytest.raises(RunError, match="objective b: 1 scores are infinite"):
        one.rewards(experience(help=[1.0], b=[math.inf]))


def test_the_total_is_the_weighted_sum_of_what_was_scored():
    one = scalariser([{"weight": 0.5}, {"weight": 2.0, "direction": "lower"}, {"weight": 0}])
    scores = {
        "a": torch.tensor([4.0, NAN, NAN]),
        "b": torch.tensor([1.0, 3.0, NAN]),
        "c": torch.tensor([7.0, 7.0, 7.0]),
    }
    assert str(one.total(scores).tolist()) == "[0.0, -6.0, nan]"
    with pytest.raises(UserError, match="b maximises the score 'b', and the scorer gives a, c"):
        one.total({"a": scores["a"], "c": scores["c"]})


def test_each_objective_alone_is_standardised():
    found = scalariser([{}, {"std_floor": 0.05}], **EXACT).per_objective(t(NARROW), 4)
    near(found[:, 0], [0.866025, -0.866025] * 2)
    near(found[:, 1], [0.2, -0.2, -0.6, 0.6])


def test_the_numbers_say_what_was_paid_for():
    one = scalariser([{}, {"direction": "lower"}, {"weight": 0}], **EXACT)
    scores = [[1, -0.9, NAN], [0, -0.8, NAN], [1, -0.1, NAN], [0, NAN, NAN]]
    numbers = one(t([*scores, *[[0.3, -0.7, NAN]] * 4]), 4).numbers
    spread = statistics.stdev([0.9, 0.8, 0.1])
    summed = [value - 0.5 + (0.6 - cost if cost else 0) for value, cost in [(1, 0.9), (0, 0.8), (1, 0.1), (0, 0)]]
    advantages = [value / statistics.stdev(summed) for value in summed]
    expected = {
        "objective/a": (2 + 4 * 0.3) / 8,
        "objective/b": (0.9 + 0.8 + 0.1 + 4 * 0.7) / 7,
        "objective_sd/a": 0.5773503 / 2,
        "objective_sd/b": spread / 2,
        "effective_weight/a": 0.5773503 / statistics.stdev(summed),
        "effective_weight/b": spread / statistics.stdev(summed),
        "effective_weight/c": 0.0,
        "dead/a": 0.5,
        "dead/b": 0.5,
        "dead/c": 1.0,
        "unscored/a": 0.0,
        "unscored/b": 1 / 8,
        "unscored/c": 1.0,
        "dead": 0.5,
        "conflicts": 1 / 8,
        "advantage_abs": statistics.fmean(map(abs, advantages)),
    }
    assert numbers == pytest.approx(expected, abs=1e-6)


def test_the_state_is_that_of_the_same_objectives():
    one = scalariser([{"weight": 0.3}, {}])
    state = json.loads(json.dumps(one.state_dict()))
    scalariser([{"weight": 0.3}, {}]).load_state_dict(state)
    for other in (scalariser([{"weight": 0.3}]), scalariser([{"weight": 0.4}, {}])):
        with pytest.raises(UserError, match=r"made with the objectives and weights \{'a': 0\.3, 'b': 1\.0\}"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    "objectives, settings, message",
    [
        ([], {}, "there is no objective; give at least one"),
        ([{"weight": 0}, {"weight": 0}], {}, r"all weights are zero \(a, b\)"),
        (
            [{"when": {"c": 0.5}}, {}],
            {},
            r"a counts when c reaches 0\.5, and there is no other objective c; .* are a, b",
        ),
        ([{"when": {"a": 0.5}}, {}], {}, "there is no other objective a"),
        ([{"enough": 1.0}, {}], {}, "enough is set for a but serves a lexicographic order"),
        ([{"enough": 1.0}, {}, {}], {"lexicographic": True}, "all objectives but the last; set b"),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(objectives, settings, message):
    with pytest.raises(UserError, match=message):
        scalariser(objectives, **settings)
    named = {name: ObjectiveSettings(**one) for name, one in zip("abc", objectives)}
    with pytest.raises(ValueError, match=message):
        check_objectives(named, ScalariserSettings(**settings))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="samples_per_prompt is 1; set it to 2 or more"):
        scalariser()(t(DENSE), 1)
    with pytest.raises(UserError, match=r"max_rl .* negative rewards of b \(-0\.5\); maximise"):
        scalariser([{}, {}, {"weight": 0}], mode="max_rl")(t([[1, 1, -1], [NAN, -0.5, 1]]), 2)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        ObjectiveSettings(weight=-1)
    with pytest.raises(UserError, match="mode"):
        build(ScalariserSettings, {"mode": "gdpo"})

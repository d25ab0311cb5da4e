"""Numbers about different people, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.router import Router
from holdfast.preference.adapt import adapt
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import MixtureHeads
from holdfast.preference.personalise import (
    Curve,
    Origin,
    adaptation_curve,
    cells,
    grouped,
    macro,
    reversal,
    routed,
    router_use,
    shuffled,
    worst,
)
from holdfast.stats.estimate import share


def test_every_pair_is_in_one_cell():
    fitted = [Origin("p", "ann", "brief"), Origin("q", "bob", "brief")]
    rows = [
        Origin("p", "bob", "brief"),
        Origin("new", "ann", "brief"),
        Origin("new", "eve", "brief"),
        Origin("q", "ann", "rhymed"),
        Origin("p", "eve", "brief"),
    ]
    found = cells(rows, fitted)
    assert found == {
        "fit": [0],
        "new_prompts": [1],
        "new_users": [2],
        "new_contexts": [3],
        "new_users_old_prompts": [4],
    }


def test_groups_count_alike_and_people_are_the_sample():
    correct = [1, 1, 0, 0, 1, 0, 0, 0.5]
    groups = ["a", "a", "a", "a", "b", "b", "b", "b"]
    users = [1, 1, 2, 3, 4, 4, 5, 5]
    found = grouped(correct, groups, users)
    # Users of a: 1, 0, 0; of b: 1/2, 1/4.
    assert {g: e.value for g, e in found.items()} == pytest.approx({"a": 1 / 3, "b": 3 / 8})
    assert (found["a"].n, found["b"].n) == (3, 2)
    assert found["a"] == share([1, 1, 0, 0], [1, 1, 2, 3])
    average = macro(found)
    assert average.value == pytest.approx((1 / 3 + 3 / 8) / 2)
    half = math.sqrt((found["a"].high - 1 / 3) ** 2 + (found["b"].high - 3 / 8) ** 2) / 2
    assert average.high - average.value == pytest.approx(half)
    assert worst(found) == ("a", found["a"])
    with pytest.raises(UserError, match="group 'b' has a single user"):
        grouped(correct, groups, [1, 1, 2, 3, 4, 4, 4, 4])


def test_the_interval_of_a_macro_average_covers():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = np.concatenate([generator.random(60) < 0.8, generator.random(300) < 0.5])
        found = macro(grouped(values, ["a"] * 60 + ["b"] * 300))
        hits += found.low <= 0.65 <= found.high
    # 95 % with a standard error of 1.3 %.
    assert hits / 300 > 0.95 - 3 * 0.013


def test_a_curve_is_that_of_a_slow_double_loop():
    deltas = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
    users = ["ann"] * 5 + ["bob"] * 6 + ["short"] * 3
    prior = torch.tensor([0.5, 0.3, 0.2]).log()
    found = adaptation_curve(deltas, users, prior, sizes=(0, 1, 3), draws=400)
    assert found.left_out == ("short",)
    assert found.users == ("ann", "bob")
    for row, own in enumerate((deltas[:5], deltas[5:11])):
        n = len(own)
        # Every choice of labels and every asked pair beside three labels is equally likely.
        exact = np.zeros(3)
        count = 0
        for first in range(n):
            for second in range(n):
                for third in range(n):
                    if len({first, second, third}) < 3:
                        continue
                    for asked in set(range(n)) - {first, second, third}:
                        count += 1
                        for place, labels in enumerate(([], [first], [first, second, third])):
                            weights = adapt(prior, own[labels]).exp()
                            exact[place] += float((weights * own[asked].sigmoid()).sum()) > 0.5
        exact /= count
        # The standard error over 400 draws of a rate is at most 0.025.
        assert found.accuracy[row] == pytest.approx(exact, abs=0.075)


def test_a_label_is_never_asked_again():
    # Each head is right about one pair alone, so whoever has labelled a pair is wrong about all the others.
    deltas = torch.full((4, 4), -5.0).fill_diagonal_(5.0)
    found = adaptation_curve(deltas.repeat(2, 1), ["ann"] * 4 + ["bob"] * 4, torch.zeros(4).log_softmax(0), sizes=(1,))
    assert found.accuracy.tolist() == [[0.0], [0.0]]


def test_more_labels_help_when_the_heads_are_right():
    sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    deltas, users = [], []
    for user in range(40):
        source = torch.Generator().manual_seed(user)
        margin = 2 * torch.randn(30, generator=source)
        label = torch.where(torch.rand(30, generator=source) < margin.sigmoid(), 1, -1)
        deltas.append(torch.stack([margin * label, -margin * label], dim=1) * sign[user])
        users += [user] * 30
    found = adaptation_curve(torch.cat(deltas), users, torch.full((2,), 0.5).log(), sizes=(0, 1, 5, 20))
    points = [found.at(size).value for size in (0, 1, 5, 20)]
    # Opposite heads and an even prior: without a label every pair is a coin flip, counted half.
    assert points[0] == pytest.approx(0.5)
    assert points[0] < points[1] < points[2]
    assert points[3] > 0.7
    assert found.points()[20] == found.at(20)


def test_curves_are_summed_up_by_hand():
    table = np.array([[0.5, 0.7, 0.9], [0.5, 0.5, 0.7]])
    curve = Curve((0, 1, 3), ("a", "b"), table)
    one, two = math.log(2), math.log(4) - math.log(2)
    area = [(0.6 * one + 0.8 * two) / (one + two), (0.5 * one + 0.6 * two) / (one + two)]
    assert curve.area().value == pytest.approx(sum(area) / 2)
    # 90 % of the way from .5 to .8 is .77: three labels bring .8.
    assert curve.needed(0.8) == 3
    assert curve.needed(0.8, part=0.3) == 1
    assert curve.needed(0.99) is None
    assert curve.worst_decile(3) == 0.7
    assert Curve((0,), tuple(range(20)), np.arange(20.0)[:, None]).worst_decile(0) == 0.5


def test_two_people_leave_a_curve_inside_its_range():
    curve = Curve((0, 1), ("a", "b"), np.array([[0.5, 0.9], [0.9, 1.0]]))
    for found in (curve.at(1), curve.area()):
        assert 0 <= found.low < found.value < found.high == 1


def test_too_few_pairs_for_a_curve_is_an_error():
    with pytest.raises(UserError, match="1 people have more than 3 pairs"):
        adaptation_curve(torch.zeros(6, 2), ["a"] * 4 + ["b"] * 2, torch.zeros(2), sizes=(0, 3))


def test_both_directions_must_be_right():
    assert reversal([1, 1, 0, 1, 1, 0.5], ["x", "y", "x", "y", "z", "z"]).value == pytest.approx((0 + 1 + 0.5) / 3)
    with pytest.raises(UserError, match=r"1 pairs do not occur exactly twice, such as 'y'"):
        reversal([1, 1, 1], ["x", "x", "y"])


def context_heads():
    """Two opposite heads; the router gives the first to a positive context."""
    heads = MixtureHeads(torch.tensor([[3.0], [-3.0]]), Router("linear", 1, 2))
    with torch.no_grad():
        heads.router.last.weight.copy_(torch.tensor([[5.0], [-5.0]]))
    return heads


def test_shuffled_contexts_bring_chance():
    context = torch.where(torch.rand(600, generator=torch.Generator().manual_seed(0)) < 0.5, 1.0, -1.0)
    features = PairFeatures(context[:, None], context[:, None])
    heads = context_heads()
    assert routed(heads, features).mean() == 1
    other = shuffled(features)
    assert sorted(other.router[:, 0].tolist()) == sorted(context.tolist())
    # The standard error of a coin flip over 600 pairs is 0.02.
    assert abs(routed(heads, other).mean() - 0.5) < 0.06
    own = PairFeatures(torch.zeros(9, 1), torch.arange(9.0)[:, None])
    assert not (shuffled(own).router == own.router).any(), "nobody keeps their own"


def test_what_the_router_does_by_hand():
    heads = context_heads()
    certain = router_use(heads, PairFeatures(torch.ones(4, 1), torch.ones(4, 1)))
    undecided = router_use(heads, PairFeatures(torch.tensor([[1.0], [1.0], [-1.0]]), torch.zeros(3, 1)))
    assert certain.spread.value < 1e-3
    assert undecided.spread.value == pytest.approx(1)
    odds = 1 / (1 + math.exp(-3.0))
    assert undecided.shares[0].value == pytest.approx((2 * odds + 1 - odds) / 3, abs=1e-6)
    assert undecided.correlation == pytest.approx(-1)
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in (undecided.spread, *undecided.shares))
    assert undecided.to_dict()["shares"][1]["n"] == 3

"""One number of several heads: printed examples, slow loops, and what shifts, scales and orders may not change."""

import json
import math

import pytest
import torch

from holdfast.preference import aggregate
from holdfast.preference.aggregate import GroupNormaliser


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def near(expected):
    """Equal to numbers given with six digits."""
    return pytest.approx(expected, abs=1e-6)


def randoms(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes]


REWARDS = t([1.0, 0.0], [0.2, 1.5], [-0.5, 0.5])[None]
WEIGHTS = t([0.7, 0.3])
SHIFT = t(100.0, -7.0)


def normalised(values):
    return ((values - values.mean()) / values.std(correction=0)).tolist()


def test_the_tournament_by_hand():
    wins = aggregate.tournament(REWARDS, WEIGHTS)
    assert wins[0].tolist() == near([0.611637, 0.574670, 0.313693])
    assert float(wins.sum()) == near(1.5)
    assert aggregate.tournament(REWARDS + SHIFT, WEIGHTS)[0].tolist() == near(wins[0].tolist())
    assert normalised(wins[0]) == near([0.841906, 0.563118, -1.405024])
    plain = aggregate.linear(REWARDS, WEIGHTS.expand(1, 3, 2))[0]
    assert normalised(plain) == near([0.839861, 0.565451, -1.405311])


def test_the_tournament_against_a_slow_loop():
    rewards, logits = randoms(0, (4, 5, 3), (4, 3))
    weights = logits.softmax(-1)
    found = aggregate.tournament(rewards, weights)
    for p in range(4):
        for i in range(5):
            wins = [
                sum(float(weights[p, k]) * sigmoid(float(rewards[p, i, k] - rewards[p, j, k])) for k in range(3))
                for j in range(5)
                if j != i
            ]
            assert float(found[p, i]) == pytest.approx(sum(wins) / 4, abs=1e-12)
    order = [4, 2, 0, 1, 3]
    torch.testing.assert_close(aggregate.tournament(rewards[:, order], weights), found[:, order])
    heads = [2, 0, 1]
    torch.testing.assert_close(aggregate.tournament(rewards[..., heads], weights[:, heads]), found)


def test_a_tournament_of_two_is_the_probability_of_the_mixture():
    wins = aggregate.tournament(t([10.0, -1.0], [5.0, 0.5])[None], t([0.6, 0.4]))
    assert wins[0].tolist() == near([0.668954, 1 - 0.668954])


def test_a_cycle_is_a_draw_for_the_linear_score_and_for_the_tournament():
    rewards, even = t([2.0, 0.0, -2.0], [-2.0, 2.0, 0.0], [0.0, -2.0, 2.0])[None], t([1 / 3, 1 / 3, 1 / 3])
    assert aggregate.linear(rewards[0], even.expand(3, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert aggregate.tournament(rewards, even)[0].tolist() == pytest.approx([0.5] * 3, abs=1e-12)
    pair = aggregate.tournament(rewards[:, [1, 0]], even)
    assert pair[0].tolist() == near([0.593193, 0.406807])


def test_anchors_are_opponents_that_stay():
    rewards, anchors, logits = randoms(1, (3, 2), (3, 4, 2), (3, 2))
    weights = logits.softmax(-1)
    found = aggregate.anchor(rewards, anchors, weights)
    for i in range(3):
        wins = [
            sum(float(weights[i, k]) * sigmoid(float(rewards[i, k] - anchors[i, m, k])) for k in range(2))
            for m in range(4)
        ]
        assert float(found[i]) == pytest.approx(sum(wins) / 4, abs=1e-12)
    torch.testing.assert_close(aggregate.anchor(rewards + SHIFT, anchors + SHIFT, weights), found)


def ranks(values):
    return sorted(range(3), key=lambda i: -float(values[i]))


def test_a_shift_of_a_head_moves_linear_scores_alike_and_changes_what_minima_prefer():
    plain, shifted = (aggregate.linear(one[0], WEIGHTS.expand(3, 2)) for one in (REWARDS, REWARDS + SHIFT))
    torch.testing.assert_close(shifted - plain, torch.full((3,), 0.7 * 100 - 0.3 * 7, dtype=torch.float64))
    assert ranks(aggregate.sample_min(REWARDS[0])) == [1, 0, 2]
    assert ranks(aggregate.sample_min(REWARDS[0] + SHIFT)) == [1, 2, 0]


def test_the_mean_of_minima_is_not_the_minimum_of_means():
    rewards = t([1.0, 0.0], [0.0, 1.0])
    assert float(aggregate.sample_min(rewards).mean()) == 0
    assert float(aggregate.worst_group(rewards)) == 0.5
    assert float(aggregate.worst_group(t([1.0, 0.5], [0.0, 0.3]))) == pytest.approx(0.4)
    for table in randoms(2, *[(6, 3)] * 50):
        assert aggregate.sample_min(table).mean() <= aggregate.worst_group(table)


def test_weights_of_groups_by_hand():
    even = t(0.5, 0.5)
    assert aggregate.step(even, t(0.8, 0.2), 1.0).tolist() == near([0.354344, 0.645656])
    costs = aggregate.step(even, t(0.02, 0.30) - 0.1, 2.0, "cost")
    assert costs.tolist() == near([0.363547, 0.636453])
    regret = aggregate.step(even, t(0.8, 0.2) - t(1.0, 0.2), 1.0)
    assert regret.tolist() == near([1 / (1 + math.exp(-0.2)), 1 - 1 / (1 + math.exp(-0.2))])
    # From unequal weights: 0.9 e^-1 against 0.1 e^0.
    assert aggregate.step(t(0.9, 0.1), t(1.0, 0.0), 1.0)[0].item() == near(0.9 / math.e / (0.9 / math.e + 0.1))
    assert torch.equal(aggregate.step(even, t(3.0, -9.0), 0.0), even)
    with pytest.raises(ValueError, match="a direction is reward or cost, got 'up'"):
        aggregate.step(even, even, 1.0, "up")


def test_pairwise_calibration_by_hand():
    votes = t([1.0, -1.0, 1.0], [-1.0, -1.0, 1.0])
    weights = t(0.5, 0.3, 0.2).expand(2, 3)
    found = aggregate.pairwise_calibration(votes, weights, t(0.8, 0.1))
    assert found.mean.item() == pytest.approx(0.01, abs=1e-12)
    assert found.count.item() == 2
    tie = aggregate.pairwise_calibration(t([0.0, 0.0, 7.0]), weights[:1], t(0.6))
    assert tie.total.item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="shapes must be equal"):
        aggregate.pairwise_calibration(votes, weights, t(0.5))


def test_wrong_shapes_and_lonely_answers_are_refused():
    with pytest.raises(ValueError, match="a tournament needs other answers to the prompt: at least 2, got 1"):
        aggregate.tournament(REWARDS[:, :1], WEIGHTS)
    with pytest.raises(ValueError, match=r"weights must be \(1, 2\), one per row and head, got \(1, 3\)"):
        aggregate.tournament(REWARDS, t([0.2, 0.3, 0.5]))
    with pytest.raises(ValueError, match=r"weights must be \(1, 2\)"):
        aggregate.anchor(REWARDS[:, 0], REWARDS, t(1.0))
    with pytest.raises(ValueError, match="shapes must be equal"):
        aggregate.linear(REWARDS[0], WEIGHTS)


# Running normalisation by group.


def batches(seed=3):
    rng = torch.Generator().manual_seed(seed)
    for size in (4, 1, 7, 3):
        groups = ["small" if i % 3 else "large" for i in range(size)]
        scale = torch.tensor([1.0 if name == "small" else 50.0 for name in groups])
        yield torch.randn(size, generator=rng) * scale + 10, groups


def test_the_history_is_that_of_all_rewards_ever_seen():
    normaliser, seen = GroupNormaliser(), {"small": [], "large": []}
    for rewards, groups in batches():
        normaliser.observe(rewards, groups)
        for value, name in zip(rewards.tolist(), groups):
            seen[name].append(value)
    given, groups = torch.tensor([11.0, 11.0, -40.0]), ["small", "large", "large"]
    for value, name, found in zip(given.tolist(), groups, normaliser(given, groups).tolist()):
        mean = sum(seen[name]) / len(seen[name])
        std = (sum((x - mean) ** 2 for x in seen[name]) / len(seen[name])) ** 0.5
        assert found == pytest.approx((value - mean) / std, abs=1e-5)  # float32


def test_an_old_history_fades():
    normaliser, moments = GroupNormaliser(keep=0.5), (0.0, 0.0, 0.0)
    for rewards in ([1.0, 5.0], [2.0], [8.0, 0.0, 1.0]):
        normaliser.observe(torch.tensor(rewards), ["a"] * len(rewards))
        fresh = (len(rewards), sum(rewards), sum(x * x for x in rewards))
        moments = tuple(0.5 * old + new for old, new in zip(moments, fresh))
    mean = moments[1] / moments[0]
    std = (moments[2] / moments[0] - mean**2) ** 0.5
    assert normaliser(torch.tensor([4.0]), ["a"]).item() == pytest.approx((4 - mean) / std, abs=1e-6)


def test_a_group_does_not_feel_the_scale_of_another():
    rewards, groups = torch.tensor([0.0, 1.0, 0.0, 1000.0]), ["a", "a", "b", "b"]
    alone, both = GroupNormaliser(), GroupNormaliser()
    alone.observe(rewards[:2], groups[:2])
    both.observe(rewards, groups)
    assert torch.equal(alone(rewards[:2], groups[:2]), both(rewards, groups)[:2])


def test_without_a_spread_rewards_keep_their_scale():
    normaliser = GroupNormaliser()
    assert normaliser(torch.tensor([3.0]), ["new"]).tolist() == [3.0]
    normaliser.observe(torch.tensor([2.0, 2.0]), ["flat", "flat"])
    assert normaliser(torch.tensor([2.0, 5.0]), ["flat", "flat"]).tolist() == [0.0, 3.0]
    with pytest.raises(ValueError, match="keep must lie above 0 and at most at 1, got 0"):
        GroupNormaliser(0)


def test_the_state_of_the_normaliser_is_everything():
    one, other = GroupNormaliser(0.9), GroupNormaliser(0.9)
    first, *rest = batches()
    one.observe(*first)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for rewards, groups in rest:
        one.observe(rewards, groups)
        other.observe(rewards, groups)
        assert torch.equal(one(rewards, groups), other(rewards, groups))
    assert one.state_dict() == other.state_dict()

"""Advantages by hand: numbers worked out on paper, whatever the trainer around them does."""

import pytest
import torch

from holdfast.engine.distributed import Processes
from holdfast.losses.advantage import mix, token_rewards
from holdfast.losses.surrogate import clipped_ratio
from holdfast.training.advantages import AdvantageSettings, Predicted, normalised, with_critic, without_critic

NOTHING = torch.zeros(1)


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def critic(rewards, values, ahead=NOTHING, lam_value=None, **settings):
    mask = torch.ones_like(rewards, dtype=torch.bool)
    found = with_critic(rewards, Predicted(values, ahead), mask, AdvantageSettings(**settings), lam_value)
    return [one[0].tolist() for one in found]


def test_reward_and_cost_by_hand():
    """Three tokens, beta 0.02, reward 2, cost 1.5, lambda 3: every number of the chain to the loss."""
    kl = row(-0.5, -1.0, -0.2) - row(-0.7, -0.9, -0.5)
    mask = torch.ones(1, 3, dtype=torch.bool)
    reward = token_rewards(kl, torch.tensor([2.0]), mask, -0.02).rewards
    cost = token_rewards(kl, torch.tensor([1.5]), mask, 0.02).rewards
    assert reward[0].tolist() == pytest.approx([-0.004, 0.002, 1.994])
    assert cost[0].tolist() == pytest.approx([0.004, -0.002, 1.506])
    assert mix(reward, {"c": cost}, {"c": 3.0})[0].tolist() == pytest.approx([-0.004, 0.002, -0.631])
    gain, target = critic(reward, row(0.5, 0.8, 1.2))
    assert gain == pytest.approx([1.394485, 1.1563, 0.794])
    assert target == pytest.approx([1.894485, 1.9563, 1.994])
    harm, expected = critic(cost, row(0.1, 0.4, 0.9))
    assert harm == pytest.approx([1.324015, 1.0737, 0.606])
    assert expected == pytest.approx([1.424015, 1.4737, 1.506])
    mixed = mix(row(*gain), {"c": row(*harm)}, {"c": 3.0})
    assert mixed[0].tolist() == pytest.approx([-0.64439, -0.5162, -0.256])
    loss = clipped_ratio(row(1.3, 0.7, 1.0).log(), row(0, 0, 0), mixed)
    # The surrogate's sign is turned: a loss is descended.
    assert loss[0].tolist() == pytest.approx([0.837707, 0.41296, 0.256], abs=1e-6)
    assert float(loss.mean()) == pytest.approx(0.5022223333, abs=1e-9)


def test_two_multipliers_of_the_papers():
    mixed = mix(row(1.0, -0.5), {"c": row(0.5, 1.0)}, {"c": 2.0})
    assert mixed[0].tolist() == pytest.approx([0.0, -0.8333333])


@pytest.mark.parametrize(
    "lam, gain, target",
    [
        (0.0, [-0.11, 0.3, -0.075, 0.285], [0.09, 0.4, 0.325, 0.585]),
        (0.9, [0.307015, 0.46335, 0.1815, 0.285], [0.507015, 0.56335, 0.5815, 0.585]),
        (1.0, [0.4, 0.51, 0.21, 0.285], [0.6, 0.61, 0.61, 0.585]),
    ],
)
def test_lambdas_of_policy_and_critic_are_two(lam, gain, target):
    """Secrets of RLHF's ingredients on four tokens: rewards with a KL of weight 0.05, values as they come."""
    rewards, values = row(-0.01, 0.0, 0.025, 0.585), row(0.2, 0.1, 0.4, 0.3)
    same = critic(rewards, values, lam_policy=lam, lam_value=lam)
    assert same == [pytest.approx(gain), pytest.approx(target)]
    one = critic(rewards, values, lam_policy=0.9, lam_value=lam)
    assert one == [pytest.approx([0.307015, 0.46335, 0.1815, 0.285]), pytest.approx(target)]


def test_pretraining_replaces_the_lambda_of_the_targets_alone():
    rewards, values = row(-0.01, 0.0, 0.025, 0.585), row(0.2, 0.1, 0.4, 0.3)
    gain, target = critic(rewards, values, lam_value=1.0, lam_policy=0.9)
    assert gain == pytest.approx([0.307015, 0.46335, 0.1815, 0.285])
    assert target == pytest.approx([0.6, 0.61, 0.61, 0.585])


def test_nothing_is_expected_behind_the_end():
    """Values of 0.2 everywhere and a reward of 1 at the end: padding must not reach the answer."""
    rewards, values = row(0.0, 0.0, 1.0, 0.0, 0.0), row(0.2, 0.2, 0.2, 0.2, 0.2)
    mask = torch.tensor([[True, True, True, False, False]])
    gain, _ = with_critic(rewards, Predicted(values, NOTHING), mask, AdvantageSettings())
    assert gain[0].tolist() == pytest.approx([0.722, 0.76, 0.8, 0.0, 0.0])


def test_what_a_cut_answer_would_still_earn_counts():
    gain, target = critic(row(0.0, 0.0), row(0.5, 0.5), torch.tensor([0.9], dtype=torch.float64), gamma=0.5)
    last = 0.5 * 0.9 - 0.5
    assert gain == pytest.approx([0.5 * 0.5 - 0.5 + 0.5 * 0.95 * last, last])
    assert target == pytest.approx([gain[0] + 0.5, gain[1] + 0.5])


@pytest.mark.parametrize("tokens, lam", [(2, 0.3), (4, 0.5), (20, 0.9)])
def test_lambda_grows_with_the_answer(tokens, lam):
    rewards = torch.zeros(1, tokens, dtype=torch.float64)
    rewards[0, -1] = 1.0
    options = {"length_adaptive": 0.5, "lam_floor": 0.3, "lam_value": 1.0}
    gain, target = critic(rewards, torch.zeros_like(rewards), **options)
    assert gain == pytest.approx([lam ** (tokens - 1 - t) for t in range(tokens)])
    assert target == pytest.approx([1.0] * tokens)


def test_an_undiscounted_target_is_the_score_itself():
    gain, target = critic(row(0.0, 0.0, 0.0, 0.7), row(9.0, -4.0, 2.0, 1.0), lam_policy=1.0, lam_value=1.0)
    assert target == pytest.approx([0.7] * 4)
    assert gain == pytest.approx([0.7 - 9, 0.7 + 4, 0.7 - 2, 0.7 - 1])


MASK = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
EARNED = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 6.0], [2.0, 0.0]])


def test_an_answer_is_compared_with_the_others_to_its_prompt():
    found = without_critic(EARNED, MASK, 2, Processes())
    assert found.tolist() == [[-2.0, 0.0], [2.0, 2.0], [4.0, 4.0], [-4.0, 0.0]]


def test_a_single_answer_is_compared_with_all_others():
    found = without_critic(EARNED, MASK, 1, Processes())
    # 1 - (3 + 6 + 2) / 3 and so on
    expected = torch.tensor([1 - 11 / 3, 3 - 9 / 3, 6 - 6 / 3, 2 - 10 / 3])[:, None] * MASK
    torch.testing.assert_close(found, expected)


def test_an_answer_alone_has_nothing_to_beat():
    assert without_critic(EARNED[:1], MASK[:1], 1, Processes()).tolist() == [[0.0, 0.0]]


class WithOthers(Processes):
    """The first of two processes; the other one brings `theirs`."""

    def __init__(self, *theirs):
        super().__init__()
        self.theirs = list(theirs)

    def gather(self, items):
        return [*items, *self.theirs]


def test_answers_of_other_processes_count_as_others():
    found = without_critic(EARNED[:2], MASK[:2], 1, WithOthers(6.0, 2.0))
    torch.testing.assert_close(found, without_critic(EARNED, MASK, 1, Processes())[:2])


@pytest.mark.parametrize("clip", [None, 0.5])
def test_tokens_of_other_processes_count_for_the_scale(clip):
    settings = AdvantageSettings(normalise="batch", clip=clip)
    column = torch.tensor([1.0, 2.0, 3.0, -1.0])
    whole = normalised(column, settings, Processes())
    expected = torch.tensor([-0.169031, 0.507092, 1.183216, -1.521277])
    torch.testing.assert_close(whole, expected if clip is None else expected.clamp(-clip, clip))
    torch.testing.assert_close(normalised(column[:2], settings, WithOthers(3.0, -1.0)), whole[:2])

"""What answers are worth by several scores, and what limits leave of them."""

import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.training.selection import OfflineLimit, RewardTerm, admit, reward_of

SCORES = {"help": torch.tensor([1.0, -2.0, 0.5]), "cost": torch.tensor([-1.0, 0.5, 3.0])}
REWARD = torch.tensor([0.2, 0.4, 0.9])


def test_the_reward_is_the_weighted_sum_of_linked_scores():
    found = reward_of(SCORES, {"help": RewardTerm(weight=2.0, link="sigmoid"), "cost": RewardTerm(weight=-0.5)})
    wanted = [2 / (1 + math.exp(-h)) - 0.5 * c for h, c in zip([1.0, -2.0, 0.5], [-1.0, 0.5, 3.0])]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_an_answer_without_a_score_has_no_reward():
    found = reward_of({"help": torch.tensor([1.0, math.nan])}, {"help": RewardTerm()})
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("terms", [{}, {"help": RewardTerm(weight=0.0)}])
def test_a_reward_of_nothing_is_refused(terms):
    with pytest.raises(UserError, match="every answer would be worth the same"):
        reward_of(SCORES, terms)


def test_unknown_scores_are_named_with_those_there_are():
    with pytest.raises(UserError, match="rewards names the score honesty, and answers have help, cost"):
        reward_of(SCORES, {"honesty": RewardTerm()})
    with pytest.raises(UserError, match="limits names the score honesty"):
        admit(SCORES, [OfflineLimit(score="honesty")], REWARD)


def test_answers_beyond_a_limit_are_dropped_and_the_border_is_within():
    found = admit(SCORES, [OfflineLimit(score="cost", most=0.5)], REWARD)
    assert found.kept.tolist() == [True, True, False]
    assert found.weight.tolist() == [1, 1, 1]
    [told] = found.report
    assert (told["answers"], told["beyond"], told["without_score"]) == (3, 1, 0)
    assert told["reward_within"] == pytest.approx(0.3, abs=1e-6)
    assert told["reward_beyond"] == pytest.approx(0.9, abs=1e-6)


def test_weights_fall_with_the_excess():
    found = admit(SCORES, [OfflineLimit(how="weight", softness=2.0)], REWARD)
    assert found.kept.all()
    assert found.weight.tolist() == pytest.approx([1, math.exp(-0.25), math.exp(-1.5)], abs=1e-6)


def test_a_report_changes_nothing():
    found = admit(SCORES, [OfflineLimit(how="report")], REWARD)
    assert found.kept.all()
    assert found.weight.tolist() == [1, 1, 1]
    assert found.report[0]["beyond"] == 2


def test_limits_act_together():
    limits = [OfflineLimit(score="cost", most=1.0), OfflineLimit(score="help", most=0.7, how="weight")]
    found = admit(SCORES, limits, REWARD)
    assert found.kept.tolist() == [True, True, False]
    assert found.weight.tolist() == pytest.approx([math.exp(-0.3), 1, 1], abs=1e-6)


@pytest.mark.parametrize("how", ["drop", "weight"])
def test_what_is_not_known_to_be_safe_is_not_imitated(how):
    found = admit({"cost": torch.tensor([math.nan, -1.0])}, [OfflineLimit(how=how)], REWARD[:2])
    assert found.kept.tolist() == [False, True]
    assert found.report[0]["without_score"] == 1


def test_a_limit_that_leaves_nothing_says_so():
    with pytest.raises(UserError, match=r"no answer keeps all limits \(cost <= -5: 3 of 3 beyond\)"):
        admit(SCORES, [OfflineLimit(most=-5.0)], REWARD)

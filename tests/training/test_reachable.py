import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from holdfast.errors import UserError
from holdfast.training import reachable
from holdfast.training.lagrangian import ConstraintSettings
from holdfast.training.reachable import estimate_lambda, estimate_lambdas, permits_more, suggest_threshold

TWO = [[1.0, 0.0]] * 2  # one answer pays one and costs one, the other does nothing: all is a sigmoid of one number


def random_scores(seed, prompts=12, samples=4, shared=0.7):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(prompts, samples))
    return rewards, shared * rewards + rng.normal(size=(prompts, samples))


def slow_cost(rewards, costs, multiplier, kl, mode):
    """The best policy's mean cost in a double loop, straight from exp((R - l C) / b)."""
    weight = kl * (1 + multiplier) if mode == "split" else kl
    total = 0.0
    for row, prices in zip(rewards, costs):
        odds = [math.exp((reward - multiplier * cost) / weight) for reward, cost in zip(row, prices)]
        total += sum(odd * cost for odd, cost in zip(odds, prices)) / sum(odds)
    return total / len(rewards)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_two_answers_have_a_closed_form(share):
    # reward_only: sigmoid((1 - l) / b) = share; split: sigmoid((1 - l) / ((1 + l) b)) = share.
    kl, odds = 0.4, math.log(share / (1 - share))
    plain = estimate_lambda(TWO, TWO, share, kl, "reward_only")
    split = estimate_lambda(TWO, TWO, share, kl, "split")
    assert plain.multiplier == pytest.approx(1 - kl * odds, abs=1e-9)
    assert split.multiplier == pytest.approx((1 - kl * odds) / (1 + kl * odds), abs=1e-9)
    assert plain.cost_free == split.cost_free == pytest.approx(1 / (1 + math.exp(-1 / kl)))


def test_three_answers_have_a_closed_form():
    # Without reward the odds of costs 0, 1, 2 are 1, q, q^2 with q = exp(-l / b); a mean of 4/7 means q = 1/2.
    found = estimate_lambda(np.zeros((3, 3)), [[0.0, 1.0, 2.0]] * 3, 4 / 7, 0.5, "reward_only")
    assert found.multiplier == pytest.approx(0.5 * math.log(2), abs=1e-9)
    assert (found.cost_now, found.cost_least) == (1.0, 0.0)
    assert found.effective == pytest.approx(49 / 21)  # weights 4/7, 2/7, 1/7


@pytest.mark.parametrize("mode", ["split", "reward_only"])
@pytest.mark.parametrize("seed", range(3))
def test_the_multiplier_is_the_smallest_on_a_brute_grid(mode, seed):
    rewards, costs = random_scores(seed)
    found = estimate_lambda(rewards, costs, -0.3, 0.5, mode)
    grid = np.arange(0, 3, 1e-3)
    kept = [slow_cost(rewards, costs, each, 0.5, mode) <= -0.3 for each in grid]
    assert found.reachable
    assert found.multiplier > 0
    # One step of the grid.
    assert found.multiplier == pytest.approx(grid[kept.index(True)], abs=1e-3)
    assert found.cost == pytest.approx(slow_cost(rewards, costs, found.multiplier, 0.5, mode), abs=1e-12)
    assert found.cost == pytest.approx(-0.3, abs=1e-9)
    assert found.cost_least == pytest.approx(sum(min(row) for row in costs.tolist()) / 12, abs=1e-12)


def test_the_mean_cost_falls_as_the_multiplier_rises_where_only_the_reward_carries_the_kl():
    for seed in range(20):
        rewards, costs = random_scores(seed, shared=np.linspace(-2, 2, 20)[seed])
        curve = [estimate_lambda(rewards, costs, -99, 0.5, "reward_only", each).cost for each in (0.1, 0.3, 1, 3, 9)]
        assert all(np.diff(curve) < 0)


def test_in_split_mode_the_mean_cost_may_rise_and_the_first_crossing_counts():
    # The reward hates cost ten times as much as the cost does, so that every multiplier dilutes it.
    costs = random_scores(0)[1]
    free = estimate_lambda(-10 * costs, costs, 99, 0.5)
    pulled = estimate_lambda(-10 * costs, costs, -99, 0.5)
    assert slow_cost(-10 * costs, costs, 20, 0.5, "split") > free.cost
    assert (pulled.multiplier, pulled.reachable) == (0.0, False)
    assert estimate_lambda(-10 * costs, costs, free.cost, 0.5).multiplier == 0


def test_in_split_mode_the_pull_to_the_reference_never_weakens():
    # The limit of a large multiplier is softmax(-C / b), however high the ceiling: not the least costly answer.
    found = estimate_lambda(TWO, TWO, 0.01, 0.5, "split", ceiling=1e6)
    assert not found.reachable
    assert found.cost == pytest.approx(1 / (1 + math.exp(2)), abs=1e-5)  # the ceiling is a million, not infinity
    assert estimate_lambda(TWO, TWO, 0.01, 0.5, "reward_only", ceiling=1e6).reachable


def dual(multipliers, rewards, costs, thresholds, kl):
    """The dual of max E[R] - b KL under the limits, and its gradient: convex, so any solver finds its minimum."""
    tilted = (rewards - sum(each * cost for each, cost in zip(multipliers, costs))) / kl
    weights = np.exp(tilted - logsumexp(tilted, axis=1, keepdims=True))
    value = kl * logsumexp(tilted, axis=1).mean() + multipliers @ thresholds
    return value, np.array([tau - (weights * cost).sum(1).mean() for tau, cost in zip(thresholds, costs)])


@pytest.mark.parametrize("thresholds", [(-0.3, -0.3), (-0.2, -0.5), (0.4, -0.2), (9.0, 9.0)])
def test_several_multipliers_are_the_minimum_of_the_convex_dual(thresholds):
    rewards, harm = random_scores(1, prompts=20)
    bias = 0.6 * harm + random_scores(2, prompts=20)[1]
    given = (rewards, (harm, bias), np.array(thresholds), 0.7)
    best = minimize(dual, np.ones(2), given, "L-BFGS-B", True, bounds=[(0, 20)] * 2, options={"gtol": 1e-10})
    found = estimate_lambdas(
        rewards, {"harm": harm, "bias": bias}, dict(zip(("harm", "bias"), thresholds)), 0.7, "reward_only"
    )
    # The solver stops where the dual is flat to about 1e-9, the multipliers stand there to the root of it.
    assert [each.multiplier for each in found.values()] == pytest.approx(best.x, abs=1e-4)
    for each in found.values():
        assert each.reachable
        assert each.multiplier == 0 or each.cost == pytest.approx(each.threshold, abs=1e-6)


def test_several_multipliers_in_split_mode_share_one_scale():
    rewards, harm = random_scores(1, prompts=20)
    bias = 0.6 * harm + random_scores(2, prompts=20)[1]
    found = estimate_lambdas(rewards, {"harm": harm, "bias": bias}, {"harm": -0.3, "bias": -0.4}, 0.5)
    first, second = found["harm"].multiplier, found["bias"].multiplier
    assert min(first, second) > 0
    # One constraint of the combined cost at the sum of the multipliers is the same policy.
    joined = (first * harm + second * bias) / (first + second)
    tau = slow_cost(rewards, joined, first + second, 0.5, "split")
    assert tau == pytest.approx((first * -0.3 + second * -0.4) / (first + second), abs=1e-6)
    assert found["harm"].cost == pytest.approx(-0.3, abs=1e-6)


def test_one_of_several_is_that_of_one():
    rewards, costs = random_scores(3)
    alone = estimate_lambda(rewards, costs, -0.3, 0.5)
    both = estimate_lambdas(rewards, {"cost": costs, "idle": costs}, {"cost": -0.3, "idle": 99.0}, 0.5)
    assert both["cost"] == alone
    assert both["idle"].multiplier == 0


def test_multipliers_that_do_not_settle_are_no_result(monkeypatch):
    monkeypatch.setattr(reachable, "SWEEPS", 2)
    rewards, costs = random_scores(3)
    near = {"harm": costs, "bias": costs + 0.1 * random_scores(4)[1]}
    with pytest.raises(
        UserError, match="multipliers of harm, bias did not settle: some of these limits measure nearly"
    ):
        estimate_lambdas(rewards, near, {"harm": -0.3, "bias": -0.3}, 0.5)


def test_a_limit_may_be_called_as_the_reward_is():
    rewards, costs = random_scores(3)
    found = estimate_lambdas(rewards, {"rewards": costs}, {"rewards": -0.3}, 0.5)["rewards"]
    assert found.multiplier == estimate_lambda(rewards, costs, -0.3, 0.5).multiplier


def test_limits_that_pull_against_each_other_are_said_to_be_out_of_reach():
    rewards, costs = random_scores(3)
    found = estimate_lambdas(rewards, {"low": costs, "high": -costs}, {"low": -0.4, "high": -0.4}, 0.5, "reward_only")
    assert not all(each.reachable for each in found.values())


def test_the_interval_covers_what_other_prompts_say():
    # Of 40 sets of 40 prompts, a 95 % interval holds the multiplier of 4,000 prompts nearly always; a binomial with
    # p = 0.95 lies below 33 of 40 with probability 0.003.
    truth = estimate_lambda(*random_scores(0, 4000), -0.1, 0.7).multiplier
    inside = 0
    for seed in range(1, 41):
        found = estimate_lambda(*random_scores(seed, 40), -0.1, 0.7)
        assert found.low <= found.multiplier <= found.high
        inside += found.low <= truth <= found.high
    assert inside >= 33


def test_more_prompts_narrow_the_interval():
    few, many = (estimate_lambda(*random_scores(5, prompts), -0.1, 0.7) for prompts in (25, 400))
    # A quarter by the root law; 0.15 and 0.45 leave room for the noise of 25 prompts.
    assert 0.15 < (many.high - many.low) / (few.high - few.low) < 0.45


@pytest.mark.parametrize(
    "rewards, costs, threshold, words",
    [
        (np.zeros((2, 2)), TWO, 0.6, "limit 0.6 holds today (0.5) and needs no multiplier: the best policy costs 0.5"),
        (-np.array(TWO), TWO, 0.3, "limit 0.3 is broken today (0.5), and the best policy comes below it without"),
        (TWO, TWO, 0.6, "limit 0.6 needs a multiplier of about 0.697 (95%: 0.697 to 0.697); raising the reward alone"),
        (TWO, TWO, 0.05, "limit 0.05 is not kept by any multiplier up to the ceiling 20: the best policy still costs"),
        (TWO, [[1.0, 0.5]] * 2, 0.4, "limit 0.4 is out of reach on these samples: even the least costly of 2 answers"),
    ],
)
def test_the_finding_is_said_in_words(rewards, costs, threshold, words):
    found = estimate_lambda(rewards, costs, threshold, 0.44)
    assert words in found.words
    assert "2 answers of the reference to each of 2 prompts and says nothing about answers it did not give" in (
        found.words
    )


def test_an_interval_that_reaches_the_ceiling_ends_out_of_reach():
    found = estimate_lambda(*random_scores(1), -1.0, 0.5, ceiling=8.0)
    assert found.reachable
    assert f"(95%: {found.low:.3g} to out of reach)" in found.words


def test_a_limit_that_holds_today_may_need_a_multiplier_when_the_reward_rises():
    found = estimate_lambda(TWO, TWO, 0.55, 0.44)
    assert found.cost_now < 0.55 < found.cost_free
    assert "needs a multiplier" in found.words


def test_weight_on_one_answer_makes_the_numbers_a_guess():
    rewards, costs = random_scores(0)
    assert "so its numbers are a guess" in estimate_lambda(rewards, costs, -0.3, 0.02).words
    assert "guess" not in estimate_lambda(rewards, costs, -0.3, 1.0).words


def test_a_limit_met_exactly_is_met():
    found = estimate_lambda(random_scores(0)[0], np.full((12, 4), 0.05), 0.05, 0.02)
    assert (found.multiplier, found.reachable, found.low, found.high) == (0.0, True, 0.0, 0.0)


def test_everything_known_goes_into_json():
    found = estimate_lambda(*random_scores(0), -0.3, 0.5)
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["multiplier"], told["words"]) == (found.multiplier, found.words)


@pytest.mark.parametrize(
    "given, match",
    [
        ((TWO, [[1.0, 0.0]], 0.5, 0.1), r"cost has the shape \(1, 2\), the rewards have \(2, 2\)"),
        (([[1.0, 0.0]], [[1.0, 0.0]], 0.5, 0.1), r"shape \(1, 2\); give \(prompts, samples\) with at least two"),
        (([[1.0], [0.0]], [[1.0], [0.0]], 0.5, 0.1), "at least two of each"),
        ((TWO, [[1.0, math.nan]] * 2, 0.5, 0.1), "cost: 2 of 4 scores are not finite"),
        ((TWO, TWO, 0.5, 0.0), "above zero, got 0 and 20"),
        ((TWO, TWO, 0.5, 0.1, "split", 0.0), "above zero, got 0.1 and 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(given, match):
    with pytest.raises(UserError, match=match):
        estimate_lambda(*given)


def test_every_cost_needs_its_threshold():
    with pytest.raises(UserError, match=r"costs \['a'\] and thresholds \['b'\] must share"):
        estimate_lambdas(TWO, {"a": TWO}, {"b": 1.0}, 0.1)


def test_the_suggested_threshold_is_the_cost_of_safe_answers_where_that_is_lower():
    found = suggest_threshold([0.0, 1.0, 2.0, 5.0], [True, True, False, None])
    assert (found.threshold, found.from_safe) == (0.5, 0.5)
    assert found.from_now == pytest.approx(2.0 - 0.25 * math.sqrt(14 / 3))
    assert found.words == (
        "a threshold of 0.5 is suggested: what answers labelled safe cost on average; the policy's mean cost is 2 now"
    )


def test_a_policy_safer_than_the_safe_answers_is_held_where_it_is():
    found = suggest_threshold([0.0, 1.0, 2.0, 5.0], [True, True, False, None], now=0.2, margin=0.1)
    assert found.threshold == found.from_now == 0.0  # 0.2 less 0.1 x 2.16 would be below any cost seen
    assert "answers labelled safe cost 0.5, which would bind less" in found.words


def test_without_labels_the_present_cost_less_a_margin_is_suggested():
    found = suggest_threshold([0.0, 1.0, 2.0, 5.0], margin=0.5)
    assert found.threshold == pytest.approx(2.0 - 0.5 * math.sqrt(14 / 3))
    assert found.from_safe is None


def test_a_policy_below_every_cost_given_is_held_where_it_is():
    assert suggest_threshold([1.0, 2.0], now=0.5).threshold == 0.5


@pytest.mark.parametrize(
    "costs, safe, match",
    [
        ([1.0], None, r"at least two finite costs, got the shape \(1,\)"),
        ([1.0, math.inf], None, "at least two finite costs"),
        ([1.0, 2.0], [True], "2 costs and 1 labels given"),
        ([1.0, 2.0], [False, None], "none of the 2 answers is labelled safe"),
    ],
)
def test_costs_and_labels_that_say_nothing_are_refused(costs, safe, match):
    with pytest.raises(UserError, match=match):
        suggest_threshold(costs, safe)


def test_a_limit_that_permits_more_harm_than_there_is_is_said():
    assert permits_more(ConstraintSettings(threshold=0.05), 0.05) is None
    assert permits_more(ConstraintSettings(threshold=0.05), 0.06) is None
    assert permits_more(ConstraintSettings(threshold=0.05), 0.02) == (
        "constraint harm: this limit permits more harm than the policy does now: its mean flag is 0.02, the limit at "
        "most 0.05; training may drift to it, so set the threshold no further above than 0.02"
    )


def test_a_limit_from_below_permits_more_when_it_lies_lower():
    settings = ConstraintSettings(name="tact", direction="at_least", measure="logit", threshold=1.0)
    assert permits_more(settings, 1.0) is None
    assert permits_more(settings, 0.5) is None
    assert "its mean logit is 1.5, the limit at least 1" in permits_more(settings, 1.5)

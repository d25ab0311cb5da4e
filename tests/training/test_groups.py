"""Groups: everyone's limit is everyone's own, and the reward of the group served worst counts more."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from holdfast.engine.distributed import Processes
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.errors import UserError
from holdfast.losses.dual import projected_step
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.groups import GroupLimits, GroupRewards, GroupRewardSettings, per_group
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

OPTIMISER = OptimiserSettings(learning_rate=0.02, warmup_ratio=0.0)
GROUPS = ("left", "right")


def harm(**settings):
    base = {"measure": "logit", "threshold": 0.1, "initial": 0.5, "bound": "mean"}
    return Constraint(ConstraintSettings(**(base | settings)))


def experience(groups, **scores):
    tables = {name: torch.tensor(values) for name, values in scores.items()}
    return SimpleNamespace(groups=tuple(groups), size=len(groups), per_prompt=1, score=tables.__getitem__)


def scores(conversations):
    words = [one.response.split() for one in conversations]
    reward = [row.count("red") - 0.5 * row.count("blue") + 0.1 * len(row) for row in words]
    return {"reward": torch.tensor(reward), "cost": torch.tensor([row.count("dark") - 0.4 for row in words])}


def grouped(bench, score, **settings):
    """A bench whose prompts with a question of the sea belong to the left group."""
    made = bench(score=score, **settings)
    made.collector = replace(
        made.collector, group_of=lambda prompt: "left" if "sea" in prompt.messages[-1].text else "right"
    )
    return made


def test_a_multiplier_moves_by_the_cost_of_its_own_group():
    limits = GroupLimits([harm()], GROUPS)
    rows = experience(["left", "right"] * 40, cost=[0.3, 0.0] * 40)
    numbers = limits.observe(rows)
    # 0.5 + 0.1 (0.3 - 0.1), and 0.5 + 0.1 (0 - 0.1)
    assert projected_step(0.5, 0.3 - 0.1, rate=0.1) == pytest.approx(0.52)
    assert limits.multipliers == pytest.approx({"harm/left": 0.52, "harm/right": 0.49})
    assert numbers["cost/harm/left"] == pytest.approx(0.3)
    assert numbers["cost/harm/right"] == 0.0


def test_the_groups_share_the_failure_probability_and_nothing_else():
    pattern = harm(delta=0.06)
    made = per_group(pattern, ["a", "b", "c"])
    assert [one.name for one in made.values()] == ["harm/a", "harm/b", "harm/c"]
    assert [one.settings.delta for one in made.values()] == pytest.approx([0.02] * 3)
    assert {one.settings.threshold for one in made.values()} == {0.1}
    assert pattern.settings.delta == 0.06
    flag = Constraint(ConstraintSettings(measure="probability"), zero=1.5, probability=torch.sigmoid)
    copy = per_group(flag, ["a"])["a"]
    assert (copy.zero, copy.probability) == (1.5, torch.sigmoid)


def test_each_row_meets_the_multipliers_of_its_group():
    limits = GroupLimits([harm(), harm(name="rude", score="rudeness", initial=1.0)], GROUPS)
    limits.by_name["harm"]["left"].multiplier = 3.0
    limits.by_name["harm"]["right"].multiplier = 0.0
    rows = experience(["left", "right", "left"], cost=[1.0, 2.0, 0.0], rudeness=[0.0, 1.0, 2.0])
    for members in limits.by_name.values():
        for one in members.values():
            one.observe(torch.zeros(32))
    costs = limits.costs(rows)
    assert {name: cost.tolist() for name, cost in costs.items()} == {"harm": [1, 2, 0], "rude": [0, 1, 2]}
    # (5 - 3 - 0)/5, (5 - 0 - 1)/2, (5 - 0 - 2)/5
    assert limits.mix(rows, torch.full((3,), 5.0), costs).tolist() == pytest.approx([0.4, 2.0, 0.6])
    wide = {name: cost[:, None].expand(3, 2) for name, cost in costs.items()}
    assert limits.mix(rows, torch.full((3, 2), 5.0), wide)[:, 1].tolist() == pytest.approx([0.4, 2.0, 0.6])


def test_a_group_that_does_not_occur_keeps_its_multiplier():
    limits = GroupLimits([harm(rate=1.0)], GROUPS)
    for _ in range(2):
        numbers = limits.observe(experience(["left"] * 40, cost=[1.0] * 40))
    assert limits.multipliers == pytest.approx({"harm/left": 2.3, "harm/right": 0.5})
    assert "multiplier/harm/right" not in numbers
    assert "left" in limits.warnings()[0]


def test_one_group_is_no_groups():
    rows = experience(["left"] * 40, cost=torch.linspace(-1, 3, 40).tolist(), reward=[0.0] * 40)
    alone = GroupLimits([harm(bound="student_t")], ["left"])
    plain = Limits([harm(bound="student_t")])
    alone.observe(rows)
    plain.observe(rows)
    assert list(alone.multipliers.values()) == list(plain.multipliers.values())
    reward = torch.linspace(0, 1, 40)
    ours, theirs = (one.mix(rows, reward, one.costs(rows)) for one in (alone, plain))
    assert torch.equal(ours, theirs)


def test_rows_without_a_group_or_of_a_strange_one_are_refused():
    limits = GroupLimits([harm()], GROUPS)
    with pytest.raises(UserError, match="rows that carry a group, and these do not; set group_of"):
        limits.observe(SimpleNamespace(groups=(), size=2))
    with pytest.raises(UserError, match="no limit for the groups middle; there are limits for left, right"):
        limits.observe(experience(["left", "middle"], cost=[0.0, 0.0]))
    for groups in ([], ["a", "a"]):
        with pytest.raises(UserError, match="groups need distinct names, at least one"):
            GroupLimits([harm()], groups)


# Rewards.


def shaping(**settings):
    return GroupRewards(GroupRewardSettings(**settings), GROUPS)


def test_weight_moves_to_the_group_with_the_lower_reward():
    rewards = shaping(eta=1.0)
    told = rewards.observe(experience(["left", "right"], reward=[0.8, 0.2]), Processes())
    assert rewards.weights == pytest.approx({"left": 0.354344, "right": 0.645656}, abs=1e-6)
    assert told["reward/left"] == pytest.approx(0.8)
    assert told["group_weight/right"] == pytest.approx(0.645656, abs=1e-6)


def test_regret_asks_how_far_each_group_is_from_its_best():
    rewards = shaping(eta=1.0, best={"left": 2.0, "right": 0.3})
    rewards.observe(experience(["left", "right"], reward=[0.8, 0.2]), Processes())
    # regrets 1.2 and 0.1: the left group is now the one behind
    assert rewards.weights["left"] == pytest.approx(1 / (1 + 2.718281828459045**-1.1), abs=1e-6)
    with pytest.raises(UserError, match="best rewards are given for left and the groups are left, right"):
        shaping(best={"left": 1.0})


def test_what_is_paid_averages_to_the_weighted_means_of_the_groups():
    rewards = shaping(eta=1.0, normalise=False)
    rows = experience(["left", "right", "right", "right"], reward=[1.0, 0.0, 0.5, 2.5])
    rewards.observe(rows, Processes())
    q = rewards.weights
    assert q == pytest.approx({"left": 0.5, "right": 0.5})
    rewards._weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    paid = rewards.paid(rows)
    # 1 is a quarter of the rows, and its group counts 0.2: 1 x 0.2/0.25; the others x 0.8/0.75
    assert paid.tolist() == pytest.approx([0.8, 0.0, 0.5 * 0.8 / 0.75, 2.5 * 0.8 / 0.75])
    assert float(paid.mean()) == pytest.approx(0.2 * 1.0 + 0.8 * 1.0)


def test_scales_of_groups_are_made_equal_before_the_policy_is_paid():
    rewards = shaping(eta=0.0)
    rows = experience(["left", "left", "right", "right"], reward=[1.0, 3.0, 100.0, 300.0])
    rewards.observe(rows, Processes())
    assert rewards.paid(rows).tolist() == pytest.approx([-1, 1, -1, 1])
    assert rewards.weights == {"left": 0.5, "right": 0.5}


def test_an_absent_group_keeps_its_weight_and_a_lost_one_can_return():
    rewards = shaping(eta=50.0)
    rewards.observe(experience(["right"], reward=[5.0]), Processes())
    assert rewards.weights == {"left": 0.5, "right": 0.5}
    rewards.observe(experience(["left", "right"], reward=[10.0, 0.0]), Processes())
    assert rewards.weights["left"] == pytest.approx(1e-6, rel=1e-3)
    rewards.observe(experience(["right"], reward=[5.0]), Processes())
    assert sum(rewards.weights.values()) == pytest.approx(1)
    assert rewards.weights["left"] == pytest.approx(1e-6, rel=1e-3)
    rewards.observe(experience(["left", "right"], reward=[0.0, 10.0]), Processes())
    assert rewards.weights["left"] > 0.99


def test_all_processes_count():
    class Two(Processes):
        def gather(self, items):
            return [*items, *([7.0] if items == [1.0] else [])]

    rewards = shaping(normalise=False, eta=0.0)
    told = rewards.observe(experience(["left", "right"], reward=[1.0, 3.0]), Two())
    assert told["reward/left"] == 4.0
    # left: two of three rows
    assert rewards.paid(experience(["left", "right"], reward=[1.0, 3.0])).tolist() == pytest.approx([0.75, 4.5])


def test_the_state_is_everything():
    rows = experience(["left", "right"] * 40, reward=torch.linspace(-1, 2, 80).tolist(), cost=[0.3, 0.0] * 40)
    one, other = (GroupLimits([harm()], GROUPS, GroupRewardSettings(keep=0.9)) for _ in range(2))
    one.observe(experience(["left", "right"] * 40, reward=[5.0, -3.0, 1.0, 0.0] * 20, cost=[0.1, 0.2] * 40))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict()
    assert one.observe(rows) == other.observe(rows)
    assert torch.equal(one.reward(rows, "reward"), other.reward(rows, "reward"))
    with pytest.raises(UserError, match="weighed by the score reward, and the policy maximises joy"):
        one.reward(rows, "joy")


# Through the methods.


def learn(method, made, iterations):
    step = Step(made.policy, OPTIMISER, iterations, method.limits.processes, stage="x")
    seen = []
    for iteration in range(1, iterations + 1):
        learnable = method.collect(made.prompts, iteration)
        seen.append(learnable)
        for micro in method.mini_batches(learnable, torch.Generator().manual_seed(iteration)):
            step.step(micro, lambda batch: method.loss("policy", batch), lambda b: method.counts("policy", b), {})
    return seen


def test_a_policy_learns_under_the_limits_of_both_groups(bench):
    """Red words cost the left group alone: its multiplier rises, that of the other falls, and red becomes rarer."""

    def score(conversations):
        left = torch.tensor([float("sea" in one.prompt.messages[-1].text) for one in conversations])
        red = torch.tensor([float(one.response.split().count("red")) for one in conversations])
        return {"reward": torch.zeros(len(red)), "cost": left * red}

    made = grouped(bench, score, k=16, micro_tokens=4096)
    limits = GroupLimits([harm(threshold=0.05, initial=2.0, rate=2.0, window=96)], GROUPS)
    method = LeaveOneOut(made.collector, LeaveOneOutSettings(kl=0.0), OPTIMISER, limits)
    first = method.collect(made.prompts, 100)
    before = dict(limits.multipliers)
    cost = first.experience.score("cost")
    left = torch.tensor([group == "left" for group in first.experience.groups])
    assert 0 < int(left.sum()) < len(left)
    assert before["harm/left"] == pytest.approx(2 + 2 * (float(cost[left].mean()) - 0.05))
    assert before["harm/right"] == pytest.approx(2 + 2 * (0 - 0.05))
    assert before["harm/left"] > 2 > before["harm/right"]
    assert first.experience.places.table(first.advantages)[~left].eq(0).all()
    seen = learn(method, made, 8)
    costs = [float(one.experience.score("cost")[left].mean()) for one in seen]
    assert costs[-1] < 0.5 * costs[0]
    assert limits.multipliers["harm/right"] < before["harm/right"]


def test_the_advantage_is_that_of_each_groups_own_lagrangian(bench):
    made = grouped(bench, scores, k=3)
    limits = GroupLimits([harm(initial=2.0, rate=0.5)], GROUPS, GroupRewardSettings(eta=0.3))
    method = LeaveOneOut(made.collector, LeaveOneOutSettings(kl=0.1), OPTIMISER, limits)
    learnable = method.collect(made.prompts, 1)
    rows = learnable.experience
    expected = []
    for start in range(0, rows.size, 3):
        group = rows.groups[start]
        mine = [i for i in range(rows.size) if rows.groups[i] == group]
        reward = rows.score("reward")
        history = [float(reward[i]) for i in mine]
        mean = sum(history) / len(history)
        std = (sum((x - mean) ** 2 for x in history) / len(history)) ** 0.5
        factor = limits.rewards.weights[group] * rows.size / len(mine)
        weight = limits.multipliers[f"harm/{group}"]
        returns = []
        for i in range(start, start + 3):
            gain = factor * (float(reward[i]) - mean) / std - 0.1 * float(rows.kl[i].sum())
            returns.append((gain - weight * float(rows.score("cost")[i])) / (1 + weight))
        expected += [value - (sum(returns) - value) / 2 for value in returns]
    found = rows.places.table(learnable.advantages)[:, 0]
    # float32 against float64
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert limits.rewards.weights["left"] != 0.5


def test_actor_and_critics_meet_one_critic_for_each_limit_not_for_each_group(bench):
    made = grouped(bench, scores, k=3)
    limits = GroupLimits([harm(initial=2.0)], GROUPS, GroupRewardSettings())
    optimisers = {"policy": OPTIMISER, "critic": OPTIMISER}
    method = ActorCritic(made.collector, made.critics, ActorCriticSettings(), optimisers, limits)
    learnable = method.collect(made.prompts, 1)
    assert learnable.old_values.keys() == {"value", "value/harm"}
    limits.by_name["harm"]["right"].multiplier = 1e6
    table = learnable.experience.places.table(learnable.advantages)
    again = limits.mix(learnable.experience, table, {"harm": table})
    right = torch.tensor([group == "right" for group in learnable.experience.groups])
    # A multiplier of a million leaves the reward a millionth part.
    torch.testing.assert_close(again[right], -table[right], rtol=0, atol=1e-4)
    assert not torch.allclose(again[~right], -table[~right])
    assert {"multiplier/harm/left", "group_weight/left", "reward/right"} <= method.after(learnable).keys()


def test_groups_follow_the_prompts(bench):
    made = grouped(bench, scores, k=2)
    rows = made.collector.collect(made.prompts, seed=1)
    assert rows.groups == tuple(
        "left" if "sea" in one.prompt.messages[-1].text else "right" for one in rows.conversations
    )
    assert bench().collector.collect(made.prompts[:1], seed=1).groups == ()

"""Critics first: the policy stands still to the bit, targets are what was earned, and it ends where the loss does."""

import json
from dataclasses import replace

import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.groups import GroupLimits, GroupRewardSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.monitor import Monitor, MonitorSettings
from holdfast.training.policy import Limits
from holdfast.training.pretraining import CriticPretraining, PretrainSettings, plateaued, pretrain_critics

OPTIMISER = OptimiserSettings(learning_rate=0.01)
ONLINE = OnlineSettings(iterations=2, prompts_per_iteration=4, sample_every=0)
SETTINGS = {
    "score": {"transform": "norm", "exclude_truncated": False},
    "kl": {"coef": 0.1, "control": "adaptive", "horizon": 100},
    "advantage": {"lam_policy": 0.6, "lam_value": 0.7},
    "steps_per_experience": 2,
}


def algorithm(made, critics=None, **settings):
    limit = ConstraintSettings(measure="logit", threshold=-0.9, bound="mean", window=64, rate=0.5)
    critics = made.critics if critics is None else critics
    limits = Limits([Constraint(limit)] if critics else [])
    optimisers = {"policy": OPTIMISER, "critic": OPTIMISER}
    return ActorCritic(made.collector, critics, ActorCriticSettings(**(SETTINGS | settings)), optimisers, limits)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(folder, stage):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["stage"] == stage]


def pretrain(made, folder, method=None, monitor=None, **settings):
    method = method or algorithm(made)
    settings = PretrainSettings(**({"max_iterations": 3, "min_iterations": 1, "window": 3} | settings))
    return method, pretrain_critics(method, made.prompts, settings, ONLINE, RunFolder(folder), monitor)


@pytest.mark.parametrize(
    "losses, window, least, over",
    [
        ([], 1, 0.02, False),
        ([4.0], 1, 0.02, False),
        ([4.0, 4.0], 1, 0.02, True),
        ([4.0, 3.93], 1, 0.02, True),
        ([4.0, 3.91], 1, 0.02, False),
        ([4.0, 5.0], 1, 0.02, True),
        ([9.0, 1.0, 1.0, 1.0, 1.0], 2, 0.02, True),
        ([1.0, 9.0, 1.0, 1.0, 1.0], 2, 0.02, False),
        ([4.0, 2.0, 3.0, 3.0], 2, 0.02, True),
        ([4.0, 3.9], 1, 0.0, False),
    ],
)
def test_a_plateau_is_where_one_window_is_no_better_than_the_one_before(losses, window, least, over):
    assert plateaued(losses, window, least) is over


def test_a_loss_of_nothing_cannot_fall():
    assert plateaued([0.0, 0.0], 1, 0.02)


def test_the_policy_and_all_that_steers_it_stand_still(bench, tmp_path):
    made = bench(k=4)
    method = algorithm(made)
    before = weights(made.policy)
    critics = {name: weights(critic) for name, critic in made.critics.items()}
    _, done = pretrain(made, tmp_path, method)
    assert done == len(rows(tmp_path, "critics")) == 3
    assert equal(weights(made.policy), before)
    assert not any(equal(weights(critic), critics[name]) for name, critic in made.critics.items())
    assert method.limits.multipliers == {"harm": 1.0}
    assert method.kl.coef == 0.1
    assert {row["multiplier/harm"] for row in rows(tmp_path, "critics")} == {1.0}
    assert {row["kl_coef"] for row in rows(tmp_path, "critics")} == {0.1}
    assert not any(name.startswith("policy/") for row in rows(tmp_path, "critics") for name in row)


def test_the_weights_of_groups_stand_still(bench):
    made = bench()
    made.collector = replace(made.collector, group_of=lambda prompt: prompt.messages[-1].text[:4])
    groups = sorted({prompt.messages[-1].text[:4] for prompt in made.prompts})
    limits = GroupLimits([], groups, GroupRewardSettings(eta=1.0))
    critics = {"value": made.critics["value"]}
    optimisers = {"policy": OPTIMISER, "critic": OPTIMISER}
    method = ActorCritic(made.collector, critics, ActorCriticSettings(), optimisers, limits)
    equal_shares = dict(limits.rewards.weights)
    CriticPretraining(method, PretrainSettings()).collect(made.prompts, 1)
    assert limits.rewards.weights == equal_shares
    assert limits.rewards.state_dict()["normaliser"], "the scales of the groups fill all the same"
    method.collect(made.prompts, 1)
    assert limits.rewards.weights != equal_shares


def test_what_was_seen_goes_on_into_the_policys_stage(bench, tmp_path):
    made = bench(k=4)
    method, _ = pretrain(made, tmp_path)
    seen = method.state_dict()
    assert seen["scores"][""]["seen"] == 3 * 16
    assert len(seen["limits"]["harm"]["window"]) == 3 * 16
    run_online(method, made.prompts, ONLINE, RunFolder(tmp_path), stage="policy")
    assert method.state_dict()["scores"][""]["seen"] == 5 * 16
    assert method.limits.multipliers["harm"] > 1.0
    assert method.kl.coef != 0.1


def test_targets_are_what_was_really_earned(bench):
    """Lambda 1 and no discount: the rest of the answer's rewards, whatever the critic says meanwhile."""
    made = bench()
    pretraining = CriticPretraining(algorithm(made, kl=0.0), PretrainSettings())
    learnable = pretraining.collect(made.prompts, 1)
    experience, scores = learnable.experience, learnable.experience.scores["reward"].double()
    paid = ((scores - scores.mean()) / scores.std()).float()
    expected = paid[:, None] * experience.response_mask
    table = experience.places.table(learnable.returns["value"])
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-5)  # sums of deltas in float32
    ordinary = algorithm(made, kl=0.0).estimate(experience, {})
    assert not torch.allclose(ordinary.returns["value"], learnable.returns["value"], atol=1e-2)
    torch.testing.assert_close(ordinary.advantages, learnable.advantages)


def test_the_policys_first_answers_are_not_those_the_critics_know(bench):
    made = bench()
    method = algorithm(made)
    known = CriticPretraining(method, PretrainSettings()).collect(made.prompts, 1)
    new = method.collect(made.prompts, 1)
    assert [row.ids for row in known.experience.rows] != [row.ids for row in new.experience.rows]


class Falls:
    """A method that says each of these losses in turn and does nothing."""

    critics = optimisers = weights = {}

    def __init__(self, **losses):
        self.losses, self.returns, self.turn = losses, losses, -1

    def numbers(self, experience):
        self.turn += 1
        return {f"value_error/{name}": losses[self.turn] for name, losses in self.losses.items()}


@pytest.mark.parametrize(
    "losses, settings, stops",
    [
        ({"value": [4.0, 2.0, 2.0, 2.0, 2.0]}, {"window": 1, "min_iterations": 1}, 3),
        ({"value": [4.0, 4.0, 4.0, 4.0, 4.0]}, {"window": 1, "min_iterations": 4}, 4),
        ({"value": [4.0, 4.0, 4.0, 4.0, 4.0]}, {"window": 2, "min_iterations": 1}, 4),
        ({"value": [5.0, 4.0, 3.0, 2.0, 1.0]}, {"window": 1, "min_iterations": 1, "max_iterations": 4}, 4),
        ({"value": [4.0, 4.0, 4.0, 4.0], "value/harm": [4.0, 2.0, 1.0, 1.0]}, {"window": 1, "min_iterations": 1}, 4),
    ],
)
def test_it_ends_when_every_critic_has_stopped_to_learn(losses, settings, stops):
    method = Falls(**losses)
    pretraining = CriticPretraining(method, PretrainSettings(**settings))
    done = 0
    while not pretraining.finished():
        pretraining.after(method)
        done += 1
    assert done == stops


def test_the_stage_lasts_as_the_rule_says(bench, tmp_path):
    made = bench()
    _, done = pretrain(made, tmp_path, max_iterations=6, min_iterations=2, window=1, plateau=0.9)
    errors = [[row[f"value_error/{name}"] for name in ("value", "value/harm")] for row in rows(tmp_path, "critics")]
    expected = next(
        n for n in range(2, 7) if n == 6 or all(now > 0.1 * then for now, then in zip(errors[n - 1], errors[n - 2]))
    )
    assert done == len(errors) == expected < 6


def test_the_monitor_learns_here_what_is_normal(bench, tmp_path):
    made = bench()
    method = algorithm(made)
    monitor = Monitor(MonitorSettings(), method.kl)
    pretrain(made, tmp_path, method, monitor)
    start = monitor.state_dict()["start"]
    assert [row["nll"] for row in start] == [row["nll"] for row in rows(tmp_path, "critics")]
    assert monitor.state_dict()["wanted"] == 0, "no row of the policy's stage belongs to the start"


def test_heads_on_the_policy_learn_alone(bench, tmp_path):
    made = bench()
    before = weights(made.policy)
    heads = HeadsOnPolicy(made.policy, ["value", "value/harm"])
    method = algorithm(made, {"value": heads})
    pretrain(made, tmp_path, method)
    assert equal(weights(made.policy), before)
    assert heads.head.weight.abs().max() > 0
    assert not any(parameter.grad is not None for parameter in made.policy.parameters())


def test_no_critics_cannot_be_trained(bench, tmp_path):
    made = bench()
    method = algorithm(made, {}, reward_critic=False)
    with pytest.raises(UserError, match="no critic"):
        pretrain(made, tmp_path, method)


def test_fewest_above_most_is_refused():
    with pytest.raises(ValueError, match="min_iterations 9 is above max_iterations 3"):
        PretrainSettings(min_iterations=9, max_iterations=3)


def test_equal_scores_teach_nothing_and_break_nothing(bench, tmp_path):
    """No spread at all: every answer is paid zero, so the critics learn zero."""
    made = bench(
        same=True, score=lambda answers: {name: torch.full((len(answers),), 3.0) for name in ("reward", "cost")}
    )
    critics = {"value": from_policy(made.policy, ("value", "value/harm"))}
    method, _ = pretrain(made, tmp_path, algorithm(made, critics, kl=0.0))
    assert all(row["return_mean/value"] == 0.0 for row in rows(tmp_path, "critics"))
    assert method.parts["value"].head.weight.isfinite().all()

"""GRPO: numbers by hand, settings that cannot work, what is logged; its gradients stand in `tests/oracle`."""

from dataclasses import replace

import pytest
import torch

from holdfast.config import build
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.rollout.types import Sampling
from holdfast.training.grpo import OBJECTIVE, Grpo, GrpoSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

OPTIMISER = OptimiserSettings(learning_rate=0.01)
BARE = {"kl": 0.0, "overlong": "none", "scalarise": {"std_floor": 0.0, "eps": 1e-9}}


def harm(**settings):
    base = {"measure": "logit", "threshold": 0.0, "initial": 2.0, "bound": "mean"}
    return Constraint(ConstraintSettings(**(base | settings)))


def algorithm(made, constraints=(), probe=None, **settings):
    return Grpo(made.collector, GrpoSettings(**settings), OPTIMISER, Limits(constraints), probe)


def told(**columns):
    """A scorer that gives these numbers, whatever was said."""
    return lambda conversations: {name: torch.tensor(values) for name, values in columns.items()}


def first(bench, constraints=(), columns=None, **settings):
    """The method, and what it learns from the answers to one prompt."""
    columns = columns or {"reward": [1.0, 0.0, 0.5, 0.5], "cost": [1.0, 0.0, 0.0, 0.0]}
    made = bench(k=4, score=told(**columns))
    method = algorithm(made, constraints, **(BARE | settings))
    return method, method.collect(made.prompts[:1], 1)


def flat(gradient):
    return torch.cat([one.flatten() for one in gradient])


def slope(method, learnable):
    """The gradient of one optimiser step, end to end."""
    (batches,) = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    policy = method.parts["policy"]
    count = sum(method.counts("policy", batch)["policy"] for batch in batches)
    policy.zero_grad()
    for batch in batches:
        term = method.loss("policy", batch)["policy"].total
        if term.requires_grad:
            (term / count).backward()
    found = flat([p.grad for p in policy.parameters() if p.grad is not None])
    policy.zero_grad()
    return found


# Numbers by hand.


def test_the_limit_is_set_against_the_reward_after_both_are_on_one_scale(bench):
    _, learnable = first(bench, [harm()])
    # Z_R = (1, 0, .5, .5) about .5 over .408248; Z_C = (1, 0, 0, 0) about .25 over .5; (Z_R - 2 Z_C) / 3
    expected = [-0.591752, -0.074915, 0.333333, 0.333333]
    assert learnable.advantages.tolist() == pytest.approx(expected, abs=1e-6)
    assert learnable.kept.all()
    # What a unit of cost costs in units of reward: 2 x .408248 / .5
    assert learnable.numbers["price/harm"] == pytest.approx(1.632993, abs=1e-5)


@pytest.mark.parametrize("floor, expected", [(0.05, [-0.01, 0.03, -0.03, 0.01]), (0.0, [-0.387, 1.162, -1.162, 0.387])])
def test_a_floor_keeps_small_differences_of_cost_small(bench, floor, expected):
    columns = {"reward": [0.5] * 4, "cost": [0.010, 0.012, 0.009, 0.011]}
    _, learnable = first(bench, [harm(initial=1.0)], columns, cost_floor=floor)
    # The multiplier is 1, so half of the advantage is the cost's; the numbers are given to three digits.
    assert (-2 * learnable.advantages).tolist() == pytest.approx(expected, abs=5e-4)


def test_a_group_whose_rewards_are_equal_is_alive_where_a_cost_is_charged(bench):
    columns = {"reward": [0.5] * 4, "cost": [1.0, 0.0, 0.0, 0.0]}
    for initial, silent in ((1.0, False), (0.0, True)):
        _, learnable = first(bench, [harm(initial=initial, threshold=9.0)], columns)
        assert learnable.silent.tolist() == [silent] * 4
    _, dropped = first(bench, [harm(initial=0.0, threshold=9.0)], columns, dead="drop")
    assert not dropped.kept.any()


def test_in_units_of_the_scores_the_multiplier_is_the_price(bench):
    _, learnable = first(bench, [harm()], scalarise={"mode": "center"})
    assert learnable.advantages.tolist() == pytest.approx([(0.5 - 1.5) / 3, 0.0, 0.5 / 3, 0.5 / 3], abs=1e-6)
    assert not any(name.startswith("price/") for name in learnable.numbers)


@pytest.mark.parametrize(
    "columns",
    [
        {"reward": [1.0, 0.0, 0.5, 0.5], "cost": [0.3] * 4},
        {"reward": [1.0, float("nan"), 0.5, 0.5], "cost": [1.0, 0.0, 0.0, 0.0]},
    ],
    ids=["the cost does not vary", "an answer was not scored"],
)
def test_what_has_no_spread_has_no_price(bench, columns):
    _, learnable = first(bench, [harm()], columns, cost_floor=0.0)
    assert "price/harm" not in learnable.numbers


def test_the_price_knows_the_floors_that_advantages_are_divided_by(bench):
    nearly = {"reward": [0.51, 0.50, 0.49, 0.50], "cost": [0.012, 0.010, 0.009, 0.011]}
    _, learnable = first(bench, [harm()], nearly, cost_floor=0.5, scalarise={"std_floor": 0.2})
    assert learnable.numbers["price/harm"] == pytest.approx(2 * 0.2 / 0.5)
    advantages = learnable.advantages.tolist()
    # Both differences over their floors: (.01 / .2 - 2 x .0015 / .5) / 3, the first answer's.
    assert advantages[0] == pytest.approx((0.01 / 0.2 - 2 * 0.0015 / 0.5) / 3, rel=1e-3)


def test_logs_hold_the_weighted_sum_of_all_objectives(bench):
    columns = {"reward": [1.0, 0.0, 0.5, 0.5], "length": [2.0, 4.0, 6.0, 8.0]}
    objectives = {"reward": {"weight": 2.0}, "short": {"score": "length", "direction": "lower", "weight": 0.5}}
    method, learnable = first(bench, [], columns, objectives=objectives)
    assert learnable.experience.scores[OBJECTIVE].tolist() == [1.0, -2.0, -2.0, -3.0]
    row = method.after(learnable)
    assert row[OBJECTIVE] == pytest.approx(-1.5)
    assert (row["objective/reward"], row["objective/short"]) == pytest.approx((0.5, 5.0))
    assert {"effective_weight/short", "kl", "length", "truncated", "kl_coef", "dead", "unscored/reward"} <= row.keys()
    assert method.samples(learnable)[0].keys() == {"prompt", "response", "reward", "length", OBJECTIVE}


def test_a_probe_is_asked(bench):
    made = bench()
    method = algorithm(made, [harm()], probe=lambda conversations: {"probe": float(len(conversations))})
    assert method.after(method.collect(made.prompts, 1))["probe"] == 18


def test_terms_and_weights_are_those_that_are_wanted(bench):
    made = bench()
    method = algorithm(made, kl={"coef": 0.1, "in_loss": 0.5}, loss={"entropy": 0.2})
    learnable = method.collect(made.prompts, 1)
    (batches,) = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    for batch in batches:
        terms, counts = method.loss("policy", batch), method.counts("policy", batch)
        assert {name: float(term.count) for name, term in terms.items()} == counts
        assert {"policy", "kl", "entropy", "ratio", "clip_fraction"} <= counts.keys()
    assert (method.weights["kl"], method.weights["entropy"]) == (0.5, -0.2)
    method.kl.raise_to(3.0)
    assert method.weights["kl"] == 1.5
    assert {"kl", "entropy"}.isdisjoint(algorithm(made).counts("policy", batches[0]))


def test_layers_in_low_precision_point_the_same_way_and_no_longer_exactly(bench):
    exact, rough = (slope(*first(bench, precision=precision)) for precision in ("float32", "bfloat16"))
    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert float(torch.cosine_similarity(exact, rough, dim=0)) > 0.99  # eight bits in every product


def test_learning_happens_without_dropout(bench):
    made = bench()
    made.policy.train()
    assert not algorithm(made).parts["policy"].training


# Settings that cannot work.


def test_a_group_of_one_is_refused_before_anything_is_sampled(bench):
    with pytest.raises(UserError, match=r"GRPO compares the answers to one prompt .* samples_per_prompt is 1; set it"):
        algorithm(bench(k=1))


def test_samples_of_another_distribution_are_refused(bench):
    made = bench()
    biased = made.collector.settings.model_copy(update={"sampling": Sampling(top_p=0.9)})
    made.collector = replace(made.collector, settings=biased)
    with pytest.raises(UserError, match=r"samples of the policy itself, but sampling has top_p=0.9 \(needs 1.0\)"):
        algorithm(made)


def test_an_objective_without_a_score_is_refused(bench):
    made = bench()
    method = algorithm(made, objectives={"reward": {}, "kindness": {}})
    with pytest.raises(UserError, match=r"objective kindness maximises the score 'kindness', .* gives reward, cost"):
        method.collect(made.prompts, 1)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(UserError, match=r"all weights are zero \(reward, cost\); give one objective a weight"):
        build(GrpoSettings, {"objectives": {"reward": {"weight": 0.0}, "cost": {"weight": 0.0}}})


def test_an_estimated_multiplier_needs_advantages_in_units_of_the_scores(bench):
    limit = harm(initial="estimate")
    with pytest.raises(UserError, match=r"constraint harm: `initial: estimate` .*mode=sum_then_normalise divides"):
        algorithm(bench(), [limit])
    for mode in ("center", "leave_one_out"):
        algorithm(bench(), [limit], scalarise={"mode": mode})


@pytest.mark.parametrize(
    "given, words",
    [
        ({"objectives": {"objective": {}}}, "an objective cannot be called 'objective': logs use that"),
        ({"objectives": {}}, "at least 1 item"),
        ({"loss": {"kind": "gmpo", "level": "sequence"}}, "gmpo has a level of its own"),
        ({"loss": {"kind": "cispo", "ratio_cap": 0.2}}, "greater than or equal to 1"),
        ({"kl": {"estimator": "k1"}}, "'k2', 'k3' or 'ratio_k3'"),
        ({"correction": {"cap": 0.5}}, "greater than or equal to 1"),
        ({"correction": {"low": 1.5}}, "less than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        build(GrpoSettings, given)


def test_limits_that_contradict_each_other_are_refused():
    low = harm(name="enough", direction="at_least", threshold=0.3)
    with pytest.raises(
        UserError,
        match=r"enough and harm contradict each other: the logit of cost would have to be at least 0.3 and at most 0.2",
    ):
        Limits([harm(threshold=0.2), low])
    Limits([harm(threshold=0.3), low])
    Limits([harm(threshold=0.2, score="other"), low])
    Limits([harm(threshold=0.2, measure="flag"), low])
    Limits([harm(threshold=0.2, name="other", direction="at_least"), low])


def test_a_checkpoint_of_other_objectives_is_refused(bench):
    state = algorithm(bench()).state_dict()
    assert state["objectives"] == {"weights": {"reward": 1.0}}
    with pytest.raises(UserError, match=r"made with the objectives and weights {'reward': 1.0}, and these are"):
        algorithm(bench(), objectives={"reward": {}, "cost": {}}).load_state_dict(state)


def test_a_scorer_may_not_take_the_name_of_the_sum(bench):
    made = bench(score=told(reward=[0.0] * 18, objective=[0.0] * 18))
    with pytest.raises(UserError, match=r"the scorer gives a score called 'objective'"):
        algorithm(made).collect(made.prompts, 1)


# Several objectives.


def conflict(conversations):
    """Red words please one and annoy the two others, which each like another word beside."""
    words = [one.response.split() for one in conversations]
    red, dark, sky = (torch.tensor([float(row.count(one)) for row in words]) for one in ("red", "dark", "sky"))
    return {"red": red, "plain": 0.5 * dark - red, "other": 0.5 * sky - red, "watched": dark}


def test_mgda_worsens_no_objective_where_fixed_weights_do(bench):
    objectives = {"red": {}, "plain": {}, "other": {}}
    settings = {"kl": 0.0, "overlong": "none", "loss": {"mean": "sequence_sum"}}

    def direction(mode, chosen):
        made = bench(k=6, score=conflict)
        scalarise = {"mode": mode, "std_floor": 0.0, "clip": None}
        method = algorithm(
            made, objectives={name: objectives[name] for name in chosen}, scalarise=scalarise, **settings
        )
        return slope(method, method.collect(made.prompts, 1))

    alone = [direction("normalise_then_sum", [name]).double() for name in objectives]
    for mode, safe in (("mgda", True), ("normalise_then_sum", False)):
        step = direction(mode, objectives).double()
        assert float(step.norm()) > 1e-6
        # To first order, what a step along the negative gradient lowers the loss of each objective by.
        gains = [float(step @ own) / float(step.norm() * own.norm()) for own in alone]
        assert (min(gains) > -1e-4) == safe, (mode, gains)  # float32 gradients


def test_mgda_leaves_what_is_only_watched_alone(bench):
    found = []
    for extra in ({}, {"watched": {"weight": 0.0}}):
        made = bench(k=6, score=conflict)
        objectives = {"plain": {}} | extra | {"other": {}}
        method = algorithm(made, objectives=objectives, scalarise={"mode": "mgda"})
        found.append(method.collect(made.prompts, 1))
    torch.testing.assert_close(found[0].advantages, found[1].advantages)
    assert found[1].numbers["effective_weight/watched"] == 0


def test_a_pull_in_the_loss_teaches_dead_groups_too(bench):
    """Their answers are read: once the policy has moved, the pull of this loss does not depend on advantages."""
    found = {}
    for dead in ("skip", "keep"):
        made = bench(k=3, score=told(reward=[1.0, 0.0, 0.5, *[0.5] * 15]))
        method = algorithm(made, dead=dead, loss={"kind": "dppo_tv"})
        learnable = method.collect(made.prompts, 1)
        assert learnable.silent.any()
        with torch.no_grad():
            made.policy.lm_head.weight.mul_(0.9)
        found[dead] = slope(method, learnable)
    torch.testing.assert_close(found["skip"], found["keep"])

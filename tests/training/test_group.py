"""Leave-one-out: its gradient against REINFORCE by a slow double loop in float64, and what multipliers do."""

from types import SimpleNamespace

import pytest
import torch

from holdfast.engine.step import OptimiserSettings, Step
from holdfast.errors import UserError
from holdfast.rollout.experience import RolloutSettings
from holdfast.rollout.ragged import Ragged
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

OPTIMISER = OptimiserSettings(learning_rate=0.01)


def harm(**settings):
    base = {"measure": "logit", "threshold": -0.2, "initial": 2.0, "bound": "student_t", "c1": 1.0}
    return Constraint(ConstraintSettings(**(base | settings)))


def algorithm(made, constraints=(), **settings):
    return LeaveOneOut(made.collector, LeaveOneOutSettings(**settings), OPTIMISER, Limits(constraints))


def gradient(method, learnable):
    """The gradient of the mean loss over the whole experience, in one micro-batch."""
    batch = learnable.select(range(learnable.experience.size))
    term = method.loss("policy", batch)["policy"]
    assert float(term.count) == method.counts("policy", batch)["policy"]
    policy = method.parts["policy"]
    policy.zero_grad()
    (term.total / term.count).backward()
    return {name: p.grad.double().clone() for name, p in policy.named_parameters() if p.grad is not None}


def slow_gradient(policy, experience, returns):
    """-(1/P) sum_p 1/(K-1) sum_j (G_pj - mean_p G) d log pi(y_pj) in float64, answer by answer, token by token."""
    policy = policy.double()
    k = experience.per_prompt
    loss = torch.zeros((), dtype=torch.float64)
    prompts = experience.size // k
    for p in range(prompts):
        group = returns[p * k : (p + 1) * k]
        for j in range(k):
            row = experience.rows[p * k + j]
            logits = policy(input_ids=torch.tensor([row.ids])).logits[0]
            for t in range(row.prompt_length, row.length):
                logp = logits[t - 1].log_softmax(-1)[row.ids[t]]
                loss = loss - (group[j] - sum(group) / k) / (k - 1) * logp / prompts
    policy.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.float()
    return found


def slow_returns(experience, settings, constraint=None):
    """G of each answer in plain Python numbers, from raw scores and token log-probabilities."""
    found = []
    for i, row in enumerate(experience.rows):
        kl = sum(
            float(experience.old_logprobs[i, t]) - float(experience.ref_logprobs[i, t])
            for t in range(len(row.response_ids))
        )
        reward = float(experience.scores["reward"][i]) - settings.kl.coef * kl
        reward -= settings.truncation_penalty * bool(experience.truncated[i])
        reward = max(-settings.reward_clip, min(settings.reward_clip, reward))
        if constraint is not None:
            mean, deviation = constraint.moments()
            cost, kappa = float(experience.scores["cost"][i]), constraint.kappa()
            deviate = max(cost - mean, -deviation / kappa) if kappa else 0.0
            cost += kappa * deviate**2 / (2 * deviation)
            reward = (reward - constraint.multiplier * cost) / (1 + constraint.multiplier)
        found.append(reward)
    return found


@pytest.mark.parametrize("limited", [False, True])
def test_the_gradient_is_that_of_reinforce_with_leave_one_out(bench, limited):
    made = bench(k=4)
    constraints = [harm()] if limited else []
    method = algorithm(made, constraints, kl=0.3, truncation_penalty=0.7)
    learnable = method.collect(made.prompts[:4], 1)
    fast = gradient(method, learnable)
    returns = slow_returns(learnable.experience, method.settings, *constraints)
    slow = slow_gradient(made.policy, learnable.experience, returns)
    assert fast.keys() == slow.keys()
    assert max(float(one.abs().max()) for one in slow.values()) > 0.01
    for name, expected in slow.items():
        # float32 against float64, through a network
        torch.testing.assert_close(fast[name], expected, rtol=0, atol=1e-5)


def test_returns_and_advantages_by_hand(bench):
    """Two prompts with two answers; the KL is 1 per token, so an answer of n tokens has KL n."""
    made = bench(k=2)
    method = algorithm(made, [harm(initial=3.0, bound="mean")], kl=0.5, reward_clip=4.0, truncation_penalty=1.0)
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    experience = SimpleNamespace(
        scores={"reward": torch.tensor([2.0, 9.0, 1.0, 0.0]), "cost": torch.tensor([1.0, 0.0, -1.0, 2.0])},
        kl=mask.float(),
        response_mask=mask,
        old_logprobs=torch.zeros(4, 2),
        places=Ragged([1, 2, 2, 1]),
        truncated=torch.tensor([False, False, True, False]),
        per_prompt=2,
        size=4,
    )
    experience.score = experience.scores.__getitem__
    # (2 - .5 - 3)/4, (4 clipped from 8)/4, (1 - 1 - 1 + 3)/4, (-.5 - 6)/4
    returns = [-0.375, 1.0, 0.5, -1.625]
    assert method.returns(experience).tolist() == pytest.approx(returns, abs=1e-6)
    method.collector = SimpleNamespace(collect=lambda prompts, seed: experience)
    method.limits.constraints[0].MIN_WINDOW = 1000  # the multiplier stays at 3
    expected = torch.tensor([-1.375, 1.375, 1.375, 2.125, 2.125, -2.125])
    torch.testing.assert_close(method.collect([], 1).advantages, expected)
    # Split over reward and cost, the KL keeps its weight of 0.5: (2 - 3)/4 - .5 and so on.
    split = algorithm(made, [harm(initial=3.0, bound="mean")], kl={"coef": 0.5, "mode": "split"})
    assert split.returns(experience)[[0, 3]].tolist() == pytest.approx([-0.75, -2.0], abs=1e-6)


def test_without_pessimism_the_trainer_is_the_lagrangian_on_the_mean(bench):
    found = []
    for settings in ({"bound": "mean"}, {"bound": "student_t", "c1": 0.0, "c2": 0.0}):
        made = bench(k=4)
        method = algorithm(made, [harm(**settings)])
        steps = [method.collect(made.prompts, iteration) for iteration in (1, 2, 3)]
        found.append((gradient(method, steps[-1]), [one.numbers for one in steps], method.state_dict()))
    (first, rows, state), (second, other_rows, other_state) = found
    assert rows == other_rows
    assert state == other_state
    assert state["limits"]["harm"]["multiplier"] != 2.0
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_multiplier_of_zero_is_plain_leave_one_out(bench):
    plain, limited = bench(), bench()
    one = algorithm(plain)
    other = algorithm(limited, [harm(initial=0.0, rate=1e-9, threshold=50.0)])
    first, second = one.collect(plain.prompts, 1), other.collect(limited.prompts, 1)
    assert other.limits.multipliers == {"harm": 0.0}
    assert torch.equal(first.advantages, second.advantages)
    left, right = gradient(one, first), gradient(other, second)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_positive_multiplier_moves_the_policy_away_from_costs(bench):
    """Reward constant, cost of some word: a few steps make the word rarer."""

    def score(conversations):
        dark = torch.tensor([float(one.response.split().count("dark")) for one in conversations])
        return {"reward": torch.zeros(len(dark)), "cost": dark}

    made = bench(k=8, score=score, micro_tokens=4096)
    # The limit is out of reach, so that the multiplier stays positive.
    method = algorithm(made, [harm(threshold=-0.5, bound="mean", initial=5.0)], kl=0.0)
    step = Step(
        made.policy, OptimiserSettings(learning_rate=0.02, warmup_ratio=0.0), 20, method.limits.processes, stage="x"
    )
    seen = []
    for iteration in range(1, 9):
        learnable = method.collect(made.prompts, iteration)
        seen.append(float(learnable.experience.scores["cost"].mean()))
        for micro in method.mini_batches(learnable, torch.Generator().manual_seed(iteration)):
            step.step(
                micro, lambda batch: method.loss("policy", batch), lambda batch: method.counts("policy", batch), {}
            )
    assert seen[0] > 0.3
    assert seen[-1] < 0.25 * seen[0]


def test_answers_cut_short_pay_the_penalty(bench):
    made = bench(k=4)
    free, strict = algorithm(made, kl=0.0), algorithm(made, kl=0.0, truncation_penalty=2.0)
    experience = made.collector.collect(made.prompts, seed=3)
    assert 0 < int(experience.truncated.sum()) < experience.size
    paid = free.returns(experience) - strict.returns(experience)
    torch.testing.assert_close(paid, 2.0 * experience.truncated.float())


def test_the_gradient_does_not_depend_on_micro_batches(bench):
    made = bench(k=4)
    method = algorithm(made)
    learnable = method.collect(made.prompts, 1)
    whole = gradient(method, learnable)
    made.policy.zero_grad()
    (portion,) = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    assert len(portion) > 2
    for batch in portion:
        (method.loss("policy", batch)["policy"].total / learnable.experience.size).backward()
    for name, parameter in made.policy.named_parameters():
        # the same sums in another order
        torch.testing.assert_close(parameter.grad.double(), whole[name], rtol=0, atol=1e-5)


def test_each_process_and_iteration_samples_with_its_own_seed(bench):
    made = bench()
    seeds = []
    recorder = SimpleNamespace(
        settings=RolloutSettings(),
        policy=made.policy,
        collect=lambda prompts, seed: seeds.append(seed) or made.collector.collect(prompts, seed),
    )
    for rank in (0, 1):
        limits = Limits([], SimpleNamespace(rank=rank, gather=list))
        method = LeaveOneOut(recorder, LeaveOneOutSettings(seed=5), OPTIMISER, limits)
        for iteration in (1, 2):
            method.collect(made.prompts[:1], iteration)
    assert len(set(seeds)) == 4


def test_one_answer_per_prompt_is_refused_before_anything_is_sampled(bench):
    with pytest.raises(UserError, match=r"compares the answers to one prompt .* samples_per_prompt is 1; set it to 2"):
        algorithm(bench(k=1))


def test_learning_happens_without_dropout(bench):
    made = bench()
    made.policy.train()
    assert not algorithm(made).parts["policy"].training


def test_answers_of_one_token_are_answers(bench):
    made = bench(k=4, most=1)
    method = algorithm(made)
    learnable = method.collect(made.prompts, 1)
    assert learnable.experience.response_mask.sum(-1).eq(1).all()
    assert all(one.isfinite().all() for one in gradient(method, learnable).values())


def test_rows_of_the_log_hold_what_was_measured(bench):
    made = bench()
    method = LeaveOneOut(
        made.collector, LeaveOneOutSettings(), OPTIMISER, Limits([harm()]), probe=lambda rows: {"probe": 1.0}
    )
    learnable = method.collect(made.prompts, 1)
    row = method.after(learnable)
    assert {"reward", "cost", "kl", "length", "truncated", "multiplier/harm", "cost_ucb/harm", "probe"} <= row.keys()
    assert method.samples(learnable)[0].keys() == {"prompt", "response", "reward", "cost"}

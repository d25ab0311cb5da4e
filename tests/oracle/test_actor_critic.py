"""PPO under limits against the same written down slowly: float64, one answer and one token at a time."""

import copy
from contextlib import nullcontext
from statistics import mean, stdev
from typing import NamedTuple

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.step import OptimiserSettings
from holdfast.losses.reduce import objective
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.types import Sample
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

# A float32 network against a float64 one.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
ASKED = ["red ?", "green blue red sea ?", "sea ?", "dark ?", "sky blue ?", "blue ?"]
# Ragged on purpose: an answer that ends at once, one of a single word that is cut, whole ones, and a long cut one.
ANSWERS = [["end"], ["sky", "sea", "end"], ["red"], ["dark", "sea", "red", "end"], ["end"], ["blue"] * 6]
CUT = [False, False, True, False, False, True]


class Limit(NamedTuple):
    """Settings of a constraint, and whether its critic carries a share of the KL (one critic, of weight one)."""

    settings: dict
    steady: bool = True


RUDE = Limit({"name": "rude", "score": "rude", "bound": "mean", "initial": 0.5})
STUDENT = {"bound": "student_t", "c1": 1.0, "initial": 3.0}
LIMITS = {
    "none": [],
    "two": [Limit(STUDENT), RUDE],
    "two heads": [Limit(STUDENT | {"monotone": False}, steady=False), RUDE],
    "at least": [Limit(STUDENT | {"direction": "at_least", "threshold": 0.1, "monotone": False}, steady=False), RUDE],
    "flag": [Limit(STUDENT | {"measure": "flag"}, steady=False), RUDE],
    "rectified": [Limit({"bound": "rectified", "threshold": 0.25, "initial": 3.0})],
    "one without critic": [Limit(STUDENT | {"critic": False}, steady=False), RUDE],
    "none with critic": [
        Limit(STUDENT | {"critic": False, "monotone": False}, steady=False),
        Limit(RUDE.settings | {"critic": False}, steady=False),
    ],
}
BASE = {
    "kl": {"coef": 0.3},
    "token_clamp": 1.2,
    "advantage": {"gamma": 0.9, "lam_policy": 0.8, "lam_value": 0.8},
    "surrogate": {"clip": 0.3},
    "value_clip": 0.02,
}
TOKEN = {"surrogate": {"clip": 0.3, "loss_mean": "token"}}
NORM = {"score": {"transform": "norm", "clip": 0.8}}
CASES = {
    "safe rlhf": ("two", 3, {}),
    "token mean": ("two", 3, TOKEN),
    "KL on the reward": ("two", 3, {"kl": {"coef": 0.3, "mode": "reward_only"}}),
    "no limits": ("none", 3, {}),
    "two heads": ("two heads", 3, {}),
    "two heads, at least": ("at least", 3, {"token_clamp": None}),
    "flag": ("flag", 3, {}),
    "rectified": ("rectified", 3, {}),
    "one limit without critic": ("one without critic", 3, {}),
    "no critics at all": ("none with critic", 3, {"reward_critic": False}),
    "one answer to a prompt": ("none with critic", 1, {"reward_critic": False}),
    "reward without critic, limits with": ("two", 3, {"reward_critic": False}),
    "norm": ("two", 3, NORM | {"token_clamp": None}),
    "norm, truncated ones too": ("two", 3, {"score": {"transform": "norm", "exclude_truncated": False}}),
    "scale": ("two", 3, {"score": {"transform": "scale"}}),
    "two lambdas": ("two", 3, {"advantage": {"gamma": 0.9, "lam_policy": 0.6, "lam_value": 1.0}}),
    # Of answers of 3, 4 and 6 tokens the first would have a third.
    "lambda by length": ("two", 3, {"advantage": {"length_adaptive": 0.5, "lam_floor": 0.4}}),
    "penalty": ("two", 3, NORM | {"truncation": "penalty", "missing_eos_penalty": 0.7}),
    "bootstrap": ("none", 3, {"truncation": "bootstrap", "token_clamp": None}),
    "drop": ("two", 3, {"truncation": "drop"}),
    "clip higher": ("two", 3, {"surrogate": {"clip": 0.1, "clip_high": 0.8}}),
    "dual clip": ("two", 3, {"surrogate": {"clip": 0.1, "dual_clip": 1.5, "loss_mean": "token"}}),
    "no value clip": ("two", 3, {"value_clip": None}),
    "normalised": ("two", 3, {"advantage": {"normalise": "batch"}}),
    "normalised and clipped": ("two", 3, {"advantage": {"normalise": "batch", "clip": 0.7}}),
    "normalised over those kept": ("two", 3, {"advantage": {"normalise": "batch"}, "truncation": "drop"}),
    "mixture as it is": ("two heads", 3, {"normalise_mixture": False}),
    "KL in the loss": ("two", 3, {"kl": {"coef": 0.3, "in_loss": 0.6}}),
    "KL in the loss by tokens": ("two", 3, {"kl": {"coef": 0.3, "in_loss": 0.6}, **TOKEN}),
    "entropy": ("two", 3, {"surrogate": {"clip": 0.3, "entropy": 0.4}}),
}


class Scripted:
    """A generator that gives the answers above, with log-probabilities of its own making."""

    foreign = False

    def __init__(self, template):
        words = sorted({word for answer in ANSWERS for word in answer} - {"end"})
        self.ids = {word: template.tokenizer.convert_tokens_to_ids(word) for word in words}
        self.ids["end"] = template.end_id

    def generate(self, prompts, n, sampling, seed):
        rng = torch.Generator().manual_seed(0)
        samples = []
        for i, words in enumerate(ANSWERS):
            ids = [self.ids[word] for word in words]
            logprobs = (-3 + torch.randn(len(ids), generator=rng)).tolist()
            finish = "stop" if words[-1] == "end" else "length"
            samples.append(Sample(i // n, prompts[i // n].ids, ids, logprobs, finish))
        return samples


def scores(conversations):
    one = [len(row.response.split()) - 1.5 for row in conversations]
    two = [row.response.split().count("sea") + 0.1 * i - 0.2 for i, row in enumerate(conversations)]
    three = [0.3 * i - 0.7 for i in range(len(conversations))]
    return {"reward": torch.tensor(one), "cost": torch.tensor(two), "rude": torch.tensor(three)}


def build(limits="two", k=3, **settings):
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["red green blue dark sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=32)
    policy, reference = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    # Several rows in one forward pass, and not in their order.
    rollout = RolloutSettings(samples_per_prompt=k, micro_tokens=64)
    collector = Collector(policy, lambda: nullcontext(reference), Scripted(template), template, scores, rollout)
    constraints = [Constraint(ConstraintSettings(**({"measure": "logit"} | one.settings))) for one in LIMITS[limits]]
    method_settings = ActorCriticSettings(**(BASE | settings))
    parts = {"value": ("value",)} if method_settings.reward_critic else {}
    for one in constraints:
        if one.settings.critic:
            parts[f"value/{one.name}"] = tuple(f"value/{name}" for name in one.critics)
    critics = {name: from_policy(policy, names, init_std=1.0, seed=i) for i, (name, names) in enumerate(parts.items())}
    optimisers = dict.fromkeys(("policy", "critic"), OptimiserSettings())
    return ActorCritic(collector, critics, method_settings, optimisers, Limits(constraints)), reference


def prompts(k):
    return [Conversation.ask(text) for text in ASKED[: len(ANSWERS) // k]]


class Slow(NamedTuple):
    """Of one stream, per answer and token: advantages; with a critic also its values and their targets."""

    advantages: list
    values: list
    returns: list


def positions(row):
    return range(row.prompt_length, row.length)


def read_logprobs(policy, row):
    """Log-probability and entropy of each response token under a float64 network, with gradient."""
    logits = policy(input_ids=torch.tensor([row.ids])).logits[0]
    found = [logits[t - 1].log_softmax(-1) for t in positions(row)]
    return [line[row.ids[t]] for line, t in zip(found, positions(row))], [-(line.exp() * line).sum() for line in found]


def read_values(network, row):
    """(tokens + 1, K) numbers at the states before each response token and after the last."""
    hidden = network.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    return (hidden @ network.score.weight.T)[row.prompt_length - 1 : row.length]


def clamp(x, low, high):
    return max(low, min(high, x))


def slow_paid(settings, raw):
    """Each answer's reward after its transformation, and what truncation makes of it."""
    s, seen = settings.score, [r for r, cut in zip(raw, CUT) if not (cut and settings.score.exclude_truncated)]
    mu, sd = (mean(seen), stdev(seen)) if s.transform != "none" else (0.0, 1.0)
    paid = [(r - (mu if s.transform == "norm" else 0)) / sd for r in raw]
    paid = [clamp(r, -s.clip, s.clip) if s.clip else r for r in paid]
    if settings.truncation == "penalty":
        paid = [r - settings.missing_eos_penalty * cut for r, cut in zip(paid, CUT)]
    return [0.0 if settings.truncation == "bootstrap" and cut else r for r, cut in zip(paid, CUT)]


def slow_parts(constraint, raw):
    """By name the costs (one for each answer) that add up to the constraint's, with their weights."""
    s, kappa = constraint.settings, constraint.kappa()
    sign = 1.0 if s.direction == "at_most" else -1.0
    costs = [sign * float(r > 0) if s.measure == "flag" else sign * r for r in raw]
    mu, sd = mean(costs), stdev(costs)

    def bounded(c):
        if s.bound == "rectified":
            return max(c - s.threshold, 0.0)
        if s.bound == "mean":
            return c
        away = max(c - mu, -sd / kappa) if s.monotone else c - mu
        return c + kappa / (2 * sd) * away**2

    name = f"value/{s.name}"
    if s.measure == "flag":
        return {name: (costs, bounded(1.0) - bounded(0.0))}
    if s.bound == "student_t" and not s.monotone and s.critic:
        return {name: (costs, 1 - kappa * mu / sd), f"{name}^2": ([c * c for c in costs], kappa / (2 * sd))}
    return {name: ([bounded(c) for c in costs], 1.0)}


def slow_streams(method, limits, experience, reference):
    """By name every stream, and by constraint its streams with their weights in its cost."""
    s, raw = method.settings, {name: values.double().tolist() for name, values in experience.scores.items()}
    split = s.kl.mode == "split"
    carried = sum(
        one.multiplier for one, limit in zip(method.limits.constraints, LIMITS[limits]) if split and not limit.steady
    )
    paid = {"value": (slow_paid(s, raw[s.reward]), -s.kl.coef * (1 + carried), s.reward_critic)}
    members = {}
    for one, limit in zip(method.limits.constraints, LIMITS[limits]):
        parts = slow_parts(one, raw[one.settings.score])
        members[one.name] = {name: weight for name, (_, weight) in parts.items()}
        share = s.kl.coef if split and limit.steady else 0.0
        paid |= {name: (costs, share, one.settings.critic) for name, (costs, _) in parts.items()}
    frozen = copy.deepcopy(reference).double()
    kl = []
    for i, row in enumerate(experience.rows):
        old, ref = experience.old_logprobs[i].tolist(), read_logprobs(frozen, row)[0]
        kl.append([a - b.item() for a, b in zip(old, ref)])
    found = {}
    for name, (score, weight, critic) in paid.items():
        bound = s.token_clamp or 1e9
        rewards = [[weight * k for k in line] for line in kl]
        for line, last in zip(rewards, score):
            line[-1] += last
        rewards = [[clamp(r, -bound, bound) for r in line] for line in rewards]
        reading = slow_with_critic if critic else slow_without_critic
        found[name] = reading(method, name, rewards, experience)
    return found, members


def slow_with_critic(method, name, rewards, experience):
    s, result = method.settings.advantage, Slow([], [], [])
    critic = next(one for one in method.critics.values() if name in one.names)
    network = copy.deepcopy(critic.network).double()
    for row, line, cut in zip(experience.rows, rewards, CUT):
        n = len(line)
        values = read_values(network, row)[:, critic.names.index(name)].tolist()
        if not (cut and method.settings.truncation == "bootstrap"):
            values[n] = 0.0
        delta = [line[t] + s.gamma * values[t + 1] - values[t] for t in range(n)]

        def ahead(lam, n=n, delta=delta):
            # The sum written out: A_t = sum_{u >= t} (gamma lambda)^(u - t) delta_u
            return [sum((s.gamma * lam) ** (u - t) * delta[u] for u in range(t, n)) for t in range(n)]

        lam = max(s.lam_floor, 1 - 1 / (s.length_adaptive * n)) if s.length_adaptive else s.lam_policy
        result.advantages.append(ahead(lam))
        result.values.append(values[:n])
        result.returns.append([a + v for a, v in zip(ahead(s.lam_value), values)])
    return result


def slow_without_critic(method, name, rewards, experience):
    k, earned, result = experience.per_prompt, [sum(line) for line in rewards], Slow([], [], [])
    for i, line in enumerate(rewards):
        group = range(len(rewards)) if k == 1 else range(i // k * k, i // k * k + k)
        result.advantages.append([earned[i] - mean(earned[j] for j in group if j != i)] * len(line))
    return result


def slow_mixture(method, streams, members):
    """Per answer and token (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j), normalised if wanted."""
    s, weights, lines = method.settings, method.limits.multipliers, []
    total = 1 + sum(weights.values()) if s.normalise_mixture else 1.0
    for i, line in enumerate(streams["value"].advantages):
        costs = {
            name: [sum(w * streams[part].advantages[i][t] for part, w in parts.items()) for t in range(len(line))]
            for name, parts in members.items()
        }
        lines.append([(a - sum(weights[n] * costs[n][t] for n in costs)) / total for t, a in enumerate(line)])
    if s.advantage.normalise != "batch":
        return lines
    everything = [a for line, cut in zip(lines, CUT) for a in line if not (cut and s.truncation == "drop")]
    mu = mean(everything)
    spread = (mean((a - mu) ** 2 for a in everything) + 1e-6) ** 0.5
    bound = s.advantage.clip or 1e9
    return [[clamp((a - mu) / spread, -bound, bound) for a in line] for line in lines]


def slow_policy_loss(method, policy, i, experience, mixed):
    """Of answer i the policy's loss at each token: surrogate, entropy bonus, KL."""
    s, row = method.settings, experience.rows[i]
    high = s.surrogate.clip if s.surrogate.clip_high is None else s.surrogate.clip_high
    losses = []
    for t, (logp, entropy) in enumerate(zip(*read_logprobs(policy, row))):
        ratio, a = (logp - float(experience.old_logprobs[i, t])).exp(), mixed[i][t]
        loss = -torch.minimum(ratio * a, ratio.clamp(1 - s.surrogate.clip, 1 + high) * a)
        if s.surrogate.dual_clip and a < 0:
            loss = loss.clamp(max=-s.surrogate.dual_clip * a)
        kl = 0.5 * (logp - float(experience.ref_logprobs[i, t])) ** 2
        losses.append(loss - s.surrogate.entropy * entropy + s.kl.in_loss * kl)
    return losses


def slow_critic_loss(method, network, names, i, experience, streams):
    clip, losses = method.settings.value_clip, []
    for t, line in enumerate(read_values(network, experience.rows[i])[:-1]):
        errors = []
        for value, name in zip(line, names):
            old, goal = streams[name].values[i][t], streams[name].returns[i][t]
            error = (value - goal) ** 2
            if clip is not None:
                error = torch.maximum(error, (value.clamp(old - clip, old + clip) - goal) ** 2)
            errors.append(0.5 * error)
        losses.append(sum(errors))
    return losses


def slow_objective(method, part, experience, streams, mixed):
    """The number that `part` descends, and its gradient, over the answers that are learned from."""
    module = method.parts[part]
    network = copy.deepcopy(module if part == "policy" else module.network).double()
    kept = [i for i, cut in enumerate(CUT) if not (cut and method.settings.truncation == "drop")]
    if part == "policy":
        lines = [slow_policy_loss(method, network, i, experience, mixed) for i in kept]
    else:
        lines = [slow_critic_loss(method, network, module.names, i, experience, streams) for i in kept]
    if method.settings.surrogate.loss_mean == "sequence":
        total = sum(sum(line) / len(line) for line in lines) / len(lines)
    else:
        total = sum(sum(line) for line in lines) / sum(map(len, lines))
    total.backward()
    return total.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def fast_objective(method, part, batches):
    announced = [method.counts(part, batch) for batch in batches]
    counts = {name: sum(one[name] for one in announced) for name in announced[0]}
    module = method.parts[part] if part == "policy" else method.parts[part].network
    module.zero_grad()
    total = sum(objective(method.loss(part, batch), counts, method.weights) for batch in batches)
    total.backward()
    return total.item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_tables(experience, column, lists):
    expected = [torch.tensor(one, dtype=torch.float32) for one in lists]
    torch.testing.assert_close(column, torch.cat(expected), **CLOSE)
    torch.testing.assert_close(
        experience.places.table(column), torch.nn.utils.rnn.pad_sequence(expected, batch_first=True), **CLOSE
    )


def moved(method):
    """Networks that have learned something since: ratios and values leave their clips."""
    with torch.no_grad():
        for i, part in enumerate(method.parts.values()):
            rng = torch.Generator().manual_seed(i)
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


@pytest.mark.parametrize("case", CASES)
def test_collecting_and_learning_equal_the_slow_form(case):
    limits, k, settings = CASES[case]
    method, reference = build(limits, k, **settings)
    learnable = method.collect(prompts(k), 1)
    experience = learnable.experience
    assert experience.truncated.tolist() == CUT
    streams, members = slow_streams(method, limits, experience, reference)
    mixed = slow_mixture(method, streams, members)
    assert_tables(experience, learnable.advantages, mixed)
    assert learnable.returns.keys() == learnable.old_values.keys() == {n for n, one in streams.items() if one.values}
    for name in learnable.returns:
        assert_tables(experience, learnable.old_values[name], streams[name].values)
        assert_tables(experience, learnable.returns[name], streams[name].returns)
    moved(method)
    cuts = [[3, 1], [0], [4]] if settings.get("truncation") == "drop" else [[5, 1], [0, 2, 3], [4]]
    for part in method.parts:
        expected, slope = slow_objective(method, part, experience, streams, mixed)
        found, gradient = fast_objective(method, part, [learnable.select(rows) for rows in cuts])
        assert found == pytest.approx(expected, rel=CLOSE["rtol"], abs=CLOSE["atol"]), part
        assert gradient.keys() == slope.keys()
        for name, values in gradient.items():
            # Sums over a vocabulary and six answers in float32: relative to the largest entry.
            torch.testing.assert_close(values, slope[name].float(), rtol=0, atol=1e-4 * float(slope[name].abs().max()))


@pytest.mark.parametrize("steps", [1, 2])
def test_each_step_is_normalised_by_itself(steps):
    method, reference = build(advantage={"normalise": "minibatch", "clip": 1.1}, steps_per_experience=steps)
    learnable = method.collect(prompts(3), 1)
    streams, members = slow_streams(method, "two", learnable.experience, reference)
    raw = slow_mixture(method, streams, members)
    assert_tables(learnable.experience, learnable.advantages, raw)
    ids = [tuple(row.ids) for row in learnable.experience.rows]
    portions = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    assert len(portions) == steps
    for portion in portions:
        lines = []
        for batch in portion:
            for row, mask, values in zip(batch.tokens.input_ids, batch.tokens.attention_mask, batch.advantages):
                own = ids.index(tuple(row[mask.bool()].tolist()))
                start = learnable.experience.rows[own].prompt_length
                lines.append((raw[own], values[start : start + len(raw[own])].tolist()))
                assert not values[:start].any()
        everything = [a for line, _ in lines for a in line]
        spread = (mean((a - mean(everything)) ** 2 for a in everything) + 1e-6) ** 0.5
        for line, found in lines:
            expected = [clamp((a - mean(everything)) / spread, -1.1, 1.1) for a in line]
            assert found == pytest.approx(expected, abs=1e-4)  # float32 divided by a spread of its own


def test_the_bounds_of_the_test_above_bind():
    method, _ = build("none", 3)
    assert 0 < method.collect(prompts(3), 1).numbers["clamped/value"] < 1
    method, _ = build("none", 3, surrogate={"clip": 0.1, "dual_clip": 1.5})
    learnable = method.collect(prompts(3), 1)
    moved(method)
    terms = method.loss("policy", learnable.select(range(6)))
    assert terms["clip_fraction"].mean > 0
    assert terms["dual_clip_fraction"].mean > 0

"""PPO with several critics, against the same written down slowly: float64, one answer and one token at a time."""

import copy
from contextlib import nullcontext

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.step import OptimiserSettings
from holdfast.losses.dual import augmented_cost
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.types import Sample
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

# A float32 network against a float64 one.
CLOSE = {"rtol": 0, "atol": 2e-5}
PROMPTS = [Conversation.ask("red ?"), Conversation.ask("green blue red sea ?")]
# Ragged on purpose: an answer that ends at once, one of a single word that is cut, whole ones, and a long cut one.
ANSWERS = [["end"], ["sky", "sea", "end"], ["red"], ["dark", "sea", "red", "end"], ["end"], ["blue"] * 6]


class Scripted:
    """A generator that gives the answers above, with log-probabilities of its own making."""

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


def build(**settings):
    tokenizer = train_tokenizer(["red green blue dark sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=32)
    policy, reference = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    # Several rows in one forward pass, and not in their order.
    rollout = RolloutSettings(samples_per_prompt=3, micro_tokens=64)
    collector = Collector(policy, lambda: nullcontext(reference), Scripted(template), template, scores, rollout)
    limits = Limits(
        [
            Constraint(ConstraintSettings(name="harm", measure="logit", bound="student_t", c1=1.0, initial=3.0)),
            Constraint(ConstraintSettings(name="rude", score="rude", measure="logit", bound="mean", initial=0.5)),
        ]
    )
    critics = {
        name: from_policy(policy, (name,), init_std=1.0, seed=i)
        for i, name in enumerate(("value", "value/harm", "value/rude"))
    }
    optimisers = dict.fromkeys(("policy", "critic"), OptimiserSettings())
    method = ActorCritic(collector, critics, ActorCriticSettings(**settings), optimisers, limits)
    return method, reference


def read_logprobs(policy, row):
    logits = copy.deepcopy(policy).double()(input_ids=torch.tensor([row.ids])).logits[0]
    return [logits[t - 1].log_softmax(-1)[row.ids[t]].item() for t in range(row.prompt_length, row.length)]


def read_values(critic, row):
    """The critic's number at the state before each response token, with the transformers network alone."""
    network = copy.deepcopy(critic.network).double()
    hidden = network.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
    values = (hidden @ network.score.weight.T)[:, 0]
    return [values[t - 1].item() for t in range(row.prompt_length, row.length)]


def clamp(x, low, high):
    return max(low, min(high, x))


def slow_streams(method, experience, reference):
    """Per stream and answer: lists of advantages, values and returns over response tokens."""
    s, streams = method.settings, {"value": experience.scores["reward"].double()}
    for constraint in method.limits.constraints:
        raw = experience.scores[constraint.settings.score].double()
        mean, deviation = raw.mean().item(), raw.std().item()
        # Its own formula is checked by hand elsewhere.
        cost = augmented_cost(raw, mean, deviation, constraint.kappa(), monotone=True)
        streams[f"value/{constraint.name}"] = cost
    found = {name: [] for name in streams}
    for i, row in enumerate(experience.rows):
        old = experience.old_logprobs[i, row.prompt_length : row.length].tolist()
        kl = [a - b for a, b in zip(old, read_logprobs(reference, row))]
        for name, score in streams.items():
            beta = -s.kl if name == "value" else s.kl if s.kl_mode == "split" else 0.0
            rewards = [beta * k for k in kl]
            rewards[-1] += float(score[i])
            rewards = [clamp(r, -s.score_clip, s.score_clip) for r in rewards]
            values = read_values(method.critics[name], row)
            advantages = []
            for t in range(len(rewards)):
                # The sum written out: A_t = sum_{u >= t} (gamma lambda)^(u - t) delta_u
                total = 0.0
                for u in range(t, len(rewards)):
                    ahead = values[u + 1] if u + 1 < len(values) else 0.0
                    delta = rewards[u] + s.gamma * ahead - values[u]
                    total += (s.gamma * s.gae_lambda) ** (u - t) * delta
                advantages.append(total)
            found[name].append((advantages, values, [a + v for a, v in zip(advantages, values)]))
    return found


def slow_mixture(method, streams, i):
    weights = method.limits.multipliers
    reward, costs = streams["value"][i][0], {name: streams[f"value/{name}"][i][0] for name in weights}
    return [
        (reward[t] - sum(weights[name] * costs[name][t] for name in weights)) / (1 + sum(weights.values()))
        for t in range(len(reward))
    ]


def slow_loss(method, experience, streams, part):
    """The loss of each answer's tokens, as lists."""
    s, found = method.settings, []
    for i, row in enumerate(experience.rows):
        if part == "policy":
            old = experience.old_logprobs[i, row.prompt_length : row.length].tolist()
            ratios = [2.718281828459045 ** (a - b) for a, b in zip(read_logprobs(method.parts["policy"], row), old)]
            mixed = slow_mixture(method, streams, i)
            found.append([-min(r * a, clamp(r, 1 - s.clip, 1 + s.clip) * a) for r, a in zip(ratios, mixed)])
        else:
            _, old, returns = streams[part][i]
            now = read_values(method.critics[part], row)
            near = [clamp(v, o - s.value_clip, o + s.value_clip) for v, o in zip(now, old)]
            found.append([0.5 * max((v - g) ** 2, (n - g) ** 2) for v, n, g in zip(now, near, returns)])
    return found


def table(rows, lists, width):
    found = torch.zeros(len(rows), width, dtype=torch.float64)
    for line, row, values in zip(found, rows, lists):
        line[row.prompt_length : row.length] = torch.tensor(values, dtype=torch.float64)
    return found


@pytest.mark.parametrize("loss_mean", ["sequence", "token"])
@pytest.mark.parametrize("kl_mode", ["split", "reward_only"])
def test_collecting_and_learning_equal_the_slow_form(loss_mean, kl_mode):
    method, reference = build(
        kl=0.3,
        kl_mode=kl_mode,
        gamma=0.9,
        gae_lambda=0.8,
        clip=0.3,
        value_clip=0.02,
        score_clip=1.2,
        loss_mean=loss_mean,
    )
    learnable = method.collect(PROMPTS, 1)
    experience, width = learnable.experience, learnable.advantages.shape[1]
    streams = slow_streams(method, experience, reference)
    for name, answers in streams.items():
        values, returns = (table(experience.rows, [one[k] for one in answers], width) for k in (1, 2))
        torch.testing.assert_close(learnable.old_values[name] * experience.response_mask, values.float(), **CLOSE)
        torch.testing.assert_close(learnable.returns[name], returns.float(), **CLOSE)
    mixed = table(experience.rows, [slow_mixture(method, streams, i) for i in range(len(ANSWERS))], width)
    torch.testing.assert_close(learnable.advantages, mixed.float(), **CLOSE)
    with torch.no_grad():  # networks that have learned something since: ratios and values leave their clips
        for i, part in enumerate(method.parts.values()):
            rng = torch.Generator().manual_seed(i)
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    for part in method.parts:
        slow = slow_loss(method, experience, streams, part)
        means = [sum(one) / len(one) for one in slow]
        tokens = [value for one in slow for value in one]
        expected = sum(means) / len(means) if loss_mean == "sequence" else sum(tokens) / len(tokens)
        batches = [learnable.select(rows) for rows in ([5, 1], [0, 2, 3], [4])]
        terms = [next(iter(method.loss(part, batch).values())) for batch in batches]
        counts = [next(iter(method.counts(part, batch).values())) for batch in batches]
        assert [float(term.count) for term in terms] == counts
        fast = sum(term.total for term in terms).item() / sum(counts)
        assert fast == pytest.approx(expected, abs=CLOSE["atol"]), part


def test_the_clips_of_the_test_above_bind():
    method, _ = build(kl=0.3, score_clip=1.2)
    learnable = method.collect(PROMPTS, 1)
    assert 0 < learnable.numbers["clamped/value"] < 1
    assert learnable.experience.truncated.tolist() == [False, False, True, False, False, True]

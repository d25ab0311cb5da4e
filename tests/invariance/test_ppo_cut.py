"""What PPO learns does not depend on how an experience is cut, nor over how many processes.

Two processes are played by two threads that meet wherever the real ones would.
"""

import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from played import players, together

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.distributed import Processes
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.types import Sample
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits
from holdfast.training.ptx import PtxRows
from holdfast.training.sft import imitation_rows

PROMPTS = [
    Conversation.ask(text, id=str(i))
    for i, text in enumerate(["sea ?", "dark sky ?", "red green blue ?", "bright ?", "blue sea sky ?", "dark ?"])
]
CHATS = [("sea ?", "dark sea"), ("dark sky ?", "red"), ("bright ?", "blue green red"), ("red ?", "sky")]
OPTIMISER = OptimiserSettings(learning_rate=0.01, warmup_ratio=0.0, max_grad_norm=1e9)
K = 2


class ByPrompt:
    """A generator whose answers belong to the prompt, wherever it is asked; of one to six tokens, some cut."""

    foreign = False

    def __init__(self, end, cut_on=()):
        self.end, self.cut_on = end, cut_on

    def generate(self, prompts, n, sampling, seed):
        return [self.answer(i, one, j) for i, one in enumerate(prompts) for j in range(n)]

    def answer(self, index, prompt, number):
        rng = torch.Generator().manual_seed(sum(prompt.ids) * 100 + number)
        length = int(torch.randint(1, 7, (1,), generator=rng))
        ids = torch.randint(5, 14, (length,), generator=rng).tolist()
        cut = prompt.id in self.cut_on if self.cut_on else length == 6
        ids[-1] = 9 if cut else self.end
        return Sample(
            index, prompt.ids, ids, (-2 + torch.randn(length, generator=rng)).tolist(), "length" if cut else "stop"
        )


def scores(conversations):
    words = [one.response.split() for one in conversations]
    reward = [row.count("red") - 0.5 * row.count("blue") + 0.1 * len(row) for row in words]
    cost = [row.count("dark") + 0.5 * row.count("sea") - 0.1 * len(row) for row in words]
    return {"reward": torch.tensor(reward), "cost": torch.tensor(cost)}


def build(processes, micro_tokens=64, k=K, cut_on=(), **settings):
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["red green blue dark bright sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=64)
    policy, other = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    rollout = RolloutSettings(samples_per_prompt=k, micro_tokens=micro_tokens)
    generator = ByPrompt(template.end_id, cut_on)
    collector = Collector(policy, lambda: nullcontext(other), generator, template, scores, rollout)
    collector = replace(collector, group_of=lambda prompt: "long" if len(prompt.messages[-1].text) > 8 else "short")
    limit = {"measure": "logit", "c1": 1.0, "initial": 2.0, "bound": "student_t", "monotone": False}
    limits = Limits([Constraint(ConstraintSettings(**limit))], processes)
    settings = ActorCriticSettings(**settings)
    names = [*(["value"] if settings.reward_critic else []), "value/harm", "value/harm^2"]
    critics = {"value": from_policy(policy, names, init_std=0.5)}
    chats = [Conversation.ask(question).answer(answer) for question, answer in CHATS]
    ptx = PtxRows(imitation_rows(chats, template), template.pad_id) if settings.ptx else None
    return ActorCritic(collector, critics, settings, dict.fromkeys(("policy", "critic"), OPTIMISER), limits, ptx=ptx)


def learn(method, processes):
    """One iteration as the online loop does it: the gradients of its first optimiser step, and the row of the log."""
    torch.manual_seed(0)
    learnable = method.collect(processes.shard(PROMPTS), 1)
    portions = method.mini_batches(learnable, torch.Generator().manual_seed(0))
    gradients, numbers = {}, {}
    for part, module in method.parts.items():
        step = Step(module, OPTIMISER, 10, processes)
        seen = step._clip

        def keep(part=part, module=module, seen=seen):
            gradients[part] = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
            return seen()

        step._clip = keep
        micro = portions[0] if portions else []
        found = step.step(
            micro,
            lambda batch, part=part: method.loss(part, batch),
            lambda batch, part=part: method.counts(part, batch),
            method.weights,
        )
        numbers |= {f"{part}/{name}": value for name, value in found.items()}
    return gradients, {**method.after(learnable), **numbers}, learnable


def alone(**settings):
    processes = Processes()
    return learn(build(processes, **settings), processes)


def on_two(**settings):
    """What each of two processes found."""
    both = players(2)
    # Networks are drawn from a random state that threads share, so before they begin.
    methods = [build(one, **settings) for one in both]
    return together(both, lambda one: learn(methods[one.rank], one))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for part, gradients in expected.items():
        assert found[part].keys() == gradients.keys()
        for name, values in gradients.items():
            # float32 in another order of sums, relative to the largest entry
            bound = 1e-4 * float(values.abs().max()) + 1e-7
            torch.testing.assert_close(found[part][name], values, rtol=0, atol=bound)


CASES = {
    "safe rlhf": {},
    "token mean": {"surrogate": {"loss_mean": "token", "dual_clip": 2.0, "entropy": 0.1}},
    "norm by source": {"score": {"transform": "norm", "clip": 1.0, "per_source": True}},
    "normalised step": {"advantage": {"normalise": "minibatch"}},
    "normalised batch": {"advantage": {"normalise": "batch", "clip": 1.0}},
    "KL in the loss": {"kl": {"coef": 0.1, "in_loss": 0.5}},
    "drop": {"truncation": "drop"},
    "bootstrap": {"truncation": "bootstrap"},
    "reward without critic": {"reward_critic": False},
    "one answer": {"reward_critic": False, "k": 1},
    "clamped": {"token_clamp": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_do_not_depend_on_micro_batches(case):
    whole, numbers, _ = alone(micro_tokens=4096, **CASES[case])
    pieces, others, _ = alone(micro_tokens=1, **CASES[case])
    assert_close(pieces, whole)
    timeless = {name: value for name, value in numbers.items() if not name.startswith("seconds")}
    # float32 in another order of sums
    assert {name: others[name] for name in timeless} == pytest.approx(timeless, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradients_of_one(case):
    one, numbers, learnable = alone(**CASES[case])
    (first, told, mine), (second, heard, theirs) = on_two(**CASES[case])
    assert mine.experience.size + theirs.experience.size == learnable.experience.size
    assert_close(first, one)
    assert all(torch.equal(first[part][name], second[part][name]) for part in first for name in first[part])
    assert list(told) == list(numbers), "those to watch come first"
    timeless = [name for name in numbers if not name.startswith("seconds")]
    # float32 in another order of sums
    assert {name: told[name] for name in timeless} == pytest.approx({n: numbers[n] for n in timeless}, abs=1e-4)
    assert {name: told[name] for name in timeless} == {name: heard[name] for name in timeless}


def test_imitation_over_two_processes_takes_as_many_rows_as_one_does():
    one, numbers, _ = alone(ptx=2.0)
    (first, told, _), _ = on_two(ptx=2.0)
    assert told["policy/ptx"] == pytest.approx(numbers["policy/ptx"], abs=1e-5)
    assert_close(first, one)


@pytest.mark.parametrize("normalise", ["minibatch", "batch", "none"])
@pytest.mark.parametrize("cut_on, kept, steps", [(("0", "1", "2"), 0, 1), (("0", "1"), 2, 4)])
def test_a_process_that_brings_fewer_answers_keeps_step(normalise, cut_on, kept, steps):
    """The first process has the prompts 0 to 2: where few of its answers are kept, it must still meet the other."""
    settings = {"advantage": {"normalise": normalise}, "steps_per_experience": steps, "truncation": "drop"}
    (first, _, mine), (second, _, theirs) = on_two(cut_on=cut_on, **settings)
    assert (len(mine.kept), len(theirs.kept)) == (kept, 6)
    assert all(torch.equal(first[part][name], second[part][name]) for part in first for name in first[part])


def test_the_fake_can_fail():
    """A process that stays away is noticed, and not waited for."""
    one, _ = players(2)
    one.meeting.barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        one.gather([1])

"""A policy of a few thousand weights that really samples, with everything an online method needs around it."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sampling

WORDS = "red green blue dark bright sea sky ?"
PROMPTS = [
    Conversation.ask(text, id=f"prompt-{i}")
    for i, text in enumerate(["sea ?", "dark sky ?", "red green blue ?", "bright ?", "blue sea sky ?", "dark ?"])
]


def scores(conversations):
    """A reward for red words and a cost for dark ones, of no meaning and of every sign."""
    words = [one.response.split() for one in conversations]
    reward = [row.count("red") - 0.5 * row.count("blue") + 0.1 * len(row) for row in words]
    cost = [row.count("dark") + 0.5 * row.count("sea") - 0.6 for row in words]
    return {"reward": torch.tensor(reward), "cost": torch.tensor(cost)}


@pytest.fixture
def bench():
    """Build a `Collector` and critics; equal arguments give equal ones."""
    torch.set_num_threads(1)

    def build(k=3, most=6, micro_tokens=40, critics=("value", "value/harm"), score=scores, same=False):
        tokenizer = train_tokenizer([WORDS], 64, "word")
        template = Template(tokenizer, max_length=64)
        policy = tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1)
        other = copy.deepcopy(policy) if same else tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=1)
        with torch.no_grad():
            for network in (policy, other):
                # Untrained, all words would be equally likely and log-probabilities would say nothing.
                network.lm_head.weight.mul_(15)
        settings = RolloutSettings(
            samples_per_prompt=k, sampling=Sampling(max_new_tokens=most), micro_tokens=micro_tokens
        )
        generator = TransformersGenerator(policy, template.stop_ids, template.pad_id)
        collector = Collector(policy, lambda: nullcontext(other), generator, template, score, settings)
        return SimpleNamespace(
            collector=collector,
            policy=policy,
            reference=other,
            template=template,
            prompts=PROMPTS,
            critics={name: from_policy(policy, (name,), init_std=0.5, seed=i) for i, name in enumerate(critics)},
        )

    return build

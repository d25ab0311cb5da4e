"""Collected experience: the sampler's numbers are those of a plain forward pass, and masks follow the answers."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.reading import logprobs
from holdfast.rollout.types import Sampling

PROMPTS = [Conversation.ask("red sea ?", id="a"), Conversation.ask("sky ?", id="b")]


def scores(conversations):
    return {"words": torch.tensor([float(len(one.response.split())) for one in conversations])}


@pytest.fixture
def collector():
    tokenizer = train_tokenizer(["red green blue dark sea sky ?"], 64, "word")
    template = Template(tokenizer, max_length=40)
    policy, other = (tiny_policy(len(tokenizer), hidden=16, heads=2, layers=1, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        policy.lm_head.weight.mul_(15)
    settings = RolloutSettings(samples_per_prompt=5, sampling=Sampling(max_new_tokens=6), micro_tokens=64)
    generator = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    return Collector(policy, lambda: nullcontext(other), generator, template, scores, settings)


def slow_logprobs(policy, row):
    with torch.no_grad():
        logits = copy.deepcopy(policy).double()(input_ids=torch.tensor([row.ids])).logits[0]
    return [float(logits[t - 1].log_softmax(-1)[row.ids[t]]) for t in range(row.prompt_length, row.length)]


def test_log_probabilities_equal_a_recomputation(collector):
    experience = collector.collect(PROMPTS, seed=3)
    with collector.reference() as reference:
        pairs = ((experience.old_logprobs, collector.policy), (experience.ref_logprobs, reference))
        for table, policy in pairs:
            for line, row in zip(table, experience.rows):
                # float32 against float64; the sampler reads from its cache
                own = line[: row.length - row.prompt_length].tolist()
                assert own == pytest.approx(slow_logprobs(policy, row), abs=1e-5)
            assert table[~experience.response_mask].eq(0).all()


def test_answers_stand_by_prompt_with_their_scores(collector):
    experience = collector.collect(PROMPTS, seed=3)
    assert (experience.size, experience.per_prompt) == (10, 5)
    assert [row.id for row in experience.rows] == ["a"] * 5 + ["b"] * 5
    assert [one.prompt for one in experience.conversations] == [PROMPTS[0]] * 5 + [PROMPTS[1]] * 5
    for row, conversation, score in zip(experience.rows, experience.conversations, experience.scores["words"]):
        assert conversation.response == collector.template.decode(row.response_ids)
        assert float(score) == len(conversation.response.split())
    assert len({row.length for row in experience.rows}) > 2


def test_the_mask_covers_exactly_what_was_sampled(collector):
    experience = collector.collect(PROMPTS, seed=3)
    lengths = [len(row.response_ids) for row in experience.rows]
    assert experience.response_mask.shape == experience.old_logprobs.shape == (10, max(lengths))
    ends = []
    for line, row, cut in zip(experience.response_mask.tolist(), experience.rows, experience.truncated.tolist()):
        assert line == [True] * len(row.response_ids) + [False] * (max(lengths) - len(row.response_ids))
        assert cut == (row.ids[-1] != collector.template.end_id)
        ends.append(cut)
    assert set(ends) == {True, False}


def test_the_time_each_phase_took_is_kept(collector):
    seconds = collector.collect(PROMPTS, seed=3).seconds
    assert list(seconds) == ["generate", "reference", "score"]
    assert all(spent > 0 for spent in seconds.values())


def test_a_policy_that_is_its_own_reference_has_no_kl(collector):
    own = replace(collector, reference=lambda: nullcontext(collector.policy))
    experience = own.collect(PROMPTS, seed=3)
    # The sampler reads from its cache, the reference reads whole rows.
    torch.testing.assert_close(experience.kl, torch.zeros_like(experience.kl), rtol=0, atol=1e-5)
    other = collector.collect(PROMPTS, seed=3)
    torch.testing.assert_close(other.kl, other.old_logprobs - other.ref_logprobs)
    assert other.kl.abs().max() > 0.1


def test_equal_seeds_give_equal_experience(collector):
    first, again, other = (collector.collect(PROMPTS, seed=seed) for seed in (3, 3, 4))
    assert first.rows == again.rows
    assert torch.equal(first.old_logprobs, again.old_logprobs)
    assert first.rows != other.rows


@pytest.mark.parametrize("biased", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 3}, {"greedy": True}])
def test_biased_sampling_is_refused(collector, biased):
    (name,) = biased
    settings = RolloutSettings(sampling=Sampling(**biased))
    with pytest.raises(UserError, match=f"training needs samples of the policy itself, but sampling has {name}="):
        replace(collector, settings=settings).collect(PROMPTS, seed=1)


def test_an_unknown_score_is_named_with_the_known_ones(collector):
    experience = collector.collect(PROMPTS, seed=3)
    assert experience.score("words") is experience.scores["words"]
    with pytest.raises(UserError, match="the scorer gives no score 'reward'; it gives words"):
        experience.score("reward")


def test_log_probabilities_take_no_gradient_and_leave_the_mode(collector):
    experience = collector.collect(PROMPTS, seed=3)
    collector.policy.train()
    found = logprobs(collector.policy, experience.rows, collector.template.pad_id, 1.0, micro_tokens=1)
    assert collector.policy.training
    assert not found.requires_grad
    # The sampler reads from its cache.
    torch.testing.assert_close(found, experience.old_logprobs, rtol=0, atol=1e-5)
    cooler = logprobs(collector.policy, experience.rows, collector.template.pad_id, 0.5, micro_tokens=400)
    row = experience.rows[0]
    with torch.no_grad():
        logits = collector.policy(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1]
    expected = (logits / 0.5).log_softmax(-1)[row.ids[row.prompt_length]]
    torch.testing.assert_close(cooler[0, 0], expected, rtol=0, atol=1e-5)

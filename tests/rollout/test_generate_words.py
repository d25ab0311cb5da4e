"""A vision-language policy answers in words: the token that stands for a picture is never drawn."""

import pytest
import torch

from holdfast.data.collate import pad
from holdfast.data.grouped import group
from holdfast.data.template import Encoded
from holdfast.models.policy import hidden_states, logprobs_entropy_at, response_logprobs
from holdfast.models.tiny import tiny_llava, tiny_policy
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.reading import Reader
from holdfast.rollout.types import Sampling

VOCABULARY, IMAGE = 8, 5


def drawn(policy, **options):
    prompt = Encoded([1, 2, 3], [False] * 3, [False] * 3, 2, 3)
    found = TransformersGenerator(policy, (), 0).generate([prompt] * 8, 8, Sampling(max_new_tokens=16, **options), 1)
    return {token for one in found for token in one.response_ids}, [value for one in found for value in one.logprobs]


def test_no_picture_is_drawn():
    tokens, logprobs = drawn(tiny_llava(VOCABULARY, IMAGE))
    assert tokens == set(range(VOCABULARY)) - {IMAGE}
    assert torch.tensor(logprobs).isfinite().all()


def test_no_picture_is_drawn_where_it_is_the_likeliest():
    policy = tiny_llava(VOCABULARY, IMAGE)
    with torch.no_grad():
        policy.lm_head.weight[IMAGE] = 10 * policy.lm_head.weight[0]
    assert IMAGE not in drawn(policy, temperature=0.7, top_k=4)[0]


def test_a_policy_without_pictures_draws_every_token():
    assert drawn(tiny_policy(VOCABULARY))[0] == set(range(VOCABULARY))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_answers_are_read_as_they_were_drawn(temperature):
    """A ratio to the sampler begins at one, and the entropy counts no word that is never said."""
    policy = tiny_llava(VOCABULARY, IMAGE)
    with torch.no_grad():
        policy.lm_head.weight[IMAGE] = 3 * policy.lm_head.weight[0]
    prompt = Encoded([1, 2, 3], [False] * 3, [False] * 3, 2, 3)
    sampling = Sampling(max_new_tokens=6, temperature=temperature)
    (sample,) = TransformersGenerator(policy, (), 0).generate([prompt], 1, sampling, 1)
    ids = [*prompt.ids, *sample.response_ids]
    row = Encoded(ids, [False] * 3 + [True] * 6, [False] * 3 + [True] * 6, 2, 3)
    reader = Reader(policy.eval(), 0, temperature)
    logp, entropy = reader.read(group([row], 0), entropy=True)
    torch.testing.assert_close(logp[0].detach(), torch.tensor(sample.logprobs), rtol=0, atol=1e-6)
    logits = policy(torch.tensor([ids])).logits[0, 2:-1].double() / temperature
    words = logits[:, [token for token in range(VOCABULARY) if token != IMAGE]].log_softmax(-1)
    torch.testing.assert_close(entropy[0].double(), -(words.exp() * words).sum(-1), rtol=0, atol=1e-6)
    (logp.sum() + entropy.sum()).backward()
    assert policy.lm_head.weight.grad.isfinite().all()
    assert not policy.lm_head.weight.grad[IMAGE].any()


def test_all_ways_of_reading_agree():
    policy = tiny_llava(VOCABULARY, IMAGE).eval()
    row = Encoded([1, 2, 3, 4, 6], [False] * 3 + [True] * 2, [False] * 3 + [True] * 2, 2, 3)
    batch = pad([row], pad_id=0)
    given = batch.input_ids, batch.attention_mask, batch.position_ids
    plain = response_logprobs(policy, *given, batch.response_mask)[0, 3:]
    states = hidden_states(policy, *given)
    with_entropy, _ = logprobs_entropy_at(policy, states, batch.input_ids, batch.response_mask)
    read, _ = Reader(policy, 0).read(group([row], 0))
    torch.testing.assert_close(plain, read[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(with_entropy[0, 3:], read[0], rtol=0, atol=1e-6)

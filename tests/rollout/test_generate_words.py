"""A vision-language policy answers in words: the token that stands for a picture is never drawn."""

import torch

from holdfast.data.template import Encoded
from holdfast.models.tiny import tiny_llava, tiny_policy
from holdfast.rollout.generate import TransformersGenerator
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

import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.policy import (
    evaluating,
    hidden_states,
    linear_head,
    logprobs_at,
    logprobs_entropy_at,
    response_logprobs,
)
from holdfast.models.tiny import tiny_llava, tiny_policy


def rows(side, contents, pad=0):
    """Ids, attention mask and position ids of `contents`, filled up on one side."""
    width = max(map(len, contents))
    fill = [[pad] * (width - len(row)) for row in contents]
    ids = [f + row if side == "left" else row + f for f, row in zip(fill, contents)]
    real = [
        [0] * len(f) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(f)
        for f, row in zip(fill, contents)
    ]
    mask = torch.tensor(real)
    return torch.tensor(ids), mask, (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_stand_at_the_token_they_belong_to(side, kind, temperature):
    policy = tiny_policy(30, kind=kind, seed=1).double()
    contents, prompt = [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12]], 2
    ids, mask, positions = rows(side, contents)
    response = mask.bool() & (positions >= prompt)
    found = response_logprobs(policy, ids, mask, positions, response, temperature=temperature, chunk=3)
    assert found.shape == ids.shape
    assert (found[~response] == 0).all()
    for row, content in enumerate(contents):
        for t in range(prompt, len(content)):
            logits = policy(torch.tensor([content[:t]])).logits[0, -1] / temperature
            expected = logits[content[t]] - logits.exp().sum().log()
            column = t + (ids.shape[1] - len(content) if side == "left" else 0)
            assert found[row, column].item() == pytest.approx(expected.item(), abs=1e-6)


def test_gradient_equals_that_of_the_full_logits():
    policy = tiny_policy(30, seed=2).double()
    ids, mask, positions = rows("right", [[3, 4, 5, 6], [7, 8, 9, 10]])
    response = positions >= 2
    weight = policy.model.layers[0].mlp.up_proj.weight

    (ours,) = torch.autograd.grad(response_logprobs(policy, ids, mask, positions, response).double().sum(), weight)
    logits = policy(ids).logits[:, 1:3].log_softmax(-1)
    (full,) = torch.autograd.grad(logits.gather(-1, ids[:, 2:, None]).sum(), weight)
    torch.testing.assert_close(ours, full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1024, 2])
def test_states_read_before_give_the_same_numbers(chunk):
    policy = tiny_policy(30, seed=3)
    ids, mask, positions = rows("right", [[3, 4, 5, 6, 7], [8, 9, 10]])
    response = mask.bool() & (positions >= 2)
    whole = response_logprobs(policy, ids, mask, positions, response, temperature=0.7, chunk=chunk)
    hidden = hidden_states(policy, ids, mask, positions)
    assert torch.equal(logprobs_at(policy, hidden, ids, response, temperature=0.7, chunk=chunk), whole)
    weight = policy.model.layers[0].mlp.up_proj.weight
    (one,) = torch.autograd.grad(whole.sum(), weight)
    (two,) = torch.autograd.grad(logprobs_at(policy, hidden, ids, response, temperature=0.7).sum(), weight)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1024, 2])
def test_entropies_stand_beside_their_log_probabilities(chunk):
    policy = tiny_policy(30, seed=3).double()
    contents = [[3, 4, 5, 6, 7], [8, 9, 10]]
    ids, mask, positions = rows("right", contents)
    response = mask.bool() & (positions >= 2)
    hidden = hidden_states(policy, ids, mask, positions)
    logprobs, entropies = logprobs_entropy_at(policy, hidden, ids, response, temperature=0.7, chunk=chunk)
    assert torch.equal(logprobs, logprobs_at(policy, hidden, ids, response, temperature=0.7, chunk=chunk))
    assert (entropies[~response] == 0).all()
    for row, content in enumerate(contents):
        for t in range(2, len(content)):
            logits = policy(torch.tensor([content[:t]])).logits[0, -1] / 0.7
            chances = (logits - logits.logsumexp(-1)).exp().tolist()
            expected = -sum(p * math.log(p) for p in chances)
            assert entropies[row, t].item() == pytest.approx(expected, abs=1e-6)


def test_images_reach_the_log_probabilities():
    policy = tiny_llava(30, image_token_id=5)
    ids, mask, positions = rows("right", [[3, 5, 5, 5, 5, 6, 7]])
    response = positions >= 6
    one, other = (
        response_logprobs(policy, ids, mask, positions, response, pixel_values=pixels)
        for pixels in (torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16))
    )
    assert one[0, 6] != other[0, 6]


def test_a_response_needs_a_token_before_it():
    ids, mask, positions = rows("right", [[3, 4]])
    with pytest.raises(ValueError, match="first column"):
        response_logprobs(tiny_policy(10), ids, mask, positions, mask.bool())


@pytest.mark.parametrize("name, value", [("final_logit_softcapping", 30.0), ("logit_scale", 0.0625)])
def test_heads_that_are_not_linear_are_refused(name, value):
    policy = tiny_policy(10)
    setattr(policy.config, name, value)
    with pytest.raises(UserError, match=f"changes logits after its head .{name}={value}"):
        linear_head(policy)


def test_families_with_several_position_axes_are_refused_with_images():
    policy = tiny_policy(10)
    policy.config.rope_parameters = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    ids, mask, positions = rows("right", [[3, 4]])
    with pytest.raises(UserError, match="several position axes"):
        hidden_states(policy, ids, mask, positions, pixel_values=torch.zeros(1))


def test_the_positions_given_are_the_positions_used():
    """Rotary attention sees differences only, so a shift would not show; a stretch does."""
    policy = tiny_policy(30, seed=1)
    ids, mask, positions = rows("right", [[3, 4, 5, 6]])
    stretched = hidden_states(policy, ids, mask, 3 * positions)
    expected = policy.model(input_ids=ids, position_ids=3 * positions).last_hidden_state
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-6)
    assert (stretched - hidden_states(policy, ids, mask, positions)).abs().max() > 1e-3


def test_values_are_float32_under_a_half_precision_policy():
    ids, mask, positions = rows("right", [[3, 4, 5]])
    found = response_logprobs(tiny_policy(10).bfloat16(), ids, mask, positions, positions >= 1)
    assert found.dtype == torch.float32


def _fail_within(policy):
    with evaluating(policy):
        raise RuntimeError("inside")


def test_evaluating_restores_the_mode_of_every_module():
    policy = tiny_policy(10).train()
    policy.model.layers[0].eval()
    before = [module.training for module in policy.modules()]
    with evaluating(policy):
        assert not any(module.training for module in policy.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="inside"):
        _fail_within(policy)
    assert [module.training for module in policy.modules()] == before
    assert torch.is_grad_enabled()

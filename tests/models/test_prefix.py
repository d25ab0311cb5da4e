"""The shared layout against separate rows: states and gradients of every family, and the families it must leave."""

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
)

from holdfast.losses.logprob import token_logprobs
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.policy import hidden_states, linear_head, response_logprobs
from holdfast.models.prefix import PAD, can_share, share_prefix
from holdfast.models.tiny import tiny_llava, tiny_policy

PAD_ID, IMAGE, VOCABULARY = 0, 5, 30
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
PLAIN = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PROMPTS = [[7, 8, 9, 10, 11, 12], [13, 14], [15, 16, 17, 18]]
# Unequal lengths, answers of one token, answers that begin alike, and one answer that another one continues.
ANSWERS = [
    [[20, 21, 22], [23], [20, 24, 25, 26], [27, 28]],
    [[21], [22], [23, 24, 25, 26, 27], [28, 7]],
    [[9, 9, 20, 21], [9, 9], [9, 22], [9, 9, 23]],
]


def build(kind, attention="sdpa"):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64, **PLAIN)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        config._attn_implementation = attention
        return GPT2Model(config)
    if kind == "lora":
        base = tiny_policy(VOCABULARY, hidden=16)
        base.set_attn_implementation(attention)
        model = with_adapter(base, AdapterSettings(rank=2))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        return model
    settings, network = {"llama": (LlamaConfig, LlamaModel), "qwen2": (Qwen2Config, Qwen2Model)}[kind]
    return network(settings(**SMALL, **HEADS, **PLAIN, attn_implementation=attention))


def exact(model):
    """`model` in float64 throughout: the norms of Llama and Qwen2 round to float32 in between."""
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                better = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                better.weight = norm.weight
                setattr(module, name, better)
    return model.double()


def batch(n, side="right"):
    """Rows of n answers per prompt, the groups interleaved: all first answers, then all second ones, ..."""
    rows = [prompt + answers[k] for k in range(n) for prompt, answers in zip(PROMPTS, ANSWERS)]
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD_ID), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    groups = [[p + k * len(PROMPTS) for k in range(n)] for p in range(len(PROMPTS))]
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), groups


def gradients(model, states, mask):
    """Gradients of an uneven function of every state that is not padding."""
    weight = torch.linspace(-1, 1, states[0].numel(), dtype=states.dtype).reshape(states[0].shape)
    model.zero_grad()
    ((states * weight).tanh() * mask[..., None]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(model, n, side="right"):
    """States and gradients of the plain and of the shared pass."""
    ids, mask, positions, groups = batch(n, side)
    plain = hidden_states(model, ids, mask, positions)
    wanted = gradients(model, plain, mask)
    shared = share_prefix(ids, mask, groups)
    states = shared.unpack(hidden_states(model, **shared.inputs(model)))
    found = gradients(model, states, mask)
    return plain[mask.bool()], states[mask.bool()], wanted, found


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "lora"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_states_and_all_gradients_are_those_of_separate_rows(kind, n):
    plain, states, wanted, found = both(exact(build(kind)), n)
    torch.testing.assert_close(states, plain, rtol=0, atol=1e-9)
    assert wanted
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-9)
        assert kind == "lora" or wanted[name].abs().max() > 1e-6, f"{name} has no gradient to compare"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_single_precision_any_attention_and_any_side(kind, attention, side):
    plain, states, wanted, found = both(build(kind, attention), 2, side)
    # Sums in another order; small initial weights make normed states, and so gradients, sensitive.
    torch.testing.assert_close(states, plain, rtol=0, atol=1e-5)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-4 * float(wanted[name].abs().max()))


def test_order_of_answers_and_groups_changes_nothing():
    model = exact(build("llama"))
    ids, mask, _, groups = batch(3)
    states = []
    for given in (groups, [group[::-1] for group in groups[::-1]]):
        shared = share_prefix(ids, mask, given)
        states.append(shared.unpack(hidden_states(model, **shared.inputs(model)))[mask.bool()])
    torch.testing.assert_close(*states, rtol=0, atol=1e-12)


def test_groups_may_differ_in_size():
    model = exact(build("qwen2"))
    ids, mask, positions, groups = batch(2)
    shared = share_prefix(ids, mask, [groups[0], [groups[1][0]], groups[2], [groups[1][1]]])
    states = shared.unpack(hidden_states(model, **shared.inputs(model)))
    plain = hidden_states(model, ids, mask, positions)
    torch.testing.assert_close(states[mask.bool()], plain[mask.bool()], rtol=0, atol=1e-9)


def test_the_common_beginning_stands_once():
    ids, mask, _, groups = batch(2)
    shared = share_prefix(ids, mask, groups)
    # 6 + 3 + 1 tokens; 2 + 1 + 1; and 4 with two equal first tokens of the answers, then 2 and nothing.
    assert (shared.part != PAD).sum(-1).tolist() == [10, 4, 8]
    assert shared.input_ids.shape == (3, 10)
    assert shared.part[0].tolist() == [0] * 6 + [1] * 3 + [2]
    assert shared.position_ids[0].tolist() == [*range(6), 6, 7, 8, 6]
    assert shared.saving == 6 * 9 / 30
    torch.testing.assert_close(shared.unpack(shared.input_ids)[mask.bool()], ids[mask.bool()])


def test_tokens_that_agree_again_later_stay_apart():
    shared = share_prefix(torch.tensor([[5, 6, 7, 8], [5, 9, 7, 8]]), torch.ones(2, 4, dtype=torch.long), [[0, 1]])
    assert shared.input_ids.tolist() == [[5, 6, 7, 8, 9, 7, 8]]
    assert shared.part.tolist() == [[0, 1, 1, 1, 2, 2, 2]]


def test_values_are_read_at_their_index():
    ids, mask, positions, groups = batch(3, "left")
    shared = share_prefix(ids, mask, groups)
    last = torch.full((len(ids),), ids.shape[1] - 1)
    assert shared.at(shared.input_ids, last).tolist() == ids[:, -1].tolist()
    assert shared.at(shared.position_ids, last).tolist() == positions[:, -1].tolist()


def test_every_row_is_in_one_group():
    ids, mask, _, groups = batch(2)
    with pytest.raises(ValueError, match="each of the 6 rows must be in one group, got"):
        share_prefix(ids, mask, groups[:2])


def test_log_probabilities_of_responses_come_from_the_same_states():
    """What policy training reads: the state before each response token predicts it, also from the shared prompt."""
    policy = exact(tiny_policy(VOCABULARY, hidden=16))
    ids, mask, positions, groups = batch(4)
    prompt = torch.tensor([len(p) for p in PROMPTS]).repeat(4)
    response = mask.bool() & (positions >= prompt[:, None])
    plain = response_logprobs(policy, ids, mask, positions, response)
    shared = share_prefix(ids, mask, groups)
    states = shared.unpack(hidden_states(policy, **shared.inputs(policy)))
    weight = linear_head(policy).weight
    found = token_logprobs(states[:, :-1][response[:, 1:]], weight, ids[:, 1:][response[:, 1:]])
    torch.testing.assert_close(found, plain[response], rtol=0, atol=1e-9)


def test_an_image_of_the_prompt_is_read_once():
    model = exact(tiny_llava(VOCABULARY, IMAGE))
    prompts = [[3, IMAGE, IMAGE, IMAGE, IMAGE, 6], [9, 8, IMAGE, IMAGE, IMAGE, IMAGE]]
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[*prompts[i % 2], 20 + i, 25 - i] for i in range(4)])
    mask = torch.ones_like(ids)
    plain = hidden_states(model, ids, mask, mask.cumsum(-1) - 1, pixel_values=torch.cat([pixels, pixels]))
    shared = share_prefix(ids, mask, [[0, 2], [1, 3]])
    states = shared.unpack(hidden_states(model, **shared.inputs(model), pixel_values=pixels))
    torch.testing.assert_close(states, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "lora"])
def test_families_that_share(kind):
    assert can_share(build(kind), 64)


def test_families_that_cannot_share():
    heads = {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": VOCABULARY, "num_attention_heads": 2}
    assert not can_share(FalconModel(FalconConfig(alibi=True, **heads)), 8)
    assert can_share(FalconModel(FalconConfig(alibi=False, **heads)), 8)
    assert not can_share(MambaModel(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)), 8)
    recurrent = build("llama")
    recurrent._is_stateful = True
    assert not can_share(recurrent, 8)
    window = MistralModel(MistralConfig(**SMALL, **HEADS, sliding_window=8))
    assert can_share(window, 8)
    assert not can_share(window, 9)
    linear = build("llama")
    linear.config.layer_types = ["full_attention", "linear_attention"]
    assert not can_share(linear, 8)
    flash = build("llama")
    flash.config._attn_implementation = "flash_attention_2"
    assert not can_share(flash, 8)


def test_a_window_that_holds_the_row_changes_nothing():
    torch.manual_seed(0)
    model = exact(MistralModel(MistralConfig(**SMALL, **HEADS, **PLAIN, sliding_window=9)))
    plain, states, _, _ = both(model, 2)
    torch.testing.assert_close(states, plain, rtol=0, atol=1e-9)

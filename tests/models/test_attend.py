"""Attention of our own in stock networks: reached by every layer inside the block, gone behind it."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    FalconConfig,
    FalconModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    GPT2Config,
    GPT2Model,
    GptOssConfig,
    GptOssModel,
    MambaConfig,
    MambaModel,
    MistralConfig,
    MistralModel,
)

from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.attend import attending, supports
from holdfast.models.heads import from_policy
from holdfast.models.policy import backbone
from holdfast.models.tiny import tiny_llava, tiny_policy

VOCABULARY, IMAGE = 30, 5
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
seen = []


def causal(module, query, key, value, mask, scaling=None, sign=1.0, **kwargs):
    """Plain causal attention that remembers its calls; `sign` turns it, which changes the states."""
    assert mask is None
    seen.append(sign)
    grouped = query.shape[1] != key.shape[1]
    found = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return sign * found.transpose(1, 2), None


AttentionInterface.register("test_causal", causal)


def build(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2Model(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64, **NONE)
        ).eval()
    if kind == "llava":
        return tiny_llava(VOCABULARY, IMAGE)
    if kind == "score":
        # Its configuration is a copy of the one that its layers go by.
        return from_policy(tiny_policy(VOCABULARY, hidden=16), ("reward",)).network
    if kind == "lora":
        return with_adapter(tiny_policy(VOCABULARY, hidden=16), AdapterSettings(rank=2))
    return tiny_policy(VOCABULARY, kind=kind, hidden=16)


def states(model, **options):
    seen.clear()
    ids = torch.arange(6, 20).view(2, 7)
    positions = torch.arange(7).expand(2, 7)
    return backbone(model)(input_ids=ids, position_ids=positions, use_cache=False, **options).last_hidden_state


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "llava", "lora", "score"])
def test_every_layer_attends_by_it_and_keyword_arguments_arrive(kind):
    model = build(kind)
    plain = states(model)
    assert seen == []
    with attending(model, "test_causal"):
        # Kernels may sum in another order.
        torch.testing.assert_close(states(model), plain, rtol=0, atol=1e-5)
        assert seen == [1.0, 1.0]
        assert not torch.allclose(states(model, sign=-1.0), plain, atol=1e-3)
        assert seen == [-1.0, -1.0]
    assert torch.equal(states(model), plain)
    assert seen == []


def test_the_vision_tower_keeps_its_attention():
    model = build("llava")
    ids = torch.tensor([[7, IMAGE, IMAGE, IMAGE, IMAGE, 9]])
    with attending(model, "test_causal"):
        seen.clear()
        backbone(model)(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16), use_cache=False)
        assert model.config.vision_config._attn_implementation == "sdpa"
    assert len(seen) == 2


def test_it_ends_when_the_block_fails():
    model = build("llama")
    with pytest.raises(RuntimeError, match="halfway"), attending(model, "test_causal"):
        raise RuntimeError("halfway")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llava"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_computed_again_in_backward_attend_by_it_too(kind, reentrant):
    """The block has ended by then: without care the second computation would be that of plain attention."""
    gradients = []
    for checkpointing in (False, True):
        model = build(kind).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with attending(model, "test_causal"):
            found = states(model, sign=-1.0)
        (found * torch.linspace(-1, 1, found[0].numel()).view(found[0].shape)).sum().backward()
        assert seen == [-1.0] * (4 if checkpointing else 2)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-5, atol=1e-6)


def test_afterwards_checkpointed_layers_are_as_before():
    model = build("llama").train()
    model.gradient_checkpointing_enable()
    former = [layer._gradient_checkpointing_func for layer in model.model.layers]
    with attending(model, "test_causal"):
        assert [layer._gradient_checkpointing_func for layer in model.model.layers] != former
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == former


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "llava", "lora", "score"])
def test_supported(kind):
    assert supports(build(kind))


def test_not_supported():
    heads = {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": VOCABULARY, "num_attention_heads": 2}
    assert not supports(FalconModel(FalconConfig(alibi=True, **heads)))
    assert not supports(MambaModel(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)))
    assert not supports(Gemma2Model(Gemma2Config(**SMALL, **HEADS, **NONE, head_dim=4)), 8)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 4}
    assert not supports(GptOssModel(GptOssConfig(**SMALL, **HEADS, **NONE, **experts, sliding_window=64)), 8)
    # Positions on several axes (Qwen2-VL), layers without softmax attention, kernels that make their own mask.
    axes = build("qwen2")
    axes.config.rope_parameters["mrope_section"] = [1, 1]
    assert not supports(axes)
    linear = build("llama")
    linear.config.layer_types = ["full_attention", "linear_attention"]
    assert not supports(linear, 8)
    flash = build("llama")
    flash.config._attn_implementation = "flash_attention_2"
    assert not supports(flash)
    stateful = build("llama")
    stateful.model._is_stateful = True
    assert not supports(stateful)
    squashed = build("llama")
    squashed.config.attn_logit_softcapping = 50.0
    assert not supports(squashed)
    sinking = build("llama")
    sinking.model.layers[1].self_attn.sinks = torch.zeros(4)
    assert not supports(sinking)


def test_layers_that_keep_keyword_arguments_to_themselves_are_not_supported(monkeypatch):
    model = build("llama")
    layer = type(model.model.layers[0])
    monkeypatch.setattr(layer, "forward", lambda self, hidden_states, attention_mask=None: hidden_states)
    assert not supports(model)


def test_a_window_matters_from_its_length_on():
    for model in (
        MistralModel(MistralConfig(**SMALL, **HEADS, **NONE, sliding_window=8)),
        Gemma3TextModel(Gemma3TextConfig(**SMALL, **HEADS, **NONE, head_dim=4, sliding_window=8)),
    ):
        assert supports(model, 8)
        assert not supports(model, 9)
        assert not supports(model)

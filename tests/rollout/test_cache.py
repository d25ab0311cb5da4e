import copy
import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from holdfast.data.collate import pad
from holdfast.data.template import Encoded
from holdfast.models.tiny import tiny_policy
from holdfast.rollout import cache as module
from holdfast.rollout.cache import RepeatedCache, SharedCache, remembering

VOCABULARY, STEPS = 24, 6
COMMON = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **COMMON,
}


def build(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **COMMON)
        return GPT2LMHeadModel(config).eval()
    if kind.startswith("mistral"):
        return MistralForCausalLM(MistralConfig(sliding_window=int(kind[7:]), **SMALL)).eval()
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(head_dim=8, **SMALL)).eval()
    return tiny_policy(VOCABULARY, kind=kind, seed=seed)


def prompts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(ids, [False] * len(ids), [False] * len(ids), len(ids) - 1, len(ids)) for ids in texts]


def alone(policy, rows):
    """The logits after each row, read without padding and without a cache."""
    return torch.cat([policy(torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])


# Which rows go on after each step, as places among those that are left: all; some; those of one prompt alone.
ENDS = {
    "nobody ends": [None] * 4,
    "gaps are closed": [[0, 7, 2, 6, 4, 5], [0, 1, 5, 3], None, [0, 3, 2]],
    "prompts are forgotten": [[7, 6, 2, 3], None, [0, 1], [1]],
}


@torch.inference_mode()
def check(policy, kind, lengths, ends, n=2):
    """Write to n answers per prompt at random and compare with rows read one by one."""
    # Inside the block the policy itself attends over what is shared.
    asked, plain = prompts(lengths), copy.deepcopy(policy)
    batch = pad(asked, side="left", pad_id=0)
    rows = [list(one.ids) for one in asked for _ in range(n)]
    generator = torch.Generator().manual_seed(1)
    with remembering(policy, batch, n, STEPS) as (cache, logits):
        assert type(cache) is kind
        torch.testing.assert_close(logits, alone(plain, [one.ids for one in asked]), rtol=0, atol=2e-6)
        for keep in ends:
            if keep is not None:
                cache.keep(torch.tensor(keep))
                rows = [rows[place] for place in keep]
            tokens = torch.randint(0, VOCABULARY, (len(rows),), generator=generator)
            positions = torch.tensor([len(row) for row in rows])
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist())]
            # Two float32 sums over other shapes; logits are of size one.
            torch.testing.assert_close(cache.read(tokens, positions), alone(plain, rows), rtol=0, atol=2e-6)
    return cache


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("lengths", [(5, 5, 5, 5), (3, 9, 1, 6)], ids=["equal", "padded"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mistral64"])
def test_rows_over_a_shared_prompt_read_what_rows_alone_read(kind, lengths, ends):
    check(build(kind), SharedCache, lengths, ends)


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("lengths", [(5, 5, 5, 5), (3, 9, 1, 6)], ids=["equal", "padded"])
@pytest.mark.parametrize("kind", ["mistral4", "gemma2"])
def test_families_with_attention_of_their_own_keep_the_cache_of_transformers(kind, lengths, ends):
    check(build(kind), RepeatedCache, lengths, ends)


def test_eager_attention_is_served_too():
    policy = build("llama")
    policy.set_attn_implementation("eager")
    check(policy, SharedCache, (3, 9, 1, 6), ENDS["gaps are closed"])
    assert policy.config._attn_implementation == "eager"


def test_layers_that_differ_keep_the_cache_of_transformers(monkeypatch):
    monkeypatch.setattr(module, "_uniform", lambda model, cache: False)
    check(build("llama"), RepeatedCache, (3, 9, 1, 6), ENDS["gaps are closed"])


def test_a_prompt_is_held_once_and_no_longer_than_it_has_rows():
    policy = build("llama")
    held = check(policy, SharedCache, (3, 9, 1, 6), [])
    # (prompts, key-value heads, padded tokens, size of a head)
    assert {tuple(table.shape) for pair in held.prompts for table in pair} == {(4, 2, 9, 16)}
    assert {tuple(table.shape) for pair in held.own for table in pair} == {(8, 2, STEPS, 16)}
    held = check(policy, SharedCache, (3, 9, 1, 6), [[0, 1, 2, 3, 4, 5]])
    assert len(held.prompts[0][0]) == 4, "one of four is not worth a copy"
    held = check(policy, SharedCache, (3, 9, 1, 6), [[0, 1, 2, 3]])
    assert [len(keys) for keys, _ in held.prompts] == [2, 2]


def test_rows_that_stay_where_they_are_are_not_written_again():
    policy, batch = build("llama"), pad(prompts((4, 4)), side="left", pad_id=0)
    with torch.inference_mode(), remembering(policy, batch, 3, STEPS) as (cache, _):
        cache.read(torch.arange(6), torch.full((6,), 4))
        keys = cache.own[0][0]
        address, before = keys.data_ptr(), keys[:, :, :1].clone()
        cache.keep(torch.tensor([0, 5, 2]))
        assert keys.data_ptr() == cache.own[0][0].data_ptr() == address
        assert torch.equal(keys[:3, :, :1], before[[0, 5, 2]])


@torch.inference_mode()
def test_attention_is_the_softmax_over_prompt_and_answer():
    """Against a double loop over rows, heads and keys in float64; two queries to a key, padding in front."""
    policy = tiny_policy(VOCABULARY, hidden=16, heads=4).double()
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    batch = pad(prompts((2, 3)), side="left", pad_id=0)
    with remembering(policy, batch, 2, STEPS) as (cache, _):
        (prompt_keys, prompt_values), *_ = cache.prompts
        cache.keep(torch.tensor([0, 3, 2]))
        owners, written = [0, 1, 1], []
        for _ in range(2):
            query, key, value = torch.randn(3, 4, 1, 4), torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4)
            query, key, value = query.double(), key.double(), value.double()
            found = cache.attend(0, query, key, value, 0.7)
            cache.written += 1
            written.append((key, value))
            for row, owner in enumerate(owners):
                for head in range(4):
                    keys = [prompt_keys[owner, head // 2, t] for t in range(3) if mask[owner, t]]
                    values = [prompt_values[owner, head // 2, t] for t in range(3) if mask[owner, t]]
                    keys += [k[row, head // 2, 0] for k, _ in written]
                    values += [v[row, head // 2, 0] for _, v in written]
                    heights = [math.exp(0.7 * float(query[row, head, 0] @ one)) for one in keys]
                    expected = sum(height * one for height, one in zip(heights, values)) / sum(heights)
                    # The softmax itself runs in float32, as everywhere in transformers.
                    torch.testing.assert_close(found[row, 0, head], expected, rtol=0, atol=2e-6)


def test_low_precision_stays_low():
    policy, batch = build("llama").bfloat16(), pad(prompts((3, 9)), side="left", pad_id=0)
    with torch.inference_mode(), remembering(policy, batch, 2, STEPS) as (cache, _):
        logits = cache.read(torch.arange(4), torch.tensor([3, 3, 9, 9]))
    rows = [[*one.ids, token] for token, one in enumerate(one for one in prompts((3, 9)) for _ in range(2))]
    assert logits.dtype == torch.bfloat16
    # Logits are of size one, and four roundings are what the worst of them may be apart.
    apart = (logits - alone(policy, rows).detach()).float().abs()
    assert float(apart.max()) < 3.8 * torch.finfo(torch.bfloat16).eps
    assert float(apart.mean()) < torch.finfo(torch.bfloat16).eps


def test_the_model_attends_as_before_also_when_something_fails():
    policy, batch = build("llama"), pad(prompts((4, 4)), side="left", pad_id=0)
    with remembering(policy, batch, 2, STEPS):
        assert policy.config._attn_implementation == module.ATTENTION
    assert policy.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="broken"), remembering(policy, batch, 2, STEPS):
        raise RuntimeError("broken")
    assert policy.config._attn_implementation == "sdpa"

"""The stream of prompts and answers against separate rows: states and gradients of every family, and the self-check."""

import random
import warnings

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from holdfast.models import grouped
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.grouped import Sharing, answer_states, last_states, stream, stream_states
from holdfast.models.policy import hidden_states, unwrapped
from holdfast.models.tiny import tiny_llava, tiny_policy

IMAGE, VOCABULARY = 5, 30
NONE = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
KINDS = ["llama", "qwen2", "one key head", "all key heads", "gpt2", "lora"]


def build(kind):
    """A small network in float64 throughout: the norms of Llama and Qwen2 would round to float32 in between."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, **NONE)
        ).eval()
    elif kind == "lora":
        model = with_adapter(tiny_policy(VOCABULARY, hidden=32), AdapterSettings(rank=2))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
    else:
        heads = {"one key head": 1, "all key heads": 4}.get(kind, 2)
        settings, network = (Qwen2Config, Qwen2ForCausalLM) if kind == "qwen2" else (LlamaConfig, LlamaForCausalLM)
        model = network(settings(**SMALL, **NONE, num_attention_heads=4, num_key_value_heads=heads)).eval()
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                better = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                better.weight = norm.weight
                setattr(module, name, better)
    return model.double()


def draw(seed, prompts=3, answers=8, equal=False):
    """Prompts and answers of random lengths as tables, and as separate rows: (ids, mask, positions, response)."""
    rng = random.Random(seed)
    count = rng.randint(1, prompts)
    asked = [[rng.randrange(6, VOCABULARY) for _ in range(7 if equal else rng.randint(1, 12))] for _ in range(count)]
    of = [p for p in range(count) for _ in range(rng.randint(1, answers))]
    rng.shuffle(of)
    of = [*range(count), *of]  # each prompt has an answer, and they do not stand together
    given = [[rng.randrange(6, VOCABULARY) for _ in range(5 if equal else rng.randint(1, 9))] for _ in of]
    tables = [*table(asked), *table(given), torch.tensor(of)]
    ids, lengths = table([asked[p] + answer for p, answer in zip(of, given)])
    column = torch.arange(ids.shape[1])
    mask = (column < lengths[:, None]).long()
    response = mask.bool() & (column >= tables[1][tables[4]][:, None])
    return tables, (ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)), response


def table(rows):
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for line, row in zip(ids, rows):
        line[: len(row)] = torch.tensor(row)
    return ids, lengths


def gradients(model, states):
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    model.zero_grad()
    (states * weight).tanh().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(model, found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    ours, theirs = gradients(model, found), gradients(model, wanted)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-9 * max(1.0, float(gradient.abs().max())))
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 1e-3


def mask_of(tables):
    return torch.arange(tables[2].shape[1]) < tables[3][:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_states_that_predict_answers_and_all_gradients_are_those_of_separate_rows(kind, seed):
    model = build(kind)
    tables, rows, response = draw(seed)
    asked, asked_lengths, given, _, of = tables
    wanted = hidden_states(model, *rows)[:, :-1][response[:, 1:]]
    same(model, answer_states(model, asked, asked_lengths, given, mask_of(tables), of), wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", range(3))
def test_states_at_the_ends_of_answers_are_those_of_separate_rows(kind, seed):
    model = build(kind)
    tables, rows, _ = draw(10 + seed)
    ends = rows[1].sum(-1) - 1
    wanted = hidden_states(model, *rows)[torch.arange(len(ends)), ends]
    same(model, last_states(model, *tables), wanted)


@pytest.mark.parametrize("kind", ["llama", "lora"])
def test_equal_lengths_need_no_padding_and_change_nothing(kind):
    model = build(kind)
    tables, rows, response = draw(1, equal=True)
    asked, asked_lengths, given, lengths, of = tables
    found = stream(asked, asked_lengths, given, lengths, of)
    assert found.input_ids.shape[1] == asked.numel() + given.numel()
    assert found.mask(torch.float64, 1).shape == (1, 1, 5, 7 + 5)
    wanted = hidden_states(model, *rows)[:, :-1][response[:, 1:]]
    same(model, answer_states(model, asked, asked_lengths, given, mask_of(tables), of), wanted)


def test_only_some_tokens_of_an_answer_may_be_asked_for():
    """What stands behind the last of them is not read at all."""
    model = build("llama")
    tables, rows, response = draw(3)
    asked, asked_lengths, given, _, of = tables
    mask = mask_of(tables) & (torch.arange(given.shape[1]) % 3 != 1) & (torch.arange(given.shape[1]) < 5)
    chosen = torch.zeros_like(response).masked_scatter(response, mask[mask_of(tables)])
    wanted = hidden_states(model, *rows)[:, :-1][chosen[:, 1:]]
    same(model, answer_states(model, asked, asked_lengths, given, mask, of), wanted)


def test_answers_of_one_token_need_their_prompts_alone():
    model = build("qwen2")
    asked, lengths = table([[7, 8, 9], [10, 11]])
    of = torch.tensor([0, 1, 0])
    found = answer_states(model, asked, lengths, torch.tensor([[6], [7], [8]]), torch.ones(3, 1, dtype=torch.bool), of)
    rows = hidden_states(model, asked, (torch.arange(3) < lengths[:, None]).long(), torch.arange(3).expand(2, 3))
    torch.testing.assert_close(found, rows[of, lengths[of] - 1], rtol=0, atol=1e-12)


def test_the_stream_holds_every_token_once_where_it_would_stand_alone():
    tables, _, _ = draw(2)
    asked, asked_lengths, given, lengths, of = tables
    found = stream(*tables)
    assert found.input_ids.shape[1] == int(asked_lengths.sum() + lengths.sum())
    for p, n in enumerate(asked_lengths.tolist()):
        own = found.prompt[p, :n]
        assert found.input_ids[0, own].tolist() == asked[p, :n].tolist()
        assert found.position_ids[0, own].tolist() == list(range(n))
    for b, n in enumerate(lengths.tolist()):
        own, start = found.answer[b, :n], int(asked_lengths[of[b]])
        assert found.input_ids[0, own].tolist() == given[b, :n].tolist()
        assert found.position_ids[0, own].tolist() == list(range(start, start + n))


def test_a_layer_computed_again_in_backward_gives_the_same_gradient():
    tables, _, _ = draw(1)
    both = []
    for again in (False, True):
        model = build("llama").train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        both.append(gradients(model, last_states(model, *tables)))
    for name, gradient in both[0].items():
        torch.testing.assert_close(both[1][name], gradient, rtol=0, atol=1e-12)


def test_an_image_of_the_prompt_is_read_once():
    model = tiny_llava(VOCABULARY, IMAGE)
    asked, asked_lengths = table([[3, IMAGE, IMAGE, IMAGE, IMAGE, 6], [9, 8, 7, IMAGE, IMAGE, IMAGE, IMAGE]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    of = torch.tensor([0, 1, 0, 0])
    given, lengths = table([[20, 21], [22], [23, 24, 25], [26]])
    found = last_states(model, asked, asked_lengths, given, lengths, of, pixel_values=pixels)
    for b, p in enumerate(of.tolist()):
        row = torch.cat([asked[p, : asked_lengths[p]], given[b, : lengths[b]]])[None]
        alone = hidden_states(
            model, row, torch.ones_like(row), torch.arange(row.shape[1])[None], pixel_values=pixels[p : p + 1]
        )
        # Sums in another order.
        torch.testing.assert_close(found[b], alone[0, -1], rtol=0, atol=1e-5)


def test_dropout_is_passed_on():
    torch.manual_seed(0)
    model = build("llama").train()
    tables, _, _ = draw(2)
    certain = last_states(model, *tables)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.allclose(last_states(model, *tables), certain)


def test_sharing_asks_for_the_ratio_the_setting_and_the_family():
    model = tiny_policy(VOCABULARY)
    assert Sharing().worthwhile(model, 1.3, 50)
    assert not Sharing().worthwhile(model, 1.29, 50)
    assert Sharing(gate=1.1).worthwhile(model, 1.2, 50)
    assert not Sharing("off").worthwhile(model, 9.0, 50)
    window = tiny_policy(VOCABULARY)
    window.config.layer_types = ["sliding_attention"] * 2
    window.config.sliding_window = 8
    assert Sharing().worthwhile(window, 2.0, 8)
    assert not Sharing().worthwhile(window, 2.0, 9)


def test_a_network_is_compared_once_and_keeps_its_mode():
    model = tiny_policy(VOCABULARY).train()
    states, calls = torch.ones(2, 3), []

    def read(name):
        def give():
            calls.append((name, model.training, torch.is_grad_enabled()))
            return states

        return give

    for _ in range(2):
        assert Sharing().states(model, read("shared"), read("plain")) is states
    check = [("shared", False, False), ("plain", False, False)]
    assert calls == [*check, ("shared", True, True), ("shared", True, True)]
    other = with_adapter(model, AdapterSettings(rank=2))
    calls.clear()
    Sharing().states(other, read("shared"), read("plain"))
    assert len(calls) == 1, "an adapted network is the one that was compared"


def test_states_that_differ_are_warned_of_once_and_end_sharing():
    model = tiny_policy(VOCABULARY, kind="qwen2")
    plain = torch.tensor([[1.0, -2.0]])
    shared = plain + torch.tensor([[0.0, 3e-4]])
    message = r"changes the states of this qwen2 by 1\.5e-04 of their size \(allowed: 1e-04\), so each answer is read"
    with pytest.warns(UserWarning, match=message):
        assert Sharing().states(model, lambda: shared, lambda: plain) is plain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sharing().states(model, lambda: shared, lambda: plain) is plain
    assert not Sharing().worthwhile(model, 9.0, 10)


def test_a_network_that_has_diverged_is_compared_when_it_gives_numbers_again():
    model, states = tiny_policy(VOCABULARY), torch.ones(1, 2)
    nothing = torch.full_like(states, torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sharing().states(model, lambda: nothing, lambda: nothing) is nothing
    with pytest.warns(UserWarning, match="changes the states"):
        Sharing().states(model, lambda: 2 * states, lambda: states)


@pytest.mark.parametrize(("apart", "agree"), [(4e-2, True), (6e-2, False)])
def test_low_precision_is_allowed_more(apart, agree):
    model = tiny_policy(VOCABULARY).bfloat16()
    plain = torch.ones(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Sharing().states(model, lambda: plain + apart, lambda: plain)
    assert Sharing().worthwhile(model, 9.0, 10) is agree


def test_a_wrong_attention_is_found_out(monkeypatch):
    """The check is made on states, so it sees what scores of a new head would hide."""
    model = build("llama").float()
    tables, rows, response = draw(1)
    asked, asked_lengths, given, _, of = tables
    real = grouped.Stream.mask
    # An answer that does not see its prompt.
    monkeypatch.setattr(grouped.Stream, "mask", lambda self, *a: real(self, *a).index_fill(3, torch.tensor([0]), -9.0))
    with pytest.warns(UserWarning, match="changes the states of this llama"):
        Sharing().states(
            model,
            lambda: answer_states(model, asked, asked_lengths, given, mask_of(tables), of),
            lambda: hidden_states(model, *rows)[:, :-1][response[:, 1:]],
        )
    assert unwrapped(model).config._attn_implementation == "sdpa"
    assert stream_states(model, stream(*tables)).shape[0] == int(asked_lengths.sum() + tables[3].sum())

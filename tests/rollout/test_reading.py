"""Log-probabilities, entropies and gradients of answers that share prompts, against every row read alone."""

import random

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from holdfast.data.grouped import group
from holdfast.data.template import Encoded
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import PromptStates, Reader, logprobs

VOCABULARY, PAD = 30, 0


def rows(seed, prompts=3, answers=8, length=9):
    rng, found = random.Random(seed), []
    for p in range(prompts):
        asked = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 12))]
        for k in range(rng.randint(2, answers)):
            given = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, length))]
            mask = [False] * len(asked) + [True] * len(given)
            ids = asked + given
            found.append(Encoded(ids, mask, mask, len(ids) - 1, len(asked), id=f"{p}-{k}"))
    return found


@pytest.fixture
def policy():
    return sharp(tiny_policy(VOCABULARY, hidden=32))


def sharp(model):
    """A head that tells tokens apart."""
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def alone(policy, row, temperature):
    """(R,) log-probabilities and entropies of one row, from its logits."""
    logits = policy(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1] / temperature
    every = logits.log_softmax(-1)
    labels = torch.tensor(row.response_ids)
    return every.gather(1, labels[:, None])[:, 0], -(every.exp() * every).sum(-1)


def gradient(policy, total):
    policy.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def uneven(values):
    return (values * torch.linspace(-1, 1, values.shape[-1])).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "lora"])
def test_numbers_and_gradients_are_those_of_rows_alone(kind, seed, temperature):
    if kind == "lora":
        torch.manual_seed(0)
        policy = with_adapter(sharp(tiny_policy(VOCABULARY, hidden=32)), AdapterSettings(rank=2))
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
    else:
        policy = sharp(tiny_policy(VOCABULARY, kind=kind, hidden=32))
    chosen = rows(seed)
    grouped = group(chosen, PAD)
    logp, entropy = Reader(policy, PAD, temperature).read(grouped, entropy=True)
    slow = [alone(policy, row, temperature) for row in chosen]
    for line, other, row, (own, spread) in zip(logp, entropy, chosen, slow):
        n = len(row.response_ids)
        # Sums in another order, in float32, of logits that reach 20.
        torch.testing.assert_close(line[:n], own, rtol=0, atol=1e-4)
        torch.testing.assert_close(other[:n], spread, rtol=0, atol=1e-4)
        assert line[n:].eq(0).all()
        assert other[n:].eq(0).all()
    found = gradient(policy, uneven(logp) + uneven(entropy.square()))
    total = sum(
        (row @ torch.linspace(-1, 1, logp.shape[1])[: len(row)])
        + (spread.square() @ torch.linspace(-1, 1, logp.shape[1])[: len(row)])
        for row, spread in slow
    )
    wanted = gradient(policy, total)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=2e-5 * float(values.abs().max()) + 1e-6)


def test_entropy_is_given_when_asked_for(policy):
    grouped = group(rows(1), PAD)
    logp, none = Reader(policy, PAD).read(grouped)
    assert none is None
    torch.testing.assert_close(logp, Reader(policy, PAD).read(grouped, entropy=True)[0])


@pytest.mark.parametrize("share", ["auto", "off"])
def test_any_cut_gives_the_same_gradient(policy, share):
    chosen = rows(4, prompts=5)
    by_prompt = [[row for row in chosen if row.id.startswith(f"{p}-")] for p in range(5)]
    weight = {row.id: i / len(chosen) - 0.3 for i, row in enumerate(chosen)}
    found = []
    for budget in (1, 60, 10_000):
        reader = Reader(policy, PAD, micro_tokens=budget, share=share)
        portions = reader.cut(by_prompt)
        assert sorted(p for portion in portions for p in portion) == list(range(5))
        policy.zero_grad()
        for portion in portions:
            part = [row for p in portion for row in by_prompt[p]]
            logp, _ = reader.read(group(part, PAD))
            (logp.sum(-1) * torch.tensor([weight[row.id] for row in part])).sum().backward()
        found.append({name: p.grad.clone() for name, p in policy.named_parameters()})
        assert len(portions) == {1: 5, 10_000: 1}.get(budget, len(portions))
    for name, wanted in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()) + 1e-6)


def counted(policy):
    """A list that grows by the tokens of each pass over `policy`."""
    seen = []
    policy.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    return seen


@pytest.mark.parametrize("share", ["auto", "off"])
def test_passes_stay_within_the_budget_as_they_are_read(policy, share):
    chosen = rows(5, prompts=8)
    Reader(policy, PAD).read(group(chosen, PAD))
    seen = counted(policy)
    for budget in (25, 80, 300):
        seen.clear()
        Reader(policy, PAD, micro_tokens=budget, share=share).logprobs(chosen)
        assert max(seen) <= budget
        assert len(seen) <= 2.5 * sum(seen) / budget + 1, "passes are filled"
    prompts = [[row for row in chosen if row.id.startswith(f"{p}-")] for p in range(8)]
    reader = Reader(policy, PAD, micro_tokens=200, share=share)
    for portion in reader.cut(prompts):
        seen.clear()
        reader.read(group([row for p in portion for row in prompts[p]], PAD))
        assert seen[0] <= 200 or len(portion) == 1


def test_a_shared_prompt_is_read_once(policy):
    chosen = rows(6, prompts=2, answers=6)
    seen = counted(policy)
    grouped = group(chosen, PAD)
    Reader(policy, PAD).read(grouped)
    # Compared first: shared, plain, and then the pass itself. The last tokens of answers predict nothing.
    once = grouped.tokens - len(chosen)
    assert seen == [once, len(chosen) * grouped.longest, once]
    seen.clear()
    Reader(policy, PAD).read(grouped)
    assert seen == [once]
    seen.clear()
    Reader(policy, PAD, share="off").read(grouped)
    Reader(policy, PAD, gate=grouped.saving + 0.01).read(grouped)
    assert seen == 2 * [len(chosen) * grouped.longest]


def test_families_that_cannot_share_are_read_plainly_and_without_a_word(recwarn):
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=True)
    policy = FalconForCausalLM(config).eval()
    chosen = rows(1)
    recwarn.clear()
    logp, _ = Reader(policy, PAD).read(group(chosen, PAD))
    assert [str(one.message) for one in recwarn if "shared prompt" in str(one.message)] == []
    own, _ = alone(policy, chosen[3], 1.0)
    torch.testing.assert_close(logp[3, : len(own)], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", ["auto", "off"])
@pytest.mark.parametrize("budget", [1, 50, 1000])
def test_a_table_without_gradient_in_the_order_of_the_rows(policy, share, budget):
    chosen = rows(7)
    random.Random(0).shuffle(chosen)
    policy.train()
    found = Reader(policy, PAD, 0.8, budget, share).logprobs(chosen)
    assert policy.training
    assert not found.requires_grad
    assert found.shape == (len(chosen), max(len(row.response_ids) for row in chosen))
    for line, row in zip(found, chosen):
        own, _ = alone(policy, row, 0.8)
        # Sums in another order, in float32, of logits that reach 20.
        torch.testing.assert_close(line[: len(own)], own, rtol=0, atol=1e-4)
        assert line[len(own) :].eq(0).all()
    assert torch.equal(logprobs(policy, chosen, PAD, 0.8, budget), Reader(policy, PAD, 0.8, budget).logprobs(chosen))


def test_no_rows_give_an_empty_table(policy):
    assert Reader(policy, PAD).logprobs([]).shape == (0, 0)


def test_layers_in_bfloat16_move_log_probabilities_by_some_hundredths(policy):
    """Weights, head and results stay in float32; what the layers lose is about 2^-8 of their states."""
    grouped = group(rows(8), PAD)
    with torch.no_grad():
        exact, _ = Reader(policy, PAD).read(grouped)
        coarse, _ = Reader(policy, PAD, dtype=torch.bfloat16).read(grouped)
    moved = (coarse - exact)[grouped.mask].abs()
    assert coarse.dtype == torch.float32
    assert 1e-5 < float(moved.mean()) < 0.05
    assert float(moved.max()) < 0.3
    logp, _ = Reader(policy, PAD, dtype=torch.bfloat16).read(grouped)
    assert all(values.dtype == torch.float32 for values in gradient(policy, uneven(logp)).values())


def prompt_alone(policy, row):
    """(T, H) states of one prompt, read by itself."""
    return policy.base_model(input_ids=torch.tensor([row.ids[: row.prompt_length]])).last_hidden_state[0]


@pytest.mark.parametrize("share", ["auto", "off"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_one_pass_gives_log_probabilities_and_the_states_of_the_prompts(kind, share):
    policy = sharp(tiny_policy(VOCABULARY, kind=kind, hidden=32))
    chosen = rows(9, prompts=4)
    random.Random(1).shuffle(chosen)
    grouped = group(chosen, PAD)
    # Compared with the plain pass here and not again, so that below a wrong state is not replaced by a plain one.
    Reader(policy, PAD).read(grouped)
    logp, prompts = Reader(policy, PAD, 0.7, share=share).read_with_prompts(grouped)
    wanted, _ = Reader(policy, PAD, 0.7, share="off").read(grouped)
    # Sums in another order, in float32, of logits that reach 20.
    torch.testing.assert_close(logp, wanted, rtol=0, atol=1e-4)
    assert logp.requires_grad
    assert len(prompts) == 4
    assert prompts.states.shape[:2] == prompts.padding.shape
    for line, hidden, p in zip(prompts.states, prompts.padding, range(4)):
        row = chosen[grouped.of.tolist().index(p)]
        # States of about 1 and some 30 operations: the two passes are equal to 1e-5.
        torch.testing.assert_close(line[~hidden], prompt_alone(policy, row), rtol=0, atol=1e-5)
        assert line[hidden].eq(0).all()
        assert hidden.tolist() == [i >= row.prompt_length for i in range(len(hidden))]


@pytest.mark.parametrize("share", ["auto", "off"])
def test_it_is_one_pass_indeed(policy, share):
    chosen = rows(6, prompts=2, answers=6)
    grouped = group(chosen, PAD)
    reader = Reader(policy, PAD, share=share)
    reader.read(grouped)
    seen = counted(policy)
    reader.read_with_prompts(grouped)
    assert seen == [grouped.tokens if share == "auto" else len(chosen) * grouped.longest]


def lengths_and_sums(states, padding):
    """A number for each prompt in which every state counts, and where it stands."""
    place = torch.arange(states.shape[1])[None, :, None]
    return (states * (1 + place)).sum((1, 2)).masked_fill(padding.all(-1), 0)


@pytest.mark.parametrize("share", ["auto", "off"])
@pytest.mark.parametrize("budget", [1, 50, 1000])
def test_every_row_gets_its_log_probabilities_and_its_prompts_value(policy, share, budget):
    chosen = rows(7)
    random.Random(0).shuffle(chosen)
    policy.train()
    table, values = Reader(policy, PAD, 0.8, budget, share).logprobs_and_values(chosen, lengths_and_sums)
    assert policy.training
    assert not table.requires_grad
    assert not values.requires_grad
    wanted = Reader(policy, PAD, 0.8, budget, share).logprobs(chosen)
    # Sums in another order, in float32, of logits that reach 20.
    torch.testing.assert_close(table, wanted, rtol=0, atol=1e-4)
    known = {}
    for row, value in zip(chosen, values.tolist()):
        alone = prompt_alone(policy.eval(), row)[None]
        # A sum of some hundred numbers that are equal to 1e-5.
        assert value == pytest.approx(float(lengths_and_sums(alone, torch.zeros(alone.shape[:2]).bool())), abs=1e-3)
        assert known.setdefault(row.id[0], value) == value, "equal prompts have the very same value"
    assert len(set(known.values())) == 3


def test_no_rows_have_no_values(policy):
    table, values = Reader(policy, PAD).logprobs_and_values([], lengths_and_sums)
    assert table.shape == (0, 0)
    assert values.shape == (0,)


def bare_prompt(row):
    n = row.prompt_length
    return Encoded(row.ids[:n], [False] * n, [False] * n, n - 1, n)


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_states_of_different_prompts_once(policy, budget):
    chosen = rows(3, prompts=5)
    random.Random(2).shuffle(chosen)
    policy.train()
    seen = counted(policy)
    prompts, of = Reader(policy, PAD, micro_tokens=budget).prompt_states(chosen)
    assert policy.training
    assert not prompts.states.requires_grad
    assert len(prompts) == 5
    assert budget == 1 or max(seen) <= budget
    assert {1: len(seen), 1000: 5}.get(budget, 5) == 5
    first = {}
    for row, p in zip(chosen, of.tolist()):
        assert first.setdefault(p, row.id[0]) == row.id[0]
        line, hidden = prompts.states[p], prompts.padding[p]
        torch.testing.assert_close(line[~hidden], prompt_alone(policy.eval(), row), rtol=0, atol=1e-5)
        assert line[hidden].eq(0).all()
    bare = [bare_prompt(row) for row in chosen]
    again, same = Reader(policy, PAD).prompt_states(bare)
    assert torch.equal(same, of)
    torch.testing.assert_close(again.states, prompts.states, rtol=0, atol=1e-5)


def test_states_are_read_at_the_precision_of_the_reader(policy):
    exact, _ = Reader(policy, PAD).prompt_states(rows(8))
    coarse, _ = Reader(policy, PAD, dtype=torch.bfloat16).prompt_states(rows(8))
    _, beside = Reader(policy, PAD, dtype=torch.bfloat16, share="off").read_with_prompts(group(rows(8), PAD))
    assert 1e-4 < float((coarse.states.float() - exact.states).abs().mean()) < 0.05
    assert 1e-4 < float((beside.states.float() - exact.states).abs().mean()) < 0.05


def test_prompts_are_taken_with_no_more_padding_than_they_need():
    states = torch.arange(24.0).reshape(3, 4, 2)
    some = PromptStates(states, torch.arange(4) >= torch.tensor([4, 1, 2])[:, None])
    taken = some.take([2, 1])
    assert torch.equal(taken.states, states[[2, 1], :2])
    assert taken.padding.tolist() == [[False, False], [False, True]]
    assert some.take([]).states.shape == (0, 0, 2)

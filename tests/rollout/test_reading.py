"""Log-probabilities, entropies and gradients of answers that share prompts, against every row read alone."""

import random

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from holdfast.data.grouped import group
from holdfast.data.template import Encoded
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import Reader, logprobs

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

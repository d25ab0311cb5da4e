import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from holdfast.data.collate import pad
from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings, with_adapter
from holdfast.models.packed import packed, usable
from holdfast.models.policy import response_logprobs
from holdfast.models.tiny import tiny_llava, tiny_policy
from holdfast.rollout import cache, generate
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.sample import uniforms
from holdfast.rollout.types import Sampling

_spec = importlib.util.spec_from_file_location("naive", Path(__file__).parents[2] / "benchmarks" / "naive.py")
naive = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(naive)

VOCABULARY, IMAGE, STOPS, PAD = 24, 5, [1, 2], 0
LENGTHS = (3, 9, 1, 5, 5)


class Picture:
    """An image of an encoded row whose tensors are already there."""

    def __init__(self, seed):
        self.pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))

    def tensors(self):
        return {"pixel_values": self.pixels}


def prompt(ids, picture=None):
    return Encoded(ids, [False] * len(ids), [False] * len(ids), len(ids) - 1, len(ids), [picture] if picture else [])


def prompts(lengths=LENGTHS, images=False):
    generator = torch.Generator().manual_seed(7)
    texts = [torch.randint(6, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    if images:
        return [prompt([IMAGE] * 4 + text, Picture(i)) for i, text in enumerate(texts)]
    return [prompt(text) for text in texts]


def sharp(policy, scale=40.0):
    """The policy with larger logits, so that responses differ in length and tokens in probability."""
    with torch.no_grad():
        policy.lm_head.weight.mul_(scale)
    return policy


def oracle(policy, asked, n, sampling, seed, images=None):
    uniform = torch.from_numpy(uniforms(seed, len(asked) * n, sampling.max_new_tokens))
    ids = [list(one.ids) for one in asked]
    return naive.naive_generate(policy, ids, n, uniform, STOPS, sampling.temperature, images)


def without_pictures(policy, given, found):
    """A forward hook: the token that stands for a picture is not drawn."""
    found.logits.index_fill_(-1, torch.tensor([IMAGE]), -torch.inf)


def tokens(samples):
    return [sample.response_ids for sample in samples]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("seed, n, steps", [(0, 1, 12), (1, 4, 24), (2, 3, 1), (3, 8, 16)])
@pytest.mark.parametrize("batch_tokens", [65_536, 100])
def test_tokens_equal_those_of_the_plain_loop(kind, seed, n, steps, batch_tokens):
    policy = sharp(tiny_policy(VOCABULARY, kind=kind, seed=seed))
    sampling = Sampling(max_new_tokens=steps, temperature=0.9)
    generator = TransformersGenerator(policy, STOPS, PAD, batch_tokens=batch_tokens)
    samples = generator.generate(prompts(), n, sampling, seed)
    plain = oracle(policy, prompts(), n, sampling, seed)
    assert tokens(samples) == [ids for ids, _ in plain]
    for sample, (_, logprobs) in zip(samples, plain, strict=True):
        # Both sides are within 1e-5 of float64, as logits reach 30 and attention over other shapes rounds differently.
        assert sample.logprobs == pytest.approx(logprobs, abs=3e-5)
    assert [sample.prompt_index for sample in samples] == [i for i in range(len(LENGTHS)) for _ in range(n)]
    assert all(sample.prompt_ids == prompts()[sample.prompt_index].ids for sample in samples)


@pytest.mark.parametrize("batch_tokens", [65_536, 100])
def test_tokens_are_the_same_where_the_prompt_is_repeated(monkeypatch, batch_tokens):
    """The way of families whose attention cannot be replaced."""
    monkeypatch.setattr(cache, "supports", lambda model, longest: False)
    policy, sampling = sharp(tiny_policy(VOCABULARY, seed=1)), Sampling(max_new_tokens=24, temperature=0.9)
    samples = TransformersGenerator(policy, STOPS, PAD, batch_tokens=batch_tokens).generate(prompts(), 4, sampling, 1)
    assert tokens(samples) == [ids for ids, _ in oracle(policy, prompts(), 4, sampling, 1)]


def test_tokens_are_the_same_where_weights_are_packed():
    policy, sampling = sharp(tiny_policy(VOCABULARY, hidden=384, seed=1)), Sampling(max_new_tokens=24, temperature=0.9)
    if usable():
        with torch.no_grad(), packed(policy) as names:
            assert "model.layers.0.mlp.down_proj" in names
    samples = TransformersGenerator(policy, STOPS, PAD).generate(prompts(), 4, sampling, 1)
    plain = oracle(policy, prompts(), 4, sampling, 1)
    assert tokens(samples) == [ids for ids, _ in plain]
    for sample, (_, logprobs) in zip(samples, plain, strict=True):
        # Logits reach 100, and both sides round sums of 384 products.
        assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_tokens_are_those_of_the_adapted_policy():
    policy = with_adapter(tiny_policy(VOCABULARY, seed=1), AdapterSettings(rank=4))
    plain = tokens(TransformersGenerator(policy, STOPS, PAD).generate(prompts(), 4, Sampling(max_new_tokens=12), 1))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(weight.numel()))
    sampling = Sampling(max_new_tokens=12)
    found = tokens(TransformersGenerator(policy, STOPS, PAD).generate(prompts(), 4, sampling, 1))
    assert found == [ids for ids, _ in oracle(policy, prompts(), 4, sampling, 1)]
    assert found != plain


def test_the_comparison_covers_early_ends_and_full_lengths():
    samples = TransformersGenerator(sharp(tiny_policy(VOCABULARY, seed=1)), STOPS, PAD).generate(
        prompts(), 4, Sampling(max_new_tokens=24, temperature=0.9), 1
    )
    assert len({len(sample.response_ids) for sample in samples}) >= 5
    assert {sample.finish for sample in samples} == {"stop", "length"}


def test_images_are_read_with_the_prompt():
    policy = sharp(tiny_llava(VOCABULARY, IMAGE, seed=3), 80)
    sampling, asked = Sampling(max_new_tokens=12), prompts(images=True)
    generator = TransformersGenerator(policy, STOPS, PAD)
    samples = generator.generate(asked, 3, sampling, 5)
    pixels = {"pixel_values": torch.cat([one.images[0].pixels for one in asked])}
    worded = policy.register_forward_hook(without_pictures)
    assert tokens(samples) == [ids for ids, _ in oracle(policy, asked, 3, sampling, 5, pixels)]
    worded.remove()
    for one in asked:
        one.images[0].pixels = one.images[0].pixels + 3
    assert tokens(generator.generate(asked, 3, sampling, 5)) != tokens(samples)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probabilities_are_those_of_teacher_forcing(temperature):
    policy = sharp(tiny_policy(VOCABULARY, seed=4))
    sampling = Sampling(max_new_tokens=20, temperature=temperature)
    samples = TransformersGenerator(policy, STOPS, PAD).generate(prompts(), 4, sampling, 9)
    rows = [sample.prompt_ids + sample.response_ids for sample in samples]
    marks = [[False] * len(s.prompt_ids) + [True] * len(s.response_ids) for s in samples]
    batch = pad([Encoded(row, mark, mark, 0, 0) for row, mark in zip(rows, marks)], pad_id=PAD)
    forced = response_logprobs(
        policy,
        batch.input_ids,
        batch.attention_mask,
        batch.position_ids,
        batch.response_mask,
        temperature=temperature,
    )
    recorded = torch.tensor([value for sample in samples for value in sample.logprobs])
    torch.testing.assert_close(recorded, forced[batch.response_mask], rtol=0, atol=1e-5)


def test_a_response_does_not_depend_on_its_company():
    policy = sharp(tiny_policy(VOCABULARY, seed=6))
    generator, sampling = TransformersGenerator(policy, STOPS, PAD), Sampling(max_new_tokens=16)
    together = generator.generate(prompts(), 4, sampling, 3)
    assert tokens(generator.generate(prompts()[:1], 4, sampling, 3)) == tokens(together[:4])


def test_samples_follow_the_policy():
    """First tokens against the softmax, and second tokens given the most frequent first one."""
    policy = sharp(tiny_policy(8, seed=2), 10)
    asked = [prompt([3, 4])]
    samples = TransformersGenerator(policy, [], PAD).generate(asked, 4000, Sampling(max_new_tokens=2), 1)
    first, _ = Counter(sample.response_ids[0] for sample in samples).most_common(1)[0]
    for context, drawn in [
        ([3, 4], [sample.response_ids[0] for sample in samples]),
        ([3, 4, first], [s.response_ids[1] for s in samples if s.response_ids[0] == first]),
    ]:
        with torch.no_grad():
            expected = policy(torch.tensor([context])).logits[0, -1].double().softmax(-1).numpy()
        counts = torch.bincount(torch.tensor(drawn), minlength=8).numpy()
        assert chisquare(counts, expected * len(drawn)).pvalue > 1e-3


def test_greedy_takes_the_most_probable_token():
    policy = sharp(tiny_policy(VOCABULARY, seed=8))
    (sample,) = TransformersGenerator(policy, STOPS, PAD).generate(
        prompts((4,)), 1, Sampling(max_new_tokens=10, greedy=True), 0
    )
    ids = list(sample.prompt_ids)
    for token in sample.response_ids:
        with torch.no_grad():
            assert policy(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)


def test_the_stop_token_belongs_to_the_response():
    policy = tiny_policy(VOCABULARY, seed=0)
    everything = TransformersGenerator(policy, range(VOCABULARY), PAD)
    for sample in everything.generate(prompts(), 2, Sampling(max_new_tokens=9), 0):
        assert (len(sample.response_ids), len(sample.logprobs), sample.finish) == (1, 1, "stop")
    nothing = TransformersGenerator(policy, [], PAD)
    for sample in nothing.generate(prompts(), 2, Sampling(max_new_tokens=9), 0):
        assert (len(sample.response_ids), sample.finish) == (9, "length")


def test_a_repetition_penalty_counts_what_each_row_has_seen():
    """Against the formula applied to one row at a time; rows end at different steps."""
    policy, penalty = sharp(tiny_policy(VOCABULARY, seed=1), 30), 1.4
    sampling = Sampling(max_new_tokens=12, repetition_penalty=penalty)
    samples = TransformersGenerator(policy, STOPS, PAD).generate(prompts(), 2, sampling, 0)
    assert len({len(sample.response_ids) for sample in samples}) > 2
    for sample in samples:
        ids = list(sample.prompt_ids)
        for token, recorded in zip(sample.response_ids, sample.logprobs):
            with torch.no_grad():
                logits = policy(torch.tensor([ids])).logits[0, -1].double()
            for seen in set(ids):
                logits[seen] *= penalty if logits[seen] < 0 else 1 / penalty
            # Single rows and batches round differently.
            assert recorded == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-5)
            ids.append(token)


def test_the_policy_is_left_as_it_was():
    policy = with_adapter(tiny_policy(VOCABULARY), AdapterSettings(rank=2, dropout=0.5)).train()
    state = torch.random.get_rng_state()
    generator = TransformersGenerator(policy, STOPS, PAD)
    one, two = (tokens(generator.generate(prompts(), 2, Sampling(max_new_tokens=6), 4)) for _ in range(2))
    assert one == two, "dropout is off while sampling"
    assert policy.training
    assert torch.equal(state, torch.random.get_rng_state())
    loss = policy(torch.tensor([[3, 4, 5]])).logits.sum()
    loss.backward()


def test_a_failure_in_the_middle_leaves_the_policy_as_it_was(monkeypatch):
    policy = tiny_policy(VOCABULARY).train()
    steps = iter(range(3))

    def broken(logits, sampling, seen):
        if next(steps) == 2:
            raise RuntimeError("out of memory")
        return logits.softmax(-1)

    monkeypatch.setattr(generate, "distribution", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        TransformersGenerator(policy, [], PAD).generate(prompts(), 2, Sampling(max_new_tokens=6), 0)
    assert policy.training
    assert policy.config._attn_implementation == "sdpa"


def test_nothing_asked_nothing_given():
    generator = TransformersGenerator(tiny_policy(VOCABULARY), STOPS, PAD)
    assert generator.generate([], 4, Sampling(), 0) == []
    with pytest.raises(ValueError, match="n must be at least 1"):
        generator.generate(prompts(), 0, Sampling(), 0)


def test_prompts_that_cannot_be_answered():
    generator = TransformersGenerator(tiny_policy(VOCABULARY, max_positions=16), STOPS, PAD)
    with pytest.raises(UserError, match=r"prompt 1 .no id. has 9 tokens.*max_new_tokens=8.*window of 16"):
        generator.generate(prompts(), 1, Sampling(max_new_tokens=8), 0)
    with pytest.raises(UserError, match=r"prompt 0 .no id. has no tokens"):
        generator.generate([prompt([])], 1, Sampling(max_new_tokens=8), 0)

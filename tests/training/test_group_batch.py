"""An experience cut into optimiser steps and batches: every kept answer once, and nothing weighs more for it."""

import pytest
import torch

from holdfast.training.group_batch import GroupLearnable, Portions, Skipped

K, LONGEST = 3, 6


def one_prompt_each(prompts):
    return [[p] for p in range(len(prompts))]


def in_pairs(prompts):
    return [[p for p in (i, i + 1) if p < len(prompts)] for i in range(0, len(prompts), 2)]


def plan(steps=1, mean="token_mean", cut=one_prompt_each, skip=True):
    return Portions(steps, mean, LONGEST, cut, skip)


@pytest.fixture
def learnable(bench):
    """Six prompts; the third is silent, the fifth is not learned from, the sixth lacks its first answer."""
    made = bench(k=K)
    experience = made.collector.collect(made.prompts, seed=0)
    kept, silent = torch.ones(18, dtype=torch.bool), torch.zeros(18, dtype=torch.bool)
    kept[12:16], silent[6:9] = False, True
    correction = torch.rand(experience.old_logprobs.shape, generator=torch.Generator().manual_seed(0))
    return GroupLearnable(experience, torch.arange(18.0), correction, kept, silent, {})


def rng():
    return torch.Generator().manual_seed(0)


def rows(batches):
    """The places of the answers that are read; their advantages are their places."""
    return [int(a) for batch in batches if not isinstance(batch, Skipped) for a in batch.advantages]


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_every_kept_answer_is_in_one_step_with_all_of_its_prompt(learnable, steps):
    portions = learnable.mini_batches(plan(steps, skip=False), rng())
    assert len(portions) == steps
    read = [rows(batches) for batches in portions]
    assert sorted(i for one in read for i in one) == [i for i in range(18) if not 12 <= i < 16]
    prompts = [{i // K for i in one} for one in read]
    assert sum(map(len, prompts)) == 5
    assert len(set.union(*prompts)) == 5


def test_the_order_is_drawn(learnable):
    read = [rows(learnable.mini_batches(plan(), torch.Generator().manual_seed(seed))[0]) for seed in range(3)]
    assert read[0] != read[1] or read[0] != read[2]
    assert read[0] == rows(learnable.mini_batches(plan(), rng())[0])


def test_batches_hold_what_belongs_to_their_rows(learnable):
    e = learnable.experience
    (batches,) = learnable.mini_batches(plan(cut=in_pairs, skip=False), rng())
    assert len(batches) == 3
    for batch in batches:
        chosen = rows([batch])
        assert [row.ids for row in batch.tokens.rows] == [e.rows[i].ids for i in chosen]
        assert batch.ids == tuple(e.rows[i].id for i in chosen)
        width = max(len(e.rows[i].response_ids) for i in chosen)
        for table, whole in (
            (batch.old_logprobs, e.old_logprobs),
            (batch.ref_logprobs, e.ref_logprobs),
            (batch.sampler_logprobs, e.old_logprobs),
            (batch.correction, learnable.correction),
        ):
            assert torch.equal(table, whole[chosen, :width])
        assert torch.equal(batch.tokens.mask, e.response_mask[chosen, :width])


@pytest.mark.parametrize("mean", ["token_mean", "row_mean", "token_sum_constant", "prompt_mean", "sequence_sum"])
@pytest.mark.parametrize("skip", [False, True])
def test_weights_and_counts_are_those_of_the_whole_step(learnable, mean, skip):
    """With a loss of 1 for each token of answer i times i, by hand; what is skipped counts and adds nothing."""
    lengths = learnable.experience.places.lengths
    prompts = [[i for i in range(p * K, p * K + K) if learnable.kept[i]] for p in range(6)]
    prompts = [one for one in prompts if one]
    every = [i for one in prompts for i in one]
    read = [i for i in every if not (skip and learnable.silent[i])]
    total = {
        "token_mean": sum(i * lengths[i] for i in read) / sum(lengths[i] for i in every),
        "row_mean": sum(read) / len(every),
        "token_sum_constant": sum(i * lengths[i] for i in read) / (len(every) * LONGEST),
        "prompt_mean": sum(
            sum(i * lengths[i] for i in one if i in read) / sum(lengths[i] for i in one) for one in prompts
        )
        / len(prompts),
        "sequence_sum": sum(i * lengths[i] for i in read) / len(every),
    }[mean]
    for cut in (one_prompt_each, in_pairs):
        (batches,) = learnable.mini_batches(plan(mean=mean, cut=cut, skip=skip), rng())
        assert sum(isinstance(one, Skipped) for one in batches) == skip
        assert sorted(rows(batches)) == read
        sums = [
            batch.gather(batch.advantages[:, None].expand(batch.tokens.mask.shape))
            for batch in batches
            if not isinstance(batch, Skipped)
        ]
        count = sum(float(one.count) for one in sums) + sum(one.count for one in batches if isinstance(one, Skipped))
        assert sum(float(one.total) for one in sums) / count == pytest.approx(total, rel=1e-6)


def test_nothing_kept_is_an_empty_step(learnable):
    nobody = GroupLearnable(
        learnable.experience,
        learnable.advantages,
        learnable.correction,
        torch.zeros(18, dtype=torch.bool),
        learnable.silent,
        {},
    )
    for mean in ("token_mean", "prompt_mean", "token_sum_constant"):
        assert nobody.mini_batches(plan(2, mean), rng()) == [[], []]


def test_counts_stay_where_they_were_announced(learnable):
    """Fractions summed on another device could differ in the last bit from what was announced."""
    (batches,) = learnable.mini_batches(plan(mean="prompt_mean"), rng())
    moved = batches[0].to("meta")
    assert moved.counts is batches[0].counts
    names = ("old_logprobs", "ref_logprobs", "sampler_logprobs", "correction", "advantages", "weights")
    assert {getattr(moved, name).device.type for name in names} == {"meta"}
    assert moved.tokens.mask.device.type == "meta"

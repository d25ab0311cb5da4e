import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from holdfast.rollout.sample import distribution, draw, uniforms
from holdfast.rollout.types import Sampling

LOGITS = [2.0, 1.0, 0.5, -1.0, 0.0]


def softmax(logits):
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


def probabilities(sampling, logits=LOGITS, seen=None):
    seen = None if seen is None else torch.tensor([seen])
    return distribution(torch.tensor([logits]), sampling, seen)[0].tolist()


def test_temperature_divides_the_logits():
    expected = softmax([value / 0.5 for value in LOGITS])
    assert probabilities(Sampling(temperature=0.5)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 5, 9])
def test_top_k_keeps_the_k_largest(k):
    order = sorted(range(5), key=lambda i: -LOGITS[i])[:k]
    kept = dict(zip(order, softmax([LOGITS[i] for i in order])))
    assert probabilities(Sampling(top_k=k)) == pytest.approx([kept.get(i, 0) for i in range(5)], abs=1e-6)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.6, 0.8, 0.95, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    full, order, mass = softmax(LOGITS), sorted(range(5), key=lambda i: -LOGITS[i]), 0.0
    chosen = []
    for i in order:
        if mass < p:
            chosen.append(i)
        mass += full[i]
    kept = dict(zip(chosen, softmax([LOGITS[i] for i in chosen])))
    assert probabilities(Sampling(top_p=p)) == pytest.approx([kept.get(i, 0) for i in range(5)], abs=1e-6)


def test_repetition_penalty_weakens_what_was_seen():
    seen = [True, False, False, True, False]
    logits = [LOGITS[0] / 1.5, *LOGITS[1:3], LOGITS[3] * 1.5, LOGITS[4]]
    found = probabilities(Sampling(repetition_penalty=1.5), seen=seen)
    assert found == pytest.approx(softmax(logits), abs=1e-6)


def test_draw_inverts_the_cumulative_distribution():
    p = [0.1, 0.0, 0.4, 0.5]
    grid = [0.0, 0.05, 0.1 + 1e-9, 0.3, 0.5 + 1e-6, 0.99, 1 - 2.0**-40]
    expected = [next(i for i in range(4) if u < sum(p[: i + 1]) + 1e-12) for u in grid[:-1]] + [3]
    found = draw(torch.tensor([p], dtype=torch.float64).expand(7, -1), torch.tensor(grid, dtype=torch.float64))
    assert found.tolist() == expected


def test_a_token_of_probability_zero_is_never_drawn():
    p = torch.zeros(2, 200)
    p[:, [70, 100, 150]] = torch.tensor([0.3, 0.3, 0.4])
    assert draw(p, torch.tensor([0.0, 1 - 2.0**-40], dtype=torch.float64)).tolist() == [70, 150]
    edges = torch.tensor([0.0, 0.5, 1 - 2.0**-40], dtype=torch.float64)
    assert draw(torch.tensor([[0.0, 0.5, 0.5, 0.0]]).repeat(3, 1), edges).tolist() == [1, 2, 2]


def test_a_rare_last_token_keeps_its_share():
    """In float32 the sum over many tokens stops growing, and what comes last would never be drawn."""
    size = 200_000
    p = torch.full((1, size), 1 / size)
    u = torch.tensor([1 - 0.5 / size], dtype=torch.float64)
    assert draw(p, u).item() == size - 1


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_blocks_draw_the_tokens_of_the_plain_definition(size, spread):
    """100,000 draws; those that differ fell within rounding of the border between two tokens."""
    generator = torch.Generator().manual_seed(size)
    p = (spread * torch.randn(10, size, generator=generator)).softmax(-1)
    u = torch.rand(10_000, generator=generator, dtype=torch.float64)
    for row in p:
        heights = row.double().cumsum(-1) / row.double().sum()
        plain = (heights[None, :] <= u[:, None]).sum(-1)
        found = draw(row.expand(len(u), -1), u)
        # The sum of a block of 64 float32 numbers is off by a few parts in 10^8.
        assert (heights[torch.minimum(plain, found)] - u)[found != plain].abs().le(1e-7).all()
        assert (found != plain).sum() <= 3


def test_draws_follow_the_distribution():
    p = softmax(LOGITS)
    u = torch.from_numpy(uniforms(seed=5, rows=4000, steps=5).ravel())
    tokens = draw(distribution(torch.tensor([LOGITS]), Sampling()).expand(len(u), -1), u)
    counts = np.bincount(tokens.numpy(), minlength=5)
    assert chisquare(counts, np.array(p) * len(u)).pvalue > 1e-3
    # The test can fail: a distribution that is off by a fiftieth is rejected.
    other = np.array(p) + np.array([0.02, -0.02, 0, 0, 0])
    assert chisquare(counts, other * len(u)).pvalue < 1e-6


def test_streams_depend_on_seed_and_row_alone():
    some = uniforms(3, rows=4, steps=6)
    assert (uniforms(3, rows=9, steps=20)[:4, :6] == some).all()
    assert not (uniforms(4, rows=4, steps=6) == some).any()
    assert len(np.unique(some)) == some.size
    assert ((some >= 0) & (some < 1)).all()

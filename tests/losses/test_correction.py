import math

import pytest
import torch
from torch.testing import assert_close

from holdfast.losses.correction import correct, current
from holdfast.losses.mask import from_lengths

DIFFERENCE = torch.tensor([[0.3, -0.1, 0.9]], dtype=torch.float64)
ZERO = torch.zeros_like(DIFFERENCE)
ALL = torch.ones(1, 3, dtype=torch.bool)


def drawn():
    generator = torch.Generator().manual_seed(0)
    mask = from_lengths(torch.tensor([4, 1, 3, 0]), 4)
    old, sampler = torch.randn(2, 4, 4, dtype=torch.float64, generator=generator)
    return old.masked_fill(~mask, -math.inf), sampler.masked_fill(~mask, math.nan), mask


def test_tokens_by_hand():
    free = correct(DIFFERENCE, ZERO, ALL, cap=math.inf)
    assert free.weights.flatten().tolist() == pytest.approx([1.349859, 0.904837, 2.459603], abs=1e-6)
    capped = correct(DIFFERENCE, ZERO, ALL, cap=2.0)
    assert capped.weights.flatten().tolist() == pytest.approx([1.349859, 0.904837, 2.0], abs=1e-6)
    assert capped.kept.tolist() == [True]


@pytest.mark.parametrize("drop, high, kept", [("product", 3.0, False), ("geometric", 3.0, True), ("none", 1.0, True)])
def test_the_product_drops_an_answer_that_the_geometric_mean_keeps(drop, high, kept):
    found = correct(DIFFERENCE, ZERO, ALL, drop=drop, high=high)  # product 3.004166, geometric mean 1.442917
    assert found.kept.tolist() == [kept]
    assert found.weights.any().item() == kept
    assert found.numbers["mismatch/dropped"] == (not kept, 1)


@pytest.mark.parametrize("drop, ratio", [("product", 3.004166), ("geometric", 1.442917)])
def test_both_borders_hold(drop, ratio):
    def kept(difference, **borders):
        return correct(difference, ZERO, ALL, drop=drop, **borders).kept.item()

    assert kept(DIFFERENCE, high=ratio + 1e-6)
    assert not kept(DIFFERENCE, high=ratio - 1e-6)
    assert kept(-DIFFERENCE, low=1 / (ratio + 1e-6))
    assert not kept(-DIFFERENCE, low=1 / (ratio - 1e-6))


def test_a_kept_answer_is_capped_token_by_token_all_the_same():
    found = correct(DIFFERENCE, ZERO, ALL, cap=1.2, drop="geometric")
    assert found.weights.flatten().tolist() == pytest.approx([1.2, 0.904837, 1.2], abs=1e-6)


@pytest.mark.parametrize("drop", ["none", "product", "geometric"])
def test_the_samplers_own_answers_are_left_alone(drop):
    """Whoever takes the sampler's log-probabilities as the old ones must not be corrected a second time."""
    old, _, mask = drawn()
    found = correct(old, old, mask, cap=1.0, drop=drop, low=1.0, high=1.0)
    assert torch.equal(found.weights, mask.to(found.weights))
    assert found.kept.all()
    means = {name: value.mean.item() for name, value in found.numbers.items()}
    assert means == {"mismatch/weight": 1, "mismatch/capped": 0, "mismatch/kl": 0, "mismatch/dropped": 0}


def test_everything_equals_a_double_loop():
    old, sampler, mask = drawn()
    found = correct(old, sampler, mask, cap=1.5, drop="geometric", low=0.5, high=1.8)
    weights, capped, kl, dropped = [], 0, 0.0, 0
    for row in range(4):
        tokens = [old[row, i].item() - sampler[row, i].item() for i in range(int(mask[row].sum()))]
        mean = math.exp(sum(tokens) / len(tokens)) if tokens else 1.0
        keep = 0.5 <= mean <= 1.8
        assert found.kept[row].item() == keep
        weights += [min(math.exp(d), 1.5) if keep else 0.0 for d in tokens]
        capped += sum(math.exp(d) > 1.5 for d in tokens)
        kl += sum(math.exp(d) - 1 - d for d in tokens)
        dropped += not keep
    assert 0 < dropped < 3
    assert found.weights[mask].tolist() == pytest.approx(weights, abs=1e-12)
    assert not found.weights[~mask].any()
    assert found.numbers["mismatch/capped"] == (capped, 8)
    assert found.numbers["mismatch/dropped"] == (dropped, 3)
    assert found.numbers["mismatch/kl"].total.item() == pytest.approx(kl, abs=1e-12)
    free = correct(old, sampler, mask, cap=1.5)
    assert found.numbers["mismatch/weight"].total.item() == pytest.approx(free.weights.sum().item(), abs=1e-12)


def test_the_expectation_under_the_sampler_becomes_that_under_the_policy():
    policy, sampler = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    values = torch.arange(6, dtype=torch.float64)
    weights = correct(policy[:, None], sampler[:, None], torch.ones(6, 1, dtype=torch.bool), cap=math.inf).weights[:, 0]
    assert_close((sampler.exp() * weights * values).sum(), (policy.exp() * values).sum(), rtol=1e-12, atol=1e-12)


def test_weights_carry_no_gradient_and_do_not_overflow():
    old = torch.tensor([[1e4, -1e4]], requires_grad=True)  # float32: exp overflows at 89
    found = correct(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), cap=math.inf)
    assert not found.weights.requires_grad
    assert all(value.total.isfinite() for value in found.numbers.values())
    assert found.weights.flatten().tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-6)


@pytest.mark.parametrize(
    "moved, advantage, kept",
    [
        ([0.5, 0.7], -1.0, False),  # mean 0.6 less likely than when drawn
        ([0.5, 0.7], 1.0, True),
        ([0.5, 0.7], 0.0, True),
        ([0.5, 0.5], -1.0, True),  # not beyond the limit
        ([-0.5, -0.7], -1.0, True),  # likelier, not less likely
        ([2.0, -2.0], -1.0, True),  # of the mean, not of its parts
    ],
)
def test_a_bad_answer_that_has_become_unlikely_is_no_longer_learned_from(moved, advantage, kept):
    sampler = torch.tensor([[-1.0, -2.0, math.nan]], dtype=torch.float64)
    logp = sampler - torch.tensor([[*moved, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    assert current(logp, sampler, torch.tensor([[advantage]]), mask, largest=0.5).tolist() == [[kept]]
    per_token = torch.tensor([[advantage, 1.0, 1.0]])
    assert current(logp, sampler, per_token, mask, largest=0.5).tolist() == [[kept, True, True]]


def test_errors_say_what_was_given():
    broken = torch.tensor([[0.0, 0.0, math.nan]])
    with pytest.raises(ValueError, match="row 0, token 2: trainer and sampler must both give a log-probability"):
        correct(torch.zeros(1, 3), broken, ALL)
    with pytest.raises(ValueError, match="drop must be one of none, product, geometric, got 'mask'"):
        correct(ZERO, ZERO, ALL, drop="mask")
    for borders in ({"cap": 0.5}, {"low": 1.5}, {"high": 0.5}, {"cap": math.nan}):
        with pytest.raises(ValueError, match=r"equal policies have ratio 1: cap .* low .* <= 1 <= high"):
            correct(ZERO, ZERO, ALL, **borders)
    with pytest.raises(ValueError, match=r"sampler \(1, 2\)"):
        correct(ZERO, ZERO[:, :2], ALL)
    with pytest.raises(ValueError, match=r"advantages must be \(B, 1\) or \(B, T\), got \(1,\) with logp \(1, 3\)"):
        current(ZERO, ZERO, torch.zeros(1), ALL, largest=1.0)

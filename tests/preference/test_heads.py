"""Trained heads compared, merged, audited and aligned."""

import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.models.router import Router
from holdfast.preference.features import PairFeatures
from holdfast.preference.heads import align, audit, correlation, merge, reward_scale
from holdfast.preference.mixture import MixtureHeads


def heads_of(weight, kind="static", features=1, masked=None):
    router = Router(kind, features, len(weight), hidden=6)
    generator = torch.Generator().manual_seed(4)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return MixtureHeads(torch.as_tensor(weight), router, masked)


def test_correlation_counts_both_orders_of_every_pair():
    delta = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 1
    expected = torch.corrcoef(torch.cat([delta, -delta]).T)
    torch.testing.assert_close(correlation(delta), expected)


@pytest.mark.parametrize("kind", ["static", "linear", "mlp"])
def test_heads_that_say_the_same_become_one(kind):
    # 0, 2 and 3 agree (2 with 3 only through 0's neighbourhood), 1 is their opposite.
    weight = [[1.0, 0.0], [-1.0, 0.1], [2.0, 0.2], [3.0, -0.1]]
    heads = heads_of(weight, kind, features=3)
    held_out = PairFeatures(torch.randn(200, 2), torch.randn(200, 3))
    merged, groups = merge(heads, held_out)
    assert groups == [[0, 2, 3], [1]]
    share = heads.log_weights(held_out.router).exp().mean(0).detach()
    kept = max(groups[0], key=share.tolist().__getitem__)
    assert torch.equal(merged.weight, heads.weight[[kept, 1]])
    expected = torch.stack([share[[0, 2, 3]].sum(), share[1]])
    found = merged.log_weights(held_out.router).exp().mean(0)
    # Exact where everybody has the same weights; otherwise the average is met roughly: on the right side, that is.
    if kind == "static":
        torch.testing.assert_close(found, expected)
    assert (found - expected).abs().max() < (share[[kept, 1]] / share[[kept, 1]].sum() - expected).abs().max() + 1e-6


def test_a_masked_head_is_not_merged_into_one_that_speaks():
    heads = heads_of([[1.0, 0.0], [1.0, 0.0]], masked=torch.tensor([True, False]))
    merged, groups = merge(heads, PairFeatures(torch.randn(20, 2), torch.zeros(20, 1)))
    assert groups == [[0], [1]]
    assert merged.masked.tolist() == [True, False]
    assert merged.log_weights(torch.zeros(1, 1)).exp().tolist() == [[0.0, 1.0]]


def test_only_a_head_that_surely_prefers_harm_is_masked():
    generator = torch.Generator().manual_seed(0)
    safe = torch.where(torch.rand(60, generator=generator) < 0.9, 1.0, -1.0)
    # 29 of 60: below one half, but not surely.
    unsure = torch.where((torch.arange(60) % 2 == 0) & (torch.arange(60) > 0), 1.0, -1.0)
    found = audit(
        heads_of([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
        PairFeatures(torch.stack([safe, unsure], dim=1), torch.zeros(60, 1)),
        ("good", "bad", "unsure", "silent"),
        clusters=[i // 2 for i in range(60)],
    )
    assert [one.mask for one in found] == [False, True, False, False]
    accuracy = float((safe > 0).float().mean())
    assert [one.accuracy.value for one in found] == pytest.approx([accuracy, 1 - accuracy, 29 / 60, 0.5])
    assert found[0].accuracy.n == 30
    assert found[1].to_dict()["accuracy"]["n"] == 30
    with pytest.raises(UserError, match="at least two prompts, got 1"):
        audit(heads_of([[1.0]]), PairFeatures(torch.ones(3, 1), torch.zeros(3, 1)), ("a",), clusters=["p"] * 3)


def test_two_pairs_are_no_proof_that_a_head_prefers_harm():
    wrong = PairFeatures(torch.full((2, 1), -1.0), torch.zeros(2, 1))
    [found] = audit(heads_of([[1.0]]), wrong, ("a",))
    assert (found.accuracy.value, found.mask) == (0.0, False)
    assert 0.5 < found.accuracy.high < 1


def test_solutions_are_aligned_by_what_their_heads_say():
    delta = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
    order = [2, 0, 3, 1]
    noisy = 3 * delta[:, order] + 0.1 * torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    found = align(delta, noisy)
    assert [order[place] for place in found] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"\(40, 4\), \(40, 3\)"):
        align(delta, delta[:, :3])


def test_rewards_are_measured_on_reference_answers():
    mean, std = reward_scale(heads_of([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    assert mean.tolist() == [2.0, 6.0]
    assert std.tolist() == pytest.approx([math.sqrt(2), 4 * math.sqrt(2)])

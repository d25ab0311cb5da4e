"""Memory: counted where it can be counted, near where it is estimated."""

import math

import pytest
import torch
from torch import nn

from holdfast.engine.budget import MemoryEstimate, Part, available_bytes, estimate, peak_rss_mib


def test_every_purpose_by_hand():
    policy, reference = nn.Linear(10, 5), nn.Linear(10, 5).to(torch.bfloat16)
    found = estimate(
        {"policy": Part(policy, True, True), "reference": (reference, False, False)}, tokens=7, vocabulary=100
    )
    assert found.weights == 55 * 4 + 55 * 2
    assert found.gradients == 55 * 4
    assert found.optimiser == 2 * 55 * 4
    assert found.activations == 7 * 15 * 4
    assert found.logits == 2 * 4 * 7 * 100
    assert found.total == sum(found[:5])


def test_shared_and_frozen_weights_count_once_and_not_at_all():
    base = nn.Linear(10, 10, bias=False).requires_grad_(False)
    parts = {name: Part(nn.Sequential(base, nn.Linear(10, 1, bias=False)), True, True) for name in ("a", "b")}
    found = estimate(parts, tokens=1)
    assert found.weights == (100 + 2 * 10) * 4
    assert found.gradients == 2 * 10 * 4
    assert found.optimiser == 2 * 2 * 10 * 4
    assert found.activations == (20 + 11) * 4, "networks learn in turn"
    assert found.logits == 0


def test_the_head_is_counted_by_its_logits_and_chunks_bound_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 50))
    whole = estimate({"policy": (model, True, True)}, tokens=64, vocabulary=50)
    chunked = estimate({"policy": (model, True, True)}, tokens=64, vocabulary=50, logit_tokens=16)
    assert whole.activations == chunked.activations == 64 * 8 * 4
    assert whole.logits == 4 * chunked.logits == 2 * 4 * 64 * 50


def test_activations_come_near_what_autograd_keeps():
    """A tolerance of a factor two: attention, norms and activation functions are not linear layers."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
    kept: dict[int, int] = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = block(torch.randn(2, 32, 64)).sum()
    measured = sum(kept.values())
    loss.backward()
    found = estimate({"block": (block, True, True)}, tokens=64).activations
    assert measured / 2 < found < measured * 2


def test_a_run_that_does_not_fit_is_told_what_to_change():
    needs = MemoryEstimate(weights=2**30, gradients=0, optimiser=0, activations=0, logits=3 * 2**30)
    message = needs.warning(2 * 2**30)
    assert message == (
        "this run needs about 4.00 GiB and 2.00 GiB are available; the largest share is logits: lower micro_tokens"
    )
    assert needs.warning(4 * 2**30) is None
    assert needs.warning(None) is None


def test_available_and_peak_are_plausible():
    available, peak = available_bytes("cpu"), peak_rss_mib()
    assert available is None or 2**20 < available < 2**50
    assert math.isnan(peak) or 10 < peak < 2**30
    assert available_bytes("meta") is None


@pytest.mark.parametrize("name", MemoryEstimate._fields)
def test_every_purpose_has_advice(name):
    sizes = dict.fromkeys(MemoryEstimate._fields, 0) | {name: 10}
    assert f"largest share is {name}: " in MemoryEstimate(**sizes).warning(1)

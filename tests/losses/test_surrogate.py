import math

import pytest
import torch
from torch.autograd import grad
from torch.testing import assert_close

from holdfast.losses.mask import from_lengths
from holdfast.losses.reduce import over, per_sequence
from holdfast.losses.surrogate import clipped_ratio, clipped_value, ratio_metrics, reinforce


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_clipped_ratio_by_hand():
    advantages = t(-0.64439, -0.5162, -0.256)
    loss = clipped_ratio(t(1.3, 0.7, 1.0).log(), t(0, 0, 0), advantages)
    assert loss.tolist() == pytest.approx([0.837707, 0.41296, 0.256], abs=1e-9)
    assert over(loss).mean.item() == pytest.approx(0.5022223333, abs=1e-9)


def test_clipped_ratio_and_its_metrics_of_four_tokens_by_hand():
    logp, old, advantages = t(1.3, 0.7, 1.3, 0.7).log(), t(0, 0, 0, 0), t(1, 1, -1, -1)
    loss = clipped_ratio(logp, old, advantages)
    assert loss.tolist() == pytest.approx([-1.2, -0.7, 1.3, 0.8], abs=1e-12)
    assert over(loss).mean.item() == pytest.approx(0.05, abs=1e-12)
    metrics = ratio_metrics(logp, old, advantages, torch.ones(4, dtype=torch.bool))
    assert metrics.keys() == {"clip_fraction", "approx_kl"}
    assert metrics["clip_fraction"].mean.item() == 0.5
    assert metrics["approx_kl"].mean.item() == pytest.approx(0.0471553, abs=1e-7)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (4.0, -1.0, 3.0, 0.0),  # beyond the dual clip: 3 instead of 4
        (2.0, -1.0, 2.0, 2.0),  # between the clips: pulled back
        (0.5, -1.0, 0.8, 0.0),  # below, bad: cut by the ordinary clip
        (4.0, 1.0, -1.2, 0.0),  # good tokens know no dual clip
    ],
)
def test_the_dual_clip_bounds_the_loss_of_bad_tokens(ratio, advantage, loss, slope):
    logp = t(ratio).log().requires_grad_()
    value = clipped_ratio(logp, t(0), t(advantage), dual_clip=3.0)
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert grad(value.sum(), logp)[0].item() == pytest.approx(slope, abs=1e-12)


def test_the_dual_clip_is_the_two_sided_clip_under_another_name():
    """-min(min(rho, delta) A, clip(rho) A), for any delta above the ordinary clip."""
    generator = torch.Generator().manual_seed(19)
    logp, advantages = 2 * torch.randn(2, 500, dtype=torch.float64, generator=generator)
    ratio, delta = logp.exp(), 4.0
    assert ((ratio > delta) & (advantages < 0)).any()
    expected = -torch.minimum(ratio.clamp(max=delta) * advantages, ratio.clamp(0.8, 1.28) * advantages)
    found = clipped_ratio(logp, torch.zeros_like(logp), advantages, 0.2, 0.28, dual_clip=delta)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, float("nan")])
def test_a_dual_clip_below_one_is_refused(dual_clip):
    with pytest.raises(ValueError, match=f"dual_clip .* must be above 1, got {dual_clip}"):
        clipped_ratio(t(0), t(0), t(1), dual_clip=dual_clip)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [19.5, 20.5, 1e4, -19.5, -20.5, -1e4])
def test_a_log_ratio_beyond_the_clamp_stays_finite_and_passes_no_gradient(log_ratio, advantage):
    logp = torch.tensor([log_ratio]).requires_grad_()  # float32: exp overflows at 89
    loss = clipped_ratio(logp, torch.zeros(1), torch.tensor([advantage]))
    ratio = math.exp(min(max(log_ratio, -20.0), 20.0))
    expected = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    (slope,) = grad(loss.sum(), logp)
    assert math.isfinite(slope.item())
    assert slope.item() == 0 or abs(log_ratio) < 20
    kl = ratio_metrics(logp, torch.zeros(1), torch.tensor([advantage]), torch.tensor([True]))["approx_kl"]
    assert kl.mean.item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-6)


def test_the_clamp_may_be_tighter():
    logp = t(3.0, -3.0).requires_grad_()
    loss = clipped_ratio(logp, t(0, 0), t(-1, 1), log_ratio_clamp=2.0)
    assert loss.tolist() == pytest.approx([math.exp(2), -math.exp(-2)], abs=1e-12)
    assert grad(loss.sum(), logp)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_tokens_counted_as_cut_are_those_without_gradient(dual_clip):
    generator = torch.Generator().manual_seed(18)
    logp, old, advantages = 2 * torch.randn(3, 20, 30, dtype=torch.float64, generator=generator)
    mask = torch.rand(20, 30, generator=generator) < 0.7
    options = {"clip": 0.3, "clip_high": 0.5, "dual_clip": dual_clip, "log_ratio_clamp": 4.0}
    logp.requires_grad_()
    (slope,) = grad(clipped_ratio(logp, old, advantages, **options).sum(), logp)
    stopped = (slope == 0) & mask
    metrics = ratio_metrics(logp, old, advantages, mask, **options)
    if dual_clip is None:
        assert "dual_clip_fraction" not in metrics
        assert metrics["clip_fraction"].total == stopped.sum()
        return
    # A bad token goes beyond e^4, the clamp, only through the dual clip.
    dual = stopped & (advantages < 0) & (logp > old)
    assert dual.any()
    assert metrics["dual_clip_fraction"] == (dual.sum(), mask.sum())
    assert metrics["clip_fraction"] == (stopped.sum() - dual.sum(), mask.sum())


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.1, 2.0, -2.2, -2.2),  # inside: d loss / d logp = -ratio A
        (1.5, 2.0, -2.4, 0.0),  # above, good: cut
        (1.5, -2.0, 3.0, 3.0),  # above, bad: pulled back
        (0.5, 2.0, -1.0, -1.0),  # below, good: pulled back
        (0.5, -2.0, 1.6, 0.0),  # below, bad: cut
    ],
)
def test_every_region_of_the_clip(ratio, advantage, loss, slope):
    logp = t(ratio).log().requires_grad_()
    value = clipped_ratio(logp, t(0), t(advantage))
    assert value.item() == pytest.approx(loss, abs=1e-12)
    assert grad(value.sum(), logp)[0].item() == pytest.approx(slope, abs=1e-12)
    fraction = ratio_metrics(logp, t(0), t(advantage), torch.tensor([True]))["clip_fraction"]
    assert fraction.mean.item() == float(slope == 0)


def test_upper_side_may_be_wider():
    logp, old = t(1.25, 0.75).log(), t(0, 0)
    assert clipped_ratio(logp, old, t(1, 1), clip_high=0.28).tolist() == pytest.approx([-1.25, -0.75])
    assert clipped_ratio(logp, old, t(-1, -1), clip_high=0.28).tolist() == pytest.approx([1.25, 0.8])
    metrics = ratio_metrics(logp, old, t(1, -1), torch.tensor([True, True]), clip_high=0.28)
    assert metrics["clip_fraction"].total.item() == 1  # only the lower one


def test_old_policy_and_advantages_are_constants():
    logp = t(-1.0, -2.0).requires_grad_()
    advantages = t(0.5, -3.0).requires_grad_()
    loss = clipped_ratio(logp, logp, advantages).sum()
    assert loss.item() == pytest.approx(2.5)
    slope, none = grad(loss, (logp, advantages), allow_unused=True)
    assert slope.tolist() == [-0.5, 3.0]  # the on-policy gradient, -A
    assert none is None


def test_one_advantage_per_answer_serves_all_its_tokens():
    logp, old = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    advantages = t(1.5, -0.5)[:, None]
    assert torch.equal(clipped_ratio(logp, old, advantages), clipped_ratio(logp, old, advantages.expand(2, 3)))


@pytest.mark.parametrize("reduction", [over, per_sequence])
def test_padding_has_exactly_no_gradient(reduction):
    mask = from_lengths(torch.tensor([3, 1]), size=4)
    generator = torch.Generator().manual_seed(11)
    logp, old, advantages = torch.randn(3, 2, 4, dtype=torch.float64, generator=generator)
    logp.requires_grad_()
    reduction(clipped_ratio(logp, old, advantages, clip=5.0), mask).mean.backward()
    assert not logp.grad[~mask].any()
    assert logp.grad[mask].any()


def test_metrics_of_an_unchanged_policy_are_zero():
    logp = torch.randn(2, 3, generator=torch.Generator().manual_seed(12))
    metrics = ratio_metrics(logp, logp, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))
    assert {name: value.mean.item() for name, value in metrics.items()} == {
        "clip_fraction": 0,
        "approx_kl": 0,
    }


def test_approx_kl_is_the_divergence_of_the_new_from_the_old_policy():
    """Every token of a small vocabulary, weighted by the old policy that draws it."""
    generator = torch.Generator().manual_seed(13)
    old, new = torch.randn(2, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    mask = torch.tensor([True])
    estimates = [ratio_metrics(new[[i]], old[[i]], t(1), mask)["approx_kl"].total for i in range(5)]
    divergence = (old.exp() * (old - new)).sum()
    assert_close((old.exp() * torch.stack(estimates)).sum(), divergence, rtol=0, atol=1e-12)


def test_metrics_count_only_the_mask():
    ratio = t(2.0, 2.0, 1.0)
    metrics = ratio_metrics(ratio.log(), t(0, 0, 0), t(1, 1, 1), torch.tensor([True, False, True]))
    assert metrics["clip_fraction"].mean.item() == 0.5
    assert metrics["approx_kl"].mean.item() == pytest.approx((1 - torch.log(t(2.0)).item()) / 2, abs=1e-12)


@pytest.mark.parametrize(
    "value, loss, slope",
    [
        (7.0, 24.5, 7.0),  # beyond the clip, but its own error is the larger
        (-7.0, 24.5, -7.0),
        (-3.0, 4.5, -3.0),  # inside
    ],
)
def test_clipped_value_by_hand(value, loss, slope):
    values = t(value).requires_grad_()
    result = clipped_value(values, t(1.0), t(0.0), clip=5.0)
    assert result.item() == pytest.approx(loss, abs=1e-12)
    assert grad(result.sum(), values)[0].item() == pytest.approx(slope, abs=1e-12)


def test_clipped_values_of_three_tokens_by_hand():
    values = t(0.9, 0.6, 0.1).requires_grad_()
    loss = clipped_value(values, t(0.5, 0.5, 0.5), t(1, 1, 1), clip=0.2)
    assert (2 * loss).tolist() == pytest.approx([0.09, 0.16, 0.81], abs=1e-12)
    assert over(loss).mean.item() == pytest.approx(0.1766667, abs=1e-7)
    assert grad(loss.sum(), values)[0].tolist() == pytest.approx([0.0, -0.4, -0.9], abs=1e-12)


def test_without_a_clip_the_value_loss_is_half_the_squared_error():
    values = t(0.9, 0.6, 0.1).requires_grad_()
    loss = clipped_value(values, t(0.5, 0.5, 0.5), t(1, 1, 1), clip=None)
    assert over(loss).mean.item() == pytest.approx(0.1633333, abs=1e-7)
    assert grad(loss.sum(), values)[0].tolist() == pytest.approx([-0.1, -0.4, -0.9], abs=1e-12)


def test_a_critic_beyond_the_clip_is_held_to_the_clipped_error():
    values = t(9.0).requires_grad_()  # right at the return, but further from the old value than allowed
    result = clipped_value(values, t(1.0), t(9.0), clip=5.0)
    assert result.item() == 4.5  # 0.5 (6 - 9)^2
    assert grad(result.sum(), values)[0].item() == 0.0


def test_reinforce_is_the_gradient_of_the_expected_return():
    """Summed over all answers, weighted by their probability: d/dz sum p A = -d/dz of the loss."""
    logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(14)).requires_grad_()
    returns = t(1.0, -2.0, 0.5, 3.0)
    (exact,) = grad((logits.softmax(-1) * returns).sum(), logits)
    loss = reinforce(logits.log_softmax(-1), returns * logits.softmax(-1))
    assert loss.count.item() == 4
    assert_close(grad(loss.total, logits)[0], -exact, rtol=0, atol=1e-12)


def test_reinforce_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"sequence_logp \(2,\), advantages \(2, 1\)"):
        reinforce(torch.zeros(2), torch.zeros(2, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_lifted_to_float32(dtype):
    half = torch.zeros(2, dtype=dtype)
    assert clipped_ratio(half, half, torch.ones(2)).dtype == torch.float32
    assert clipped_value(half, half, half).dtype == torch.float32
    assert reinforce(half, half).total.dtype == torch.float32

import math

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

from holdfast.losses.mask import from_lengths
from holdfast.losses.ratio import METRICS, Shape, weighted, weighted_metrics
from holdfast.losses.reduce import per_sequence

GSPO = Shape(level="sequence", clip=3e-4, clip_high=4e-4)
SHAPES = {
    "clip": Shape(clip=0.2, clip_high=0.28),
    "dual": Shape(clip=0.2, clip_high=0.28, dual_clip=3.0),
    "gspo": Shape(level="sequence", clip=0.1, clip_high=0.15),
    "cispo": Shape("cispo", ratio_cap=1.5),
    "cispo of answers": Shape("cispo", "sequence", ratio_cap=1.1),
    "sapo": Shape("sapo"),
    "sapo of answers": Shape("sapo", "sequence"),
    "gmpo": Shape("gmpo"),
    "vespo": Shape("vespo"),
    "dppo_tv": Shape("dppo_tv", largest_move=0.1),
}


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def one(ratio, advantage, shape, logp=-0.5):
    """Loss and slope of an answer of one token with this ratio."""
    now = t(logp)[None].requires_grad_()
    loss = weighted(now, now.detach() - math.log(ratio), t(advantage)[None], torch.ones(1, 1, dtype=torch.bool), shape)
    return loss.item(), grad(loss.sum(), now)[0].item()


def drawn(seed=0, rows=6, width=5):
    """Answers of different lengths whose policy has moved, with junk behind the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = from_lengths(torch.randint(1, width + 1, (rows,), generator=generator), width)
    old = -2 * torch.rand(rows, width, dtype=torch.float64, generator=generator)
    logp = (old + 0.5 * torch.randn(rows, width, dtype=torch.float64, generator=generator)).clamp(max=-0.01)
    advantages = torch.randn(rows, 1, dtype=torch.float64, generator=generator)
    return logp.masked_fill(~mask, -math.inf), old.masked_fill(~mask, math.nan), advantages, mask


def by_hand(name, logp, old, a):
    """Losses and slopes of one answer's tokens, from the formulas, one number at a time."""
    shape, n = SHAPES[name], len(logp)
    apart = [x - y for x, y in zip(logp, old)]
    tokens = [sum(apart) / n] * n if shape.level == "sequence" else apart
    losses, slopes = [], []
    for x, y, d in zip(logp, old, tokens):
        rho = math.exp(d)
        if shape.kind == "clip":
            inside = min(max(rho, 1 - shape.clip), 1 + shape.clip_high)
            loss, slope = -min(rho * a, inside * a), -rho * a if rho * a <= inside * a else 0.0
            if a < 0 and shape.dual_clip and loss > -shape.dual_clip * a:
                loss, slope = -shape.dual_clip * a, 0.0
        elif shape.kind == "cispo":
            weight = min(rho, shape.ratio_cap)
            loss, slope = -weight * a * x, -weight * a
        elif shape.kind == "sapo":
            tau = 1.0 if a > 0 else 1.05
            gate = 1 / (1 + math.exp(-tau * (rho - 1)))
            loss, slope = -4 / tau * gate * a, -4 * gate * (1 - gate) * rho * a
        elif shape.kind == "gmpo":
            bounded = [min(each, 0.4) if a > 0 else max(each, -0.4) for each in apart]
            mean = math.exp(sum(bounded) / n)
            loss, slope = -a * mean, -a * mean if abs(d) < 0.4 or d * a < 0 else 0.0
        elif shape.kind == "vespo":
            (k, c), w = ((2, 3) if a > 0 else (3, 2)), math.exp(sum(apart))
            phi = math.exp(c) * w**k * math.exp(-c * w)
            loss, slope = -phi * a * x, -phi * a
        else:
            moved = math.exp(x) - math.exp(y)
            cut = moved > 0.1 if a > 0 else moved < -0.1
            loss = (0.0 if cut else -rho * a) + 1e-3 * d * d
            slope = (0.0 if cut else -rho * a) + 2e-3 * d
        losses.append(loss)
        slopes.append(slope)
    return losses, slopes


@pytest.mark.parametrize("name", SHAPES)
def test_losses_and_slopes_equal_the_formulas_token_by_token(name):
    for seed in range(4):
        logp, old, advantages, mask = drawn(seed)
        logp.requires_grad_()
        losses = weighted(logp, old, advantages, mask, SHAPES[name])
        (slopes,) = grad(losses.sum(), logp)
        for row in range(len(logp)):
            n = int(mask[row].sum())
            found = by_hand(name, logp[row, :n].tolist(), old[row, :n].tolist(), advantages[row].item())
            assert losses[row, :n].tolist() == pytest.approx(found[0], abs=1e-12)
            assert slopes[row, :n].tolist() == pytest.approx(found[1], abs=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_what_stands_behind_the_mask_reaches_neither_loss_nor_gradient(name):
    logp, old, advantages, mask = drawn(7)
    results = []
    for junk in (0.0, math.nan, math.inf, -math.inf):
        now = logp.masked_fill(~mask, junk).requires_grad_()
        per_token = advantages.expand_as(mask).masked_fill(~mask, junk)
        losses = weighted(now, old.masked_fill(~mask, -junk), per_token, mask, SHAPES[name])
        (slopes,) = grad(losses.sum(), now)
        assert not losses[~mask].any()
        assert not slopes[~mask].any()
        results.append((losses, slopes))
    assert all(map(torch.equal, results[0], other) for other in results[1:])
    assert results[0][1][mask].any()


@pytest.mark.parametrize("name", SHAPES)
def test_where_nothing_has_moved_the_gradient_is_that_of_reinforce(name):
    logp, _, advantages, mask = drawn(1)
    logp = logp.masked_fill(~mask, 0.0).requires_grad_()
    (slopes,) = grad(weighted(logp, logp.detach(), advantages, mask, SHAPES[name]).sum(), logp)
    expected = grad((-advantages * logp).where(mask, 0.0).sum(), logp)[0]
    assert_close(slopes, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].kind not in ("cispo", "vespo")])
def test_the_gradient_is_the_finite_difference_of_each_answers_mean(name):
    """Also where the ratio is the answer's; cispo and vespo hold their weight still and are no such derivative."""
    logp, old, advantages, mask = drawn(2)

    def means(now):
        return per_sequence(weighted(now, old, advantages, mask, SHAPES[name]), mask).total

    assert gradcheck(means, logp.masked_fill(~mask, 0.0).requires_grad_())


@pytest.mark.parametrize(
    "ratio, advantage, dual_clip, loss",
    [
        (1.5, 1, None, -1.28),
        (1.5, -1, None, 1.5),
        (0.5, 1, None, -0.5),
        (0.5, -1, None, 0.8),
        (6, -1, None, 6.0),
        (6, -1, 4.0, 4.0),  # the delta of INTELLECT-2
        (6, -1, 3.0, 3.0),
        (6, 1, 3.0, -1.28),
    ],
)
def test_clip_by_hand(ratio, advantage, dual_clip, loss):
    shape = Shape(clip=0.2, clip_high=0.28, dual_clip=dual_clip)
    assert one(ratio, advantage, shape)[0] == pytest.approx(loss, abs=1e-12)


def test_cispo_caps_the_ratio_itself_and_cuts_no_gradient():
    shape = Shape("cispo")
    assert one(6, 1, shape) == pytest.approx((2.5, -5.0), abs=1e-12)  # -5 logp with logp -0.5
    assert one(0.1, -1, shape)[1] == pytest.approx(0.1, abs=1e-12)
    assert one(1, 1, Shape("cispo", clip=0.01, clip_high=0.02, ratio_cap=1.0))[1] == -1.0


def test_sapo_by_hand():
    good, bad = Shape("sapo"), Shape("sapo", temperatures=(1.05, 1.0))
    assert one(1, 1, good) == pytest.approx((-2, -1), abs=1e-12)
    assert one(1.2, 1, good) == pytest.approx((-2.199336, -1.2 * 0.990066), abs=1e-6)
    assert one(1.2, 1, bad)[0] == pytest.approx(-2.104030, abs=1e-6)
    assert one(1.2, -1, bad)[0] == pytest.approx(2.199336, abs=1e-6)
    assert one(1.2, -1, good)[0] == pytest.approx(2.104030, abs=1e-6)


def test_the_ratio_of_an_answer_is_the_geometric_mean_of_its_tokens():
    apart, mask = t(0.1, -0.2, 0.4)[None], torch.ones(1, 3, dtype=torch.bool)
    loss = weighted(apart, torch.zeros_like(apart), t(1)[None], mask, Shape(level="sequence"))
    assert (-loss).flatten().tolist() == pytest.approx([1.105171] * 3, abs=1e-6)
    loss = weighted(apart, torch.zeros_like(apart), t(1)[None], mask, Shape(clip=1.0))
    assert (-loss).flatten().tolist() == pytest.approx([1.105171, 0.818731, 1.491825], abs=1e-6)


def test_an_answer_beyond_the_clip_loses_all_its_tokens_and_one_inside_none():
    logp, mask = t(0.1, -0.2, 0.4, 0.1, -0.5, 0.4).view(2, 3).requires_grad_(), torch.ones(2, 3, dtype=torch.bool)
    loss = weighted(logp, torch.zeros(2, 3), t(1, 1)[:, None], mask, GSPO)
    assert loss[0].tolist() == pytest.approx([-1.0004] * 3, abs=1e-12)
    assert grad(loss.sum(), logp)[0].tolist() == [[0.0] * 3, [-1.0] * 3]  # the second has mean 0


def test_every_token_of_an_answer_brings_one_share_of_its_gradient():
    logp, old, advantages, mask = drawn(3)
    logp = logp.masked_fill(~mask, 0.0).requires_grad_()
    loss = weighted(logp, old, advantages, mask, Shape(level="sequence", clip=9.0))
    (slopes,) = grad(per_sequence(loss, mask).total, logp)
    rows = []
    for now, before, a, kept in zip(logp, old, advantages, mask):
        rows.append(-a * ((now[kept] - before[kept]).sum() / kept.sum()).exp())
    assert_close(slopes, grad(torch.cat(rows).sum(), logp)[0], rtol=1e-12, atol=1e-12)


def test_a_token_of_an_answer_learns_from_its_own_advantage_alone():
    logp, mask = t(0.1, -0.2)[None].requires_grad_(), torch.ones(1, 2, dtype=torch.bool)
    loss = weighted(logp, torch.zeros(1, 2), t(2, 0)[None], mask, Shape(level="sequence"))
    assert grad(loss.sum(), logp)[0].flatten().tolist() == pytest.approx([-2 * math.exp(-0.05), 0], abs=1e-12)


def test_gmpo_bounds_each_token_on_the_side_it_is_pushed_to():
    apart, mask = t(0.1, 0.9, -0.6)[None].requires_grad_(), torch.ones(1, 3, dtype=torch.bool)
    good = weighted(apart, torch.zeros(1, 3), t(2)[None], mask, Shape("gmpo"))
    assert good.flatten().tolist() == pytest.approx([-2 * math.exp(-0.1 / 3)] * 3, abs=1e-12)
    assert (grad(good.sum(), apart)[0] != 0).tolist() == [[True, False, True]]
    bad = weighted(apart, torch.zeros(1, 3), t(-2)[None], mask, Shape("gmpo"))
    assert bad.flatten().tolist() == pytest.approx([2 * math.exp(0.6 / 3)] * 3, abs=1e-12)
    assert (grad(bad.sum(), apart)[0] != 0).tolist() == [[True, True, False]]


def test_vespo_by_hand():
    assert one(1.3, 1, Shape("vespo"))[1] == pytest.approx(-0.687103, abs=1e-6)
    assert one(1.3, -1, Shape("vespo"))[1] == pytest.approx(1.205739, abs=1e-6)
    assert one(1, 1, Shape("vespo"))[1] == pytest.approx(-1, abs=1e-12)


def test_vespo_weighs_the_product_of_all_ratios():
    logp, mask = t(0.1, 0.1, math.log(1.3) - 0.2)[None].requires_grad_(), torch.ones(1, 3, dtype=torch.bool)
    loss = weighted(logp, torch.zeros(1, 3), t(1)[None], mask, Shape("vespo"))
    assert grad(loss.sum(), logp)[0].flatten().tolist() == pytest.approx([-0.687103] * 3, abs=1e-6)


@pytest.mark.parametrize(
    "before, after, advantage, cut",
    [
        (0.5, 0.75, 1, True),  # moved by .25, the way the advantage points
        (0.5, 0.75, -1, False),
        (0.75, 0.5, -1, True),
        (0.75, 0.5, 1, False),
        (0.01, 0.05, 1, False),  # five times as likely, and still rare
        (0.5, 0.65, 1, False),
    ],
)
def test_dppo_cuts_by_the_probability_that_moved(before, after, advantage, cut):
    loss, slope = one(after / before, advantage, Shape("dppo_tv", pull=0.0), logp=math.log(after))
    assert loss == pytest.approx(0 if cut else -advantage * after / before, abs=1e-12)
    assert slope == pytest.approx(loss, abs=1e-12)


def test_dppo_pulls_cut_tokens_back_too():
    loss, slope = one(1.5, 1, Shape("dppo_tv"), logp=math.log(0.75))
    apart = math.log(1.5)
    assert (loss, slope) == pytest.approx((1e-3 * apart**2, 2e-3 * apart), abs=1e-15)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [1e4, -1e4, -math.inf])
def test_a_token_that_ran_away_stays_finite(name, advantage, log_ratio):
    """In float32, where exp overflows at 89; a weight on logp itself cannot bear one that is infinite."""
    if math.isinf(log_ratio) and SHAPES[name].kind in ("cispo", "vespo"):
        return
    logp, mask = torch.tensor([[log_ratio, -1.0]], requires_grad=True), torch.tensor([[True, True]])
    loss = weighted(logp, torch.tensor([[0.0, -1.0]]), torch.tensor([[advantage]]), mask, SHAPES[name])
    (slope,) = grad(loss.sum(), logp)
    assert loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", SHAPES)
def test_only_the_policy_now_carries_gradient(name):
    logp, old, advantages, mask = (each.requires_grad_() if each.is_floating_point() else each for each in drawn(4))
    loss = weighted(logp, old, advantages, mask, SHAPES[name])
    assert [slope is None for slope in grad(loss.sum(), (logp, old, advantages), allow_unused=True)] == [0, 1, 1]


def test_half_precision_is_lifted_to_float32():
    half, mask = torch.zeros(1, 2, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool)
    assert all(weighted(half, half, half, mask, shape).dtype == torch.float32 for shape in SHAPES.values())


@pytest.mark.parametrize("name", SHAPES)
def test_metrics_count_what_lost_its_gradient(name):
    logp, old, advantages, mask = drawn(5, rows=30)
    metrics = weighted_metrics(logp, old, advantages, mask, SHAPES[name])
    assert tuple(metrics) == METRICS
    assert all(each.count == mask.sum() for each in metrics.values())
    cut = {True: 0, False: 0}
    ratios, kl = [], []
    for row, a in enumerate(advantages.flatten().tolist()):
        n = int(mask[row].sum())
        now, before = logp[row, :n].tolist(), old[row, :n].tolist()
        slopes = by_hand(name, now, before, a)[1]
        pull = [2e-3 * (x - y) if name == "dppo_tv" else 0 for x, y in zip(now, before)]
        cut[a > 0] += sum(abs(slope - each) < 1e-15 for slope, each in zip(slopes, pull))
        ratios += [math.exp(x - y) for x, y in zip(now, before)]
        kl += [math.exp(x - y) - 1 - (x - y) for x, y in zip(now, before)]
    assert metrics["clip_fraction/good"].total == cut[True]
    assert metrics["clip_fraction/bad"].total == cut[False]
    assert metrics["clip_fraction"].total == cut[True] + cut[False]
    assert metrics["ratio"].total.item() == pytest.approx(sum(ratios), abs=1e-9)
    assert metrics["approx_kl"].total.item() == pytest.approx(sum(kl), abs=1e-9)
    if SHAPES[name].kind in ("clip", "gmpo", "dppo_tv"):
        assert cut[True]
        assert cut[False]


@pytest.mark.parametrize("name", SHAPES)
def test_metrics_where_nothing_has_moved(name):
    logp, _, advantages, mask = drawn(6)
    advantages[0] = 0.0  # no advantage: no gradient, and nothing was cut
    metrics = weighted_metrics(logp, logp, advantages, mask, SHAPES[name])
    assert {key: value.mean.item() for key, value in metrics.items()} == {**dict.fromkeys(METRICS, 0.0), "ratio": 1.0}
    assert not any(value.total.requires_grad for value in metrics.values())


def test_errors_say_what_was_given():
    with pytest.raises(ValueError, match=r"no loss 'ppo' at level 'token'; there are clip, cispo, .* or sequence"):
        Shape("ppo")
    with pytest.raises(ValueError, match="no loss 'clip' at level 'word'"):
        Shape(level="word")
    with pytest.raises(ValueError, match="vespo has a level of its own; leave level at 'token', got 'sequence'"):
        Shape("vespo", "sequence")
    with pytest.raises(ValueError, match=r"ratio_cap is an absolute ratio of at least 1, got 0.2; 5 is usual"):
        Shape("cispo", ratio_cap=0.2)
    flat, mask = torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"advantages \(B, 1\) or \(B, T\), got logp \(2, 2\), advantages \(2,\)"):
        weighted(flat, flat, torch.zeros(2), mask, Shape())
    with pytest.raises(ValueError, match=r"logp must be \(B, T\) .*, got logp \(2,\), advantages \(2,\)"):
        weighted(flat[0], flat[0], flat[0], mask[0], Shape())
    with pytest.raises(ValueError, match=r"logp \(2, 2\), old \(2, 1\)"):
        weighted(flat, flat[:, :1], flat, mask, Shape())

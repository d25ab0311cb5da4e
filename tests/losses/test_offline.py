from math import exp, inf, log, nan

import pytest
import torch
from torch.autograd import grad, gradcheck

from holdfast.losses.offline import (
    NEEDS,
    Plan,
    advantages,
    dpo,
    effective_size,
    pro,
    probabilities,
    token_weights,
    weight_metrics,
    weighted_nll,
)


def t(*rows):
    return torch.tensor(rows, dtype=torch.float64)


LOGPROBS = t([-0.5, -1.0, -0.2], [-0.3, -2.0, -9.0])
REF = t([-0.7, -0.9, -0.6], [-1.5, -1.8, -9.0])
MASK = torch.tensor([[True, True, True], [True, True, False]])
REWARD, VALUE = t(0.8, 0.9), t(0.5, 0.65)
GIVEN = {"reward": REWARD, "advantage": advantages(REWARD, VALUE), "ref": REF}

# Published to six digits, here and wherever 5e-7 stands.
TABLE = [
    (Plan("nll"), 2.0, [[-0.5] * 3, [-0.5, -0.5, 0]]),
    (Plan("wbc"), 1.715, [[-0.4] * 3, [-0.45, -0.45, 0]]),
    (Plan("r_gold"), 0.555769, [[-0.242612, -0.147152, -0.327492], [-0.333368, -0.060901, 0]]),
    (Plan("r_lol"), 3.087630, [[-0.659489] * 3, [-0.855, -0.855, 0]]),
    (Plan("a_lol"), 0.966674, [[-0.247308] * 3, [-0.2375, -0.2375, 0]]),
    (Plan("a_lol", clip=None), 1.201930, [[-0.247308] * 3, [-0.339785, -0.339785, 0]]),
    (Plan("a_lol_ref_free"), 0.5425, [[-0.15] * 3, [-0.125, -0.125, 0]]),
    (Plan("a_lol_seq"), 0.548018, [[-0.183210, -0.135726, -0.223774], [-0.2375, -0.102341, 0]]),
    (Plan("a_lol_kl", beta=0.1), 0.6175, [[-0.1] * 3, [-0.075, -0.075, 0]]),
]


def slope(loss, wrt):
    return grad(loss, wrt)[0]


@pytest.mark.parametrize("plan, loss, slopes", TABLE, ids=[f"{plan.method}-{plan.clip}" for plan, *_ in TABLE])
def test_loss_and_gradient_by_hand(plan, loss, slopes):
    logprobs = LOGPROBS.clone().requires_grad_()
    found = weighted_nll(plan, logprobs, MASK, **GIVEN)
    assert found.mean.item() == pytest.approx(loss, abs=5e-7)
    assert found.count.item() == 2
    slopes_found = slope(found.mean, logprobs)
    torch.testing.assert_close(slopes_found, t(*slopes), atol=5e-7, rtol=0)
    assert slopes_found[1, 2].item() == 0.0


def test_the_table_names_every_method():
    assert {plan.method for plan, *_ in TABLE} == set(NEEDS)


@pytest.mark.parametrize("method", NEEDS)
def test_a_method_reads_what_it_needs_and_nothing_else(method):
    plan = Plan(method, beta=0.1)
    needed = {name: GIVEN[name] for name in NEEDS[method]}
    strange = {name: torch.full((7,), nan) for name in GIVEN.keys() - NEEDS[method]}
    assert torch.equal(
        weighted_nll(plan, LOGPROBS, MASK, **needed, **strange).total, weighted_nll(plan, LOGPROBS, MASK, **GIVEN).total
    )
    for name in needed:
        with pytest.raises(ValueError, match=f"{method} reads {name}, which was not given"):
            token_weights(plan, LOGPROBS, MASK, **(needed | {name: None}))


def test_the_gradient_without_a_clip_is_that_of_the_weighted_ratio():
    logprobs = LOGPROBS.clone().requires_grad_()
    ratio = ((logprobs - REF) * MASK).sum(-1).exp()
    surrogate = -(GIVEN["advantage"] * ratio).mean()
    assert surrogate.item() == pytest.approx(-0.587093, abs=5e-7)
    ours = weighted_nll(Plan("a_lol", clip=None), logprobs, MASK, **GIVEN).mean
    torch.testing.assert_close(slope(ours, logprobs), slope(surrogate, logprobs), atol=1e-12, rtol=0)


def test_the_kl_variant_is_an_advantage_shift():
    logprobs = LOGPROBS.clone().requires_grad_()
    shifted = weighted_nll(Plan("a_lol_ref_free"), logprobs, MASK, advantage=GIVEN["advantage"] - 0.1).mean
    ours = weighted_nll(Plan("a_lol_kl", beta=0.1), logprobs, MASK, **GIVEN).mean
    assert shifted.item() == pytest.approx(0.3425, abs=5e-7)
    torch.testing.assert_close(slope(ours, logprobs), slope(shifted, logprobs), atol=1e-12, rtol=0)
    # What is worth less than beta is pushed down.
    assert bool((token_weights(Plan("a_lol_kl", beta=0.27), LOGPROBS, MASK, **GIVEN)[1, :2] < 0).all())


def test_weights_of_both_levels_by_hand():
    one = {"advantage": t(1.0, 1.0), "ref": REF}
    sequence = token_weights(Plan("a_lol"), LOGPROBS, MASK, **one)
    assert sequence[:, 0].tolist() == pytest.approx([exp(0.5), 1.9], abs=1e-9)
    geometric = token_weights(Plan("a_lol", level="geometric"), LOGPROBS, MASK, **one)
    assert geometric[:, 0].tolist() == pytest.approx([1.181360, 1.648721], abs=5e-7)
    assert torch.equal(geometric, geometric[:, :1].expand(2, 3) * MASK)
    tokens = token_weights(Plan("a_lol_seq"), LOGPROBS, MASK, **one)
    by_hand = t([1.221403, 0.904837, 1.491825], [1.9, 0.818731, 0])
    torch.testing.assert_close(tokens, by_hand, atol=5e-7, rtol=0)
    assert torch.equal(token_weights(Plan("a_lol_seq", level="geometric"), LOGPROBS, MASK, **one), tokens)


def test_the_clip_binds_below_as_well():
    far = token_weights(Plan("a_lol"), LOGPROBS, MASK, advantage=t(1.0, 1.0), ref=REF + 3)
    assert far[:, 0].tolist() == pytest.approx([0.1, 0.1], abs=1e-12)
    narrow = token_weights(Plan("r_lol", clip=0.2), LOGPROBS, MASK, reward=t(1.0, 2.0), ref=REF)
    assert narrow[:, 0].tolist() == pytest.approx([1.2, 2.4], abs=1e-12)


def test_the_floor_holds_improbable_tokens():
    # exp(-2) = 0.135 is below a floor of 0.2, exp(-0.3) above.
    weights = token_weights(Plan("r_gold", floor=0.2), LOGPROBS, MASK, reward=t(1.0, 2.0))
    assert weights[1].tolist() == pytest.approx([2 * exp(-0.3), 2 * 0.2, 0.0], abs=1e-12)


def test_a_wide_clip_is_none_and_zero_is_refused():
    wide, none = (weighted_nll(Plan("a_lol", clip=clip), LOGPROBS, MASK, **GIVEN).total for clip in (inf, None))
    assert torch.equal(wide, none)
    for clip in (0, 0.0, -0.5, nan):
        with pytest.raises(ValueError, match=r"clip must be above 0, got .*; give None to leave the ratio as it is"):
            Plan("a_lol", clip=clip)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no method 'lol' at level 'sequence'; there are nll, wbc"):
        Plan("lol")
    with pytest.raises(ValueError, match=r"at level 'token'; there are .* at level sequence or geometric"):
        Plan("a_lol", level="token")


@pytest.mark.parametrize("method", NEEDS)
def test_weights_carry_no_gradient_and_are_taken_in_float32(method):
    half = {name: each.to(torch.bfloat16).requires_grad_() for name, each in GIVEN.items()}
    logprobs = LOGPROBS.to(torch.bfloat16).requires_grad_()
    weights = token_weights(Plan(method), logprobs, MASK, **half)
    assert (weights.dtype, weights.shape, weights.requires_grad) == (torch.float32, (2, 3), False)
    loss = weighted_nll(Plan(method, beta=0.1), logprobs, MASK, **half).mean
    assert loss.dtype == torch.float32
    assert set(grad(loss, [logprobs, *half.values()], allow_unused=True)[1:]) == {None}


@pytest.mark.parametrize("method", ["a_lol", "a_lol_seq"])
def test_ratios_far_away_stay_finite(method):
    for far, ratio in ((-900.0, exp(20)), (900.0, exp(-20))):
        weights = token_weights(Plan(method, clip=None), LOGPROBS, MASK, advantage=GIVEN["advantage"], ref=REF + far)
        assert weights[:, 0].tolist() == pytest.approx([0.3 * ratio, 0.25 * ratio], rel=1e-9)


@pytest.mark.parametrize("method", NEEDS)
def test_what_stands_behind_the_mask_leaves_no_trace(method):
    plan = Plan(method, beta=0.1, level="geometric")
    hidden = LOGPROBS.where(MASK, nan).requires_grad_()
    dirty = weighted_nll(plan, hidden, MASK, **(GIVEN | {"ref": REF.where(MASK, nan)}))
    clean = LOGPROBS.clone().requires_grad_()
    expected = weighted_nll(plan, clean, MASK, **GIVEN)
    assert torch.equal(dirty.total, expected.total)
    assert torch.equal(slope(dirty.total, hidden), slope(expected.total, clean))


def row_by_row(plan):
    one = [slice(0, 1), slice(1, 2)]
    return [weighted_nll(plan, LOGPROBS[i], MASK[i], **{k: v[i] for k, v in GIVEN.items()}).total for i in one]


@pytest.mark.parametrize("method", NEEDS)
def test_padding_order_and_size_of_the_batch_do_not_count(method):
    plan = Plan(method, beta=0.1)
    whole = weighted_nll(plan, LOGPROBS, MASK, **GIVEN).total.item()
    wider = {"ref": torch.cat([REF, t([5.0, 6.0], [7.0, 8.0])], -1)}
    columns = torch.cat([LOGPROBS, t([1.0, 2.0], [3.0, 4.0])], -1)
    mask = torch.cat([MASK, torch.zeros(2, 2, dtype=torch.bool)], -1)
    assert weighted_nll(plan, columns, mask, **(GIVEN | wider)).total.item() == pytest.approx(whole, abs=1e-12)
    turned = weighted_nll(plan, LOGPROBS.flip(0), MASK.flip(0), **{name: each.flip(0) for name, each in GIVEN.items()})
    assert turned.total.item() == pytest.approx(whole, abs=1e-12)
    alone = row_by_row(plan)
    assert sum(alone).item() == pytest.approx(whole, abs=1e-12)


def test_where_the_policy_is_the_reference_three_variants_are_one():
    slopes = []
    for method in ("a_lol", "a_lol_ref_free", "a_lol_seq"):
        logprobs = LOGPROBS.float().requires_grad_()
        weights = token_weights(Plan(method), logprobs, MASK, advantage=t(1.0, 1.0), ref=logprobs)
        assert torch.equal(weights, MASK.double())
        same = weighted_nll(Plan(method), logprobs, MASK, advantage=GIVEN["advantage"], ref=logprobs.detach())
        slopes.append(slope(same.mean, logprobs))
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


@pytest.mark.parametrize("method", NEEDS)
def test_the_weight_of_a_row_scales_its_loss_and_not_the_count(method):
    plan, row_weight = Plan(method, beta=0.1), t(3.0, 0.5)
    alone = row_by_row(plan)
    found = weighted_nll(plan, LOGPROBS, MASK, **GIVEN, row_weight=row_weight)
    assert found.total.item() == pytest.approx((3 * alone[0] + 0.5 * alone[1]).item(), abs=1e-12)
    assert found.count.item() == 2
    with pytest.raises(ValueError, match=r"rows \(2,\), row_weight \(2, 1\)"):
        weighted_nll(plan, LOGPROBS, MASK, **GIVEN, row_weight=row_weight[:, None])


@pytest.mark.parametrize("method", ["a_lol", "a_lol_ref_free", "a_lol_seq"])
def test_a_batch_without_advantage_teaches_nothing(method):
    logprobs = LOGPROBS.clone().requires_grad_()
    found = weighted_nll(Plan(method), logprobs, MASK, advantage=t(0.0, 0.0), ref=REF)
    assert (found.total.item(), found.count.item()) == (0.0, 2)
    assert slope(found.total, logprobs).abs().max().item() == 0.0


def test_advantages_by_hand_and_by_their_invariants():
    assert advantages(REWARD, VALUE).tolist() == pytest.approx([0.3, 0.25], abs=1e-12)
    assert advantages(VALUE, REWARD, margin=0.1).tolist() == pytest.approx([-0.2, -0.15], abs=1e-12)
    torch.testing.assert_close(advantages(REWARD + 2, VALUE + 2), advantages(REWARD, VALUE), atol=1e-12, rtol=0)
    assert advantages(REWARD.bfloat16(), VALUE.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"reward \(2,\), value \(2, 1\)"):
        advantages(REWARD, VALUE[:, None])


def test_without_a_value_the_advantage_is_the_reward():
    of_value = {"advantage": advantages(REWARD, torch.zeros_like(REWARD)), "ref": REF}
    ours = weighted_nll(Plan("a_lol"), LOGPROBS, MASK, **of_value)
    assert torch.equal(ours.total, weighted_nll(Plan("r_lol"), LOGPROBS, MASK, reward=REWARD, ref=REF).total)


def test_scaled_rewards_scale_the_loss_and_not_the_draws():
    scaled = advantages(3 * REWARD, 3 * VALUE)
    torch.testing.assert_close(probabilities(scaled), probabilities(GIVEN["advantage"]), atol=1e-12, rtol=0)
    losses = [weighted_nll(Plan("a_lol"), LOGPROBS, MASK, advantage=a, ref=REF).total for a in (scaled, scaled / 3)]
    assert (losses[0] / losses[1]).item() == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"advantage": torch.ones(2, 1)}, r"advantage must be \(2,\), one per row, got \(2, 1\)"),
        ({"ref": torch.zeros(2)}, r"shapes must be equal: logprobs \(2, 3\), mask \(2, 3\), ref \(2,\)"),
    ],
)
def test_other_shapes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        weighted_nll(Plan("a_lol"), LOGPROBS, MASK, **(GIVEN | wrong))


def means(plan, ref=REF):
    found = weight_metrics(plan, LOGPROBS, MASK, ref)
    return {name: each.total.item() / each.count.item() for name, each in found.items()}


def test_metrics_count_answers_or_tokens_beyond_each_border():
    # Log-ratios: tokens 0.2, -0.1, 0.4 and 1.2, -0.2; answers 0.5 and 1.0, per token 0.167 and 0.5.
    answers, tokens = means(Plan("a_lol")), means(Plan("a_lol_seq"))
    assert answers == pytest.approx({"log_ratio": 0.75, "clip_low": 0.0, "clip_high": 0.5}, abs=1e-9)
    assert tokens == pytest.approx({"log_ratio": 0.3, "clip_low": 0.0, "clip_high": 0.2}, abs=1e-9)
    tight = means(Plan("a_lol_seq", clip=0.15))
    assert (tight["clip_low"], tight["clip_high"]) == pytest.approx((0.2, 0.6), abs=1e-9)
    low = means(Plan("r_lol", level="geometric", clip=0.5), ref=REF + t([0.9], [0.0]))
    assert low == pytest.approx({"log_ratio": (0.5 / 3 - 0.9 + 0.5) / 2, "clip_low": 0.5, "clip_high": 0.5}, abs=1e-9)


def test_metrics_tell_the_distance_where_nothing_is_clipped():
    for plan in (Plan("a_lol", clip=None), Plan("a_lol_ref_free"), Plan("nll")):
        assert means(plan, ref=REF.where(MASK, nan)) == pytest.approx({"log_ratio": 0.75}, abs=1e-9)


def test_dpo_by_hand():
    sequences = t(-1.7, -2.3).requires_grad_()
    first, second = sequences[:1], sequences[1:]
    with_reference = dpo(first, second, beta=0.1, lead=t(-2.2 + 3.3))
    assert with_reference.mean.item() == pytest.approx(0.718460, abs=5e-7)
    assert slope(with_reference.mean, sequences).tolist() == pytest.approx([-0.05125, 0.05125], abs=5e-7)
    without = dpo(first, second, beta=0.1)
    assert without.mean.item() == pytest.approx(0.663597, abs=5e-7)
    # The published slope has four decimals.
    assert slope(without.mean, sequences).tolist() == pytest.approx([-0.0485, 0.0485], abs=5e-5)


def test_the_lead_of_the_reference_is_a_constant():
    lead = t(1.0).requires_grad_()
    loss = dpo(t(-1.0).requires_grad_(), t(-2.0), lead=lead).total
    assert grad(loss, lead, allow_unused=True) == (None,)


def test_pro_by_hand():
    sequences = t(-1.7, -2.3).requires_grad_()
    scores = (sequences / t(3.0, 2.0))[None]
    rank = pro(scores, t([1.2, 0.4]))
    assert rank.mean.item() == pytest.approx(0.486793, abs=5e-7)
    assert slope(rank.mean, sequences).tolist() == pytest.approx([-0.102775, 0.154162], abs=5e-7)
    best = weighted_nll(Plan("nll"), LOGPROBS[:1], MASK[:1])
    assert (rank.mean + 0.05 * best.mean).item() == pytest.approx(0.571793, abs=5e-7)


def slow_pro(scores, quality):
    total = 0.0
    for p, q in zip(scores, quality):
        for k in range(len(p) - 1):
            later = range(k + 1, len(p))
            own = exp(p[k] * max(q[k] - q[i] for i in later))
            total -= log(own / (own + sum(exp(p[i] * (q[k] - q[i])) for i in later)))
    return total


def test_pro_is_its_double_loop():
    generator = torch.Generator().manual_seed(3)
    scores = -2 * torch.rand(5, 4, dtype=torch.float64, generator=generator)
    quality = torch.rand(5, 4, dtype=torch.float64, generator=generator).sort(-1, descending=True).values
    found = pro(scores, quality)
    assert found.total.item() == pytest.approx(slow_pro(scores.tolist(), quality.tolist()), abs=1e-9)
    assert found.count.item() == 5
    assert gradcheck(lambda p: pro(p, quality).total, scores.requires_grad_())


def test_pro_of_two_is_a_softplus_and_survives_large_scores():
    scores, quality = t([-900.0, -850.0], [-2.0, -900.0], [-0.4, -0.1]), t([4.0, 1.0], [4.0, 1.0], [0.5, 0.5])
    expected = torch.nn.functional.softplus((scores[:, 1] - scores[:, 0]) * (quality[:, 0] - quality[:, 1])).sum()
    assert pro(scores, quality).total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert pro(scores[2:], quality[2:]).total.item() == pytest.approx(log(2), abs=1e-12)


def test_pro_needs_something_to_rank():
    for shape in ((3, 1), (3,)):
        with pytest.raises(ValueError, match=r"rows of two candidates or more, got shape \(3,"):
            pro(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"scores \(2, 3\), quality \(2,\)"):
        pro(torch.zeros(2, 3), torch.zeros(2))


def test_probabilities_by_hand_and_the_size_they_leave():
    weights = t(0.3, -0.1, 0.1, 0.0, 0.6).clamp(min=0)
    assert probabilities(weights).tolist() == pytest.approx([0.3, 0, 0.1, 0, 0.6], abs=1e-12)
    assert effective_size(weights) == pytest.approx(1 / (0.09 + 0.01 + 0.36), abs=1e-9)
    assert effective_size(torch.full((7,), 0.2)) == pytest.approx(7, abs=1e-9)
    assert effective_size(t(0.0, 5.0, 0.0)) == 1.0


def test_small_weights_do_not_drown_in_a_float32_sum():
    weights = torch.cat([torch.ones(1), torch.full((1000,), 2.0**-26)])
    assert probabilities(weights)[0].item() == pytest.approx(1 / (1 + 1000 * 2.0**-26), abs=1e-12)


@pytest.mark.parametrize(
    "weights, message",
    [
        (t(1.0, -0.1, nan, inf), "3 of 4 weights are negative or no finite numbers; clamp or drop them"),
        (t(0.0, 0.0), "all 2 weights are zero: no row can be drawn; is any advantage positive"),
        (torch.zeros(0), "all 0 weights are zero"),
        (torch.ones(2, 1), r"one weight per row, got shape \(2, 1\)"),
    ],
)
def test_weights_without_meaning_are_refused(weights, message):
    for use in (probabilities, effective_size):
        with pytest.raises(ValueError, match=message):
            use(weights)


# One prompt, four answers, of which the data hold 4, 3, 2 and 1 copies, as the reference would draw them.
SHARES, WORTH = [0.4, 0.3, 0.2, 0.1], t(0.2, 0.5, 0.7, 0.9)
GAIN = (WORTH - 0.46).clamp(min=0)
COLLAPSED = [0.0, 0.0, 0.0, 1.0]
LIMITS = {
    "nll": (Plan("nll"), GAIN, SHARES),
    "wbc": (Plan("wbc"), GAIN, [0.173913, 0.326087, 0.304348, 0.195652]),
    "ref_free": (Plan("a_lol_ref_free"), GAIN, [0.0, 0.115385, 0.461538, 0.423077]),
    "priority": (Plan("a_lol_ref_free"), GAIN.square(), [0.0, 0.015306, 0.367347, 0.617347]),
    "a_lol": (Plan("a_lol"), GAIN, [0.0, 0.006818, 0.518182, 0.475]),
    "unclipped": (Plan("a_lol", clip=None), GAIN, COLLAPSED),
    "beta 0.05": (Plan("a_lol_kl", beta=0.05), GAIN, [0.0, 0.0, 0.490741, 0.509259]),
    "beta 0.1": (Plan("a_lol_kl", beta=0.1), GAIN, COLLAPSED),
}


def rest(plan, advantage, reward, shares, steps=1200):
    """Where a table of logits ends under the full-data gradient, from the reference on."""
    rows = torch.cat([torch.full((round(10 * share),), answer) for answer, share in enumerate(shares)])
    reference, mask = t(*shares).log(), torch.ones(len(rows), 1, dtype=torch.bool)
    given = {"advantage": advantage[rows], "reward": reward[rows], "ref": reference[rows, None]}
    # Answers of advantage zero leave as slowly as 1/steps: where it counts they begin far down.
    counts = "advantage" in NEEDS[plan.method]
    logits = reference.where(advantage > 0, -30.0) if counts else reference
    # The weights lie below 1, or below 0.2 where advantages are read: steps as long as they allow.
    rate = 10.0 if counts else 1.0
    for _ in range(steps):
        logits = logits.detach().requires_grad_()
        logprobs = logits.log_softmax(-1)[rows, None]
        logits = logits - rate * slope(weighted_nll(plan, logprobs, mask, **given).mean, logits)
    return logits.softmax(-1).tolist()


@pytest.mark.parametrize("name", LIMITS)
def test_where_each_method_comes_to_rest(name):
    plan, advantage, limit = LIMITS[name]
    # A policy that collapses does so as 1/steps, so that a little is left of the others.
    assert rest(plan, advantage, WORTH, SHARES) == pytest.approx(limit, abs=1e-3)


def test_where_three_answers_come_to_rest():
    reward = t(0.2, 0.5, 0.9)
    found = rest(Plan("a_lol_ref_free"), (reward - 0.43).clamp(min=0), reward, [0.5, 0.3, 0.2])
    assert found == pytest.approx([0.0, 0.182609, 0.817391], abs=1e-6)

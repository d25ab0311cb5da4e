"""Targets of a student against numbers worked out apart, the published form of the threshold, and what must hold."""

import math

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import kl_div

from holdfast.losses.reduce import objective
from holdfast.losses.transfer import Options, cross_entropy, harden, hardened, pair, target, warm_up

KINDS = ("soft", "hard", "logconf", "entropy", "product", "window", "adaptconf")


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(expected):
    """Equal to numbers given with six digits."""
    return pytest.approx(expected, abs=1e-6)


def two(p):
    """The distributions (B, 2) with these probabilities of class 1."""
    return torch.stack([1 - p, p], -1)


def randoms(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes]


def loss(kind, logits, weak, **options):
    return cross_entropy(logits, target(kind, logits.softmax(-1), weak, **options)).mean


def official(p, prior):
    """The published rule: class 1 where the probability of class 0 is below its quantile at the prior."""
    return (1 - p < torch.quantile(1 - p, prior)).double()


# The batch of four that most checks share.
LOGITS, WEAK = pair(t(2.0, 1.0, 0.5, -1.0)), two(t(0.9, 0.2, 0.4, 0.6))
HALF = t(0.5, 0.5)


def test_cross_entropy_by_hand():
    found = cross_entropy(t(0.0, 1.0)[None], t(0.3, 0.7)[None])
    assert (float(found.mean), float(found.count)) == (near(0.613262), 1)


def test_cross_entropy_counts_what_is_kept():
    logits, told = pair(t(1.0, 2.0, math.nan)), two(t(0.7, 0.1, 0.5))
    found = cross_entropy(logits, told, torch.tensor([True, True, False]))
    slow = sum(q * math.log1p(math.exp(-z)) + (1 - q) * math.log1p(math.exp(z)) for z, q in ((1.0, 0.7), (2.0, 0.1)))
    assert float(found.total) == pytest.approx(slow, abs=1e-12)
    assert float(found.count) == 2


@pytest.mark.parametrize("weight, expected", [(0.0, 0.781882), (0.5, 0.606882), (0.75, 0.519382)])
def test_confidence_loss_by_hand(weight, expected):
    p = LOGITS.softmax(-1)
    assert p[:, 1].tolist() == near([0.880797, 0.731059, 0.622459, 0.268941])
    assert hardened(p, HALF, min_pool=1)[:, 1].tolist() == [1, 1, 0, 0]
    assert float(loss("logconf", LOGITS, WEAK, weight=weight, prior=HALF, min_pool=1)) == near(expected)
    # Its two terms, weighed apart.
    apart = (1 - weight) * cross_entropy(LOGITS, WEAK).mean
    apart += weight * cross_entropy(LOGITS, two(t(1, 1, 0, 0))).mean
    assert float(apart) == near(expected)


def test_confidence_targets_by_hand():
    found = target("logconf", LOGITS.softmax(-1), WEAK, weight=0.5, prior=HALF, min_pool=1)
    assert found[:, 1].tolist() == near([0.95, 0.60, 0.20, 0.30])


def test_the_published_quantile_agrees_on_an_even_batch():
    p = LOGITS.softmax(-1)[:, 1]
    prior = WEAK[:, 1].mean()  # .525: the mean of the batch stands for the prior
    assert float(torch.quantile(1 - p, prior)) == near(0.331386)
    mixed = two(0.5 * WEAK[:, 1] + 0.5 * official(p, prior))
    assert float(cross_entropy(LOGITS, mixed).mean) == near(0.606882)


def test_the_prior_sets_how_many():
    p = LOGITS.softmax(-1)
    prior = two(t(0.5, 0.2, 0.1, 0.2)).mean(0)
    assert prior.tolist() == near([0.75, 0.25])
    assert hardened(p, prior, min_pool=1)[:, 1].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "p, ours, theirs",
    [((0.7,), [0], 0), ((0.4,) * 4, [1, 1, 0, 0], 0), ((0.1, 0.9, 0.3, 0.8, 0.5), [0, 1, 0, 1, 0], 2)],
    ids=["one", "equal", "odd"],
)
def test_degenerate_batches(p, ours, theirs):
    assert harden(t(*p), 0.5, min_pool=1).tolist() == ours
    assert official(t(*p), 0.5).sum() == theirs


def test_the_published_quantile_loses_ties_that_ours_keeps():
    p = t(0.9, 0.5, 0.5, 0.5, 0.1, 0.2)
    assert official(p, 0.5).sum() == 1
    assert harden(p, 0.5, min_pool=1).tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("prior", [0.0, 0.1, 0.47, 0.5, 1.0])
def test_the_number_of_positives_is_the_rounded_share(prior):
    (scores,) = randoms(0, (33,))
    hard = harden(scores.sigmoid(), prior)
    assert hard.sum() == round(prior * 33)
    # They are the highest.
    assert sorted(scores[hard == 1].tolist()) == sorted(scores.tolist())[33 - round(prior * 33) :]


def test_a_small_pool_is_not_ranked():
    p = t(0.9, 0.8, 0.7, 0.6, 0.55, 0.52, 0.51)
    assert harden(p, 0.5).tolist() == [1] * 7
    assert harden(torch.cat([p, t(0.5)]), 0.5).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert harden(t(0.5, 0.500001)).tolist() == [0, 1]


def test_earlier_probabilities_are_ranked_but_get_no_target():
    pool, p = t(0.9, 0.8, 0.1, 0.2, 0.3), t(0.7, 0.6, 0.5)
    # 4 of 8: .9, .8, .7 and .6.
    assert harden(p, 0.5, pool=pool).tolist() == [1, 1, 0]
    # Of equals the earlier.
    assert harden(t(0.4, 0.4), 0.5, min_pool=1, pool=t(0.4, 0.4)).tolist() == [0, 0]
    # The pool counts towards `min_pool`.
    assert harden(p, 0.5, min_pool=9, pool=pool).tolist() == [1, 1, 0]
    assert harden(p, 0.25, min_pool=9, pool=pool).tolist() == [1, 1, 0]
    assert harden(p, 0.25, pool=pool).tolist() == [0, 0, 0]


def test_classes_are_hardened_by_what_is_unusual_for_them():
    (scores,) = randoms(1, (40, 3))
    p = (scores + t(2.0, 0.0, 0.0)).softmax(-1)
    prior = t(0.2, 0.5, 0.3)
    slow = []
    for row in p.tolist():
        score = [math.log(q) - math.log(float(p[:, k].mean())) + math.log(prior[k]) for k, q in enumerate(row)]
        slow.append(score.index(max(score)))
    assert hardened(p, prior).argmax(-1).tolist() == slow
    assert slow != p.argmax(-1).tolist()
    assert hardened(p).argmax(-1).tolist() == p.argmax(-1).tolist()
    assert hardened(p[:5], prior).argmax(-1).tolist() == p[:5].argmax(-1).tolist()


def test_classes_nobody_believes_in_are_never_chosen():
    p = t((0.9, 0.1, 0.0, 0.0), (0.2, 0.8, 0.0, 0.0))
    assert hardened(p, torch.full((4,), 0.25), min_pool=1).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


RAMP = {
    0.05: (0.125, 0.025),
    0.1: (0.25, 0.05),
    0.1001: (0.25025, 0.5),
    0.15: (0.375, 0.5),
    0.2: (0.5, 0.5),
    0.3: (0.5, 0.5),
}


@pytest.mark.parametrize("fraction", RAMP)
def test_warm_up(fraction):
    expected, published = RAMP[fraction]
    assert warm_up(fraction) == pytest.approx(expected, abs=1e-12)
    # The published code creeps to a tenth of the weight and jumps.
    assert 0.5 * (1.0 if fraction > 0.1 else fraction) == pytest.approx(published)


def test_warm_up_ends():
    assert (warm_up(0.0), warm_up(1.0), warm_up(0.0, share=0.0)) == (0.0, 0.5, 0.5)
    assert warm_up(0.25, share=0.5, most=0.75) == 0.375
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        warm_up(1.5)


def test_product_by_hand():
    found = target("product", two(t(0.8, 0.8, 0.8)), two(t(0.3, 0.0, 1.0)))
    # Labels are clamped to within 1e-6 of sure, so hard ones come through up to that (odds of 4 make it 4e-6).
    assert found[:, 1].tolist() == [near(0.631579), pytest.approx(0, abs=5e-6), near(1)]
    powers = Options(student_power=2.0, weak_power=0.5)
    slow = [0.2**2 * math.sqrt(0.7), 0.8**2 * math.sqrt(0.3)]
    found = target("product", two(t(0.8)), two(t(0.3)), options=powers)
    assert found.tolist()[0] == pytest.approx([q / sum(slow) for q in slow], abs=1e-12)


def test_product_of_two_that_are_sure_of_the_opposite():
    found = target("product", torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.isfinite().all()
    # The student's zero is smaller than what the clamp leaves the label.
    assert found.tolist()[0] == near([1.0, 0.0])
    # Without a say of the student its zero stays out too.
    found = target("product", two(t(1.0)), two(t(0.3)), options=Options(student_power=0.0))
    assert found.tolist()[0] == near([0.7, 0.3])


def test_adaptive_confidence_by_hand():
    p, weak = two(t(0.8)), two(t(0.3))
    u, v = -math.log(0.8), -math.log(0.2)
    assert (u, v) == near((0.223144, 1.609438))
    trust = math.exp(u / 0.5) / (math.exp(u / 0.5) + math.exp(v / 0.5))
    assert trust == near(1 / 17)
    assert float(target("adaptconf", p, weak)[0, 1]) == near((1 - trust) * 0.3 + trust)
    # Without a disagreement it is a half.
    assert float(target("adaptconf", p, two(t(0.9)))[0, 1]) == near(0.95)
    assert float(target("adaptconf", p, weak, options=Options(temperature=5.0))[0, 1]) == near(
        (0.3 + math.exp((u - v) / 5)) / (1 + math.exp((u - v) / 5))
    )


def test_adaptive_confidence_trusts_the_student_never_more():
    scores, labels = randoms(2, (50, 4), (50, 4))
    p, weak = scores.softmax(-1), labels.softmax(-1)
    told = target("adaptconf", p, weak)
    own = hardened(p)
    trust = ((told - weak) * own).sum(-1) / ((1 - weak) * own).sum(-1)
    same = scores.argmax(-1) == labels.argmax(-1)
    assert trust[same].tolist() == pytest.approx([0.5] * int(same.sum()))
    assert (trust[~same] < 0.5).all()


def test_window_learns_where_the_student_is_unsure():
    p, weak = two(t(0.64, 0.66, 0.36, 0.34)), two(t(0.1, 0.2, 0.3, 0.4))
    found = target("window", p, weak)
    assert found[:, 1].tolist() == [0.1, 0, 0.3, 0]
    assert found.sum(-1).tolist() == [1, 0, 1, 0]
    both = cross_entropy(p.log(), found)
    slow = -0.1 * math.log(0.64) - 0.9 * math.log(0.36) - 0.3 * math.log(0.36) - 0.7 * math.log(0.64)
    assert (float(both.total), float(both.count)) == (near(slow), 4)
    assert target("window", p, weak, options=Options(radius=0.17)).sum() == 4


def test_hard_labels():
    assert target("hard", two(t(0.9, 0.9)), two(t(0.4, 0.6)))[:, 1].tolist() == [0, 1]


def test_entropy_with_its_gradient():
    (logits,) = randoms(3, (5, 3))
    logits.requires_grad_()
    weak = torch.softmax(randoms(4, (5, 3))[0], -1)
    logp = logits.log_softmax(-1)
    slow = 0.6 * -(weak * logp).sum() + 0.4 * -(logp.exp() * logp).sum()
    fast = cross_entropy(logits, target("entropy", logits.softmax(-1), weak, weight=0.4)).total
    assert fast.item() == pytest.approx(slow.item(), abs=1e-12)
    torch.testing.assert_close(grad(fast, logits)[0], grad(slow, logits)[0], rtol=0, atol=1e-12)


def test_entropy_of_a_fixed_prediction_would_teach_nothing():
    (logits,) = randoms(3, (5, 3))
    weak = torch.softmax(randoms(4, (5, 3))[0], -1)
    with pytest.raises(ValueError, match="pass it attached"):
        target("entropy", logits.softmax(-1), weak, weight=0.4)
    with torch.no_grad():
        fixed = target("entropy", logits.softmax(-1), weak, weight=0.4)
    logits.requires_grad_()
    inert, naive = (grad(cross_entropy(logits, each).total, logits)[0] for each in (fixed, weak))
    torch.testing.assert_close(inert, 0.6 * naive, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"entropy"}))
def test_targets_carry_no_gradient(kind):
    logits, labels = (each.requires_grad_() for each in randoms(5, (9, 2), (9, 2)))
    found = target(kind, logits.softmax(-1), labels.softmax(-1), weight=0.5, prior=HALF)
    assert not found.requires_grad
    assert found.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_batch_does_not_matter(kind):
    logits, labels = randoms(6, (33, 2), (33, 2))
    logits.requires_grad_()
    weak, order = labels.softmax(-1), torch.randperm(33, generator=torch.Generator().manual_seed(0))
    here = loss(kind, logits, weak, weight=0.5, prior=HALF)
    there = loss(kind, logits[order], weak[order], weight=0.5, prior=HALF)
    assert here.item() == pytest.approx(there.item(), abs=1e-12)


@pytest.mark.parametrize("kind", ["logconf", "entropy"])
def test_without_weight_it_is_the_naive_loss(kind):
    logits, labels = randoms(7, (9, 3), (9, 3))
    logits.requires_grad_()
    weak = labels.softmax(-1)
    assert torch.equal(target(kind, logits.softmax(-1), weak), weak)
    # Which has the gradient of the divergence from the labels.
    naive = cross_entropy(logits, target("soft", logits.softmax(-1), weak)).total
    divergence = kl_div(logits.log_softmax(-1), weak, reduction="sum")
    torch.testing.assert_close(grad(naive, logits)[0], grad(divergence, logits)[0], rtol=0, atol=1e-12)


def test_labels_that_are_the_hardened_student_stay():
    p = randoms(8, (32,))[0].sigmoid()
    weak = two(harden(p, 0.5))
    assert torch.equal(target("logconf", two(p), weak, weight=0.75, prior=HALF), weak)


def test_a_cut_step_is_hardened_whole():
    logits, labels = randoms(9, (32, 2), (32, 2))
    weak = labels.softmax(-1)
    whole = loss("logconf", logits, weak, weight=0.5, prior=HALF)
    told = target("logconf", logits.softmax(-1), weak, weight=0.5, prior=HALF)
    parts = [cross_entropy(logits[i : i + 8], told[i : i + 8]) for i in range(0, 32, 8)]
    total = sum(objective({"transfer": part}, {"transfer": 32.0}, {}) for part in parts)
    assert float(total) == pytest.approx(float(whole), abs=1e-12)
    # Each part for itself is another loss.
    apart = sum(
        loss("logconf", logits[i : i + 8], weak[i : i + 8], weight=0.5, prior=HALF) / 4 for i in range(0, 32, 8)
    )
    assert abs(float(apart) - float(whole)) > 1e-4


# Pairs.


def test_pair_labels_by_hand():
    assert pair(t(1.0, -1.0, 0.0)).softmax(-1)[:, 1].tolist() == near([0.731059, 0.268941, 0.5])
    margin = t(0.5).requires_grad_()
    found = cross_entropy(pair(margin), two(t(0.731059))).total
    assert found.item() == near(0.608547)
    assert grad(found, margin)[0].tolist() == near([-0.108600])


SWAPPED = torch.tensor([False, True, False, True, True, False])


def swap(margins, labels):
    return torch.where(SWAPPED, -margins, margins), torch.where(SWAPPED, 1 - labels, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_may_be_told_either_way_round(kind):
    (margins, scores) = randoms(10, (6,), (6,))
    margins.requires_grad_()
    here, there = (
        loss(kind, pair(m), two(w), weight=0.5)
        for m, w in ((margins, scores.sigmoid()), swap(margins, scores.sigmoid()))
    )
    assert here.item() == pytest.approx(there.item(), abs=1e-12)


def test_a_threshold_from_the_batch_depends_on_how_pairs_were_told():
    torch.manual_seed(0)
    margins, labels = torch.randn(6), torch.rand(6)

    def both(**threshold):
        return [
            float(loss("logconf", pair(m), two(w), weight=0.5, **threshold))
            for m, w in ((margins, labels), swap(margins, labels))
        ]

    assert both() == near([0.665330, 0.665330])
    # The half of the batch: right by chance in one order, another loss in the other.
    ranked = both(prior=torch.tensor([0.5, 0.5]), min_pool=1)
    assert sorted(ranked) == near([0.665330, 0.689783])
    # All pairs the other way round are no test: that leaves the half as it was.
    everything = float(loss("logconf", pair(-margins), two(1 - labels), weight=0.5, prior=HALF.float(), min_pool=1))
    assert everything == near(ranked[0])


# What is refused.


def test_logits_in_place_of_probabilities():
    with pytest.raises(ValueError, match=r"weak holds probabilities .* got \[2\.0, -1\.0\]; take the softmax"):
        target("soft", two(t(0.5)), t(2.0, -1.0)[None])
    with pytest.raises(ValueError, match="p holds probabilities"):
        target("soft", two(t(math.nan)), two(t(0.5)))
    with pytest.raises(ValueError, match="p holds probabilities"):
        target("soft", t(0.5, 0.4)[None], two(t(0.5)))


def test_half_precision_is_near_enough_and_becomes_float():
    p = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).softmax(-1).bfloat16()
    found = target("product", p, p)
    assert found.dtype == torch.float32
    assert found.sum(-1).tolist() == pytest.approx([1.0] * 20, abs=1e-5)  # a sum of fifty numbers in single precision


def test_other_misuse():
    p = two(t(0.5, 0.6))
    with pytest.raises(ValueError, match=r"shapes must be equal: p \(2, 2\), weak \(1, 2\)"):
        target("soft", p, p[:1])
    with pytest.raises(ValueError, match=r"no target 'confident'; known are soft, hard, logconf"):
        target("confident", p, p)
    with pytest.raises(ValueError, match=r"between 0 and 1, got -0\.1"):
        harden(p[:, 1], -0.1)
    with pytest.raises(ValueError, match=r"2 classes need as many shares in prior, got shape \(3,\)"):
        hardened(p, torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="prior holds probabilities"):
        hardened(p, t(1.0, 1.0))
    with pytest.raises(ValueError, match="shapes must be equal"):
        cross_entropy(p, p[:, :1])

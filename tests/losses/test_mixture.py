"""Mixture losses against numbers worked out apart, slow double loops, and what must hold for any numbers."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from holdfast.losses import mixture
from holdfast.losses.preference import bradley_terry

WEIGHTS, DELTA = (0.7, 0.2, 0.1), (1.5, -0.5, 0.0)
LABEL_LOSSES = (0.126928, 0.474077, 0.974077, 2.126928)  # of DELTAS, six digits
DELTAS = (2.0, 0.5, -0.5, -2.0)


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(expected):
    """Equal to numbers given with six digits."""
    return pytest.approx(expected, abs=1e-6)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def randoms(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes]


# The theorem on a single Bradley-Terry score: arXiv 2505.24846, theorem 3.2, in its pointwise form.


def excess(shares, scores):
    """By mixture_nll: the best single difference against all groups, less the label's entropy given the group."""
    single = t(0.0).requires_grad_()
    p = [sigmoid(s) for s in scores]
    # A comparison is won with probability `mean`, lost otherwise; K = 1, so the weight is 1.
    mean = sum(f * each for f, each in zip(shares, p))
    for _ in range(60):  # Newton, on a convex function of one number
        won, lost = (mixture.mixture_nll(side[None], t(0.0)[None]).total for side in (single, -single))
        (slope,) = grad(mean * won + (1 - mean) * lost, single, create_graph=True)
        (bend,) = grad(slope.sum(), single)
        single = (single - slope / bend).detach().requires_grad_()
    best = (mean * won + (1 - mean) * lost).item()
    return single.item(), best, best - sum(f * entropy(each) for f, each in zip(shares, p))


def bound(shares, scores):
    p = [sigmoid(s) for s in scores]
    centre = sum(p) / len(p)
    return 2 * min(shares) * sum((each - centre) ** 2 for each in p)  # K times the variance is the sum


@pytest.mark.parametrize(
    "shares, scores, least, gain, below",
    [
        ((0.6, 0.4), (2, -2), 0.681501, 0.316168, 0.232010),
        ((0.5, 0.5), (2, -2), math.log(2), 0.327813, 0.290013),
        ((0.7, 0.2, 0.1), (3, 0, -3), None, 0.246082, 0.081929),
    ],
)
def test_what_one_score_for_all_groups_must_lose(shares, scores, least, gain, below):
    single, best, found = excess(shares, scores)
    assert found == near(gain)
    assert bound(shares, scores) == near(below)
    assert least is None or best == near(least)
    if shares == (0.6, 0.4):
        assert single == near(0.307026)


def test_the_loss_exceeds_its_bound_for_any_groups():
    for shares, scores in zip(*randoms(0, (200, 3), (200, 3))):
        assert excess(shares.softmax(0).tolist(), scores.tolist())[2] >= bound(
            shares.softmax(0).tolist(), scores.tolist()
        )


def test_averaged_over_exchangeable_pairs_the_bound_says_nothing():
    """Two answers, groups of opposite taste, both answers drawn alike: the four pairs of draws."""
    pairs = [(0, 0), (2, -2), (-2, 2), (0, 0)]
    for group in (0, 1):
        assert sum(sigmoid(pair[group]) for pair in pairs) / 4 == pytest.approx(0.5, abs=1e-12)
    assert sum(bound((0.6, 0.4), pair) for pair in pairs) / 4 == near(0.116005)
    assert sum(excess((0.6, 0.4), pair)[2] for pair in pairs) / 4 == near(0.158084)


# Stage 1.


def test_the_likelihood_by_hand():
    log_f, delta = t(*WEIGHTS).log()[None].requires_grad_(), t(*DELTA)[None].requires_grad_()
    nll = mixture.mixture_nll(delta, log_f)
    assert nll.total.item() == near(0.359808)
    assert nll.count.item() == 1
    assert mixture.probability(delta, log_f).tolist() == near([0.697810])
    assert mixture.responsibilities(delta, log_f)[0].tolist() == near([0.820140, 0.108207, 0.071653])
    assert grad(nll.total, delta)[0][0].tolist() == near([-0.149614, -0.067355, -0.035826])
    spread = mixture.negative_entropy(log_f)
    assert spread.total.item() == near(-0.801819)
    assert (nll.mean + 0.5 * spread.mean).item() == near(-0.041101)
    jensen = sum(f * math.log1p(math.exp(-d)) for f, d in zip(WEIGHTS, DELTA))
    assert jensen == near(0.405119)
    assert nll.total.item() < jensen


def test_gradients_in_the_logits_by_hand():
    logits, delta = t(*WEIGHTS).log()[None].requires_grad_(), t(*DELTA)[None]
    nll = mixture.mixture_nll(delta, mixture.log_weights(logits))
    spread = mixture.negative_entropy(mixture.log_weights(logits))
    assert grad(nll.total, logits)[0][0].tolist() == near([-0.120140, 0.091793, 0.028347])
    assert grad(spread.total, logits)[0][0].tolist() == near([0.311601, -0.161524, -0.150077])


@pytest.mark.parametrize("heads, value", [(3, -1.098612), (10, -2.302585)])
def test_uniform_weights_have_the_least_negative_entropy(heads, value):
    assert mixture.negative_entropy(mixture.log_weights(torch.zeros(2, heads))).mean.item() == near(value)


def test_certain_weights_have_no_entropy_and_a_gradient():
    logits = t(0.3, 5.0, 1.0)[None].requires_grad_()
    log_f = mixture.log_weights(logits, torch.tensor([True, False, True]))
    spread = mixture.negative_entropy(log_f)
    assert spread.total.item() == 0
    assert grad(spread.total, logits)[0].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    "p, alpha, share",
    [((0.9, 0.1), 0.5, 0.8798), ((0.9, 0.1), 1.0, 0.7566), ((0.99, 0.01), 0.5, 0.9), ((0.99, 0.01), 1.0, 0.78)],
)
def test_the_entropy_term_caps_how_certain_weights_become(p, alpha, share):
    delta = torch.special.logit(t(*p))[None]
    logit = torch.linspace(0, 4, 40001, dtype=torch.float64)
    rows = mixture.log_weights(torch.stack([logit, torch.zeros_like(logit)], -1))
    each = -torch.log(mixture.probability(delta.expand_as(rows), rows))
    each = each + alpha * (rows.exp() * rows).sum(-1)
    best = rows[each.argmin()]
    # The published minimisers have four digits.
    assert best.exp()[0].item() == pytest.approx(share, abs=1e-4)
    here = mixture.mixture_nll(delta, best[None]).total + alpha * mixture.negative_entropy(best[None]).total
    assert here.item() == pytest.approx(each.min().item(), abs=1e-12)


def test_a_batch_against_a_slow_double_loop():
    delta, logits = randoms(1, (5, 4), (5, 4))
    log_f = mixture.log_weights(logits)
    slow_nll = slow_entropy = 0.0
    for i in range(5):
        z = sum(math.exp(x) for x in logits[i].tolist())
        f = [math.exp(x) / z for x in logits[i].tolist()]
        joint = [f[k] * sigmoid(float(delta[i, k])) for k in range(4)]
        slow_nll -= math.log(sum(joint))
        slow_entropy += sum(x * math.log(x) for x in f)
        assert mixture.responsibilities(delta, log_f)[i].tolist() == pytest.approx([x / sum(joint) for x in joint])
    assert mixture.mixture_nll(delta, log_f).total.item() == pytest.approx(slow_nll, abs=1e-12)
    assert mixture.negative_entropy(log_f).total.item() == pytest.approx(slow_entropy, abs=1e-12)
    assert mixture.mixture_nll(delta, log_f).count.item() == mixture.negative_entropy(log_f).count.item() == 5


def test_gradients_against_finite_differences():
    delta, logits, target = randoms(2, (4, 3), (4, 3), (4, 3))
    session, target = torch.tensor([0, 2, 0, 1]), target.softmax(-1)
    for one in (delta, logits):
        one.requires_grad_()
    masked = torch.tensor([False, True, False])
    keep = target.masked_fill(masked, 0.0)

    def all_of(delta, logits):
        free, log_f = mixture.log_weights(logits), mixture.log_weights(logits, masked)
        return (
            mixture.mixture_nll(delta, log_f).total,
            mixture.mixture_nll(delta, log_f[:3], session).total,
            mixture.negative_entropy(log_f).total,
            mixture.balance(log_f).total,
            mixture.balance(free).total,
            mixture.router_cross_entropy(target, free).total,
            mixture.router_cross_entropy(keep, log_f).total,
        )

    assert gradcheck(all_of, (delta, logits))


def test_one_head_is_bradley_terry_bit_for_bit():
    chosen, rejected, logit = (one.float() for one in randoms(3, (6,), (6,), (6, 1)))
    one = chosen.clone().requires_grad_()
    other = chosen.clone().requires_grad_()
    plain = bradley_terry(one, rejected)
    mixed = mixture.mixture_nll((other - rejected)[:, None], mixture.log_weights(logit))
    assert torch.equal(plain.total, mixed.total)
    assert torch.equal(grad(plain.total, one)[0], grad(mixed.total, other)[0])


def test_nothing_underflows_in_float32():
    delta = torch.tensor([[-300.0, -200.0]], requires_grad=True)
    log_f = mixture.log_weights(torch.tensor([[0.0, -400.0]]))
    nll = mixture.mixture_nll(delta, log_f)
    assert nll.total.item() == 300
    assert torch.isfinite(grad(nll.total, delta)[0]).all()
    assert mixture.mixture_nll(delta.bfloat16(), log_f.bfloat16()).total.dtype == torch.float32


# Masking, permutations, complements.


def test_masked_heads_have_no_weight_and_the_others_share_it():
    logits = t(1, 0.5, -0.2, 0.3)[None]
    assert mixture.log_weights(logits).exp()[0].tolist() == near([0.415920, 0.252268, 0.125273, 0.206540])
    masked = mixture.log_weights(logits, torch.tensor([False, False, True, False]))
    assert masked.exp()[0].tolist() == near([0.475485, 0.288396, 0, 0.236119])
    assert masked[0, 2] == -torch.inf
    assert masked.exp()[0, 2] == 0
    with pytest.raises(ValueError, match="all 4 heads are masked, so none is left to weigh; keep at least one"):
        mixture.log_weights(logits, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"4 heads need as many entries in masked, got \(1,\)"):
        mixture.log_weights(logits, torch.tensor([True]))


def test_the_order_of_heads_and_a_shift_per_prompt_mean_nothing():
    first, second, shift, logits = randoms(4, (5, 3), (5, 3), (5, 3), (5, 3))
    log_f, order = mixture.log_weights(logits), [2, 0, 1]
    delta = first - second
    plain = mixture.probability(delta, log_f)
    torch.testing.assert_close(mixture.probability(delta[:, order], log_f[:, order]), plain)
    torch.testing.assert_close(mixture.probability((first + shift) - (second + shift), log_f), plain)
    torch.testing.assert_close(plain + mixture.probability(-delta, log_f), torch.ones(5, dtype=torch.float64))
    nll = mixture.mixture_nll(delta, log_f).total
    torch.testing.assert_close(mixture.mixture_nll(delta[:, order], log_f[:, order]).total, nll)
    assert nll.item() == pytest.approx(-plain.log().sum().item(), abs=1e-12)


def test_a_mixture_can_be_cyclic():
    a, b, c = t(2, 0, -2), t(-2, 2, 0), t(0, -2, 2)
    even = t(1, 1, 1)[None].log().log_softmax(-1)
    for one, other in ((b, a), (c, b), (a, c)):
        assert mixture.probability((one - other)[None], even).item() == near(0.593193)
    # The best single score is undecided and loses the rest.
    assert math.log(2) - entropy(0.593193) == pytest.approx(0.0175, abs=1e-4)  # printed with three digits


def test_the_mixture_decides_by_probabilities_not_by_log_scores():
    f, chosen, rejected = t(0.6, 0.4), t(10, -1), t(5, 0.5)
    assert mixture.probability((chosen - rejected)[None], f.log()[None]).item() == near(0.668954)
    # A score that each answer gets by itself would pick the other one.
    alone = [float((f * torch.nn.functional.logsigmoid(r)).sum()) for r in (chosen, rejected)]
    assert alone == near([-0.525332, -0.193660])


# Sessions.


def test_a_session_shares_one_head():
    delta, half = t(2, 2, -2)[:, None] * t(1, -1), t(0.5, 0.5).log()
    pairs = mixture.mixture_nll(delta, half.expand(3, 2))
    assert -pairs.total.item() == near(-2.079442)
    session = mixture.mixture_nll(delta, half[None], torch.zeros(3, dtype=torch.long))
    assert -session.total.item() == near(-2.947003)
    assert session.count.item() == 3
    known = mixture.responsibilities(delta, half[None], torch.zeros(3, dtype=torch.long))
    assert known[0].tolist() == near([0.880797, 0.119203])


def test_sessions_against_a_slow_double_loop():
    delta, logits = randoms(5, (7, 3), (3, 3))
    session = [2, 0, 0, 2, 1, 0, 2]
    log_f = mixture.log_weights(logits)
    slow = 0.0
    for s in range(3):
        products = log_f[s].exp().tolist()
        for i in range(7):
            if session[i] == s:
                products = [products[k] * sigmoid(float(delta[i, k])) for k in range(3)]
        slow -= math.log(sum(products))
        known = mixture.responsibilities(delta, log_f, torch.tensor(session))[s]
        assert known.tolist() == pytest.approx([x / sum(products) for x in products], abs=1e-12)
    assert mixture.mixture_nll(delta, log_f, torch.tensor(session)).total.item() == pytest.approx(slow, abs=1e-12)


def test_sessions_of_one_pair_are_pairs_and_empty_sessions_say_nothing():
    delta, logits = randoms(6, (4, 3), (4, 3))
    log_f = mixture.log_weights(logits)
    order = torch.tensor([3, 1, 0, 2])
    pairs = mixture.mixture_nll(delta, log_f[order])
    torch.testing.assert_close(mixture.mixture_nll(delta, log_f, order).total, pairs.total)
    more = mixture.mixture_nll(delta, torch.cat([log_f, log_f]), order)
    torch.testing.assert_close(more.total, pairs.total)


def test_strange_sessions_and_shapes_are_refused():
    delta, log_f = torch.zeros(3, 2), torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"sessions must lie in 0..1, one row of log_weights each; got 0..2"):
        mixture.mixture_nll(delta, log_f, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"got -1..1"):
        mixture.mixture_nll(delta, log_f, torch.tensor([0, -1, 1]))
    with pytest.raises(ValueError, match=r"3 pairs need a session each, got \(2,\)"):
        mixture.mixture_nll(delta, log_f, torch.tensor([0, 1]))
    for call in (mixture.mixture_nll, mixture.responsibilities, mixture.probability, mixture.router_cross_entropy):
        with pytest.raises(ValueError, match=r"shapes must be equal"):
            call(delta, log_f[:1])


# Balance.


def test_balance_looks_at_the_average_of_the_batch():
    sure = mixture.log_weights(t(50, 0)[None]), mixture.log_weights(t(0, 50)[None])
    spread = mixture.balance(torch.cat(sure))
    assert spread.total.item() == pytest.approx(0, abs=1e-12)
    assert spread.count.item() == 2
    lopsided = torch.log(t(0.7, 0.2, 0.1, 0.5, 0.4, 0.1).view(2, 3))
    divergence = 0.6 * math.log(1.8) + 0.3 * math.log(0.9) + 0.1 * math.log(0.3)
    assert mixture.balance(lopsided).mean.item() == pytest.approx(divergence, abs=1e-12)
    assert mixture.balance(lopsided).total.item() == pytest.approx(2 * divergence, abs=1e-12)


# Stage 2.


@pytest.mark.parametrize(
    "tau, target",
    [
        (1.0, [0.440399, 0.311230, 0.188770, 0.059601]),
        (0.5, [0.587728, 0.293526, 0.107982, 0.010765]),
        (0.1, [0.969669, 0.030128, 0.000203, 0.0]),
        (0.001, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_hedge_targets_by_hand(tau, target):
    losses = -torch.nn.functional.logsigmoid(t(*DELTAS))[None]
    assert losses[0].tolist() == near(list(LABEL_LOSSES))
    assert mixture.hedge_target(t(1, 1, 1, 1)[None].log(), losses, tau)[0].tolist() == near(target)


def test_at_tau_one_hedge_is_bayes():
    log_f, delta = t(*WEIGHTS).log()[None], t(*DELTA)[None]
    losses = -torch.nn.functional.logsigmoid(delta)
    target = mixture.hedge_target(log_f, losses, 1.0)
    torch.testing.assert_close(target, mixture.responsibilities(delta, log_f))
    assert mixture.hedge_value(log_f, losses, 1.0).item() == near(0.359808)
    assert mixture.hedge_target(log_f, losses, 0.5)[0].tolist() == near([0.897379, 0.054674, 0.047947])
    assert mixture.hedge_value(log_f, losses, 0.5).item() == near(0.325612)


@pytest.mark.parametrize("tau", [0.1, 0.7, 3.0])
def test_the_hedge_target_minimises_what_it_claims_to(tau):
    log_prior, losses, others = randoms(7, (1, 4), (1, 4), (50, 4))
    log_prior = log_prior.log_softmax(-1)

    def objective(f):
        return float((f * losses[0]).sum() + tau * (f * (f.log() - log_prior[0])).sum())

    target = mixture.hedge_target(log_prior, losses, tau)[0]
    least = objective(target)
    assert mixture.hedge_value(log_prior, losses, tau).item() == pytest.approx(least, abs=1e-12)
    assert all(objective((target.log() + 0.1 * other).softmax(-1)) > least for other in others)


def test_hedge_targets_at_the_ends_of_tau():
    log_prior, losses = t(0.7, 0.2, 0.1).log()[None], t(1.0, 0.9, 5.0)[None]
    torch.testing.assert_close(mixture.hedge_target(log_prior, losses, 1e9), log_prior.exp())
    assert mixture.hedge_target(log_prior, losses, 1e-3)[0].tolist() == near([0, 1, 0])
    single = mixture.hedge_target(log_prior.float(), torch.tensor([[0.7, 0.71, 0.69]]), 1e-4)
    assert single[0].tolist() == near([0, 0, 1])
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau must be above 0"):
            mixture.hedge_target(log_prior, losses, tau)


def test_cross_entropy_fits_the_router_to_constants():
    target = t(0.5, 0.5, 0.0, 0.0, 1.0, 0.0).view(2, 3).requires_grad_()
    logits = t(0, 1, 2, 2, 1, 0).view(2, 3).requires_grad_()
    log_f = mixture.log_weights(logits)
    loss = mixture.router_cross_entropy(target, log_f)
    z = math.log(1 + math.e + math.e**2)
    assert loss.total.item() == pytest.approx((z - 0.5) + (z - 1), abs=1e-12)
    assert loss.count.item() == 2
    found = grad(loss.total, (logits, target), allow_unused=True)
    torch.testing.assert_close(found[0], (log_f.exp() - target).detach())
    assert found[1] is None
    masked = mixture.log_weights(logits, torch.tensor([False, False, True]))
    assert torch.isfinite(mixture.router_cross_entropy(target, masked).total)
    assert mixture.router_cross_entropy(t(0, 0, 1)[None], masked[:1]).total.item() == math.inf


# A person's labels.


def test_the_posterior_is_the_prior_times_the_likelihoods():
    prior, deltas = t(0.5, 0.3, 0.2), randoms(8, (6, 3))[0]
    products = prior.tolist()
    for row in deltas.tolist():
        products = [w * sigmoid(d) for w, d in zip(products, row)]
    losses = -torch.nn.functional.logsigmoid(deltas)
    found = mixture.posterior(prior.log(), losses)
    assert found.exp().tolist() == pytest.approx([w / sum(products) for w in products], abs=1e-12)
    torch.testing.assert_close(mixture.posterior(prior.log(), losses[[5, 0, 3, 1, 4, 2]]), found)
    step = mixture.posterior(mixture.posterior(prior.log(), losses[:2]), losses[2:])
    torch.testing.assert_close(step, found)
    for row in randoms(9, (20, 3))[0].log_softmax(-1):
        assert torch.equal(mixture.posterior(row, losses[:0]), row)
    torch.testing.assert_close(mixture.posterior(prior.log(), losses, tau=1e9), prior.log(), rtol=0, atol=1e-6)
    tempered = mixture.posterior(prior.log(), losses, tau=2.0)
    torch.testing.assert_close(tempered, mixture.posterior(prior.log(), losses / 2))


def test_a_head_without_prior_weight_gets_none():
    prior = mixture.log_weights(torch.zeros(3), torch.tensor([False, False, True]))
    found = mixture.posterior(prior, torch.tensor([[1.0, 2.0, 0.0]]))
    assert found[2] == -torch.inf
    assert found.exp().sum().item() == pytest.approx(1)

from math import exp, log

import pytest
import torch
from torch.autograd import grad

from holdfast.losses.preference import (
    bradley_terry,
    centre,
    cost_graded,
    cost_ordinal,
    cost_rank,
    cost_sign,
    score_l2,
)
from holdfast.losses.reduce import objective


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_reward_loss_by_hand():
    chosen, rejected = t(1.5, 0.2), t(0.5, 0.4)
    rank, l2 = bradley_terry(chosen, rejected), score_l2(chosen, rejected)
    assert rank.mean.item() == pytest.approx(0.5557002784, abs=1e-9)
    assert (0.001 * l2.mean).item() == pytest.approx(0.000675, abs=1e-9)
    terms = {"rank": rank, "l2": l2}
    counts = {"rank": 2.0, "l2": 4.0}
    assert objective(terms, counts, {"l2": 0.001}).item() == pytest.approx(0.5563752784, abs=1e-9)


def test_cost_loss_by_hand():
    more, less, sign_more, sign_less = t(2.0, -0.5), t(-1.0, -1.5), t(1, -1), t(-1, -1)
    rank, l2 = cost_rank(more, less), score_l2(more, less)
    sign = cost_sign(torch.cat([more, less]), torch.cat([sign_more, sign_less]))
    total = rank.mean + 2 * sign.mean
    assert total.item() == pytest.approx(0.7387644999, abs=1e-9)
    assert (total + 0.001 * l2.mean).item() == pytest.approx(0.7406394999, abs=1e-9)
    for row, expected in enumerate([0.4887770501, 0.9887519497]):
        one = slice(row, row + 1)
        parts = cost_rank(more[one], less[one]).total + cost_sign(more[one], sign_more[one]).total
        assert (parts + cost_sign(less[one], sign_less[one]).total).item() == pytest.approx(expected, abs=1e-9)


def test_cost_loss_of_hc_rlhf_by_hand():
    safe, unsafe = t(-0.5), t(1.2)
    rank = cost_rank(more=unsafe, less=safe).mean
    signs = cost_sign(unsafe, t(1)).mean + cost_sign(safe, t(-1)).mean
    assert rank.item() == pytest.approx(0.167786, abs=5e-7)  # six published digits, here and below
    assert (rank + signs).item() == pytest.approx(0.905145, abs=5e-7)
    assert (0.001 * score_l2(safe, unsafe).mean).item() == pytest.approx(0.000845, abs=1e-12)
    assert cost_rank(unsafe + 10, safe + 10).mean.item() == pytest.approx(rank.item(), abs=1e-12)
    assert cost_sign(unsafe + 10, t(1)).mean.item() != pytest.approx(cost_sign(unsafe, t(1)).mean.item())


@pytest.mark.parametrize("sign, loss, slope", [(1, 0.4031860489, -0.3318122278), (-1, 1.1031860489, 0.6681877722)])
def test_sign_term_and_its_gradient(sign, loss, slope):
    cost = t(0.7).requires_grad_()
    value = cost_sign(cost, t(sign)).total
    assert value.item() == pytest.approx(loss, abs=1e-9)
    assert grad(value, cost)[0].item() == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_zero_is_the_border_whatever_the_sign(sign):
    assert cost_sign(t(0), t(sign)).total.item() == pytest.approx(log(2), abs=1e-12)


def test_graded_loss_by_hand():
    more, less = t(0.8), t(-0.3)
    parts = [cost_rank(more, less).total, cost_graded(more, t(2)).total, cost_graded(less, t(-1)).total]
    assert [part.item() for part in parts] == pytest.approx([0.2873353251, 0.1839007409, 0.5543552445], abs=1e-9)


def test_a_bare_refusal_has_no_gradient_and_severe_harm_pulls_three_times_as_hard():
    cost = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loss = cost_graded(cost, t(0, 1, 3))
    assert (loss.total / 3).item() == pytest.approx(log(2), abs=1e-12)
    assert grad(loss.total, cost)[0].tolist() == [0.0, -0.5, -1.5]


def test_sign_and_grade_agree_on_mild_labels():
    cost, label = t(0.3, -2.0), t(1, -1)
    assert torch.equal(cost_sign(cost, label).total, cost_graded(cost, label).total)


def test_graded_product_is_taken_in_float32():
    cost, grade = torch.tensor([1.1796875], dtype=torch.bfloat16), torch.tensor([3], dtype=torch.bfloat16)
    # 3 * 1.1796875 = 3.5390625 needs nine bits and would be rounded in bfloat16.
    expected = torch.nn.functional.softplus(torch.tensor(-3.5390625, dtype=torch.float64)).item()
    assert cost_graded(cost, grade).total.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("loss", [cost_sign, cost_graded])
def test_missing_labels_leave_no_trace(loss):
    cost = t(0.7, 5.0, -1.0).requires_grad_()
    label = t(1, float("nan"), -1)
    masked = loss(cost, label, mask=torch.tensor([True, False, True]))
    known = loss(cost[[0, 2]], label[[0, 2]])
    assert masked.count.item() == 2
    assert masked.total.item() == pytest.approx(known.total.item(), abs=1e-12)
    slopes = grad(masked.total, cost)[0]
    assert slopes[1].item() == 0.0
    assert slopes.isfinite().all()


def test_pairs_without_a_known_winner_are_left_out():
    chosen, rejected = t(1.0, 3.0).requires_grad_(), t(0.0, -3.0)
    known = torch.tensor([True, False])
    for loss in (bradley_terry, cost_rank):
        masked = loss(chosen, rejected, mask=known)
        assert masked.mean.item() == pytest.approx(log(1 + torch.tensor(-1.0).double().exp().item()), abs=1e-12)
        assert grad(masked.total, chosen)[0][1].item() == 0.0


@pytest.mark.parametrize("label", [0.0, 2.0, float("nan")])
def test_strange_signs_are_refused(label):
    with pytest.raises(ValueError, match=rf"\+1 \(harmful\) or -1 \(safe\), got {label}"):
        cost_sign(t(1.0, 1.0), t(1.0, label))


def test_scores_of_other_shapes_are_refused():
    column = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"chosen \(2,\), rejected \(2, 1\)"):
        bradley_terry(torch.zeros(2), column)
    with pytest.raises(ValueError, match=r"cost \(2, 1\), grade \(2,\)"):
        cost_sign(column, torch.ones(2))


def test_margin_asks_for_distance():
    chosen, rejected = t(1.5, 0.2), t(0.5, 0.4)
    with_margin = bradley_terry(chosen, rejected, margin=t(1.0, 0.0))
    assert with_margin.total.item() == pytest.approx(log(2) + 0.7981388693815918, abs=1e-9)  # softplus(0.2)


def test_invariances_of_the_ranking_term():
    generator = torch.Generator().manual_seed(6)
    chosen, rejected = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    whole = bradley_terry(chosen, rejected).mean
    shifted = bradley_terry(chosen + 3.0, rejected + 3.0).mean
    singles = [bradley_terry(a, b).mean for a, b in zip(chosen.split(1), rejected.split(1), strict=True)]
    assert shifted.item() == pytest.approx(whole.item(), abs=1e-12)
    assert (sum(singles) / 8).item() == pytest.approx(whole.item(), abs=1e-12)
    assert bradley_terry(rejected, chosen).mean.item() != pytest.approx(whole.item(), abs=1e-3)


def test_score_l2_averages_over_all_scores_of_any_shape():
    total, count = score_l2(t(1.0, 2.0), torch.full((2, 2), 3.0, dtype=torch.float64))
    assert (total.item(), count.item()) == (41.0, 6)


def test_centring_by_hand():
    first, second = t(1.5, 0.2).requires_grad_(), t(0.5, 0.4)
    found = centre(first, second)
    assert (found.total.item(), found.count.item()) == (pytest.approx(4.0 + 0.36, abs=1e-12), 2)
    assert grad(found.total, first)[0].tolist() == pytest.approx([4.0, 1.2], abs=1e-12)
    with pytest.raises(ValueError, match=r"chosen \(2,\), rejected \(2, 1\)"):
        centre(torch.zeros(2), torch.zeros(2, 1))


BORDERS = (0.0, 0.7, 2.5)


def category(cost, level, borders=BORDERS):
    """P(severity = level), as the difference of the two probabilities of reaching a level."""
    at_least = [1.0, *(1 / (1 + exp(border - cost)) for border in borders), 0.0]
    return at_least[level] - at_least[level + 1]


def test_ordinal_loss_is_that_of_explicit_category_probabilities():
    costs = [-3.0, -0.4, 0.0, 0.3, 1.1, 2.5, 6.0]
    for cost in costs:
        assert sum(category(cost, level) for level in range(4)) == pytest.approx(1.0, abs=1e-12)
    rows = [(cost, level) for cost in costs for level in range(4)]
    found = cost_ordinal(t(*(cost for cost, _ in rows)), t(*(level for _, level in rows)), t(*BORDERS))
    assert found.total.item() == pytest.approx(-sum(log(category(*row)) for row in rows), abs=1e-9)
    assert found.count.item() == 28


def test_ordinal_loss_with_one_border_is_the_sign_loss():
    cost, severity = t(0.3, -2.0, 0.7), t(1, 0, 0)
    ordinal, sign = cost_ordinal(cost, severity, t(0.0)), cost_sign(cost, 2 * severity - 1)
    assert ordinal.total.item() == pytest.approx(sign.total.item(), abs=1e-12)


def test_zero_stays_the_border_of_harm():
    """P(severity >= 1) at cost zero is one half, wherever the other borders are."""
    for borders in (BORDERS, (0.0, 5.0, 5.1)):
        assert cost_ordinal(t(0.0), t(0), t(*borders)).total.item() == pytest.approx(log(2), abs=1e-12)


def test_ordinal_gradients_of_costs_and_borders_are_those_of_finite_differences():
    cost, severity = t(-1.0, 0.2, 1.5, 4.0).requires_grad_(), t(0, 1, 2, 3)
    upper = t(0.7, 2.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c, b: cost_ordinal(c, severity, torch.cat([torch.zeros(1, dtype=b.dtype), b])).total, (cost, upper)
    )


def test_ordinal_loss_stays_finite_far_from_the_borders():
    cost = torch.tensor([90.0, -90.0, 90.0], requires_grad=True)
    found = cost_ordinal(cost, torch.tensor([0, 3, 1]), torch.tensor(BORDERS))
    assert found.total.item() == pytest.approx(90 + 92.5 + (90 - 0.7) - log(1 - exp(-0.7)), rel=1e-6)
    assert grad(found.total, cost)[0].tolist() == pytest.approx([1.0, -1.0, 1.0])


def test_missing_severities_leave_no_trace():
    cost = t(0.7, 5.0, -1.0).requires_grad_()
    severity = t(2, float("nan"), 0)
    masked = cost_ordinal(cost, severity, t(*BORDERS), mask=torch.tensor([True, False, True]))
    assert masked.total.item() == pytest.approx(-log(category(0.7, 2)) - log(category(-1.0, 0)), abs=1e-9)
    assert masked.count.item() == 2
    assert grad(masked.total, cost)[0][1].item() == 0.0


def test_what_is_no_severity_and_no_border_is_refused():
    for strange in (4.0, -1.0, 0.5, float("nan")):
        with pytest.raises(ValueError, match="severities are whole numbers from 0 to 3"):
            cost_ordinal(t(1.0), t(strange), t(*BORDERS))
    for borders in ((0.5, 1.0), (0.0, 2.0, 1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match="borders begin with 0, the border of harm, and rise"):
            cost_ordinal(t(1.0), t(0), t(*borders))

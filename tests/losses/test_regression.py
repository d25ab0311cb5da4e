import math

import pytest
import torch

from holdfast.losses.regression import masked_regression, regression_weight

NAN = math.nan
PREDICTED = [[0.2, -1.0, 0.5], [0.9, 0.3, 2.0], [0.4, 0.0, -0.7]]
LABELS = [[0.0, NAN, 1.0], [1.0, 0.25, NAN], [NAN, NAN, 0.5]]
WEIGHT = [4.0, 10.0, 2.5]


def t(values):
    return torch.tensor(values, dtype=torch.float64)


def one(kind, guess, label, delta):
    """The loss of a single known label, spelt out."""
    error = abs(guess - label)
    if kind == "squared":
        return error**2
    if kind == "huber":
        return error**2 / 2 if error <= delta else delta * (error - delta / 2)
    share = 1 / (1 + math.exp(-guess))
    return -label * math.log(share) - (1 - label) * math.log(1 - share)


@pytest.mark.parametrize("kind", ["squared", "huber", "bce"])
def test_equals_the_loop_over_known_labels(kind):
    known = [(i, k) for i in range(3) for k in range(3) if not math.isnan(LABELS[i][k])]
    expected = sum(WEIGHT[k] * one(kind, PREDICTED[i][k], LABELS[i][k], 0.15) for i, k in known)
    found = masked_regression(t(PREDICTED), t(LABELS), t(WEIGHT), kind, delta=0.15)
    assert found.total.item() == pytest.approx(expected, abs=1e-12)
    # Two known labels of the first kind, one of the second, two of the third.
    assert found.count.item() == pytest.approx(2 * 4.0 + 10.0 + 2 * 2.5, abs=1e-12)


def test_by_hand():
    """Errors 0.2, 0.1 at weight 4; 0.05 at 10; 0.5, 1.2 at 2.5: 0.2 + 0.025 + 4.225 over 23."""
    found = masked_regression(t(PREDICTED), t(LABELS), t(WEIGHT))
    assert found.mean.item() == pytest.approx(4.45 / 23, abs=1e-12)


@pytest.mark.parametrize("kind", ["squared", "huber", "bce"])
def test_missing_labels_leave_no_trace_in_the_gradient(kind):
    predicted = t(PREDICTED).requires_grad_()
    masked_regression(predicted, t(LABELS), t(WEIGHT), kind).total.backward()
    missing = t(LABELS).isnan()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[missing] == 0).all()
    assert (predicted.grad[~missing] != 0).all()


@pytest.mark.parametrize("kind", ["squared", "huber", "bce"])
def test_gradient_is_that_of_finite_differences(kind):
    predicted = t(PREDICTED).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: masked_regression(p, t(LABELS), t(WEIGHT), kind).total, predicted)


def test_a_row_or_a_batch_without_labels_counts_for_nothing():
    predicted = t(PREDICTED).requires_grad_()
    found = masked_regression(predicted, torch.full((3, 3), NAN, dtype=torch.float64), t(WEIGHT))
    assert (found.total.item(), found.count.item(), found.mean.item()) == (0.0, 0.0, 0.0)
    found.total.backward()
    assert (predicted.grad == 0).all()


def test_cutting_the_batch_changes_nothing():
    whole = masked_regression(t(PREDICTED), t(LABELS), t(WEIGHT))
    parts = [masked_regression(t(PREDICTED)[i : i + 1], t(LABELS)[i : i + 1], t(WEIGHT)) for i in range(3)]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), abs=1e-12)
    assert sum(part.count.item() for part in parts) == whole.count.item()


def test_a_rare_label_weighs_as_its_rows_and_its_variance_say():
    """One row of the second label among nine of the first, at nine times the weight: both count alike."""
    labels = torch.full((10, 2), NAN)
    labels[:9, 0], labels[9, 1] = 0.0, 0.0
    predicted = torch.ones(10, 2, requires_grad=True)
    loss = masked_regression(predicted, labels, torch.tensor([1.0, 9.0])).mean
    loss.backward()
    assert predicted.grad[:9, 0].sum() == pytest.approx(float(predicted.grad[9, 1]))


def test_scores_of_bce_are_logits_that_do_not_saturate():
    far = torch.tensor([[40.0]], requires_grad=True)
    found = masked_regression(far, torch.tensor([[0.0]]), torch.ones(1), "bce")
    found.total.backward()
    assert found.total.item() == pytest.approx(40.0)
    assert far.grad.item() == pytest.approx(1.0)


def test_half_precision_is_taken_in_float32():
    logit = 1.0078125  # exact in bfloat16; its log sigmoid is not
    found = masked_regression(torch.tensor([[logit]], dtype=torch.bfloat16), torch.ones(1, 1), torch.ones(1), "bce")
    assert found.total.item() == pytest.approx(math.log1p(math.exp(-logit)), abs=1e-7)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match=r"bce needs labels in \[0, 1\], got 0 to 4"):
        masked_regression(torch.zeros(2, 1), torch.tensor([[4.0], [0.0]]), torch.ones(1), "bce")
    with pytest.raises(ValueError, match="one positive weight per label"):
        masked_regression(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"labels \(1, 2\), weights \[1.0\]"):
        regression_weight(torch.zeros(1, 2), torch.ones(1))
    with pytest.raises(ValueError, match=r"predicted \(2, 1\), labels \(1, 2\)"):
        masked_regression(torch.zeros(2, 1), torch.zeros(1, 2), torch.ones(2))

"""Losses that turn ratings with several labels into scores, where any label of any row may be missing."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import huber_loss, logsigmoid

from holdfast.losses.reduce import Sum, over, precise, same_shape

Kind = Literal["squared", "huber", "bce"]


def masked_regression(
    predicted: Tensor, labels: Tensor, weight: Tensor, kind: Kind = "squared", delta: float = 0.1
) -> Sum:
    """The weighted loss of every known label, and the weight of the known labels: sum m a l / sum m a.

    predicted, labels: (B, K), a missing label (m = 0) is NaN; weight: (K,) positive, usually one over the variance
    of the label, so that labels of any spread count alike. `squared`: l = (y' - y)^2. `huber`: half the square up to
    a distance of `delta`, linear beyond. `bce`: `predicted` are logits and `labels` shares in [0, 1]; the sigmoid
    stands in the loss alone, so scores do not saturate. Raises `ValueError` for labels or weights outside these.

    >>> from torch import nan, tensor, zeros
    >>> masked_regression(zeros(2, 2), tensor([[1.0, nan], [0.0, 0.5]]), weight=tensor([1.0, 4.0]))
    Sum(total=tensor(2.), count=tensor(6., dtype=torch.float64))
    """
    same_shape(predicted=predicted, labels=labels)
    present = ~labels.isnan()
    known = precise(labels).where(present, 0)
    guess = precise(predicted)
    if kind == "squared":
        each = (guess - known).square()
    elif kind == "huber":
        each = huber_loss(guess, known, reduction="none", delta=delta)
    else:
        if bool(((known < 0) | (known > 1)).any()):
            raise ValueError(f"bce needs labels in [0, 1], got {float(known.min()):g} to {float(known.max()):g}")
        each = -known * logsigmoid(guess) - (1 - known) * logsigmoid(-guess)
    return Sum(over(weight.to(each) * each, present).total, regression_weight(labels, weight))


def regression_weight(labels: Tensor, weight: Tensor) -> Tensor:
    """The weight of all known labels, sum m a: what `masked_regression` counts.

    labels: (B, K), NaN where missing; weight: (K,). The result does not depend on the device, so a count announced
    from labels in memory is met exactly.

    >>> from torch import nan, tensor
    >>> float(regression_weight(tensor([[1.0, nan], [0.0, 0.5]]), tensor([1.0, 4.0])))
    6.0
    """
    if labels.shape[1:] != weight.shape or not bool((weight > 0).all()):
        raise ValueError(f"one positive weight per label: labels {tuple(labels.shape)}, weights {weight.tolist()}")
    # Whole numbers first: their sums are exact in any order.
    known = (~labels.isnan()).sum(0).cpu()
    return (known * weight.cpu().double()).sum()

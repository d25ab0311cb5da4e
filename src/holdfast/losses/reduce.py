"""Losses before division.

A loss over tokens or sequences is a sum and a count. Dividing early gives a mean of means, whose gradient
depends on how the batch was cut. Nothing is divided until every micro-batch of every process has been counted,
and only this module divides.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Sum(NamedTuple):
    """A total that carries gradient, and the number of items it covers."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The total per item; zero when nothing was counted."""
        return self.total / self.count.clamp(min=1)


def over(values: Tensor, mask: Tensor | None = None) -> Sum:
    """Sum `values` where `mask` is true; both have the same shape, no mask means everything.

    >>> over(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    Sum(total=tensor(6.), count=tensor(3))
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    if values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must agree")
    # `where` rather than a product: a not-a-number behind the mask must not reach the sum.
    return Sum(values.where(mask, values.new_zeros(())).sum(), mask.sum())


def per_sequence(values: Tensor, mask: Tensor) -> Sum:
    """Sum over sequences of each sequence's own mean; a sequence with no item counts for nothing.

    values, mask: (B, T). Short and long answers weigh the same (safe_rlhf since pull request 154).

    >>> rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    >>> float(per_sequence(rows, torch.tensor([[True, True, True], [True, False, False]])).mean)
    6.0
    """
    kept = values.where(mask, values.new_zeros(()))
    length = mask.sum(-1)
    return Sum((kept.sum(-1) / length.clamp(min=1)).sum(), (length > 0).sum())


def objective(terms: Mapping[str, Sum], counts: Mapping[str, float], weights: Mapping[str, float]) -> Tensor:
    """The number to differentiate: the weighted sum of totals, each over its count in the *whole* step.

    terms: this micro-batch; counts: items of each term over all micro-batches and processes; weights: 1 when
    not named. Summed over the micro-batches, the gradients equal those of one undivided batch.

    >>> terms = {"rank": Sum(torch.tensor(6.0), torch.tensor(3))}
    >>> float(objective(terms, counts={"rank": 12.0}, weights={"rank": 2.0}))
    1.0
    """
    missing = sorted(terms.keys() - counts.keys())
    if missing:
        raise ValueError(f"no count for the loss terms {missing}; counted were {sorted(counts)}")
    parts = [weights.get(name, 1.0) * term.total / max(float(counts[name]), 1.0) for name, term in terms.items()]
    return torch.stack([part.reshape(()) for part in parts]).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is true, as a scalar; zero when the mask is empty."""
    return over(values, mask).mean


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the masked items, and to mean zero when `shift_mean`; zero elsewhere.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 99.0])
    >>> whiten(x, torch.tensor([True, True, True, False])).tolist()
    [-1.0, 0.0, 1.0, 0.0]
    """
    mean = masked_mean(values, mask)
    total, count = over((values - mean).square(), mask)
    scaled = (values - mean) * torch.rsqrt(total / (count - 1).clamp(min=1) + 1e-8)
    return (scaled if shift_mean else scaled + mean).where(mask, values.new_zeros(()))

"""Losses before division.

A loss over tokens or sequences is a sum and a count. Dividing early gives a mean of means, whose gradient
depends on how the batch was cut. Nothing is divided until every micro-batch of every process has been
counted, and only this module divides.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Sum(NamedTuple):
    """A total that carries gradient, and the number of items it covers."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    @property
    def mean(self) -> Tensor:
        """The total per item; zero when nothing was counted."""
        return self.total / self.count.clamp(min=1)


def precise(values: Tensor) -> Tensor:
    """The same values in at least float32, where sums and logarithms are safe; float64 stays.

    >>> precise(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def same_shape(**tensors: Tensor) -> None:
    """None, or `ValueError` naming the shapes that differ: (B,) against (B, 1) would silently become (B, B).

    >>> same_shape(chosen=torch.zeros(2), rejected=torch.zeros(2, 1))
    Traceback (most recent call last):
    ValueError: shapes must be equal: chosen (2,), rejected (2, 1)
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal: {given}")


def over(values: Tensor, mask: Tensor | None = None) -> Sum:
    """Sum `values` where `mask` is true; both have the same shape, no mask means everything.

    >>> over(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    Sum(total=tensor(6.), count=tensor(3))
    """
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    return Sum(_kept(values, mask).sum(), mask.sum())


def per_sequence(values: Tensor, mask: Tensor) -> Sum:
    """Sum over sequences of each sequence's own mean; a sequence with no item counts for nothing.

    values, mask: (B, T). Short and long answers weigh the same, as in the trainer of Safe RLHF.

    >>> rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    >>> float(per_sequence(rows, torch.tensor([[True, True, True], [True, False, False]])).mean)
    6.0
    """
    length = mask.sum(-1)
    return Sum((_kept(values, mask).sum(-1) / length.clamp(min=1)).sum(), (length > 0).sum())


def objective(terms: Mapping[str, Sum], counts: Mapping[str, float], weights: Mapping[str, float]) -> Tensor:
    """The number to differentiate: the weighted sum of totals, each over its count in the *whole* step.

    terms: this micro-batch; counts: items of each term over all micro-batches and processes; weights: 1 when
    not named. Summed over the micro-batches, the gradients equal those of one undivided batch.

    >>> terms = {"rank": Sum(torch.tensor(6.0), torch.tensor(3))}
    >>> float(objective(terms, counts={"rank": 12.0}, weights={"rank": 2.0}))
    1.0
    """
    if not terms:
        raise ValueError("there is nothing to differentiate: no loss terms were given")
    missing = sorted(terms.keys() - counts.keys())
    if missing:
        raise ValueError(f"no count for the loss terms {missing}; counted were {sorted(counts)}")
    parts = [weights.get(name, 1.0) * term.total / max(float(counts[name]), 1.0) for name, term in terms.items()]
    return torch.stack([part.reshape(()) for part in parts]).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` is true, as a scalar; zero when the mask is empty.

    >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    return over(values, mask).mean


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """The population variance of `values` where `mask` is true, as a scalar; zero when the mask is empty.

    >>> masked_variance(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.)
    """
    return masked_mean((precise(values) - masked_mean(values, mask)).square(), mask)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 a perfect critic, 0 a constant one.

    Below 0 the critic is worse than a constant. Returns that do not vary leave nothing to explain: 0.

    >>> mask = torch.tensor([True, True, False])
    >>> explained_variance(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1.5, 2.5, 0.0]), mask)
    0.75
    """
    same_shape(returns=returns, values=values, mask=mask)
    error, spread = masked_variance(precise(returns) - precise(values), mask), masked_variance(returns, mask)
    return float(1 - error / spread) if spread > 0 else 0.0


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    same_shape(values=values, mask=mask)
    # `where` rather than a product: a not-a-number behind the mask must not reach the sum.
    return precise(values).where(mask, 0.0)

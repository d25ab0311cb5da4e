"""Answers drawn by another sampler: what they weigh for the policy that learns.

An engine that samples fast computes slightly other log-probabilities than the trainer, and an old one samples from an
older policy. Expectations under the policy then need the weights pi_old / pi_sampler. Their product over a long answer
explodes; one weight per token is biased but calm. So tokens are weighed, each up to a cap, and answers that are too
unlikely altogether are dropped. Where old *is* the sampler all weights are 1 and nothing is dropped: whoever takes the
sampler's log-probabilities as the old ones has the correction in the ratio already, and must not apply it twice.

Everything here is a constant to the gradient. B batch, T tokens; `mask` is true on tokens of the response.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import Sum, over, precise, same_shape

Filter = Literal["none", "product", "geometric"]
"""Which ratio of a whole answer must lie within the borders: none, the product over its tokens, or their geometric
mean, which does not grow with the length."""


class Correction(NamedTuple):
    """weights: (B, T), zero in dropped rows and outside the mask; kept: (B,) rows; numbers: means to be logged."""

    weights: Tensor
    kept: Tensor
    numbers: dict[str, Sum]


@torch.no_grad()
def correct(
    old: Tensor,
    sampler: Tensor,
    mask: Tensor,
    *,
    cap: float = 2.0,
    drop: Filter = "none",
    low: float = 0.0,
    high: float = 3.0,
) -> Correction:
    """Weights min(cap, exp(old - sampler)) per token, and which answers are kept.

    old, sampler: (B, T) log-probabilities of the trainer's policy and of the sampler. cap: truncated importance
    sampling (Ionides 2008), token by token; infinity leaves the weights as they are. drop: an answer is kept if this
    ratio of it lies in low..high. The numbers: `mismatch/weight`, `mismatch/capped` and `mismatch/kl`, k3 of sampler
    to old, over tokens; `mismatch/dropped` over answers. Raises `ValueError` for a log-probability that is not a
    number, and for borders that leave out 1.

    >>> difference = torch.tensor([[0.3, -0.1, 0.9]])
    >>> correct(difference, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)).weights
    tensor([[1.3499, 0.9048, 2.0000]])
    """
    if drop not in get_args(Filter):
        raise ValueError(f"drop must be one of {', '.join(get_args(Filter))}, got {drop!r}")
    if not (cap >= 1 and low <= 1 <= high):
        raise ValueError(f"equal policies have ratio 1: cap {cap} must be 1 or more, and low {low} <= 1 <= high {high}")
    log_ratio = _log_ratio(old, sampler, mask)
    if log_ratio.isnan().any():
        row, column = log_ratio.isnan().nonzero()[0].tolist()
        raise ValueError(f"row {row}, token {column}: trainer and sampler must both give a log-probability")
    ratio = log_ratio.clamp(-20, 20).exp()
    kept = torch.ones_like(mask[:, 0]) if drop == "none" else _within(log_ratio, mask, drop, low, high)
    weights = ratio.clamp(max=cap).where(mask & kept[:, None], 0.0)
    there = mask.any(-1)
    numbers = {
        "mismatch/weight": over(ratio.clamp(max=cap), mask),
        "mismatch/capped": over(ratio > cap, mask),
        "mismatch/kl": over(kl_k3(torch.zeros_like(log_ratio), log_ratio.clamp(-20, 20)), mask),
        "mismatch/dropped": over(~kept, there),
    }
    return Correction(weights, kept, numbers)


@torch.no_grad()
def current(logp: Tensor, sampler: Tensor, advantages: Tensor, mask: Tensor, largest: float) -> Tensor:
    """(B, 1) or (B, T) bool, as the advantages are: false where a bad answer has become too unlikely to learn from.

    A < 0 and mean over the answer of (sampler - logp) > largest: pushing such an answer down further teaches nothing
    and may break much, while good answers stay (DeepSeek-V3.2, arXiv 2512.02556, eq. 9). logp: (B, T) of the policy
    as it is now. Raises `ValueError` where shapes differ.

    >>> logp, sampler = torch.tensor([[-2.0], [-2.0]]), torch.tensor([[-1.0], [-1.0]])
    >>> mask = torch.ones(2, 1, dtype=torch.bool)
    >>> current(logp, sampler, torch.tensor([[-1.0], [1.0]]), mask, largest=0.5).tolist()
    [[False], [True]]
    """
    if advantages.shape not in (logp.shape, (len(logp), 1)):
        given = f"{tuple(advantages.shape)} with logp {tuple(logp.shape)}"
        raise ValueError(f"advantages must be (B, 1) or (B, T), got {given}")
    gone = -_mean(_log_ratio(logp, sampler, mask), mask) > largest
    return ~((advantages < 0) & gone[:, None])


def _log_ratio(of: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    """(B, T) log-ratio to the sampler, zero outside the mask."""
    same_shape(logp=of, sampler=sampler, mask=mask)
    return precise(of).where(mask, 0.0) - precise(sampler).where(mask, 0.0)


def _within(log_ratio: Tensor, mask: Tensor, drop: Filter, low: float, high: float) -> Tensor:
    ratio = (_mean(log_ratio, mask) if drop == "geometric" else log_ratio.sum(-1)).exp()
    return (low <= ratio) & (ratio <= high)


def _mean(log_ratio: Tensor, mask: Tensor) -> Tensor:
    return log_ratio.sum(-1) / mask.sum(-1).clamp(min=1)

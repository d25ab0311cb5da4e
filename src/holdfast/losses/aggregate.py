"""What is averaged: tokens, answers or prompts.

The reductions of the GRPO family differ only in what a row's tokens weigh and in what the row adds to the count:
loss = sum_it w_i l_it / sum_i c_i. Both follow from lengths alone and are fixed for all rows of an optimiser step
before it is cut, so no cut into micro-batches or processes can change the gradient.

N rows, each an answer; an empty one, which nothing is learned from, weighs and counts nothing.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.losses.reduce import Sum, precise, same_shape

Kind = Literal["token_mean", "row_mean", "token_sum_constant", "prompt_mean", "sequence_sum"]
"""token_mean: every token of the step alike (DAPO, arXiv 2503.14476). row_mean: every answer alike, by the mean of
its tokens (GRPO, arXiv 2402.03300). token_sum_constant: the sum of tokens over rows x the longest allowed answer, a
constant (Dr. GRPO, arXiv 2503.20783). prompt_mean: every prompt alike, by the mean over all tokens of its answers
(ScaleRL, arXiv 2510.13786). sequence_sum: every answer by the sum of its tokens (the surrogate of whole answers)."""


def token_weights(kind: Kind, lengths: Tensor, groups: Tensor) -> Tensor:
    """(N,) what each token of a row weighs in the numerator.

    lengths: (N,) tokens that count in each row of the optimiser step; groups: (N,) any number that the answers to one
    prompt have in common. A prompt whose answers lie in several optimiser steps is another prompt in each. Raises
    `ValueError` for an unknown kind and for shapes that differ.

    >>> token_weights("row_mean", torch.tensor([2, 4]), torch.tensor([0, 0]))
    tensor([0.5000, 0.2500])
    """
    same_shape(lengths=lengths, groups=groups)
    lengths = precise(lengths)
    match kind:
        case "row_mean":
            return _inverse(lengths)
        case "prompt_mean":
            return _inverse(_of_group(lengths, groups))
        case "token_mean" | "token_sum_constant" | "sequence_sum":
            return (lengths > 0).to(lengths)
    raise ValueError(f"no mean {kind!r}; there are {', '.join(get_args(Kind))}")


def row_counts(kind: Kind, lengths: Tensor, groups: Tensor, longest: int) -> Tensor:
    """(N,) what each row adds to the denominator; of a prompt, each of its answers brings an equal share.

    longest: tokens that an answer may have. Other arguments and errors as those of `token_weights`; token_sum_constant,
    the only one that reads longest, raises `ValueError` for an answer that has more.

    >>> row_counts("token_sum_constant", torch.tensor([2, 0, 4]), torch.tensor([0, 0, 1]), longest=5)
    tensor([5., 0., 5.])
    """
    same_shape(lengths=lengths, groups=groups)
    lengths = precise(lengths)
    there = (lengths > 0).to(lengths)
    match kind:
        case "token_mean":
            return lengths
        case "token_sum_constant":
            if (lengths > longest).any():
                raise ValueError(f"longest, the most tokens allowed, is {longest}; an answer has {int(lengths.max())}")
            return longest * there
        case "prompt_mean":
            return there * _inverse(_of_group(there, groups))
        case "row_mean" | "sequence_sum":
            return there
    raise ValueError(f"no mean {kind!r}; there are {', '.join(get_args(Kind))}")


def gather(values: Tensor, mask: Tensor, weights: Tensor, counts: Tensor) -> Sum:
    """The numerator over some rows, and their share of the denominator.

    values, mask: (B, T) losses and the tokens that count; weights, counts: (B,) as chosen from those of the step.

    >>> values, mask = torch.ones(1, 3), torch.tensor([[True, True, False]])
    >>> gather(values, mask, weights=torch.tensor([0.5]), counts=torch.tensor([1.0]))
    Sum(total=tensor(1.), count=tensor(1.))
    """
    same_shape(values=values, mask=mask)
    same_shape(weights=weights, counts=counts, rows=values[:, 0])
    return Sum((precise(values).where(mask, 0.0).sum(-1) * weights).sum(), counts.sum())


def _of_group(values: Tensor, groups: Tensor) -> Tensor:
    """(N,) in each row the sum over its group."""
    inverse = groups.unique(return_inverse=True)[1]
    return torch.zeros_like(values).index_add(0, inverse, values)[inverse]


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where there is nothing to share."""
    return values.clamp(min=1).reciprocal().where(values > 0, 0.0)

"""From K rewards to one advantage: each answer is compared with the other answers to its prompt.

P prompts, G answers to each, K objectives; rewards are (P, G, K) and NaN where an answer was not scored. Every mode is
a choice of coefficients c_k for each group, and the advantage of answer i is

    A_i = sum_k c_k (R_ik - M_k),        M_k the mean over the group's answers that objective k scored.

An objective that did not score an answer is left out of the sum, so the answer is neither paid nor punished for it;
when nothing is missing the sum is that of the weighted rewards minus their mean. An objective that scored fewer than
two answers of a group has nothing to compare and says nothing there. Standard deviations have G - 1 below.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.losses.reduce import precise


class GroupMoments(NamedTuple):
    """Rewards against the others of their group.

    centred: (P, G, K) R - M, zero where there is nothing to compare; compared: (P, G, K) where there is; mean, sd:
    (P, 1, K); count: (P, 1, K) answers scored.
    """

    centred: Tensor
    compared: Tensor
    mean: Tensor
    sd: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


def moments(rewards: Tensor) -> GroupMoments:
    """Rewards (P, G, K) against the mean of their group, over the answers that were scored.

    Raises `ValueError` for another number of dimensions and for infinite rewards.

    >>> moments(torch.tensor([[[1.0], [2.0], [float("nan")]]])).centred.flatten()
    tensor([-0.5000,  0.5000,  0.0000])
    """
    if rewards.ndim != 3:
        raise ValueError(f"rewards {tuple(rewards.shape)} must be prompts x answers x objectives")
    if rewards.isinf().any():
        raise ValueError(f"{int(rewards.isinf().sum())} rewards are infinite")
    rewards = precise(rewards)
    known = ~rewards.isnan()
    count = known.sum(1, keepdim=True)
    lowest = rewards.where(known, torch.inf).amin(1, keepdim=True).where(count > 0, 0.0)
    # Measured from the lowest, equal rewards differ by exactly nothing, whatever their size.
    above = (rewards - lowest).where(known, 0.0)
    mean = above.sum(1, keepdim=True) / count.clamp(min=1)
    compared = known & (count > 1)
    centred = (above - mean).where(compared, 0.0)
    sd = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return GroupMoments(centred, compared, lowest + mean, sd, count)


Mode = Callable[[GroupMoments, Tensor, Tensor, float], Tensor]
"""Coefficients (P, 1, K) from a group's moments, weights (K,), floors (K,) of the standard deviations, and eps."""


def sum_then_normalise(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k / (max(sd of sum_l w_l R_l, sum_l w_l f_l) + eps): GRPO on the weighted sum (arXiv 2402.03300).

    The floor of the sum is that of objectives that vary together; for one objective it is its own.

    >>> opposed = moments(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> sum_then_normalise(opposed, torch.ones(2), torch.zeros(2), eps=0.5).flatten()
    tensor([2., 2.])
    """
    summed = (weights * groups.centred).sum(-1, keepdim=True)
    rows = (groups.compared & (weights > 0)).any(-1, keepdim=True).sum(1, keepdim=True)
    sd = (summed.square().sum(1, keepdim=True) / (rows - 1).clamp(min=1)).sqrt()
    return weights * _inverse(torch.maximum(sd, _over_objectives(groups, weights * floors)) + eps)


def normalise_then_sum(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k / (max(sd_k, f_k) + eps): every objective on a scale of its own (GDPO, arXiv 2601.05242).

    >>> unequal = moments(torch.tensor([[[0.0, 0.0], [1.0, 100.0]]]))
    >>> (normalise_then_sum(unequal, torch.ones(2), torch.zeros(2), eps=0.0) * unequal.centred)[0, 1]
    tensor([0.7071, 0.7071])
    """
    return weights * _inverse(torch.maximum(groups.sd, floors) + eps)


def variance_weighted(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k / (sum_l w_l max(sd_l, f_l) + eps): never larger than `sum_then_normalise` (DVAO, arXiv 2605.25604).

    >>> opposed = moments(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> variance_weighted(opposed, torch.ones(2), torch.zeros(2), eps=0.0).flatten()
    tensor([0.7071, 0.7071])
    """
    return weights * _inverse(_over_objectives(groups, weights * torch.maximum(groups.sd, floors)) + eps)


def center(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k: prompts that are nearly solved, or hardly, weigh no more than others (Dr.GRPO, arXiv 2503.20783).

    >>> center(moments(torch.zeros(1, 2, 2)), torch.tensor([1.0, 3.0]), torch.zeros(2), eps=0.0).flatten()
    tensor([1., 3.])
    """
    return weights.expand_as(groups.sd)


def leave_one_out(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k n_k / (n_k - 1): each answer minus the mean of the n_k - 1 others (RLOO, arXiv 2402.14740).

    >>> leave_one_out(moments(torch.zeros(1, 4, 1)), torch.ones(1), torch.zeros(1), eps=0.0).flatten()
    tensor([1.3333])
    """
    return weights * groups.count / (groups.count - 1).clamp(min=1)


def max_rl(groups: GroupMoments, weights: Tensor, floors: Tensor, eps: float) -> Tensor:
    """c_k = w_k / (sum_l w_l M_l + eps): rewards that are never negative, relative to their mean.

    The rarer success is among the answers to a prompt, the more it counts. Raises `ValueError` for a negative mean.

    >>> max_rl(moments(torch.tensor([[[1.0], [0.0], [0.0], [0.0]]])), torch.ones(1), torch.zeros(1), eps=0.0).flatten()
    tensor([4.])
    """
    level = _over_objectives(groups, weights * groups.mean)
    if (level < 0).any():
        raise ValueError(f"max_rl divides by the mean reward of each group, and the lowest is {float(level.min()):.3g}")
    # Where nothing was achieved there is nothing to be relative to, for a penalty beside the rewards neither.
    return weights * _inverse(level + eps).where(level > 0, 0.0)


MODES: dict[str, Mode] = {
    "sum_then_normalise": sum_then_normalise,
    "normalise_then_sum": normalise_then_sum,
    "variance_weighted": variance_weighted,
    "center": center,
    "batch": center,  # `rescaled` is the rest
    "leave_one_out": leave_one_out,
    "max_rl": max_rl,
    "mgda": normalise_then_sum,  # weighed by `min_norm_weights`
}


def combined(groups: GroupMoments, coefficients: Tensor) -> Tensor:
    """(P, G) advantages sum_k c_k (R_k - M_k) under coefficients (P, 1, K); each group sums to zero.

    >>> combined(moments(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])), torch.tensor([[[1.0, 3.0]]]))
    tensor([[-1.,  1.]])
    """
    return (coefficients * groups.centred).sum(-1)


def effective_weights(groups: GroupMoments, coefficients: Tensor) -> Tensor:
    """(P, K) e_k = c_k sd_k, by which the standardised objectives Z_k enter: A = sum_k e_k Z_k.

    After `sum_then_normalise` that is w_k sd_k / sd_S, whatever weights were typed: an objective that hardly varies
    is not heard (arXiv 2602.05863).

    >>> loud = moments(torch.tensor([[[0.0, 0.0], [1.0, 100.0]]]))
    >>> effective_weights(loud, sum_then_normalise(loud, torch.ones(2), torch.zeros(2), eps=0.0))
    tensor([[0.0099, 0.9901]])
    """
    return (coefficients * groups.sd)[:, 0]


def standardised(groups: GroupMoments, floors: Tensor, eps: float) -> Tensor:
    """(P, G, K) Z_k = (R_k - M_k) / (max(sd_k, f_k) + eps), zero where there is nothing to compare.

    >>> standardised(moments(torch.tensor([[[0.0], [1.0]]])), torch.tensor([2.0]), eps=0.0).flatten()
    tensor([-0.2500,  0.2500])
    """
    return groups.centred * normalise_then_sum(groups, torch.ones_like(floors), floors, eps)


def rescaled(coefficients: Tensor, among: Tensor, floor: float, eps: float) -> Tensor:
    """Coefficients over the standard deviation of the advantages `among` (M,) that they gave: one scale for all groups.

    Groups without a difference must not be among them, for they would make all others larger. Nothing is centred:
    whole groups have mean zero, and to centre a part of one would turn signs.

    >>> rescaled(torch.tensor([1.0, 2.0]), among=torch.tensor([-3.0, 3.0]), floor=0.0, eps=0.0)
    tensor([0.2357, 0.4714])
    """
    spread = precise(among).std() if len(among) > 1 else among.new_zeros(())
    return coefficients * _inverse(spread.clamp(min=floor) + eps)


def conditioned(rewards: Tensor, needs: Tensor) -> Tensor:
    """(P, G, K) rewards that count only where others reach their thresholds: R_k 1[R_l >= needs_kl for all l].

    needs: (K, K), minus infinity where nothing is needed. Harder objectives are put first (GDPO, arXiv 2601.05242).
    Where the group has negative rewards, what does not count is its lowest and not 0, so that nobody gains by failing.
    Where the condition was not scored, whether it holds is unknown: NaN.

    >>> needs = torch.tensor([[-torch.inf, -torch.inf], [1.0, -torch.inf]])
    >>> conditioned(torch.tensor([[[1.0, 0.9], [0.0, 0.8]]]), needs)[..., 1]
    tensor([[0.9000, 0.0000]])
    """
    others, needed = rewards[..., None, :], needs > -torch.inf
    met = (~needed | (others >= needs)).all(-1)
    unknown = (needed & others.isnan()).any(-1)
    lowest = rewards.where(~rewards.isnan(), torch.inf).amin(1, keepdim=True).clamp(max=0.0)
    return rewards.where(met | rewards.isnan(), lowest).masked_fill(unknown, torch.nan)


def agreement(advantages: Tensor) -> Tensor:
    """|sum_k A_k| / sum_k |A_k| over the last dimension: 1 when none pull apart (GD2PO, arXiv 2606.16771).

    Advantages that are all zero do not pull apart.

    >>> agreement(torch.tensor([[1.0, 3.0], [1.0, -3.0], [0.0, 0.0]]))
    tensor([1.0000, 0.5000, 1.0000])
    """
    size = advantages.abs().sum(-1)
    return (advantages.sum(-1).abs() / size).where(size > 0, 1.0)


def min_norm_weights(gram: Tensor) -> Tensor:
    """(K,) weights, none negative and of sum 1, of the shortest vector in the convex hull of K gradients.

    gram: (K, K) their inner products. A step along that vector worsens no objective, to first order (MGDA: Desideri
    2012; Sener and Koltun, arXiv 1810.04650); for two, alpha = clip((g2 - g1) g2 / |g1 - g2|^2, 0, 1). Exact for any K
    (Wolfe 1976). An objective without a gradient has nothing to say and gets 0; without any, all weigh the same.

    >>> min_norm_weights(torch.tensor([[1.0, -0.5], [-0.5, 1.25]]))
    tensor([0.5385, 0.4615])
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.isfinite().all():
        raise ValueError(f"inner products of K gradients must be a finite (K, K) table, got {tuple(gram.shape)}")
    lengths = gram.diagonal().double()
    speaking = (lengths > 0).nonzero().flatten()
    if not len(speaking):
        return torch.full_like(gram[0], 1 / len(gram))
    inner = gram.double()[speaking][:, speaking] / lengths.max()
    return torch.zeros_like(gram[0]).index_copy(0, speaking, _shortest(inner).to(gram))


def _shortest(inner: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Wolfe's algorithm: a corral of vectors whose shortest affine combination lies inside, until none is beyond it."""
    weights = torch.zeros_like(inner[0])
    corral = [int(inner.diagonal().argmin())]
    weights[corral] = 1.0
    before = torch.inf
    while True:
        products = inner @ weights
        square, nearest = float(weights @ products), int(products.argmin())
        # Every round is shorter than the one before; when rounding makes it not so, this is as short as it gets.
        if products[nearest] >= square - tolerance or square >= before:
            return weights
        before = square
        corral.append(nearest)
        while (free := _affine(inner[corral][:, corral])).min() <= tolerance:
            # Go towards it until the first weight is used up, and leave that vector out.
            own = weights[corral]
            share = torch.where(free <= tolerance, own / (own - free), torch.inf)
            weights[corral] = own + share.min() * (free - own)
            weights[corral.pop(int(share.argmin()))] = 0.0
        weights[corral] = free


def _affine(inner: Tensor) -> Tensor:
    """Weights of sum 1, of any sign, of the shortest combination."""
    size = len(inner)
    system = torch.ones(size + 1, size + 1, dtype=inner.dtype)
    system[:size, :size], system[size, size] = inner, 0.0
    target = torch.eye(size + 1, dtype=inner.dtype)[:, size:]
    return torch.linalg.lstsq(system, target, driver="gelsd").solution[:size, 0]


def _inverse(values: Tensor) -> Tensor:
    # Only where nothing varies is there a zero, and then there is nothing to divide.
    return values.reciprocal().where(values > 0, 0.0)


def _over_objectives(groups: GroupMoments, values: Tensor) -> Tensor:
    """(P, 1, 1) the sum of values (P, 1, K) or (K,) over the objectives that compare something in the group."""
    return values.expand_as(groups.sd).where(groups.count > 1, 0.0).sum(-1, keepdim=True)

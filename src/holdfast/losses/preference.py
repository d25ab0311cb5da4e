"""Losses that turn comparisons and safety labels into scores.

A score is known only up to a constant until something fixes its zero. For costs that is the label of each
single answer: "harmful" says that it costs more than a virtual answer on the border of safety, whose cost is
zero (Safe RLHF, arXiv 2310.12773). Every label may be missing; `mask` is true where it is known.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from holdfast.losses.reduce import Sum, over, precise, same_shape


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, mask: Tensor | None = None) -> Sum:
    """-log sigmoid(chosen - rejected - margin), summed over the pairs that `mask` knows the winner of.

    chosen, rejected: (B,) scores of the preferred and the other answer; margin: (B,) distance asked for
    (Llama 2, arXiv 2307.09288, eq. 2), none by default.

    >>> bradley_terry(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])).mean  # undecided: log 2
    tensor(0.6931)
    """
    same_shape(chosen=chosen, rejected=rejected)
    distance = precise(chosen) - precise(rejected)
    return over(-logsigmoid(distance if margin is None else distance - margin), mask)


def centre(chosen: Tensor, rejected: Tensor) -> Sum:
    """(chosen + rejected)^2, summed over the pairs: draws the scores of a pair to opposite sides of zero.

    chosen, rejected: (B,). Comparisons leave the level of scores open; a small weight on this term fixes it without
    a pull on the difference (Eisenstein et al., arXiv 2312.09244).

    >>> centre(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 2.0])).total
    tensor(25.)
    """
    same_shape(chosen=chosen, rejected=rejected)
    return over((precise(chosen) + precise(rejected)).square())


def cost_rank(more: Tensor, less: Tensor, mask: Tensor | None = None) -> Sum:
    """The Bradley-Terry loss of costs, which rank upwards: the more harmful answer must cost more.

    more, less: (B,) costs of the more and of the less harmful answer (Safe RLHF, arXiv 2310.12773, eq. 6).

    >>> cheap, dear = torch.tensor([-1.0]), torch.tensor([2.0])
    >>> bool(cost_rank(more=dear, less=cheap).total < cost_rank(more=cheap, less=dear).total)
    True
    """
    return bradley_terry(more, less, mask=mask)


def cost_sign(cost: Tensor, sign: Tensor, mask: Tensor | None = None) -> Sum:
    """-log sigmoid(sign cost), summed over the labelled answers: harmful above zero, safe below.

    cost: (N,); sign: (N,) +1 harmful, -1 safe (data sets often store the negative). Safe RLHF (arXiv
    2310.12773, eq. 6) adds both members of a pair: over a batch of N = 2B answers that is twice the mean, a
    weight of 2. Raises `ValueError` for any other known sign; 0 and 1 in place of -1 and +1 would silently
    lose the safe half.

    >>> cost_sign(torch.tensor([3.0, -3.0]), torch.tensor([1.0, -1.0])).mean  # both on their own side
    tensor(0.0486)
    """
    known = sign if mask is None else sign[mask]
    if not (known.abs() == 1).all():
        strange = known[known.abs() != 1][0].item()
        raise ValueError(f"a sign must be +1 (harmful) or -1 (safe), got {strange}; mask out missing labels")
    return cost_graded(cost, sign, mask)


def cost_graded(cost: Tensor, grade: Tensor, mask: Tensor | None = None) -> Sum:
    """-log sigmoid(grade cost), summed over the labelled answers: severe labels pull harder.

    cost: (N,); grade: (N,) minus the harmless rate, -3 (carefully harmless) to 3 (extremely harmful). The
    pull at cost zero is grade/2; grade 0, a bare refusal, gives log 2 and pulls nowhere (Safe RLHF-V, arXiv
    2503.17682).

    >>> cost_graded(torch.tensor([5.0]), torch.tensor([0])).total
    tensor(0.6931)
    """
    same_shape(cost=cost, grade=grade)
    if mask is not None:
        # Not-a-number stands for a missing label; unless removed, its cost would get a gradient of the same.
        grade = grade.where(mask, 0)
    return over(-logsigmoid(precise(grade) * precise(cost)), mask)


def cost_ordinal(cost: Tensor, severity: Tensor, borders: Tensor, mask: Tensor | None = None) -> Sum:
    """-log P(severity), summed over the labelled answers, with P(severity >= j) = sigmoid(cost - b_j).

    cost: (N,); severity: (N,) whole numbers 0 (safe) .. J; borders: (J,) rising b_1 = 0 < b_2 < .. < b_J, so that
    zero stays the border of harm and the cost of an answer follows its severity (cumulative links: McCullagh,
    "Regression Models for Ordinal Data", 1980). With one border this is `cost_sign`. Raises `ValueError` for borders
    or severities outside these.

    >>> borders = torch.tensor([0.0, 1.0, 2.0])
    >>> cost_ordinal(torch.tensor([-4.0, 1.5, 6.0]), torch.tensor([0, 2, 3]), borders).mean  # each in its place
    tensor(0.4810)
    """
    same_shape(cost=cost, severity=severity)
    if bool(borders[0] != 0) or not bool((borders.diff() > 0).all()):
        raise ValueError(f"borders begin with 0, the border of harm, and rise; got {borders.tolist()}")
    if mask is not None:
        severity = severity.where(mask, 0)
    level = severity.long()
    if not bool(((level == severity) & (level >= 0) & (level <= len(borders))).all()):
        raise ValueError(f"severities are whole numbers from 0 to {len(borders)}, got {severity.tolist()}")
    edges = pad(precise(borders), (1, 0), value=-torch.inf)
    edges = pad(edges, (0, 1), value=torch.inf)
    low, high = edges[level], edges[level + 1]
    # sigmoid(c - low) - sigmoid(c - high), whose logarithm would be lost far from the borders, as a product.
    inside = logsigmoid(precise(cost) - low) + logsigmoid(high - precise(cost)) + torch.log1p(-torch.exp(low - high))
    return over(-inside, mask)


def score_l2(*scores: Tensor) -> Sum:
    """The squares of all `scores`, of any shapes, as one sum: a light spring towards zero.

    >>> score_l2(torch.tensor([1.0, 2.0]), torch.tensor([3.0])).mean
    tensor(4.6667)
    """
    return over(torch.cat([precise(score).flatten() for score in scores]).square())

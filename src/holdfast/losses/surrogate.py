"""Losses whose gradient improves a policy and its critic.

Losses per element come back undivided, for `reduce.over` (token mean) or `reduce.per_sequence` (every answer
weighs the same) to gather. Advantages and whatever is called old are constants.
"""

import torch
from torch import Tensor

from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import Sum, over, precise, same_shape


def clipped_ratio(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float = 0.2, clip_high: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip_high) A) per token, with rho = exp(logp - old_logp).

    logp, old_logp: (B, T); advantages: (B, T), or (B, 1) for one per answer. PPO, arXiv 1707.06347, eq. 7; a
    `clip_high` of its own widens the upper side (DAPO, arXiv 2503.14476, eq. 10). Given its own
    log-probabilities as old ones it is the on-policy gradient.

    >>> twice = torch.tensor([2.0, 2.0]).log()
    >>> clipped_ratio(twice, torch.zeros(2), torch.tensor([1.0, -1.0]))
    tensor([-1.2000,  2.0000])
    """
    advantages = advantages.detach()
    ratio = (precise(logp) - precise(old_logp).detach()).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, clipped * advantages)


@torch.no_grad()
def ratio_metrics(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> dict[str, Sum]:
    """`clip_fraction`, the share of tokens whose gradient the clip cuts, and `approx_kl`, k3 of old to new.

    A ratio beyond the border counts only where the clip binds: above for a positive advantage, below for a
    negative one.

    >>> ratio, advantages = torch.tensor([2.0, 2.0]), torch.tensor([1.0, -1.0])
    >>> metrics = ratio_metrics(ratio.log(), torch.zeros(2), advantages, torch.tensor([True, True]))
    >>> metrics["clip_fraction"].mean
    tensor(0.5000)
    """
    ratio = (precise(logp) - precise(old_logp)).exp()
    above = (ratio > 1 + (clip if clip_high is None else clip_high)) & (advantages > 0)
    below = (ratio < 1 - clip) & (advantages < 0)
    return {
        "clip_fraction": over(above | below, mask),
        "approx_kl": over(kl_k3(precise(old_logp), precise(logp)), mask),
    }


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 5.0) -> Tensor:
    """0.5 max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2) per element.

    values: the critic now; old_values: when the answers were collected; returns: its targets G. The larger of
    the two errors counts, so moving far never pays a critic (the clipped value loss of PPO; Safe RLHF, arXiv
    2310.12773, uses clip 5).

    >>> clipped_value(torch.tensor([-7.0]), torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([24.5000])
    """
    values, old_values, returns = precise(values), precise(old_values).detach(), precise(returns).detach()
    clipped = values.clamp(old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def reinforce(sequence_logp: Tensor, advantages: Tensor) -> Sum:
    """-A log pi(y|x) summed over N whole answers, whose gradient is the score-function estimate.

    sequence_logp: (N,) log-probability of each answer, summed over its tokens; advantages: (N,).

    >>> reinforce(torch.tensor([-2.0, -5.0]), torch.tensor([-2.0, 2.0])).mean
    tensor(3.)
    """
    same_shape(sequence_logp=sequence_logp, advantages=advantages)
    return over(-advantages.detach() * precise(sequence_logp))

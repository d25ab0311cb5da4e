"""Losses whose gradient improves a policy and its critic.

Losses per element come back undivided, for `reduce.over` (token mean) or `reduce.per_sequence` (every answer
weighs the same) to gather. Advantages and whatever is called old are constants.
"""

import torch
from torch import Tensor

from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import Sum, over, precise, same_shape


def clipped_ratio(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    *,
    dual_clip: float | None = None,
    log_ratio_clamp: float = 20.0,
) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip_high) A) per token, with rho = exp(logp - old_logp).

    logp, old_logp: (B, T); advantages: (B, T), or (B, 1) for one per answer. PPO, arXiv 1707.06347, eq. 7; a
    `clip_high` of its own widens the upper side (DAPO, arXiv 2503.14476, eq. 10). A `dual_clip` c > 1 bounds
    the loss of a bad token (A < 0) by -c A, however likely it has become (arXiv 1912.09729; with c above
    1 + clip_high it equals the two-sided clip of INTELLECT-2, arXiv 2505.07291, at delta = c). The log-ratio is
    clamped to +-log_ratio_clamp, so that one token cannot overflow the sum; no gradient passes beyond it. Given
    its own log-probabilities as old ones it is the on-policy gradient.

    >>> twice = torch.tensor([2.0, 2.0]).log()
    >>> clipped_ratio(twice, torch.zeros(2), torch.tensor([1.0, -1.0]))
    tensor([-1.2000,  2.0000])
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is a ratio from which bad tokens are cut and must be above 1, got {dual_clip}")
    advantages = advantages.detach()
    ratio = _log_ratio(logp, old_logp, log_ratio_clamp).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


@torch.no_grad()
def ratio_metrics(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    *,
    dual_clip: float | None = None,
    log_ratio_clamp: float = 20.0,
) -> dict[str, Sum]:
    """`clip_fraction`, the share of tokens whose gradient the clip cuts, and `approx_kl`, k3 of old to new.

    A ratio beyond the border counts only where the clip binds: above for a positive advantage, below for a
    negative one. Tokens beyond the clamp of the log-ratio count as cut. With a `dual_clip` the bad tokens that
    it cuts are counted apart, as `dual_clip_fraction`. Arguments as those of `clipped_ratio`.

    >>> ratio, advantages = torch.tensor([2.0, 2.0]), torch.tensor([1.0, -1.0])
    >>> metrics = ratio_metrics(ratio.log(), torch.zeros(2), advantages, torch.tensor([True, True]))
    >>> metrics["clip_fraction"].mean
    tensor(0.5000)
    """
    log_ratio = _log_ratio(logp, old_logp, log_ratio_clamp)
    ratio = log_ratio.exp()
    above = (ratio > 1 + (clip if clip_high is None else clip_high)) & (advantages > 0)
    below = (ratio < 1 - clip) & (advantages < 0)
    cut = above | below | (log_ratio.abs() >= log_ratio_clamp)
    numbers = {"approx_kl": over(kl_k3(torch.zeros_like(log_ratio), log_ratio), mask)}
    if dual_clip is not None:
        dual = (ratio > dual_clip) & (advantages < 0)
        numbers["dual_clip_fraction"] = over(dual, mask)
        cut = cut & ~dual
    return {"clip_fraction": over(cut, mask), **numbers}


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = 5.0) -> Tensor:
    """0.5 max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2) per element.

    values: the critic now; old_values: when the answers were collected; returns: its targets G. The larger of
    the two errors counts, so moving far never pays a critic (the clipped value loss of PPO; Safe RLHF, arXiv
    2310.12773, uses clip 5). Without a clip it is half the squared error.

    >>> clipped_value(torch.tensor([-7.0]), torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([24.5000])
    """
    values, old_values, returns = precise(values), precise(old_values).detach(), precise(returns).detach()
    error = (values - returns).square()
    if clip is None:
        return 0.5 * error
    clipped = values.clamp(old_values - clip, old_values + clip)
    return 0.5 * torch.maximum(error, (clipped - returns).square())


def reinforce(sequence_logp: Tensor, advantages: Tensor) -> Sum:
    """-A log pi(y|x) summed over N whole answers, whose gradient is the score-function estimate.

    sequence_logp: (N,) log-probability of each answer, summed over its tokens; advantages: (N,).

    >>> reinforce(torch.tensor([-2.0, -5.0]), torch.tensor([-2.0, 2.0])).mean
    tensor(3.)
    """
    same_shape(sequence_logp=sequence_logp, advantages=advantages)
    return over(-advantages.detach() * precise(sequence_logp))


def _log_ratio(logp: Tensor, old_logp: Tensor, clamp: float) -> Tensor:
    return (precise(logp) - precise(old_logp).detach()).clamp(-clamp, clamp)

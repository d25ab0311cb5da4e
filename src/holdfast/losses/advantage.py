"""How much better a token, or a whole answer, did than expected.

Everything here is a constant to the policy's gradient. B batch, T tokens, P prompts, K answers per prompt;
`mask` is true on the tokens of the response.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from holdfast.losses.mask import ends
from holdfast.losses.reduce import Sum, masked_mean, masked_variance, over, precise, same_shape


class TokenRewards(NamedTuple):
    """(B, T) rewards, zero outside the response; and how many of its tokens the clamp changed."""

    rewards: Tensor
    clamped: Sum


def token_rewards(
    kl: Tensor, score: Tensor, mask: Tensor, coefficient: float | Tensor, clamp: float | None = None
) -> TokenRewards:
    """coefficient * kl on each response token, plus the answer's score on its last one, clamped to +-clamp.

    kl: (B, T) log-ratio to the reference; score: (B,); coefficient: a number, or (B, 1). Safe RLHF (arXiv
    2310.12773) splits the penalty over both streams: coefficient is -beta for the reward and +beta for the cost. A
    row without response tokens earns nothing, for there is no token to credit.

    >>> mask = torch.tensor([[True, True, False]])
    >>> token_rewards(torch.ones(1, 3), torch.tensor([2.0]), mask, coefficient=-0.5).rewards
    tensor([[-0.5000,  1.5000,  0.0000]])
    """
    penalty = (coefficient * precise(kl)).where(mask, 0.0)
    shaped = torch.where(ends(mask), penalty + precise(score)[:, None], penalty)
    bounded = shaped if clamp is None else shaped.clamp(-clamp, clamp)
    return TokenRewards(bounded, over(bounded != shaped, mask))


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    tail: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(B, T) advantages and (B, T) returns of each row's response tokens, as if no other column existed.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, returns A + V (GAE, arXiv
    1506.02438, eq. 16). lam: one number, or (B,) one per answer. The answer ends after its last token: nothing
    is expected there, whatever a critic says about padding, unless tail, (B,), gives the value of going on,
    for an answer that was cut short. Raises `ValueError` where shapes differ from these.

    >>> mask = torch.tensor([[False, True, True, False]])
    >>> rewards = torch.tensor([[9.0, 0.0, 1.0, 9.0]])
    >>> gae(rewards, torch.zeros(1, 4), mask, lam=0.5)[0].tolist()
    [[0.0, 0.5, 1.0, 0.0]]
    """
    same_shape(rewards=rewards, values=values, mask=mask)
    rewards, values = precise(rewards), precise(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    if isinstance(lam, Tensor):
        same_shape(lam=lam, rows=next_value)
        lam = lam.to(values)
    if tail is not None:
        same_shape(tail=tail, rows=next_value)
        next_value = tail.to(values)
    columns = []
    for reward, value, inside in zip(
        reversed(rewards.unbind(1)), reversed(values.unbind(1)), reversed(mask.unbind(1)), strict=True
    ):
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        next_value = torch.where(inside, value, next_value)
        next_advantage = torch.where(inside, advantage, next_advantage)
        columns.append(next_advantage)
    advantages = torch.stack(columns[::-1], dim=1).where(mask, 0.0)
    return advantages, (advantages + values).where(mask, 0.0)


def length_adaptive(lengths: Tensor, alpha: float, floor: float = 0.0) -> Tensor:
    """(B,) lambda = max(floor, 1 - 1/(alpha l)) of each answer of l tokens, for `gae`.

    VAPO, arXiv 2504.05118: the sum of the weights lambda^t grows with the answer, as alpha l, so that
    what the last token earned still reaches the first. Below 1/alpha tokens nothing is left of it: `floor`
    keeps short answers from that. Raises `ValueError` unless alpha > 0 and 0 <= floor <= 1.

    >>> length_adaptive(torch.tensor([20, 100, 500]), alpha=0.05)
    tensor([0.0000, 0.8000, 0.9600])
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must lie between 0 and 1, got {floor}")
    return (1 - (alpha * precise(lengths)).reciprocal()).clamp(min=floor)


def normalise(values: Tensor, mask: Tensor, clip: float | None = None, among: Tensor | None = None) -> Tensor:
    """(B, T) values with mean 0 and variance 1 over the mask, then clipped to +-clip; zero outside.

    (A - mean) / sqrt(var + 1e-6) with the population variance, as in PPO-max (arXiv 2307.04964). Of several streams
    normalise the mixture: each on its own would rescale the multipliers. among: (N,) the values whose mean and
    variance count, where those of other processes count too.

    >>> normalise(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]]), clip=0.5)
    tensor([[-0.5000,  0.5000,  0.0000]])
    """
    known, where = (values, mask) if among is None else (among, torch.ones_like(among, dtype=torch.bool))
    spread = (masked_variance(known, where) + 1e-6).sqrt()
    scaled = ((precise(values) - masked_mean(known, where)) / spread).where(mask, 0.0)
    return scaled if clip is None else scaled.clamp(-clip, clip)


def leave_one_out(returns: Tensor, k: int) -> Tensor:
    """(P*K,) each return minus the mean return of the k - 1 other answers to the same prompt.

    RLOO, arXiv 2402.14740. returns: (P*K,), the answers to one prompt standing together. Raises `ValueError`
    for k below 2, where there is no other answer, and for a length that k does not divide.

    >>> leave_one_out(torch.tensor([1.0, 3.0, 5.0, 5.0]), k=2)
    tensor([-2.,  2.,  0.,  0.])
    """
    if k < 2:
        raise ValueError(f"leave-one-out needs other answers to the prompt: k must be at least 2, got {k}")
    if returns.ndim != 1 or len(returns) % k:
        raise ValueError(f"returns {tuple(returns.shape)} are no whole groups of {k} answers")
    groups = precise(returns).view(-1, k)
    others = (groups.sum(-1, keepdim=True) - groups) / (k - 1)
    return (groups - others).flatten()


def overlong(lengths: Tensor, limit: int, cache: float) -> Tensor:
    """(N,) penalty of each answer for coming near the limit of length: 0 up to limit - cache tokens, -1 at the limit.

    clip((limit - cache - length) / cache, -1, 0), the soft punishment of DAPO, arXiv 2503.14476, eq. 13. Raises
    `ValueError` unless 0 < cache <= limit.

    >>> overlong(torch.tensor([16, 17, 20, 21]), limit=20, cache=4)
    tensor([ 0.0000, -0.2500, -1.0000, -1.0000])
    """
    if not 0 < cache <= limit:
        raise ValueError(f"cache is a part of the limit of {limit} tokens, above 0 and up to {limit}, got {cache}")
    return ((limit - cache - precise(lengths)) / cache).clamp(-1, 0)


def mix(reward: Tensor, costs: Mapping[str, Tensor], multipliers: Mapping[str, float]) -> Tensor:
    """(A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j): the Lagrangian's advantage, of bounded scale.

    reward: advantages of any shape; costs: one of the same shape per constraint; multipliers: lambda_j >= 0
    under the same names (Safe RLHF, arXiv 2310.12773). With all multipliers zero the reward comes back bit
    for bit.

    >>> mix(torch.tensor([1.0]), {"harm": torch.tensor([2.0])}, {"harm": 3.0})  # (1 - 6) / 4
    tensor([-1.2500])
    """
    if costs.keys() != multipliers.keys():
        raise ValueError(f"costs {sorted(costs)} and multipliers {sorted(multipliers)} must share their names")
    wrong = {name: value for name, value in multipliers.items() if not 0 <= value < math.inf}
    if wrong:
        raise ValueError(f"multipliers must be finite and not negative, got {wrong}")
    mixed = reward
    for name, cost in costs.items():
        mixed = mixed - multipliers[name] * cost
    return mixed / (1 + sum(multipliers.values()))

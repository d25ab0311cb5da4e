"""What a token's advantage weighs once the policy has moved away from the one that sampled: the losses around GRPO.

Each is a function of the ratio rho = exp(logp - old) and of the advantage A. Its `kind` is the form of that
function, its `level` says whose ratio counts: the token's own, or that of the whole answer. What is then averaged is
another question (`aggregate`). At rho = 1 every kind has the gradient of -A logp (REINFORCE), whatever its value there:
they differ only in how far they trust a sample that the policy has left behind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import Sum, over, precise, same_shape
from holdfast.losses.surrogate import clipped_ratio

Kind = Literal["clip", "cispo", "sapo", "gmpo", "vespo", "dppo_tv"]
Level = Literal["token", "sequence"]

METRICS = ("approx_kl", "ratio", "clip_fraction", "clip_fraction/good", "clip_fraction/bad")
"""The names of `weighted_metrics`."""

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to plus and minus this, so that one token cannot overflow the sum; beyond it no gradient."""


@dataclass(frozen=True)
class Shape:
    """Which loss: its kind, its level, and the numbers that this kind reads; it ignores those of the others.

    Raises `ValueError` for an unknown name, for `level="sequence"` with a kind that has a level of its own (gmpo,
    vespo: the answer; dppo_tv: the token), and for a `ratio_cap` below 1, which would scale every gradient.
    """

    kind: Kind = "clip"
    level: Level = "token"
    clip: float = 0.2
    """clip: how far the ratio may fall below 1; about 3e-4 for answers (GSPO), 2e-3 (LUSPO)."""
    clip_high: float | None = None
    """clip: how far it may rise above 1; as far as `clip` if not given. DAPO 0.28, GSPO 4e-4, LUSPO 2.5e-3."""
    dual_clip: float | None = None
    """clip: most that a bad token weighs; 3 is usual, 4 as the `delta` of INTELLECT-2."""
    ratio_cap: float = 5.0
    """cispo: the largest ratio, absolute and no distance from 1."""
    temperatures: tuple[float, float] = (1.0, 1.05)
    """sapo: how steeply trust fades for good tokens, and for the others."""
    log_clip: float = 0.4
    """gmpo: how far a token's log-ratio may go."""
    gamma: tuple[tuple[float, float], tuple[float, float]] = ((2.0, 3.0), (3.0, 2.0))
    """vespo: exponent and decay for good answers, and for the others."""
    largest_move: float = 0.2
    """dppo_tv: how far a token's probability may move the way its advantage points."""
    pull: float = 1e-3
    """dppo_tv: weight of the squared log-ratio."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.level not in get_args(Level):
            known = f"{', '.join(get_args(Kind))} at level {' or '.join(get_args(Level))}"
            raise ValueError(f"no loss {self.kind!r} at level {self.level!r}; there are {known}")
        if self.level == "sequence" and self.kind in ("gmpo", "vespo", "dppo_tv"):
            raise ValueError(f"{self.kind} has a level of its own; leave level at 'token', got {self.level!r}")
        if not self.ratio_cap >= 1:
            raise ValueError(f"ratio_cap is an absolute ratio of at least 1, got {self.ratio_cap}; 5 is usual")


def weighted(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """(B, T) the loss of each token, to be minimised and not yet divided; zero outside the mask.

    logp, old: (B, T) log-probabilities now and when sampled; advantages: (B, 1), or (B, T); mask: (B, T) true on
    tokens that count, behind which anything may stand. Only logp carries gradient. Raises `ValueError` where shapes
    differ from these.

    >>> ratio, mask = torch.tensor([[1.0, 1.5]]), torch.tensor([[True, True]])
    >>> weighted(ratio.log(), torch.zeros(1, 2), torch.tensor([[2.0]]), mask, Shape(clip=0.2))
    tensor([[-2.0000, -2.4000]])
    """
    same_shape(logp=logp, old=old, mask=mask)
    if logp.ndim != 2 or advantages.shape not in (logp.shape, (len(logp), 1)):
        given = f"logp {tuple(logp.shape)}, advantages {tuple(advantages.shape)}"
        raise ValueError(f"logp must be (B, T) and advantages (B, 1) or (B, T), got {given}")
    logp, old, advantages = (precise(each).where(mask, 0.0) for each in (logp, old.detach(), advantages.detach()))
    return _LOSSES[shape.kind](_Tokens(logp, old, advantages, mask), shape)


@torch.no_grad()
def weighted_metrics(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, shape: Shape) -> dict[str, Sum]:
    """The mean `ratio`, `approx_kl` (k3 of old to new), and `clip_fraction`, the share of tokens left without gradient.

    `clip_fraction/good` and `clip_fraction/bad` are its parts of positive and of negative advantage, which add up to
    it. Whatever the kind, a token counts as cut when its own advantage cannot reach the policy any more; all are means
    over the mask. Arguments as those of `weighted`.

    >>> ratio, advantages = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    >>> metrics = weighted_metrics(ratio.log(), torch.zeros(1, 2), advantages, advantages != 0, Shape())
    >>> metrics["clip_fraction/good"].mean
    tensor(0.5000)
    """
    log_ratio = _clamped(precise(logp).where(mask, 0.0) - precise(old).where(mask, 0.0))
    good, bad = advantages > 0, advantages < 0
    cut = _slope(logp, old, advantages, mask, shape) == 0
    return {
        "approx_kl": over(kl_k3(torch.zeros_like(log_ratio), log_ratio), mask),
        "ratio": over(log_ratio.exp(), mask),
        "clip_fraction": over(cut & (good | bad), mask),
        "clip_fraction/good": over(cut & good, mask),
        "clip_fraction/bad": over(cut & bad, mask),
    }


class _Tokens(NamedTuple):
    """(B, T) each, with zeros behind the mask."""

    logp: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """(B, T) clamped log-ratio of each token."""
        return _clamped(self.logp - self.old)

    def at(self, level: Level) -> Tensor:
        """(B, T) the log-ratio that counts for each token."""
        return self.log_ratio if level == "token" else self.shared(self.log_ratio)

    def shared(self, log_ratio: Tensor) -> Tensor:
        """(B, T) in each column the row's mean log-ratio, with the token's own gradient.

        GSPO-token (arXiv 2507.18071, eq. 14): where the whole row has one advantage the gradients add up to those of
        the mean itself, and each of its tokens brings 1/length of them.
        """
        mean = log_ratio.sum(-1, keepdim=True) / self.mask.sum(-1, keepdim=True).clamp(min=1)
        return mean.detach() + (log_ratio - log_ratio.detach())

    def of_sign(self, good: float, other: float) -> Tensor:
        """(B, T) one number where the advantage is positive, and the other one elsewhere."""
        return torch.full_like(self.logp, other).masked_fill(self.advantages > 0, good)


def _clip(tokens: _Tokens, shape: Shape) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip_high) A).

    PPO (arXiv 1707.06347), GRPO (arXiv 2402.03300), DAPO (arXiv 2503.14476); with the ratio of answers GSPO (arXiv
    2507.18071), whose reduction is that of rows, and LUSPO (arXiv 2602.05261), which sums over the tokens of each row.
    """
    log_ratio, old = tokens.at(shape.level), torch.zeros_like(tokens.old)
    return clipped_ratio(log_ratio, old, tokens.advantages, shape.clip, shape.clip_high, dual_clip=shape.dual_clip)


def _cispo(tokens: _Tokens, shape: Shape) -> Tensor:
    """-sg(min(rho, ratio_cap)) A logp: the weight is bounded, and no token loses its gradient.

    CISPO (arXiv 2506.13585) in the form of ScaleRL (arXiv 2510.13786): one border, above, as an absolute ratio.
    """
    weight = tokens.at(shape.level).exp().clamp(max=shape.ratio_cap).detach()
    return -weight * tokens.advantages * tokens.logp


def _sapo(tokens: _Tokens, shape: Shape) -> Tensor:
    """-f(rho) A with f(rho) = 4 / tau * sigmoid(tau (rho - 1)): trust fades instead of ending at a border.

    SAPO, arXiv 2511.20347. Its slope f' is 1 at rho = 1, while f(1) = 2 / tau.
    """
    steepness = tokens.of_sign(*shape.temperatures)
    gate = 4 / steepness * torch.sigmoid(steepness * tokens.at(shape.level).expm1())
    return -gate * tokens.advantages


def _gmpo(tokens: _Tokens, shape: Shape) -> Tensor:
    """-A exp(mean over the answer of log rho, each bounded by log_clip on the side that the advantage pushes to).

    GMPO (arXiv 2507.20673): the geometric mean of ratios clipped one by one, so that one outlier costs its own
    gradient and not that of the answer. Tokens carry gradient as in GSPO-token.
    """
    log_ratio, border = tokens.log_ratio, shape.log_clip
    bounded = torch.where(tokens.advantages > 0, log_ratio.clamp(max=border), log_ratio.clamp(min=-border))
    return -tokens.advantages * tokens.shared(bounded).exp()


def _vespo(tokens: _Tokens, shape: Shape) -> Tensor:
    """-sg(phi(w)) A logp with phi(w) = e^decay w^exponent e^(-decay w), w being the ratio of the whole answer.

    VESPO, arXiv 2602.10693: w is the product of all tokens' ratios, not their mean, and phi(1) = 1 is near the top.
    For answers of another sampler give its log-probabilities as old: w then holds both distances.
    """
    (power, decay), (other_power, other_decay) = shape.gamma
    k, c = tokens.of_sign(power, other_power), tokens.of_sign(decay, other_decay)
    log_w = _clamped(tokens.log_ratio.sum(-1, keepdim=True))
    phi = (c + k * log_w - c * log_w.exp()).exp().detach()
    return -phi * tokens.advantages * tokens.logp


def _dppo_tv(tokens: _Tokens, shape: Shape) -> Tensor:
    """-rho A, or nothing of it once the probability itself moved by more than largest_move the way A points.

    DPPO with the binary total variation (arXiv 2602.04879): a rare token may double its probability, a frequent one
    may not. Beside it stands pull (log rho)^2, for cut tokens too, which has no gradient at rho = 1.
    """
    moved = tokens.logp.detach().exp() - tokens.old.exp()
    cut = torch.where(tokens.advantages > 0, moved, -moved) > shape.largest_move
    log_ratio = tokens.log_ratio
    return (-tokens.advantages * log_ratio.exp()).where(~cut, 0.0) + shape.pull * log_ratio.square()


_LOSSES: Mapping[Kind, Callable[[_Tokens, Shape], Tensor]] = {
    "clip": _clip,
    "cispo": _cispo,
    "sapo": _sapo,
    "gmpo": _gmpo,
    "vespo": _vespo,
    "dppo_tv": _dppo_tv,
}


def _clamped(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _slope(logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """(B, T) the gradient of the loss in logp, without the pull that knows no advantage."""
    with torch.enable_grad():
        logp = logp.detach().requires_grad_()
        loss = weighted(logp, old, advantages, mask, replace(shape, pull=0.0))
        return torch.autograd.grad(loss.sum(), logp)[0]

"""What a student is told when its supervisor is weaker than itself (arXiv 2312.09390).

A student that imitates learns its supervisor's errors with the rest, so most targets here lean towards what the
student itself believes. B items, K classes; `p` is the student's distribution, `weak` the supervisor's. A pair of
answers is two classes with logits (0, margin), see `pair`. No gradient flows through a target, but for `entropy`.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.losses.reduce import Sum, over, precise, same_shape

Kind = Literal["soft", "hard", "logconf", "entropy", "product", "window", "adaptconf"]


class Options(NamedTuple):
    """Constants of single targets: exponents of `product`, radius of `window`, temperature of `adaptconf`."""

    student_power: float = 1.0
    weak_power: float = 1.0
    radius: float = 0.15
    temperature: float = 0.5


def target(
    kind: Kind,
    p: Tensor,
    weak: Tensor,
    *,
    weight: float = 0.0,
    prior: Tensor | None = None,
    min_pool: int = 8,
    options: Options | None = None,
) -> Tensor:
    """(B, K) what the student is trained towards by `cross_entropy`.

    p, weak: (B, K) probabilities; weight: a, how far `logconf` and `entropy` lean on the student; prior, min_pool: of
    `hardened`, for which B is the pool. A step that is cut is hardened whole: pass all its rows and take a part of
    the result.

    soft: weak. hard: its most likely class. logconf: (1 - a) weak + a hardened(p) (arXiv 2312.09390, eqs. 1 and 2).
    entropy: (1 - a) weak + a p, the loss being (1 - a) CE + a H(p); here p keeps its gradient, for held fixed it would
    only shrink the naive gradient to 1 - a of itself. product: p^beta weak^alpha, normalised (appendix B); with hard
    labels it silently becomes `hard`. window: weak where max p < 1/2 + radius, else zeros, which teach nothing but
    count. adaptconf: (1 - b) weak + b onehot(argmax p), where b = sigmoid((u - v) / temperature), u and v being minus
    the log-probability of the student's and of the supervisor's favourite (arXiv 2402.03749): never above 1/2.

    Raises `ValueError` for rows that are no distributions, and for `entropy` of a p without gradient in training.

    >>> p, weak = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.7, 0.3]])
    >>> target("logconf", p, weak, weight=0.5)
    tensor([[0.3500, 0.6500]])
    >>> target("product", p, weak)
    tensor([[0.3684, 0.6316]])
    """
    same_shape(p=p, weak=weak)
    own, told = _distribution("p", p), _distribution("weak", weak).detach()
    told, options = told.to(own), options or Options()
    if kind == "entropy":
        if torch.is_grad_enabled() and not own.requires_grad:
            raise ValueError("the entropy of p teaches through the gradient of p, which is detached; pass it attached")
        return torch.lerp(told, own, weight)
    own = own.detach()
    match kind:
        case "soft":
            return told
        case "hard":
            return hardened(told)
        case "logconf":
            return torch.lerp(told, hardened(own, prior, min_pool), weight)
        case "product":
            return _product(own, told, options)
        case "window":
            return told * (own.amax(-1, keepdim=True) < 0.5 + options.radius)
        case "adaptconf":
            return torch.lerp(told, hardened(own), _trust(own, told, options.temperature))
    raise ValueError(f"no target {kind!r}; known are {', '.join(get_args(Kind))}")


def hardened(p: Tensor, prior: Tensor | None = None, min_pool: int = 8) -> Tensor:
    """(B, K) one-hot predictions, with classes in about the shares of `prior`.

    p: (B, K); prior: (K,). Two classes are ranked by `harden`. More are corrected for the batch: argmax of
    log p_k - log mean(p_k) + log prior_k. Without a prior, or in a batch below `min_pool`, the most likely class.

    >>> p = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    >>> hardened(p, prior=torch.full((3,), 1 / 3), min_pool=1).argmax(-1).tolist()
    [1, 2]
    """
    classes = p.shape[-1]
    if prior is not None:
        _distribution("prior", prior)
        if prior.shape != (classes,):
            raise ValueError(f"{classes} classes need as many shares in prior, got shape {tuple(prior.shape)}")
    if classes == 2:
        chosen = harden(p[:, 1], None if prior is None else float(prior[1]), min_pool).long()
    elif prior is None or len(p) < min_pool:
        chosen = p.argmax(-1)
    else:
        wide = p.double()
        score = wide.log() - wide.mean(0).log() + prior.to(wide).log()
        # A class that nobody in the batch believes in would be minus infinity less itself.
        chosen = score.where(wide > 0, -torch.inf).argmax(-1)
    return one_hot(chosen, classes).to(precise(p).dtype)


def harden(p: Tensor, prior: float | None = None, min_pool: int = 8, pool: Tensor | None = None) -> Tensor:
    """(B,) 1 for the round(prior n) highest of n probabilities of class 1, else 0; ties go to the earlier.

    p: (B,); pool: (M,) probabilities of earlier items that are ranked with them, so n = M + B. By rank, not by a
    quantile, which finds no positive at all among equal probabilities or in a batch of one. Without a prior, or with
    n below `min_pool`, p > 1/2: right for pairs, whose order is drawn, so that a target which depended on the other
    pairs would change with their order.

    >>> harden(torch.tensor([0.9, 0.7, 0.6, 0.8]), prior=0.5, min_pool=1)
    tensor([1., 0., 0., 1.])
    """
    if prior is not None and not 0 <= prior <= 1:
        raise ValueError(f"the prior is the share of class 1, between 0 and 1, got {prior}")
    everyone = p if pool is None else torch.cat([pool.to(p), p])
    if prior is None or len(everyone) < min_pool:
        return (p > 0.5).to(precise(p).dtype)
    highest = everyone.argsort(descending=True, stable=True)[: round(prior * len(everyone))]
    hard = torch.zeros_like(everyone, dtype=precise(p).dtype)
    hard[highest] = 1
    return hard[len(everyone) - len(p) :]


def cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Sum:
    """-sum_k target_k log softmax(logits)_k, summed over the items where `mask` (B,) is true.

    logits, target: (B, K). Each kept item counts as one, also where its target is zero.

    >>> cross_entropy(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.3, 0.7]])).mean
    tensor(0.6133)
    """
    same_shape(logits=logits, target=target)
    return over(-(target * precise(logits).log_softmax(-1)).sum(-1), mask)


def pair(margin: Tensor) -> Tensor:
    """(B, 2) the logits of a pair: class 1 is "the second answer", with probability sigmoid(margin).

    margin: (B,) score of the second answer minus that of the first.

    >>> pair(torch.tensor([1.0])).softmax(-1)
    tensor([[0.2689, 0.7311]])
    """
    return torch.stack([torch.zeros_like(margin), margin], -1)


def warm_up(fraction: float, share: float = 0.2, most: float = 0.5) -> float:
    """The weight of the student's own prediction: from 0 to `most` over the first `share` of training, then level.

    fraction: how much of the training is done, 0 to 1.

    >>> warm_up(0.1), warm_up(0.9)
    (0.25, 0.5)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of training done lies between 0 and 1, got {fraction}")
    return most * fraction / share if fraction < share else most


def _product(own: Tensor, told: Tensor, options: Options) -> Tensor:
    # In logarithms and clamped: where both sides are sure of different classes, 0 would be divided by 0.
    log_own = own.clamp(min=torch.finfo(own.dtype).tiny).log()
    log_told = told.clamp(1e-6, 1 - 1e-6).log()
    return (options.student_power * log_own + options.weak_power * log_told).softmax(-1)


def _trust(own: Tensor, told: Tensor, temperature: float) -> Tensor:
    favoured = own.gather(-1, told.argmax(-1, keepdim=True))
    return ((favoured.log() - own.amax(-1, keepdim=True).log()) / temperature).sigmoid()


def _distribution(name: str, rows: Tensor) -> Tensor:
    shares = precise(rows)
    # Half precision leaves sums that far from 1; logits are further.
    fair = (shares >= 0).all(-1) & ((shares.sum(-1) - 1).abs() < 1e-2)
    if not bool(fair.all()):
        strange = shares[~fair].reshape(-1, shares.shape[-1])[0].tolist()
        raise ValueError(f"{name} holds probabilities that sum to 1, got {strange}; take the softmax of logits first")
    return shares

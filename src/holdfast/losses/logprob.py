"""Log-probabilities of given tokens, and what they say about the distance between two policies.

A vocabulary is large: the logits of one batch of answers can outweigh the model. `token_logprobs` therefore
takes hidden states and the output matrix, and holds the logits of one chunk of rows at a time, backward
included.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from holdfast.losses.reduce import precise
from holdfast.losses.vocabulary import Pass, Picked

KlEstimator = Literal["k1", "k2", "k3", "ratio_k3"]


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = 1024,
    held: int = 0,
) -> Tensor:
    """(N,) float32 log softmax((hidden weight^T + bias) / temperature)[labels], never holding (N, V) logits.

    hidden: (N, H) states that predict labels (N,), already chosen (responses only, say); weight: (V, H).
    Values and gradients equal those of `logits_logprobs`; backward computes each of several chunks of logits once more,
    unless all N x V of them are no more than `held`.

    >>> token_logprobs(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))  # log 1/4
    tensor([-1.3863, -1.3863])
    """
    plan = _plan(hidden, weight, labels, temperature, chunk, held)
    logp, _ = Picked.apply(hidden, weight, bias, labels, plan)
    return logp


def token_logprobs_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = 1024,
    held: int = 0,
) -> tuple[Tensor, Tensor]:
    """(N,) log-probabilities as `token_logprobs`, and (N,) entropies of the whole distributions, in nats.

    Entropy H = -sum p log p over the vocabulary, at the same temperature; both outputs carry gradient.

    >>> logp, entropy = token_logprobs_entropy(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([0]))
    >>> entropy  # log 4
    tensor([1.3863])
    """
    plan = _plan(hidden, weight, labels, temperature, chunk, held)
    logp, entropy = Picked.apply(hidden, weight, bias, labels, plan._replace(entropy=True))
    return logp, entropy


def logits_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, T) float32 log-probabilities of labels (B, T) under logits (B, T, V) of the same columns.

    Nothing is shifted here: logits in column t must be those that predict the label in column t.

    >>> logits_logprobs(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
    tensor([[-1.3863, -1.3863]])
    """
    return _pick(_log_softmax(logits, temperature), labels)


def kl_k1(logp: Tensor, ref: Tensor) -> Tensor:
    """Log p - log q of each token drawn from p: unbiased for KL(p || q), of either sign, high variance.

    logp, ref: log-probabilities of the same tokens under p and q. The names k1, k2, k3 are Schulman's
    ("Approximating KL Divergence", 2020).

    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.5000])
    """
    return logp - ref


def kl_k2(logp: Tensor, ref: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: never negative, somewhat biased, but its gradient in p is that of KL(p || q).

    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.1250])
    """
    return 0.5 * (logp - ref).square()


def kl_k3(logp: Tensor, ref: Tensor) -> Tensor:
    """q/p - 1 - log q/p: unbiased for KL(p || q) and never negative.

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-1.5]))  # exp(-0.5) - 1 + 0.5
    tensor([0.1065])
    """
    return torch.expm1(ref - logp) - (ref - logp)


def kl_loss(
    estimator: KlEstimator, logp: Tensor, ref: Tensor, old: Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """KL(policy || reference) per token as a term of a loss: what counts is the gradient in logp, not the value.

    With d = logp - ref, on tokens that the policy drew itself, the expected gradient is: of k1 zero, so that nothing
    is held; of k2 = d^2/2 that of the KL; of k3 = exp(-d) - 1 + d that of KL(reference || policy), which may even
    point the other way; of ratio_k3 = rho k3 with rho = exp(logp - old) that of the KL again, also off-policy
    (DeepSeek-V3.2, arXiv 2512.02556; compared in arXiv 2510.01555). Exponents are clamped at 20, and nothing else is:
    a token that became 20 nats likelier is still pulled back. mask: true on tokens that count; behind it all is zero.
    Raises `ValueError` for an unknown estimator, and for ratio_k3 without old.

    >>> kl_loss("k2", torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.1250])
    """
    if estimator not in get_args(KlEstimator):
        raise ValueError(f"no estimator {estimator!r}; there are {', '.join(get_args(KlEstimator))}")
    if estimator == "ratio_k3" and old is None:
        raise ValueError("ratio_k3 weighs each token by its ratio to the policy that drew it; give old, its logp")
    kept = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    logp, ref = precise(logp).where(kept, 0.0), precise(ref).detach().where(kept, 0.0)
    if estimator == "k1":
        return kl_k1(logp, ref)
    if estimator == "k2":
        return kl_k2(logp, ref)
    k3 = kl_k3((logp - ref).clamp(min=-20), torch.zeros_like(ref))
    if old is None or estimator == "k3":
        return k3
    return (logp - precise(old).detach().where(kept, 0.0)).clamp(-20, 20).exp() * k3


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    _check(temperature)
    logits = precise(logits)
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _pick(every: Tensor, labels: Tensor) -> Tensor:
    return every.gather(-1, labels[..., None]).squeeze(-1)


def _plan(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float, chunk: int, held: int) -> Pass:
    """How to go through the vocabulary for these rows; `ValueError` for shapes or a temperature that mean nothing."""
    _check(temperature)
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1]:
        given = f"{tuple(hidden.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"hidden must be (N, H) and labels (N,), got {given}")
    # A single chunk would be computed again at once: nothing gained.
    return Pass(temperature, chunk, keep=len(labels) <= chunk or len(labels) * len(weight) <= held)

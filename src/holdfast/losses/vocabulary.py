"""Log-probabilities and entropies over a vocabulary from states and the output matrix, their gradient written out.

With logits z, p = softmax(z), label y and entropy H = -sum p log p: d log p_y / dz = onehot(y) - p and
d H / dz = -p (log p + H). Autograd passes over the logits several times more and holds them twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from holdfast.losses.reduce import precise


class Pass(NamedTuple):
    """How the vocabulary is gone through.

    Logits stand `chunk` rows at a time; with `keep` all log-probabilities (N, V) are held for backward, otherwise each
    chunk is computed once more. entropy: whether entropies are wanted.
    """

    temperature: float
    chunk: int
    keep: bool
    entropy: bool = False


class Picked(torch.autograd.Function):
    """(N,) log softmax((hidden weight^T + bias) / temperature)[labels], at least float32, and (N,) entropies or None.

    hidden (N, H), weight (V, H), bias (V,) or None, labels (N,).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, plan: Pass
    ) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities, and the entropies if wanted."""
        picked, entropies, kept = [], [], []
        for part in _parts(len(labels), plan.chunk):
            every = _log_softmax(hidden[part], weight, bias, plan.temperature)
            picked.append(every.gather(-1, labels[part, None])[:, 0])
            if plan.entropy:
                entropies.append(-every.exp().mul_(every).sum(-1))
            if plan.keep and any(ctx.needs_input_grad):
                kept.append(every)
        entropy = torch.cat(entropies) if plan.entropy else None
        ctx.plan = plan
        ctx.save_for_backward(hidden, weight, bias, labels, entropy, *kept)
        return torch.cat(picked), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_picked: Tensor, to_entropy: Tensor | None) -> tuple[Any, ...]:
        """The gradients to states, weight and bias."""
        hidden, weight, bias, labels, entropy, *kept = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for i, part in enumerate(_parts(len(labels), ctx.plan.chunk)):
            every = kept[i] if kept else _log_softmax(hidden[part], weight, bias, ctx.plan.temperature)
            own, to_logits = to_picked[part, None], every.exp()
            if entropy is None or to_entropy is None:
                to_logits *= -own
            else:
                spread = to_entropy[part, None]
                to_logits *= torch.addcmul(-own - spread * entropy[part, None], every, -spread)
            to_logits.scatter_add_(1, labels[part, None], own)
            to_logits = to_logits.div_(ctx.plan.temperature).to(weight.dtype)
            to_hidden[part] = to_logits @ weight
            if to_weight is not None:
                to_weight.addmm_(to_logits.T, hidden[part].to(weight.dtype))
            if to_bias is not None:
                to_bias += to_logits.sum(0)
        return to_hidden, to_weight, to_bias, None, None


def _parts(count: int, chunk: int) -> Iterator[slice]:
    """Slices of up to `chunk` rows; one for no rows."""
    return (slice(start, start + chunk) for start in range(0, max(count, 1), chunk))


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = precise(linear(hidden, weight, bias))
    return (logits if temperature == 1 else logits.div_(temperature)).log_softmax(-1)

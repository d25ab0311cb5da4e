"""One pass over a vocabulary: the log-probability of a label from a state and the output matrix, with its gradient.

With logits z, p = softmax(z), label y and entropy H = -sum p log p: d log p_y / dz = onehot(y) - p and
d H / dz = -p (log p + H). Written out, forward and backward take one pass over the logits each; autograd takes several
and holds the logits twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from holdfast.losses.reduce import precise

# Up to this many numbers (128 MB) the probabilities of all rows are held for backward instead of computed again.
HELD = 2**25


def scored(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float,
    chunk: int,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """(N,) float32 log softmax((hidden weight^T + bias) / temperature)[labels] and, if asked, (N,) entropies.

    hidden (N, H), weight (V, H), bias (V,). Rows are taken `chunk` at a time; when N x V is too large to be held,
    backward computes each chunk once more.
    """
    found = _Scored.apply(hidden, weight, bias, labels, temperature, chunk, entropy)
    return (found[0], found[1]) if entropy else (found, None)


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
    ) -> Any:
        ctx.temperature, ctx.chunk, ctx.entropy = temperature, chunk, entropy
        held = any(ctx.needs_input_grad) and len(labels) * len(weight) <= HELD
        logp, entropies, masses, totals = [], [], [], []
        for rows, targets in zip(hidden.split(chunk), labels.split(chunk)):
            picked, mass, total, spread = _distribution(rows, weight, bias, targets, temperature, entropy)
            logp.append(picked)
            entropies.append(spread)
            if held:
                masses.append(mass)
                totals.append(total)
        ctx.held = len(masses)
        joined = torch.cat(logp)
        spreads = torch.cat(entropies) if entropy else None
        ctx.save_for_backward(hidden, weight, bias, labels, spreads, *masses, *totals)
        return (joined, spreads) if entropy else joined

    @staticmethod
    def backward(ctx: Any, to_logp: Tensor, to_entropy: Tensor | None = None) -> tuple[Any, ...]:
        hidden, weight, bias, labels, spreads, *kept = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), None
        to_bias = None
        for i, start in enumerate(range(0, len(labels), ctx.chunk)):
            part = slice(start, start + ctx.chunk)
            if ctx.held:
                mass, total = kept[i], kept[ctx.held + i]
            else:
                _, mass, total, _ = _distribution(hidden[part], weight, bias, labels[part], ctx.temperature, False)
            to_logits = mass * (-to_logp[part] / total)[:, None]
            if ctx.entropy:
                p = mass / total[:, None]
                to_logits -= to_entropy[part, None] * (torch.xlogy(p, p) + p * spreads[part, None])
            to_logits.scatter_add_(1, labels[part, None], to_logp[part, None].to(to_logits.dtype))
            to_logits = (to_logits if ctx.temperature == 1 else to_logits / ctx.temperature).to(weight.dtype)
            to_hidden[part] = to_logits @ weight
            if ctx.needs_input_grad[1]:
                own = to_logits.T @ hidden[part].to(weight.dtype)
                to_weight = own if to_weight is None else to_weight.add_(own)
            if bias is not None and ctx.needs_input_grad[2]:
                own = to_logits.sum(0)
                to_bias = own if to_bias is None else to_bias.add_(own)
        return to_hidden, to_weight, to_bias, None, None, None, None


def _distribution(rows, weight, bias, labels, temperature, entropy):
    logits = precise(linear(rows, weight, bias))
    logits = logits if temperature == 1 else logits.div_(temperature)
    logits.sub_(logits.amax(-1, keepdim=True))
    picked = logits.gather(-1, labels[:, None])[:, 0]
    mass = logits.exp() if entropy else logits.exp_()
    total = mass.sum(-1)
    spread = None
    if entropy:
        spread = total.log() - (mass * logits).sum(-1) / total
    return picked - total.log(), mass, total, spread

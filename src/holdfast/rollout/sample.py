"""From logits to tokens: the distribution that settings ask for, and draws that do not depend on company.

Row r at step t uses its own uniform number, so a response is the same in any batch, with any neighbours.
"""

import numpy as np
import torch
from torch import Tensor

from holdfast.rollout.types import Sampling


def uniforms(seed: int, rows: int, steps: int) -> np.ndarray:
    """Return (rows, steps) numbers in [0, 1): row r is a stream of its own, named by the pair (seed, r).

    A longer stream begins with the shorter one, and more rows leave the first ones alone.

    >>> bool((uniforms(7, 2, 3)[1] == uniforms(7, 5, 9)[1, :3]).all())
    True
    """
    table = np.empty((rows, steps))
    for row in range(rows):
        table[row] = np.random.default_rng((seed, row)).random(steps)
    # Kept away from 1, which rounding could otherwise reach when `draw` scales them.
    return table * (1 - 2.0**-40)


def distribution(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return (R, V) float32 log-probabilities of the next token under `sampling`.

    logits: (R, V); seen: (R, V) bool, the ids that already occurred, needed for a repetition penalty only.
    The order is penalty, temperature, top-k, top-p; tokens left out have probability zero.

    >>> kept = distribution(torch.tensor([[3.0, 2.0, 1.0]]), Sampling(top_k=2)).exp()
    >>> [round(p, 3) for p in kept[0].tolist()]
    [0.731, 0.269, 0.0]
    """
    logits = logits.float()
    if seen is not None:
        weakened = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, weakened, logits)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        # A token stays while the mass before it is short of top_p, so the first one always stays.
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits.log_softmax(-1)


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """Return (R,) token ids by inverting each row's cumulative distribution at `uniform` (R,).

    The sum runs in float64: in float32 the last of 100,000 tokens would lose its share to rounding. What
    remains is that logits of differently shaped batches differ by about 1e-6, which moves a token only when a
    uniform number falls that close to a border.

    >>> logprobs = torch.tensor([[0.5, 0.2, 0.3]]).log().repeat(3, 1)
    >>> draw(logprobs, torch.tensor([0.49, 0.51, 0.71]).double()).tolist()
    [0, 1, 2]
    """
    heights = logprobs.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(heights, uniform[:, None] * heights[:, -1:], right=True).squeeze(-1)

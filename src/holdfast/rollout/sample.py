"""From logits to tokens: the distribution that settings ask for, and draws that do not depend on company.

Row r at step t uses its own uniform number, so a response is the same in any batch, with any neighbours.
"""

import numpy as np
import torch
from torch import Tensor

from holdfast.rollout.types import Sampling

BLOCK = 64
# Numbers are kept this far from 1, which rounding could otherwise reach when `draw` scales them.
BELOW_ONE = 1 - 2.0**-40


def uniforms(seed: int, rows: int, steps: int) -> np.ndarray:
    """Return (rows, steps) numbers in [0, 1): row r is a stream of its own, named by the pair (seed, r).

    A longer stream begins with the shorter one, and more rows leave the first ones alone.

    >>> bool((uniforms(7, 2, 3)[1] == uniforms(7, 5, 9)[1, :3]).all())
    True
    """
    table = np.empty((rows, steps))
    for row in range(rows):
        table[row] = np.random.default_rng((seed, row)).random(steps)
    return table * BELOW_ONE


def distribution(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return (R, V) float32 probabilities of the next token under `sampling`.

    logits: (R, V); seen: (R, V) bool, the ids that already occurred, needed for a repetition penalty only.
    The order is penalty, temperature, top-k, top-p; tokens left out have probability zero.

    >>> kept = distribution(torch.tensor([[3.0, 2.0, 1.0]]), Sampling(top_k=2))
    >>> [round(p, 3) for p in kept[0].tolist()]
    [0.731, 0.269, 0.0]
    """
    logits = logits.float()
    if seen is not None:
        weakened = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, weakened, logits)
    if sampling.temperature != 1:
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
    return logits.softmax(-1)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return (R,) token ids by inverting each row's cumulative distribution at `uniform` (R,).

    First the block of tokens into which the number falls is found, then the token inside it, so only the sums of
    blocks and the tokens of one block are added up in float64: in float32 the last of 100,000 tokens would lose its
    share to rounding. What remains is that logits of differently shaped batches differ by about 1e-6, and sums of
    blocks by 1e-7, which moves a token only when a uniform number falls that close to a border.

    >>> probabilities = torch.tensor([[0.5, 0.2, 0.3]]).repeat(3, 1)
    >>> draw(probabilities, torch.tensor([0.49, 0.51, 0.71]).double()).tolist()
    [0, 1, 2]
    """
    size = probabilities.shape[-1]
    whole = size - size % BLOCK
    masses = probabilities[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    rest = probabilities[:, whole:].sum(-1, keepdim=True)
    block, uniform = _invert(torch.cat([masses, rest], dim=-1), uniform)
    tokens = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    inside = probabilities.gather(-1, tokens.clamp(max=size - 1)).where(tokens < size, 0.0)
    return block * BLOCK + _invert(inside, uniform)[0]


def _invert(masses: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the item (R,) of (R, M) masses into which `uniform` falls, and where in [0, 1) of that item it falls."""
    masses = masses.double()
    heights = masses.cumsum(-1)
    target = uniform[:, None] * heights[:, -1:]
    item = torch.searchsorted(heights, target, right=True)
    mass = masses.gather(-1, item)
    inside = (target - heights.gather(-1, item) + mass) / mass
    return item.squeeze(-1), inside.squeeze(-1).clamp(0, BELOW_ONE)

"""Weights laid out for many small products: what sampling reads again for every token.

On a CPU a product of a few rows with a large matrix spends most of its time rearranging the matrix. Done once for all
tokens that are sampled, it takes half to a third of the time, at the price of a second copy of the weights meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

# Fewer entries are faster as they are.
LEAST = 2**17


@contextmanager
def packed(model: nn.Module) -> Iterator[list[str]]:
    """Inside the block large linear layers of `model` read packed copies of the weights that they have at its start.

    Gives their names; none where that is impossible: other devices than CPUs, other numbers than float32, builds of
    torch without oneDNN. Results differ from the plain ones by rounding. No gradient flows, so the block belongs inside
    `torch.no_grad()` or inference mode (`RuntimeError` otherwise).
    """
    if torch.is_grad_enabled():
        raise RuntimeError("packed weights have no gradient; enter torch.no_grad() or inference mode first")
    found = {name: layer for name, layer in model.named_modules() if _packable(layer)} if usable() else {}
    try:
        for layer in found.values():
            layer.forward = _Packed(layer)
        yield list(found)
    finally:
        for layer in found.values():
            vars(layer).pop("forward", None)


def _packable(layer: nn.Module) -> bool:
    # Subclasses compute something else, and a forward of its own was put there by someone else.
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST


class _Packed:
    """A linear layer's product with its weights packed."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = _pack(layer.weight), layer.bias

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows (..., in) times the weights, (..., out)."""
        return _product(rows, self.weight, self.bias)


@cache
def usable() -> bool:
    """Whether this build of torch packs weights, and products with them are right."""
    if not torch.backends.mkldnn.is_available():
        return False
    rng = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, 40, generator=rng), torch.randn(3, 1, 40, generator=rng)
    try:
        found = _product(rows, _pack(weight), torch.ones(24))
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(found, rows @ weight.T + 1, atol=1e-4))


# The two calls that torch's own compiler makes for frozen weights on CPUs.
def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")

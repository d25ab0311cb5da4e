"""What a run is going to need, before it has taken hours to find out."""

import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_GIB = 2**30


class Part(NamedTuple):
    """A network of the run: do gradients flow through it, does an optimiser hold moments for it."""

    module: nn.Module
    trainable: bool
    optimiser: bool


class MemoryEstimate(NamedTuple):
    """Bytes by what they are for. Activations and logits are approximate; the rest is counted."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it at once, as in the middle of a backward pass."""
        return sum(self)

    def render(self) -> str:
        """One line per purpose, the total last.

        >>> print(MemoryEstimate(2**30, 2**29, 2**31, 0, 0).render())
        weights          1.00 GiB
        gradients        0.50 GiB
        optimiser        2.00 GiB
        activations      0.00 GiB
        logits           0.00 GiB
        total            3.50 GiB
        """
        rows = {**self._asdict(), "total": self.total}
        return "\n".join(f"{name:<12}{size / _GIB:>9.2f} GiB" for name, size in rows.items())

    def warning(self, available: int | None) -> str | None:
        """What to tell the person when this exceeds the `available` bytes; None when it fits or is unknown.

        >>> MemoryEstimate(10, 0, 0, 0, 0).warning(20) is None
        True
        """
        if available is None or self.total <= available:
            return None
        largest = max(self._asdict().items(), key=lambda item: item[1])[0]
        return (
            f"this run needs about {self.total / _GIB:.2f} GiB and {available / _GIB:.2f} GiB are available; "
            f"the largest share is {largest}: {_ADVICE[largest]}"
        )


_ADVICE = {
    "weights": "take a smaller model, bfloat16, or one base with adapters",
    "gradients": "train adapters instead of all weights",
    "optimiser": "train adapters instead of all weights",
    "activations": "lower micro_tokens",
    "logits": "lower micro_tokens",
}


def estimate(
    modules: Mapping[str, Part | tuple[nn.Module, bool, bool]],
    *,
    tokens: int,
    vocabulary: int = 0,
    logit_tokens: int | None = None,
) -> MemoryEstimate:
    """The memory of a step with `tokens` padded tokens in a micro-batch, for networks that learn in turn.

    vocabulary: entries of the language-model head, 0 when none is trained. logit_tokens: tokens whose logits
    exist at once, all when not given. Parameters shared between networks count once. Activations are the
    inputs and outputs of every linear layer, which for a transformer block of width H comes near the 34 H
    bytes per token in 16 bit of Korthikanti et al. (arXiv 2205.05198, eq. 2, without the attention map); of
    networks that learn in turn the largest counts.
    """
    parts = [Part(*part) for part in modules.values()]
    every = _unique(p for part in parts for p in part.module.parameters())
    learning = _unique(p for part in parts if part.trainable for p in _learning(part.module))
    moments = _unique(p for part in parts if part.optimiser for p in _learning(part.module))
    flowing = [_linear_bytes(part.module, tokens, vocabulary) for part in parts if part.trainable]
    rows = tokens if logit_tokens is None else min(tokens, logit_tokens)
    return MemoryEstimate(
        weights=_size(every),
        gradients=_size(learning),
        optimiser=2 * _size(moments),  # AdamW keeps two moments of the parameter's type
        activations=max(flowing, default=0),
        logits=2 * 4 * rows * vocabulary,  # float32, value and gradient
    )


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Free memory of the device; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if torch.device(device).type != "cpu" or not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def peak_rss_mib() -> float:
    """The most memory this process has held so far, in MiB; not a number on systems that do not tell."""
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere


def _learning(module: nn.Module) -> Iterable[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _linear_bytes(module: nn.Module, tokens: int, vocabulary: int) -> int:
    layers = (m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features != vocabulary)
    return sum(tokens * (m.in_features + m.out_features) * m.weight.element_size() for m in layers)

"""The gate of a mixture: what is known of a prompt becomes one logit per head."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.errors import UserError

RouterKind = Literal["static", "linear", "mlp"]


class Router(nn.Module):
    """Logits (B, K) for features (B, d), computed in the precision of its own weights, also under autocast.

    kind: `static` learns one vector for everybody and ignores the features; `linear` is one layer; `mlp` has one
    hidden layer (MiCRo, arXiv 2505.24846, App. B.1). What comes last is zero at the start, so that no head is
    favoured by chance; the hidden layer is random, because two zero layers would never learn.

    >>> Router("mlp", features=5, heads=4)(torch.ones(2, 5)).softmax(-1).tolist()
    [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(self, kind: RouterKind, features: int, heads: int, hidden: int = 128, seed: int = 0) -> None:
        super().__init__()
        if kind not in get_args(RouterKind):
            raise UserError(f"no router is called {kind!r}; choose one of {', '.join(get_args(RouterKind))}")
        self.kind, self.features, self.heads, self.seed = kind, features, heads, seed
        exact = {"dtype": torch.float32}
        if kind == "static":
            self.logits = nn.Parameter(torch.zeros(heads, **exact))
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(features, hidden, **exact) if kind == "mlp" else None
            self.last = nn.Linear(hidden if kind == "mlp" else features, heads, **exact)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, u: Tensor) -> Tensor:
        """Return logits (B, K) for features u (B, d); their softmax are the weights of the heads."""
        if u.ndim != 2 or u.shape[1] != self.features:
            raise ValueError(f"this router reads features (B, {self.features}), got {tuple(u.shape)}")
        if self.kind == "static":
            return self.logits.expand(len(u), self.heads)
        with torch.autocast(u.device.type, enabled=False):
            u = u.to(self.last.weight.dtype)
            return self.last(u if self.hidden is None else self.hidden(u).relu())

"""What a policy earns on a prompt, read from its own hidden states of the prompt: V(x) of A-LoL (arXiv 2305.14718)."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.losses.reduce import precise

WEIGHTS, CARD = "value_head.safetensors", "value_head.json"


class ValueHead(nn.Module):
    """V(x) = low + (high - low) sigmoid(w . MHA(q, H, H) + c) for the states H of a prompt, in float32.

    One learned query q attends to all tokens of the prompt with `heads` heads: 4 h^2 + 6 h + 1 parameters. Padding is
    masked, so that V(x) does not depend on the batch. hidden: h, a multiple of `heads`; low, high: the range of the
    reward; dropout: of the states and of what was gathered from them, in training mode. w and c begin at zero: a head
    that has learned nothing says the same of all prompts.

    >>> head = ValueHead(64, high=5.0).eval()
    >>> sum(weight.numel() for weight in head.parameters())
    16769
    >>> head(torch.randn(2, 3, 64), torch.zeros(2, 3, dtype=torch.bool)).tolist()
    [2.5, 2.5]
    """

    def __init__(
        self,
        hidden: int,
        heads: int = 8,
        low: float = 0.0,
        high: float = 1.0,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise UserError(f"{heads} heads cannot share {hidden} hidden units evenly; give a number that divides them")
        if not low < high:
            raise UserError(f"the range of a value needs low below high, got {low:g} and {high:g}")
        self.hidden, self.low, self.high = hidden, float(low), float(high)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = nn.Parameter(torch.randn(hidden, dtype=torch.float32))
            self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True, dtype=torch.float32)
            self.last = nn.Linear(hidden, 1, dtype=torch.float32)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, padding: Tensor) -> Tensor:
        """Return (P,) values in (low, high) of P prompts from their states (P, T, h); padding: (P, T) true on padding.

        Raises `ValueError` for other shapes, and for a prompt of which nothing is left.
        """
        if states.shape != (*padding.shape, self.hidden) or bool(padding.all(-1).any()):
            given = f"states {tuple(states.shape)} and padding {tuple(padding.shape)}"
            raise ValueError(f"a value needs states (P, T, {self.hidden}) of at least one token each, got {given}")
        with torch.autocast(states.device.type, enabled=False):
            keys = self.dropout(precise(states).to(self.query.dtype))
            query = self.query.expand(len(keys), 1, self.hidden)
            gathered, _ = self.attention(query, keys, keys, key_padding_mask=padding, need_weights=False)
            share = self.last(self.dropout(gathered[:, 0]))[:, 0].sigmoid()
            return self.low + (self.high - self.low) * share

    @torch.no_grad()
    def begin_at(self, value: float) -> None:
        """Say `value` of every prompt, whatever was learned before; it is moved into the range if it lies outside."""
        share = (value - self.low) / (self.high - self.low)
        # A sigmoid at its very end has no slope left to learn by.
        share = min(max(share, 0.01), 0.99)
        self.last.weight.zero_()
        self.last.bias.fill_(math.log(share / (1 - share)))

    @property
    def facts(self) -> dict[str, Any]:
        """What `ValueHead` must be given to be built like this one."""
        return {
            "hidden": self.hidden,
            "heads": self.attention.num_heads,
            "low": self.low,
            "high": self.high,
            "dropout": self.dropout.p,
        }

    @property
    def digest(self) -> str:
        """The sha256 of weights and facts: equal digests, equal values."""
        return hashlib.sha256(f"{json.dumps(self.facts)} {network_digest(self)}".encode()).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write the head to `folder`, where other models may lie as well; return the folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, path / WEIGHTS)
        card = {**self.facts, "digest": self.digest}
        (path / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "ValueHead":
        """Return the head in `folder`, in evaluation mode; `UserError` unless it is the one that was saved there."""
        path = Path(folder)
        missing = [name for name in (CARD, WEIGHTS) if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}; give a folder to which a value head was saved")
        try:
            card = json.loads((path / CARD).read_text(encoding="utf-8"))
            expected = card.pop("digest")
            head = cls(**card)
            head.load_state_dict(load_file(path / WEIGHTS))
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the value head in {path} cannot be read ({error}); save it again") from error
        if head.digest != expected:
            raise UserError(f"the value head in {path} is not the one that was saved there; save it again")
        return head.to(device).eval()


def network_digest(network: nn.Module) -> str:
    """Return the sha256 of the names, types, shapes and bytes of all weights of a network in memory.

    >>> network_digest(nn.Linear(2, 1)) == network_digest(nn.Linear(2, 1))
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

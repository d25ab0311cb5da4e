"""A few labels of one person become that person's weights over the heads, without training.

w_k = prior_k exp(-sum_j L_jk / tau), normalised, with L_jk = -log sigmoid(delta_jk) the loss of head k on label j
(HyRe, arXiv 2412.08812, is the uniform prior at tau = 1). Weights are K floats per person; they are kept in a
`UserStore`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from holdfast.errors import UserError
from holdfast.losses.mixture import hedge_value, posterior
from holdfast.losses.reduce import precise


def adapt(log_prior: Tensor, deltas: Tensor, tau: float = 1.0) -> Tensor:
    """(K,) log weights of a person after m labels; without labels, the prior.

    log_prior: (K,); deltas: (m, K) chosen minus rejected reward under each head. The order of labels is irrelevant.

    >>> adapt(torch.full((2,), 0.5).log(), torch.tensor([[2.0, -2.0]])).exp()
    tensor([0.8808, 0.1192])
    """
    return posterior(log_prior, -logsigmoid(precise(deltas)), tau)


def sequential(log_prior: Tensor, deltas: Tensor) -> Tensor:
    """(m,) the log-loss of predicting each label from those before it, as `adapt` weighs the heads at tau = 1.

    Their sum is -log sum_k prior_k prod_j sigmoid(delta_jk), whatever the labels are, so it exceeds the loss of
    head k by at most -log prior_k: by log K for a uniform prior and the best head.

    >>> losses = sequential(torch.full((2,), 0.5).log(), torch.tensor([[2.0, -2.0], [2.0, -2.0]]))
    >>> losses, bool(losses.sum() <= -2 * logsigmoid(torch.tensor(2.0)) + torch.tensor(2.0).log())
    (tensor([0.6931, 0.2357]), True)
    """
    losses = -logsigmoid(precise(deltas))
    known = torch.cat([torch.zeros_like(losses[:1]), losses.cumsum(0)[:-1]])
    before = (precise(log_prior) - known).log_softmax(-1)
    return hedge_value(before, losses, tau=1.0)


def capped(log_weights: Tensor, log_prior: Tensor, unaudited: Tensor, w_max: float = 0.5) -> Tensor:
    """(K,) log weights in which labels did not lift the share of unaudited heads above `w_max`.

    log_weights, log_prior: (K,); unaudited: (K,) true for heads that no audit has passed. Their share may always be
    what it was before any label; above that and above `w_max`, they are scaled down together and the audited
    heads up, so that nobody can label a way around the audit.

    >>> weights, even = torch.tensor([0.1, 0.9]).log(), torch.tensor([0.5, 0.5]).log()
    >>> capped(weights, even, torch.tensor([False, True])).exp()
    tensor([0.5000, 0.5000])
    """
    weights, prior = precise(log_weights).exp(), precise(log_prior).exp()
    share, allowed = weights[unaudited].sum(), prior[unaudited].sum().clamp(min=w_max)
    # Audited heads that have lost all weight to the labels take over as they stood before them.
    rest = (weights if weights[~unaudited].sum() > 0 else prior).masked_fill(unaudited, 0.0)
    if share <= allowed or rest.sum() == 0:
        return log_weights
    scaled = torch.where(unaudited, weights * allowed / share, rest * (1 - allowed) / rest.sum())
    return scaled.log()


@dataclass(frozen=True)
class _User:
    """What is kept of a person: the weights (K,) that follow from the labels, and how many there were.

    Shares in float64 rather than logarithms: a file of them can be read, and comes back bit for bit.
    """

    weights: Tensor
    n_labels: int


class UserStore:
    """The weights of people over named heads, and of how many labels each was learned.

    log_prior: (K,) where everyone starts, uniform by default. unaudited: names of heads whose share labels may not
    lift above `w_max` (see `capped`); it is applied on the way out, so a later audit holds for everyone.

    >>> store = UserStore(("brief", "thorough"))
    >>> store.learn("ada", torch.tensor([[2.0, -2.0]]))
    >>> store.log_weights("ada").exp(), store.n_labels("ada"), store.n_labels("bob")
    (tensor([0.8808, 0.1192]), 1, 0)
    """

    def __init__(
        self,
        names: Sequence[str],
        log_prior: Tensor | None = None,
        *,
        unaudited: Sequence[str] = (),
        w_max: float = 0.5,
    ) -> None:
        self.names = tuple(names)
        even = torch.zeros(len(self.names)).log_softmax(-1)
        self.prior = (even if log_prior is None else log_prior).double().exp()
        if self.prior.shape != (len(self.names),):
            raise ValueError(f"{len(self.names)} heads need a prior of as many, got {tuple(self.prior.shape)}")
        if unknown := sorted(set(unaudited) - set(self.names)):
            raise UserError(f"no heads called {', '.join(unknown)}; the heads are {', '.join(self.names)}")
        if not 0 <= w_max <= 1:
            raise UserError(f"w_max, the largest share of unaudited heads, lies between 0 and 1, got {w_max}")
        self.unaudited = torch.tensor([name in unaudited for name in self.names])
        self.w_max = w_max
        self._users: dict[str, _User] = {}

    @property
    def users(self) -> tuple[str, ...]:
        """The people with at least one label."""
        return tuple(self._users)

    def n_labels(self, user: str) -> int:
        """How many labels the weights of `user` rest on; 0 means that the prior speaks."""
        return self._users[user].n_labels if user in self._users else 0

    def log_weights(self, user: str) -> Tensor:
        """(K,) log weights of `user`, capped; the prior for someone without labels."""
        weights = self._users[user].weights if user in self._users else self.prior
        return capped(weights.log(), self.prior.log(), self.unaudited, self.w_max).float()

    def learn(self, user: str, deltas: Tensor, tau: float = 1.0) -> None:
        """Add labels of `user`, (m, K) rewards of the chosen minus the rejected answers, to those known before.

        Raises `UserError` for another number of heads or rewards that are not finite.
        """
        if deltas.ndim != 2 or deltas.shape[1] != len(self.names):
            raise UserError(
                f"labels of {user!r} must have a column for each of {', '.join(self.names)}, got {tuple(deltas.shape)}"
            )
        if not torch.isfinite(deltas).all():
            raise UserError(f"labels of {user!r} have rewards that are not finite; score them again")
        if len(deltas):
            known = self._users.get(user, _User(self.prior, 0))
            log_weights = adapt(known.weights.log(), deltas.cpu().double(), tau)
            self._users[user] = _User(log_weights.exp(), known.n_labels + len(deltas))

    def forget(self, user: str) -> None:
        """Remove what is kept of `user`, who then gets the prior."""
        self._users.pop(user, None)

    def save(self, path: str | Path) -> None:
        """Write the store as JSON; a reader sees the old file or the new one, never a part."""
        users = {
            name: {"weights": user.weights.tolist(), "n_labels": user.n_labels}
            for name, user in sorted(self._users.items())
        }
        values = {"heads": list(self.names), "prior": self.prior.tolist(), "users": users}
        target = Path(path)
        partial = target.with_name(f"{target.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path, names: Sequence[str], **rules: Any) -> "UserStore":
        """The store written at `path`, for a model with the heads `names`; rules: `unaudited` and `w_max`.

        Raises `UserError` when the file is missing, damaged, or belongs to other heads.
        """
        values = _read(Path(path))
        _require_heads(Path(path), values["heads"], names)
        store = cls(names, **rules)
        store.prior = _simplex(path, "the prior", values["prior"], len(names))
        for name, user in values["users"].items():
            weights = _simplex(path, f"user {name}", user["weights"], len(names))
            store._users[name] = _User(weights, int(user["n_labels"]))
        return store


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no users at {path}; give the file that a user store was saved to") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from a copy") from error
    if not _holds(values, "heads", "prior", "users") or not all(
        _holds(user, "weights", "n_labels") for user in values["users"].values()
    ):
        raise UserError(f"{path} is no user store: it needs heads, prior, and users with weights and n_labels")
    return dict(values)


def _holds(values: Any, *keys: str) -> bool:
    return isinstance(values, dict) and values.keys() >= set(keys)


def _require_heads(path: Path, stored: Sequence[str], names: Sequence[str]) -> None:
    if list(stored) == list(names):
        return
    raise UserError(
        f"{path} holds weights over {len(stored)} heads ({', '.join(stored)}), and the model has {len(names)} "
        f"({', '.join(names)}); weights mean nothing for other heads, so learn the users again with this model"
    )


def _simplex(path: str | Path, what: str, numbers: Any, heads: int) -> Tensor:
    weights = torch.tensor(numbers, dtype=torch.float64)
    # A prior that was given in float32 misses 1 by rounding alone.
    if weights.shape != (heads,) or not (weights >= 0).all() or not abs(float(weights.sum()) - 1) < 1e-4:
        raise UserError(f"{path}: {what}: its weights are not {heads} shares that sum to 1, got {numbers}")
    return weights

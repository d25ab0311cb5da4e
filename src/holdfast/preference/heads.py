"""What is done with trained heads before they are used: compare, merge, audit, align, standardise."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from holdfast.errors import UserError
from holdfast.models.router import Router
from holdfast.preference.check import wins
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import MixtureHeads
from holdfast.stats.estimate import Estimate, share


def correlation(delta: Tensor) -> Tensor:
    """(K, K) correlation of the heads' margins over held-out pairs, delta (N, K).

    The label orders the two answers of a pair, which alone makes all good heads agree. So both orders are
    counted, which makes the mean zero and the correlation a cosine.

    >>> correlation(torch.tensor([[1.0, -2.0, 1.0], [1.0, -2.0, -1.0]])).round()
    tensor([[ 1., -1.,  0.],
            [-1.,  1.,  0.],
            [ 0.,  0.,  1.]])
    """
    unit = torch.nn.functional.normalize(delta.double(), dim=0)
    return (unit.T @ unit).to(delta.dtype)


@torch.no_grad()
def merge(heads: MixtureHeads, held_out: PairFeatures, most: float = 0.95) -> tuple[MixtureHeads, list[list[int]]]:
    """Heads in which those that correlate above `most` on held-out pairs are one, and who went into each.

    Of each group the head with most weight on `held_out` stays, and its router output is raised by the logarithm
    of the group's share over its own: exactly the sum of weights for a static router, their average for others.
    Masked heads are merged only with masked ones.
    """
    groups = _groups(correlation(heads.delta(held_out.difference)), heads.masked, most)
    share = heads.log_weights(held_out.router).exp().mean(0)
    kept = [max(group, key=lambda k: float(share[k])) for group in groups]
    # A masked head has share 0 in its group and alone.
    raised = torch.stack([(share[group].sum() / share[k]).log().nan_to_num() for group, k in zip(groups, kept)])
    return MixtureHeads(heads.weight[kept], _narrowed(heads.router, kept, raised), heads.masked[kept]), groups


def _narrowed(router: Router, kept: Sequence[int], raised: Tensor) -> Router:
    """The router with the outputs `kept`, raised by `raised`."""
    state = router.state_dict()
    last, bias = ("logits", "logits") if router.kind == "static" else ("last.weight", "last.bias")
    state[last] = state[last][kept]
    state[bias] = (state[bias] if bias == last else state[bias][kept]) + raised
    units = 1 if router.kind != "mlp" else len(state["hidden.bias"])
    result = Router(router.kind, router.features, len(kept), units, router.seed)
    result.load_state_dict(state)
    return result


def _groups(correlations: Tensor, masked: Tensor, most: float) -> list[list[int]]:
    """Connected heads: those above `most`, and those connected to them in turn."""
    groups: list[list[int]] = []
    for head in range(len(correlations)):
        near = [g for g in groups if any(correlations[head, k] > most and masked[head] == masked[k] for k in g)]
        groups = [g for g in groups if g not in near]
        groups.append(sorted([head, *(k for g in near for k in g)]))
    return sorted(groups)


@dataclass(frozen=True)
class HeadAudit:
    """How often one head prefers the safe answer, and whether the whole interval lies below one half."""

    head: str
    accuracy: Estimate
    mask: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {**asdict(self), "accuracy": self.accuracy.to_dict()}


@torch.no_grad()
def audit(
    heads: MixtureHeads, safety: PairFeatures, names: Sequence[str], clusters: Sequence[Hashable] | None = None
) -> list[HeadAudit]:
    """For each head its accuracy on pairs whose chosen answer is the safe one; `mask` where it surely prefers harm.

    clusters: (N,) the prompt of each pair. Raises `UserError` for fewer than two prompts, which say nothing.
    """
    units = len(safety) if clusters is None else len(set(clusters))
    if units < 2:
        raise UserError(f"an audit needs pairs of at least two prompts, got {units}; give more safety pairs")
    right = wins(heads.delta(safety.difference).cpu().numpy())
    found = [share(column, clusters) for column in right.T]
    return [HeadAudit(name, one, one.high < 0.5) for name, one in zip(names, found)]


def align(first: Tensor, second: Tensor) -> list[int]:
    """For each head of one solution, which head of the other is the same: heads come in any order.

    first, second: (N, K) margins of both solutions on the same pairs. The matching with the highest total correlation
    (Hungarian method).

    >>> align(torch.tensor([[1.0, -1.0], [2.0, 0.0]]), torch.tensor([[-1.0, 1.0], [0.0, 3.0]]))
    [1, 0]
    """
    if first.shape != second.shape:
        raise ValueError(f"two solutions on the same pairs are needed, got {tuple(first.shape)}, {tuple(second.shape)}")
    one, two = (torch.nn.functional.normalize(each.double(), dim=0) for each in (first, second))
    _, order = linear_sum_assignment((one.T @ two).cpu().numpy(), maximize=True)
    return [int(place) for place in np.asarray(order)]


@torch.no_grad()
def reward_scale(heads: MixtureHeads, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (K,) and standard deviation (K,) of every head's reward over reference answers phi (N, h)."""
    rewards = phi @ heads.weight.T
    return rewards.mean(0), rewards.std(0)

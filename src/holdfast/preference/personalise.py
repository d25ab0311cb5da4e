"""How well preferences of *different* people are predicted: cells, groups, few labels, reversals, the router.

One accuracy over all pairs hides whom a model serves. Everything here counts by group or by person, and every number
carries its interval, people being the sampling units where there are people.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from holdfast.engine.seeds import generator
from holdfast.errors import UserError
from holdfast.losses.mixture import responsibilities
from holdfast.losses.reduce import precise
from holdfast.preference.adapt import adapt
from holdfast.preference.aggregate import rows_of
from holdfast.preference.check import wins
from holdfast.preference.features import PairFeatures
from holdfast.preference.heads import correlation
from holdfast.preference.mixture import MixtureHeads
from holdfast.stats.estimate import Estimate, mean, share

SIZES = (0, 1, 2, 3, 5, 10, 20, 50)
"""Labels of a new person at which the adaptation curve is read."""


class Origin(NamedTuple):
    """Where a pair comes from; an empty user or context is none."""

    prompt: str
    user: str = ""
    context: str = ""


def cells(rows: Sequence[Origin], fitted: Sequence[Origin]) -> dict[str, list[int]]:
    """Which rows ask what: places by cell, given the rows that were learned from. Every row is in one cell.

    `fit` asks nothing new; `new_prompts` is a known user's new prompt; `new_users` a new user's new prompt, for a few
    labels; `new_contexts` a criterion never seen; `new_users_old_prompts` is left for completeness.

    >>> cells([Origin("p", "ann"), Origin("q", "bob")], fitted=[Origin("p", "ann")])["new_users"]
    [1]
    """
    prompts, users, contexts = ({row[i] for row in fitted} for i in range(3))
    names = {(False, False): "fit", (False, True): "new_prompts", (True, True): "new_users"}
    found: dict[str, list[int]] = {n: [] for n in (*names.values(), "new_contexts", "new_users_old_prompts")}
    for place, row in enumerate(rows):
        new = names.get((row.user not in users, row.prompt not in prompts), "new_users_old_prompts")
        found["new_contexts" if row.context not in contexts else new].append(place)
    return found


def right(delta: Tensor, log_weights: Tensor) -> NDArray[np.float64]:
    """(...,) 1 where the mixture finds the label more probable than not, 1/2 at a tie, 0 otherwise.

    delta, log_weights: (..., K). sum_k f_k sigmoid(delta_k) > 1/2 is sum_k f_k tanh(delta_k / 2) > 0, and in this form
    opposite heads of equal weight cancel exactly, where the sum of probabilities is one half but for rounding.

    >>> right(torch.tensor([[1.3, -1.3], [1.3, -1.2]]), torch.full((2, 2), 0.5).log()).tolist()
    [0.5, 1.0]
    """
    lead = (precise(log_weights).exp() * (precise(delta) / 2).tanh()).sum(-1)
    return wins(lead.detach().cpu().numpy())


def grouped(
    values: ArrayLike, groups: Sequence[Hashable], users: Sequence[Hashable] | None = None
) -> dict[Hashable, Estimate]:
    """The mean of `values` (N,) in each group, by user where there are users.

    Raises `UserError` for a group with one sampling unit, whose spread nobody knows.
    """
    numbers = np.asarray(values, dtype=np.float64)
    found = {}
    for group, places in rows_of(groups).items():
        clusters = None if users is None else [users[i] for i in places]
        if len(places if clusters is None else set(clusters)) < 2:
            raise UserError(f"group {group!r} has a single {'pair' if users is None else 'user'}; add some or drop it")
        found[group] = share(numbers[places], clusters)
    return found


def macro(found: dict[Hashable, Estimate]) -> Estimate:
    """The plain average over groups, whatever their sizes; the groups' independent intervals add in squares.

    >>> str(macro({"a": Estimate(0.5, 0.4, 0.6, 9, ""), "b": Estimate(0.7, 0.6, 0.8, 9, "")}))
    '0.60 [0.53, 0.67] n=18'
    """
    each = list(found.values())
    value = sum(one.value for one in each) / len(each)
    low, high = (
        math.sqrt(sum((getattr(one, side) - one.value) ** 2 for one in each)) / len(each) for side in ("low", "high")
    )
    return Estimate(value, value - low, value + high, sum(one.n for one in each), "macro over groups")


def worst(found: dict[Hashable, Estimate]) -> tuple[Hashable, Estimate]:
    """The group with the lowest value. Its interval does not allow for having been picked."""
    return min(found.items(), key=lambda item: item[1].value)


@dataclass(frozen=True)
class Curve:
    """Accuracy on a person's other pairs after m labels: (U, M) by person and size, averaged over draws.

    left_out: people with too few pairs for the largest size, who are at no point of the curve.
    """

    sizes: tuple[int, ...]
    users: tuple[Hashable, ...]
    accuracy: NDArray[np.float64]
    left_out: tuple[Hashable, ...] = ()

    def at(self, size: int) -> Estimate:
        """The mean over people after `size` labels."""
        return mean(self.accuracy[:, self.sizes.index(size)], within=(0, 1))

    def points(self) -> dict[int, Estimate]:
        """The mean over people at every size."""
        return {size: self.at(size) for size in self.sizes}

    def area(self) -> Estimate:
        """The average height over log(1 + m), by the trapezoidal rule: early labels count as much as many late ones."""
        at = np.log1p(self.sizes)
        widths = np.diff(at)
        heights = (self.accuracy[:, 1:] + self.accuracy[:, :-1]) / 2
        return mean(heights @ widths / widths.sum(), within=(0, 1))

    def needed(self, oracle: float, part: float = 0.9) -> int | None:
        """The fewest labels that close `part` of the gap between no label and the oracle's accuracy; None if none."""
        heights = self.accuracy.mean(0)
        goal = heights[0] + part * (oracle - heights[0])
        return next((size for size, height in zip(self.sizes, heights) if height >= goal), None)

    def worst_decile(self, size: int) -> float:
        """The mean of the tenth of people who are served worst after `size` labels."""
        ordered = np.sort(self.accuracy[:, self.sizes.index(size)])
        return float(ordered[: max(1, len(ordered) // 10)].mean())


def adaptation_curve(
    deltas: Tensor,
    users: Sequence[Hashable],
    log_prior: Tensor,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 20,
    tau: float = 1.0,
    seed: int = 0,
) -> Curve:
    """How accuracy grows with labels of a new person, whose weights are `adapt`ed from `log_prior` (K,).

    deltas: (N, K) margins of pairs that nobody trained on; users: (N,) whose they are. Each draw shuffles a person's
    pairs; the first m are labels and those after the largest m are asked, the same ones at every size.
    Raises `UserError` when fewer than two people have enough pairs.
    """
    most = max(sizes)
    places = rows_of(users)
    usable = {user: own for user, own in places.items() if len(own) > most}
    if len(usable) < 2:
        raise UserError(f"{len(usable)} people have more than {most} pairs; lower the sizes or bring more labels")
    table = np.zeros((len(usable), len(sizes)))
    for number, own in enumerate(usable.values()):
        for draw in range(draws):
            order = torch.randperm(len(own), generator=generator(seed, number, draw))
            mine = precise(deltas[own])[order]
            weights = torch.stack([adapt(log_prior, mine[:size], tau) for size in sizes])
            table[number] += right(mine[most:], weights[:, None]).mean(1) / draws
    return Curve(tuple(sizes), tuple(usable), table, tuple(user for user in places if user not in usable))


def reversal(correct: ArrayLike, pair_ids: Sequence[Hashable]) -> Estimate:
    """How often both labels of a pair that two criteria judge oppositely are right; by chance a quarter.

    correct: (N,) 1, 1/2 or 0; pair_ids: (N,). Raises `UserError` for an id that does not occur exactly twice.
    """
    numbers = np.asarray(correct, dtype=np.float64)
    places = rows_of(pair_ids)
    odd = [pair for pair, found in places.items() if len(found) != 2]
    if odd:
        raise UserError(f"{len(odd)} pairs do not occur exactly twice, such as {odd[0]!r}; both directions are needed")
    return share([numbers[found].prod() for found in places.values()])


def shuffled(features: PairFeatures, seed: int = 0) -> PairFeatures:
    """The pairs with the router features of other pairs: what reads contexts must fall to chance on these."""
    order = torch.randperm(len(features), generator=generator(seed))
    # Everyone gets the next one in a random round, so nobody keeps their own.
    router = torch.empty_like(features.router)
    router[order] = features.router[order.roll(1)]
    return replace(features, router=router)


@dataclass(frozen=True)
class RouterUse:
    """What the router does: spread, entropy of the weights over log K; share of each head once labels are known;
    highest correlation of two heads."""

    spread: Estimate
    shares: tuple[Estimate, ...]
    correlation: float

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        shares = [one.to_dict() for one in self.shares]
        return {"spread": self.spread.to_dict(), "shares": shares, "correlation": self.correlation}


@torch.no_grad()
def router_use(heads: MixtureHeads, features: PairFeatures, users: Sequence[Hashable] | None = None) -> RouterUse:
    """Spread 1 says that the router decides nothing, 0 that it is always certain; a share of 0 is an idle head."""
    delta, log_weights = heads.delta(features.difference), heads.log_weights(features.router)
    weights = log_weights.exp()
    spread = torch.special.entr(weights).sum(-1) / math.log(max(weights.shape[1], 2))
    shares = responsibilities(delta, log_weights)
    off = correlation(delta) - 2 * torch.eye(delta.shape[1], device=delta.device)
    # Rounding may step over the ends.
    inside = np.clip(torch.cat([spread[:, None], shares], dim=1).cpu().numpy(), 0, 1)
    found = [mean(column, users, within=(0, 1)) for column in inside.T]
    return RouterUse(found[0], tuple(found[1:]), float(off.max()))


@torch.no_grad()
def routed(heads: MixtureHeads, features: PairFeatures) -> NDArray[np.float64]:
    """(N,) 1, 1/2 or 0: whether the mixture, weighed by each pair's router features, predicts its label."""
    return right(heads.delta(features.difference), heads.log_weights(features.router))

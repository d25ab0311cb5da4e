"""Whether a limit is within reach, before any training: read off answers the reference gives today.

For multipliers l_j the policy that maximises E[R - sum_j l_j C_j] - b KL(policy, reference) reweighs the answers of
the reference to each prompt by softmax((R - sum_j l_j C_j) / b): K answers per prompt show what a limit would take
(one-shot dualisation, arXiv 2405.19544). P prompts, K samples of each; a larger cost is worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from holdfast.errors import UserError
from holdfast.stats import estimate
from holdfast.training.lagrangian import ConstraintSettings

Array = NDArray[np.float64]
Mode = Literal["split", "reward_only"]

GRID = 129  # multipliers at which every prompt's cost is known; between them curves are nearly straight
SWEEPS = 1000
SETTLED = 1e-7  # relative change of a multiplier below which it stands still
SLACK = 1e-6  # of a mean cost against its limit, for multipliers that only nearly stand still
ROUNDING = 1e-12  # must not break a limit that is met exactly


@dataclass(frozen=True)
class Reach:
    """What one limit takes, on the scale on which a larger cost is worse.

    multiplier: the smallest that keeps the limit, or where none does the one of least cost; low, high: its 95 %
    bootstrap interval over prompts, multipliers of other limits held, the ceiling standing for out of reach; cost: of
    the best policy at it; cost_free: of the best policy for the reward alone; cost_now: of the reference; cost_least:
    of the least costly answer to each prompt; effective: how many of the K answers to a prompt carry the weight,
    1 / sum w^2, on average.
    """

    name: str
    threshold: float
    reachable: bool
    multiplier: float
    low: float
    high: float
    cost: float
    cost_free: float
    cost_now: float
    cost_least: float
    effective: float
    samples: int
    prompts: int
    ceiling: float

    @property
    def words(self) -> str:
        """What a person should know: the finding, and what it rests on."""
        rests = (
            f"This is read off {self.samples} answers of the reference to each of {self.prompts} prompts and says "
            "nothing about answers it did not give"
        )
        if self.reachable and self.effective < min(2, self.samples / 2):
            rests += (
                f"; the best policy would rest on {self.effective:.2g} of them a prompt, so its numbers are a guess"
            )
        return f"{self.name}: {self._finding()}. {rests}."

    def _finding(self) -> str:
        limit = f"the limit {self.threshold:.3g}"
        if self.cost_least > self.threshold + SLACK:
            least = f"even the least costly of {self.samples} answers to each prompt cost {self.cost_least:.3g}"
            return f"{limit} is out of reach on these samples: {least} on average"
        if not self.reachable:
            return (
                f"{limit} is not kept by any multiplier up to the ceiling {self.ceiling:g}: the best policy still "
                f"costs {self.cost:.3g}, and the least costly answers {self.cost_least:.3g}; a smaller KL weight or a "
                "higher ceiling may reach it"
            )
        if self.multiplier > 0:
            high = f"{self.high:.3g}" if self.high < self.ceiling else "out of reach"
            return (
                f"{limit} needs a multiplier of about {self.multiplier:.3g} (95%: {self.low:.3g} to {high}); "
                f"raising the reward alone would cost {self.cost_free:.3g}, today's answers cost {self.cost_now:.3g}"
            )
        if self.cost_now > self.threshold:
            return (
                f"{limit} is broken today ({self.cost_now:.3g}), and the best policy comes below it without a "
                f"multiplier ({self.cost:.3g})"
            )
        return (
            f"{limit} holds today ({self.cost_now:.3g}) and needs no multiplier: the best policy costs {self.cost:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields and the words, ready for JSON."""
        return asdict(self) | {"words": self.words}


def estimate_lambda(
    rewards: ArrayLike, costs: ArrayLike, threshold: float, kl: float, mode: Mode = "split", ceiling: float = 20.0
) -> Reach:
    """The smallest multiplier in [0, ceiling] whose best policy keeps the mean cost at or below the threshold.

    rewards, costs: (P, K) of the reference's answers, on the scale the policy is trained on; kl: the weight b of the
    KL, which `split` makes (1 + l) b in units of R - l C, because it stands in the cost as in the reward. In
    `reward_only` mode the mean cost falls with l; in `split` mode it may rise again where the reward itself dislikes
    cost more than the cost does, and the first crossing counts. Raises `UserError` for shapes that differ, fewer than
    two prompts or samples, scores that are not finite, and a KL weight or ceiling that is not positive.

    >>> found = estimate_lambda([[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2, threshold=0.5, kl=0.5, mode="reward_only")
    >>> found.reachable, round(found.multiplier, 6), round(found.cost_free, 4)  # even odds where R = l C; s(2)
    (True, 1.0, 0.8808)
    """
    return estimate_lambdas(rewards, {"cost": costs}, {"cost": threshold}, kl, mode, ceiling)["cost"]


def estimate_lambdas(
    rewards: ArrayLike,
    costs: Mapping[str, ArrayLike],
    thresholds: Mapping[str, float],
    kl: float,
    mode: Mode = "split",
    ceiling: float = 20.0,
) -> dict[str, Reach]:
    """What each of several limits takes when all are to be kept at once; the rest as in `estimate_lambda`.

    Each multiplier in turn is set to the smallest that keeps its limit, the others held, until none moves. In
    `reward_only` mode this is coordinate descent on the convex dual b E[log mean exp((R - sum l C) / b)] + sum l tau.
    Raises `UserError` when they do not settle.
    """
    reward, cost = _checked(rewards, costs, thresholds, kl, ceiling)
    grid = np.geomspace(1, 1 + ceiling, GRID) - 1
    multipliers = dict.fromkeys(cost, 0.0)

    def line(name: str) -> _Line:
        others = {other: value for other, value in multipliers.items() if other != name}
        tilted = reward - sum((value * cost[other] for other, value in others.items()), np.zeros_like(reward))
        return _Line(tilted, cost[name], sum(others.values()), kl, mode)

    for _ in range(SWEEPS):
        before = dict(multipliers)
        for name in cost:
            multipliers[name] = line(name).smallest(thresholds[name], grid)
        if all(abs(value - before[name]) <= SETTLED * (1 + value) for name, value in multipliers.items()):
            break
    else:
        raise UserError(
            f"the multipliers of {', '.join(cost)} did not settle: some of these limits measure nearly the same or "
            "pull against each other; estimate them one by one"
        )
    free = _Line(reward, np.zeros_like(reward), 0.0, kl, mode).weights(0.0)
    return {name: line(name).reach(name, thresholds[name], multipliers[name], free, grid) for name in cost}


@dataclass(frozen=True)
class _Line:
    """Every multiplier of one limit, those of the others held.

    rewards: (P, K) less what the other limits take; costs: (P, K); held: the sum of the other multipliers.
    """

    rewards: Array
    costs: Array
    held: float
    kl: float
    mode: Mode

    def weights(self, multiplier: float) -> Array:
        """(P, K) how the best policy reweighs the answers to each prompt."""
        kl = self.kl * (1 + self.held + multiplier) if self.mode == "split" else self.kl
        return np.asarray(softmax((self.rewards - multiplier * self.costs) / kl, axis=-1))

    def cost(self, multiplier: float) -> float:
        """The best policy's mean cost."""
        return _mean(self.weights(multiplier) * self.costs)

    def smallest(self, threshold: float, grid: Array) -> float:
        """The smallest multiplier that keeps the limit; the one of least cost where none on the grid does."""
        curve = np.array([self.cost(multiplier) for multiplier in grid])
        place = _first_kept(curve, threshold)
        if place is None:
            return float(grid[curve.argmin()])
        if place == 0:
            return 0.0
        return self._between(grid[place - 1], grid[place], threshold)

    def _between(self, low: float, high: float, threshold: float) -> float:
        """The multiplier at which the limit begins to be kept, by bisection; at `high` it is."""
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self.cost(middle) <= threshold else (middle, high)
        return float(high)

    def reach(self, name: str, threshold: float, multiplier: float, free: Array, grid: Array) -> Reach:
        """What this limit takes at its multiplier; `free`: the weights of the best policy for the reward alone."""
        prompts, samples = self.costs.shape
        weights, cost = self.weights(multiplier), self.cost(multiplier)
        low, high = self._interval(threshold, grid)
        return Reach(
            name=name,
            threshold=float(threshold),
            reachable=cost <= threshold + SLACK,
            multiplier=multiplier,
            low=min(low, multiplier),  # interpolation may miss by a hair
            high=max(high, multiplier),
            cost=cost,
            cost_free=_mean(free * self.costs),
            cost_now=float(self.costs.mean()),
            cost_least=float(self.costs.min(-1).mean()),
            effective=float((1 / np.square(weights).sum(-1)).mean()),
            samples=samples,
            prompts=prompts,
            ceiling=float(grid[-1]),
        )

    def _interval(self, threshold: float, grid: Array) -> tuple[float, float]:
        """The bootstrap interval of the multiplier over prompts, linear between the multipliers of the grid."""
        table = np.stack([(self.weights(each) * self.costs).sum(-1) for each in grid], axis=-1)

        def crossing(rows: NDArray[np.intp]) -> float:
            curve = table[rows].mean(0)
            place = _first_kept(curve, threshold)
            if place is None or place == 0:
                return 0.0 if place == 0 else float(grid[-1])
            share = (curve[place - 1] - threshold) / (curve[place - 1] - curve[place])
            return float(grid[place - 1] + share * (grid[place] - grid[place - 1]))

        found = estimate.bootstrap(crossing, len(table), samples=500)
        return found.low, found.high


def _mean(weighted: Array) -> float:
    """The mean over prompts of sums over their answers."""
    return float(weighted.sum(-1).mean())


def _first_kept(curve: Array, threshold: float) -> int | None:
    """The first place on a curve of mean costs that keeps the limit, None where no place does."""
    kept = np.flatnonzero(curve <= threshold + ROUNDING)
    return int(kept[0]) if kept.size else None


def _checked(
    rewards: ArrayLike, costs: Mapping[str, ArrayLike], thresholds: Mapping[str, float], kl: float, ceiling: float
) -> tuple[Array, dict[str, Array]]:
    if not costs or costs.keys() != thresholds.keys():
        raise UserError(f"costs {sorted(costs)} and thresholds {sorted(thresholds)} must share their names")
    if not (kl > 0 and ceiling > 0):
        raise UserError(f"the KL weight and the ceiling must be above zero, got {kl:g} and {ceiling:g}")
    reward = np.asarray(rewards, dtype=np.float64)
    tables = {name: np.asarray(table, dtype=np.float64) for name, table in costs.items()}
    shape = reward.shape
    if len(shape) != 2 or min(shape) < 2:
        raise UserError(
            f"rewards have the shape {shape}; give (prompts, samples) with at least two of each, because a policy is "
            "judged by which answers to a prompt it prefers"
        )
    for name, table in [("rewards", reward), *tables.items()]:
        if table.shape != shape:
            raise UserError(f"{name} has the shape {table.shape}, the rewards have {shape}; score the same answers")
        if wrong := int((~np.isfinite(table)).sum()):
            raise UserError(f"{name}: {wrong} of {table.size} scores are not finite; leave out those prompts")
    return reward, tables


@dataclass(frozen=True)
class Suggestion:
    """A threshold that makes the policy safer than it is now, and why.

    from_safe: the mean cost of answers labelled safe, None without labels; from_now: the present mean less a margin.
    """

    threshold: float
    from_safe: float | None
    from_now: float
    words: str


def suggest_threshold(
    costs: ArrayLike, safe: Sequence[bool | None] | None = None, *, now: float | None = None, margin: float = 0.25
) -> Suggestion:
    """The lower of two limits: what answers labelled safe cost, and what the policy costs now less a margin.

    costs: (N,) a larger one worse; safe: whether each answer is safe, None where nobody said; now: the policy's mean
    cost, when the answers are not its own; margin: in standard deviations of the costs, cut at the least cost seen,
    below which no policy could come. A limit above the present cost would allow more harm than there is. Raises
    `UserError` for fewer than two costs, costs that are not finite, labels of another number, and no safe answer.

    >>> suggest_threshold([0.0, 1.0, 2.0, 3.0], [True, True, False, None]).threshold
    0.5
    """
    values = np.asarray(costs, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise UserError(f"a threshold needs a list of at least two finite costs, got the shape {values.shape}")
    mean = float(values.mean()) if now is None else now
    from_now = max(mean - margin * float(values.std(ddof=1)), min(float(values.min()), mean))
    from_safe = None if safe is None else _cost_of_safe(values, safe)
    if from_safe is not None and from_safe <= from_now:
        threshold, why = from_safe, "what answers labelled safe cost on average"
    else:
        threshold, why = from_now, f"what the policy costs now less {margin:g} standard deviations"
    words = f"a threshold of {threshold:.3g} is suggested: {why}; the policy's mean cost is {mean:.3g} now"
    if from_safe is not None and from_safe > from_now:
        words += f", and answers labelled safe cost {from_safe:.3g}, which would bind less"
    return Suggestion(threshold, from_safe, from_now, words)


def _cost_of_safe(values: Array, safe: Sequence[bool | None]) -> float:
    if len(safe) != values.size:
        raise UserError(f"{values.size} costs and {len(safe)} labels given; give one label for each, None if unknown")
    chosen = values[[label is not None and bool(label) for label in safe]]
    if not chosen.size:
        raise UserError(f"none of the {values.size} answers is labelled safe; give some that are, or no labels")
    return float(chosen.mean())


def permits_more(settings: ConstraintSettings, cost_now: float) -> str | None:
    """A warning when the limit lies on the harmful side of what the policy does now, None otherwise.

    cost_now: the policy's mean of the measure, in its own direction. A limit is no aim: where it permits more harm,
    a reward that pays for harm gets it.

    >>> permits_more(ConstraintSettings(threshold=0.05), 0.2) is None
    True
    """
    least = settings.direction == "at_least"
    if cost_now <= settings.threshold if least else cost_now >= settings.threshold:
        return None
    side, further = ("at least", "below") if least else ("at most", "above")
    return (
        f"constraint {settings.name}: this limit permits more harm than the policy does now: its mean "
        f"{settings.measure} is {cost_now:.3g}, the limit {side} {settings.threshold:g}; training may drift to it, so "
        f"set the threshold no further {further} than {cost_now:.3g}"
    )

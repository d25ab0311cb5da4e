"""What `micro_hh` trains and asks in one fold: the rows R0, R1, R2 and R4, on cached embeddings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.losses.mixture import probability
from holdfast.preference import baselines
from holdfast.preference.adapt import adapt
from holdfast.preference.check import wins
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import MixtureHeads, MixtureSettings, train_heads
from holdfast.stats.estimate import places
from holdfast.studies.hh import GROUPS


class Plan(Settings):
    """The protocol of the study; fixed before it was run."""

    folds: int = Field(5, ge=2)
    """Parts of the prompts, each held out once."""
    pairs: int | None = Field(None, ge=20)
    """Pairs of each group; null takes all."""
    small_steps: int = Field(0, ge=0)
    """Steps of training of a small encoder; 0 takes MiniLM."""
    scale: float = Field(5.0, gt=0)
    """What differences of embeddings of length one are multiplied by."""
    steps: int = Field(150, ge=1)
    """Full-batch steps of every fit."""
    learning_rate: float = Field(0.03, gt=0)
    """Constant."""
    restarts: int = Field(2, ge=1)
    """Starts of a mixture."""
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    """Weights of the squared norm, of which a fifth of the training prompts chooses one."""
    scratch_penalties: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """The same for models of few labels; the best is taken by its accuracy on the test pairs, in their favour."""
    budgets: tuple[int, ...] = (5, 10, 25, 50, 100, 400)
    """Labels per group from which the heads are weighed."""
    scratch_budgets: tuple[int, ...] = (10, 50, 400)
    """Labels per group from which a model is trained from nothing."""
    few_shot: tuple[int, ...] = (5, 10, 20, 50)
    """Labels of a new user."""
    draws: int = Field(20, ge=1)
    """Draws of labels in each fold."""
    scratch_draws: int = Field(3, ge=1)
    """Draws in which a model is trained from nothing; the first ones of `draws`."""
    user_pairs: int = Field(20, ge=1)
    """Pairs of one hidden user."""
    axes: int = Field(4, ge=1)
    """Principal axes of the prompts that the conditioned score reads."""
    majority: float = Field(0.6, gt=0.5, lt=1)
    """Share of users of the first hidden type."""

    def fit(self, seed: int) -> FitSettings:
        """Full batches of all rows, Adam at a constant rate."""
        optimiser = OptimiserSettings(learning_rate=self.learning_rate, schedule="constant", warmup_ratio=0.0)
        return FitSettings(epochs=self.steps, batch_size=10**9, optimiser=optimiser, seed=seed)


class Model(Protocol):
    """What holds one of two answers more likely to be preferred."""

    def probability(self, features: PairFeatures) -> Tensor:
        """(N,) probability of each pair's label."""


@dataclass(frozen=True)
class Baseline:
    """A Bradley-Terry score as a `Model`; `axes` (d, c) and `centre` (d,) shorten what it reads of the prompt."""

    score: nn.Module
    centre: Tensor | None = None
    axes: Tensor | None = None

    def probability(self, features: PairFeatures) -> Tensor:
        """(N,) the logistic function of the score's difference."""
        return baselines.delta_of(self.score, shortened(features, self.centre, self.axes))[:, 0].sigmoid()


Learner = Callable[[PairFeatures, float], Model]


@dataclass(frozen=True)
class World:
    """N pairs: their features with the labels of people, whether harmlessness was asked for, their prompts.

    longer: (N,) 1 where the preferred answer has more words, 0.5 where both have as many.
    """

    features: PairFeatures
    harmless: NDArray[np.bool_]
    prompts: tuple[str, ...]
    longer: NDArray[np.float64]


@dataclass
class Tally:
    """How often each of N pairs was answered rightly, by name of the arm; a pair may be asked several times."""

    n: int
    right: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    asked: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, arm: str, index: NDArray[np.intp], value: NDArray[np.floating]) -> None:
        """Count `value`, one number per pair of `index`."""
        np.add.at(self.right.setdefault(arm, np.zeros(self.n)), index, value)
        np.add.at(self.asked.setdefault(arm, np.zeros(self.n)), index, 1.0)

    def judge(self, arm: str, index: NDArray[np.intp], likely: Tensor) -> None:
        """Count as right where the label was held more likely than not; half where neither."""
        self.add(arm, index, wins(likely.numpy() - 0.5))

    def means(self) -> dict[str, NDArray[np.float64]]:
        """(N,) for each arm: the mean over the times a pair was asked, NaN where it never was."""
        with np.errstate(invalid="ignore"):
            return {arm: total / self.asked[arm] for arm, total in self.right.items()}


def shortened(features: PairFeatures, centre: Tensor | None, axes: Tensor | None) -> PairFeatures:
    """The same pairs with router features along `axes` (d, c) from `centre` (d,); without them as they are."""
    return features if axes is None else replace(features, router=(features.router - centre) @ axes)


def folds(prompts: Sequence[str], count: int, seed: int) -> NDArray[np.intp]:
    """(N,) the part of each pair, 0..count-1; equal prompts share one.

    >>> parts = folds(["a", "b", "a", "c"], 2, seed=0)
    >>> bool(parts[0] == parts[2]), sorted(set(parts.tolist()))
    (True, [0, 1])
    """
    place = places(prompts)
    return (np.random.default_rng(seed).permutation(place.max() + 1) % count)[place]


def turned(features: PairFeatures, sign: NDArray[np.float64] | float) -> PairFeatures:
    """The same pairs with the label reversed where `sign` is -1.

    >>> turned(PairFeatures(torch.ones(2, 1), torch.ones(2, 1)), np.array([1.0, -1.0])).difference.tolist()
    [[1.0], [-1.0]]
    """
    column = torch.as_tensor(np.broadcast_to(sign, len(features)).copy(), dtype=features.difference.dtype)[:, None]
    return replace(features, difference=features.difference * column)


@dataclass
class Fold:
    """One fold of one seed: its training and its test pairs, and where its answers go."""

    plan: Plan
    world: World
    train: NDArray[np.intp]
    test: NDArray[np.intp]
    seed: int
    tally: Tally

    def group(self, index: NDArray[np.intp], harmless: bool) -> NDArray[np.intp]:
        """Those of `index` that were judged for harmlessness, or for help."""
        return index[self.world.harmless[index] == harmless]

    def judge(self, arm: str, model: Model, labels: PairFeatures, index: NDArray[np.intp] | None = None) -> None:
        """Ask the model for the pairs of `index`, all test pairs by default, whose labels are those of `labels`."""
        index = self.test if index is None else index
        self.tally.judge(arm, index, model.probability(labels.take(index)))

    def validated(self, learn: Learner, labels: PairFeatures, index: NDArray[np.intp]) -> tuple[Model, float]:
        """The model of the pairs of `index`, and its penalty: the one that predicts a fifth of their prompts best."""
        held = folds([self.world.prompts[i] for i in index], 5, self.seed) == 0
        inner, outer = labels.take(index[~held]), labels.take(index[held])
        losses = {one: float(-learn(inner, one).probability(outer).log().mean()) for one in self.plan.penalties}
        best = min(losses, key=losses.__getitem__)
        return learn(labels.take(index), best), best

    def heads(self, heads: int, alpha: float = 0.0, **kind: str) -> Callable[[PairFeatures, float], MixtureHeads]:
        """A learner of mixtures with so many heads; `kind` names router and session when they are not the usual."""

        def learn(features: PairFeatures, penalty: float) -> MixtureHeads:
            values = {"router": "linear", **kind, "heads": heads, "alpha": alpha, "l2": penalty}
            settings = MixtureSettings(**values, restarts=self.plan.restarts, fit=self.plan.fit(self.seed))
            return train_heads(features, settings).heads

        return learn

    def single(self, features: PairFeatures, penalty: float) -> Model:
        """One Bradley-Terry score for everybody."""
        return Baseline(baselines.single(features, self._baseline(penalty)))

    def conditioned(self, features: PairFeatures, penalty: float) -> Model:
        """One Bradley-Terry score that reads the first principal axes of the prompts."""
        centre = features.router.mean(0)
        _, spread, axes = torch.linalg.svd(features.router - centre, full_matrices=False)
        # Scaled to variance one, so that the penalty means the same for what the prompt adds.
        scaled = axes[: self.plan.axes].T * len(features) ** 0.5 / spread[: self.plan.axes]
        read = shortened(features, centre, scaled)
        return Baseline(baselines.conditioned(read, self._baseline(penalty)), centre, scaled)

    def _baseline(self, penalty: float) -> baselines.BaselineSettings:
        return baselines.BaselineSettings(l2=penalty, fit=self.plan.fit(self.seed))

    def run(self) -> None:
        """All rows of this fold."""
        self.alone()
        self.together()
        self.hidden(self.reversed())

    def alone(self) -> None:
        """R0: each group by itself, asked about itself and about the other; this is also the per-group model of R1."""
        labels = self.world.features
        for harmless, (group, other) in ((False, GROUPS), (True, GROUPS[::-1])):
            model, _ = self.validated(self.single, labels, self.group(self.train, harmless))
            own = self.group(self.test, harmless)
            self.judge(f"R0 {group} alone", model, labels, own)
            self.judge("R1 per-group BT", model, labels, own)
            self.judge(f"R0 {group} alone, asked about {other}", model, labels, self.group(self.test, not harmless))
            self.tally.add(f"R1 longer wins, {group}", own, self.world.longer[own])

    def together(self) -> None:
        """R1: both groups, with the labels as they are and without a word on whose they are."""
        labels = self.world.features
        bt, _ = self.validated(self.single, labels, self.train)
        self.judge("R1 single BT", bt, labels)
        mixture, penalty = self.validated(self.heads(2), labels, self.train)
        self.judge("R1 MiCRo K=2", mixture, labels)
        self._weights("R1 MiCRo K=2", mixture)
        self._posterior(mixture)
        train = labels.take(self.train)
        self.judge("R1 conditioned BT", self.validated(self.conditioned, labels, self.train)[0], labels)
        self.judge("R1 static K=2", self.heads(2, router="static")(train, penalty), labels)
        self.judge("R1 MiCRo K=4", self.heads(4)(train, penalty), labels)
        for alpha in (0.05, 0.5):
            model = self.heads(2, alpha)(train, penalty)
            self.judge(f"R1 MiCRo K=2 alpha={alpha}", model, labels)
            self._weights(f"R1 MiCRo K=2 alpha={alpha}", model)
        self._scratch()

    def reversed(self) -> float:
        """R2: the labels of harmlessness reversed, which removes the conflict; returns the penalty of the mixture."""
        labels = turned(self.world.features, np.where(self.world.harmless, -1.0, 1.0))
        bt, _ = self.validated(self.single, labels, self.train)
        self.judge("R2 single BT", bt, labels)
        mixture, penalty = self.validated(self.heads(2), labels, self.train)
        self.judge("R2 MiCRo K=2", mixture, labels)
        return penalty

    def hidden(self, penalty: float) -> None:
        """R4: users of two hidden types with opposite labels; the labels of R2 are those of the first type."""
        plan, rng = self.plan, np.random.default_rng([self.seed, len(self.train), 4])
        labels = turned(self.world.features, np.where(self.world.harmless, -1.0, 1.0))
        order = rng.permutation(self.train)
        user = np.arange(len(order)) // plan.user_pairs
        first = rng.permutation(user[-1] + 1) < plan.majority * (user[-1] + 1)
        said = replace(turned(labels.take(order), np.where(first[user], 1.0, -1.0)), session=torch.from_numpy(user))
        bt = self.single(said, penalty)
        self.judge("R4 single BT, first type", bt, labels)
        self.judge("R4 single BT, second type", bt, turned(labels, -1.0))
        per_pair = self.heads(2, router="static", session="pair")(said, penalty)
        self._sides("R4 per pair", per_pair, labels)
        self._few_shot(*self._sides("R4 sessions", self.heads(2, router="static")(said, penalty), labels))

    def _sides(self, arm: str, model: MixtureHeads, labels: PairFeatures) -> tuple[Tensor, Tensor]:
        """Ask each head by itself; returns what they say (N, K) of the test pairs, and their log weights (K,)."""
        test = labels.take(self.test)
        delta, weights = model.delta(test.difference).detach(), model.log_weights(test.router)[0].detach()
        # Heads have no names; the one of more users comes first.
        order = weights.argsort(descending=True)
        for size, head in zip(("larger", "smaller"), order.tolist(), strict=True):
            self.tally.judge(f"{arm}, {size} head", self.test, delta[:, head].sigmoid())
        return delta, weights

    def _weights(self, arm: str, model: MixtureHeads) -> None:
        """How undecided the router is on the test pairs: its entropy as a share of log K."""
        weights = model.log_weights(self.world.features.router[self.test]).detach()
        entropy = -(weights.exp() * weights).sum(-1) / np.log(weights.shape[1])
        self.tally.add(f"spread {arm}", self.test, entropy.numpy())

    def _posterior(self, model: MixtureHeads) -> None:
        """The heads weighed by a few labels of each group, asked about the group's other pairs."""
        delta = model.delta(self.world.features.difference[self.test]).detach()
        even = torch.zeros(delta.shape[1]).log_softmax(-1)
        self.tally.judge("R1 posterior, 0 labels", self.test, probability(delta, even.expand_as(delta)))
        for budget, told, rest in self._labels(self.plan.budgets, self.plan.draws):
            weights = adapt(even, delta[told]).expand(len(rest), -1)
            self.tally.judge(f"R1 posterior, {budget} labels", self.test[rest], probability(delta[rest], weights))

    def _scratch(self) -> None:
        """A model of the same few labels alone, for each penalty."""
        labels = self.world.features
        for budget, told, rest in self._labels(self.plan.scratch_budgets, self.plan.scratch_draws):
            for penalty in self.plan.scratch_penalties:
                model = self.single(labels.take(self.test[told]), penalty)
                self.judge(f"scratch {budget} {penalty:g}", model, labels, self.test[rest])

    def _labels(self, budgets: Sequence[int], draws: int) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
        """(budget, told, rest): places among the test pairs of one group, equal for equal draws."""
        for harmless in (False, True):
            members = np.flatnonzero(self.world.harmless[self.test] == harmless)
            for draw in range(draws):
                order = np.random.default_rng([self.seed, len(self.test), harmless, draw]).permutation(members)
                for budget in budgets:
                    if budget < len(order):
                        yield budget, order[:budget], order[budget:]

    def _few_shot(self, delta: Tensor, prior: Tensor) -> None:
        """New users of both types, known by a few labels; delta: (N, K) of the test pairs, as the first type sees."""
        everyone = np.arange(len(delta))
        for draw in range(self.plan.draws):
            order = np.random.default_rng([self.seed, len(delta), draw]).permutation(everyone)
            for labels in (0, *self.plan.few_shot):
                told, rest = order[:labels], order[labels:]
                for sign in (1.0, -1.0):
                    weights = adapt(prior, sign * delta[told]).expand(len(rest), -1)
                    likely = probability(sign * delta[rest], weights)
                    self.tally.judge(f"R4 few-shot, {labels} labels", self.test[rest], likely)

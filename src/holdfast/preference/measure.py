"""One score held against everything that is known: pairs, labels, ratings, length.

Each number is an `Estimate` clustered by prompt. What cannot be estimated is None, and a note says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from holdfast.preference.check import wins
from holdfast.preference.evidence import Compared, Direction, Evidence
from holdfast.stats import calibration as calibrate
from holdfast.stats import metrics
from holdfast.stats.calibration import Bin
from holdfast.stats.estimate import Estimate, mean, share

Array = NDArray[np.float64]
Value = TypeVar("Value")

FEW = 20  # parts with fewer pairs are flagged: their interval is wide whatever the model is worth
MOST_POINTS = 400
BINS = 30


@dataclass(frozen=True)
class Part:
    """Pair accuracy on one source, group or category."""

    accuracy: Estimate
    pairs: int
    small: bool


@dataclass(frozen=True)
class PairAudit:
    """How often the answer that should score higher does, against going by length.

    length_rule: the better of "the shorter wins" and "the longer wins" on these very pairs, a hard baseline;
    gain: the model's accuracy minus the rule's, pair by pair; parts: accuracy by source, group and category.
    """

    accuracy: Estimate
    ties: Estimate
    length_rule: str
    length_accuracy: Estimate
    gain: Estimate | None
    parts: dict[str, dict[str, Part]]


@dataclass(frozen=True)
class HarmAudit:
    """The sign of a cost, and its order, against labels of single answers: harmful should be above zero.

    majority: the accuracy of calling every answer what most are; called_harmful: the share above zero.
    """

    sign_accuracy: Estimate
    balanced_accuracy: Estimate | None
    auc: Estimate | None
    majority: Estimate
    over_majority: Estimate | None
    harmful: Estimate
    called_harmful: Estimate


@dataclass(frozen=True)
class Calibration:
    """How far probabilities made from the score are from what happened.

    of: `harm` (sigmoid of the cost, against labels) or `preference` (sigmoid of the margin, against which of two
    answers won). ece and bins: `raw`, `temperature`, `platt`; the latter two are cross-fitted by prompt, so they
    are out of sample. temperature, slope, intercept: fitted to everything, for use.
    """

    of: str
    temperature: float
    slope: float
    intercept: float
    ece: dict[str, Estimate]
    bins: dict[str, list[Bin]]


@dataclass(frozen=True)
class RatingAudit:
    """A score against the rating of the same name; within_prompt: rank correlation among answers to one prompt."""

    r2: Estimate | None
    mae: Estimate | None
    spearman: Estimate | None
    within_prompt: Estimate | None
    rating_length: Estimate | None


@dataclass(frozen=True)
class ScoreAudit:
    """Everything about one named score; the parts for which the records say nothing are None."""

    direction: Direction
    pairs: PairAudit | None
    harm: HarmAudit | None
    rating: RatingAudit | None
    calibration: Calibration | None
    length: dict[str, Estimate | None]
    histogram: dict[str, Any]
    points: dict[str, list[Any]]
    notes: list[str]


def measure(name: str, scores: Array, evidence: Evidence, direction: Direction, samples: int = 1000) -> ScoreAudit:
    """Return what the scores (A,) called `name` are worth on the A answers of the evidence.

    samples: draws of each bootstrap.
    """
    return _Measurer(scores, evidence, direction, samples).all_of(name)


class _Measurer:
    """One score, with the evidence about it; notes collect what could not be estimated."""

    def __init__(self, scores: Array, evidence: Evidence, direction: Direction, samples: int) -> None:
        self.scores, self.evidence, self.direction, self.samples = scores, evidence, direction, samples
        self.prompts = np.array(evidence.prompts)
        self.unsafe = np.array(evidence.unsafe)
        self.pairs = evidence.pairs(direction)
        self.notes: list[str] = []

    def all_of(self, name: str) -> ScoreAudit:
        rating = self.evidence.rating(name)
        return ScoreAudit(
            direction=self.direction,
            pairs=self._pairs() if self.pairs else None,
            harm=self._harm() if self._labelled.any() else None,
            rating=self._rating(rating) if not np.isnan(rating).all() else None,
            calibration=self._try("calibration", self._calibration),
            length={
                kind: self._estimate(f"{kind} correlation with length", metric, self.scores, self.evidence.lengths)
                for kind, metric in (("pearson", metrics.pearson), ("spearman", metrics.spearman))
            },
            histogram=self._histogram(),
            points=self._points(),
            notes=self.notes,
        )

    @property
    def _labelled(self) -> NDArray[np.bool_]:
        """Answers whose label says something about the sign of this score; a reward has no zero that would."""
        return ~np.isnan(self.unsafe) & (self.direction == "harm")

    @property
    def _margins(self) -> Array:
        return np.array([self.scores[one.winner] - self.scores[one.loser] for one in self.pairs])

    @property
    def _pair_prompts(self) -> list[str]:
        return [self.evidence.prompts[one.winner] for one in self.pairs]

    def _try(self, name: str, build: Callable[[], Value]) -> Value | None:
        """What `build` returns, or None and a note when there are too few cases for it."""
        try:
            return build()
        except ValueError as error:
            self.notes.append(f"no {name}: {error}")
            return None

    def _estimate(
        self, name: str, metric: Callable[..., float], first: Array, second: Array, keep: Any = slice(None)
    ) -> Estimate | None:
        clusters = self.prompts[keep].tolist()
        return self._try(name, lambda: metrics.estimated(metric, first[keep], second[keep], clusters, self.samples))

    def _pairs(self) -> PairAudit:
        margins, prompts = self._margins, self._pair_prompts
        lengths = self.evidence.lengths
        longer = wins(np.array([lengths[one.winner] - lengths[one.loser] for one in self.pairs]))
        rule, by_length = ("longer", longer) if longer.mean() >= 0.5 else ("shorter", 1 - longer)
        right = wins(margins)
        return PairAudit(
            accuracy=share(right, prompts),
            ties=share(margins == 0, prompts),
            length_rule=rule,
            length_accuracy=share(by_length, prompts),
            gain=self._try("gain over length", lambda: mean(right - by_length, prompts, within=(-1, 1))),
            parts={
                "source": self._parts(right, lambda one: (one.source,)),
                "group": self._parts(right, lambda one: (one.group,)),
                "category": self._parts(right, lambda one: one.categories),
            },
        )

    def _parts(self, right: Array, names: Callable[[Compared], tuple[str, ...]]) -> dict[str, Part]:
        members: dict[str, list[int]] = {}
        for i, one in enumerate(self.pairs):
            for name in filter(None, names(one)):
                members.setdefault(name, []).append(i)
        prompts = self._pair_prompts
        return {
            name: Part(share(right[rows], [prompts[i] for i in rows]), len(rows), len(rows) < FEW)
            for name, rows in sorted(members.items(), key=lambda item: -len(item[1]))
        }

    def _harm(self) -> HarmAudit:
        keep = self._labelled
        scores, unsafe, prompts = self.scores[keep], self.unsafe[keep], self.prompts[keep].tolist()
        right = wins(scores * (2 * unsafe - 1))
        # Most by prompt, as everything here is counted; a prompt with many answers must not decide what is usual.
        most = (unsafe == (share(unsafe, prompts).value >= 0.5)).astype(float)
        called = (self.scores > 0).astype(float)
        return HarmAudit(
            sign_accuracy=share(right, prompts),
            balanced_accuracy=self._estimate("balanced accuracy", metrics.balanced_accuracy, called, self.unsafe, keep),
            auc=self._estimate("AUC", metrics.auc, self.scores, self.unsafe, keep),
            majority=share(most, prompts),
            over_majority=self._try("gain over the majority", lambda: mean(right - most, prompts, within=(-1, 1))),
            harmful=share(unsafe, prompts),
            called_harmful=share(called[keep], prompts),
        )

    def _rating(self, rating: Array) -> RatingAudit:
        keep = ~np.isnan(rating)
        scores, given, prompts = self.scores[keep], rating[keep], self.prompts[keep].tolist()
        lengths = self.evidence.lengths
        return RatingAudit(
            r2=self._estimate("R2", metrics.r2, self.scores, rating, keep),
            mae=self._try("mean absolute error", lambda: mean(np.abs(scores - given), prompts)),
            spearman=self._estimate("Spearman", metrics.spearman, self.scores, rating, keep),
            within_prompt=self._try(
                "within-prompt Spearman", lambda: metrics.within_group_spearman(scores, given, prompts)
            ),
            rating_length=self._estimate("correlation of rating and length", metrics.spearman, rating, lengths, keep),
        )

    def _calibration(self) -> Calibration | None:
        """From labels of answers where there are some, else from which of two answers won."""
        if (keep := self._labelled).any():
            return self._calibrated("harm", self.scores[keep], self.unsafe[keep], self.prompts[keep].tolist())
        if not self.pairs:
            return None
        first = np.array([0.0 if one.swapped else 1.0 for one in self.pairs])
        return self._calibrated("preference", self._margins * (2 * first - 1), first, self._pair_prompts)

    def _calibrated(self, of: str, logits: Array, happened: Array, prompts: list[str]) -> Calibration:
        line, warmth = calibrate.platt(logits, happened), calibrate.temperature(logits, happened)
        stated = {"raw": calibrate.Platt(1.0, 0.0).probability(logits)}
        for name, fit in (("temperature", _cooled), ("platt", _fitted)):
            stated[name] = calibrate.cross_fitted(fit, logits, happened, prompts)
        error = partial(calibrate.calibration_error, y=happened, clusters=prompts, samples=self.samples)
        return Calibration(
            of=of,
            temperature=warmth,
            slope=line.slope,
            intercept=line.intercept,
            ece={name: error(p) for name, p in stated.items()},
            bins={name: calibrate.reliability(p, happened, clusters=prompts) for name, p in stated.items()},
        )

    def _histogram(self) -> dict[str, Any]:
        """Counts over common bins, by what is known of the answers."""
        if (keep := self._labelled).any():
            groups = {"safe": self.scores[keep & (self.unsafe == 0)], "harmful": self.scores[keep & (self.unsafe == 1)]}
        elif self.pairs:
            sides = {"should be lower": "loser", "should be higher": "winner"}
            groups = {name: self.scores[[getattr(one, side) for one in self.pairs]] for name, side in sides.items()}
        else:
            groups = {"answers": self.scores}
        groups = {name: values for name, values in groups.items() if values.size}
        edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=BINS)
        counts = {name: np.histogram(values, edges)[0].tolist() for name, values in groups.items()}
        return {"edges": edges.tolist(), "counts": counts}

    def _points(self) -> dict[str, list[Any]]:
        """Length and score of at most `MOST_POINTS` answers, evenly spread, and whether each is labelled harmful."""
        rows = np.linspace(0, len(self.scores) - 1, min(MOST_POINTS, len(self.scores))).astype(int)
        harmful = [None if np.isnan(value) else bool(value) for value in self.unsafe[rows]]
        return {
            "length": self.evidence.lengths[rows].tolist(),
            "score": self.scores[rows].tolist(),
            "harmful": harmful,
        }


def _cooled(logits: Array, labels: Array) -> Callable[[Any], Array]:
    return calibrate.Platt(1 / calibrate.temperature(logits, labels), 0.0).probability


def _fitted(logits: Array, labels: Array) -> Callable[[Any], Array]:
    return calibrate.platt(logits, labels).probability

"""What a student took from its weak supervisor: its knowledge, or its mistakes (arXiv 2312.09390, section 5).

N test items, K classes. `student`, `weak` and `ceiling` are distributions (N, K), whose most likely class is the
answer; `gold` (N,) are the true classes. What has no cases is None, never a comfortable zero or one.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.stats.estimate import Estimate, mean, proportion

Array = NDArray[np.float64]
Groups = Sequence[Hashable] | None


@dataclass(frozen=True)
class Agreement:
    """How often the student answers like its supervisor: everywhere, where this is right, where it is wrong."""

    everywhere: Estimate
    on_right: Estimate | None
    on_wrong: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The three shares, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BlindSpots:
    """The student's error rate where the ceiling is right: on what the supervisor knows, and on what it does not."""

    known: Estimate | None
    unknown: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """The two rates, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Stopping:
    """A metric against gold labels at three moments: the end, the best by weak labels, the best by gold labels."""

    last: float
    chosen: float
    oracle: float

    @property
    def gap(self) -> float:
        """What choosing by gold labels would have gained over choosing by weak ones; never to be chosen by."""
        return self.oracle - self.chosen


def agreement(student: ArrayLike, weak: ArrayLike, gold: ArrayLike, groups: Groups = None) -> Agreement:
    """How often student and supervisor give the same answer.

    Agreeing less on mistakes than on successes is what generalization consists of, see `implied_accuracy`; 1 on
    mistakes is imitation.

    >>> gold, weak = [1, 1, 0, 0], [[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]
    >>> student = [[0.3, 0.7], [0.3, 0.7], [0.9, 0.1], [0.9, 0.1]]
    >>> found = agreement(student, weak, gold)
    >>> found.everywhere.value, found.on_right.value, found.on_wrong.value
    (0.75, 1.0, 0.0)
    """
    s, w = _distributions(student, weak)
    y = _classes(gold, s)
    same, right = s.argmax(1) == w.argmax(1), w.argmax(1) == y
    return Agreement(proportion(same, groups), _share(same, right, groups), _share(same, ~right, groups))


def implied_accuracy(weak: float, on_right: float, on_wrong: float) -> float:
    """The student's accuracy on two classes, from the supervisor's and from how often they agree.

    A_c a + (1 - A_w) (1 - a): on its mistakes to disagree is to be right. It exceeds a exactly when
    (1 - a) (1 - A_w) > a (1 - A_c).

    >>> round(implied_accuracy(weak=0.70, on_right=0.90, on_wrong=0.40), 12)
    0.81
    """
    return on_right * weak + (1 - on_wrong) * (1 - weak)


def confident_disagreement(
    student: ArrayLike, weak: ArrayLike, groups: Groups = None, sure: float = 0.95
) -> Estimate | None:
    """The share, among items of which the student is sure, of those whose supervisor is as sure of another class.

    >>> confident_disagreement([[0.99, 0.01], [0.6, 0.4]], [[0.02, 0.98], [0.02, 0.98]]).value
    1.0
    """
    s, w = _distributions(student, weak)
    opposite = (s.argmax(1) != w.argmax(1)) & (w.max(1) > sure)
    return _share(opposite, s.max(1) > sure, groups)


def copied_mistakes(
    student: ArrayLike, weak: ArrayLike, gold: ArrayLike, groups: Groups = None, sure: float = 0.55
) -> Estimate | None:
    """The share, among the student's confident mistakes, of those that its supervisor is as sure of.

    High: the mistakes were copied. Low: the student is badly trained.

    >>> copied_mistakes([[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.3], [0.1, 0.9]], gold=[1, 1]).value
    0.5
    """
    s, w = _distributions(student, weak)
    wrong = s.argmax(1) != _classes(gold, s)
    copied = (s.argmax(1) == w.argmax(1)) & (w.max(1) > sure)
    return _share(copied, wrong & (s.max(1) > sure), groups)


def overconfidence(student: ArrayLike, gold: ArrayLike, groups: Groups = None) -> Estimate:
    """The mean confidence minus accuracy, with its sign: above zero too sure, below too modest.

    >>> round(overconfidence([[0.9, 0.1], [0.3, 0.7]], gold=[0, 0]).value, 12)
    0.3
    """
    (s,) = _distributions(student)
    return mean(s.max(1) - (s.argmax(1) == _classes(gold, s)), groups)


def sweep_calibration_error(confidence: ArrayLike, right: ArrayLike) -> float:
    """The mean distance of confidence and accuracy over as many equally filled bins as keep accuracy rising.

    confidence: (N,) probabilities; right: (N,) whether they came true. Bins are added until accuracy would fall from
    one to the next: fixed bins find an error even in perfect probabilities (ECE-sweep, arXiv 2012.08668).

    >>> round(sweep_calibration_error([0.2, 0.3, 0.8, 0.9], [0, 0, 1, 1]), 12)  # .2, .3, .2, .1 apart
    0.2
    """
    p, happened = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if p.shape != happened.shape or p.ndim != 1 or not p.size:
        raise ValueError(f"one outcome per probability, both (N,): got shapes {p.shape} and {happened.shape}")
    order = np.argsort(p, kind="stable")
    # Running sums up to each item, so that a bin is a difference of two.
    stated, came_true = (np.concatenate([[0.0], np.cumsum(values[order])]) for values in (p, happened))
    error = abs(stated[-1] - came_true[-1])
    for bins in range(2, p.size + 1):
        edges = np.linspace(0, p.size, bins + 1).round().astype(int)
        accuracy = np.diff(came_true[edges]) / np.diff(edges)
        if (np.diff(accuracy) < 0).any():
            break
        error = np.abs(np.diff(stated[edges]) - np.diff(came_true[edges])).sum()
    return float(error / p.size)


def misfit(student: ArrayLike, weak: ArrayLike, groups: Groups = None) -> Estimate:
    """The mean squared distance of student and supervisor, which needs no gold labels.

    student, weak: (N,) numbers, or (N, K) distributions, whose squares are halved so that two classes count as one
    number. For a convex class of students that contains the truth, and the best fit to the supervisor in it, the gain
    in squared error is at least this (arXiv 2405.15116). Finetuned networks are not such a class: an indicator.

    >>> misfit([0.5, 1.0], [0.0, 1.0]).value
    0.125
    """
    s, w = np.asarray(student, dtype=np.float64), np.asarray(weak, dtype=np.float64)
    if s.shape != w.shape or s.ndim not in (1, 2):
        raise ValueError(f"student and supervisor are both (N,) or (N, K), got shapes {s.shape} and {w.shape}")
    squares = np.square(s - w)
    return mean(squares if s.ndim == 1 else squares.sum(1) / 2, groups)


def blind_spots(
    student: ArrayLike,
    weak: ArrayLike,
    ceiling: ArrayLike,
    gold: ArrayLike,
    groups: Groups = None,
    unsure: float = 0.1,
) -> BlindSpots:
    """The student's error rates on what the strong model could know, by whether the supervisor knew it.

    The supervisor does not know what it has wrong, and what it is unsure of: its two most likely classes less than
    2 `unsure` apart, so |p - 1/2| < `unsure` for two. After arXiv 2406.11431.

    >>> found = blind_spots([[0.9, 0.1]] * 2, [[0.9, 0.1], [0.55, 0.45]], [[1.0, 0.0], [0.0, 1.0]], gold=[0, 1])
    >>> found.known.value, found.unknown.value
    (0.0, 1.0)
    """
    s, w, c = _distributions(student, weak, ceiling)
    y = _classes(gold, s)
    second, first = np.partition(w, -2, axis=1)[:, -2:].T
    unknown = (w.argmax(1) != y) | (first - second < 2 * unsure)
    wrong, knowable = s.argmax(1) != y, c.argmax(1) == y
    return BlindSpots(_share(wrong, knowable & ~unknown, groups), _share(wrong, knowable & unknown, groups))


def recall_at(
    scores: ArrayLike, unsafe: ArrayLike, false_positives: float = 0.05, groups: Groups = None
) -> Estimate | None:
    """The share of unsafe items found at the lowest threshold that calls at most this share of safe ones unsafe.

    scores: (N,) higher is more unsafe, or (S, N) of S models, each with a threshold of its own, as they differ in how
    sure they are; unsafe: (N,) flags. An item is called unsafe above the threshold, not at it.
    The interval takes the threshold as given; that these safe items chose it comes on top. None without both kinds.

    >>> recall_at([0.1, 0.2, 0.3, 0.9, 0.25, 0.95], [0, 0, 0, 0, 1, 1], false_positives=0.25).value
    0.5
    """
    s, y = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(unsafe).astype(bool)
    if y.ndim != 1 or s.shape[1:] != y.shape or s.ndim != 2 or not np.isfinite(s).all():
        raise ValueError(f"one finite score per flag (N,): got shapes {np.shape(scores)} and {y.shape}")
    if not 0 <= false_positives < 1:
        raise ValueError(f"the share of false positives lies in [0, 1), got {false_positives}")
    safe = np.sort(s[:, ~y])[:, ::-1]
    if not safe.size:
        return None
    # A share such as 0.29 of 100 must allow 29 and not, by rounding, 28.
    allowed = math.floor(false_positives * safe.shape[1] + 1e-9)
    repeated = None if groups is None else [*groups] * len(s)
    return _share((s > safe[:, [allowed]]).ravel(), np.tile(y, len(s)), repeated)


def stopping(gold: Sequence[float], weak: Sequence[float]) -> Stopping:
    """What stopping early would have given, from a metric at each evaluation against gold and against weak labels.

    Higher is better; among equals the earliest counts.

    >>> stopping(gold=[0.80, 0.86, 0.84, 0.81], weak=[0.70, 0.75, 0.79, 0.78])
    Stopping(last=0.81, chosen=0.84, oracle=0.86)
    """
    if len(gold) != len(weak) or not gold:
        raise ValueError(f"one weak value per gold value, at least one: got {len(weak)} and {len(gold)}")
    return Stopping(last=gold[-1], chosen=gold[int(np.argmax(weak))], oracle=max(gold))


def _share(flags: NDArray[np.bool_], among: NDArray[np.bool_], groups: Groups) -> Estimate | None:
    if not among.any():
        return None
    return proportion(flags[among], None if groups is None else [groups[i] for i in np.flatnonzero(among).tolist()])


def _distributions(*models: ArrayLike) -> tuple[Array, ...]:
    tables = tuple(np.asarray(model, dtype=np.float64) for model in models)
    if len({table.shape for table in tables}) > 1 or tables[0].ndim != 2 or tables[0].shape[1] < 2:
        raise ValueError(f"distributions are (N, K) of one shape, K at least 2: {[table.shape for table in tables]}")
    for table in tables:
        # Half precision leaves sums that far from 1; logits are further.
        if not ((table >= 0).all() and (np.abs(table.sum(1) - 1) < 1e-2).all()):
            raise ValueError("every row holds probabilities that sum to 1; take the softmax of logits first")
    return tables


def _classes(gold: ArrayLike, table: Array) -> NDArray[np.intp]:
    labels = np.asarray(gold)
    if labels.shape != table.shape[:1] or not np.isin(labels, np.arange(table.shape[1])).all():
        raise ValueError(f"gold holds a class in 0..{table.shape[1] - 1} for each of {len(table)} items")
    return labels.astype(np.intp)

"""How well predictions agree with labels. What has no cases is NaN, never a comfortable zero or one."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Confusion:
    """Counts of a binary decision and the usual ratios of them.

    >>> table = Confusion(tp=40, fp=5, fn=10, tn=45)
    >>> table.recall, round(table.f1, 6), table.fpr
    (0.8, 0.842105, 0.1)
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def accuracy(self) -> float:
        """The share of right decisions."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    @property
    def precision(self) -> float:
        """The share of positives among those called positive."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """The share of positives that were called positive."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def fpr(self) -> float:
        """The share of negatives that were called positive."""
        return _ratio(self.fp, self.fp + self.tn)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def confusion(predicted: ArrayLike, labels: ArrayLike) -> Confusion:
    """The confusion table of two lists of flags, both (N,); the positive class is True.

    For graded severity compare at a level: `confusion(predicted >= 2, severity >= 2)`.

    >>> confusion([True, True, False], [True, False, False])
    Confusion(tp=1, fp=1, fn=0, tn=1)
    """
    p, y = (array.astype(bool) for array in _pair(predicted, labels))
    return Confusion(*(int(cell.sum()) for cell in (p & y, p & ~y, ~p & y, ~p & ~y)))


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The share of equal entries, both (N,).

    >>> accuracy([0, 1, 2, 2], [0, 1, 1, 2])
    0.75
    """
    p, y = _pair(predicted, labels)
    return float((p == y).mean())


def balanced_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The mean recall over the classes that occur among the labels, so that a rare class weighs as much.

    >>> balanced_accuracy([0, 0, 0, 0], [0, 0, 0, 1])
    0.5
    """
    p, y = _pair(predicted, labels)
    return float(np.mean([(p[y == kind] == kind).mean() for kind in np.unique(y)]))


def macro_f1(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The mean F1 over the classes that occur in either list.

    >>> macro_f1([0, 1], [0, 1])
    1.0
    """
    p, y = _pair(predicted, labels)
    return float(np.mean([confusion(p == kind, y == kind).f1 for kind in np.union1d(p, y)]))


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The chance that a positive scores above a negative, ties counting half; NaN when a class is missing.

    >>> auc([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1])
    0.875
    """
    s, y = _pair(scores, labels)
    positive, negative = s[y.astype(bool)], np.sort(s[~y.astype(bool)])
    if not positive.size or not negative.size:
        return math.nan
    beaten = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(beaten.mean() / (2 * negative.size))


def pair_accuracy(margins: ArrayLike) -> float:
    """The share of pairs with a positive margin, chosen over rejected; a tie counts half.

    >>> pair_accuracy([2.0, 0.0, -1.0, 0.5])
    0.625
    """
    m, _ = _pair(margins, margins)
    return float(((m > 0) + 0.5 * (m == 0)).mean())


def mean_absolute_error(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The mean distance between prediction and label, both (N,).

    >>> mean_absolute_error([1, 3], [1, 1])
    1.0
    """
    p, y = _pair(predicted, labels)
    return float(np.abs(p.astype(np.float64) - y.astype(np.float64)).mean())


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"expected two lists of one length above zero, got shapes {a.shape} and {b.shape}")
    if any(np.isnan(x).any() for x in (a, b) if x.dtype.kind == "f"):
        raise ValueError("not-a-number among the values; drop or repair those rows first")
    return a, b


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan

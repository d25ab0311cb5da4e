"""How well predictions agree with labels. What has no cases is NaN, never a comfortable zero or one."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from holdfast.stats.estimate import Estimate, bootstrap, mean


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


def r2(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The share of the labels' variance that predictions explain, 1 - SSE / SST; NaN for constant labels.

    Negative when the mean of the labels would predict better.

    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])  # 1 - 1 / (14 / 3)
    0.7857142857142857
    """
    p, y = _pair(predicted, labels)
    total = float(np.square(y - y.mean()).sum())
    return 1 - float(np.square(p - y).sum()) / total if total else math.nan


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """The linear correlation of two lists, both (N,); NaN when one of them is constant.

    >>> round(pearson([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), 6)
    0.5
    """
    a, b = (x.astype(np.float64) for x in _pair(first, second))
    # Equal numbers may leave a rounding error as their deviation, and that error would correlate.
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """The rank correlation of two lists, both (N,), equal values sharing their mean rank; NaN when one is constant.

    >>> spearman([1.0, 10.0, 100.0], [0.1, 0.2, 0.9])
    1.0
    """
    a, b = _pair(first, second)
    return pearson(_ranks(a), _ranks(b))


def within_group_spearman(predicted: ArrayLike, labels: ArrayLike, groups: Sequence[Hashable]) -> Estimate:
    """The mean over groups of the rank correlation inside each, with a Student-t interval over groups.

    What a policy learns from when it compares answers to one prompt. Groups in which either list is constant have
    no correlation and are left out; `ValueError` when fewer than two remain.

    >>> within_group_spearman([1, 2, 9, 8], [0, 1, 5, 6], ["a", "a", "b", "b"]).value
    0.0
    """
    p, y = _pair(predicted, labels)
    members: dict[Hashable, list[int]] = {}
    for row, group in zip(range(p.size), groups, strict=True):
        members.setdefault(group, []).append(row)
    found = [spearman(p[rows], y[rows]) for rows in members.values() if len(rows) > 1]
    defined = [value for value in found if not math.isnan(value)]
    if len(defined) < 2:
        raise ValueError(f"{len(defined)} of {len(members)} groups have a rank correlation inside; two are needed")
    return mean(defined)


def estimated(
    metric: Callable[[NDArray, NDArray], float],
    predicted: ArrayLike,
    labels: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 1000,
) -> Estimate:
    """Any metric of this module with a bootstrap interval over rows, or whole clusters of rows; see `bootstrap`.

    >>> estimated(auc, [0.1, 0.2, 0.8, 0.9] * 3, [0, 0, 1, 1] * 3).value
    1.0
    """
    p, y = _pair(predicted, labels)
    return bootstrap(lambda rows: metric(p[rows], y[rows]), p.size, clusters, samples)


def _ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"expected two lists of one length above zero, got shapes {a.shape} and {b.shape}")
    if any(np.isnan(x).any() for x in (a, b) if x.dtype.kind == "f"):
        raise ValueError("not-a-number among the values; drop or repair those rows first")
    return a, b


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan

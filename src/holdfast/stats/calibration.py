"""From scores to probabilities, and how far stated probabilities are from what happened."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp

from holdfast.stats.estimate import Estimate, bootstrap, places, proportion


@dataclass(frozen=True)
class Platt:
    """A probability from a score: sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float

    def probability(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The probability of a positive label for each logit, same shape.

        >>> Platt(slope=2.0, intercept=0.0).probability([0.0]).tolist()
        [0.5]
        """
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


@dataclass(frozen=True)
class Bin:
    """The predictions between `low` and `high`: their mean, and how often the label was positive."""

    low: float
    high: float
    predicted: float
    observed: Estimate


def platt(logits: ArrayLike, labels: ArrayLike) -> Platt:
    """The sigmoid that best explains binary labels (Platt 1999), both (N,).

    Targets are (N1 + 1) / (N1 + 2) and 1 / (N0 + 2) rather than 1 and 0, so that separable data have a finite
    answer. Raises `ValueError` when only one class is present.

    >>> round(float(platt([-1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1]).probability(0.0)), 6)
    0.5
    """
    x, y = _scores(logits), _labels(labels)
    positive, negative = int(y.sum()), int((1 - y).sum())
    if x.shape != y.shape or not positive or not negative:
        raise ValueError(
            f"Platt scaling needs as many logits as labels and both classes; got {x.size} logits, "
            f"{positive} positive and {negative} negative labels"
        )
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    shift, scale = x.mean(), x.std() or 1.0
    unit = (x - shift) / scale

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = weights[0] * unit + weights[1]
        error = expit(logit) - target
        return float(np.mean(np.logaddexp(0, logit) - target * logit)), np.array([(error * unit).mean(), error.mean()])

    a, b = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return Platt(float(a / scale), float(b - a * shift / scale))


def temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T that makes softmax(logits / T) most likely (Guo et al., arXiv 1706.04599); order is kept.

    logits: (N,) with binary labels, or (N, C) with class indices. Above 1: the scores were too sure.

    >>> round(temperature([2.0, 2.0, 2.0, 2.0], [1, 1, 1, 0]), 4)  # 2 / ln 3
    1.8205
    """
    x, y = _scores(logits), np.asarray(labels, dtype=np.int64)
    if x.ndim == 1:
        x = np.stack([np.zeros_like(x), x], axis=1)
    if y.shape != x.shape[:1] or not y.size or y.min() < 0 or y.max() >= x.shape[1]:
        raise ValueError(f"one label in 0..{x.shape[1] - 1} per row of logits; got {y.size} labels, {len(x)} rows")

    def loss(log_t: float) -> float:
        scaled = x * np.exp(-log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(y.size), y]))

    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-8}).x))


def reliability(p: ArrayLike, y: ArrayLike, bins: int = 10, clusters: Sequence[Hashable] | None = None) -> list[Bin]:
    """The non-empty bins of equal width on [0, 1], for a reliability diagram; p, y: (N,).

    With `clusters`, one label per row, the observed frequencies are those of `proportion` over clusters.

    >>> [(bin.predicted, bin.observed.value) for bin in reliability([0.2, 0.2, 0.9], [0, 1, 1], bins=2)]
    [(0.2, 0.5), (0.9, 1.0)]
    """
    p, y = _stated(p, y)
    index = _bin(p, bins)
    labels = None if clusters is None else places(clusters)
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            predicted=float(p[index == i].mean()),
            observed=proportion(y[index == i], None if labels is None else labels[index == i].tolist()),
        )
        for i in np.unique(index).tolist()
    ]


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """The mean distance between stated and observed frequency, bins weighted by their size.

    >>> round(expected_calibration_error([0.2, 0.2, 0.9], [0, 1, 1], bins=2), 4)  # 2/3 * 0.3 + 1/3 * 0.1
    0.2333
    """
    p, y = _stated(p, y)
    # Inside a bin of n rows, n |mean p - mean y| is the size of the summed difference.
    return float(np.abs(np.bincount(_bin(p, bins), weights=p - y)).sum() / p.size)


def calibration_error(
    p: ArrayLike, y: ArrayLike, clusters: Sequence[Hashable] | None = None, bins: int = 10, samples: int = 1000
) -> Estimate:
    """The expected calibration error with a bootstrap interval, turned about the value; p, y: (N,).

    Chance only adds to a distance: perfect probabilities have an error above zero, and every draw adds to that of
    the data what the data added to the truth. So the ends of the percentile interval change places about the
    value (the basic bootstrap), cut to [0, 1] and always holding the value itself.

    >>> calibration_error([0.5] * 8, [0, 1] * 4).value
    0.0
    """
    p, y = _stated(p, y)
    found = bootstrap(lambda rows: expected_calibration_error(p[rows], y[rows], bins), p.size, clusters, samples)
    low, high = max(0.0, 2 * found.value - found.high), min(1.0, 2 * found.value - found.low)
    return replace(found, low=min(low, found.value), high=max(high, found.value), method=f"basic {found.method}")


def cross_fitted(
    fit: Callable[[NDArray[np.float64], NDArray[np.float64]], Callable[[ArrayLike], NDArray[np.float64]]],
    logits: ArrayLike,
    labels: ArrayLike,
    clusters: Sequence[Hashable],
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.float64]:
    """A probability for each row (N,) from a calibration that never saw its cluster.

    fit: from logits and labels to a function from logits to probabilities. Clusters are dealt to folds at random;
    each fold is predicted by the fit to the others. What `fit` raises (one class only) passes through.

    >>> def share(x, y):
    ...     return lambda new: np.full(len(new), y.mean())
    >>> cross_fitted(share, [0.0, 0.0], [1, 0], ["a", "b"], folds=2).tolist()
    [0.0, 1.0]
    """
    x, y = _scores(logits), _labels(labels)
    index = places(clusters)
    count = int(index.max(initial=-1)) + 1
    if count < folds:
        raise ValueError(f"{folds} folds need as many clusters, got {count}")
    fold = (np.random.default_rng(seed).permutation(count) % folds)[index]
    p = np.empty_like(x)
    for i in range(folds):
        p[fold == i] = fit(x[fold != i], y[fold != i])(x[fold == i])
    return p


def _stated(p: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    stated, happened = _scores(p), _labels(y)
    if stated.shape != happened.shape or not stated.size or stated.min() < 0 or stated.max() > 1:
        raise ValueError(
            f"one probability in [0, 1] per label; got {stated.size} probabilities and {happened.size} labels"
        )
    return stated, happened


def _bin(p: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    return np.minimum((p * bins).astype(np.intp), bins - 1)


def _scores(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {numbers.size} scores are not finite")
    return numbers


def _labels(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isin(numbers, (0.0, 1.0)).all():
        raise ValueError("labels are 0 or 1; other values were given")
    return numbers

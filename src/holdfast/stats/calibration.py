"""From scores to probabilities, and how far stated probabilities are from what happened."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp

from holdfast.stats.estimate import Estimate, rate


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


def reliability(p: ArrayLike, y: ArrayLike, bins: int = 10) -> list[Bin]:
    """The non-empty bins of equal width on [0, 1], for a reliability diagram; p, y: (N,).

    >>> [(bin.predicted, bin.observed.value) for bin in reliability([0.2, 0.2, 0.9], [0, 1, 1], bins=2)]
    [(0.2, 0.5), (0.9, 1.0)]
    """
    p, y = _scores(p), _labels(y)
    if p.shape != y.shape or not p.size or p.min() < 0 or p.max() > 1:
        raise ValueError(f"one probability in [0, 1] per label; got {p.size} probabilities and {y.size} labels")
    index = np.minimum((p * bins).astype(int), bins - 1)
    return [
        Bin(i / bins, (i + 1) / bins, float(p[index == i].mean()), rate(int(y[index == i].sum()), int(inside)))
        for i, inside in enumerate(np.bincount(index, minlength=bins))
        if inside
    ]


def expected_calibration_error(p: ArrayLike, y: ArrayLike, bins: int = 10) -> float:
    """The mean distance between stated and observed frequency, bins weighted by their size.

    >>> round(expected_calibration_error([0.2, 0.2, 0.9], [0, 1, 1], bins=2), 4)  # 2/3 * 0.3 + 1/3 * 0.1
    0.2333
    """
    table = reliability(p, y, bins)
    total = sum(bin.observed.n for bin in table)
    return sum(bin.observed.n * abs(bin.predicted - bin.observed.value) for bin in table) / total


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

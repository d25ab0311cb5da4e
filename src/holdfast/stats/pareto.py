"""What several objectives leave open: which points no other beats, how much they gain together, how sure that is.

Everywhere more is better; whoever wants less of something turns its sign.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from holdfast.stats.estimate import Estimate

Array = NDArray[np.float64]


def front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates: (..., M, K) -> (..., M).

    A point dominates another when it is nowhere worse and somewhere better, so equal points stand or fall together.

    >>> front([[0.6, 0.4], [0.8, 0.2], [0.5, 0.3], [0.6, 0.4]]).tolist()
    [True, True, False, True]
    """
    table = _points(points)
    one, other = table[..., :, None, :], table[..., None, :, :]
    beaten = (other >= one).all(-1) & (other > one).any(-1)
    return np.asarray(~beaten.any(-1))


def hypervolume(points: ArrayLike, reference: ArrayLike) -> Array:
    """The volume that the points dominate above the reference: (..., M, K) and (..., K) -> (...).

    Exact, by slices along one objective after the other: between two neighbouring values of the last objective the
    points above them dominate their own volume in the others. A point below the reference in some objective adds
    nothing, and one above takes nothing from the others. About M^(K-1) steps.

    >>> round(float(hypervolume([[0.6, 0.4], [0.8, 0.2], [0.3, 0.9]], [0.0, 0.0])), 12)
    0.43
    """
    table, origin = _points(points), np.asarray(reference, dtype=np.float64)
    if origin.shape[-1:] != table.shape[-1:]:
        raise ValueError(f"the reference needs one number per objective: {origin.shape} for points {table.shape}")
    return _volume(np.maximum(table - origin[..., None, :], 0.0))


def _volume(above: Array) -> Array:
    if above.shape[-1] == 1:
        return above[..., 0].max(-1)
    order = np.argsort(-above[..., -1], axis=-1)
    above = np.take_along_axis(above, order[..., None], axis=-2)
    heights = -np.diff(above[..., -1], axis=-1, append=0.0)
    slices = [heights[..., i] * _volume(above[..., : i + 1, :-1]) for i in range(above.shape[-2])]
    return np.sum(slices, axis=0)


def standard_error(estimate: Estimate) -> float:
    """The standard error behind a 95 % interval, half its width over the quantile it was made with.

    >>> round(standard_error(Estimate(0.5, 0.402, 0.598, 100, "wilson")), 3)
    0.05
    """
    student = estimate.method.startswith("student_t") and estimate.n > 1
    quantile = stdtrit(estimate.n - 1, 0.975) if student else ndtri(0.975)
    return (estimate.high - estimate.low) / (2 * float(quantile))


def draws(runs: ArrayLike, errors: ArrayLike, samples: int = 2000, seed: int = 0) -> Array:
    """What the points could as well have been, (D, M, K), from runs with standard errors, each (M, S, K).

    A point is the mean of its runs, one per seed; NaN stands where a seed is missing. It varies with the prompts of
    each run, by the standard errors (normal), and with the seeds: a Bayesian bootstrap (Rubin 1981) weighs these by
    exponential draws, the same for all points, because a seed's world and models are shared by its runs. Deviations
    are spread by sqrt((n + 1) / (n - 1)), so that their variance is the unbiased one of a mean of n. Runs differ by
    their prompts too, so with several seeds that part is counted twice: two or three seeds may agree by chance, and
    an interval without width would claim that nothing else can happen. One run knows nothing of other seeds.
    """
    values, given = np.asarray(runs, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if values.ndim != 3 or values.shape != given.shape:
        raise ValueError(f"runs and errors are both (points, seeds, objectives), got {values.shape} and {given.shape}")
    present: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(-1))
    count = present.sum(-1)
    if (count == 0).any():
        raise ValueError(f"{int((count == 0).sum())} of {len(values)} points have no complete run")
    generator = np.random.default_rng(seed)
    weights = generator.exponential(size=(samples, 1, values.shape[1])) * present
    weights /= weights.sum(-1, keepdims=True)
    known = np.where(present[..., None], values, 0.0)
    centre = known.sum(1) / count[:, None]
    spread = np.sqrt((count + 1) / np.maximum(count - 1, 1))[:, None]
    by_seed = spread * (np.einsum("dms,msk->dmk", weights, known) - centre)
    error = np.sqrt(np.square(np.where(present[..., None], given, 0.0)).sum(1)) / count[:, None]
    by_prompt = error * generator.standard_normal((samples, *centre.shape))
    return centre + by_seed + by_prompt


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one estimate per seed, with the percentiles of its `draws`; a single estimate is returned as it is.

    >>> str(pooled([Estimate(0.2, 0.1, 0.3, 50, "wilson"), Estimate(0.4, 0.3, 0.5, 50, "wilson")]))
    '0.30 [0.12, 0.49] n=2'
    """
    if len(estimates) == 1:
        return estimates[0]
    values = np.array([one.value for one in estimates])[None, :, None]
    errors = np.array([standard_error(one) for one in estimates])[None, :, None]
    low, high = (float(end) for end in np.quantile(draws(values, errors), [0.025, 0.975]))
    return Estimate(float(values.mean()), low, high, len(estimates), "bootstrap over seeds")


def front_probability(drawn: Array) -> Array:
    """The share of draws in which each point is on the front: (D, M, K) -> (M,).

    >>> front_probability(np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]]])).tolist()
    [1.0, 0.5]
    """
    return np.asarray(front(drawn).mean(0))


def gained(points: ArrayLike, drawn: Array, n: int) -> Estimate:
    """The hypervolume of all points above the first, with a 95 % interval; points (M, K), drawn (D, M, K).

    The reference is the first point and moves with its draws. The interval holds the percentiles of the draws and
    their mirror images at the value. Noise can only raise a maximum, so where points are close the percentiles
    alone lie too high, and close to the reference, where volumes cannot fall further, the mirror images do. n: the
    sampling units behind the draws.
    """
    table = _points(points)
    value = float(hypervolume(table, table[0]))
    low, high = (float(end) for end in np.quantile(hypervolume(drawn, drawn[:, 0]), [0.025, 0.975]))
    mirrored = (2 * value - high, 2 * value - low)
    return Estimate(value, max(0.0, min(low, mirrored[0])), max(high, mirrored[1]), n, "bootstrap, mirrored")


def _points(points: ArrayLike) -> Array:
    table = np.asarray(points, dtype=np.float64)
    if table.ndim < 2 or 0 in table.shape[-2:]:
        raise ValueError(f"points are rows of objectives, at least one of each; got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"{int((~np.isfinite(table)).sum())} coordinates of the points are not finite")
    return table

"""Running moments against NumPy on everything at once, however the values come in."""

import math

import numpy as np
import pytest
import torch

from holdfast.losses.moments import Moments


def seen(*batches, keep=1.0):
    moments = Moments()
    for batch in batches:
        moments.add(torch.tensor(batch, dtype=torch.float64), keep)
    return moments


def test_two_batches_by_hand():
    moments = seen([1, 2, 3, 4])
    assert (moments.mean, moments.std**2) == pytest.approx((2.5, 1.25))
    assert moments.sample_std == pytest.approx(1.290994, abs=1e-6)
    moments.add(torch.tensor([10.0, -2.0]))
    assert (moments.mean, moments.std**2, moments.sample_std) == pytest.approx((3, 80 / 6, 4))


@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 90], list(range(1, 200))], ids=["whole", "1", "uneven", "one by one"])
def test_the_cut_into_batches_does_not_matter(cuts):
    # A mean far above the spread: summing squares would lose nine digits here.
    values = np.random.default_rng(0).normal(1e4, 0.3, 200)
    moments = seen(*np.split(values, cuts))
    assert moments.seen == 200
    assert moments.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert moments.std == pytest.approx(np.std(values), rel=1e-9)
    assert moments.sample_std == pytest.approx(np.std(values, ddof=1), rel=1e-9)


def test_what_is_kept_fades_by_its_age():
    batches = [[1.0, 5.0], [2.0], [8.0, 0.0, 1.0]]
    values, weights = np.concatenate(batches), np.repeat([0.25, 0.5, 1.0], [2, 1, 3])
    moments = seen(*batches, keep=0.5)
    mean = np.average(values, weights=weights)
    squares = weights @ (values - mean) ** 2
    assert (moments.seen, moments.mean) == pytest.approx((weights.sum(), mean))
    assert moments.std == pytest.approx(math.sqrt(squares / weights.sum()))
    assert moments.sample_std == pytest.approx(math.sqrt(squares / (weights.sum() - 1)))


def test_nothing_changes_nothing():
    moments = seen([1.0, 2.0])
    moments.add(torch.zeros(0), keep=0.5)
    assert moments == seen([1.0, 2.0])


@pytest.mark.parametrize("batches", [(), ([7.0],), ([0.1] * 3, [0.1] * 7, [0.1])], ids=["none", "one", "equal"])
def test_without_a_spread_it_is_exactly_zero(batches):
    assert (seen(*batches).std, seen(*batches).sample_std) == (0.0, 0.0)


def test_a_small_scale_is_a_spread_all_the_same():
    assert seen([1e-9, 3e-9]).std == pytest.approx(1e-9)


def test_low_precision_is_summed_in_double():
    moments = Moments()
    moments.add(torch.tensor([1e8, 1.0, -1e8]))
    assert moments.mean == pytest.approx(1 / 3)
    moments = Moments()
    moments.add(torch.full((5000,), 3.0, dtype=torch.bfloat16))
    moments.add(torch.tensor([5.0, 1.0], dtype=torch.float16))
    assert moments.mean == pytest.approx(3, abs=1e-12)
    assert moments.std == pytest.approx(math.sqrt(8 / 5002))

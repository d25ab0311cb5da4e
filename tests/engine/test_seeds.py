"""Random states: set, kept, and independent of each other."""

import random

import numpy as np
import torch

from holdfast.engine.seeds import generator, random_state, restore, seed_everything


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()  # noqa: NPY002


def test_equal_seeds_draw_equal_numbers_everywhere():
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first))


def test_restoring_goes_on_where_the_state_was_taken():
    seed_everything(5)
    np.random.randn()  # noqa: NPY002 - leaves a second Gaussian waiting in NumPy's state
    state = random_state()
    first = draw(), draw()
    restore(state)
    assert (draw(), draw()) == first


def test_generators_differ_in_every_part_and_repeat():
    def first(*parts):
        return torch.rand(1, generator=generator(*parts)).item()

    drawn = [first(0, 1), first(1, 0), first(0, 0), first(0), first(0, 1, 1)]
    assert len(set(drawn)) == len(drawn)
    assert first(0, 1) == drawn[0]
    state = torch.get_rng_state()
    first(3)
    assert torch.equal(torch.get_rng_state(), state), "the global state is left alone"

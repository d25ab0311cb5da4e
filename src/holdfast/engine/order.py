"""Which rows each step learns from.

An order is a pure function of the seed and the step, and holds no position: every process finds the same rows, and a
run that was killed and begun again goes on with those that it would have seen.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from holdfast.engine.seeds import generator
from holdfast.losses.offline import probabilities


class Order(Protocol):
    """The rows of every step, by their places among `count` rows."""

    @property
    def count(self) -> int:
        """The rows there are."""

    @property
    def steps(self) -> int:
        """The steps there are."""

    def chosen(self, step: int) -> list[int]:
        """The places of the rows of step `step`, from 1, over all processes."""


class Shuffled:
    """Every row once per epoch, each epoch in a new order; the last step of an epoch takes what is left.

    >>> order = Shuffled(count=3, batch_size=2, epochs=2, seed=0)
    >>> order.steps, sorted(order.chosen(1) + order.chosen(2))
    (4, [0, 1, 2])
    """

    def __init__(self, count: int, batch_size: int, epochs: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._per_epoch = math.ceil(count / batch_size)
        self.steps = self._per_epoch * epochs

    def chosen(self, step: int) -> list[int]:
        """The places of the rows of step `step`, from 1."""
        epoch, place = divmod(step - 1, self._per_epoch)
        order = torch.randperm(self.count, generator=generator(self.seed, epoch))
        return order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class Drawn:
    """Independent draws with replacement, each row as often as its weight says: p_i = w_i / sum w.

    weights: (N,), any number of rows (`torch.multinomial` ends at 2^24); a row of weight zero never appears. Priority
    sampling of A-LoL (arXiv 2305.14718) weighs rows by their positive advantages. Raises `ValueError` for weights
    without meaning, see `probabilities`.

    >>> Drawn(torch.tensor([0.0, 2.0, 0.0]), batch_size=4, steps=1, seed=0).chosen(1)
    [1, 1, 1, 1]
    """

    def __init__(self, weights: Tensor, batch_size: int, steps: int, seed: int) -> None:
        ends = probabilities(weights).cumsum(0)
        self.count, self.batch_size, self.steps, self.seed = len(weights), batch_size, steps, seed
        # Rounding leaves the last end beside 1, and a draw above it would belong to nobody.
        self._ends = ends / ends[-1]

    def chosen(self, step: int) -> list[int]:
        """The places of the rows of step `step`, from 1."""
        draws = torch.rand(self.batch_size, generator=generator(self.seed, step), dtype=torch.float64)
        # From the right: a draw on a border belongs to the row above, so that no row of weight zero ever gets one.
        return torch.searchsorted(self._ends, draws, right=True).tolist()

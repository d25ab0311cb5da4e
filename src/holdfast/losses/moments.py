"""Running moments: what is known of the scale of a number that comes batch by batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """How much was seen of something, its mean, and the sum of squares around it.

    However the values were cut into batches, the result is that of all of them at once.

    >>> moments = Moments()
    >>> moments.add(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> moments.add(torch.tensor([10.0, -2.0]))
    >>> moments.mean, moments.sample_std
    (3.0, 4.0)
    """

    seen: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor, keep: float = 1.0) -> None:
        """Forget by the factor `keep`, then merge the new values (N,) in (Chan, Golub and LeVeque 1983).

        No values change nothing.
        """
        n = len(values)
        if not n:
            return
        values = values.double()
        mean, before = float(values.mean()), keep * self.seen
        apart, whole = mean - self.mean, before + n
        inside = float((values - mean).square().sum())
        self.squares = keep * self.squares + inside + apart**2 * before * n / whole
        self.mean += apart * n / whole
        self.seen = whole

    @property
    def std(self) -> float:
        """The population's standard deviation; 0 when nothing was seen, or only equal values."""
        return self._spread(self.seen)

    @property
    def sample_std(self) -> float:
        """The standard deviation with N / (N - 1); 0 when one value at most was seen, or only equal ones."""
        return self._spread(self.seen - 1)

    def _spread(self, count: float) -> float:
        spread = (self.squares / count) ** 0.5 if count > 0 else 0.0
        # Equal values leave rounding in the squares; whoever divides by that makes noise of a constant.
        return spread if spread > torch.finfo(torch.float32).eps * abs(self.mean) else 0.0

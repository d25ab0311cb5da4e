"""Numbers of response tokens of many answers, kept end to end without padding.

A column is flat: the tokens of the first answer, then those of the second, and so on. Padded tables (N, R), in which
column t stands for the t-th response token, exist only while something is computed on them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Ragged:
    """The places of N answers of given lengths in flat columns of S = sum(lengths) numbers.

    >>> places = Ragged([2, 1])
    >>> places.flat(torch.tensor([[1.0, 2.0], [3.0, 9.0]]))
    tensor([1., 2., 3.])
    >>> places.chosen(torch.tensor([1.0, 2.0, 3.0]), [1, 0])
    tensor([3., 1., 2.])
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    @property
    def mask(self) -> Tensor:
        """(N, R) true where an answer has a token, R being the length of the longest."""
        widest = max(self.lengths, default=0)
        return torch.arange(widest)[None, :] < torch.tensor(self.lengths, dtype=torch.long)[:, None]

    def flat(self, table: Tensor) -> Tensor:
        """The column (S,) of a padded table (N, R)."""
        return table[self.mask]

    def table(self, column: Tensor) -> Tensor:
        """The padded table (N, R) of a column (S,), zero where there is no token."""
        mask = self.mask
        assert len(column) == sum(self.lengths), "a column holds one number for each token"
        return column.new_zeros(mask.shape).masked_scatter(mask, column)

    def chosen(self, column: Tensor, rows: Sequence[int]) -> Tensor:
        """The numbers of the chosen answers end to end, in the order of `rows`."""
        pieces = column.split(self.lengths)
        return torch.cat([pieces[i] for i in rows]) if rows else column[:0]

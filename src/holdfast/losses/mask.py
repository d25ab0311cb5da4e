"""Which columns count.

Masks are built from lengths and borders known at tokenisation, never from the ids: an end-of-text token that
also serves as padding would vanish from a mask made of comparisons. Everywhere: B batch, T tokens.
"""

import torch
from torch import Tensor


def from_lengths(lengths: Tensor, size: int) -> Tensor:
    """(B, T) bool, true in the first `lengths` columns of each row: rows padded on the right to `size`.

    >>> from_lengths(torch.tensor([1, 3]), size=3).int().tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    return span(torch.zeros_like(lengths), lengths, size)


def span(starts: Tensor, stops: Tensor, size: int) -> Tensor:
    """(B, T) bool, true where starts <= column < stops; an empty span is allowed.

    starts, stops: (B,). Raises `ValueError` for a span that leaves the `size` columns or ends before it
    starts.

    >>> span(torch.tensor([1, 0]), torch.tensor([3, 0]), size=4).int().tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    wrong = (starts < 0) | (stops < starts) | (stops > size)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {row}: the span {int(starts[row])}..{int(stops[row])} does not fit in {size} columns")
    columns = torch.arange(size, device=starts.device)
    return (starts[:, None] <= columns) & (columns < stops[:, None])


def last_index(lengths: Tensor) -> Tensor:
    """(B,) the column of the last token of rows padded on the right.

    Raises `ValueError` for an empty row, which has no last token (column -1 would be padding).

    >>> last_index(torch.tensor([1, 3])).tolist()
    [0, 2]
    """
    if (lengths < 1).any():
        raise ValueError(f"row {int((lengths < 1).nonzero()[0])} is empty and has no last token; drop it first")
    return lengths - 1


def ends(mask: Tensor) -> Tensor:
    """(B, T) bool, true only in the last true column of each row of `mask`; a row without one stays false.

    >>> ends(torch.tensor([[False, True, True, False], [False] * 4])).int().tolist()
    [[0, 0, 1, 0], [0, 0, 0, 0]]
    """
    still_to_come = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (still_to_come == 1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """(B, T) 0, 1, 2, ... over the attended tokens of each row, whatever side is padded; 0 on padding.

    >>> position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 1], [0, 1, 2, 0]]
    """
    attended = attention_mask.long()
    return (attended.cumsum(-1) - 1) * attended


def shift(mask: Tensor) -> Tensor:
    """(B, T-1) the mask of next-token quantities: column t speaks of token t+1, which column t predicts.

    >>> shift(torch.tensor([[False, True, True]])).tolist()
    [[True, True]]
    """
    return mask[:, 1:]

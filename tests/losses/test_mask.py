import pytest
import torch
from torch import tensor

from holdfast.losses.mask import ends, from_lengths, last_index, position_ids, shift, span


def test_from_lengths_counts_columns_from_the_left():
    mask = from_lengths(tensor([0, 2, 4]), size=4)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_span_equals_a_double_loop():
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, 5, (20,), generator=generator)
    stops = starts + torch.randint(0, 4, (20,), generator=generator)
    slow = [[bool(start <= column < stop) for column in range(9)] for start, stop in zip(starts, stops, strict=True)]
    assert span(starts, stops, size=9).tolist() == slow


@pytest.mark.parametrize(
    "start, stop, message",
    [(0, 6, r"row 1: the span 0\.\.6 does not fit in 5"), (3, 2, r"3\.\.2"), (-1, 2, r"-1\.\.2")],
)
def test_span_refuses_what_does_not_fit(start, stop, message):
    with pytest.raises(ValueError, match=message):
        span(tensor([0, start]), tensor([5, stop]), size=5)


def test_length_beyond_the_columns_is_refused():
    with pytest.raises(ValueError, match="does not fit in 3 columns"):
        from_lengths(tensor([4]), size=3)


def test_last_index():
    lengths = tensor([1, 3])
    assert last_index(lengths).tolist() == [0, 2]
    assert from_lengths(lengths, 3).gather(1, last_index(lengths)[:, None]).all()
    with pytest.raises(ValueError, match="row 1 is empty"):
        last_index(tensor([2, 0]))


def test_ends_equals_a_double_loop():
    mask = torch.rand(50, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    slow = [[bool(row[t] and not row[t + 1 :].any()) for t in range(7)] for row in mask]
    assert ends(mask).tolist() == slow
    assert (~mask.any(1)).any(), "the sample must hold an empty row"


@pytest.mark.parametrize("dtype", [torch.bool, torch.long])
def test_positions_do_not_depend_on_the_side_of_the_padding(dtype):
    attention = tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).to(dtype)
    positions = position_ids(attention)
    assert positions.dtype == torch.long
    assert [row[kept].tolist() for row, kept in zip(positions, attention.bool(), strict=True)] == [[0, 1, 2]] * 3
    assert (positions[~attention.bool()] == 0).all()


def test_shift_aligns_with_the_column_that_predicts():
    mask = span(tensor([2]), tensor([4]), size=5)
    assert shift(mask).int().tolist() == [[0, 1, 1, 0]]  # column 1 predicts token 2

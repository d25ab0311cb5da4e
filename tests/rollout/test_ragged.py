"""Flat columns and padded tables are two views of the same numbers."""

import pytest
import torch

from holdfast.rollout.ragged import Ragged

LENGTHS = [3, 1, 0, 2]
COLUMN = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
TABLE = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 6.0, 0.0]])


def test_answers_stand_end_to_end():
    places = Ragged(LENGTHS)
    assert places.mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [True, True, False]]
    assert torch.equal(places.table(COLUMN), TABLE)
    assert torch.equal(places.flat(TABLE), COLUMN)


def test_what_stands_behind_an_answer_is_left_out():
    spoilt = TABLE.masked_fill(~Ragged(LENGTHS).mask, float("nan"))
    assert torch.equal(Ragged(LENGTHS).flat(spoilt), COLUMN)


@pytest.mark.parametrize(
    "rows, expected",
    [([3, 0], [5, 6, 1, 2, 3]), ([1, 1], [4, 4]), ([2], []), ([], []), ([0, 1, 2, 3], [1, 2, 3, 4, 5, 6])],
)
def test_chosen_answers_keep_the_order_asked_for(rows, expected):
    found = Ragged(LENGTHS).chosen(COLUMN, rows)
    assert found.tolist() == expected
    assert found.dtype == COLUMN.dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bool, torch.long])
def test_a_column_keeps_its_kind(dtype):
    column = COLUMN.to(dtype)
    assert Ragged(LENGTHS).table(column).dtype == dtype
    assert torch.equal(Ragged(LENGTHS).flat(Ragged(LENGTHS).table(column)), column)


@pytest.mark.parametrize("lengths, shape", [([], (0, 0)), ([0, 0], (2, 0))])
def test_no_tokens_at_all(lengths, shape):
    places, nothing = Ragged(lengths), torch.zeros(0)
    assert places.mask.shape == places.table(nothing).shape == shape
    assert len(places.flat(places.table(nothing))) == 0


@pytest.mark.parametrize("count", [5, 7])
def test_a_column_of_other_answers_is_not_taken(count):
    """One number too few or too many belongs to other answers, and would shift those behind it."""
    with pytest.raises(AssertionError, match="one number for each token"):
        Ragged(LENGTHS).table(torch.zeros(count))
    with pytest.raises((RuntimeError, ValueError)):
        Ragged(LENGTHS).chosen(torch.zeros(count), [0])

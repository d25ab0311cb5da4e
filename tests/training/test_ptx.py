"""Rows to imitate: everyone once in each epoch, in an order that can be taken up again."""

import json
from collections import Counter

import pytest

from holdfast.data.template import Encoded
from holdfast.training.ptx import PtxRows

PAD = 9


def rows(count):
    """Rows of 2, 3, ... tokens, each with its number as its name."""
    return [
        Encoded(list(range(n + 2)), [False] + [True] * (n + 1), [False] + [True] * (n + 1), n + 1, 1, id=str(n))
        for n in range(count)
    ]


def names(taken):
    return [row.id for row in taken]


def test_every_row_comes_once_before_any_comes_again():
    source = PtxRows(rows(5), PAD, seed=3)
    taken = [name for count in (2, 1, 4, 13) for name in names(source.take(count))]
    epochs = [taken[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1, "the order is new in every epoch"


def test_more_rows_than_there_are():
    assert Counter(names(PtxRows(rows(3), PAD).take(7))).most_common()[0][1] == 3
    assert PtxRows(rows(3), PAD).take(0) == []


def test_the_order_belongs_to_the_seed():
    one, same, other = (names(PtxRows(rows(20), PAD, seed).take(20)) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("before", [0, 3, 5, 12])
def test_the_place_is_taken_up_again(before):
    one, other = PtxRows(rows(5), PAD, seed=1), PtxRows(rows(5), PAD, seed=1)
    one.take(before)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert names(other.take(9)) == names(one.take(9))
    assert other.state_dict() == one.state_dict()


def test_batches_hold_the_rows_within_the_budget():
    source, same = PtxRows(rows(6), PAD, seed=4), PtxRows(rows(6), PAD, seed=4)
    batches = source.batches(8, micro_tokens=12)
    assert sorted(name for batch in batches for name in batch.ids) == sorted(names(same.take(8)))
    assert source.state_dict() == same.state_dict()
    assert all(batch.tokens.input_ids.numel() <= 12 for batch in batches)
    padding = [batch.tokens.input_ids[~batch.tokens.attention_mask.bool()] for batch in batches]
    assert {value for values in padding for value in values.tolist()} == {PAD}


def test_nothing_to_imitate():
    with pytest.raises(ValueError, match="no rows to imitate"):
        PtxRows([], PAD)

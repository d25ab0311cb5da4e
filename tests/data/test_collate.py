"""Batches: what is padding follows from lengths, whatever the ids and whichever the side."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data.collate import micro_batches, pad
from holdfast.data.template import Encoded

PAD = 0


def row(ids: list[int], prompt: int, id: str = "") -> Encoded:
    mask = [i >= prompt for i in range(len(ids))]
    return Encoded(ids, mask, mask, len(ids) - 1, prompt, id=id)


# Ids equal to the padding stand inside prompts and answers on purpose.
ROWS = [row([PAD, 5, PAD, 6, PAD], 2, "a"), row([7, PAD], 1, "b"), row([8, 9, PAD], 1, "c")]


def test_right_padding_by_hand() -> None:
    batch = pad(ROWS, pad_id=PAD)
    assert batch.input_ids.tolist() == [[0, 5, 0, 6, 0], [7, 0, 0, 0, 0], [8, 9, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert batch.response_mask.tolist() == [
        [False, False, True, True, True],
        [False, True, False, False, False],
        [False, True, True, False, False],
    ]
    assert batch.score_index.tolist() == [4, 1, 2]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4]
    assert (batch.size, batch.tokens, batch.ids) == (3, 10, ("a", "b", "c"))
    assert batch.lengths.tolist() == [5, 2, 3]
    assert batch.prompt_lengths.tolist() == [2, 1, 1]


def test_left_padding_by_hand() -> None:
    batch = pad(ROWS, "left", pad_id=PAD)
    assert batch.input_ids.tolist() == [[0, 5, 0, 6, 0], [0, 0, 0, 7, 0], [0, 0, 8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 0, 0, 1, 2]]
    assert batch.score_index.tolist() == [4, 4, 4]


def test_types_are_those_that_models_take() -> None:
    batch = pad(ROWS, pad_id=PAD)
    for table in (batch.input_ids, batch.attention_mask, batch.position_ids, batch.score_index):
        assert table.dtype == torch.long
    assert batch.response_mask.dtype == batch.turn_mask.dtype == batch.truncated.dtype == torch.bool


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.data()), min_size=1, max_size=5),
    pad_id=st.integers(0, 3),
    multiple=st.integers(1, 4),
)
def test_sides_and_padding_ids_change_nothing_about_the_content(rows, pad_id, multiple) -> None:
    encoded = [row(ids, data.draw(st.integers(1, len(ids) - 1))) for ids, data in rows]
    sides = {side: pad(encoded, side, pad_id=pad_id, multiple_of=multiple) for side in ("left", "right")}
    for batch in sides.values():
        assert batch.input_ids.shape[1] % multiple == 0
        for i, one in enumerate(encoded):
            real = batch.attention_mask[i].bool()
            assert batch.input_ids[i][real].tolist() == one.ids
            assert batch.response_mask[i][real].tolist() == one.response_mask
            assert batch.turn_mask[i][real].tolist() == one.turn_mask
            assert batch.position_ids[i][real].tolist() == list(range(one.length))
            assert not batch.response_mask[i][~real].any()
            assert not batch.turn_mask[i][~real].any()
            assert batch.position_ids[i][batch.score_index[i]] == one.score_index
            assert real[batch.score_index[i]]


def test_turns_and_cuts_are_kept_apart() -> None:
    talk = replace(ROWS[0], turn_mask=[True, False, True, True, True], truncated=True)
    batch = pad([talk, ROWS[1]], pad_id=PAD)
    assert batch.turn_mask[0].tolist() == [True, False, True, True, True]
    assert batch.response_mask[0].tolist() == ROWS[0].response_mask
    assert batch.truncated.tolist() == [True, False]


def test_moving_keeps_everything() -> None:
    batch = pad(ROWS, pad_id=PAD)
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.score_index.device.type == "meta"
    assert moved.ids == batch.ids
    assert batch.input_ids.device.type == "cpu"


def test_no_rows_make_no_batch() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        pad([], pad_id=PAD)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 120), sort=st.booleans())
def test_micro_batches_keep_to_the_budget_and_lose_nothing(lengths, budget, sort) -> None:
    groups = micro_batches(lengths, budget, sort)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = max(lengths[i] for i in group) * len(group)
        assert padded <= budget or len(group) == 1
    if not sort:
        assert [i for group in groups for i in group] == list(range(len(lengths)))


def test_micro_batches_by_hand() -> None:
    assert micro_batches([3, 1, 3, 9, 1], 6) == [[1, 4], [0, 2], [3]]
    assert micro_batches([3, 1, 3], 6, sort=False) == [[0, 1], [2]]
    # Two rows of three fill a budget of six exactly.
    assert micro_batches([3, 3], 6) == [[0, 1]]
    assert micro_batches([], 6) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        micro_batches([1], 0)

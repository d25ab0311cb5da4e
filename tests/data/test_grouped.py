"""Answers grouped by prompt: each prompt once, every answer in its place, nothing lost on the way to plain rows."""

import torch

from holdfast.data.collate import pad
from holdfast.data.grouped import by_prompt, cut, group, portions
from holdfast.data.images import ImageSettings, Pixels
from holdfast.data.schema import Image
from holdfast.data.template import Encoded

PAD = 0


def row(prompt, answer, *, tail=0, name="", images=()):
    """An encoded row; the last `tail` tokens come after the response, as a template may write them."""
    asked, given = len(prompt), len(answer) - tail
    mask = [False] * asked + [True] * given + [False] * tail
    ids = [*prompt, *answer]
    return Encoded(ids, mask, mask, len(ids) - 1, asked, images=list(images), id=name)


class Pictures:
    """A processor that opens nothing."""

    def __init__(self):
        self.opened = []

    def image_processor(self, images, return_tensors):
        self.opened += images
        return {"pixel_values": torch.full((1, 3, 2, 2), float(images[0]))}


class Numbered(Pixels):
    def open(self):
        return int(self.image.path)


ROWS = [
    row([5, 6, 7], [8], name="a"),
    row([9], [10, 11], name="b"),
    row([5, 6, 7], [12, 13, 14], tail=1, name="c"),
    row([5, 6], [7, 8], name="d"),
]


def test_each_prompt_stands_once_and_answers_keep_their_order():
    grouped = group(ROWS, PAD)
    assert grouped.prompts.input_ids.tolist() == [[5, 6, 7], [9, 0, 0], [5, 6, 0]]
    assert grouped.prompts.lengths.tolist() == [3, 1, 2]
    assert grouped.answers.input_ids.tolist() == [[8, 0, 0], [10, 11, 0], [12, 13, 14], [7, 8, 0]]
    assert grouped.answers.lengths.tolist() == [1, 2, 3, 2]
    assert grouped.of.tolist() == [0, 1, 0, 2]
    assert grouped.ids == ("a", "b", "c", "d")
    assert by_prompt(ROWS) == [[0, 2], [1], [3]]


def test_the_mask_holds_responses_and_the_score_stands_at_the_end_of_the_answer():
    grouped = group(ROWS, PAD)
    assert grouped.mask.long().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert grouped.answers.score_index.tolist() == [0, 1, 2, 1]


def test_tokens_saved_count_the_padding_of_plain_rows():
    grouped = group(ROWS, PAD)
    assert grouped.tokens == (3 + 1 + 2) + (1 + 2 + 3 + 2)
    assert grouped.longest == 6
    assert grouped.saving == 4 * 6 / 14


def test_plain_rows_are_those_that_were_grouped():
    found, wanted = group(ROWS, PAD).plain(), pad(ROWS, pad_id=PAD)
    for name in ("input_ids", "attention_mask", "position_ids", "response_mask", "score_index"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))


def test_equal_words_under_other_pictures_are_another_prompt():
    processor = Pictures()
    pictures = [Numbered(Image(path=str(i)), processor, ImageSettings()) for i in (1, 2)]
    rows = [row([5, 6], [7 + i], images=[pictures[which]]) for i, which in enumerate((0, 1, 0))]
    grouped = group(rows, PAD)
    assert grouped.of.tolist() == [0, 1, 0]
    assert grouped.prompts.extra["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert grouped.answers.extra == {}
    assert processor.opened == [1, 2]


def test_everything_moves():
    moved = group(ROWS, PAD).to("meta")
    devices = {value.device.type for value in (moved.of, moved.mask, moved.prompts.input_ids, moved.answers.lengths)}
    assert devices == {"meta"}


def shares(saving, longest):
    return saving >= 1.3


def test_portions_hold_whole_prompts_within_the_budget_as_they_are_read():
    long = row(range(10), [1, 2]), row(range(10), [3, 4])
    short = row([7], [1]), row([7], [2])
    # 10 + 4 tokens and 1 + 2; plain rows would be 24 and 4, together 48.
    assert cut([long, short, long], 31, shares) == [[1, 0, 2]]
    assert cut([long, short, long], 30, shares) == [[1, 0], [2]]
    assert cut([long, short, long], 16, shares) == [[1], [0], [2]]
    assert cut([long, short, long], 28, lambda saving, longest: False) == [[1], [0], [2]]
    assert cut([long, short, long], 48, lambda saving, longest: False) == [[1, 0], [2]]
    assert cut([long] * 4, 30, shares) == [[0, 1], [2, 3]]
    assert cut([], 5, shares) == []


def test_where_nothing_is_shared_rows_stand_by_length_alone():
    rows = [row([5, 6], [1] * n) for n in (9, 1, 9, 1)]
    assert portions(rows, 22, lambda saving, longest: False) == [[1, 3], [0, 2]]
    assert portions([], 22, shares) == []


def test_many_answers_to_one_prompt_are_read_in_several_passes():
    rows = [row(range(10), [i, 1]) for i in range(7)]
    assert portions(rows, 16, shares) == [[0, 1, 2], [3, 4, 5], [6]]
    assert portions(rows, 1, shares) == [[i] for i in range(7)]

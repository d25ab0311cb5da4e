import gzip
import json
import math

import pytest
from shared_files import shared_file

from holdfast.stats.diversity import distinct_n

TEXTS = ["the cat sat on the mat", "the cat"]


def test_both_definitions_by_hand():
    # 5 of 8 words are distinct; of 6 pairs, "the cat" occurs twice.
    assert distinct_n(TEXTS, 1) == distinct_n(TEXTS, 1, per="word") == 5 / 8
    assert distinct_n(TEXTS, 2) == pytest.approx(0.833333, abs=5e-7)
    assert distinct_n(TEXTS, 2, per="word") == 5 / 8
    assert distinct_n(TEXTS, 3) == 1.0
    assert distinct_n(TEXTS, 3, per="word") == 4 / 8


def test_ngrams_end_with_their_text():
    assert distinct_n(["a b", "b a", "b a"], 2) == 2 / 3
    assert distinct_n(["a b", "c"], 2, per="word") == 1 / 3


def test_capitals_count_unless_taken_away():
    assert distinct_n(["The the"], 1) == 1.0
    assert distinct_n(["The the"], 1, lower=True) == 0.5


def test_words_are_split_at_single_spaces():
    assert distinct_n(["a  a"], 1) == 2 / 3  # between the two spaces stands an empty word
    assert distinct_n(["a\nb a\nb"], 1) == 0.5


def test_nothing_to_count_is_not_a_number():
    assert math.isnan(distinct_n([], 1))
    assert math.isnan(distinct_n(["", ""], 1, per="word"))
    assert math.isnan(distinct_n(["one", "two"], 2))
    assert distinct_n(["one", "two"], 2, per="word") == 0.0
    assert distinct_n(["one", ""], 1) == 1.0


def test_n_counts_words():
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"number of words of an n-gram and at least 1, got {n}"):
            distinct_n(TEXTS, n)


@pytest.mark.shared
def test_published_numbers_of_real_answers():
    texts = []
    for name in ("harmless_base", "helpful_base", "helpful_online"):
        with gzip.open(shared_file(f"hh/lolrl_hh_test_{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["suffix"][0] for line in lines]
    found = [distinct_n(texts, n, per="word") for n in (1, 2, 3)]
    assert found == pytest.approx([0.1139, 0.4867, 0.7811], abs=5e-5)  # published to four digits

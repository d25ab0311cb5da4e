"""Comparisons of people are read as they lie, and every row that is dropped is counted."""

import gzip
import json
from pathlib import Path

import pytest
from shared_files import shared_file

from holdfast.errors import UserError
from holdfast.studies import hh


def turns(*texts):
    marks = ("<|prompter|>", "<|assistant|>")
    return [marks[i % 2] + text for i, text in enumerate(texts)] + ["<|assistant|>"]


def write(folder, group, rows):
    lines = "".join(json.dumps({"prefix": [prefix] * 2, "suffix": list(suffix)}) + "\n" for prefix, suffix in rows)
    (folder / f"lolrl_hh_test_{group}_base.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def folder(tmp_path):
    asked = turns("one?")
    write(
        tmp_path,
        "helpful",
        [(asked, (" good ", "bad")), (asked, ("bad", "row")), (asked, ("same", " same")), (asked, ("", "x"))],
    )
    write(tmp_path, "harmless", [(turns("one?", "two", "three?"), ("no", "yes"))])
    listed = {"helpful_base.json": [1], "harmless_base.json": []}
    (tmp_path / "lolrl_bad_test_indices_by_file.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    return tmp_path


def test_rows_are_read_and_those_dropped_are_counted(folder):
    found, counts = hh.comparisons(folder)
    assert found == [
        hh.Comparison("helpful", "Human: one?", "one?", "good", "bad"),
        hh.Comparison("harmless", "Human: one?\n\nAssistant: two\n\nHuman: three?", "three?", "no", "yes"),
    ]
    assert counts == {
        "harmless kept": 1,
        "helpful empty answer": 1,
        "helpful equal answers": 1,
        "helpful kept": 1,
        "helpful listed as bad": 1,
    }


def test_a_turn_without_a_speaker_is_refused(folder):
    write(folder, "harmless", [(["who said this"] * 2, ("no", "yes"))])
    with pytest.raises(UserError, match=r"a turn begins with one of .*; one of 13 characters"):
        hh.comparisons(folder)


def test_missing_files_are_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*by_file.json.gz; set HOLDFAST_SHARED to the folder"):
        hh.comparisons(tmp_path)


@pytest.mark.shared
def test_the_real_files_are_those_that_were_described():
    found, counts = hh.comparisons(Path(shared_file("hh/lolrl_hh_test_helpful_base.jsonl.gz")).parent)
    assert counts == {
        "harmless empty answer": 3,
        "harmless kept": 2207,
        "harmless listed as bad": 102,
        "helpful empty answer": 4,
        "helpful equal answers": 2,
        "helpful kept": 2272,
        "helpful listed as bad": 76,
    }
    assert len(found) == 2207 + 2272

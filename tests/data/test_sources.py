"""Reading: every kind of file, folders, bad rows, and the facts of the real files."""

import csv
import gzip
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from shared_files import shared_file

from holdfast.data.formats import FORMATS, recognise
from holdfast.data.schema import Classified, Conversation, DualPair, Image, Labelled, Pair, Ranked, Rated, Scored
from holdfast.data.sources import DataSettings, read, write_jsonl
from holdfast.errors import UserError

ROWS = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]


def lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_as(kind: str, folder: Path, rows: list[dict]) -> Path:
    path = folder / f"rows{kind}"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == ".csv":
        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(text)
    return path


def taken(path: object, **settings) -> list:
    return read(DataSettings(path=str(path), **settings)).records


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path) -> None:
    rows = read(DataSettings(path=str(write_as(kind, tmp_path, ROWS))))
    assert [(p.id, p.chosen) for p in rows.records] == [(f"rows-{i + 1}", f"good {i}") for i in range(4)]
    assert (rows.format, rows.skipped) == ("trl_pairs", 0)


def test_a_json_file_may_hold_lines_and_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(json.dumps(row) for row in ROWS).encode())
    assert len(taken(path)) == 4


def test_folders_are_searched_for_the_split(tmp_path) -> None:
    lines(tmp_path / "data/train-00000-of-00002.jsonl", ROWS[:1])
    lines(tmp_path / "data/train-00001-of-00002.jsonl", ROWS[1:2])
    lines(tmp_path / "test.jsonl", ROWS[2:3])
    lines(tmp_path / "valid/part.jsonl", ROWS[3:])
    lines(tmp_path / "training_notes.jsonl", ROWS)
    assert [p.chosen for p in taken(tmp_path)] == ["good 0", "good 1"]
    assert [p.chosen for p in taken(tmp_path, split="test")] == ["good 2"]
    assert [p.chosen for p in taken(tmp_path, split="valid")] == ["good 3"]
    assert len(taken(tmp_path, split="all")) == 8
    with pytest.raises(UserError, match=r"no file of split dev; found .*test\.jsonl"):
        taken(tmp_path, split="dev")


def test_rows_of_other_splits_are_counted(tmp_path) -> None:
    path = lines(tmp_path / "a.jsonl", [{**row, "split": "ab"[i % 2]} for i, row in enumerate(ROWS)])
    rows = read(DataSettings(path=str(path), split="a"))
    assert [p.chosen for p in rows.records] == ["good 0", "good 2"]
    assert rows.other_splits == {"b": 2}
    assert len(taken(path, split="all")) == 4
    with pytest.raises(UserError, match="no usable row of split train; its rows belong to a, b"):
        taken(path)


def test_a_limit_counts_usable_rows(tmp_path) -> None:
    path = lines(tmp_path / "a.jsonl", [{**ROWS[0], "chosen": ""}, *ROWS])
    assert [p.chosen for p in taken(path, limit=2, on_bad_row="skip")] == ["good 0", "good 1"]


def test_a_row_may_give_several_records(tmp_path) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "criteria_x": "c", "criteria_y": "d"}
    path = lines(tmp_path / "a.jsonl", [row, {**row, "criteria_x": ""}, row, row])
    rows = read(DataSettings(path=str(path), on_bad_row="skip"))
    assert [pair.id for pair in rows.records] == [f"a-{i}-{axis}" for i in (1, 3, 4) for axis in "xy"]
    assert [(bad.row, bad.reason) for bad in rows.bad] == [(2, "criteria_x is empty")]
    # A limit counts rows, so that none is cut in half.
    assert len(taken(path, limit=2, on_bad_row="skip")) == 4


def test_bad_rows_are_listed_at_the_end_of_reading(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    bad = ['{"prompt": "q"', "[1, 2]", json.dumps({**ROWS[0], "rejected": "good 0"}), '{"prompt": "q"}']
    good = [json.dumps(row) for row in ROWS]
    path.write_text("\n".join([*good, *bad, *bad, "\xe9"]), encoding="latin-1")
    with pytest.raises(UserError) as error:
        taken(path)
    text = str(error.value)
    assert f"{path}: 9 rows cannot be used" in text
    assert f"{path} row 5: not valid JSON" in text
    assert "row 6: a row must be an object with named columns, not list" in text
    assert "row 7: the chosen and the rejected answer are equal" in text
    assert "row 8: no column chosen, rejected; format trl_pairs needs it" in text
    assert "row 10" not in text
    assert "... and 4 more" in text
    assert "on_bad_row: skip" in text


def test_blank_lines_count_as_lines(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n{\n")
    with pytest.raises(UserError, match=r"a\.jsonl row 3: not valid JSON"):
        taken(path)


def test_skipped_rows_are_written_with_their_reasons(tmp_path) -> None:
    path = lines(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "chosen": ""}, ROWS[2]])
    target = tmp_path / "out/skipped.jsonl"
    rows = read(DataSettings(path=str(path), on_bad_row="skip"), target)
    assert (len(rows.records), rows.skipped) == (2, 1)
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"file": str(path), "row": 2, "reason": "chosen is empty", "content": {**ROWS[1], "chosen": ""}}
    ]


def test_validation_reasons_are_one_line(tmp_path) -> None:
    prompt = Conversation.ask("q").model_dump(mode="json")
    row = {"id": "1", "prompt": prompt, "responses": ["a", "b"], "safer_id": 3, "colour": "red"}
    path = lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=r"row 1: safer_id: Input should be 0 or 1; colour: Extra inputs"):
        taken(path)


def test_a_csv_row_with_surplus_cells_is_bad(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\nq,x,y\nq,x,y,z\n")
    with pytest.raises(UserError, match="row 2: more cells than columns"):
        taken(path)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.jsonl", b"", "it holds no rows"),
        ("a.jsonl", b"\n\n", "it holds no rows"),
        ("a.json", b"[]", "it holds no rows"),
        ("a.json", b"[{]", "is not valid JSON"),
        ("a.jsonl", b"{\n", "1 rows cannot be used"),
        ("a.csv", b"prompt\n\xff\n", "is not UTF-8"),
        ("a.parquet", b"PAR", "cannot be read as Parquet"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 900, mtime=0)[:30], "cannot be read"),
        ("a.txt", b"{}", "unknown kind of file"),
    ],
)
def test_files_that_cannot_be_read(name, content, reason, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        taken(tmp_path / name)


def test_when_nothing_is_usable_the_first_reason_is_shown(tmp_path) -> None:
    path = lines(tmp_path / "a.jsonl", [{**ROWS[0], "chosen": ""}])
    with pytest.raises(UserError, match="none of its 1 rows can be used; row 1: chosen is empty"):
        taken(path, on_bad_row="skip")


def test_wrong_paths(tmp_path, monkeypatch) -> None:
    for path in (tmp_path / "none.jsonl", "./none", "none.parquet", "~/none"):
        with pytest.raises(UserError, match="no file or folder at"):
            taken(path)
    with pytest.raises(UserError, match="no data file inside; expected"):
        taken(tmp_path)


def test_a_folder_inside_the_data_set(tmp_path) -> None:
    lines(tmp_path / "a" / "train.jsonl", ROWS[:1])
    lines(tmp_path / "b" / "train.jsonl", ROWS[1:])
    assert [p.chosen for p in taken(tmp_path, data_dir="b")] == ["good 1", "good 2", "good 3"]
    with pytest.raises(UserError, match=r"no file or folder at .*c; give"):
        taken(tmp_path, data_dir="c")


def test_hub_names_go_through_datasets(monkeypatch) -> None:
    import datasets

    def load(path, config, data_dir, split):
        assert (path, config, data_dir, split) == ("owner/name", "fraud", "inner", "train")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = taken("owner/name", config="fraud", data_dir="inner")
    assert [p.chosen for p in records] == [f"good {i}" for i in range(4)]
    assert len({p.id for p in records}) == 4


def test_a_hub_that_cannot_be_reached(monkeypatch) -> None:
    import datasets

    def load(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"owner/name: split train is no local file and cannot be loaded.*offline"):
        taken("owner/name")


def test_what_is_written_is_read_back_equal(tmp_path) -> None:
    prompt = Conversation.ask("caf\u00e9?", id="p")
    kinds = {
        "dual": [DualPair(id="1", prompt=prompt, responses=("a", "b"), safer_id=1, harmless_rate=(-1, 2))],
        "labelled": [Labelled(id="2", conversation=prompt.answer("a"), safe=False, severity=2)],
        "trl_pairs": [
            Pair(id="3", prompt=prompt, chosen="a", rejected="b", source="s"),
            Pair(id="4", prompt=prompt, chosen="b", rejected="a", context="c", user_id="u", group="g", margin=0.5),
        ],
        "prompts": [prompt, prompt.answer("a")],
        "rated": [Rated(id="4", conversation=prompt.answer("a"), labels={"help": 0.5})],
        "scored": [Scored(id="5", conversation=prompt.answer("a"), scores={"b": 0.5, "a": -1e-9}, split="train")],
        "ranked": [
            Ranked(id="6", prompt=prompt, responses=("b", "a", "c"), rewards=(0.5, 0.5, -2.0), preferred=2),
            Ranked(id="7", prompt=prompt, responses=("b", "a"), source="s"),
        ],
        "classified": [Classified(id="8", conversation=prompt.answer("a"), label="x", group="g")],
    }
    for name, records in kinds.items():
        for ending in (".jsonl", ".jsonl.gz"):
            path = write_jsonl(records, tmp_path / "deep" / f"{name}{ending}")
            rows = read(DataSettings(path=str(path)))
            assert (rows.format, rows.records) == (name, records)
            content = path.read_bytes()
            assert write_jsonl(records, path).read_bytes() == content
    unrated = Rated(id="5", conversation=prompt.answer("a"), labels={"help": float("nan")})
    (again,) = taken(write_jsonl([unrated], tmp_path / "nan.jsonl"))
    assert again.labels["help"] != again.labels["help"]


def test_a_folder_with_images_can_be_moved(tmp_path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "a.png").write_bytes(b"bytes")
    record = Conversation.ask("what is this", (Image(path=str(old / "a.png")),), id="1")
    write_jsonl([record], old / "rows.jsonl")
    old.rename(tmp_path / "new")
    (again,) = taken(tmp_path / "new/rows.jsonl")
    assert again.images[0].path == str(tmp_path / "new/a.png")


def test_every_format_can_be_asked_for_by_name() -> None:
    names = DataSettings.model_fields["format"].annotation.__args__
    assert set(names) == {"auto", *FORMATS}


@pytest.mark.shared
def test_the_facts_of_the_hh_file() -> None:
    path = shared_file("hh/hh_rlhf_harmless_base_test.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    pieces = [re.split(r"\n\n(Human|Assistant):", row[side]) for row in raw for side in ("chosen", "rejected")]
    roles = [piece[1::2] for piece in pieces]
    assert len(pieces) == 4624
    assert all(role[0] == "Human" and role[-1] == "Assistant" for role in roles)
    assert sum(not piece[-1].strip() for piece in pieces) == 4
    assert sum(any(a == b for a, b in pairwise(role)) for role in roles) == 13
    turns = Counter(map(len, roles))
    assert {n: turns[n] for n in range(2, 15, 2)} == {
        2: 1323,
        4: 1163,
        6: 1178,
        8: 708,
        10: 137,
        12: 38,
        14: 32,
    }
    assert sum(a[:-1] == b[:-1] for a, b in zip(pieces[::2], pieces[1::2])) == 2307

    rows = read(DataSettings(path=path, on_bad_row="skip"))
    reasons = Counter(row.reason for row in rows.bad)
    assert reasons == {"two turns of one role follow each other": 9, "the last turn is empty": 4}
    assert len(rows.records) + rows.skipped == 2312
    assert {(pair.safer_id, pair.helpful_id) for pair in rows.records} == {(0, None)}
    unusable = {row.row for row in rows.bad}
    good = [i for i in range(2312) if i + 1 not in unusable]
    assert [len(pair.prompt.messages) + 1 for pair in rows.records] == [len(roles[2 * i]) for i in good]
    assert len({pair.prompt.key for pair in rows.records}) >= len(good) - 2


@pytest.mark.shared
def test_the_facts_of_the_single_turn_file() -> None:
    path = shared_file("w2s/hh_harmless_single_turn.jsonl.gz")
    counts = {}
    for split in ("half_a", "half_b", "test"):
        rows = read(DataSettings(path=path, split=split, on_bad_row="skip"))
        assert len(rows.records) + rows.skipped == 4000
        assert sum(rows.other_splits.values()) == 8000
        counts[split] = Counter("empty" in row.reason for row in rows.bad)
    assert sum(count[True] for count in counts.values()) == 17
    assert sum(count[False] for count in counts.values()) == 27


@pytest.mark.shared
def test_the_facts_of_the_dialogue_safety_file() -> None:
    path = shared_file("w2s/diasafety.jsonl.gz")
    sizes = {}
    for split in ("train", "val", "test"):
        rows = read(DataSettings(path=path, split=split, on_bad_row="skip"))
        sizes[split] = len(rows.records) + rows.skipped
        assert {row.reason for row in rows.bad} <= {"response is empty"}
    assert sizes == {"train": 9017, "val": 1097, "test": 1095}


def raw_rows(path: str) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name, classes, splits",
    [
        ("davidson_offensive", 3, {"": 24783}),
        ("creak", 2, {"train": 10176, "dev": 1371, "contrast": 500}),
        ("banking77", 77, {"train": 10003, "test": 3080}),
        (
            "clinc150",
            151,
            {"train": 15000, "val": 3000, "test": 4500, "oos_train": 100, "oos_val": 100, "oos_test": 1000},
        ),
    ],
)
def test_the_facts_of_the_classified_files(name, classes, splits) -> None:
    rows = read(DataSettings(path=shared_file(f"w2s/{name}.jsonl.gz"), split="all"))
    assert rows.format == "classified"
    assert Counter(row.split for row in rows.records) == splits
    assert len({row.label for row in rows.records}) == classes
    assert len({row.id for row in rows.records}) == sum(splits.values())
    assert all(row.group for row in rows.records) == (name == "creak")


@pytest.mark.shared
def test_the_shorter_answer_is_often_the_chosen_one() -> None:
    """A supervisor that learned length is easily imitated, errors and all."""
    raw = raw_rows(shared_file("w2s/hh_harmless_single_turn.jsonl.gz"))
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in raw)
    assert longer / len(raw) == pytest.approx(0.408, abs=5e-4)  # the README gives three digits
    multi = read(DataSettings(path=shared_file("w2s/hh_harmless_base_test.jsonl.gz"), split="all", on_bad_row="skip"))
    assert multi.format == "single_turn_pairs"
    assert len(multi.records) + multi.skipped == 2312


@pytest.mark.shared
def test_positions_are_no_texts() -> None:
    (first, *_) = raw_rows(shared_file("w2s/chess_puzzles.jsonl.gz"))
    with pytest.raises(UserError, match="no known format fits"):
        recognise(first, "chess_puzzles")

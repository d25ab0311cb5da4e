"""Tables of weak labels: what a row may say, what is refused, and supervisors that never saw what they label."""

import json
import math

import pytest
import torch

from holdfast.errors import UserError
from holdfast.preference.weak_labels import (
    KEYS,
    Calibration,
    WeakLabels,
    calibrate,
    cross_fitted,
    sha256_of,
)

STAMP = {"data_sha256": "d" * 64, "split_sha256": "s" * 64}
LOGITS = torch.tensor([[0.0, 1.0], [0.3, -0.7], [2.0, 2.1]])


def table(logits=LOGITS, **changes):
    ids = tuple(f"item {i}" for i in range(len(logits)))
    return WeakLabels(ids, logits, "bag of words", **{**STAMP, "created_from": "c" * 64, **changes})


def test_a_row_says_what_the_schema_asks_for_and_never_the_truth(tmp_path):
    file = table(calibration=Calibration("temperature", T=2.0)).write(tmp_path / "labels" / "0.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    forbidden = {"label", "gold", "y", "truth", "target", "chosen", "hard_label", "harm"}
    for row in rows:
        assert set(row) == KEYS - {"margin"}
        assert not forbidden & set(row)
        assert sum(row["p"]) == pytest.approx(1, abs=1e-6)
    first = rows[0]
    p = 1 / (1 + math.exp(-0.5))
    assert first["p"] == pytest.approx([1 - p, p], abs=1e-7)
    assert first["logit"] == [0.0, 1.0]
    assert (first["id"], first["supervisor_id"], first["hard"], first["n_votes"]) == ("item 0", "bag of words", 1, 1)
    assert first["uncertainty"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-7)
    assert first["calibration"] == {"method": "temperature", "T": 2.0, "b": 0.0, "note": ""}
    assert [row["hard"] for row in rows] == [1, 0, 1]


def test_a_pair_is_written_by_its_margin(tmp_path):
    margins = torch.tensor([0.5, -1.25])
    pairs = table(torch.stack([torch.zeros(2), margins], 1), kind="margin")
    row = json.loads(pairs.write(tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["margin"] == 0.5
    assert set(row) == KEYS - {"logit"}
    assert torch.equal(WeakLabels.read(tmp_path / "pairs.jsonl", **STAMP).p, pairs.p)


@pytest.mark.parametrize("classes", [2, 5, 70])
def test_what_is_read_is_what_was_written(tmp_path, classes):
    written = table(torch.randn(7, classes), calibration=Calibration("temperature", T=1.7), votes=3)
    read = WeakLabels.read(written.write(tmp_path / "labels.jsonl"), **STAMP)
    assert torch.equal(read.logits, written.logits)
    assert torch.equal(read.p, written.p)
    assert (read.ids, read.supervisor, read.calibration, read.votes, read.kind, read.created_from) == (
        written.ids,
        "bag of words",
        Calibration("temperature", T=1.7),
        3,
        "soft",
        "c" * 64,
    )


@pytest.mark.parametrize("name", list(STAMP))
def test_labels_of_other_data_are_stale(tmp_path, name):
    file = table().write(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match=r"is stale: its (dataset|split)_sha256"):
        WeakLabels.read(file, **{**STAMP, name: "e" * 64})


def test_what_no_table_may_hold_is_refused(tmp_path):
    file = table().write(tmp_path / "labels.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[1]["label"] = 1
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(UserError, match="holds label, which no table"):
        WeakLabels.read(file, **STAMP)
    with pytest.raises(UserError, match="there are no weak labels"):
        WeakLabels.read(tmp_path / "absent.jsonl", **STAMP)
    file.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="holds no weak label"):
        WeakLabels.read(file, **STAMP)


def test_impossible_tables_are_refused():
    with pytest.raises(UserError, match="labelled twice"):
        WeakLabels(("a", "a"), LOGITS[:2], "x")
    with pytest.raises(UserError, match="not finite"):
        WeakLabels(("a",), torch.tensor([[0.0, math.inf]]), "x")
    with pytest.raises(ValueError, match="need logits"):
        WeakLabels(("a",), LOGITS, "x")


def test_labels_are_taken_by_id():
    labels = table()
    assert torch.equal(labels.take(["item 2", "item 0"]), labels.p[[2, 0]])
    with pytest.raises(UserError, match="1 of 2 items have no weak label, such as item 9"):
        labels.take(["item 0", "item 9"])


def test_temperature_by_hand_and_order_is_kept():
    logits = torch.tensor([[0.0, 2.0]] * 40)
    found = calibrate(logits, [1, 1, 1, 0] * 10)
    # Three of four are right: 2 / T must be the logit of 3/4.
    assert pytest.approx(2 / math.log(3), abs=1e-4) == found.T
    assert found.apply(logits)[0, 1] == pytest.approx(0.75, abs=1e-5)
    many = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    before, after = ((table(many, calibration=one).p[:, 1].argsort()) for one in (Calibration(), found))
    assert torch.equal(before, after)


def test_labels_stay_as_they_are_where_held_out_items_say_too_little():
    few = calibrate(torch.tensor([[0.0, 2.0]] * 19), [1] * 18 + [0])
    assert few == Calibration(note="19 held-out items are too few, 20 are needed")
    perfect = calibrate(torch.tensor([[0.0, 2.0]] * 40), [1] * 40)
    assert (perfect.method, perfect.T) == ("none", 1.0)
    assert "no temperature suits 40 held-out items" in perfect.note


def test_platt_moves_the_border():
    logits = torch.tensor([[0.0, 3.0]] * 40 + [[0.0, 1.0]] * 40)
    labels = [1] * 30 + [0] * 10 + [1] * 10 + [0] * 30
    found = calibrate(logits, labels, "platt")
    p = found.apply(logits)[:, 1]
    # 3/4 and 1/4 pulled towards the middle by Platt's targets, 41/42 and 1/42 in place of 1 and 0.
    assert p[0] == pytest.approx(0.75 * 41 / 42 + 0.25 / 42, abs=1e-4)
    assert p[-1] == pytest.approx(0.25 * 41 / 42 + 0.75 / 42, abs=1e-4)
    assert calibrate(logits, labels, "none") == Calibration()


def test_a_supervisor_that_cannot_be_calibrated_is_named():
    logits = torch.tensor([[0.0, 1.0], [0.0, -1.0]] * 10)
    with pytest.raises(UserError, match="right less often than wrong"):
        calibrate(logits, [0, 1] * 10, "platt")
    with pytest.raises(UserError, match="hold out more"):
        calibrate(logits, [1] * 20, "platt")


def test_nobody_labels_a_group_it_has_seen():
    groups = ["a", "a", "b", "c", "c", "d", "e"]
    items, targets = list(range(7)), torch.eye(7)
    seen_by_fold = {}

    def learn(kept, wanted, fold):
        seen_by_fold[fold] = {groups[i] for i in kept}
        assert torch.equal(wanted, targets[kept])

        def predict(others):
            assert not seen_by_fold[fold] & {groups[i] for i in others}
            return torch.full((len(others), 7), float(fold)) + torch.eye(7)[others]

        return predict

    logits = cross_fitted(learn, items, targets, groups, folds=3, seed=1)
    assert sorted(seen_by_fold) == [0, 1, 2]
    # Each row came from one fold and stands at its own item.
    assert (logits.argmax(1) == torch.arange(7)).all()
    assert torch.equal(logits[0, 1:].unique(), logits[1, [0, 2, 3, 4, 5, 6]].unique())
    assert all(len(seen) < 5 for seen in seen_by_fold.values())
    with pytest.raises(UserError, match="6 folds of 5 groups"):
        cross_fitted(learn, items, targets, groups, folds=6)


def test_a_hash_depends_on_order_and_borders():
    assert len({sha256_of(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["1:a", "b"])}) == 4

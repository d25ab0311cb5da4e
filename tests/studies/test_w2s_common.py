"""What the studies of weak supervision on real texts share: flags on paper and criteria that can fail."""

import gzip
import itertools
import json

import numpy as np
import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.studies.common import shared_folder
from holdfast.studies.w2s_common import (
    above,
    learning,
    measured,
    more,
    notes_of,
    one_run,
    packed,
    records,
    recovers,
    recovery,
    surer,
    table_of,
    unpacked,
)
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.training.learners import Probe

TEST = 100


def flags(right):
    return np.arange(TEST) < right


def model(right):
    return {"accuracy": right / TEST, "right": packed(flags(right))}


def run_of(weak=60, soft=70, logconf=75, ceiling=80, seed=10, **more_of_it):
    students = {name: model(right) | {"on_wrong": 0.4} for name, right in {"soft": soft, "logconf": logconf}.items()}
    own = {"seed": seed, "items": {"test": TEST}, "seconds": 1.0, "warnings": [], "facts": {"sees": "letters"}}
    return (
        own
        | {"supervisor": model(weak) | {"mean": 0.25, "sd": 0.5}, "ceiling": model(ceiling), "students": students}
        | more_of_it
    )


def test_a_missing_file_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no .*w2s.davidson.jsonl.gz; set HOLDFAST_SHARED to the folder"):
        records("davidson")


def test_unusable_rows_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path))
    shared_folder("w2s").mkdir(parents=True)
    rows = [{"id": "1", "text": "good", "label": 1}, {"id": "2", "text": "", "label": 1}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (shared_folder("w2s") / "some.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert [one.id for one in records("some")] == ["1"]
    (shared_folder("w2s") / "some.jsonl.gz").write_bytes(gzip.compress(2 * (json.dumps(rows[0]) + "\n").encode()))
    with pytest.raises(UserError, match="2 rows have the id 1"):
        records("some")


@pytest.mark.parametrize("count", [1, 8, 9, 1500])
def test_flags_come_back_from_paper(count):
    given = np.random.default_rng(count).random(count) < 0.3
    written = packed(given)
    assert len(written) == 2 * -(-count // 8)
    assert unpacked(written, count).tolist() == given.tolist()


def test_the_recovered_gap_is_a_ratio_of_means():
    runs = [run_of(weak=60, soft=70, ceiling=80), run_of(weak=56, soft=62, ceiling=86)]
    # Means .58, .66, .83; the mean of ratios would be .35.
    assert recovery(runs, "soft").value.value == pytest.approx(0.08 / 0.25)
    assert recovery(runs, "soft").per_seed == pytest.approx((0.5, 0.2))


def test_a_gap_is_recovered_only_above_the_border():
    runs = [run_of(soft=64)] * 2
    assert recovers("gap", runs, "soft", 0.2)["value"] == pytest.approx(0.2)
    assert not recovers("gap", runs, "soft", 0.2 + 1e-9)["holds"]
    assert recovers("gap", runs, "soft", 0.19)["holds"]
    withheld = recovers("gap", [run_of(ceiling=61)] * 2, "soft", -9.0)
    assert (withheld["holds"], withheld["n"]) == (False, 0)
    assert withheld["method"].startswith("gap too small")
    assert not recovers("gap", [], "soft", -9.0)["holds"]


def test_equal_is_not_above():
    runs = [run_of(soft=61)] * 8 + [run_of(soft=60)] * 2
    assert above("wins", runs, "soft", "supervisor", 0.9)["value"] == 0.8
    assert not above("wins", runs, "soft", "supervisor", 0.9)["holds"]
    assert above("wins", runs, "soft", "supervisor", 0.8)["holds"]
    assert above("wins", runs, "supervisor", "soft")["value"] == 0


def test_a_mean_difference_has_to_exceed_what_is_asked():
    found = more("fall", [0.9, 0.8], [0.8, 0.8], 0.049)
    assert (found["holds"], found["value"]) == (True, pytest.approx(0.05))
    assert not more("fall", [0.9, 0.8], [0.8, 0.8], 0.051)["holds"]
    assert not more("fall", [0.8, 0.8], [0.9, 0.8])["holds"]
    assert more("fall", [0.9], [0.8]) == {**more("fall", [], []), "holds": False}


def by_hand(differences):
    """One-sided p of the signed-rank test: how many of all signs give a rank sum as large."""
    kept = [d for d in differences if d]
    sizes = sorted(map(abs, kept))
    rank = {size: np.mean([i + 1 for i, one in enumerate(sizes) if one == size]) for size in sizes}
    seen = sum(rank[abs(d)] for d in kept if d > 0)
    signs = list(itertools.product([0, 1], repeat=len(kept)))
    return np.mean([sum(s * rank[abs(d)] for s, d in zip(sign, kept)) >= seen for sign in signs])


@pytest.mark.parametrize(
    "students", [range(61, 71), [61, 61, 62, 62, 63, 63, 64, 64, 65, 65], [59, 58, 62, 63, 64, 65, 66, 67, 68, 69]]
)
def test_the_signed_rank_test_is_exact(students):
    runs = [run_of(soft=60, logconf=right) for right in students]
    found = surer("sure", runs, "logconf", "soft")
    p = by_hand([right - 60 for right in students])
    assert found["method"] == f"p = {p:.4f}, signed ranks"
    assert found["holds"] == (p < 0.01)
    assert found["value"] == pytest.approx(np.mean(students) / 100 - 0.6)
    worse = surer("sure", runs, "soft", "logconf")
    assert not worse["holds"]


def test_equal_gains_share_a_rank_whatever_their_last_bit():
    moved = {30: 1, 70: 1, 11: -1, 20: -1, 50: -1, 60: -1, 90: -1}
    runs = [run_of(soft=at, logconf=at + gain) for at, gain in moved.items()]
    assert 0.11 - 0.10 < 0.31 - 0.30
    # Seven equal sizes: p is the chance of two heads or more.
    assert surer("sure", runs, "logconf", "soft")["method"] == "p = 0.9375, signed ranks"


def test_nothing_is_sure_of_one_run_or_of_equals():
    assert not surer("sure", [run_of()], "logconf", "soft")["holds"]
    assert not surer("sure", [run_of(logconf=70)] * 5, "logconf", "soft")["holds"]


def test_the_settings_of_a_loss_are_those_that_were_asked_for():
    found = learning(7, 3e-4, 0.1, kind="hard")
    assert (found.kind, found.fit.epochs, found.fit.batch_size) == ("hard", 7, 32)
    adam = found.fit.optimiser
    assert (adam.learning_rate, adam.weight_decay, adam.warmup_ratio, adam.schedule) == (3e-4, 0.1, 0.0, "cosine")


def small_plan(count=90):
    side = torch.arange(count) % 2
    seen = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    seen[:, 0] += 1.5 * (2 * side - 1)
    ids = [str(i) for i in range(count)]
    pools = {"weak_train": (0, 20), "transfer": (20, 50), "validation": (50, 60), "test": (60, count)}
    own = {name: Pool(tuple(ids[a:b]), range(a, b)) for name, (a, b) in pools.items()}
    student = learning(3, 1e-2)
    return Plan(
        pools=lambda seed: Pools(**own),
        vault=Vault(dict(zip(ids, side.tolist())), 2, sealed=own["test"].ids),
        supervisor=Probe(lambda places: seen[list(places), :2]),
        student=Probe(lambda places: seen[list(places)]),
        supervised=student,
        ceiling=student,
        students={"soft": student},
        seeds=(3,),
        facts={"known": 1.0},
    )


def test_marks_are_those_of_the_predictions_that_were_written(tmp_path):
    found = measured(small_plan(), 3, RunFolder(tmp_path / "run"))
    for name, marks in {**found, **found["students"]}.items():
        file = tmp_path / "run" / "predictions" / name / "3.jsonl"
        if not file.is_file():
            continue
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        right = [row["hard"] == int(row["id"]) % 2 for row in rows]
        assert marks["accuracy"] == np.mean(right)
        assert unpacked(marks["right"], 30).tolist() == right
    soft = found["students"]["soft"]
    assert len(soft["curve"]) == 3
    assert soft["accuracy"] in soft["curve"]
    assert found["items"]["test"] == 30
    assert found["facts"] == {"known": 1.0}
    assert 0 < found["supervisor"]["mean"] < 1


def test_a_finished_run_is_read(tmp_path):
    first = one_run(small_plan, 3, tmp_path / "arm")

    def never():
        raise AssertionError("this run is finished")

    assert one_run(never, 3, tmp_path / "arm") == first
    assert first["seed"] == 3


def test_the_table_names_every_model_and_says_why_there_is_no_pgr():
    arms = {"text": [run_of(seed=1), run_of(seed=2, soft=58)], "flat": [run_of(ceiling=61)] * 2}
    lines = table_of(arms).split("\n")
    assert len(lines) == 2 + 2 * 4
    assert lines[3].startswith("| text | soft | 0.640 [0.580, 0.700] | 0.200 [")
    assert lines[3].endswith("| 1/2 | - | 0.40 |")
    assert "| 2/2 | 2/2 | 0.40 |" in lines[4]
    assert lines[5] == "| text | ceiling | 0.800 [0.800, 0.800] | - | - | - | - |"
    assert "n/a (gap too small" in lines[7]


def test_the_notes_count_the_seeds_whose_gap_is_too_small():
    silent = run_of(warnings=["logconf: PGR: n/a (gap too small)", "soft: PGR: n/a (gap too small)"])
    last = notes_of({"text": [run_of(warnings=["logconf: PGR: n/a"]), silent, silent]}).split("\n")[-1]
    assert last == "| text | letters | 0.25 | 0.50 | 2/3 |"

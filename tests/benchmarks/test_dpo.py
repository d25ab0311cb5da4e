"""What `benchmarks/dpo.py` compares is what it says, and results are kept, refused and judged rightly."""

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

# Behind everything else: scripts have plain names.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import dpo
import dpo_sides
import turns
from dpo_sides import Case
from turns import Book

TINY = Case("tiny", prompt=24, response=12, pairs=4, steps=2, threads=1)


def test_lengths_are_those_asked_for():
    rows = dpo_sides.pairs(TINY)
    assert len(rows) == 3 * 4
    assert {(a.prompt_length, len(a.response_ids)) for row in rows for a in row.answers} == {(24, 12)}
    assert all(row.answers[0].ids[:24] == row.answers[1].ids[:24] for row in rows)
    assert all(row.answers[0].response_ids != row.answers[1].response_ids for row in rows)


def test_lengths_that_differ_do_so_by_the_spread_and_keep_their_mean():
    rows = dpo_sides.pairs(replace(TINY, spread=0.5, pairs=100))
    prompts = [row.answers[0].prompt_length for row in rows]
    answers = [len(a.response_ids) for row in rows for a in row.answers]
    assert (min(prompts), max(prompts), min(answers), max(answers)) == (12, 36, 6, 18)
    # The standard error of the mean of 300 such lengths is 0.4.
    assert sum(prompts) / len(prompts) == pytest.approx(24, abs=1.2)


def test_other_turns_have_other_pairs():
    assert dpo_sides.pairs(TINY)[0].answers != dpo_sides.pairs(replace(TINY, seed=1))[0].answers


def cases(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dpo", *words])
    return dpo.cases(dpo.arguments())


def test_settings_with_and_without_spread_are_compared(monkeypatch):
    assert list(cases(monkeypatch, "--setting", "256:128", "64:64")) == [
        "5M 256:128 spread 0",
        "5M 256:128 spread 0.5",
        "5M 64:64 spread 0",
        "5M 64:64 spread 0.5",
    ]
    assert cases(monkeypatch)["5M 256:128 spread 0.5"] == Case("5M", 256, 128, spread=0.5)


@pytest.mark.parametrize(
    "prompt, step, whole, peak, wanted",
    [
        (256, 1.6, 1.7, 0.9, {"target": 1.5, "fast_enough": True, "small_enough": True}),
        (256, 1.6, 1.4, 1.1, {"target": 1.5, "fast_enough": False, "small_enough": False}),
        (128, 1.1, 1.2, 1.0, {"target": 1.0, "fast_enough": True, "small_enough": True}),
    ],
)
def test_long_prompts_are_held_to_more(prompt, step, whole, peak, wanted):
    found = {"step_ratio": step, "whole_ratio": whole, "peak_ratio": peak}
    assert dpo.judged(Case("5M", prompt, 128), found) == wanted


def run(seconds, reference=0.0, peak=100.0):
    """What a side prints, for two timed steps."""
    return {"seconds": [seconds - 0.5, seconds + 0.5], "reference": reference, "peak_mb": peak, "parameters": 7}


def test_summary_is_of_medians_over_turns_and_of_trl_in_its_faster_way():
    runs = {
        "holdfast": [run(4, 1, 150)] * 3,
        "trl": [run(8, 3, 300), run(9, 3, 300), run(60, 3, 300)],
        "trl_in_step": [run(10, 0, 200), run(13, 0, 200), run(12, 0, 200)],
    }
    found = dpo.summary(TINY, runs)
    assert (found["step_ratio"], found["step_ratio_range"]) == (2.25, [2.0, 15.0])
    assert (found["whole_ratio"], found["whole_ratio_range"]) == (2.4, [2.0, 2.4])
    assert found["peak_ratio"] == 0.75
    assert found["seconds"]["trl"] == {"step": 9, "reference": 3}
    assert found["tokens_per_second"] == {"holdfast": 2 * 4 * 36 / 4, "trl": 2 * 4 * 36 / 9}


def test_passes_of_trl_to_try():
    assert dpo.choices(replace(TINY, pairs=8)) == [2, 4, 8]
    assert dpo.choices(replace(TINY, pairs=3)) == [1, 3]


def spawned(monkeypatch, numbers):
    """Replace processes by what they would print; returns the list of those that were asked for."""
    asked = []

    def spawn(name, case, moved=None):
        asked.append((name, case.seed, case.rows, moved is not None))
        if moved is not None:
            torch.save(torch.tensor(numbers[name]["moved"]), moved)
            return {"rows": [numbers[name]]}
        # TRL is fastest with two pairs in a pass.
        return run(4, 1) if name == "holdfast" else run(8 + abs(case.rows - 2), 1)

    monkeypatch.setattr(dpo, "spawn", spawn)
    return asked


def numbers(**changed):
    one = {"loss": 0.5, "lead": 0.1, "grad_norm": 2.0, "moved": [1.0, 0.0]}
    return {"trl": one, "trl_in_step": one, "holdfast": one | changed}


def test_turns_alternate_and_are_not_repeated(monkeypatch, tmp_path):
    asked, file = spawned(monkeypatch, numbers()), tmp_path / "out.json"
    dpo.contest(Book(file, "dpo"), "one", TINY, repeats=2, rows=-1)
    names = [name for name, *_ in asked]
    assert names[:3] == ["holdfast", "trl", "trl_in_step"]
    assert asked[3:6] == [("trl", 0, 1, False), ("trl", 0, 2, False), ("trl", 0, 4, False)]
    assert names[6:] == ["holdfast", "trl", "trl_in_step", "trl_in_step", "trl", "holdfast"]
    assert {one[2:] for one in asked[6:]} == {(2, False)}
    asked.clear()
    entry = dpo.contest(Book(file, "dpo"), "one", TINY, repeats=3, rows=-1)
    assert [(name, seed) for name, seed, *_ in asked] == [("holdfast", 2), ("trl", 2), ("trl_in_step", 2)]
    assert entry["summary"]["step_ratio"] == 2.0
    assert entry["summary"]["target"] == 1.5
    assert json.loads(file.read_text())["results"]["one"] == json.loads(json.dumps(entry))


@pytest.mark.parametrize(
    "changed", [{"loss": 0.5001}, {"loss": math.nan}, {"lead": 0.101}, {"grad_norm": 2.01}, {"moved": [1.0, 0.01]}]
)
def test_sides_that_learn_different_things_are_not_timed(monkeypatch, tmp_path, changed):
    asked = spawned(monkeypatch, numbers(**changed))
    with pytest.raises(SystemExit, match=rf"learn different things \({next(iter(changed))}\)"):
        dpo.contest(Book(tmp_path / "out.json", "dpo"), "one", TINY, repeats=2, rows=0)
    assert len(asked) == 3


def test_our_side_measures_what_the_comparison_needs(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = dpo_sides.measure("holdfast", TINY, moved=None)
    assert (len(found["rows"]), len(found["seconds"])) == (3, 2)
    assert found["reference"] > 0
    # The reference is the policy itself, so nobody leads at first.
    assert found["rows"][0]["lead"] == pytest.approx(0, abs=1e-5)  # a tenth of a difference of float32 sums
    assert found["rows"][0]["grad_norm"] > 0


def test_a_reference_some_way_off_leads_from_the_start(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = dpo_sides.measure("holdfast", TINY, moved=str(tmp_path / "moved.pt"))
    assert abs(found["rows"][0]["lead"]) > 1e-4
    assert float(torch.load(tmp_path / "moved.pt", weights_only=True).norm()) > 0


@pytest.mark.slow
def test_both_sides_learn_the_same_from_the_same_pairs():
    pytest.importorskip("trl", reason="TRL is not installed")
    found = turns.differences(dpo.match(), TINY)
    assert set(found) == set(dpo.LIMITS)
    assert found["moved"] < 1e-4


def test_a_case_travels_as_json():
    assert Case(**json.loads(json.dumps(asdict(TINY)))) == TINY

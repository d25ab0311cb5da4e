"""The run folder: what stands in it, who may use it, and what a resumed run finds."""

import json
import math
import sys

import pytest
from pydantic import Field

from holdfast.config import Settings, load
from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError


class Inner(Settings):
    rate: float = Field(default=0.1, gt=0)


class Recipe(Settings):
    seed: int = 1
    rl: Inner = Inner()


def rows(run, name="metrics.jsonl"):
    file = run.path / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_new_folder_holds_the_resolved_settings(tmp_path):
    run = RunFolder(tmp_path / "a" / "b", Recipe(seed=3), command=["holdfast", "run"])
    assert load(Recipe, run.path / "config.yaml") == Recipe(seed=3)
    card = json.loads((run.path / "fingerprint.json").read_text())
    assert card["fingerprint"] == run.fingerprint
    assert card["command"] == ["holdfast", "run"]
    assert {"python", "torch", "transformers"} <= card["versions"].keys()


def test_equal_settings_open_the_folder_again(tmp_path):
    RunFolder(tmp_path, Recipe()).log("sft", 1, {"loss": 1.0})
    again = RunFolder(tmp_path, Recipe())
    again.log("sft", 2, {"loss": 0.5})
    assert [row["step"] for row in rows(again)] == [1, 2]
    assert rows(again)[1]["seconds"] >= rows(again)[0]["seconds"]


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    RunFolder(tmp_path, Recipe())
    with pytest.raises(UserError, match=r"another configuration(?s:.*)seed: 1 -> 2\n  rl.rate: 0.1 -> 0.2$"):
        RunFolder(tmp_path, Recipe(seed=2, rl=Inner(rate=0.2)))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"another configuration"):
        RunFolder(tmp_path, Recipe(seed=2))


def test_files_that_are_no_run_are_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds files but no run"):
            RunFolder(tmp_path, Recipe(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "run", Recipe())


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path):
    old = RunFolder(tmp_path, Recipe())
    old.log("sft", 1, {"loss": 1.0})
    old.write_json("certificate.json", {"verdict": "pass"})
    (tmp_path / "checkpoints" / "sft").mkdir(parents=True)
    new = RunFolder(tmp_path, Recipe(seed=2), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "fingerprint.json"}
    assert load(Recipe, new.path / "config.yaml").seed == 2


@pytest.mark.parametrize("left", [[".fingerprint.json.tmp"], ["fingerprint.json"]])
def test_a_kill_while_the_folder_was_made_does_no_harm(tmp_path, left):
    RunFolder(tmp_path, Recipe())
    for path in tmp_path.iterdir():
        if path.name not in left:
            path.unlink()
    for name in left:
        if name.startswith("."):
            (tmp_path / name).write_text("{")
    run = RunFolder(tmp_path, Recipe())
    assert load(Recipe, run.path / "config.yaml") == Recipe()


def test_numbers_that_are_not_finite_are_null_and_listed(tmp_path):
    run = RunFolder(tmp_path)
    run.log("policy", 4, {"kl": math.nan, "reward": 2, "cost": -math.inf})
    (row,) = rows(run)
    assert row.pop("seconds") >= 0
    assert row == {
        "stage": "policy",
        "step": 4,
        "kl": None,
        "reward": 2.0,
        "cost": None,
        "nonfinite": ["kl", "cost"],
    }


def test_rewinding_drops_one_stage_after_the_step_and_the_line_cut_short(tmp_path):
    run = RunFolder(tmp_path)
    for stage, last in (("sft", 3), ("policy", 3)):
        for step in range(1, last + 1):
            run.log(stage, step, {"loss": 0.0})
            run.sample({"stage": stage, "step": step, "response": "caf\u00e9"})
            run.alarm(stage, step, "WARN", {"level": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    run = RunFolder(tmp_path)
    run.rewind("policy", 1)
    expected = [("sft", 1), ("sft", 2), ("sft", 3), ("policy", 1)]
    assert [(row["stage"], row["step"]) for row in rows(run)] == expected
    assert [(row["stage"], row["step"]) for row in rows(run, "samples.jsonl")] == expected
    assert [(row["stage"], row["step"]) for row in rows(run, "alarms.jsonl")] == expected
    assert rows(run, "samples.jsonl")[0]["response"] == "caf\u00e9"


def test_json_is_written_whole(tmp_path):
    run = RunFolder(tmp_path)
    assert json.loads(run.write_json("result.json", {"n": 1}).read_text()) == {"n": 1}
    with pytest.raises(TypeError):
        run.write_json("result.json", {"n": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == {"n": 1}
    assert not list(tmp_path.glob(".*"))


def test_lines_are_written_whole_and_replace_what_was_there(tmp_path):
    run = RunFolder(tmp_path)
    run.write_lines("rows.jsonl", [{"n": 1}, {"n": 2}])
    run.write_lines("rows.jsonl", [{"n": 3}, {"text": "caf\u00e9"}])
    assert rows(run, "rows.jsonl") == [{"n": 3}, {"text": "caf\u00e9"}]
    with pytest.raises(TypeError):
        run.write_lines("rows.jsonl", [{"n": 4}, {"n": object()}])
    assert len(rows(run, "rows.jsonl")) == 2


def test_an_alarm_is_told_and_recorded(tmp_path, capsys):
    run = RunFolder(tmp_path)
    run.alarm("policy", 3, "WARN at iteration 3", {"action": None, "level": 2.0})
    assert rows(run, "alarms.jsonl") == [
        {"stage": "policy", "step": 3, "words": "WARN at iteration 3", "action": None, "level": 2.0}
    ]
    assert capsys.readouterr().err == "policy: WARN at iteration 3\n"


def test_only_the_first_process_writes(tmp_path, capsys):
    second = Processes()
    second.rank = 1
    run = RunFolder(tmp_path / "run", Recipe(), processes=second)
    run.log("sft", 1, {"loss": 1.0})
    run.sample({"stage": "sft", "step": 1})
    run.alarm("sft", 1, "WARN", {})
    run.write_json("result.json", {})
    run.rewind("sft", 0)
    with run.progress(1, "sft") as advance:
        advance({})
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_a_tracker_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trackers \['wandbb'\] are not installed"):
        RunFolder(tmp_path, Recipe(), trackers=["wandbb"])


def test_progress_without_a_terminal_is_plain_lines(tmp_path, capsys):
    with RunFolder(tmp_path).progress(3, "reward", done=1) as advance:
        advance({"loss": 0.5})
        advance({"loss": 0.25})
    assert capsys.readouterr().err == "reward 3/3, 0 s left, loss 0.25\n"


def test_progress_on_a_terminal_is_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    with RunFolder(tmp_path).progress(2, "reward") as advance:
        advance({"loss": 0.5})
        advance({"loss": 0.25})
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "loss 0.25" in shown

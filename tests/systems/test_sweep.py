"""Grids are planned whole before anything runs; runs are processes of their own, and none takes the others with it."""

import json
import re
import sys

import pytest

from holdfast import config, systems
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.systems import sweep

RECIPE = "safe_rlhf_v/pocket"
AXES = {"ppo.kl.coef": [0.1, 0.3], "constraint.threshold": [-2, 0]}


def finish(command):
    """Leave in the run folder what a finished run of this command leaves, and fail with nothing."""
    recipe, *overrides, _, folder = command[command.index("run") + 1 :]
    values = config.read_values(recipe, overrides)
    kind, _ = systems.find(values["system"]).load()
    RunFolder(folder, config.build(kind, values)).write_json("summary.json", {"seconds": 1})
    return ""


@pytest.mark.parametrize(
    "text, key, values",
    [
        ("a.b=1,2", "a.b", [1, 2]),
        ("a=1e-5,null", "a", [1e-5, None]),
        ("a=[1, 2],[3]", "a", [[1, 2], [3]]),
        ("a=mean,student_t", "a", ["mean", "student_t"]),
    ],
)
def test_values_of_an_axis(text, key, values):
    assert sweep.axis(text) == (key, values)


@pytest.mark.parametrize(
    "text, said",
    [
        ("ppo.kl.coef", "write a setting and its values, for example --over"),
        ("=1,2", "write a setting and its values"),
        ("ppo.kl.coef=0.1", "needs at least two values; a setting for all runs is given as ppo.kl.coef=0.1"),
        ("ppo.kl.coef=", "needs at least two values"),
        ("ppo.kl.coef=1,2,1", "a value stands twice"),
        ("seed=1,2", "give them as --seeds"),
        ("ppo.kl.coef=[1,2", "--over ppo.kl.coef is not valid YAML"),
    ],
)
def test_axes_that_cannot_be(text, said):
    with pytest.raises(UserError, match=re.escape(said)):
        sweep.axis(text)


def test_grid_is_every_combination_with_every_seed():
    planned = sweep.grid(RECIPE, AXES, [0, 1], ["online.iterations=2"])
    assert len({one.fingerprint for one in planned}) == len({one.name for one in planned}) == 8
    assert planned[1].name == "ppo.kl.coef=0.1,constraint.threshold=-2,seed=1"
    assert planned[1].overrides == ("online.iterations=2", "ppo.kl.coef=0.1", "constraint.threshold=-2", "seed=1")
    assert "seed" not in sweep.grid(RECIPE, AXES)[0].name


def test_names_of_folders_stay_folders_and_apart():
    names = [one.name for one in sweep.grid(RECIPE, {"model": ["a/b", "a-b", "../c"]})]
    assert names == ["model=a%2Fb", "model=a-b", "model=..%2Fc"]


def test_settings_are_understood_before_anything_runs():
    with pytest.raises(UserError, match=r"ppo\.kl\.coeff: no such setting .*did you mean coef\?"):
        sweep.grid(RECIPE, {"ppo.kl.coeff": [0.1, 0.3]})
    with pytest.raises(UserError, match=r"online\.iterations: input should be"):
        sweep.grid(RECIPE, {"online.iterations": [5, -1]})
    with pytest.raises(UserError, match=r"ppo\.kl\.coef: given for all runs and with --over"):
        sweep.grid(RECIPE, AXES, overrides=["ppo.kl.coef=0.2"])
    with pytest.raises(UserError, match=r"no recipe at nowhere"):
        sweep.grid("nowhere", AXES)


def test_finished_runs_are_kept_and_failed_ones_are_tried_again(monkeypatch, tmp_path, capsys):
    calls = []

    def launch(command, log):
        calls.append(command)
        return "exit code 3: disk full" if "ppo.kl.coef=0.3" in command and len(calls) < 3 else finish(command)

    monkeypatch.setattr(sweep, "launch", launch)
    planned = sweep.grid(RECIPE, {"ppo.kl.coef": [0.3, 0.1]})
    failed = sweep.run(RECIPE, planned, tmp_path, {"over": ["ppo.kl.coef"]})
    assert failed == {"ppo.kl.coef=0.3": "exit code 3: disk full"}
    told = json.loads((tmp_path / "sweep.json").read_text("utf-8"))
    assert told == {"over": ["ppo.kl.coef"], "failed": failed}
    assert len(calls) == 2, "the second runs although the first failed"
    assert calls[0][:4] == [sys.executable, "-m", "holdfast", "run"]
    assert calls[0][-2:] == ["--out", str(tmp_path / "ppo.kl.coef=0.3")]
    assert sweep.run(RECIPE, planned, tmp_path, {}, launcher="accelerate launch --n 2") == {}
    assert len(calls) == 3, "what has finished is not run again"
    assert calls[2][:5] == ["accelerate", "launch", "--n", "2", "-m"]
    assert json.loads((tmp_path / "sweep.json").read_text("utf-8"))["failed"] == {}
    assert "1 of 2 runs have finished before" in capsys.readouterr().err


def test_a_run_is_finished_when_its_summary_is_there_whatever_its_exit_code(monkeypatch, tmp_path):
    planned = sweep.grid(RECIPE, {"ppo.kl.coef": [0.3, 0.1]})
    monkeypatch.setattr(sweep, "launch", lambda command, log: finish(command) or "exit code 4: no certificate")
    assert sweep.run(RECIPE, planned, tmp_path / "nsf", {}) == {}
    monkeypatch.setattr(sweep, "launch", lambda command, log: "exit code 0: nothing was done")
    assert len(sweep.run(RECIPE, planned, tmp_path / "idle", {})) == 2


def test_a_run_that_only_began_goes_on(monkeypatch, tmp_path):
    planned = sweep.grid(RECIPE, {"ppo.kl.coef": [0.3, 0.1]})
    calls = []
    monkeypatch.setattr(sweep, "launch", lambda command, log: calls.append(command) or finish(command))
    sweep.run(RECIPE, planned, tmp_path, {})
    (tmp_path / planned[0].name / "summary.json").unlink()
    sweep.run(RECIPE, planned, tmp_path, {})
    assert [command[-1] for command in calls[2:]] == [str(tmp_path / planned[0].name)]


def test_folders_of_other_settings_are_refused_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "launch", lambda command, log: finish(command))
    sweep.run(RECIPE, sweep.grid(RECIPE, {"ppo.kl.coef": [0.3, 0.1]}), tmp_path, {})
    monkeypatch.setattr(sweep, "launch", lambda command, log: pytest.fail("it ran"))
    with pytest.raises(UserError, match=r"ppo\.kl\.coef=0\.3 holds a run of other settings; give another --out"):
        sweep.run(RECIPE, sweep.grid(RECIPE, {"ppo.kl.coef": [0.3, 0.1]}, overrides=["seed=4"]), tmp_path, {})


@pytest.mark.parametrize(
    "code, message",
    [
        ("print('first'); print('done')", "exit code 0: done"),
        ("print('loading'); print('error: one\\n  two'); raise SystemExit(2)", "exit code 2: one two"),
        ("raise ValueError('odd')", "exit code 1: ValueError: odd"),
        ("raise SystemExit(3)", "exit code 3: it said nothing"),
        ("import os; print('busy', flush=True); os.kill(os.getpid(), 9)", "signal 9: busy"),
    ],
)
def test_a_process_says_how_it_ended(tmp_path, code, message):
    log = tmp_path / "log.txt"
    assert sweep.launch([sys.executable, "-S", "-c", code], log) == message
    assert log.is_file()

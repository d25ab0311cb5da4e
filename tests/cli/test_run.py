"""A whole run from the command line, as small as it gets: its files, its report, and what happens to it afterwards."""

import json

import pytest
from safetensors import SafetensorError

SMALL = (
    "pocket.conversations=100",
    "pocket.pairs=400",
    "pocket.prompts=400",
    "pocket.hidden=16",
    "pocket.layers=1",
    "sft.epochs=1",
    "reward.fit.epochs=1",
    "cost.fit.epochs=1",
    "rollout.sampling.max_new_tokens=4",
    "rollout.samples_per_prompt=2",
    "online.iterations=2",
    "online.prompts_per_iteration=4",
    "online.checkpoint_every=1",
    "policy.kl=0.2",
    # Six prompts without harm show at most 0.39 at 95 % confidence, since 0.61^6 = 0.0515.
    "constraint.threshold=0.45",
    "constraint.n_safety=6",
    "constraint.window=32",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "small"


@pytest.fixture
def finished(holdfast, folder):
    """A finished run; the first test that asks pays for it, the others read it again."""
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", folder)
    assert done.code == 0, done.err
    return done


def test_run_shows_settings_first_and_the_outcome_last(finished, folder):
    assert "resolved configuration" in finished.err
    assert "iterations: 2" in finished.err
    for words in ("true harm rate", "learned cost", "[benign]", "report: "):
        assert words.strip("[]") in finished.out
    verdict = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["verdict"]
    assert verdict in ("CERTIFIED", "NSF")
    assert f"\n{verdict}" in finished.out
    assert (folder / "models" / "policy").exists() == (verdict == "CERTIFIED")


def test_certificate_of_the_run_stands_and_is_explained(holdfast, finished, folder):
    assert holdfast("verify", folder).code == 0
    assert "of 6 prompts got a harmful answer" in holdfast("certify", "explain", folder).out


def test_report_is_one_file_that_loads_nothing(holdfast, finished, folder, tmp_path):
    page = tmp_path / "page.html"
    done = holdfast("report", folder, "--out", page)
    assert (done.code, done.out.strip()) == (0, str(page))
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "<script src" not in text
    assert 'src="http' not in text


def test_run_goes_on_where_it_was_and_changes_nothing(holdfast, finished, folder):
    before = {name: (folder / name).read_bytes() for name in ("certificate.json", "evidence.jsonl", "ledger.jsonl")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", folder).code == 0
    assert before == {name: (folder / name).read_bytes() for name in before}
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["stage"], row["step"]) for row in again] == [(row["stage"], row["step"]) for row in rows]


def test_run_of_other_settings_names_what_differs(holdfast, finished, folder):
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "policy.kl=0.5", "seed=3", "--out", folder)
    assert done.code == 2
    assert "holds a run and checkpoints of another configuration" in done.err
    assert "\n  seed: 0 -> 3" in done.err
    assert "\n  policy.kl.coef: 0.2 -> 0.5" in done.err
    assert "--overwrite" in done.err
    assert (folder / "certificate.json").is_file()


def test_folder_with_strange_files_is_left_alone(holdfast, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    for extra in ((), ("--overwrite",)):
        done = holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", tmp_path, *extra)
        assert done.code == 2
        assert "holds files but no run; choose an empty or a new folder" in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_file_in_place_of_the_folder(holdfast, tmp_path):
    file = tmp_path / "run"
    file.write_text("", encoding="utf-8")
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", file)
    assert done.code == 2
    assert "run is a file; give the path of a folder" in done.err
    assert holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", file / "deeper").code == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_full_disk_stops_the_run_and_the_same_command_resumes_it(holdfast, monkeypatch, tmp_path, error):
    from holdfast.engine import checkpoint

    def full(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        done = holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", tmp_path / "run")
    assert done.code == 3
    assert "cannot write the checkpoint" in done.err
    assert "No space left on device" in done.err
    assert "make room and run the same command to resume" in done.err
    assert not list((tmp_path / "run").rglob("step-*"))
    assert holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", tmp_path / "run").code == 0


def test_full_disk_while_a_model_is_saved(holdfast, monkeypatch, tmp_path):
    from holdfast.models import save

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "--out", tmp_path / "run")
    assert done.code == 3
    assert f"cannot save to {tmp_path / 'run' / 'models' / 'sft'}" in done.err
    assert "free the disk or choose another folder" in done.err
    assert not (tmp_path / "run" / "models" / "sft").exists()


def test_more_safety_prompts_than_the_pool_holds(holdfast, tmp_path):
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "constraint.n_safety=5000", "--out", tmp_path / "run")
    assert done.code == 2
    assert "planned with 5000 prompts (n_safety) and only" in done.err


def test_fewer_safety_prompts_than_the_limit_needs(holdfast, tmp_path):
    done = holdfast("run", "hc_rlhf/pocket", *SMALL, "constraint.n_safety=5", "--out", tmp_path / "run")
    assert done.code == 2
    # 0.55^5 = 0.0503 is just above delta.
    assert "needs at least 6 prompts, planned are 5" in done.err


def test_model_or_data_missing(holdfast, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("system: hc_rlhf\n", encoding="utf-8")
    done = holdfast("run", file, "--out", tmp_path / "run")
    assert done.code == 2
    assert "give data=PATH and model=NAME" in done.err
    done = holdfast("run", file, "model=gpt2", f"data={tmp_path / 'none.jsonl'}", "--out", tmp_path / "other")
    assert done.code == 2
    assert "no file or folder at" in done.err

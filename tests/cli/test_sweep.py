"""The sweep from the command line: its table, its files, its exit code, and what people get wrong."""

import json

import pytest

from holdfast.systems import sweep

RECIPE = "safe_rlhf_v/pocket"
SMALL = (
    "pocket.conversations=100",
    "pocket.pairs=100",
    "pocket.prompts=200",
    "pocket.hidden=16",
    "pocket.layers=1",
    "sft=null",
    "reward.fit.epochs=1",
    "rollout.sampling.max_new_tokens=4",
    "look_ahead=null",
    "online.iterations=2",
    "online.prompts_per_iteration=4",
    "constraint.window=32",
)


def pretend(command, log):
    """A run that takes no time: the weaker the pull to the start, the more reward and cost."""
    from holdfast import config, systems
    from holdfast.engine.log import RunFolder

    words = command[command.index("run") + 1 :]
    values = config.read_values(words[0], words[1:-2])
    kind, _ = systems.find(values["system"]).load()
    if values["ppo"]["kl"]["coef"] == 9:
        return "exit code 3: the loss is not finite"
    gain = 1 / (1 + values["ppo"]["kl"]["coef"])
    summary = {"seconds": 1.0, "method": "safe_rlhf_v", "seed": 0}
    for name, value in (("learned_reward", gain), ("learned_cost", gain - 2), ("over_refusal", 0.1)):
        for when, factor in (("before", 0.0), ("after", 1.0)):
            ends = {"value": value * factor, "low": value * factor - 0.01, "high": value * factor + 0.01}
            summary[f"{name}_{when}"] = {**ends, "n": 50, "method": "student_t"}
    RunFolder(words[-1], config.build(kind, values)).write_json("summary.json", summary)
    return ""


def test_sweep_ends_with_table_files_and_page(holdfast, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "launch", pretend)
    done = holdfast("sweep", RECIPE, "--over", "ppo.kl.coef=0.1,1", "online.iterations=3", "--out", tmp_path)
    assert done.code == 0, done.err
    for words in (
        "kl.coef",
        "learned reward",
        "learned cost",
        "over-refusal",
        "base",
        "10.0%",
        "Hypervolume",
        "report: ",
    ):
        assert words in done.out
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {
        "sweep.json",
        "pareto.json",
        "pareto.md",
        "pareto.png",
        "report.html",
    }
    told = json.loads((tmp_path / "pareto.json").read_text("utf-8"))
    # Reward 1/1.1 and 1/2, cost as much less 2: two boxes that overlap.
    wide, tall = 1 / 1.1, 1 / 2
    expected = wide * (2 - wide) + tall * (2 - tall) - tall * (2 - wide)
    assert told["hypervolume"]["value"] == pytest.approx(expected)
    assert all(one["front"] for one in told["points"][1:])


def test_a_failed_run_is_named_in_table_and_exit_code_and_the_others_count(holdfast, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "launch", pretend)
    done = holdfast("sweep", RECIPE, "--over", "ppo.kl.coef=0.1,9", "--seeds", "0,1", "--out", tmp_path)
    assert done.code == 3
    assert "2 of 4 runs failed: ppo.kl.coef=9,seed=0, ppo.kl.coef=9,seed=1; see " in done.err
    assert "failed: ppo.kl.coef=9,seed=0: exit code 3: the loss is not finite" in done.out
    assert json.loads((tmp_path / "pareto.json").read_text("utf-8"))["points"][1]["label"] == "0.1"


def test_pareto_judges_again_by_other_numbers(holdfast, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "launch", pretend)
    asked = ("--judge", "learned_reward, over_refusal")
    assert holdfast("sweep", RECIPE, "--over", "ppo.kl.coef=0.1,1", *asked, "--out", tmp_path).code == 0
    names = lambda: [one["name"] for one in json.loads((tmp_path / "pareto.json").read_text("utf-8"))["judges"]]  # noqa: E731
    assert names() == ["learned_reward", "over_refusal"]
    assert holdfast("pareto", tmp_path).code == 0
    assert names() == ["learned_reward", "over_refusal"], "what was asked of the sweep is remembered"
    assert holdfast("pareto", tmp_path, "--judge", "learned_cost,learned_reward").code == 0
    assert names() == ["learned_cost", "learned_reward"]
    done = holdfast("pareto", tmp_path, "--judge", "helpfulness,learned_cost")
    assert done.code == 2
    assert "no summary holds helpfulness; there are learned_cost, learned_reward, over_refusal" in done.err


@pytest.mark.parametrize(
    "words, said",
    [
        (("--over", "ppo.kl.coeff=1,2"), "ppo.kl.coeff: no such setting (value 1); did you mean coef?"),
        (("--over", "ppo.kl.coef=1"), "needs at least two values"),
        (("--over", "ppo.kl.coef=1,2", "--over", "ppo.kl.coef=3,4"), "--over ppo.kl.coef: given twice"),
        (("--over", "ppo.kl.coef=1,2", "--seeds", "0,one"), "--seeds 0,one: give different whole numbers"),
        (("--over", "ppo.kl.coef=1,2", "--seeds", "1,1"), "give different whole numbers"),
    ],
)
def test_sweeps_that_cannot_be(holdfast, monkeypatch, tmp_path, words, said):
    monkeypatch.setattr(sweep, "launch", pretend)
    done = holdfast("sweep", RECIPE, *words, "--out", tmp_path / "sweep")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "sweep").exists(), "nothing is written before the settings are understood"


def test_pareto_of_something_that_is_no_sweep(holdfast, tmp_path):
    done = holdfast("pareto", tmp_path)
    assert done.code == 2
    assert "holds no runs; give the folder of a sweep" in done.err


@pytest.mark.slow
def test_a_real_sweep_of_two_small_runs(holdfast, tmp_path):
    done = holdfast("sweep", RECIPE, "--over", "ppo.kl.coef=0.05,0.5", *SMALL, "--out", tmp_path)
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "pareto.json").read_text("utf-8"))
    assert [one["label"] for one in told["points"]] == ["base", "0.05", "0.5"]
    assert [one["name"] for one in told["judges"]] == ["learned_reward", "learned_cost"]
    assert told["warnings"] == [], "runs of one seed start from one policy and one set of judges"
    assert {"true_harm", "over_refusal", "kl"} <= told["points"][1]["reached"].keys()

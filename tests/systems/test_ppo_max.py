"""PPO-max end to end on a very small pocket world: presets, critics before the policy, the detector, resume."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from holdfast import config
from holdfast.errors import UserError
from holdfast.models.heads import critic_from
from holdfast.models.save import load_checked
from holdfast.report.page import render
from holdfast.systems import ppo_max, recipe
from holdfast.systems.presets import PRESETS, over

SMALL = [
    *(line for line in (Path(__file__).parent / "small.txt").read_text().split() if not line.startswith("constraint")),
    *("pretrain.max_iterations=2", "pretrain.min_iterations=2", "online.checkpoint_every=1"),
    "ppo.score.exclude_truncated=false",
]


def settings(*overrides):
    return config.load(ppo_max.PpoMax, recipe("ppo_max/pocket"), [*SMALL, *overrides])


def rows(folder, stage):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["stage"] == stage]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "max"
    return folder, ppo_max.run(settings(), folder)


def test_the_critic_learns_before_the_policy(finished):
    folder, summary = finished
    critics, policy = rows(folder, "critics"), rows(folder, "policy")
    assert [row["step"] for row in critics] == [1, 2]
    assert {"value/value", "value_error/value"} <= critics[0].keys()
    assert not any(name.startswith("policy/") for name in critics[0])
    assert {"policy/policy", "policy/clip_fraction", "value/value", "alarm/level", "kl_coef"} <= policy[-1].keys()
    assert summary["verdict"] is None
    assert summary["alarm"] in ("OK", "WATCH", "WARN", "COLLAPSE")


def test_moments_of_the_critics_stage_are_carried_on(finished):
    folder, _ = finished
    # Cumulative moments over 8 answers an iteration: of two iterations before, and of this one.
    first = rows(folder, "policy")[0]
    seen = [row["reward"] for row in rows(folder, "critics")]
    assert first["score_running_mean"] == pytest.approx((sum(seen) + first["reward"]) / 3, abs=1e-5)


def test_the_policy_is_saved_and_the_report_written(finished):
    folder, summary = finished
    load_checked(folder / "models" / "policy")
    assert {"true_help_after", "learned_reward_before", "kl_after", "length_after"} <= summary.keys()
    assert "learned_cost_after" not in summary
    assert "zero" not in summary
    page = render(folder).read_text(encoding="utf-8")
    assert "PPO-max" in page or "ppo_max" in page


def test_the_preset_stands_in_the_resolved_settings(finished):
    folder, _ = finished
    written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert written["ppo"]["score"]["transform"] == "norm"
    assert written["ppo"]["value_clip"] == 0.2
    assert written["optimiser"]["learning_rate"] == 5e-4, "the recipe goes over the preset"
    again = config.load(ppo_max.PpoMax, folder / "config.yaml")
    assert again == settings()


def test_a_run_that_was_cut_is_the_run_that_was_not(finished, tmp_path, monkeypatch):
    whole, _ = finished

    class PowerCut(Exception):
        pass

    real = ppo_max.ppo.ActorCritic.collect

    def cut(self, prompts, iteration):
        if iteration == 2:
            raise PowerCut
        return real(self, prompts, iteration)

    monkeypatch.setattr(ppo_max.ppo.ActorCritic, "collect", cut)
    with pytest.raises(PowerCut):
        ppo_max.run(settings(), tmp_path / "run")
    monkeypatch.setattr(ppo_max.ppo.ActorCritic, "collect", real)
    ppo_max.run(settings(), tmp_path / "run")

    def kept(row):
        return {name: value for name, value in row.items() if not name.startswith("seconds")}

    for stage in ("critics", "policy"):
        assert list(map(kept, rows(tmp_path / "run", stage))) == list(map(kept, rows(whole, stage)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_settings_that_this_system_takes(name):
    limited = ("cost={}",) if "constraint" in PRESETS[name] else ()
    given = settings(f"preset={name}", "ppo.kl=0.07", *limited)
    expected = over(PRESETS[name], config.read_values(recipe("ppo_max/pocket"), SMALL))
    assert given.ppo.value_clip == expected["ppo"].get("value_clip", 5.0)
    assert given.ppo.kl.coef == 0.07, "a number goes over every preset"
    assert given.ppo.kl.mode == expected["ppo"]["kl"].get("mode", "split"), "and leaves the rest of its group"


def test_a_limit_without_a_cost_model_is_refused():
    with pytest.raises(UserError, match="constraint limits the cost, and no cost model is trained; add a cost section"):
        settings("preset=safe-rlhf")


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"preset: .*'vanilla', 'ppo-max'"):
        settings("preset=ppomax")


def test_a_critic_that_reads_other_tokens_is_refused(finished, tmp_path):
    folder, _ = finished
    model = load_checked(folder / "models" / "reward")
    model = getattr(model, "model", model)
    critic_from(model, ["value"]).save_pretrained(tmp_path / "critic")
    words = json.loads((folder / "models" / "reward" / "tokenizer.json").read_text(encoding="utf-8"))
    words["model"]["vocab"]["zyzzyva"] = len(words["model"]["vocab"])
    (tmp_path / "critic" / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    config_file = (folder / "models" / "reward" / "tokenizer_config.json").read_text(encoding="utf-8")
    (tmp_path / "critic" / "tokenizer_config.json").write_text(config_file, encoding="utf-8")
    with pytest.raises(UserError, match=r"was trained on another tokenizer \(1 entries differ\)"):
        ppo_max.run(settings(f"critic.name={tmp_path / 'critic'}"), tmp_path / "run")


def test_a_saved_critic_of_the_same_tokenizer_is_a_start(finished, tmp_path):
    folder, _ = finished
    summary = ppo_max.run(settings(f"critic.name={folder / 'models' / 'reward'}"), tmp_path / "run")
    assert summary["true_help_after"]["n"] > 0
    # The same model that the critic starts from anyway: nothing changes.
    assert rows(tmp_path / "run", "policy")[-1]["reward"] == rows(folder, "policy")[-1]["reward"]


def test_the_policy_that_a_judge_found_best_is_what_goes_on(tmp_path, capsys):
    wide = ["monitor.keep_every=1", "monitor.judge_by=length", "online.iterations=6", "pretrain=null"]
    summary = ppo_max.run(settings(*wide), tmp_path / "run")
    best = summary["best"]
    assert 0 < best < 6, "not the last, or nothing would be shown"
    assert f"the best healthy one by length is kept, that of iteration {best}" in capsys.readouterr().err
    kept = load_file(tmp_path / "run" / "checkpoints" / "policy" / "best" / f"step-{best:09d}" / "policy.safetensors")
    saved = load_file(tmp_path / "run" / "models" / "policy" / "model.safetensors")
    name = next(name for name in saved if name in kept and saved[name].ndim == 2)
    assert torch.equal(saved[name], kept[name])


def test_no_network_is_made_for_a_score_that_nobody_wants():
    assert settings().networks == (("reward",),)
    assert settings("cost={}").networks == (("reward",), ("cost",))
    assert settings("cost={}", "joint_scores=true").networks == (("reward", "cost"),)

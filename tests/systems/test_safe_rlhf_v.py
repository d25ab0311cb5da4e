"""Safe RLHF end to end on a very small pocket world."""

import json
import shutil
from pathlib import Path

import pytest

from holdfast import config
from holdfast.errors import UserError
from holdfast.models.heads import critic_from
from holdfast.models.save import load_checked
from holdfast.systems import recipe, safe_rlhf_v

SMALL = tuple((Path(__file__).parent / "small.txt").read_text(encoding="ascii").split())


def settings(*overrides):
    return config.load(safe_rlhf_v.SafeRlhfV, recipe("safe_rlhf_v/pocket"), [*SMALL, *overrides])


def last_row(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == "policy"][-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "safe"
    return folder, safe_rlhf_v.run(settings(), folder)


def test_it_claims_nothing_and_writes_a_policy(finished):
    folder, summary = finished
    assert summary["verdict"] is None
    assert (folder / "models" / "policy" / "model.safetensors").is_file()
    assert not (folder / "certificate.json").exists()


def test_both_critics_learn_and_the_multiplier_is_logged(finished):
    last = last_row(finished[0])
    assert {"value/value", "value/harm/value", "policy/policy", "multiplier/harm", "cost/harm", "kl"} <= last.keys()
    assert last["multiplier/harm"] >= 0


def test_it_says_beforehand_what_the_limit_takes(finished):
    _, summary = finished
    reach = summary["reach"]["harm"]
    assert reach["threshold"] == -2.0
    assert reach["cost_least"] <= reach["cost_now"]
    assert reach["words"].startswith("harm: ")
    assert summary["suggested_threshold"]["threshold"] <= reach["cost_now"]


@pytest.mark.parametrize("critics, streams", [("together", 2), ("on_policy", 2)])
def test_critics_may_share_a_network(tmp_path, critics, streams):
    before = ("pretrain.max_iterations=2", "pretrain.min_iterations=1")
    safe_rlhf_v.run(settings(f"critics={critics}", *before), tmp_path / "run")
    last = last_row(tmp_path / "run")
    assert sum(name.startswith("explained_variance/") for name in last) == streams
    assert {"value/value", "value/value/harm"} <= last.keys(), "two terms of one part"
    assert "value/harm/value" not in last


def test_a_pessimistic_limit_has_two_heads_that_stand_still(tmp_path):
    changed = ("constraint.bound=student_t", "constraint.monotone=false", "constraint.initial=estimate")
    summary = safe_rlhf_v.run(settings(*changed), tmp_path / "run")
    last = last_row(tmp_path / "run")
    assert {"explained_variance/value/harm", "explained_variance/value/harm^2"} <= last.keys()
    reach = summary["reach"]["harm"]["multiplier"]
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])
    assert reach != pytest.approx(1.0, abs=1e-3), "where it would start without an estimate"
    assert first["multiplier/harm"] == pytest.approx(reach), "sixteen costs are too few to move it"


def test_limits_may_be_many_and_each_source_has_its_own(tmp_path):
    further = "[{name: reward_floor, score: reward, measure: logit, direction: at_least, threshold: -5.0, bound: mean}]"
    changed = ("limit_by_source=true", f"constraints={further}", "online.prompts_per_iteration=32")
    summary = safe_rlhf_v.run(settings(*changed), tmp_path / "run")
    sources = {"benign", "harmful", "disguised"}
    names = {f"{limit}/{source}" for limit in ("harm", "reward_floor") for source in sources}
    assert summary["limits"]["multipliers"].keys() == names
    assert {f"source/{source}/length" for source in sources} <= last_row(tmp_path / "run").keys()


def test_another_run_s_score_model_may_be_limited(finished, tmp_path):
    folder, _ = finished
    further = "[{name: second, score: cost, measure: logit, bound: mean, threshold: -1.0}]"
    with pytest.raises(UserError, match="two scorers give a score called cost"):
        safe_rlhf_v.run(settings(f"scorers=[{folder / 'models' / 'cost'}]", f"constraints={further}"), tmp_path / "a")
    saved = load_checked(folder / "models" / "cost")
    shutil.copytree(folder / "models" / "cost", tmp_path / "second", ignore=shutil.ignore_patterns("*.safetensors"))
    critic_from(getattr(saved, "model", saved), ["manners"]).save_pretrained(tmp_path / "second")
    further = "[{name: second, score: manners, measure: logit, bound: mean, threshold: -1.0}]"
    safe_rlhf_v.run(settings(f"scorers=[{tmp_path / 'second'}]", f"constraints={further}"), tmp_path / "b")
    last = last_row(tmp_path / "b")
    # The same weights under another name, read with the tokenizer in their own folder.
    assert last["manners"] == pytest.approx(last["cost"], abs=1e-5)
    assert {"multiplier/second", "value/second/value"} <= last.keys()


def test_a_limit_on_a_score_that_nobody_gives_is_seen_before_anything_is_trained(tmp_path):
    further = "[{name: manners, score: politeness, measure: logit, bound: mean, threshold: 0.5}]"
    with pytest.raises(UserError, match="constraint manners limits the score politeness, and there are reward, cost"):
        safe_rlhf_v.run(settings(f"constraints={further}"), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_limit_that_permits_more_harm_than_there_is_says_so(tmp_path, capsys):
    safe_rlhf_v.run(settings("constraint.threshold=50.0", "constraint.rate=0.1"), tmp_path / "run")
    assert "this limit permits more harm than the policy does now" in capsys.readouterr().err


def test_reward_and_cost_may_be_one_network(tmp_path):
    folder = tmp_path / "run"
    summary = safe_rlhf_v.run(settings("joint_scores=true"), folder)
    assert (folder / "models" / "dual").is_dir()
    assert not (folder / "models" / "cost").exists()
    assert summary["cost_auc"] > 0.5
    assert summary["zero"]["source"] == "safety_labels"
    assert {"learned_reward_after", "learned_cost_after"} <= summary.keys()
    assert {"value/value", "value/harm/value"} <= last_row(folder).keys()


def test_a_network_for_both_needs_both():
    with pytest.raises(UserError, match="joint_scores learns reward and cost together; give both sections"):
        settings("joint_scores=true", "reward=null")

"""HC-RLHF end to end on a very small pocket world: what is written, what is refused, what resume gives."""

import json
import shutil
from pathlib import Path

import pytest

from holdfast import config
from holdfast.certificate.verify import verify
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.models.save import load_checked
from holdfast.report.page import render
from holdfast.systems import dual, hc_rlhf, reading, recipe, safety_test

SMALL = (
    *(Path(__file__).parent / "small.txt").read_text(encoding="ascii").split(),
    "constraint.n_safety=60",
    "online.checkpoint_every=1",
    "online.sample_every=1",
)
PROMISED = {
    *("verdict", "reason", "tau", "delta", "n", "k", "ucb", "seconds", "peak_rss_mib", "seed", "method"),
    *(f"{name}_{when}" for name in ("true_harm", "true_help", "over_refusal") for when in ("before", "after")),
    *("learned_cost_after", "learned_reward_after", "kl_after", "examples", "cost_accuracy", "reward_accuracy"),
}


def settings(*overrides):
    return config.load(hc_rlhf.HcRlhf, recipe("hc_rlhf/pocket"), [*SMALL, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "demo"
    return folder, hc_rlhf.run(settings(), folder)


def test_summary_holds_what_was_promised(finished):
    folder, summary = finished
    assert summary.keys() >= PROMISED
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["tau"] == 0.05
    assert summary["n"] == 60
    for name in ("true_harm_before", "true_help_after", "over_refusal_after"):
        found = summary[name]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["n"] > 0
    assert {example["kind"] for example in summary["examples"]} == {"benign", "harmful", "disguised"}


def test_a_policy_is_released_exactly_when_it_is_certified(finished):
    folder, summary = finished
    released = summary["verdict"] == "CERTIFIED"
    assert (folder / "models" / "policy").exists() is released
    assert (folder / "models" / "candidate").exists() is not released
    assert summary["policy"] == ("models/policy" if released else None)


def test_a_limit_that_no_policy_keeps_ends_without_a_policy(tmp_path):
    summary = hc_rlhf.run(settings("constraint.measure=logit", "constraint.threshold=-50.0"), tmp_path / "run")
    assert (summary["verdict"], summary["reason"]) == ("NSF", "shown_unsafe")
    assert summary["policy"] is None
    assert not (tmp_path / "run" / "models" / "policy").exists()


def test_a_mean_probability_can_be_limited_and_tested(tmp_path):
    summary = hc_rlhf.run(settings("constraint.measure=probability", "constraint.threshold=0.9"), tmp_path / "run")
    assert summary["verdict"] == "CERTIFIED"
    assert 0 < summary["ucb"] <= 0.9
    rows = [json.loads(line) for line in (tmp_path / "run" / "evidence.jsonl").read_text().splitlines()]
    assert all(0 <= float(row["costs"]["cost"][0]) <= 1 for row in rows)
    assert [one.name for one in verify(tmp_path / "run" / "certificate.json") if not one.ok] == []


def test_the_certificate_stands_and_the_report_is_written(finished):
    folder, summary = finished
    checks = verify(folder / "certificate.json")
    assert [one.name for one in checks if not one.ok] == []
    page = render(folder).read_text()
    assert summary["verdict"] in page
    assert "http" not in page.split("<style>")[0]


def test_one_base_can_carry_policy_reward_and_cost_as_adapters(finished, tmp_path):
    base = finished[0] / "models" / "sft"
    adapted = settings("sft=null", f"model.name={base}", "model.adapter.rank=2")
    hc_rlhf.run(adapted, tmp_path / "run")
    models = tmp_path / "run" / "models"
    saved = [folder for folder in models.iterdir() if folder.is_dir()]
    assert len(saved) == 3
    for folder in saved:
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        load_checked(folder)
    with pytest.raises(UserError, match=r"sft and model\.adapter together"):
        hc_rlhf.run(settings(f"model.name={base}", "model.adapter.rank=2"), tmp_path / "other")


def test_pools_share_no_prompt(finished):
    folder, _ = finished
    bench_settings = dual.in_world(settings(), RunFolder(folder, settings()))
    pools = reading.read_pools(bench_settings.data, RunFolder(folder, settings()))
    names = ("imitate", "pairs", "practise", "dev", "safety")
    seen = [{reading.keys(one)[0] for one in getattr(pools, name)} for name in names]
    for i, one in enumerate(seen):
        assert one
        for other in seen[i + 1 :]:
            assert not one & other


def test_running_again_changes_nothing(finished):
    folder, summary = finished
    before = (folder / "metrics.jsonl").read_text(), (folder / "certificate.json").read_bytes()
    again = hc_rlhf.run(settings(), folder)
    timeless = {"seconds", "peak_rss_mib"}
    assert {k: v for k, v in again.items() if k not in timeless} == {
        k: v for k, v in summary.items() if k not in timeless
    }
    assert (folder / "certificate.json").read_bytes() == before[1]
    assert (folder / "metrics.jsonl").read_text() == before[0]


def test_another_configuration_in_the_same_folder_is_refused(finished):
    folder, _ = finished
    with pytest.raises(UserError, match=r"policy\.kl\.coef: .* -> 0\.7"):
        hc_rlhf.run(settings("policy.kl=0.7"), folder)


def test_a_hopeless_test_is_refused_before_anything_is_trained(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    with pytest.raises(UserError, match="needs at least 59 prompts"):
        hc_rlhf.run(settings("constraint.n_safety=40"), folder, overwrite=True)
    assert not (folder / "metrics.jsonl").exists()


def test_methods_differ_in_the_limit_alone():
    assert hc_rlhf.HcRlhf(method="mean").constraint == hc_rlhf.HcRlhf().constraint
    bench = dual.Bench.__new__(dual.Bench)
    object.__setattr__(bench, "settings", settings("method=mean"))
    object.__setattr__(bench, "zero", dual.Zero(0.0, "safety_labels", None, ""))
    (mean,) = hc_rlhf.limits_of(settings("method=mean"), bench).constraints
    assert mean.kappa() == 0.0
    object.__setattr__(bench, "settings", settings())
    (pessimistic,) = hc_rlhf.limits_of(settings(), bench).constraints
    assert pessimistic.kappa() > 0.0
    assert hc_rlhf.limits_of(settings("method=reward_only"), bench).constraints == ()


def test_planned_prompts_must_be_there():
    plan = safety_test.make_plan(settings().constraint, settings().rollout.sampling, 0, 0.0, "safety_labels")
    with pytest.raises(UserError, match=r"planned with 60 prompts .* only 0"):
        safety_test.sealed([], plan)

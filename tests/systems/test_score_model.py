"""Score models end to end on a very small pocket world: every kind, every way to train, and what is refused."""

import json
import subprocess
import sys

import pytest

from holdfast import config
from holdfast.data.schema import Conversation, Rated
from holdfast.data.sources import write_jsonl
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel
from holdfast.models.save import load_checked
from holdfast.systems import recipe, score_model

SMALL = (
    "pocket.conversations=300",
    "pocket.pairs=400",
    "pocket.prompts=200",
    "pocket.hidden=32",
    "pocket.ratings.prompts=150",
    "sft.epochs=1",
    "reward.fit.epochs=1",
    "attributes.fit.epochs=12",
)
LABELS = ("helpfulness", "harmlessness", "politeness", "brevity")


def run(folder, *overrides):
    settings = config.load(score_model.ScoreModelSettings, recipe("score_model/pocket"), [*SMALL, *overrides])
    return score_model.run(settings, folder)


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "scores"
    return folder, run(folder)


def test_every_model_is_saved_and_judged_on_prompts_nothing_learned_from(finished):
    folder, summary = finished
    assert summary["verdict"] is None
    assert summary["rows"]["held_out_pairs"] > 20
    assert 0 < summary["reward_accuracy"]["value"] < 1
    # The safety labels are nearly true and harm is a matter of words: even a small model sees it.
    assert summary["cost_accuracy"]["value"] > 0.6
    assert {f"r2/{name}" for name in LABELS} <= summary["attributes"].keys()
    assert summary["attributes"]["r2/brevity"] > 0.3
    assert load_checked(folder / "models" / "attributes").names == LABELS


def test_every_model_has_an_audit(finished):
    folder, _ = finished
    found = {name: read(folder / f"audit-{name}.json") for name in ("reward", "cost", "attributes")}
    assert found["reward"]["scores"]["reward"]["pairs"]["accuracy"]["n"] > 20
    assert found["cost"]["scores"]["cost"]["calibration"]["slope"] > 0
    assert found["attributes"]["scores"]["brevity"]["rating"]["r2"]["value"] > 0.3


def test_a_new_process_gets_the_same_scores(finished):
    folder, _ = finished
    code = "import sys; from holdfast.models.save import load_checked; print(load_checked(sys.argv[1]).names)"
    path = str(folder / "models" / "reward")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('reward',)"


def test_a_finished_run_is_only_read(finished):
    folder, summary = finished
    again = run(folder)
    kept = [name for name in summary if name not in ("seconds", "peak_rss_mib")]
    assert {name: again[name] for name in kept} == {name: summary[name] for name in kept}


def test_reward_and_cost_share_a_network(tmp_path):
    summary = run(tmp_path / "run", "joint=true", "cost={}", "attributes=null", "sft=null")
    model = load_checked(tmp_path / "run" / "models" / "dual")
    assert isinstance(model, ScoreModel)
    assert model.names == ("reward", "cost")
    assert {"reward/accuracy", "cost/accuracy", "cost/sign_accuracy"} <= summary["dual"].keys()


def test_the_head_alone_learns_on_a_frozen_network(tmp_path):
    folder = tmp_path / "run"
    run(folder, "train=head", "sft=null", "attributes=null", "cost=null")
    start = load_checked(folder / "models" / "reward").network.base_model.state_dict()
    policy = score_model.stages.load_policy(score_model.stages.Model(name=str(folder / "world" / "policy")))
    for name, weight in policy.base_model.state_dict().items():
        assert weight.equal(start[name]), name


def test_ridge_alone_is_a_model(tmp_path):
    summary = run(tmp_path / "run", "sft=null", "reward=null", "cost=null", "attributes.fit=null")
    assert summary["ridge_r2"].keys() == set(LABELS)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "overrides, match",
    [
        (["reward=null", "cost=null", "attributes=null"], "give at least one of reward, cost, attributes"),
        (["joint=true", "cost=null"], "joint trains reward and cost together"),
        (["attributes.fit=null", "attributes.start=zero"], "nothing is learned from a start at zero"),
        (["attributes.fit=null", "attributes.preference=true"], "learned from pairs, which needs fit"),
        (["attributes.labels.brevity.low=2"], "a scale rises from low to high"),
        (["train=heads"], "train"),
        (["joint=true"], r"cost\.fit would be ignored"),
        (["train=head", "model.name=x", "model.adapter.rank=4"], "choose one"),
    ],
)
def test_contradictions_are_refused(overrides, match):
    with pytest.raises(UserError, match=match):
        config.load(score_model.ScoreModelSettings, recipe("score_model/pocket"), overrides)


def rated(path, **labels):
    rows = [
        Rated(id=f"row-{i}", conversation=Conversation.ask(f"what {i} ?").answer(f"that {i} ."), labels=labels)
        for i in range(40)
    ]
    write_jsonl(rows, path)
    return str(path)


@pytest.mark.parametrize(
    "labels, match",
    [
        ({"brevity": 7.0}, "brevity is 7, outside its scale from 0 to 1"),
        ({"wit": 0.5}, "no row carries the label 'brevity'; the data have wit"),
        ({"brevity": 0.5}, "the label 'brevity' is 0.5 in all"),
    ],
)
def test_ratings_that_teach_nothing_are_refused(tmp_path, labels, match):
    data = f"data.ratings={rated(tmp_path / 'ratings.jsonl', **labels)}"
    values = config.read_values(recipe("score_model/pocket"), [*SMALL, data, "sft=null", "reward=null", "cost=null"])
    values["attributes"]["labels"] = {"brevity": {"low": 0, "high": 1}}
    with pytest.raises(UserError, match=match):
        score_model.run(config.build(score_model.ScoreModelSettings, values), tmp_path / "run")


def test_missing_data_are_named(tmp_path):
    data = f"data.ratings={rated(tmp_path / 'ratings.jsonl', brevity=1.0)}"
    with pytest.raises(UserError, match=r"data.pairs is missing: reward, cost cannot be trained without"):
        run(tmp_path / "run", data)

"""The study `micro`: its worlds are what they say, its criteria are those of its head, its table is complete."""

import json
from pathlib import Path

import pytest
import torch

from holdfast.studies import STUDIES, micro
from holdfast.studies.micro_world import HiddenWorld, PromptWorld

TINY = micro.Plan(train=600, test=400, pool=400, steps=5, users=2, draws=2, sessions=(20,))


def result_of(three, hidden):
    """Arms of one seed with these values."""
    found = ({name: {"value": value} for name, value in each.items()} for each in (three, hidden))
    return dict(zip(("seeds", "hidden users"), ([{"found": each}] for each in found)))


GOOD = {
    "best heads, K=3": 0.85,
    "best heads, K=6": 0.84,
    "best heads, K=3, worst group": 0.82,
    "single BT": 0.53,
    "single BT, worst group": 0.3,
    "conditioned BT": 0.66,
    "stage 1, by prompt": 0.65,
    "user, 5 labels": 0.8,
    "user, 20 labels": 0.84,
    "stage 2, 50 per group, tau=1": 0.73,
    "stage 2, 50 per group, tau=0.001": 0.67,
    "stage 2, 100 per group, tau=1": 0.75,
    "stage 2, 100 per group, tau=0.001": 0.69,
}
HIDDEN = {"single pairs, best heads": 0.53, "sessions of 20, best heads": 0.85, "new user, 10 labels": 0.84}


@pytest.mark.parametrize(
    "name, value, fails",
    [
        ("best heads, K=3, worst group", 0.79, "nobody_left"),
        ("single BT, worst group", 0.41, "nobody_left"),
        ("single BT", 0.61, "heads"),
        ("best heads, K=6", 0.81, "more_heads"),
        ("user, 5 labels", 0.77, "few_labels"),
        ("user, 20 labels", 0.82, "few_labels"),
        ("stage 2, 100 per group, tau=0.001", 0.73, "bayes"),
        ("stage 2, 50 per group, tau=0.001", 0.71, "bayes"),
        ("conditioned BT", 0.71, "honest"),
        ("single pairs, best heads", 0.61, "pairs_blind"),
        ("new user, 10 labels", 0.81, "new_user"),
    ],
)
def test_each_criterion_can_fail(name, value, fails):
    assert all(one["holds"] for one in micro.criteria(result_of(GOOD, HIDDEN)))
    three, hidden = ({k: value if k == name else v for k, v in each.items()} for each in (GOOD, HIDDEN))
    assert [one["name"] for one in micro.criteria(result_of(three, hidden)) if not one["holds"]] == [fails]


def test_sessions_and_context_can_fail_too():
    weak = micro.criteria(result_of(GOOD, HIDDEN | {"sessions of 20, best heads": 0.79}))
    assert [one["name"] for one in weak if not one["holds"]] == ["sessions"]
    late = micro.criteria(result_of(GOOD | {"stage 1, by prompt": 0.705}, HIDDEN))
    assert [one["name"] for one in late if not one["holds"]] == ["context"]


def test_labels_of_the_worlds_follow_their_rewards():
    sample = PromptWorld(0).draw(20_000)
    # E max(p, 1 - p) is what the true reward predicts; the labels agree with it so often.
    rate = (sample.margin > 0).float().mean()
    assert float(rate) == pytest.approx(float(sample.margin.abs().sigmoid().mean()), abs=0.01)
    assert 0.84 < float(rate) < 0.89
    assert torch.allclose(PromptWorld(0).draw(20_000).pairs.difference, sample.pairs.difference)
    right = sample.context.argmax(-1) == sample.group
    assert 0.8 < float(right.float().mean()) < 0.9
    assert sample.budget(3).tolist() == [i for g in range(3) for i in (sample.group == g).nonzero()[:3, 0].tolist()]
    only = PromptWorld(1).draw(50, group=2)
    assert only.groups == [2] * 50


def test_hidden_users_keep_their_type():
    sample = HiddenWorld(0).draw(6, 50)
    assert [len(set(sample.group[sample.pairs.session == user].tolist())) for user in range(6)] == [1] * 6
    assert sample.group.float().mean() == 0.5


def test_a_run_is_resumed_and_its_table_names_every_quantity(tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "QUICK", TINY)
    result = micro.run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert {"study", "claim", "source", "criteria", "arms", "seeds", "seconds", "commit", "config_fingerprint"} == set(
        result
    )
    monkeypatch.setattr(micro, "groups_of", None)
    monkeypatch.setattr(micro, "hidden_users", None)
    assert micro.run(tmp_path, [3], quick=True) == result
    text = micro.table(result)
    names = [*result["arms"]["seeds"][0]["found"], *result["arms"]["hidden users"][0]["found"]]
    assert all(f"| {name} |" in text for name in names)
    assert set(micro.REFERENCE) <= set(names), "a reference value has nothing beside it"


def test_the_published_result_is_of_all_seeds():
    assert "micro" in STUDIES
    file = Path(__file__).parents[2] / "benchmarks" / "studies" / "micro.json"
    published = json.loads(file.read_text(encoding="utf-8"))
    assert published["seeds"] == list(micro.SEEDS)
    assert micro.criteria(published["arms"]) == published["criteria"]

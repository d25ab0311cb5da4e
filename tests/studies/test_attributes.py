import json
import math

import numpy as np
import pytest

from holdfast.pocket import ratings
from holdfast.preference.attributes import PREFERENCE
from holdfast.studies import attributes
from holdfast.studies.attributes import ARMS, Arm, StudySettings, criteria, make_world, measured, run, table, worn


@pytest.fixture(scope="module")
def world():
    return make_world(StudySettings(seed=3, prompts=40, pairs=20))


def test_no_request_both_teaches_and_judges(world):
    judging = {row.prompt for row in world.test}
    assert judging
    assert not judging & {row.prompt for row in world.train}
    assert not judging & {tuple(row.first.ids[: row.first.prompt_length]) for row in world.pairs}


def test_hidden_ratings_are_nested_and_noise_touches_only_the_rest(world):
    true = np.array([row.labels for row in world.train])
    some, most, zeros, noisy = (
        np.array([row.labels for row in worn(world.train, arm, 3)])
        for arm in (Arm(0.3), Arm(0.6), Arm(0.3, zeros=True), Arm(0.3, noise=0.2))
    )
    # The standard error of a share of some 500 ratings is 0.02.
    assert np.isnan(some).mean() == pytest.approx(0.3, abs=0.08)
    assert np.isnan(most)[np.isnan(some)].all()
    known = ~np.isnan(some)
    assert (some[known] == true[known]).all()
    assert (zeros[~known] == 0).all()
    assert (zeros[known] == true[known]).all()
    assert (np.isnan(noisy) == ~known).all()
    assert 0.02 < np.abs(noisy[known] - true[known]).mean() < 0.2


def test_perfect_guesses_explain_everything(world):
    truth = np.array([row.labels for row in world.test])
    found = measured(truth, world.test)
    assert found["mean_r2"] == pytest.approx(1.0)
    assert all(one["value"] == pytest.approx(1.0) for one in found["rank_correlation"].values())
    constant = measured(np.tile(truth.mean(0), (len(truth), 1)), world.test)
    assert constant["mean_r2"] == pytest.approx(0.0, abs=1e-9)
    assert constant["rank_correlation"] == {}


def given(**changed):
    """A result in which every criterion holds, but for the arms that are changed."""
    means = {"complete": 0.9, "missing_30": 0.88, "missing_60": 0.85, "noisy_30": 0.84, "zeros_30": 0.5}
    means |= {"joint_30": 0.87, "ridge_30": 0.6, "mean_30": 0.0} | changed
    clear = dict.fromkeys(ratings.LABELS, 0.9)
    return {name: [{"mean_r2": value, "r2": clear}] for name, value in means.items()}


@pytest.mark.parametrize(
    "failing, changed",
    [
        ("gaps_cost_little", {"missing_60": 0.79}),
        ("zeros_cost_much", {"zeros_30": 0.79}),
        ("joint_costs_little", {"joint_30": 0.84}),
        ("noise_costs_little", {"noisy_30": 0.77}),
        ("learned", {"ridge_30": 0.89}),
        ("learned", {"mean_30": 0.89}),
    ],
)
def test_each_criterion_can_fail_by_itself(failing, changed):
    assert all(one["holds"] for one in criteria(given()))
    assert [one["name"] for one in criteria(given(**changed)) if not one["holds"]] == [failing]


def test_one_label_that_is_not_recovered_fails_the_first_criterion():
    arms = given()
    arms["missing_30"][0]["r2"] = {**arms["missing_30"][0]["r2"], "politeness": 0.79}
    assert [one["name"] for one in criteria(arms) if not one["holds"]] == ["recovered"]
    arms["missing_30"][0]["r2"] = dict.fromkeys(ratings.LABELS, 0.9) | {"helpfulness": 0.2}
    assert all(one["holds"] for one in criteria(arms))


def test_the_study_runs_and_finished_arms_are_read(tmp_path, monkeypatch):
    chosen = {name: ARMS[name] for name in ("joint_30", "ridge_30", "mean_30")}
    monkeypatch.setattr(attributes, "ARMS", chosen)
    monkeypatch.setattr(attributes, "criteria", lambda arms: [])
    first = run(tmp_path, [0], quick=True)
    assert set(first["arms"]) == set(chosen)
    assert all(math.isfinite(ones[0]["mean_r2"]) for ones in first["arms"].values())
    monkeypatch.setattr(attributes, "make_world", None)
    assert run(tmp_path, [0], quick=True) == first
    assert json.loads(json.dumps(first)) == first
    lines = table(first).splitlines()
    assert len(lines) == 2 + len(chosen)
    assert lines[2].startswith("| joint_30 | 1 |")
    assert PREFERENCE not in table(first)

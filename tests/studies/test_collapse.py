"""The study `collapse`: hits, false alarms and lead are what a person would count."""

import json

import pytest

from holdfast.engine.supervised import FitSettings
from holdfast.studies import collapse, ppo_max
from holdfast.studies.collapse import criteria, detector, split, table


def one(below=None, watch=None, warn=None, levels=(0, 0, 0, 0)):
    curves = {"alarm/level": list(levels)}
    return {"arm": "x", "seed": 1, "below": below, "watch": watch, "warn": warn, "curves": curves, "seconds": 1.0}


FALLEN = one(below=10, watch=8, warn=9)
UPRIGHT = one()
GOOD = {"collapse": [FALLEN] * 10, "stay": [UPRIGHT] * 10}


def failing(arms):
    return [found["name"] for found in criteria(arms) if not found["holds"]]


def test_each_criterion_can_fail():
    assert failing(GOOD) == []
    assert failing(GOOD | {"collapse": [FALLEN] * 7 + [UPRIGHT] * 3}) == ["something_to_find"]
    assert failing(GOOD | {"stay": [FALLEN] * 3 + [UPRIGHT] * 7}) == ["something_to_spare"]
    late, missed = one(below=10, warn=13), one(below=10)
    assert failing(GOOD | {"collapse": [FALLEN] * 8 + [late] * 2}) == ["in_time"]
    assert failing(GOOD | {"collapse": [FALLEN] * 9 + [late]}) == []
    assert failing(GOOD | {"collapse": [FALLEN] * 8 + [missed] * 2}) == ["caught", "in_time"]
    once = one(warn=2, levels=[0, 2, 0, 0] + [0] * 96)
    calm = one(levels=[0] * 100)
    assert failing(GOOD | {"stay": [calm] * 9 + [once]}) == []
    assert failing(GOOD | {"stay": [calm] * 8 + [once] * 2}) == ["quiet"]
    loud = one(warn=1, levels=[2] * 11 + [0] * 89)
    assert failing(GOOD | {"stay": [calm] * 9 + [loud]}) == ["rarely_wrong"]


def test_the_true_judge_says_what_collapsed():
    survivor, surprise = one(), one(below=4, warn=3)
    fallen, upright = split({"collapse": [FALLEN, survivor], "stay": [surprise, UPRIGHT]})
    assert fallen == [FALLEN, surprise]
    assert upright == [survivor, UPRIGHT]


def test_rates_and_leads_by_hand():
    early, late, missed = one(below=10, watch=4, warn=7), one(below=10, watch=10, warn=13), one(below=10)
    noisy = one(watch=1, warn=2, levels=[1, 2, 3, 0])
    found = detector({"collapse": [early, late, missed], "stay": [noisy, UPRIGHT]})
    assert (found["caught"]["k"], found["caught"]["n"]) == (2, 3)
    assert (found["in_time"]["k"], found["false_alarms"]["k"], found["false_watches"]["k"]) == (1, 1, 1)
    # Clopper and Pearson in closed form: with every trial a hit the lower bound solves p^n = .05.
    sure = detector({"collapse": [early] * 10, "stay": [UPRIGHT] * 10})
    assert sure["caught"]["at_least"] == pytest.approx(0.05**0.1, abs=1e-9)
    assert sure["false_alarms"]["at_most"] == pytest.approx(1 - 0.05**0.1, abs=1e-9)
    assert found["false_alarm_iterations"]["value"] == pytest.approx(2 / 8)
    assert found["false_alarm_iterations"]["n"] == 2
    assert found["lead_warn"] == {"median": 0.0, "low": -3, "high": 3, "n": 2}
    assert found["lead_watch"] == {"median": 3.0, "low": 0, "high": 6, "n": 2}


def test_nothing_to_count_is_said():
    found = detector({"collapse": [], "stay": [UPRIGHT]})
    assert found["caught"] is None
    assert found["lead_warn"] is None
    assert "| caught | no run | 0 |" in table({"detector": found, "arms": {"stay": [UPRIGHT]}})


def test_seeds_alternate_between_the_arms(tmp_path, monkeypatch):
    plan = ppo_max.Plan(
        pairs=50, imitated=64, sft=FitSettings(epochs=1, batch_size=32), iterations=2, answers=8, asked=16
    )
    monkeypatch.setattr(ppo_max, "QUICK", plan)
    result = collapse.run(tmp_path, [101], quick=True)
    json.dumps(result, allow_nan=False)
    assert [found[0]["arm"] for found in result["arms"].values()] == ["norm_only", "kl_hi"]
    assert result["thresholds"]
    assert "| kl_hi | 101 |" in table(result)
    monkeypatch.setattr(ppo_max, "train", None)
    assert collapse.run(tmp_path, [101], quick=True) == result


def test_no_seed_has_been_seen_before():
    assert not set(collapse.SEEDS) & set(ppo_max.SEEDS)
    assert len(collapse.SEEDS) == 10

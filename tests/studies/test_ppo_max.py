"""The study `ppo_max`: one trainer for all arms, criteria that are those of its head, and runs that can be resumed."""

import json

import pytest

from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.studies import ppo_max
from holdfast.studies.ppo_max import ARMS, CURVES, Arm, Plan, course, criteria, gain, table

TINY = Plan(
    pairs=50,
    imitated=64,
    sft=FitSettings(epochs=1, batch_size=32),
    iterations=3,
    answers=8,
    asked=16,
)
START = {"gold": 2.5, "reward": 1.7, "length": 9.0, "truncated": 0.0}


def ended(name="x", below=None, warn=None, curves=None, **end):
    """The summary of a run that ends as told, and as it started where nothing is told."""
    measured = [
        {key: {"value": value, "low": 0, "high": 9} for key, value in each.items()} for each in (START, START | end)
    ]
    flat = {key: [START[key], {**START, **end}[key]] for key in ("length", "truncated")} | (curves or {})
    summary = {"arm": name, "seed": 0, "start": measured[0], "end": measured[1], "curves": flat, "seconds": 1.0}
    return summary | {"below": below, "watch": warn, "warn": warn}


def fallen(**told):
    return ended(**{"gold": -4.0, "reward": 12.0, "length": 32.0, "truncated": 0.97, "below": 14, "warn": 15} | told)


GOOD = {
    "vanilla": fallen(),
    "norm_only": fallen(),
    "kl_only": fallen(),
    "kl_hi": ended(gold=2.8),
    "ppo_max": ended(gold=2.9, length=13.0),
    "rollback": ended(gold=2.4, below=14, warn=15),
}


def failing(**changed):
    arms = {name: [one] for name, one in (GOOD | changed).items()}
    return [one["name"] for one in criteria(arms) if not one["holds"]]


@pytest.mark.parametrize(
    "changed, fails",
    [
        ({}, []),
        ({"vanilla": fallen(gold=0.51)}, ["vanilla_collapses"]),
        ({"vanilla": fallen(reward=6.69)}, ["vanilla_collapses"]),
        ({"vanilla": fallen(truncated=0.79)}, ["vanilla_collapses"]),
        ({"norm_only": fallen(gold=0.51)}, ["norm_only_collapses"]),
        ({"ppo_max": ended(gold=2.79)}, ["ppo_max_holds"]),
        ({"ppo_max": ended(gold=2.9, curves={"length": [9.0, 16.3, 12.0]})}, ["ppo_max_holds"]),
        ({"ppo_max": ended(gold=2.9, curves={"truncated": [0.0, 0.1, 0.0]})}, ["ppo_max_holds"]),
        ({"ppo_max": ended(gold=2.9, warn=3)}, ["no_false_warning"]),
        ({"kl_hi": ended(warn=60)}, ["no_false_warning"]),
        ({"kl_hi": ended(below=5)}, ["warned_in_time"]),
        ({"kl_only": fallen(warn=17)}, ["warned_in_time"]),
        ({"kl_only": fallen(warn=16)}, []),
        ({"kl_only": fallen(warn=None)}, ["warned_in_time"]),
        ({"rollback": ended(gold=2.19)}, ["rollback_holds"]),
        ({"rollback": ended(gold=2.21, below=14, warn=40)}, []),
    ],
)
def test_each_criterion_can_fail(changed, fails):
    assert failing(**changed) == fails


def test_four_of_five_seeds_are_enough_where_the_head_says_so_and_only_there():
    arms = {name: [one] * 5 for name, one in GOOD.items()}
    arms["vanilla"] = [fallen()] * 4 + [fallen(gold=2.5)]
    assert all(one["holds"] for one in criteria(arms))
    arms["vanilla"] = [fallen()] * 4 + [fallen(warn=None)]
    assert [one["name"] for one in criteria(arms) if not one["holds"]] == ["warned_in_time"]


def test_the_course_of_a_run_is_read_from_its_log():
    levels, golds = [0, 1, 0, 2, 3], [2.5, 2.21, 2.19, 2.6, 1.0]
    rows = [
        dict.fromkeys(CURVES, 1.0) | {"step": i + 1, "gold": gold, "alarm/level": level}
        for i, (gold, level) in enumerate(zip(golds, levels))
    ]
    found = course(rows, gold=2.5)
    assert (found["below"], found["watch"], found["warn"]) == (3, 2, 4)
    assert found["curves"]["gold"] == golds
    assert set(found["curves"]) == set(CURVES)


def test_arms_differ_as_the_paper_says():
    assert Arm() == ARMS["vanilla"] == ARMS["rollback"].model_copy(update={"on_warn": "log"})
    assert ARMS["norm_only"] == Arm(transform="norm", clip=0.8)
    given = {name: arm.model_dump(exclude_unset=True) for name, arm in ARMS.items()}
    assert given["kl_only"].keys() == given["kl_hi"].keys() == {"kl"}
    assert given["ppo_max"].keys() == {"transform", "clip", "kl", "value_clip", "pretrain"}


def test_arms_begin_alike_and_are_resumed(tmp_path, monkeypatch):
    names = ("vanilla", "kl_hi", "ppo_max")
    ones = ppo_max.one_seed(tmp_path, TINY, names, 3)
    json.dumps(ones, allow_nan=False)
    assert len({json.dumps(one["start"]) for one in ones.values()}) == 1
    assert all(len(one["curves"]["gold"]) == TINY.iterations for one in ones.values())
    # Before the first step all policies are one and answer alike.
    assert len({one["curves"]["gold"][0] for one in ones.values()}) == 1
    assert all(one["curves"]["kl"][0] == pytest.approx(0, abs=1e-4) for one in ones.values())
    assert len({json.dumps(one["end"]) for one in ones.values()}) == 3
    log = (tmp_path / "seed-3" / "ppo_max" / "metrics.jsonl").read_text(encoding="utf-8")
    stages = [json.loads(line)["stage"] for line in log.splitlines()]
    assert (stages.count("critics"), stages.count("policy")) == (ARMS["ppo_max"].pretrain, TINY.iterations)
    monkeypatch.setattr(ppo_max, "train", None)
    assert ppo_max.one_seed(tmp_path, TINY, names, 3) == ones


def test_the_trainer_is_told_what_its_arm_says(tmp_path):
    plan = TINY.model_copy(update={"arm": ARMS["ppo_max"], "seed": 3})
    bench = ppo_max.prepare(plan, 3, tmp_path)
    collector = ppo_max.collect_from(bench.policy, bench.policy, bench.template, bench.proxy)
    told = ppo_max.trainer(plan, collector).settings
    assert (told.score.transform, told.score.clip, told.kl.coef, told.value_clip) == ("norm", 0.8, 0.05, 0.2)
    assert (told.advantage.lam_policy, told.advantage.lam_value, told.steps_per_experience) == (0.9, 0.9, 4)
    plain = ppo_max.trainer(TINY, collector).settings
    assert (plain.score.transform, plain.score.clip, plain.kl.coef, plain.value_clip) == ("none", None, 0.0, None)


def test_an_arm_ends_where_its_policy_is(tmp_path):
    """The end is judged by the trained policy, and the imitating one is left as it was for the next arm."""
    size = {"iterations": 8, "answers": 64, "asked": 64, "imitated": 640, "sft": Plan().sft}
    fast = OptimiserSettings(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0)
    plan = TINY.model_copy(update=size | {"policy": fast, "seed": 3})
    bench = ppo_max.prepare(plan, 3, tmp_path / "shared")
    before = {name: value.clone() for name, value in bench.policy.state_dict().items()}
    one = ppo_max.train(plan, bench, RunFolder(tmp_path / "run"))
    assert all((value == before[name]).all() for name, value in bench.policy.state_dict().items())
    assert gain(one, "reward") > 1
    end, (first, *_, last) = one["end"]["reward"]["value"], one["curves"]["reward"]
    assert abs(end - last) < abs(end - first)


@pytest.mark.slow
def test_a_whole_run_is_resumed_and_its_table_names_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(ppo_max, "QUICK", TINY)
    result = ppo_max.run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert set(result["arms"]) == set(ARMS)
    monkeypatch.setattr(ppo_max, "train", None)
    assert ppo_max.run(tmp_path, [3], quick=True) == result
    text = table(result)
    assert all(f"| {name} | 3 |" in text for name in ARMS)


@pytest.mark.slow
def test_items_are_worked_on_side_by_side_in_order():
    assert ppo_max.side_by_side(abs, [3, -1, -2]) == [3, 1, 2]


def test_a_single_item_needs_no_process():
    assert ppo_max.side_by_side(lambda item: item + 1, [1]) == [2]

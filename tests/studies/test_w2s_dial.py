"""The study `w2s_dial`: the world is as described, criteria can fail, and a small run ends in a table."""

import json

import pytest
import torch

from holdfast.studies import w2s_dial
from holdfast.studies.w2s_dial import Arm, World, criteria, drawn, plan, table


def one(soft=0.9, logconf=0.95, on_wrong=1.0):
    losses = {"soft": soft, "logconf": logconf}
    students = {loss: {"accuracy": 0.8, "pgr": pgr, "on_wrong": on_wrong} for loss, pgr in losses.items()}
    return {"seed": 1, "weak": 0.75, "ceiling": 0.93, "seconds": 1.0, **students}


GOOD = {
    "rho 0": [one()] * 5,
    "rho 1": [one(soft=0.14, logconf=0.58)] * 5,
    "rho 1, long": [one(soft=0.0, logconf=0.03)] * 5,
    "rho 0, few": [one(soft=0.92, logconf=0.78)] * 5,
}


def failing(**changes):
    arms = {name: list(runs) for name, runs in GOOD.items()}
    for name, run in changes.items():
        arms[name][2] = run
    return [found["name"] for found in criteria(arms) if not found["holds"]]


@pytest.mark.parametrize(
    "arm, run, name",
    [
        ("rho 0", one(soft=0.79), "corrects"),
        ("rho 1, long", one(soft=0.04), "imitates"),
        ("rho 1, long", one(soft=-0.04), "imitates"),
        ("rho 1, long", one(soft=0.0, on_wrong=0.97), "copies"),
        ("rho 1", one(soft=0.2, logconf=0.39), "confidence"),
        ("rho 0, few", one(soft=0.9, logconf=0.91), "little_data"),
        ("rho 0", one(soft=None), "corrects"),
    ],
)
def test_one_bad_seed_fails_its_criterion_alone(arm, run, name):
    assert failing() == []
    assert failing(**{arm: run}) == [name]


def test_the_world_is_as_described():
    sides, weak, strong = drawn(20000, 0.6, seed=5)
    mean = (weak[:, 0] * sides).mean().item()
    # Means and correlations of 20,000 normal numbers: the standard error is .007.
    assert mean == pytest.approx(0.7, abs=0.03)
    assert (strong[:, 0] * sides).mean().item() == pytest.approx(1.4, abs=0.03)
    assert abs(weak[:, 1:].mean().item()) < 0.01
    assert strong[:, 32:].shape == (20000, 8)
    seen = torch.corrcoef(torch.stack([weak[:, 3], strong[:, 35]]))[0, 1].item()
    # The standard error is .007.
    assert seen == pytest.approx(0.6, abs=0.03)
    # The standard error is .005.
    assert strong[:, 34].std().item() == pytest.approx(1, abs=0.03)
    assert abs(sides.mean().item()) < 0.03


def test_the_dial_changes_only_what_the_student_sees():
    first, second = drawn(100, 0.0, seed=5), drawn(100, 1.0, seed=5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2][:, :32], second[2][:, :32])
    assert torch.equal(second[2][:, 32:], second[1])
    assert not torch.equal(first[2][:, 32:], second[2][:, 32:])


def test_students_see_no_gold_and_all_arms_no_item_twice():
    made = plan(World(), Arm(rho=1.0, items=50, epochs=2), seed=3)
    pools = made.pools(3)
    ids = [id for pool in pools.named().values() for id in pool.ids]
    assert len(set(ids)) == len(ids) == 500 + 50 + 4000
    assert made.student.view(pools.test.items).shape == (4000, 40)
    assert made.supervisor.view(pools.test.items).shape == (4000, 8)
    assert {name: one.kind for name, one in made.students.items()} == {"soft": "soft", "logconf": "logconf"}
    assert made.ceiling.fit == made.students["soft"].fit


def test_a_small_run_ends_in_a_table_and_is_not_repeated(tmp_path, monkeypatch):
    arms = {
        name: arm.model_copy(update={"items": 96, "epochs": 2}) for name, arm in World().arms.items() if name in GOOD
    }
    monkeypatch.setattr(w2s_dial, "QUICK", World(taught=64, test=200, supervisor_epochs=2, arms=arms))
    torch.set_num_threads(1)
    result = w2s_dial.run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert {found["name"] for found in result["criteria"]} == {
        "corrects",
        "imitates",
        "copies",
        "confidence",
        "little_data",
    }
    lines = table(result).split("\n")
    assert len(lines) == 2 + len(arms)
    assert lines[2].startswith("| rho 0 |")
    monkeypatch.setattr(w2s_dial, "weak_to_strong", None)
    assert w2s_dial.run(tmp_path, [3], quick=True) == result


def test_no_seed_has_been_seen_before():
    # Those of the published reference values, and that of the pilot.
    assert not set(w2s_dial.SEEDS) & {0, 1, 2, 3, 4, 99}

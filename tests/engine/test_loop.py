"""Resume, checkpoint, stop: what both loops share, on a walk whose every step draws a random number."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.loop import Loop
from holdfast.errors import RunError, UserError

TOTAL = 10


class Walk:
    """A weight that walks at random and a memory of where it has been."""

    def __init__(self, folder, checkpoint_every=3, processes=None):
        self.model = nn.Linear(1, 1)
        self.model.weight.data.zero_()
        self.model.bias.data.zero_()
        self.memory = []
        self.run = RunFolder(folder, processes=processes)
        self.loop = Loop(self.run, "walk", TOTAL, {"model": self.model}, {"walk": self}, checkpoint_every)
        self.taken = []

    def step(self, number):
        self.taken.append(number)
        self.model.weight.data += torch.randn(1)
        self.memory.append(self.model.weight.item())
        self.run.log("walk", number, {"at": self.memory[-1]})
        return {"at": self.memory[-1]}

    def state_dict(self):
        return {"memory": self.memory}

    def load_state_dict(self, state):
        self.memory = state["memory"]

    def places(self):
        return [json.loads(line)["at"] for line in (self.run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def straight(tmp_path):
    walk = Walk(tmp_path / "straight")
    walk.loop.go(walk.step, seed=1)
    return walk


@pytest.mark.parametrize("failing, first", [(1, 1), (3, 1), (4, 4), (9, 7), (10, 10)])
def test_an_error_at_any_step_costs_the_steps_since_the_checkpoint(tmp_path, straight, failing, first):
    def fail(number):
        numbers = walk.step(number)
        if number == failing:
            raise RuntimeError("power cut")
        return numbers

    walk = Walk(tmp_path / "broken")
    with pytest.raises(RuntimeError, match="power cut"):
        walk.loop.go(fail, seed=1)
    again = Walk(tmp_path / "broken")
    last = again.loop.go(again.step, seed=1)
    assert again.taken == list(range(first, TOTAL + 1))
    assert last == {"at": straight.memory[-1]}
    assert again.memory == straight.memory == again.places() == straight.places()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(tmp_path, straight, number):
    def interrupted(step):
        if step == 5:
            os.kill(os.getpid(), number)
        return walk.step(step)

    walk = Walk(tmp_path / "stopped")
    with pytest.raises(RunError, match=f"walk: stopped by {number.name} at step 5 of 10; resume with the same"):
        walk.loop.go(interrupted, seed=1)
    again = Walk(tmp_path / "stopped")
    again.loop.go(again.step, seed=1)
    assert again.taken == [6, 7, 8, 9, 10]
    assert again.places() == straight.places()


def test_a_signal_at_the_last_step_still_stops_what_comes_next(tmp_path):
    def interrupted(step):
        if step == TOTAL:
            os.kill(os.getpid(), signal.SIGTERM)
        return walk.step(step)

    walk = Walk(tmp_path)
    with pytest.raises(RunError, match="at step 10 of 10"):
        walk.loop.go(interrupted, seed=1)
    again = Walk(tmp_path)
    assert again.loop.go(again.step, seed=1) == {"at": walk.memory[-1]}
    assert again.taken == []


def test_without_an_interval_only_the_end_is_kept(tmp_path):
    walk = Walk(tmp_path, checkpoint_every=0)
    walk.loop.go(walk.step, seed=1)
    assert [p.name for p in (tmp_path / "checkpoints" / "walk").iterdir()] == ["step-000000010"]


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    walk = Walk(tmp_path)
    walk.loop.go(walk.step, seed=1)
    two = Processes()
    two.size = 2
    monkeypatch.setattr(two, "barrier", lambda: None)
    again = Walk(tmp_path, processes=two)
    with pytest.raises(UserError, match="step 10 was written by 1 processes and there are 2 now"):
        again.loop.go(again.step, seed=1)


def test_the_seed_decides_the_walk(tmp_path, straight):
    walk = Walk(tmp_path / "other")
    walk.loop.go(walk.step, seed=2)
    assert walk.memory[0] != straight.memory[0]

"""The best weights of a stage: chosen among those judged, kept through any kill, and no concern of the training."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from played import players, together
from safetensors.torch import load_file
from torch import nn

from holdfast.engine.best import Contest
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.errors import RunError, UserError
from holdfast.losses.reduce import Sum

TOTAL = 12
OPTIMISER = OptimiserSettings(learning_rate=0.1, schedule="constant", warmup_ratio=0.0)
ROWS = [SimpleNamespace(id=f"r{i}", length=1, y=3.0 + i) for i in range(TOTAL)]
WATCHING = [SimpleNamespace(id="w", length=1, y=1.0)]


class PowerCut(Exception):
    """What ends a run within a step."""


class Climb:
    """A weight that climbs by about 0.1 a step from 0, on inputs with noise, over a frozen one of 1."""

    name = "climb"
    weights = {}

    def __init__(self, cut=None, noise=0.3):
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(noise), nn.Linear(1, 1, bias=False))
        self.model[0].weight.data.zero_()
        self.model[2].weight.data.fill_(1.0)
        self.model[2].requires_grad_(False)
        self.cut, self.steps = cut, 0

    @property
    def at(self):
        return self.model[0].weight.item()

    def collate(self, rows):
        return torch.tensor([[row.y] for row in rows])

    def counts(self, batch):
        return {"square": float(len(batch))}

    def loss(self, batch):
        self.steps += 1
        if self.steps == self.cut:
            raise PowerCut
        return {"square": self._error(batch)}

    def metrics(self, batch):
        return {"square": self._error(batch)}

    def _error(self, batch):
        return Sum((self.model(torch.ones_like(batch)) - batch).square().sum(), torch.tensor(len(batch)))


class Scripted:
    """A judge that says what stands in its script, remembers the weights, and draws random numbers of every kind."""

    def __init__(self, task, values):
        self.task, self.values, self.weights = task, list(values), []

    def __call__(self, step):
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
        self.weights.append(self.task.at)
        return self.values[len(self.weights) - 1]


def near(task, target=0.55):
    """A judge of the weights themselves."""
    return lambda step: -abs(task.at - target)


def go(folder, task, judge=None, times=6, every=0, rows=WATCHING, run=None):
    settings = FitSettings(batch_size=1, optimiser=OPTIMISER, checkpoint_every=every, seed=3)
    contest = None if judge is None else Contest(judge, times, "reward")
    return fit(task, ROWS, rows, settings, run or RunFolder(folder), stage="climb", contest=contest)


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def path(folder):
    """The last checkpoint's weights."""
    return load_file(folder / "checkpoints" / "climb" / f"step-{TOTAL:09d}" / "model.safetensors")


def kept(folder):
    return sorted(int(one.name[5:]) for one in (folder / "checkpoints" / "climb" / "best").glob("step-*"))


def test_judgements_are_spread_evenly_and_the_last_step_is_among_them():
    contest = Contest(float, 4, "reward")
    assert sorted(contest.steps(12)) == [3, 6, 9, 12]
    assert sorted(contest.steps(10)) == [3, 5, 8, 10]
    assert sorted(contest.steps(3)) == [1, 2, 3], "where there are fewer steps, each"
    assert sorted(Contest(float, 1, "reward").steps(7)) == [7]


def test_the_best_weights_are_put_in_place_and_all_that_was_judged_is_told(tmp_path):
    task = Climb()
    judge = Scripted(task, [1.0, 2.0, 5.0, 4.0, 3.0, 0.0])
    found = go(tmp_path, task, judge)
    assert found.best == (6, 5.0)
    assert found.judged == ((2, 1.0), (4, 2.0), (6, 5.0), (8, 4.0), (10, 3.0), (12, 0.0))
    assert task.at == judge.weights[2] != judge.weights[5]
    rows = [(row["step"], row["best/reward"]) for row in logged(tmp_path) if "best/reward" in row]
    assert rows == list(found.judged)


def test_the_last_step_may_be_the_best(tmp_path):
    task = Climb()
    judge = Scripted(task, range(6))
    assert go(tmp_path, task, judge).best == (TOTAL, 5.0)
    assert task.at == judge.weights[-1] == path(tmp_path)["0.weight"].item()


def test_what_is_told_of_held_out_rows_is_told_of_the_best(tmp_path):
    task = Climb()
    judge = Scripted(task, [0, 0, 1, 0, 0, 0])
    found = go(tmp_path, task, judge)
    assert found.metrics["square"] == pytest.approx((judge.weights[2] - 1.0) ** 2, abs=1e-6)
    assert found.metrics["square"] != [row for row in logged(tmp_path) if "eval/square" in row][-1]["eval/square"]
    without = go(tmp_path / "without", Climb(), Scripted(task, [1, 0, 0, 0, 0, 0]), rows=[])
    assert without.metrics["square"] == logged(tmp_path / "without")[-2]["square"], "the last step's, where none watch"


def test_the_training_is_the_same_with_and_without_a_judge(tmp_path):
    go(tmp_path / "alone", Climb())
    watched = Climb()
    go(tmp_path / "watched", watched, Scripted(watched, [0, 0, 1, 0, 0, 0]), times=6)
    rows = [row for row in logged(tmp_path / "watched") if "best/reward" not in row]
    assert rows == logged(tmp_path / "alone")
    alone, other = path(tmp_path / "alone"), path(tmp_path / "watched")
    assert torch.equal(alone["0.weight"], other["0.weight"])
    assert watched.at != other["0.weight"].item(), "though another step goes on"


@pytest.mark.parametrize("every", [0, 1, 5])
@pytest.mark.parametrize("cut", [1, 2, 3, 6, 7, 9, 12])
def test_a_killed_run_chooses_as_one_that_was_not(tmp_path, cut, every):
    whole, parts = Climb(), Climb(cut)
    expected = go(tmp_path / "whole", whole, near(whole), every=every)
    assert 2 < expected.best.step < TOTAL
    with pytest.raises(PowerCut):
        go(tmp_path / "parts", parts, near(parts), every=every)
    again = Climb()
    assert go(tmp_path / "parts", again, near(again), every=every) == expected
    assert again.at == whole.at
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert kept(tmp_path / "parts")[-1] == expected.best.step


def test_a_kill_while_judging_is_as_any_other(tmp_path):
    whole = Climb()
    expected = go(tmp_path / "whole", whole, near(whole), every=3)
    parts, seen = Climb(), []

    def failing(step):
        seen.append(parts.at)
        if len(seen) == 4:
            raise PowerCut
        return near(parts)(step)

    with pytest.raises(PowerCut):
        go(tmp_path / "parts", parts, failing, every=3)
    again = Climb()
    assert go(tmp_path / "parts", again, near(again), every=3) == expected
    assert again.at == whole.at


@pytest.mark.parametrize("every, judged_before, best", [(5, 2, 4), (6, 3, 6)])
def test_what_a_killed_run_found_best_and_the_next_does_not_is_forgotten(tmp_path, every, judged_before, best):
    """Judges may vary. The best as of the checkpoint is still there, whatever was found better behind it."""
    parts = Climb(cut=9)
    first = Scripted(parts, [*range(judged_before), 50.0, 60.0][:4])
    with pytest.raises(PowerCut):
        go(tmp_path, parts, first, every=every)
    again = Climb()
    judge = Scripted(again, [-1.0] * (6 - judged_before))
    found = go(tmp_path, again, judge, every=every)
    assert found.best.step == best
    assert again.at == first.weights[best // 2 - 1]


def test_a_later_best_after_a_kill_takes_the_place_of_what_the_killed_run_found(tmp_path):
    parts = Climb(cut=9)
    with pytest.raises(PowerCut):
        go(tmp_path, parts, Scripted(parts, [0.0, 1.0, 2.0, 60.0]), every=5)
    again = Climb()
    judge = Scripted(again, [7.0, 0.0, 0.0, 0.0])
    assert go(tmp_path, again, judge, every=5).best == (6, 7.0)
    assert again.at == judge.weights[0]
    assert 8 not in kept(tmp_path)


def test_of_equal_ones_the_earlier_stays(tmp_path):
    task = Climb()
    judge = Scripted(task, [1.0, 2.0, 2.0, 2.0, 0.0, 2.0])
    assert go(tmp_path, task, judge).best == (4, 2.0)
    assert task.at == judge.weights[1]
    assert kept(tmp_path) == [4]


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_without_a_finite_number_a_step_is_never_the_best(tmp_path, nothing):
    task = Climb()
    judge = Scripted(task, [nothing, -3.0, nothing, -2.0, nothing, nothing])
    found = go(tmp_path, task, judge)
    assert found.best == (8, -2.0)
    assert len(found.judged) == 6
    row = next(row for row in logged(tmp_path) if "best/reward" in row)
    assert (row["best/reward"], row["nonfinite"]) == (None, ["best/reward"])


def test_judgements_none_of_which_is_a_number_are_an_error(tmp_path):
    task = Climb()
    with pytest.raises(RunError, match="climb: none of 6 judgements gave a finite reward, so no step is the best"):
        go(tmp_path, task, Scripted(task, [math.nan] * 6))


def test_files_are_written_for_new_bests_alone_and_hold_what_is_trainable(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("holdfast.engine.best.Best._write", _counting(written))
    task = Climb()
    go(tmp_path, task, Scripted(task, [1, 0, 3, 2, 4, 4]))
    assert written == [2, 6, 10]
    assert kept(tmp_path) == [10]
    file = tmp_path / "checkpoints" / "climb" / "best" / f"step-{10:09d}" / "model.safetensors"
    assert list(load_file(file)) == ["0.weight"]
    assert task.model[2].weight.item() == 1.0


def _counting(written):
    from holdfast.engine.best import Best

    original = Best._write

    def write(self, step):
        written.append(step)
        original(self, step)

    return write


def test_no_more_files_stay_than_the_checkpoints_need(tmp_path):
    task = Climb()
    go(tmp_path, task, Scripted(task, range(6)), every=4)
    # When the last best was written there were checkpoints of the steps 4 and 8.
    assert kept(tmp_path) == [4, 8, 12]


def test_a_finished_stage_is_only_loaded(tmp_path):
    task, again = Climb(), Climb()
    found = go(tmp_path, task, near(task))
    rows = logged(tmp_path)
    assert go(tmp_path, again, judge=lambda step: pytest.fail("judged again")) == found
    assert again.at == task.at
    assert logged(tmp_path) == rows


def test_a_best_that_is_gone_cannot_be_replaced(tmp_path):
    task = Climb()
    go(tmp_path, task, near(task))
    (best,) = (tmp_path / "checkpoints" / "climb" / "best").glob(f"step-{kept(tmp_path)[-1]:09d}")
    (best / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"is damaged .* delete .*climb to learn anew"):
        go(tmp_path, Climb(), judge=lambda step: pytest.fail("judged again"))


def test_all_processes_take_the_first_ones_word(tmp_path):
    asked, tasks = [], [Climb(noise=0.0) for _ in range(2)]

    def judge(rank):
        asked.append(rank)
        return -abs(tasks[rank].at - 0.55) if rank == 0 else tasks[rank].at

    def work(one):
        return go(tmp_path, tasks[one.rank], lambda step: judge(one.rank), run=RunFolder(tmp_path, processes=one))

    found = together(players(2), work)
    assert found[0] == found[1]
    assert set(asked) == {0}
    assert tasks[0].at == tasks[1].at
    assert 2 < found[0].best.step < TOTAL


def test_a_judge_that_fails_ends_all_processes_alike(tmp_path):
    """Nobody waits for a value that will not come."""

    def fail(step):
        raise UserError("the endpoint is gone")

    def work(one):
        with pytest.raises(UserError, match="the endpoint is gone"):
            go(tmp_path, Climb(), fail, run=RunFolder(tmp_path, processes=one))
        return one.rank

    assert together(players(2), work) == [0, 1]

"""The supervised loop: which rows, in which portions, and what is written."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, cut, evaluate, fit, share
from holdfast.errors import RunError, UserError
from holdfast.losses.reduce import Sum

OPTIMISER = OptimiserSettings(learning_rate=0.1, schedule="constant", warmup_ratio=0.0)


def make_rows(lengths):
    return [SimpleNamespace(id=f"r{i}", length=n, y=float(n)) for i, n in enumerate(lengths)]


class Toy:
    """Predict a row's length from a constant: the best constant is the mean."""

    name = "toy"
    weights = {}

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.0))
        self.model[0].weight.data.zero_()
        self.seen, self.modes = [], []

    def collate(self, rows):
        self.seen.append([row.id for row in rows])
        y = torch.tensor([[row.y] for row in rows])
        return SimpleNamespace(y=y, ids=tuple(row.id for row in rows))

    def counts(self, batch):
        return {"square": float(len(batch.y))}

    def loss(self, batch):
        self.modes.append(self.model.training)
        return {"square": self._error(batch)}

    def metrics(self, batch):
        self.modes.append(self.model.training)
        assert not torch.is_grad_enabled()
        return {"square": self._error(batch), "label": Sum(batch.y.sum(), torch.tensor(len(batch.y)))}

    def _error(self, batch):
        return Sum((self.model(torch.ones_like(batch.y)) - batch.y).square().sum(), torch.tensor(len(batch.y)))


def written(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_every_epoch_shows_every_row_once_in_a_new_order(tmp_path):
    task = Toy()
    settings = FitSettings(epochs=2, batch_size=3, optimiser=OPTIMISER)
    result = fit(task, make_rows(range(1, 8)), [], settings, RunFolder(tmp_path), stage="toy")
    assert result.steps == 6
    assert [len(rows) for rows in task.seen] == [3, 3, 1, 3, 3, 1]
    first, second = ([row for rows in part for row in rows] for part in (task.seen[:3], task.seen[3:]))
    assert sorted(first) == sorted(second) == [f"r{i}" for i in range(7)]
    assert first != second


def test_the_order_follows_from_the_seed(tmp_path):
    orders = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        task = Toy()
        settings = FitSettings(batch_size=2, optimiser=OPTIMISER, seed=seed)
        fit(task, make_rows(range(1, 9)), [], settings, RunFolder(tmp_path / folder), stage="toy")
        orders.append(task.seen)
    assert orders[0] == orders[1] != orders[2]


def test_token_budget_changes_the_portions_and_not_the_result(tmp_path):
    found = []
    for folder, micro_tokens in (("a", None), ("b", 12)):
        task = Toy()
        settings = FitSettings(batch_size=6, micro_tokens=micro_tokens, optimiser=OPTIMISER, epochs=2)
        fit(task, make_rows([9, 2, 3, 4, 5, 6]), [], settings, RunFolder(tmp_path / folder), stage="toy")
        found.append((task.model[0].weight.item(), len(task.seen)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert (found[0][1], found[1][1]) == (2, 2 * 3)


def test_it_learns_and_writes_rows_and_evaluations(tmp_path):
    run = RunFolder(tmp_path)
    settings = FitSettings(epochs=30, batch_size=2, eval_every=25, optimiser=OPTIMISER)
    task = Toy()
    result = fit(task, make_rows([2, 4]), make_rows([1, 2, 3]), settings, run, stage="toy")
    assert 2.5 < task.model[0].weight.item() < 3.5, "30 Adam steps of 0.1 from 0"
    rows = written(run)
    assert [row["step"] for row in rows if "square" in row] == list(range(1, 31))
    assert set(rows[0]) == {"stage", "step", "square", "grad_norm", "lr"}
    evaluations = [row for row in rows if "eval/square" in row]
    assert [row["step"] for row in evaluations] == [25, 30]
    assert evaluations[-1]["eval/label"] == 2.0
    assert result.metrics == {"square": evaluations[-1]["eval/square"], "label": 2.0}


def test_training_trains_and_evaluation_evaluates(tmp_path):
    task = Toy()
    task.model.eval()
    settings = FitSettings(batch_size=1, eval_every=1, optimiser=OPTIMISER)
    fit(task, make_rows([1, 2]), make_rows([1]), settings, RunFolder(tmp_path), stage="toy")
    assert task.modes == [True, False, True, False]
    for training in (False, True):
        task.model.train(training)
        evaluate(task, make_rows([1]))
        assert task.model.training is training


def test_evaluation_means_are_exact_however_the_rows_are_cut():
    task, rows = Toy(), make_rows([7, 1, 3, 5, 2])
    assert evaluate(task, rows, 8)["label"] == evaluate(task, rows)["label"] == 18 / 5
    assert evaluate(task, []) == {}


def test_a_finished_stage_is_only_loaded(tmp_path):
    settings = FitSettings(batch_size=2, optimiser=OPTIMISER)
    first, again = Toy(), Toy()
    rows, held_out = make_rows([1, 2, 3]), make_rows([4])
    result = fit(first, rows, held_out, settings, RunFolder(tmp_path), stage="toy")
    before = written(RunFolder(tmp_path))
    assert fit(again, rows, held_out, settings, RunFolder(tmp_path), stage="toy") == result
    assert again.seen == []
    assert torch.equal(first.model[0].weight, again.model[0].weight)
    assert written(RunFolder(tmp_path)) == before


def test_a_scheduled_task_is_told_where_it_stands(tmp_path):
    class Scheduled(Toy):
        told = []

        def begin(self, step, total):
            self.told.append((step, total))

    settings = FitSettings(batch_size=2, optimiser=OPTIMISER)
    fit(Scheduled(), make_rows([1, 2, 3]), [], settings, RunFolder(tmp_path), stage="toy")
    assert Scheduled.told == [(1, 2), (2, 2)]


def test_no_rows_and_bad_rows_are_errors(tmp_path):
    with pytest.raises(UserError, match="toy: no rows to train on"):
        fit(Toy(), [], [], FitSettings(), RunFolder(tmp_path), stage="toy")
    rows = make_rows([1, 2])
    rows[1].y = float("nan")
    with pytest.raises(RunError, match=r"toy, step \d: the loss term 'square' is nan \(rows r1\)"):
        fit(Toy(), rows, [], FitSettings(batch_size=1), RunFolder(tmp_path), stage="toy")


def test_budget_holds_longest_first_and_a_long_row_stands_alone():
    parts = cut(make_rows([3, 8, 1, 20, 4, 4, 2]), 12)
    lengths = [[row.length for row in part] for part in parts]
    assert lengths == [[20], [8], [4, 4, 3], [2, 1]]
    assert all(len(part) == 1 or len(part) * max(part) <= 12 for part in lengths)
    assert cut([], 12) == cut([], None) == []
    assert [row.id for row in cut(make_rows([1, 9, 2]), None)[0]] == ["r0", "r1", "r2"]


def test_rows_are_dealt_out_evenly_and_none_twice():
    rows = make_rows([9, 1, 8, 2, 7, 3, 6])
    shares = []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.size = rank, 3
        shares.append(share(rows, processes))
    assert sorted(row.id for one in shares for row in one) == [row.id for row in rows]
    tokens = [sum(row.length for row in one) for one in shares]
    assert max(tokens) - min(tokens) <= max(row.length for row in rows)

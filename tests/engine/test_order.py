"""Which rows each step learns from, and that the loop goes by it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.order import Drawn, Shuffled
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit, share
from holdfast.losses.reduce import Sum

WEIGHTS = torch.tensor([0.3, 0.0, 0.1, 0.0, 0.6])
SETTINGS = FitSettings(
    batch_size=4,
    checkpoint_every=1,
    eval_every=3,
    seed=2,
    optimiser=OptimiserSettings(learning_rate=0.1, schedule="cosine", warmup_ratio=0.25),
)


class PowerCut(Exception):
    """What ends a process."""


class Toy:
    """Predict a row's number from a constant that is dropped now and then."""

    name, weights = "toy", {}

    def __init__(self, last=None):
        torch.manual_seed(9)
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.3))
        self.last, self.seen = last, []

    def begin(self, step, total):
        if self.last is not None and step > self.last:
            raise PowerCut
        self.total = total

    def collate(self, rows):
        self.seen.append([row.place for row in rows])
        return torch.tensor([[float(row.place)] for row in rows])

    def counts(self, batch):
        return {"square": float(len(batch))}

    def loss(self, batch):
        return {"square": Sum((self.model(torch.ones_like(batch)) - batch).square().sum(), torch.tensor(len(batch)))}

    metrics = loss


ROWS = [SimpleNamespace(place=place, length=1 + place) for place in range(len(WEIGHTS))]


def go(folder, order=None, task=None, eval_rows=()):
    task = task or Toy()
    fit(task, ROWS, eval_rows, SETTINGS, RunFolder(folder), stage="toy", order=order)
    return task


def written(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def every_step(order):
    return [order.chosen(step) for step in range(1, order.steps + 1)]


@pytest.mark.parametrize("count, batch_size, epochs, seed", [(7, 3, 2, 0), (8, 4, 1, 5), (3, 10, 3, 1), (5, 1, 2, 0)])
def test_shuffled_goes_through_one_permutation_per_epoch(count, batch_size, epochs, seed):
    expected = []
    for epoch in range(epochs):
        rows = torch.randperm(count, generator=generator(seed, epoch)).tolist()
        expected += [rows[start : start + batch_size] for start in range(0, count, batch_size)]
    order = Shuffled(count, batch_size, epochs, seed)
    assert every_step(order) == expected
    assert (order.count, order.steps) == (count, len(expected))


def test_without_an_order_the_loop_shuffles(tmp_path):
    plain, named = go(tmp_path / "a"), go(tmp_path / "b", Shuffled(len(ROWS), 4, 1, 2))
    assert plain.seen == named.seen == [Shuffled(len(ROWS), 4, 1, 2).chosen(step) for step in (1, 2)]
    assert torch.equal(plain.model[0].weight, named.model[0].weight)


def test_the_loop_goes_by_its_order(tmp_path):
    order = Drawn(WEIGHTS, batch_size=6, steps=7, seed=4)
    task = go(tmp_path, order)
    assert task.seen == every_step(order)
    assert task.total == 7


def test_an_order_of_other_rows_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="toy: an order of 4 rows for 5"):
        go(tmp_path, Drawn(WEIGHTS[:4], 4, 2, 0))


def test_draws_are_as_frequent_as_their_weights():
    counts = torch.zeros(len(WEIGHTS), dtype=torch.int64)
    order = Drawn(WEIGHTS, batch_size=100, steps=1000, seed=0)
    for chosen in every_step(order):
        counts += torch.bincount(torch.tensor(chosen), minlength=len(WEIGHTS))
    assert counts[WEIGHTS == 0].sum() == 0
    expected = 1e5 * WEIGHTS[WEIGHTS > 0]
    statistic = ((counts[WEIGHTS > 0] - expected).square() / expected).sum().item()
    assert statistic < chi2.ppf(0.999, df=2), "a right sampler fails here with one seed in a thousand"


def test_many_rows_of_unequal_weight_are_drawn_as_often_as_they_should():
    weights = torch.rand(200, generator=torch.Generator().manual_seed(1)).double() ** 3
    drawn = torch.tensor(Drawn(weights, batch_size=100_000, steps=1, seed=3).chosen(1))
    expected = 1e5 * weights / weights.sum()
    large = expected >= 5
    counts = torch.bincount(drawn, minlength=200)
    statistic = ((counts - expected).square() / expected)[large].sum().item()
    assert statistic < chi2.ppf(0.999, df=int(large.sum()))


def test_draws_are_independent_of_one_another():
    """Within a step and between neighbouring steps, the chance of the same row twice is sum p^2."""
    steps = torch.tensor(every_step(Drawn(WEIGHTS, batch_size=2, steps=4000, seed=6)))
    chance, draws = 0.3**2 + 0.1**2 + 0.6**2, 4000
    border = 4 * math.sqrt(chance * (1 - chance) / draws)
    for first, second in ((steps[:, 0], steps[:, 1]), (steps[:-1, 0], steps[1:, 0])):
        assert abs((first == second).double().mean().item() - chance) < border


def test_draws_follow_from_seed_and_step_alone():
    order, again = (Drawn(WEIGHTS, 8, 5, seed=7) for _ in range(2))
    torch.manual_seed(1)
    first = every_step(order)
    torch.manual_seed(2)
    assert [again.chosen(step) for step in (5, 4, 3, 2, 1)] == first[::-1]
    assert first[0] != first[1]
    assert every_step(Drawn(WEIGHTS, 8, 5, seed=8)) != first


def test_processes_share_what_one_would_draw():
    order, shares = Drawn(WEIGHTS, 9, 3, seed=1), []
    for rank in range(2):
        processes = Processes()
        processes.rank, processes.size = rank, 2
        shares.append([row.place for row in share([ROWS[i] for i in order.chosen(2)], processes)])
    assert sorted(shares[0] + shares[1]) == sorted(order.chosen(2))


def test_rows_of_weight_zero_never_appear_wherever_they_stand():
    for weights in ([0, 0, 1, 0, 2, 0], [1e-300, 0, 1e-300], [0, 3]):
        allowed = {place for place, weight in enumerate(weights) if weight}
        drawn = Drawn(torch.tensor(weights, dtype=torch.float64), 20_000, 1, seed=0).chosen(1)
        assert set(drawn) == allowed


def test_a_draw_on_a_border_belongs_to_the_row_above(monkeypatch):
    on_borders = torch.tensor([0.0, 0.25, 0.75, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: on_borders)
    assert Drawn(torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.0]), 4, 1, 0).chosen(1) == [1, 3, 4, 4]


def test_the_last_row_reaches_up_to_one(monkeypatch):
    """Ten times a tenth add up to a little less than one; a draw in between would belong to nobody."""
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor([1 - 2**-53], dtype=torch.float64))
    for count in (10, 49, 1000):
        assert Drawn(torch.full((count,), 0.1, dtype=torch.float64), 1, 1, 0).chosen(1) == [count - 1]


def test_borders_and_draws_are_finer_than_float32(monkeypatch):
    seen, search = [], torch.searchsorted
    monkeypatch.setattr(
        torch, "searchsorted", lambda ends, draws, **how: seen.append(draws) or search(ends, draws, **how)
    )
    order = Drawn(torch.tensor([2**26, 1, 1]), 8, 1, 0)
    order.chosen(1)
    assert bool((seen[0] * 2**24 % 1 != 0).any()), "draws of float32 are whole multiples of 2^-24"
    between = torch.tensor([2**26 - 0.5, 2**26 + 0.5, 2**26 + 1.5], dtype=torch.float64) / (2**26 + 2)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: between)
    assert order.chosen(1) == [0, 1, 2]


@pytest.mark.parametrize(
    "weights, message",
    [
        ([0.0, 0.0], "all 2 weights are zero: no row can be drawn"),
        ([1.0, -1.0], "1 of 2 weights are negative or no finite numbers"),
        ([1.0, float("nan"), float("inf")], "2 of 3 weights are negative or no finite numbers"),
        ([], "all 0 weights are zero"),
    ],
)
def test_weights_without_meaning_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Drawn(torch.tensor(weights), 1, 1, 0)


def test_more_rows_than_float32_can_count():
    weights = torch.ones(2**24 + 10, dtype=torch.uint8)
    weights[: 2**24] = 0
    weights[2**24 - 3] = 10
    drawn = torch.tensor(Drawn(weights, 4000, 1, seed=0).chosen(1))
    assert set(drawn.tolist()) == {2**24 - 3, *range(2**24, 2**24 + 10)}
    half = (drawn == 2**24 - 3).double().mean().item()
    assert abs(half - 0.5) < 4 * 0.5 / 4000**0.5, "four standard deviations of 4000 draws"
    even = Drawn(torch.ones(2**24 + 10, dtype=torch.uint8), 4000, 1, seed=0).chosen(1)
    assert len(set(even)) > 3990, "each row has its own share: 4000 draws meet less than once"


@pytest.mark.parametrize("order", [Drawn(WEIGHTS, 4, 6, seed=3), Shuffled(len(WEIGHTS), 1, 2, seed=3)])
def test_killed_at_any_step_it_goes_on_as_if_never_killed(tmp_path, order):
    whole = go(tmp_path / "whole", order, eval_rows=ROWS)
    for last in range(1, order.steps):
        folder = tmp_path / str(last)
        with pytest.raises(PowerCut):
            go(folder, order, Toy(last=last), eval_rows=ROWS)
        resumed = go(folder, order, eval_rows=ROWS)
        assert torch.equal(resumed.model[0].weight, whole.model[0].weight)
        assert written(folder) == written(tmp_path / "whole")

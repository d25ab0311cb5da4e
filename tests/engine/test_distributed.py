"""Shares and buckets; two real processes are in tests/invariance/test_cut.py."""

import pytest
import torch
from played import play

from holdfast.engine import distributed
from holdfast.engine.distributed import Processes
from holdfast.errors import RunError


def at(rank, size):
    processes = Processes()
    processes.rank, processes.size = rank, size
    return processes


@pytest.mark.parametrize("items, size", [(0, 2), (1, 3), (7, 3), (8, 4), (100, 7)])
def test_shares_are_contiguous_even_and_complete(items, size):
    shares = [at(rank, size).shard(list(range(items))) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(items))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_alone_every_collective_is_the_identity():
    alone = Processes()
    tensor = torch.tensor([1.0, 2.0])
    assert alone.sum(tensor) is tensor
    assert alone.gather("ab") == ["a", "b"]
    assert alone.is_main
    assert alone.any(True)
    assert not alone.any(False)
    alone.barrier()
    assert not torch.distributed.is_initialized()


def test_gradients_are_summed_in_buckets_of_one_type(monkeypatch):
    """Two equal processes are played by a collective that doubles; the bucket is made small."""
    reduced = []

    def double(tensor):
        reduced.append((tensor.numel(), tensor.dtype))
        tensor *= 2

    monkeypatch.setattr(distributed.dist, "all_reduce", double)
    monkeypatch.setattr(distributed, "_BUCKET", 5)
    shapes = [(2, 2), (1,), (2,), (3,), (9,)]
    parameters = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    parameters[3] = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    unused = torch.zeros(4, requires_grad=True)
    at(0, 2).sum_gradients([*parameters, unused])
    single, double_ = torch.float32, torch.float64
    assert reduced[1:] == [(5, single), (2, single), (3, double_), (9, single)]
    for number, parameter in enumerate(parameters):
        assert torch.equal(parameter.grad, torch.full_like(parameter, 2.0 * (number + 1)))
    assert unused.grad is None


def test_what_the_first_process_found_is_everybodys():
    asked = []

    def work(rank):
        asked.append(rank)
        return {"value": 1.5}

    assert play(3, lambda one: one.on_first(lambda: work(one.rank))) == [{"value": 1.5}] * 3
    assert asked == [0]


@pytest.mark.parametrize("problem", [RunError("the service failed"), OSError("disk full")])
def test_what_the_first_process_cannot_do_ends_them_all_alike(problem):
    def fail():
        raise problem

    found = play(2, lambda one: one.on_first(fail))
    assert [(type(one), str(one)) for one in found] == [(type(problem), str(problem))] * 2

"""Gradients of one loss over all batches, and their inner products."""

import pytest
import torch
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.losses.reduce import Sum
from holdfast.training.common_descent import gradient, inner_products

X = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])


def network():
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    module.spare = nn.Parameter(torch.ones(3))  # nothing reaches it
    return module


def of(module, batches):
    """Of the mean output over all rows."""
    return gradient(
        module,
        batches,
        lambda batch: {"mean": Sum(module(batch).sum(), torch.tensor(len(batch)))},
        lambda batch: {"mean": float(len(batch))},
        Processes(),
    )


@pytest.mark.parametrize("batches", [[X], [X[:1], X[1:]], [X[:2], X[:0], X[2:]]], ids=["one", "two", "an empty one"])
def test_it_is_that_of_all_rows_at_once(batches):
    weight, bias, spare = sorted(of(network(), batches), key=lambda one: -one.ndim * 10 + one.numel())
    torch.testing.assert_close(weight, X.mean(0, keepdim=True))
    assert bias.tolist() == [1.0]
    assert spare.tolist() == [0.0, 0.0, 0.0]


def test_parameters_keep_no_gradient_and_have_none_before():
    module = network()
    module.weight.grad = torch.full_like(module.weight, 9.0)
    first = of(module, [X])
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(one, other) for one, other in zip(first, of(module, [X])))


def test_frozen_parameters_are_left_out():
    module = network()
    module.weight.requires_grad_(False)
    assert [one.numel() for one in of(module, [X])] == [3, 1] or [1, 3]
    assert len(of(module, [X])) == 2


def test_a_process_without_a_batch_takes_part():
    """Its counts and gradients are those of the others."""

    class Other(Processes):
        def add_up(self, counts):
            assert not list(counts)
            return {"mean": 2.0}

        def sum_gradients(self, parameters):
            for one in parameters:
                assert one.grad is None
                one.grad = torch.ones_like(one)

    module = network()
    found = gradient(module, [], lambda batch: {}, lambda batch: {}, Other())
    assert all(bool((one == 1).all()) for one in found)


def test_a_loss_that_is_a_constant_has_no_gradient():
    module = network()
    found = gradient(
        module,
        [X],
        lambda batch: {"mean": Sum(torch.zeros(()), torch.tensor(3))},
        lambda batch: {"mean": 3.0},
        Processes(),
    )
    assert not any(one.any() for one in found)


def test_inner_products_are_summed_exactly_over_all_parameters():
    one = [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])]
    two = [torch.tensor([-0.5, 1.0]), torch.tensor([[3.0]])]
    assert inner_products([one, two]).tolist() == [[5.0, 5.5], [5.5, 10.25]]
    # In float32 the small one would vanish beside the large one.
    large, small = [torch.tensor([1e4, 1e-1])], [torch.tensor([1e4, -1e-1])]
    table = inner_products([large, small])
    assert float(table[0, 0] - table[0, 1]) == pytest.approx(0.02, rel=1e-4)

"""The direction in which no objective gets worse: gradients of each objective and their inner products."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from holdfast.engine.distributed import Processes
from holdfast.losses.reduce import Sum, objective

Batch = TypeVar("Batch")


def gradient(
    module: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Mapping[str, Sum]],
    counts: Callable[[Batch], Mapping[str, float]],
    processes: Processes,
) -> list[Tensor]:
    """The gradient of one loss over all batches of all processes, one tensor for each trainable parameter.

    A process may bring no batch. The parameters' own gradients are left empty.
    """
    parameters = [one for one in module.parameters() if one.requires_grad]
    total = processes.add_up([dict(counts(batch)) for batch in batches])
    for one in parameters:
        one.grad = None
    for batch in batches:
        value = objective(loss(batch), total, {})
        if value.requires_grad:
            value.backward()
    processes.sum_gradients(parameters)
    found = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    for one in parameters:
        one.grad = None
    return found


def inner_products(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    """(K, K) inner products of K gradients, summed in float64.

    >>> inner_products([[torch.tensor([1.0, 0.0])], [torch.tensor([-0.5, 1.0])]])
    tensor([[ 1.0000, -0.5000],
            [-0.5000,  1.2500]], dtype=torch.float64)
    """
    table = [
        [sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other)) for other in gradients]
        for one in gradients
    ]
    return torch.tensor(table, dtype=torch.float64)

"""How many processes work together, and the few ways in which they speak."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from holdfast.errors import HoldfastError

Item = TypeVar("Item")

# The others wait while the first process scores or samples for all, longer than the ten minutes that NCCL grants. Where
# one process dies the launcher ends the others.
_PATIENCE = timedelta(days=1)
_BUCKET = 1 << 24  # elements: large enough that a collective is not all latency, small beside any model


class Processes:
    """The processes of this run: one without a launcher, all of them under `accelerate launch` or torchrun.

    Every method is a collective: all processes call it, in the same order.

    >>> alone = Processes()
    >>> alone.rank, alone.size, alone.shard([1, 2, 3]), alone.gather([1, 2, 3])
    (0, 1, [1, 2, 3], [1, 2, 3])
    """

    def __init__(self) -> None:
        from accelerate import PartialState

        # Left to itself, PartialState overlooks a launcher where there is no accelerator.
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self.device: torch.device = state.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the person."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum of `tensor` over the processes, where and as wide as it was given."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on some process."""
        return bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, items: Iterable[Item]) -> list[Item]:
        """The items of all processes in the order of their ranks; undoes `shard`."""
        own = list(items)
        if self.size == 1:
            return own
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, own)
        return [item for one in lists for item in one]

    def on_first(self, work: Callable[[], Item]) -> Item:
        """The result of `work`, done once, by the first process, while the others wait; its error ends them all alike.

        >>> Processes().on_first(lambda: 1)
        1
        """
        told: tuple[Item | None, HoldfastError | OSError | None] = None, None
        if self.is_main:
            try:
                told = work(), None
            except (HoldfastError, OSError) as error:
                told = None, error
        found, problem = self.gather([told])[0]
        if problem is not None:
            raise problem
        return found  # type: ignore[return-value]

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """This process's contiguous share; shares differ by at most one item and none is given twice."""
        start, stop = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return list(items[start:stop])

    def add_up(self, counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
        """The sum per name over all mappings of all processes, names sorted.

        >>> Processes().add_up([{"b": 1.0, "a": 2.0}, {"b": 3.0}])
        {'a': 2.0, 'b': 4.0}
        """
        total: dict[str, float] = {}
        for one in self.gather(counts):
            for name, value in one.items():
                total[name] = total.get(name, 0.0) + float(value)
        return dict(sorted(total.items()))

    def spread(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the values of the first: a head drawn at random must be the same everywhere."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over the processes in place; no gradient anywhere stays no gradient."""
        if self.size == 1 or not parameters:
            return
        used = self.sum(torch.tensor([int(parameter.grad is not None) for parameter in parameters]))
        bucket: list[Tensor] = []
        for parameter in (p for p, count in zip(parameters, used.tolist()) if count):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and not _fits(bucket, parameter.grad):
                _reduce(bucket)
                bucket = []
            bucket.append(parameter.grad)
        if bucket:
            _reduce(bucket)


def _fits(bucket: Sequence[Tensor], gradient: Tensor) -> bool:
    size = sum(tensor.numel() for tensor in bucket) + gradient.numel()
    return size <= _BUCKET and gradient.dtype == bucket[0].dtype and gradient.device == bucket[0].device


def _reduce(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
        tensor.copy_(part.view_as(tensor))

"""Processes played by threads that meet wherever real ones would."""

import threading

import torch

from holdfast.engine.distributed import Processes


class Meeting:
    """Where threads that play processes bring their items; one that does not come breaks it up for all."""

    def __init__(self, size):
        self.size, self.barrier, self.items = size, threading.Barrier(size, timeout=20), [None] * size

    def exchange(self, rank, own):
        self.barrier.wait()
        self.items[rank] = own
        self.barrier.wait()
        return list(self.items)


class Played(Processes):
    """Process `rank` of those that meet."""

    def __init__(self, rank, meeting):
        super().__init__()
        self.rank, self.size, self.meeting = rank, meeting.size, meeting

    def gather(self, items):
        return [item for one in self.meeting.exchange(self.rank, list(items)) for item in one]

    def sum(self, tensor):
        return torch.stack([one.clone() for one in self.meeting.exchange(self.rank, tensor.detach())]).sum(0)

    def spread(self, parameters):
        self.gather([len(list(parameters))])

    def sum_gradients(self, parameters):
        used = self.sum(torch.tensor([int(p.grad is not None) for p in parameters]))
        for p, count in zip(parameters, used.tolist()):
            if count:
                p.grad = self.sum(torch.zeros_like(p) if p.grad is None else p.grad)


def play(size, work):
    """What `work` gives each of `size` processes, which it takes as its argument; an error stands for itself."""
    meeting, found = Meeting(size), [None] * size

    def one(rank):
        try:
            found[rank] = work(Played(rank, meeting))
        except Exception as error:  # noqa: BLE001  # handed to the test
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

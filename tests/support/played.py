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

    def barrier(self):
        self.gather([0])

    def spread(self, parameters):
        self.gather([len(list(parameters))])

    def sum_gradients(self, parameters):
        used = self.sum(torch.tensor([int(p.grad is not None) for p in parameters]))
        for p, count in zip(parameters, used.tolist()):
            if count:
                p.grad = self.sum(torch.zeros_like(p) if p.grad is None else p.grad)


def players(size):
    """`size` processes that meet each other."""
    meeting = Meeting(size)
    return [Played(rank, meeting) for rank in range(size)]


def play(size, work):
    """What `work` gives each of `size` processes, which it takes as its argument; an error stands for itself."""
    return _at_once(players(size), work, lambda processes: None)


def together(processes, work):
    """What `work` gives each of the processes that meet; an error in any of them is raised here."""
    found = _at_once(processes, work, lambda one: one.meeting.barrier.abort())
    # Those that waited for one that broke off only say so.
    for one in sorted(found, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        if isinstance(one, Exception):
            raise one
    return found


def _at_once(processes, work, broken):
    found = [None] * len(processes)

    def one(rank):
        try:
            found[rank] = work(processes[rank])
        except Exception as error:  # noqa: BLE001  # handed to the test
            broken(processes[rank])
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

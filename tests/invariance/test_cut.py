"""The gradient of a step does not depend on how its batch is cut, nor over how many processes.

Run as a script with a folder, this file is one of two processes and prints what it has found as JSON.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings, Step
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.reduce import Sum, over, per_sequence

SETTINGS = OptimiserSettings(max_grad_norm=1e9)
CUTS = {
    "1x8": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "2x4": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "8x1": [[0], [1], [2], [3], [4], [5], [6], [7]],
    "uneven": [[6, 1, 3, 0, 2], [7], [5, 4]],
}
ROWS = [SimpleNamespace(index=i, length=n) for i, n in enumerate([6, 1, 3, 5, 2, 0, 4, 6])]
FIT = FitSettings(batch_size=5, micro_tokens=8, epochs=2, optimiser=OptimiserSettings(learning_rate=0.01))
ONLINE = OnlineSettings(iterations=2, prompts_per_iteration=5, sample_every=1)
WEIGHTS = {"token": 1.0, "sequence": 0.5, "rare": 2.0}


class Toy(nn.Module):
    """Eight rows of up to six tokens, three loss terms of three denominators, one unused layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.unused = nn.Linear(2, 2)
        draw = torch.Generator().manual_seed(1)
        self.x = torch.randn(8, 6, 4, generator=draw)
        self.mask = torch.arange(6) < torch.tensor([6, 1, 3, 5, 2, 0, 4, 6])[:, None]

    def loss(self, rows):
        values = self.body(self.x[rows]).squeeze(-1).square()
        mask = self.mask[rows]
        terms = {"token": over(values, mask), "sequence": per_sequence(values, mask)}
        if 3 in rows:
            terms["rare"] = Sum(values[rows.index(3)].sum(), torch.tensor(1))
        return terms

    def counts(self, rows):
        lengths = self.mask[rows].sum(-1)
        found = {"token": float(lengths.sum()), "sequence": float((lengths > 0).sum())}
        return found | ({"rare": 1.0} if 3 in rows else {})


def gradients(cut):
    """The gradient that the optimiser would see, by parameter, and the numbers of the step."""
    toy = Toy()
    step = Step(toy, SETTINGS, 1)
    seen = {}
    step.optimiser.step = lambda: seen.update(
        {name: None if p.grad is None else p.grad.flatten().tolist() for name, p in toy.named_parameters()}
    )
    numbers = step.step(cut, toy.loss, toy.counts, WEIGHTS)
    return seen, numbers


def largest_difference(one, other):
    assert one.keys() == other.keys()
    assert [n for n in one if one[n] is None] == [n for n in other if other[n] is None]
    pairs = ((a, b) for n in one if one[n] for a, b in zip(one[n], other[n]))
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize("name", ["2x4", "8x1", "uneven"])
def test_every_cut_has_the_gradient_of_the_whole(name):
    whole, numbers = gradients(CUTS["1x8"])
    parts, again = gradients(CUTS[name])
    assert max(abs(v) for v in whole["body.0.weight"]) > 1e-2, "a gradient of zero would prove nothing"
    assert largest_difference(whole, parts) < 1e-6
    assert again == pytest.approx(numbers, abs=1e-6)


def test_the_whole_has_the_gradient_of_the_formula():
    whole, _ = gradients(CUTS["1x8"])
    toy = Toy()
    values = toy.body(toy.x).squeeze(-1).square()
    rows = [values[i, : int(n)] for i, n in enumerate(toy.mask.sum(-1)) if n > 0]
    token = torch.cat(rows).mean()
    sequence = torch.stack([row.mean() for row in rows]).mean()
    (token + 0.5 * sequence + 2.0 * values[3].sum()).backward()
    direct = {name: None if p.grad is None else p.grad.flatten().tolist() for name, p in toy.named_parameters()}
    assert largest_difference(whole, direct) < 1e-6


class Task:
    """The toy as a supervised task and as an algorithm with one optimiser step per prompt."""

    name, weights, apart = "toy", WEIGHTS, {}

    def __init__(self):
        self.model = Toy()
        self.parts, self.optimisers = {"toy": self.model}, {"toy": FIT.optimiser}

    def collate(self, rows):
        return [row.index for row in rows]

    def counts(self, *part_and_batch):
        return self.model.counts(part_and_batch[-1])

    def loss(self, *part_and_batch):
        return self.model.loss(part_and_batch[-1])

    metrics = loss

    def collect(self, prompts, iteration):
        return self.collate(prompts)

    def mini_batches(self, experience, rng):
        return [[[index]] for index in experience]

    def after(self, experience):
        return {"prompts": len(experience)}

    def samples(self, experience):
        return [{"prompt": index} for index in Processes().gather(experience)]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def trained(folder, loop):
    """The weights after training in `folder`, by name, and the numbers at the end."""
    task, run = Task(), RunFolder(folder)
    if loop == "fit":
        metrics = fit(task, ROWS, ROWS, FIT, run, stage="toy").metrics
    else:
        metrics = run_online(task, ROWS, ONLINE, run, stage="toy").metrics
    return {name: p.flatten().tolist() for name, p in task.model.named_parameters()}, metrics


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes found, and the folder in which they trained."""
    folder = tmp_path_factory.mktemp("two")
    return [json.loads(text) for text in _two_processes(folder)], folder


def test_two_processes_have_the_gradient_of_one(two_processes):
    (first, second), _ = two_processes
    alone, numbers = gradients(CUTS["1x8"])
    for name, (seen, found) in first["gradients"].items():
        assert largest_difference(alone, seen) < 1e-6, name
        assert found == pytest.approx(numbers, abs=1e-6), name
    assert first["gradients"] == second["gradients"], "both processes see the same sums, to the bit"


def test_two_processes_train_as_one(tmp_path, two_processes):
    (first, second), _ = two_processes
    alone, metrics = trained(tmp_path, "fit")
    # Adam divides by the gradient's size, so a rounding of 1e-7 in a small gradient becomes 1e-5 of the rate.
    assert largest_difference(alone, first["fit"][0]) < 1e-5
    assert first["fit"][1] == pytest.approx(metrics, abs=1e-5)
    assert first["fit"] == second["fit"] == first["again"] == second["again"]


def test_two_processes_with_uneven_shares_stay_together(two_processes):
    (first, second), folder = two_processes
    assert first["online"][0] == second["online"][0]
    samples = [json.loads(line) for line in (folder / "online" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1] * 5 + [2] * 5
    rows = (folder / "online" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2, "only the first process writes"


def _two_processes(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    base |= {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return outputs


def _as_one_of_two(folder):
    processes = Processes()
    shares = {
        "equal": [[[0, 1, 2, 3]], [[4, 5], [6, 7]]],
        "uneven": [[[5, 3, 1], [0]], [[2], [4], [6], [7]]],
        "all on one": [[], [[0, 1, 2, 3, 4, 5, 6, 7]]],
    }
    assert processes.size == 2
    assert processes.shard(list(range(5))) == [[0, 1], [2, 3, 4]][processes.rank]
    assert processes.gather(processes.shard(list(range(5)))) == [0, 1, 2, 3, 4]
    assert processes.add_up([{"a": 1.0}] if processes.rank else []) == {"a": 1.0}
    assert processes.any(processes.rank == 1)
    assert not processes.any(False)
    torch.manual_seed(processes.rank)
    head = nn.Linear(2, 1)
    Step(head, SETTINGS, 1)
    assert len(set(processes.gather([tuple(head.weight.flatten().tolist())]))) == 1, "one head for all"
    found = {"gradients": {name: gradients(share[processes.rank]) for name, share in shares.items()}}
    found["fit"] = trained(folder / "fit", "fit")
    found["again"] = trained(folder / "fit", "fit")  # finished, so this loads the checkpoint on both
    found["online"] = trained(folder / "online", "online")
    print(json.dumps(found))


if __name__ == "__main__":
    _as_one_of_two(Path(sys.argv[1]))

"""Killed at any instant and begun again, a run is the run that was never killed: weights, rows, to the bit.

Run as a script, this file is one run, `test_resume.py KIND FOLDER PAUSE`: it prints `ready` in its first step
and a digest of its weights at the end.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.reduce import Sum

KINDS = ("supervised", "online")
OPTIMISER = OptimiserSettings(learning_rate=0.01)


class Recipe(Settings):
    fit: FitSettings = FitSettings(
        epochs=4, batch_size=5, micro_tokens=40, optimiser=OPTIMISER, eval_every=7, checkpoint_every=3, seed=3
    )
    online: OnlineSettings = OnlineSettings(
        iterations=24, prompts_per_iteration=4, inner_epochs=2, checkpoint_every=2, sample_every=3, seed=3
    )


class Aging(nn.Module):
    """Grows with every training batch it has seen; the number is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += self.training
        return x * (1 + 0.01 * self.seen.item())


def network():
    return nn.Sequential(nn.Linear(3, 16), Aging(), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


class Noisy:
    """Both a task and an algorithm; draws from every random state, and carries a window of its own."""

    name, weights, apart = "noisy", {}, {}

    def __init__(self, pause):
        torch.manual_seed(0)
        self.parts = {"policy": network(), "critic": network()}
        self.model = self.parts["policy"]
        self.optimisers = dict.fromkeys(self.parts, OPTIMISER)
        self.window, self.pause, self.ready = [], pause, False

    def collate(self, rows):
        if not self.ready:
            print("ready", flush=True)
            self.ready = True
        time.sleep(self.pause)
        noise = random.random() + np.random.rand() + torch.rand(1).item()  # noqa: NPY002
        return SimpleNamespace(x=torch.stack([row.x for row in rows]) + noise)

    def counts(self, *part_and_batch):
        return {"square": float(len(part_and_batch[-1].x))}

    def loss(self, *part_and_batch):
        *part, batch = part_and_batch  # an algorithm is asked for a part, a task is not
        module = self.parts[part[0]] if part else self.model
        return {"square": Sum((module(batch.x) - batch.x[:, :1]).square().sum(), torch.tensor(len(batch.x)))}

    def metrics(self, batch):
        return self.loss(batch)

    def collect(self, prompts, iteration):
        batch = self.collate(prompts)
        self.window = [*self.window[-3:], batch.x.mean().item()]
        return batch

    def mini_batches(self, experience, rng):
        order = torch.randperm(len(experience.x), generator=rng)
        return [[SimpleNamespace(x=experience.x[part])] for part in order.split(2)]

    def after(self, experience):
        return {"window": sum(self.window)}

    def samples(self, experience):
        return [{"prompt": experience.x[0].tolist()}]

    def state_dict(self):
        return {"window": self.window}

    def load_state_dict(self, state):
        self.window = state["window"]


def main(kind, folder, pause):
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(9)
    rows = [SimpleNamespace(x=torch.randn(3, generator=draw), length=3 + i % 7) for i in range(30)]
    recipe = Recipe()
    run, toy = RunFolder(folder, recipe), Noisy(pause)
    if kind == "supervised":
        fit(toy, rows, rows[:6], recipe.fit, run, stage="toy")
    else:
        run_online(toy, rows, recipe.online, run, stage="toy")
    digest = hashlib.sha256()
    for part in toy.parts.values():
        for value in part.state_dict().values():
            digest.update(value.numpy().tobytes())
    print(digest.hexdigest())


def start(kind, folder, pause=0.0):
    command = [sys.executable, __file__, kind, str(folder), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split()[-1]


def written(folder):
    """All rows and samples without their seconds."""
    files = [folder / name for name in ("metrics.jsonl", "samples.jsonl")]
    rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Digest and rows of one undisturbed run of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    started = {kind: start(kind, folder) for kind, folder in folders.items()}
    return {kind: (finish(started[kind]), written(folders[kind])) for kind in KINDS}


def break_off(kind, folder, how, delay):
    """Begin the run and send it the signal `how`, `delay` seconds into its first step; return it, ended."""
    process = start(kind, folder, pause=0.02)
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(how)
    process.wait(timeout=60)
    return process


@pytest.mark.parametrize("kind, polite", [("supervised", signal.SIGTERM), ("online", signal.SIGINT)])
def test_a_run_killed_and_then_stopped_equals_the_uninterrupted_one(tmp_path, uninterrupted, kind, polite):
    killed = break_off(kind, tmp_path, signal.SIGKILL, 0.25)
    assert killed.returncode == -signal.SIGKILL, "the run was over before it was killed"
    stopped = break_off(kind, tmp_path, polite, 0.15)
    assert stopped.returncode == 1, "a RunError, since this script has no command line around it"
    assert f"RunError: toy: stopped by {polite.name} at step " in stopped.stderr.read()
    assert finish(start(kind, tmp_path)) == uninterrupted[kind][0]
    assert written(tmp_path) == uninterrupted[kind][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_many_times_equals_the_uninterrupted_one(tmp_path, uninterrupted, kind):
    moments = random.Random(2)
    died = [break_off(kind, tmp_path, signal.SIGKILL, moments.uniform(0.02, 0.3)) for _ in range(8)]
    assert any(process.returncode == -signal.SIGKILL for process in died)
    assert finish(start(kind, tmp_path)) == uninterrupted[kind][0]
    assert written(tmp_path) == uninterrupted[kind][1]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))

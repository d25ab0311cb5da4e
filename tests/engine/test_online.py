"""The online loop: which prompts, which order of calls, and what is written."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online, take
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum

OPTIMISER = OptimiserSettings(learning_rate=0.1, schedule="linear", warmup_ratio=0.0)


class Toy:
    """Policy and critic are numbers that follow the prompts; the critic rests in the first iteration."""

    weights = {"follow": 1.0}
    apart = {}

    def __init__(self):
        self.parts = {name: nn.Linear(1, 1, bias=False) for name in ("policy", "critic")}
        for part in self.parts.values():
            part.weight.data.zero_()
        self.optimisers = dict.fromkeys(self.parts, OPTIMISER)
        self.multiplier, self.calls = 1.0, []

    def collect(self, prompts, iteration):
        self.multiplier *= 2
        self.calls.append(("collect", list(prompts), iteration))
        return SimpleNamespace(prompts=list(prompts), iteration=iteration)

    def mini_batches(self, experience, rng):
        order = torch.randperm(len(experience.prompts), generator=rng).tolist()
        self.calls.append(("order", order))
        batches = [
            SimpleNamespace(y=torch.tensor([[float(experience.prompts[i])]]), iteration=experience.iteration)
            for i in order
        ]
        return [batches[:2], batches[2:]]

    def counts(self, part, batch):
        return {} if part == "critic" and batch.iteration == 1 else {"follow": 1.0}

    def loss(self, part, batch):
        if not self.counts(part, batch):
            return {}
        self.calls.append((part, batch.y.item()))
        error = (self.parts[part](torch.ones(1, 1)) - batch.y).square()
        return {"follow": Sum(error.sum(), torch.tensor(1))}

    def after(self, experience):
        self.calls.append(("after",))
        return {"multiplier": self.multiplier}

    def samples(self, experience):
        return [{"prompt": prompt, "response": "yes"} for prompt in experience.prompts[:1]]

    def state_dict(self):
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state):
        self.multiplier = state["multiplier"]


def read(run, name):
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


def test_the_loop_collects_learns_with_every_part_and_looks_back(tmp_path):
    algorithm, run = Toy(), RunFolder(tmp_path)
    settings = OnlineSettings(iterations=2, prompts_per_iteration=4, inner_epochs=2, sample_every=2)
    result = run_online(algorithm, [1, 2, 3, 4], settings, run, stage="policy")
    kinds = [call[0] for call in algorithm.calls]
    once = ["order"] + ["policy"] * 4
    twice = ["order"] + (["policy"] * 2 + ["critic"] * 2) * 2
    assert kinds == ["collect", *once, *once, "after", "collect", *twice, *twice, "after"]
    assert result.iterations == 2
    rows = read(run, "metrics.jsonl")
    assert [(row["stage"], row["step"], row["multiplier"]) for row in rows] == [
        ("policy", 1, 2.0),
        ("policy", 2, 4.0),
    ]
    assert rows[0]["critic/empty"] == 1.0
    assert "critic/follow" not in rows[0]
    assert {"policy/follow", "policy/grad_norm", "policy/lr", "critic/follow"} <= rows[1].keys()
    assert [row["policy/lr"] for row in rows] == pytest.approx([0.1, 0.05]), "one schedule step per iteration"
    (sample,) = read(run, "samples.jsonl")
    assert sample == {
        "stage": "policy",
        "step": 2,
        "prompt": algorithm.calls[-2 * 9 - 2][1][0],
        "response": "yes",
    }


def test_every_inner_epoch_has_its_own_order(tmp_path):
    algorithm = Toy()
    settings = OnlineSettings(iterations=3, prompts_per_iteration=6, inner_epochs=2)
    run_online(algorithm, range(6), settings, RunFolder(tmp_path), stage="policy")
    orders = [tuple(call[1]) for call in algorithm.calls if call[0] == "order"]
    assert len(orders) == len(set(orders)) == 6


def test_prompts_come_in_reshuffled_epochs_and_never_twice_in_one_iteration():
    taken = [take(7, 3, number, seed=4) for number in range(6)]
    for first, second in zip(taken[::2], taken[1::2]):
        assert len(set(first + second)) == 6
    assert taken[:2] != taken[2:4]
    assert taken == [take(7, 3, number, seed=4) for number in range(6)]
    assert taken != [take(7, 3, number, seed=5) for number in range(6)]
    assert {i for portion in (take(7, 3, n, 4) for n in range(40)) for i in portion} == set(range(7))


def test_without_a_stream_the_order_is_what_it_always_was():
    order = torch.randperm(7, generator=generator(4, 1)).tolist()
    assert [take(7, 3, number, 4) for number in (2, 3)] == [order[:3], order[3:6]]
    streams = [tuple(take(7, 7, 0, 4, *stream)) for stream in ((), (0,), (1,))]
    assert len(set(streams)) == 3


def test_a_run_takes_the_prompts_it_is_told_to(tmp_path):
    told, usual = Toy(), Toy()
    settings = OnlineSettings(iterations=3, prompts_per_iteration=2, seed=5)
    run_online(
        told, range(6), settings, RunFolder(tmp_path / "a"), stage="x", choose=lambda number: [number, 5 - number]
    )
    assert [call[1] for call in told.calls if call[0] == "collect"] == [[0, 5], [1, 4], [2, 3]]
    run_online(usual, range(6), settings, RunFolder(tmp_path / "b"), stage="x")
    assert [call[1] for call in usual.calls if call[0] == "collect"] == [take(6, 2, number, 5) for number in range(3)]


def test_too_few_prompts_are_an_error(tmp_path):
    with pytest.raises(UserError, match="policy: prompts_per_iteration is 4 and only 3 prompts are given"):
        run_online(Toy(), [1, 2, 3], OnlineSettings(prompts_per_iteration=4), RunFolder(tmp_path), stage="policy")


def test_every_process_needs_a_prompt(tmp_path):
    run = RunFolder(tmp_path)
    run.processes.size = 3
    with pytest.raises(UserError, match="prompts_per_iteration is 2 and there are 3 processes, each of which answers"):
        run_online(Toy(), range(6), OnlineSettings(prompts_per_iteration=2), run, stage="policy")


def test_a_finished_stage_is_only_loaded_with_the_algorithms_state(tmp_path):
    settings = OnlineSettings(iterations=2, prompts_per_iteration=4)
    first, again = Toy(), Toy()
    result = run_online(first, [1, 2, 3, 4], settings, RunFolder(tmp_path), stage="policy")
    assert run_online(again, [1, 2, 3, 4], settings, RunFolder(tmp_path), stage="policy") == result
    assert again.calls == []
    assert again.multiplier == first.multiplier == 4.0
    for name, part in first.parts.items():
        assert torch.equal(part.weight, again.parts[name].weight)

"""A run that is killed at every boundary and begun again with new objects is the run never killed: to the bit."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.monitor import Monitor, MonitorSettings
from holdfast.training.policy import Limits
from holdfast.training.pretraining import PretrainSettings, pretrain_critics
from holdfast.training.ptx import PtxRows
from holdfast.training.sft import imitation_rows

OPTIMISER = OptimiserSettings(learning_rate=0.01, warmup_ratio=0.25)
LIMIT = {"measure": "logit", "threshold": -0.2, "c1": 1.0, "window": 40, "floor": 0.05, "rate": 0.5}
CHATS = [("sea ?", "dark sea"), ("dark sky ?", "red"), ("bright ?", "blue green red"), ("red ?", "sky")]


class Recipe(Settings):
    online: OnlineSettings = OnlineSettings(
        iterations=4, prompts_per_iteration=4, inner_epochs=2, checkpoint_every=1, sample_every=1, seed=3
    )
    # It ends by its rule, which must remember the losses of the processes before.
    pretrain: PretrainSettings = PretrainSettings(max_iterations=6, min_iterations=3, window=1, plateau=0.9)
    ppo: ActorCriticSettings = ActorCriticSettings(
        score={"transform": "norm", "clip": 1.0, "per_source": True, "exclude_truncated": False},
        kl={"coef": 0.1, "control": "adaptive", "target": 0.1, "horizon": 200},
        advantage={"normalise": "minibatch", "clip": 2.0},
        surrogate={"loss_mean": "token", "dual_clip": 3.0, "entropy": 0.01},
        ptx=0.5,
        steps_per_experience=2,
    )


class PowerCut(Exception):
    """What ends a process."""


def ppo(made, critics="apart"):
    """A method with all that has a state, and the monitor that watches it."""
    made.collector = replace(made.collector, group_of=lambda prompt: prompt.messages[-1].text.split()[0])
    limits = Limits(
        [
            Constraint(ConstraintSettings(**LIMIT, rule="pid")),
            Constraint(ConstraintSettings(**(LIMIT | {"name": "words", "score": "reward"}), rule="log", critic=False)),
        ]
    )
    parts = made.critics if critics == "apart" else {"value": HeadsOnPolicy(made.policy, ("value", "value/harm"))}
    optimisers = {"policy": OPTIMISER, "critic": OPTIMISER}
    chats = [Conversation.ask(question).answer(answer) for question, answer in CHATS]
    rows = PtxRows(imitation_rows(chats, made.template), made.template.pad_id, seed=1)
    method = ActorCritic(made.collector, parts, Recipe().ppo, optimisers, limits, ptx=rows)
    # Signs that come on at a touch, so that the monitor raises the weight of the KL during the run.
    thresholds = {"spread_high": 1.01, "tail_high": 1.01, "nll_low": 0.99, "distinct_low": 0.99}
    settings = MonitorSettings(on_warn="raise_kl", baseline=1, patience=1, thresholds=thresholds, keep_every=1)
    return method, Monitor(settings, method.kl)


def leave_one_out(made):
    limits = Limits([Constraint(ConstraintSettings(**LIMIT))])
    return LeaveOneOut(made.collector, LeaveOneOutSettings(steps_per_experience=2, seed=5), OPTIMISER, limits), None


def go(bench, build, folder, pretrain, last=None):
    """One process: it goes on where the folder stands, and dies when it is about to begin `last`."""
    made, recipe = bench(k=4), Recipe()
    method, monitor = build(made)
    inner, begun = method.collector.collect, []

    def collect(prompts, seed):
        begun.append(seed)
        if last is not None and len(begun) > last:
            raise PowerCut
        return inner(prompts, seed)

    method.collector = SimpleNamespace(**vars(method.collector), collect=collect)
    run = RunFolder(folder, recipe)
    if pretrain:
        pretrain_critics(method, made.prompts, recipe.pretrain, recipe.online, run, monitor)
    result = run_online(method, made.prompts, recipe.online, run, stage="policy", guard=monitor)
    return method, monitor, lasting(result.metrics)


def lasting(row):
    """The numbers of a row that a second run would give again."""
    return {name: value for name, value in row.items() if name != "seconds" and not name.startswith("seconds/")}


def written(folder, name):
    return [lasting(json.loads(line)) for line in (folder / name).read_text().splitlines()]


def assert_same(one, other, folders):
    assert one[0].state_dict() == other[0].state_dict()
    assert (one[1] and one[1].state_dict()) == (other[1] and other[1].state_dict())
    assert one[2] == other[2]
    for name, part in one[0].parts.items():
        for key, value in part.state_dict().items():
            assert torch.equal(other[0].parts[name].state_dict()[key], value), (name, key)
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = written(folders[0], name)
        assert rows
        assert written(folders[1], name) == rows


def assert_everything_moved(method, monitor, last):
    """Whatever has a state is no longer where it began, or taking it up again would prove nothing."""
    state = method.state_dict()
    assert all(len(state["limits"][name]["window"]) == 40 for name in ("harm", "words"))
    assert all(state["limits"][name]["multiplier"] != 1.0 for name in ("harm", "words"))
    assert len(state["scores"]) > 1
    assert state["kl"]["steered"] != 0.1
    assert state["kl"]["factor"] > 1
    # Sixteen answers, seen twice in each of four iterations.
    assert state["ptx"]["taken"] == 16 * 2 * 4
    assert monitor.state_dict()["factor"] > 1
    assert {"kl_coef", "policy/ptx", "policy/entropy", "alarm/level"} <= last.keys()


def test_ppo_killed_at_every_boundary(tmp_path, bench):
    whole = go(bench, ppo, tmp_path / "whole", pretrain=True)
    killed = 0
    while True:  # every process does one iteration and dies
        try:
            parts = go(bench, ppo, tmp_path / "parts", pretrain=True, last=1)
            break
        except PowerCut:
            killed += 1
    assert killed == 6, "three iterations of the critics and four of the policy, the last of which ends the run"
    assert_same(whole, parts, (tmp_path / "whole", tmp_path / "parts"))
    assert_everything_moved(*whole)
    rows = written(tmp_path / "whole", "metrics.jsonl")
    assert [(row["stage"], row["step"]) for row in rows] == [
        *(("critics", n) for n in (1, 2, 3)),
        *(("policy", n) for n in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize("build", [leave_one_out, lambda made: ppo(made, "on the policy")], ids=["loo", "heads"])
def test_other_methods_killed_in_the_middle(tmp_path, bench, build):
    whole = go(bench, build, tmp_path / "whole", pretrain=False)
    with pytest.raises(PowerCut):
        go(bench, build, tmp_path / "parts", pretrain=False, last=2)
    parts = go(bench, build, tmp_path / "parts", pretrain=False)
    assert_same(whole, parts, (tmp_path / "whole", tmp_path / "parts"))

"""Four iterations are two, an interruption, new objects, and two more: to the bit."""

import json

import pytest
import torch

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

OPTIMISER = OptimiserSettings(learning_rate=0.01, warmup_ratio=0.25)


class Recipe(Settings):
    online: OnlineSettings = OnlineSettings(
        iterations=4, prompts_per_iteration=4, inner_epochs=2, checkpoint_every=2, sample_every=1, seed=3
    )


class PowerCut(Exception):
    """What ends the first half."""


def algorithm(kind, made, rule):
    settings = ConstraintSettings(measure="logit", threshold=-0.2, c1=1.0, window=40, rule=rule, floor=0.05, rate=0.5)
    limits = Limits([Constraint(settings)])
    if kind == "leave_one_out":
        return LeaveOneOut(made.collector, LeaveOneOutSettings(steps_per_experience=2, seed=5), OPTIMISER, limits)
    optimisers = {"policy": OPTIMISER, "critic": OPTIMISER}
    return ActorCritic(made.collector, made.critics, ActorCriticSettings(steps_per_experience=2), optimisers, limits)


def go(method, folder, prompts):
    recipe = Recipe()
    return run_online(method, prompts, recipe.online, RunFolder(folder, recipe), stage="policy")


def written(folder, name):
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize(
    "kind, rule", [("leave_one_out", "projected"), ("actor_critic", "pid"), ("actor_critic", "log")]
)
def test_an_interrupted_run_is_the_run_never_interrupted(tmp_path, bench, kind, rule):
    made = bench(k=4)
    whole = algorithm(kind, made, rule)
    result = go(whole, tmp_path / "whole", made.prompts)

    first = algorithm(kind, bench(k=4), rule)
    inner = first.collect

    def cut(prompts, iteration):
        if iteration == 3:
            raise PowerCut
        return inner(prompts, iteration)

    first.collect = cut
    with pytest.raises(PowerCut):
        go(first, tmp_path / "parts", made.prompts)
    second = algorithm(kind, bench(k=4), rule)
    assert go(second, tmp_path / "parts", made.prompts) == result

    assert second.state_dict() == whole.state_dict()
    assert len(whole.state_dict()["limits"]["harm"]["window"]) == 40
    assert whole.state_dict()["limits"]["harm"]["multiplier"] != 1.0
    for name, part in whole.parts.items():
        for key, value in part.state_dict().items():
            assert torch.equal(second.parts[name].state_dict()[key], value), (name, key)
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = written(tmp_path / "whole", name)
        assert rows
        assert written(tmp_path / "parts", name) == rows
    assert len(written(tmp_path / "whole", "metrics.jsonl")) == 4

"""Does PPO-max keep what PPO loses when its reward is only a learned guess, and does the detector tell them apart?

Claim (Secrets of RLHF, part I, arXiv 2307.04964): plain PPO collapses on an imperfect reward model, which goes on
praising it; tricks on the score alone do not prevent that; a KL penalty in units of the normalised score, with critic
pretraining and value clipping, does; length, spread of scores, certainty and KL show it in time.

World: `ppo_max_world.py`, with a true judge (gold) beside the learned one (proxy) that is the reward. A policy of two
layers imitates usual answers, then learns 60 iterations of 128 answers in four steps, all arms with the one trainer;
the table `ARMS` says in what they differ. Before and after, a policy is judged by its answers to the same 1,024
prompts. A run is *below* in the first iteration whose mean gold is .3 under that of the imitating policy; WATCH and
WARN are the first iterations at that level of the detector, with its thresholds as they come. Seeds 0-4. Nothing was
chosen by results; all arms were seen before on seed 99, and 20 iterations of `vanilla` with an earlier trainer on 0.

Criteria, written down before the first run of the study:

* vanilla_collapses: in at least 4 of 5 seeds `vanilla` ends with gold at most that of imitation less 2, a proxy at
  least 5 higher, and at least .8 of its answers truncated;
* ppo_max_holds: in at least 4 of 5 seeds `ppo_max` ends with gold at least .3 above imitation, and in no iteration
  are answers 1.8 times as long or are .1 of them truncated;
* norm_only_collapses: in at least 4 of 5 seeds `norm_only` ends with gold at most that of imitation less 2;
* warned_in_time: in every run that falls below, WARN comes at most 2 iterations later (`rollback` apart: it is
  `vanilla` until WARN);
* no_false_warning: no run of `ppo_max` or `kl_hi` has a WARN;
* rollback_holds: in at least 4 of 5 seeds `rollback` ends with gold at least that of imitation less .3.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.experience import Collector, Experience, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sampling
from holdfast.stats import estimate
from holdfast.studies import ppo_max_world as world
from holdfast.studies.common import criterion, findings, interval, markdown
from holdfast.systems.stages import frozen_reference
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.monitor import Monitor, MonitorSettings
from holdfast.training.policy import Limits
from holdfast.training.pretraining import PretrainSettings, pretrain_critics
from holdfast.training.sft import SftTask, imitation_rows

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "plain PPO collapses on a learned reward, PPO-max does not, and a detector tells them apart in time"
SOURCE = "Secrets of RLHF, part I, arXiv 2307.04964"
FALL = 0.3

Item, Result = TypeVar("Item"), TypeVar("Result")


class Arm(Settings):
    """In what a way of training differs from plain PPO; the defaults are plain PPO."""

    transform: Literal["none", "norm"] = "none"
    """Raw scores, or those less their running mean and over their running standard deviation."""
    clip: float | None = None
    """Transformed scores are cut at plus and minus this."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL to the imitating policy, in units of the transformed score."""
    value_clip: float | None = None
    """How far a value may move before its error stops to count."""
    pretrain: int = Field(0, ge=0)
    """Iterations in which only the critic learns."""
    on_warn: Literal["log", "rollback"] = "log"
    """What the detector does."""


ARMS = {
    "vanilla": Arm(),
    "norm_only": Arm(transform="norm", clip=0.8),
    "kl_only": Arm(kl=0.05),
    "kl_hi": Arm(kl=0.5),
    "ppo_max": Arm(transform="norm", clip=0.8, kl=0.05, value_clip=0.2, pretrain=10),
    "rollback": Arm(on_warn="rollback"),
}
HEALTHY = ("ppo_max", "kl_hi")


def _rate(learning_rate: float, schedule: Literal["constant", "linear"] = "constant") -> OptimiserSettings:
    return OptimiserSettings(learning_rate=learning_rate, schedule=schedule, warmup_ratio=0.0)


class Plan(Settings):
    """What all arms share, and the arm."""

    seed: int = 0
    """Everything follows from it."""
    arm: Arm = Arm()
    """How this run trains."""
    pairs: int = 4000
    """Pairs from which the proxy is learned."""
    imitated: int = 4800
    """Usual answers to imitate."""
    sft: FitSettings = FitSettings(epochs=4, batch_size=64, optimiser=_rate(3e-3, "linear"))
    """Imitation: 300 steps."""
    policy: OptimiserSettings = _rate(5e-4)
    """The policy's optimiser."""
    critic: OptimiserSettings = _rate(1.65e-3)
    """The critic's; 3.3 times the policy's rate, as in the paper."""
    iterations: int = 60
    """Times experience is collected and learned from."""
    answers: int = 128
    """Answers of an iteration, learned from in four steps."""
    asked: int = 1024
    """Prompts by which a run is judged before and after."""


QUICK = Plan(pairs=500, imitated=640, iterations=6, asked=128)


class Bench(NamedTuple):
    """What the arms of a seed share; start: how the imitating policy is judged."""

    template: Template
    policy: nn.Module
    proxy: world.Proxy
    start: dict[str, estimate.Estimate]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all arms for the seeds, resuming arms that are finished; return the result."""
    plan, place = (QUICK, folder / "quick") if quick else (Plan(), folder / "full")
    found = side_by_side(partial(one_seed, place, plan, tuple(ARMS)), seeds)
    arms = {name: [each[name] for each in found] for name in ARMS}
    return findings("ppo_max", CLAIM, SOURCE, criteria(arms), arms, seeds, plan)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], processes: int = 2) -> list[Result]:
    """What `work` gives for each item, in order; several items are spread over processes of one thread each."""
    if len(items) == 1:
        return [work(items[0])]
    # Networks this small gain nothing from a second thread, so a core each is twice as fast.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))


def one_seed(folder: Path, plan: Plan, arms: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """The summaries of the arms of one seed; what they share is made once."""
    found, bench = {}, None
    for name in arms:
        own = plan.model_copy(update={"seed": seed, "arm": ARMS[name]})
        out = RunFolder(folder / f"seed-{seed}" / name, own)
        finished = out.path / "summary.json"
        if not finished.is_file():
            bench = bench or prepare(plan, seed, folder / f"seed-{seed}" / "shared")
            out.write_json("summary.json", {"arm": name, **train(own, bench, out)})
        found[name] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def prepare(plan: Plan, seed: int, folder: Path) -> Bench:
    """The proxy and the imitating policy of a seed."""
    plan = plan.model_copy(update={"seed": seed})
    rng = np.random.default_rng(seed)
    template = world.template()
    proxy = world.learn_proxy(plan.pairs, rng)
    rows = imitation_rows(world.answers(plan.imitated, rng), template)
    policy = tiny_policy(len(template.tokenizer), hidden=64, layers=2, heads=2, seed=seed)
    sft = plan.sft.model_copy(update={"seed": seed})
    fit(SftTask(policy, template.pad_id), rows, [], sft, RunFolder(folder, plan), stage="sft")
    return Bench(template, policy, proxy, judged(plan, collect_from(policy, policy, template, proxy)))


def collect_from(policy: nn.Module, reference: nn.Module, template: Template, proxy: world.Proxy) -> Collector:
    """What samples one answer to each prompt, with the proxy as the only score."""
    generator = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    rollout = RolloutSettings(samples_per_prompt=1, sampling=Sampling(max_new_tokens=world.LIMIT))
    return Collector(policy, frozen_reference(reference), generator, template, proxy, rollout)


def judged(plan: Plan, collector: Collector) -> dict[str, estimate.Estimate]:
    """Gold, proxy, length and truncation of one answer to each of the prompts that judge."""
    asked = [world.prompts()[i] for i in np.random.default_rng(plan.seed).permutation(1024)[: plan.asked]]
    found = collector.collect(asked, seed=plan.seed + 1)
    return {
        "gold": estimate.mean([world.gold(one) for one in found.conversations]),
        "reward": estimate.mean(found.scores["reward"].tolist()),
        "length": estimate.mean(_lengths(found)),
        "truncated": estimate.rate(int(found.truncated.sum()), found.size),
    }


def _lengths(found: Experience) -> list[int]:
    return [row.length - row.prompt_length for row in found.rows]


def train(plan: Plan, bench: Bench, run_folder: RunFolder) -> dict[str, Any]:
    """Train one arm; return how its policy is judged before and after, and what happened on the way."""
    began = time.monotonic()
    policy = copy.deepcopy(bench.policy)
    collector = collect_from(policy, bench.policy, bench.template, bench.proxy)
    method = trainer(plan, collector)
    monitor = Monitor(MonitorSettings(on_warn=plan.arm.on_warn), method.kl)
    online = OnlineSettings(
        iterations=plan.iterations,
        prompts_per_iteration=plan.answers,
        checkpoint_every=0,
        sample_every=20,
        seed=plan.seed,
    )
    asked = world.prompts()
    if plan.arm.pretrain:
        pretrain = PretrainSettings(min_iterations=plan.arm.pretrain, max_iterations=plan.arm.pretrain)
        pretrain_critics(method, asked, pretrain, online, run_folder, monitor)
    run_online(method, asked, online, run_folder, stage="policy", guard=monitor)
    end = judged(plan, collector)
    start = bench.start
    return {
        "seed": plan.seed,
        "start": {name: value.to_dict() for name, value in start.items()},
        "end": {name: value.to_dict() for name, value in end.items()},
        **course(_rows(run_folder.path / "metrics.jsonl"), start["gold"].value),
        "proxy": asdict(bench.proxy),
        "seconds": round(time.monotonic() - began, 1),
    }


def trainer(plan: Plan, collector: Collector) -> ActorCritic:
    """The one trainer of all arms; its critic starts from the imitating policy with a head of zeros."""
    arm = plan.arm
    settings = ActorCriticSettings(
        score={"transform": arm.transform, "clip": arm.clip},
        kl=arm.kl,
        token_clamp=None,
        advantage={"lam_policy": 0.9, "lam_value": 0.9},
        surrogate={"clip": 0.2, "loss_mean": "token"},
        value_clip=arm.value_clip,
        steps_per_experience=4,
        seed=plan.seed,
    )
    critics = {"value": from_policy(collector.policy, ["value"])}
    return ActorCritic(collector, critics, settings, {"policy": plan.policy, "critic": plan.critic}, Limits([]), truth)


def truth(conversations: Sequence[Conversation]) -> dict[str, float]:
    """The mean gold of answers, for the log; nothing learns from it."""
    return {"gold": float(np.mean([world.gold(one) for one in conversations]))}


CURVES = ("gold", "reward", "length", "truncated", "nll", "kl", "explained_variance/value", "alarm/level")
WATCH, WARN = 1, 2


def course(rows: Sequence[Mapping[str, Any]], gold: float) -> dict[str, Any]:
    """What the rows of a run's log say: its curves, and when gold fell below that of imitation and alarms came.

    >>> row = dict.fromkeys(CURVES, 1.0) | {"step": 1}
    >>> found = course([row, row | {"step": 2, "gold": 0.6}], gold=1.0)
    >>> found["below"], found["watch"], found["warn"]
    (2, 1, None)
    """

    def first(met: Callable[[Mapping[str, Any]], bool]) -> int | None:
        return next((int(row["step"]) for row in rows if met(row)), None)

    return {
        "below": first(lambda row: row["gold"] < gold - FALL),
        "watch": first(lambda row: row["alarm/level"] >= WATCH),
        "warn": first(lambda row: row["alarm/level"] >= WARN),
        "curves": {name: [round(row[name], 4) for row in rows] for name in CURVES},
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a log that stand for iterations in which the policy learned."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["stage"] == "policy"]


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with the share of runs that meet it, and whether it holds."""
    fallen = [one for name, ones in arms.items() if name != "rollback" for one in ones if one["below"]]
    met = {
        "vanilla_collapses": [
            gain(one, "gold") <= -2 and gain(one, "reward") >= 5 and one["end"]["truncated"]["value"] >= 0.8
            for one in arms["vanilla"]
        ],
        "ppo_max_holds": [
            gain(one, "gold") >= FALL and longest(one) < 1.8 and max(one["curves"]["truncated"]) < 0.1
            for one in arms["ppo_max"]
        ],
        "norm_only_collapses": [gain(one, "gold") <= -2 for one in arms["norm_only"]],
        "warned_in_time": [in_time(one) for one in fallen],
        "no_false_warning": [one["warn"] is None for name in HEALTHY for one in arms[name]],
        "rollback_holds": [gain(one, "gold") >= -FALL for one in arms["rollback"]],
    }
    always = ("warned_in_time", "no_false_warning")
    return [criterion(name, found, 1.0 if name in always else 0.8) for name, found in met.items()]


def gain(one: Mapping[str, Any], name: str) -> float:
    """How much more of `name` a run has at its end than the imitating policy has."""
    return float(one["end"][name]["value"] - one["start"][name]["value"])


def longest(one: Mapping[str, Any]) -> float:
    """The mean length of answers in the worst iteration, in lengths of the imitating policy."""
    return float(max(one["curves"]["length"]) / one["start"]["length"]["value"])


def in_time(one: Mapping[str, Any]) -> bool:
    """Whether a run that fell below had its warning at most two iterations later."""
    return one["warn"] is not None and one["warn"] <= one["below"] + 2


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, one line per arm and seed: before -> after, and the iterations that matter."""
    columns = ("arm", "seed", "gold", "gold at the end", "proxy", "length", "truncated at the end")
    rows = []
    for name, ones in result["arms"].items():
        for one in ones:
            cells = [name, one["seed"], _change(one, "gold"), interval(one["end"]["gold"]), _change(one, "reward")]
            cells += [_change(one, "length"), f"{one['end']['truncated']['value']:.2f}"]
            rows.append([*cells, *(one[when] or "never" for when in ("below", "watch", "warn"))])
    return markdown([*columns, "below", "WATCH", "WARN"], rows)


def _change(one: Mapping[str, Any], name: str) -> str:
    return f"{one['start'][name]['value']:.2f} -> {one['end'][name]['value']:.2f}"

"""Does multi-objective GRPO improve all that it is paid for, and does a limit hold without weights to hunt for?

Claim (Multi-Objective GRPO, arXiv 2503.21819): one policy learns several attributes at once from a reward model with
one score for each, without a critic, and does not trade one away for another.

World: `mo_grpo_world.py`. A transformer of two layers and width 48 imitates 4,000 demonstrations. The reward model
starts from it and learns four scores, each with a sigmoid, from 6,000 answers, a third of them the policy's
(temperature 1.3), rated with a normal error of .1. GRPO: 80 steps of 32 prompts with 8 answers each, temperature 1,
AdamW at 5e-4, clip .2 and .28, mean over tokens, advantages within 5, and a KL of weight .02 in the loss (ratio x k3).
Everything is measured on 1,500 answers by the formulas of the world. Violation is the share of risky requests whose
answer is not perfectly safe, over-refusal that of benign ones that are refused, benign action the mean action on them.

Arms of a seed: `stn`, all four scores in equal shares, over the spread of their sum; `stn_gold`, the same on the true
labels; `stn_kl_reward`, with the KL (k1, .02) inside the reward; `gdpo`, each score on its own scale, then the batch;
`decoupled`, without the batch; `decoupled_floor`, with a least spread of .05; `dvao`; `safety_only`, `action_only`;
`lagrangian`: the mean of the three other scores under the limit that 1 - safe be .1 on risky requests, the multiplier
moved by exp(.3 (J - .1)) within .01 and 10, spreads at least .1; `lagrangian_no_floor`, without that least spread, to
show that the test can fail; `ppo`, with a critic, on the mean of the four scores; `dpo`, on pairs ordered by that mean,
of as many answers of the first policy.

Settings and criteria were found with a prototype, another program, on its seeds 0-2, by iteration: its first reward
model was exploited, its first multiplier ran away. Without a least spread it refused nearly every benign request. Here
seed 99 served to try `base`, `stn`, the two `lagrangian`, `ppo` and `dpo`; the models got a second layer there, with
which the reward model is as good as the prototype's. They were tried with scores without a link, as this project has
them elsewhere, and `lagrangian_no_floor` did not collapse (.52 of .53 benign action kept); with the sigmoids of the
prototype, whose small differences near 1 all point one way, it kept .09. The study has the prototype's.
Seeds 5-9 were never run before. Written down before the first run of the study:

* C1: over the seeds `stn` gains on the first policy in polite, in benign action and in safe, each with the 95 %
  interval of its mean gain (paired by seed, Student's t) above 0, and its meaning falls by at most .05 in the mean;
* C2: `safety_only` loses at least .4 of action in the mean;
* C3: in all seeds `lagrangian` ends with a violation of at most .1 and no less benign action than the first policy; and
  in at least 4 of 5 `lagrangian_no_floor` refuses at least .4 of benign requests or loses at least .4 of benign action;
* C4 is a table and no criterion: seconds, memory and tokens sampled, for GRPO, PPO and DPO.

How to read it: equal weights mean something else under every way of normalising, so a weaker arm is no refutation of
its method. The limit buys that one can state it. A toy shows mechanisms and says nothing about large models.
"""

import copy
import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.online import Algorithm, OnlineSettings, run_online
from holdfast.evaluate.policy import Exam, Outcome, examine
from holdfast.rollout.experience import Collector, Experience, RolloutSettings
from holdfast.stats.compare import paired_t
from holdfast.stats.estimate import Estimate, mean, proportion
from holdfast.studies.common import criterion, findings, interval, markdown
from holdfast.studies.mo_grpo_rivals import dpo, ppo
from holdfast.studies.mo_grpo_world import LABELS, SAMPLING, Bench, Lessons, World, optimiser, prepare, read
from holdfast.studies.safe_rlhf_world import sampler
from holdfast.systems.stages import frozen_reference
from holdfast.training.grpo import Grpo, GrpoSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

SEEDS = (5, 6, 7, 8, 9)
CLAIM = "multi-objective GRPO improves several attributes at once, and a limit replaces the hunt for weights"
SOURCE = "Multi-Objective GRPO, arXiv 2503.21819"
BETA, RATE, LIMIT = 0.02, 5e-4, 0.1
QUALITY = ("polite", "meaning", "action")


class Arm(NamedTuple):
    """How a policy is trained. floor: the least spread; limited: whether 1 - safe has a limit."""

    trainer: Literal["none", "grpo", "ppo", "dpo"] = "grpo"
    objectives: tuple[str, ...] = LABELS
    mode: str = "sum_then_normalise"
    floor: float = 0.0
    batch_normalise: bool = False
    limited: bool = False
    gold: bool = False
    kl: Literal["loss", "reward"] = "loss"

    @property
    def settings(self) -> GrpoSettings:
        """GRPO as the arm has it, its objectives in equal shares."""
        inside = {"coef": BETA} if self.kl == "reward" else {"coef": 0.0, "in_loss": BETA, "estimator": "ratio_k3"}
        return GrpoSettings(
            objectives={name: {"weight": 1 / len(self.objectives)} for name in self.objectives},
            scalarise={
                "mode": self.mode,
                "std_floor": self.floor,
                "eps": 1e-4,
                "batch_normalise": self.batch_normalise,
            },
            cost_floor=self.floor,
            kl=inside,
            loss={"clip": 0.2, "clip_high": 0.28, "mean": "token_mean"},
            overlong="none",
        )


STN = Arm()
LAGRANGIAN = Arm(objectives=QUALITY, limited=True, floor=0.1)
ARMS = {
    "base": Arm("none"),
    "stn": STN,
    "stn_gold": STN._replace(gold=True),
    "stn_kl_reward": STN._replace(kl="reward"),
    "gdpo": Arm(mode="normalise_then_sum", batch_normalise=True),
    "decoupled": Arm(mode="normalise_then_sum"),
    "decoupled_floor": Arm(mode="normalise_then_sum", floor=0.05),
    "dvao": Arm(mode="variance_weighted"),
    "safety_only": Arm(objectives=("safe",)),
    "action_only": Arm(objectives=("action",)),
    "lagrangian": LAGRANGIAN,
    "lagrangian_no_floor": LAGRANGIAN._replace(floor=0.0),
    "ppo": Arm("ppo"),
    "dpo": Arm("dpo"),
}


class Plan(Lessons):
    """How much of everything."""

    iterations: int = 80
    """Batches of answers the policy learns from."""
    prompts: int = 32
    """Prompts of a batch."""
    answers: int = 8
    """Answers to each."""
    exam: int = 1500
    """Prompts of the exam."""


def _fewer(lessons: Lessons) -> dict[str, Any]:
    few = {name: getattr(lessons, name).model_copy(update={"epochs": 2}) for name in ("imitation", "rating")}
    return few | {"demonstrations": 1024, "ratings": 900, "iterations": 3, "prompts": 8, "exam": 200}


QUICK = Plan(**_fewer(Lessons()))


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all arms for the seeds, taking up those that are finished; return the result."""
    plan = QUICK if quick else Plan()
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in seeds:
        for name, found in one_seed(plan, seed, folder / ("quick" if quick else "full") / f"seed-{seed}").items():
            arms[name].append(found)
    return findings("mo_grpo", CLAIM, SOURCE, criteria(arms), arms, seeds, plan)


def one_seed(plan: Plan, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What is measured of every arm; the models are trained when an arm first needs them."""
    bench, found = None, {}
    for name, arm in ARMS.items():
        out = RunFolder(folder / name, plan)
        finished = out.path / "summary.json"
        if not finished.is_file():
            bench = bench or prepare(plan, World(), seed, RunFolder(folder / "models", plan))
            out.write_json(finished.name, one_arm(plan, bench, arm, seed, out))
        found[name] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def one_arm(plan: Plan, bench: Bench, arm: Arm, seed: int, out: RunFolder) -> dict[str, Any]:
    """Improve the first policy as the arm says, and examine what came of it."""
    policy = copy.deepcopy(bench.policy)
    with memory() as used:
        began = time.monotonic()
        tokens = improve(plan, bench, arm, policy, seed, out)
        seconds = time.monotonic() - began
    rows = log(out)
    found = {"seed": seed, **measured(judge(plan, bench, policy, seed)), "recovered": bench.recovered}
    found |= {"multiplier": [round(row["multiplier/harm"], 4) for row in rows if "multiplier/harm" in row]}
    return found | {"tokens": tokens, "memory": used.get("peak"), "seconds": round(seconds, 2)}


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """`peak`: the MiB that the block took at most beyond what the process held before; empty where /proc is absent."""
    used: dict[str, float] = {}
    place = Path("/proc/self/clear_refs")
    if not place.is_file():
        yield used
        return
    gc.collect()
    # What was freed before must not serve the block unseen.
    ctypes.CDLL(None).malloc_trim(0)
    place.write_text("5", encoding="utf-8")
    before = _status("VmRSS")
    yield used
    used["peak"] = round((_status("VmHWM") - before) / 1024, 1)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def improve(plan: Plan, bench: Bench, arm: Arm, policy: nn.Module, seed: int, out: RunFolder) -> int:
    """Train `policy` in place; return how many tokens were sampled for it."""
    if arm.trainer == "none":
        return 0
    asked = bench.world.prompts(plan.prompts * plan.iterations, np.random.default_rng((seed, 1)))
    collector = collect_from(policy, bench, plan.answers, arm.gold)
    if arm.trainer == "dpo":
        return dpo(collector, asked, plan.iterations, RATE, seed, out)
    online = OnlineSettings(
        iterations=plan.iterations,
        prompts_per_iteration=plan.prompts,
        checkpoint_every=0,
        sample_every=0,
        seed=seed,
    )
    run_online(method(arm, collector, seed), asked, online, out, stage="policy")
    return round(sum(row["length"] for row in log(out)) * plan.prompts * plan.answers)


def log(out: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run's log; none without training."""
    file = out.path / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def method(arm: Arm, collector: Collector, seed: int) -> Algorithm:
    """The online method of an arm."""
    if arm.trainer == "ppo":
        return ppo(collector, RATE, BETA, seed)
    limits = RiskyLimits([Constraint(constraint())] if arm.limited else [])
    return Grpo(collector, arm.settings.model_copy(update={"seed": seed}), optimiser(RATE), limits)


def constraint() -> ConstraintSettings:
    """The limit on what answers to risky requests lack in safety; its window holds about one batch of them."""
    return ConstraintSettings(
        measure="logit",
        threshold=LIMIT,
        bound="mean",
        critic=False,
        rule="mirror",
        rate=0.3,
        floor=0.01,
        ceiling=10.0,
        window=128,
    )


class RiskyLimits(Limits):
    """Limits that look at risky requests alone; the one multiplier meets every answer."""

    def observe(self, experience: Experience, move: bool = True) -> dict[str, float]:
        """Add the costs of risky requests to the windows, and move the multipliers."""
        risky = [i for i, group in enumerate(experience.groups) if group == "risky"]
        scores = {name: values[risky] for name, values in experience.scores.items()}
        return super().observe(replace(experience, scores=scores), move)


def collect_from(policy: nn.Module, bench: Bench, answers: int, gold: bool = False) -> Collector:
    """What samples the policy's answers and gives them the four scores, their mean, and the cost 1 - safe."""
    scorer = bench.truth if gold else bench.judge

    def score(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        table = scorer.score(conversations)
        labels = dict(zip(LABELS, table.unbind(-1), strict=True))
        return {**labels, "cost": 1 - labels["safe"], "reward": table.mean(-1)}

    return Collector(
        policy,
        frozen_reference(bench.policy),
        sampler(policy, bench.template),
        bench.template,
        score,
        RolloutSettings(samples_per_prompt=answers, sampling=SAMPLING),
        group_of=lambda prompt: prompt.source,
    )


def judge(plan: Plan, bench: Bench, policy: nn.Module, seed: int) -> Outcome:
    """The policy's answers to the exam, with learned and true labels."""
    exam = Exam(
        prompts=bench.world.prompts(plan.exam, np.random.default_rng((seed, 2))),
        template=bench.template,
        sampling=SAMPLING,
        scorer=bench.judge,
        truth=bench.truth,
        seed=seed,
    )
    return examine(exam, sampler(policy, bench.template), policy, frozen_reference(bench.policy))


def measured(outcome: Outcome) -> dict[str, Any]:
    """What the study reads of an exam, each with its interval."""
    said = [read(one) for one in outcome.conversations]
    risky = np.array([one.risky for one in said])
    truth = {name: values.numpy() for name, values in outcome.truth.items()}
    found: dict[str, Estimate] = {name: mean(truth[name]) for name in LABELS}
    found["violation"] = proportion(truth["safe"][risky] < 1)
    found["benign action"] = mean(truth["action"][~risky])
    found["over-refusal"] = proportion(np.array([one.refuses for one in said])[~risky])
    found |= {f"learned {name}": mean(values.numpy()) for name, values in outcome.scores.items()}
    found["kl"] = mean(outcome.kl.numpy())
    return {name: one.to_dict() for name, one in found.items()}


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with what was measured of it, and whether it holds."""

    def values(arm: str, what: str) -> list[float]:
        return [one[what]["value"] for one in arms[arm]]

    def change(name: str, arm: str, what: str, holds: Callable[[Estimate], bool], needed: str) -> dict[str, Any]:
        if len(arms[arm]) < 2:  # a single seed has no interval
            return criterion(name, [], 1.0)
        found = paired_t(values(arm, what), values("base", what)).difference
        return {"name": name, "holds": holds(found), **found.to_dict(), "needed": needed}

    acts = values("base", "benign action")
    lost = [before - now for before, now in zip(acts, values("lagrangian", "benign action"), strict=True)]
    bare = [before - now for before, now in zip(acts, values("lagrangian_no_floor", "benign action"), strict=True)]
    kept = [v <= LIMIT and less <= 0 for v, less in zip(values("lagrangian", "violation"), lost, strict=True)]
    refused = values("lagrangian_no_floor", "over-refusal")
    collapsed = [max(share, less) >= 0.4 for share, less in zip(refused, bare, strict=True)]
    return [
        change("C1_polite", "stn", "polite", lambda gain: gain.low > 0, "low > 0"),
        change("C1_benign_action", "stn", "benign action", lambda gain: gain.low > 0, "low > 0"),
        change("C1_safe", "stn", "safe", lambda gain: gain.low > 0, "low > 0"),
        change("C1_meaning", "stn", "meaning", lambda gain: gain.value >= -0.05, "mean >= -0.05"),
        change("C2_one_axis", "safety_only", "action", lambda gain: gain.value <= -0.4, "mean <= -0.4"),
        criterion("C3_limit_kept", kept, 1.0),
        criterion("C3_no_floor_collapses", collapsed, 0.8),
    ]


SHOWN = (*LABELS, "violation", "benign action", "over-refusal")


def table(result: Mapping[str, Any]) -> str:
    """The result as two Markdown tables, mean and range over the seeds: what answers are, and what they cost."""
    arms = result["arms"]
    rows = []
    for name, ones in arms.items():
        cells = [_range([one[what]["value"] for one in ones]) for what in SHOWN]
        last = _range([one["multiplier"][-1] for one in ones]) if ones[0]["multiplier"] else "-"
        rows.append([name, *cells, last])
    quality = markdown(["arm", *SHOWN, "last multiplier"], rows)
    costs = [[name, *_costs(arms[name])] for name in ("stn", "ppo", "dpo")]
    return quality + "\n\n" + markdown(["arm", "seconds", "peak memory, MiB", "tokens sampled"], costs)


def _costs(ones: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [one["memory"] for one in ones if one["memory"] is not None]
    cells = [_range([one["seconds"] for one in ones], 1), _range(known, 1) if known else "-"]
    return [*cells, _range([one["tokens"] for one in ones], 0)]


def _range(values: Sequence[float], digits: int = 3) -> str:
    if digits == 3:
        return interval({"value": float(np.mean(values)), "low": min(values), "high": max(values)})
    return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"

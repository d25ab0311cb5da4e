"""Does a multiplier find what a fixed weight on cost has to be told, and does it matter where it starts?

Claim (Safe RLHF, arXiv 2310.12773): a policy that maximises R - lambda C, with a lambda that moves until the mean cost
keeps its limit, is as good as the best fixed weight and needs nobody to know that weight.

World: `safe_rlhf_world.py`, four topics. A transformer of two layers and width 48 imitates 4,096 demonstrations; reward
and cost model learn from 16,000 pairs of its answers (temperature 1.5), a tenth of the preferences turned, safety
labels true. PPO: 120 batches of 128 answers, two inner epochs, Adam at 5e-4 (critics 3e-3), beta .2, lambda of GAE
.95, clip .2, a window of 256 costs, ceiling 20. Seeds 0-4; settings and rule for the limit were chosen on seed 99.
There the published beta .02, with a rate of 1e-3, failed the claim: from the four starts (log from 1 and 10, projected
from 0 and 10) the true rewards were 5.5, 3.3, 7.2 and -0.5, as policies stopped exploring under a large multiplier.
The settings here were chosen to mend that; they hold every arm closer to the first policy and lower what all can earn.
The log rate of .2 was taken because with .05 `log from 1` stood at .947 of the best weight there, with .2 at 1.04.
Everything is measured on 4,096 answers by the formulas of the world; only the cost is that of the cost model.

The limit tau is in units of each seed's cost model. Its rule, the same for every seed: of the answers the cost model
learned from, those labelled safe, 95 % cost no more than tau. A refusal is an answer with any `sorry` in it.

Arms of a seed: `weight NU`, the reward R - NU C without a limit, KL weighed by (1 + NU) beta as in the mixture of a
multiplier; `log from 1` and `from 10` (the published rule, rate .2), `projected from 0` and `from 10` (rate .1).
Reported without criterion: `log from 0.1` at rate .05, where the rule crawls; `mirror` and `pid`; `no sign terms`, the
same limit and a cost model that was only ranked; `slack limit`, tau + 8, which plain PPO keeps; and a world in which
hacks help twice as much on one topic in ten, under a limit on the mean cost and under one on each answer's excess.

Criteria, written down before the first run of the study, each in at least 4 of 5 seeds; the first three ask it of each
of the four multipliers:

* limit_kept: the mean cost is at most tau + .2, and at most .05 of the answers do harm;
* as_good: the true reward is at least .95 of that of the best weight that also harms in at most .05 of its answers;
* few_refusals: at most .10 of the answers refuse;
* start_forgotten: the true rewards of the four multipliers differ by at most a tenth of the largest;
* weights_fail: at least 4 of the 8 weights harm in more than .05, or reach less than .80 of the reward of the best.

How to read it: one well-chosen weight does as well. The gain is that nobody has to know it.
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.evaluate.policy import Exam, Outcome, examine
from holdfast.models.heads import critic_from
from holdfast.preference.score import FunctionScorer
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.stats.estimate import mean, proportion
from holdfast.studies.common import criterion, findings, interval, markdown
from holdfast.studies.safe_rlhf_world import SAMPLING, Bench, Lessons, World, constant, prepare, refuses, sampler
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "a multiplier finds what a fixed weight on cost must be told, wherever it starts"
SOURCE = "Safe RLHF, arXiv 2310.12773, and Safe RLHF-V, arXiv 2503.17682"
BETA, RATE, FLOOR, HARM = 0.2, 5e-4, 1e-3, 0.05
"""Weight of the KL, the policy's learning rate, the multiplier's floor under rules that multiply, and most harm."""
TRUTH = ("reward", "harmful", "refusal", "tempting")


class Arm(NamedTuple):
    """How cost is held down: a fixed weight (no limit), or a rule that moves a multiplier from where it starts."""

    weight: float | None = None
    rule: Literal["log", "projected", "mirror", "pid"] = "log"
    initial: float = 1.0
    rate: float = 0.2
    bound: Literal["mean", "rectified"] = "mean"
    labels: Literal["sign", "none"] = "sign"
    slack: float = 0.0
    world: World = World()
    learns: bool = True

    def constraint(self, threshold: float) -> ConstraintSettings:
        """The limit on the mean cost of an arm without a fixed weight."""
        return ConstraintSettings(
            measure="logit",
            threshold=threshold + self.slack,
            bound=self.bound,
            rule=self.rule,
            initial=self.initial,
            floor=0.0 if self.rule in ("projected", "pid") else FLOOR,
            rate=self.rate,
            ceiling=20.0,
            window=256,
        )


TEMPTING = World(topics=10, tempting=1)
WEIGHTS = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
FIXED = {f"weight {weight:g}": Arm(weight) for weight in WEIGHTS}
STARTS = {
    "log from 1": Arm(),
    "log from 10": Arm(initial=10.0),
    "projected from 0": Arm(rule="projected", initial=0.0, rate=0.1),
    "projected from 10": Arm(rule="projected", initial=10.0, rate=0.1),
}
OTHERS = {
    "log from 0.1": Arm(initial=0.1, rate=0.05),
    "mirror from 1": Arm(rule="mirror", rate=0.1),
    "pid from 1": Arm(rule="pid", rate=0.1),
    "no sign terms": Arm(labels="none"),
    "slack limit": Arm(slack=8.0),
    "tempting topic mean": Arm(world=TEMPTING),
    "tempting topic rectified": Arm(world=TEMPTING, bound="rectified"),
}
ARMS = {"first policy": Arm(learns=False), **FIXED, **STARTS, **OTHERS}


class Plan(Lessons):
    """How much of everything."""

    iterations: int = 120
    """Batches of answers the policy learns from."""
    answers: int = 128
    """Answers of a batch."""
    exam: int = 4096
    """Prompts of the exam."""


QUICK = Plan(demonstrations=1024, pairs=1000, held_out=100, iterations=4, answers=32, exam=256)


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all arms for the seeds, taking up those that are finished; return the result."""
    plan = QUICK if quick else Plan()
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in seeds:
        for name, found in one_seed(plan, seed, folder / ("quick" if quick else "full") / f"seed-{seed}").items():
            arms[name].append(found)
    return findings("safe_rlhf", CLAIM, SOURCE, criteria(arms), arms, seeds, plan)


def one_seed(plan: Plan, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What is measured of every arm; the models of a world are trained when an arm first needs them."""
    benches: dict[World, Bench] = {}
    found = {}
    for name, arm in ARMS.items():
        out = RunFolder(folder / name.replace(" ", "-"), plan)
        finished = out.path / "summary.json"
        if not finished.is_file():
            if arm.world not in benches:
                models = RunFolder(folder / f"models-{arm.world.topics}-topics", plan)
                benches[arm.world] = prepare(plan, arm.world, seed, models)
            out.write_json(finished.name, one_arm(plan, benches[arm.world], arm, seed, out))
        found[name] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def one_arm(plan: Plan, bench: Bench, arm: Arm, seed: int, out: RunFolder) -> dict[str, Any]:
    """Improve the first policy as the arm says, and examine what came of it."""
    began = time.monotonic()
    policy, said = improve(plan, bench, arm, seed, out) if arm.learns else (bench.policy, [])
    found = {"seed": seed, "threshold": bench.threshold, **measured(judge(plan, bench, policy, seed))}
    found |= {"multiplier": course(out), "warnings": said, "models": bench.facts}
    return found | {"seconds": round(time.monotonic() - began, 1)}


def course(out: RunFolder) -> list[float]:
    """The multiplier after each iteration; empty without a limit."""
    file = out.path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return [round(row["multiplier/harm"], 4) for row in rows if "multiplier/harm" in row]


def improve(plan: Plan, bench: Bench, arm: Arm, seed: int, out: RunFolder) -> tuple[nn.Module, list[str]]:
    """The policy that the arm makes of the first one, and what the limit has to say at the end."""
    policy, reference = copy.deepcopy(bench.policy), bench.policy
    cost, template = bench.costs[arm.labels], bench.template
    weight = arm.weight or 0.0

    def score(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        reward, harm = bench.judges[arm.labels].score(conversations).unbind(-1)
        return {"reward": reward, "cost": harm, "paid": reward - weight * harm}

    rollout = RolloutSettings(samples_per_prompt=1, sampling=SAMPLING)
    collector = Collector(policy, lambda: nullcontext(reference), sampler(policy, template), template, score, rollout)
    limits = Limits([] if arm.weight is not None else [Constraint(arm.constraint(bench.threshold))])
    critics = {"value": critic_from(bench.reward, ("value",))}
    critics |= {f"value/{name}": critic_from(cost, (f"value/{name}",)) for name in limits.streams}
    # In units of R - lambda C the mixture holds (1 + lambda) KL; a fixed weight is given as much.
    settings = ActorCriticSettings(reward="paid", kl=(1 + weight) * BETA, token_clamp=None, seed=seed)
    method = ActorCritic(collector, critics, settings, {"policy": constant(RATE), "critic": constant(3e-3)}, limits)
    online = OnlineSettings(
        iterations=plan.iterations,
        prompts_per_iteration=plan.answers,
        inner_epochs=2,
        checkpoint_every=0,
        sample_every=0,
        seed=seed,
    )
    asked = bench.world.prompts(plan.answers * plan.iterations, np.random.default_rng((seed, 1)))
    run_online(method, asked, online, out, stage="policy")
    return policy, limits.warnings()


def judge(plan: Plan, bench: Bench, policy: nn.Module, seed: int) -> Outcome:
    """The policy's answers to the exam, with learned scores and the truth."""
    world, template = bench.world, bench.template

    def truth(conversations: Sequence[Conversation]) -> list[list[float]]:
        return [[world.help(c), world.harms(c), refuses(c), world.tempts(c)] for c in conversations]

    exam = Exam(
        prompts=world.prompts(plan.exam, np.random.default_rng((seed, 2))),
        template=template,
        sampling=SAMPLING,
        scorer=bench.judges["sign"],
        truth=FunctionScorer(TRUTH, truth),
        seed=seed,
    )
    return examine(exam, sampler(policy, template), policy, lambda: nullcontext(bench.policy))


def measured(outcome: Outcome) -> dict[str, Any]:
    """What the study reads of an exam, each with its interval."""
    found = {"reward": mean(outcome.truth["reward"].numpy()), "cost": mean(outcome.scores["cost"].numpy())}
    found |= {name: proportion(outcome.truth[name].bool().numpy()) for name in ("harmful", "refusal")}
    found["kl"] = mean(outcome.kl.numpy())
    tempting = outcome.truth["tempting"].bool()
    if tempting.any():
        for name, chosen in (("tempting", tempting), ("other", ~tempting)):
            found[f"harmful, {name} topics"] = proportion(outcome.truth["harmful"][chosen].bool().numpy())
            found[f"cost, {name} topics"] = mean(outcome.scores["cost"][chosen].numpy())
    return {name: one.to_dict() for name, one in found.items()}


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with the share of seeds that meet it, and whether it holds."""
    seeds = range(len(arms["first policy"]))
    met = [verdicts({name: ones[i] for name, ones in arms.items()}) for i in seeds]
    return [criterion(name, [one[name] for one in met], 0.8) for name in met[0]]


def verdicts(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Which criteria one seed meets, by the results of its arms."""

    def values(what: str, names: Sequence[str]) -> list[float]:
        return [arms[name][what]["value"] for name in names]

    fixed = list(zip(values("reward", [*FIXED]), values("harmful", [*FIXED]), strict=True))
    best = max((reward for reward, harm in fixed if harm <= HARM), default=-math.inf)
    reward = values("reward", [*STARTS])
    kept = [cost <= arms[name]["threshold"] + 0.2 for name, cost in zip(STARTS, values("cost", [*STARTS]), strict=True)]
    return {
        "limit_kept": all(kept) and max(values("harmful", [*STARTS])) <= HARM,
        "as_good": min(reward) >= 0.95 * best,
        "few_refusals": max(values("refusal", [*STARTS])) <= 0.10,
        "start_forgotten": max(reward) - min(reward) <= 0.10 * max(reward),
        "weights_fail": sum(harm > HARM or reward < 0.80 * best for reward, harm in fixed) >= 4,
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table: mean and range over the seeds for each arm."""
    rows = []
    for name, ones in result["arms"].items():
        cells = [_range([one[what]["value"] for one in ones]) for what in ("harmful", "refusal", "reward")]
        beyond = _range([one["cost"]["value"] - one["threshold"] for one in ones])
        last = _range([one["multiplier"][-1] for one in ones]) if ones[0]["multiplier"] else "-"
        rows.append([name, *cells, beyond, last, _by_topic(ones)])
    columns = ["arm", "harmful", "refusals", "true reward", "mean cost less the limit", "last multiplier"]
    return markdown([*columns, "harmful on the tempting topic, on others"], rows)


def _by_topic(ones: Sequence[Mapping[str, Any]]) -> str:
    names = ("harmful, tempting topics", "harmful, other topics")
    if names[0] not in ones[0]:
        return "-"
    return ", ".join(_range([one[name]["value"] for one in ones]) for name in names)


def _range(values: Sequence[float]) -> str:
    return interval({"value": float(np.mean(values)), "low": min(values), "high": max(values)})

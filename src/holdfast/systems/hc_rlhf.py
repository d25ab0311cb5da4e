"""HC-RLHF: improve a policy under a pessimistic limit, then release it only if a sealed test says so.

Chittepu, Metevier, Schwarzer, Hoag, Niekum, Thomas, "Reinforcement Learning from Human Feedback with
High-Confidence Safety Constraints", arXiv 2506.08266 (2025).

Equation map (numbers of the steps in the paper's abstract and official code):

* reward model, -log sigma(r_w - r_l)                            `losses.preference.bradley_terry`
* cost model, ranking and sign terms                             `losses.preference.cost_rank`, `cost_sign`
* kappa = C1 t(1-delta, n_b-1)/sqrt(n_b) + C2 t(1-delta, n_s-1)/sqrt(n_s)   `stats.bounds.kappa`
* U = mean + kappa sd <= tau, while training                     `losses.dual.pessimistic`
* multiplier step on U - tau                                     `losses.dual.update`
* cost whose policy gradient is that of U                        `losses.dual.augmented_cost`
* return G = (R - beta KL - lambda c) / (1 + lambda), leave-one-out   `losses.advantage.leave_one_out`
* safety test, upper bound <= tau or No Solution Found           `certificate.gate.run`

Departures, each with its reason:

1. The cost model keeps the sign terms of Safe RLHF (arXiv 2310.12773). The official code drops them, and then a
   cost of zero means "like the average training answer", so an absolute limit would mean nothing.
2. The limit is on the rate of harmful answers and the test is Clopper-Pearson, which is exact. The Student-t test
   of the paper misses rare harm; it remains available (`measure: logit`).
3. One kappa for the multiplier and the policy. The official code uses two, so both pursue different limits.
4. The return is divided by 1 + lambda, so the learning rate does not grow with the multiplier.
5. Deviations below mean - sd/kappa are held there (`constraint.monotone`): otherwise the policy would be paid to
   make very safe answers less safe.
6. The multiplier moves by the projected rule, once per batch of answers; the official log rule is `rule: log`.
"""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast.certificate.plan import Plan, power_table, refuse_hopeless
from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.models.save import digest as model_digest
from holdfast.systems import dual, exam, reading, safety_test, stages
from holdfast.systems.scores import CostStage
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.monitor import Monitor
from holdfast.training.policy import Limits


class CertificateSettings(Settings):
    """The safety test; limit, delta and number of prompts are those of the constraint."""

    ledger: str | None = None
    """Ledger of all attempts on these prompts; null keeps one in the run folder."""
    seed: int = Field(17, ge=0)
    """Seed of the answers that are tested."""


class HcRlhf(dual.DualSettings):
    """Everything a run of HC-RLHF can be told."""

    system: Literal["hc_rlhf"] = "hc_rlhf"
    """Which system this recipe is for."""
    cost: CostStage = CostStage()
    """The cost model."""
    method: Literal["pessimistic", "mean", "reward_only"] = "pessimistic"
    """The pessimistic limit; the limit on the mean alone (kappa = 0); or no limit at all."""
    policy: LeaveOneOutSettings = LeaveOneOutSettings()
    """How the policy learns from groups of answers."""
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-6, schedule="constant")
    """The policy's optimiser."""
    online: OnlineSettings = OnlineSettings()
    """How long the policy is improved."""
    certificate: CertificateSettings = CertificateSettings()
    """The safety test."""

    @model_validator(mode="after")
    def _one_direction(self) -> "HcRlhf":
        if self.constraint.direction != "at_most":
            raise ValueError("HC-RLHF bounds a cost from above; constraint.direction must be at_most")
        if self.constraint.measure != "logit" and not 0 < self.constraint.threshold < 1:
            raise ValueError(f"constraint.threshold is a share between 0 and 1, not {self.constraint.threshold:g}")
        return self


def run(settings: HcRlhf, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary."""
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    bench = dual.prepare(settings, run_folder, lambda pools: make_plan(settings, pools, 0.0, "safety_labels"))
    return proceed(settings, bench, began)


def proceed(settings: HcRlhf, bench: dual.Bench, began: float) -> dict[str, Any]:
    """From trained models to the summary: plan, improve, test."""
    plan = plan_test(settings, bench)
    reference = stages.frozen_reference(bench.policy)
    before = exam.exam(bench, reference)
    facts = improve(settings, bench, reference)
    after = exam.exam(bench, reference)
    compared = exam.compare(bench, before, after)
    verdict = stages.on_main(bench.run, lambda: certify(settings, bench, plan))
    return exam.finish(bench, {**verdict, **facts, **compared}, began, settings.method)


def improve(settings: HcRlhf, bench: dual.Bench, reference: Any) -> dict[str, Any]:
    """Candidate selection: maximise the reward while U stays below the threshold."""
    limits, collector = limits_of(settings, bench), bench.collector(reference)
    facts = dual.outlook_of(bench, collector, limits, settings.policy.reward, settings.policy.kl)
    algorithm = LeaveOneOut(
        collector,
        stages.offset(settings.policy, settings.seed),
        settings.optimiser,
        limits,
        exam.probe if settings.pocket else None,
    )
    monitor = Monitor(settings.monitor, algorithm.kl)
    online = stages.offset(settings.online, settings.seed)
    result = run_online(algorithm, bench.pools.practise, online, bench.run, stage="policy", guard=monitor)
    facts |= dual.told(bench, limits, result)
    stages.keep(bench.run, bench.policy, bench.template, dual.probe_answers(bench.pools), "candidate")
    return facts


def limits_of(settings: HcRlhf, bench: dual.Bench) -> Limits:
    """The limits of the method: none, or on the mean alone (the clean ablation kappa = 0), or pessimistic."""
    if settings.method == "reward_only":
        return Limits([])
    return bench.limits(**({"bound": "mean"} if settings.method == "mean" else {}))


def plan_test(settings: HcRlhf, bench: dual.Bench) -> Plan | None:
    """The plan of the safety test, complete before the policy is improved; None when no limit has a meaning."""
    if settings.constraints or settings.limit_by_source:
        stages.say(
            f"safety test: of {settings.constraint.name} on all prompts alone; other limits hold in training only"
        )
    assert bench.zero is not None, "this system always has a cost model"
    if bench.zero.source == "none":
        return None
    plan = make_plan(settings, bench.pools, bench.zero.value, bench.zero.source)
    stages.say("safety test: " + power_table(plan))
    return plan


def make_plan(settings: HcRlhf, pools: reading.Pools, zero: float, source: safety_test.ZeroReference) -> Plan:
    """The plan for these prompts; `UserError` when the test could not pass or lacks prompts.

    Called once before anything is trained, and again when the cost model's zero is known.
    """
    seed = settings.certificate.seed + settings.seed
    plan = safety_test.make_plan(settings.constraint, settings.rollout.sampling, seed, zero, source)
    safety_test.sealed(pools.safety, plan)
    refuse_hopeless(plan)
    return plan


def certify(settings: HcRlhf, bench: dual.Bench, plan: Plan | None) -> dict[str, Any]:
    """The safety test: write certificate and evidence, and release the policy only when CERTIFIED."""
    assert bench.zero is not None, "this system always has a cost model"
    if plan is None:
        stages.say(f"no safety test: {bench.zero.words}")
        limit_facts = {"tau": settings.constraint.threshold, "delta": settings.constraint.delta}
        return {"verdict": "NSF", "reason": "no_zero", **limit_facts, "n": None, "k": None, "ucb": None, "policy": None}
    folder = bench.run.path
    waiting, released = folder / "models" / "candidate", folder / "models" / "policy"
    calibration = bench.zero.calibration if settings.constraint.measure == "probability" else None
    candidate = safety_test.Candidate(
        bench.generator,
        bench.template,
        settings.rollout.sampling,
        bench.scorer,
        model_digest(waiting),
        safety_test.scorer_digest(bench.cost_folder, bench.zero.value, bench.zero.source, calibration),
        calibration.probability if calibration else None,
    )
    ledger = Path(settings.certificate.ledger) if settings.certificate.ledger else None
    verdict = safety_test.conduct(plan, bench.pools.safety, candidate, folder, ledger)
    if verdict["verdict"] != "CERTIFIED":
        return {**verdict, "policy": None}
    if released.exists():
        # A resumed run has saved its candidate again.
        shutil.rmtree(waiting)
    else:
        waiting.rename(released)
    return {**verdict, "policy": str(released.relative_to(folder))}

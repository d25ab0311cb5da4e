"""Safe RLHF: separate reward and cost, and PPO that keeps the expected cost under a limit.

Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", arXiv 2310.12773 (2023), and for images
Ji et al., "Safe RLHF-V", arXiv 2503.17682 (2025). This file runs the text form; records, scores and rollouts
already carry images.

Equation map:

* reward model, -log sigma(R_w - R_l) + rho R^2                  `losses.preference.bradley_terry`, `score_l2`
* cost model, ranking and sign terms (eq. 6)                     `losses.preference.cost_rank`, `cost_sign`
* graded cost labels of Safe RLHF-V                              `losses.preference.cost_graded`
* token rewards, KL split over both streams                      `losses.advantage.token_rewards`
* GAE of both streams                                            `losses.advantage.gae`
* A = (A_r - lambda A_c) / (1 + lambda)                          `losses.advantage.mix`
* clipped surrogate and clipped value loss                       `losses.surrogate.clipped_ratio`, `clipped_value`
* log lambda step (eq. 31), projected step (Safe RLHF-V, eq. 8)  `losses.dual.update`

Departures, each with its reason:

1. The multiplier moves once per batch of answers, on a global window, so that its speed depends neither on the size
   of a micro-batch nor on the number of processes.
2. The default rule is `projected`. The published code steps on log lambda, which cannot leave small values in time
   and runs away from large ones; it remains available (`rule: log`).
3. The response mask comes from lengths. The published trainer for images fills it with ones, so padding earns
   rewards, and reads scores at the last column, which may be padding.
4. Limits are set on the scale of `constraint.measure`; `logit` with threshold -d is the published constraint.
"""

import time
from pathlib import Path
from typing import Any, Literal

from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.models.heads import critic_from, from_policy
from holdfast.rollout.experience import Collector
from holdfast.systems import dual, stages
from holdfast.training.actor_critic import ActorCritic, ActorCriticSettings
from holdfast.training.lagrangian import ConstraintSettings
from holdfast.training.policy import Limits


class SafeRlhfV(dual.DualSettings):
    """Everything a run of Safe RLHF can be told."""

    system: Literal["safe_rlhf_v"] = "safe_rlhf_v"
    """Which system this recipe is for."""
    constraint: ConstraintSettings = ConstraintSettings(measure="logit", threshold=0.0, bound="mean")
    """The limit on the expected cost."""
    ppo: ActorCriticSettings = ActorCriticSettings()
    """How the policy learns."""
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-6)
    """The policy's optimiser."""
    critic_optimiser: OptimiserSettings = OptimiserSettings(learning_rate=5e-6, schedule="constant")
    """The optimiser of each critic."""
    online: OnlineSettings = OnlineSettings()
    """How long the policy is improved."""


def run(settings: SafeRlhfV, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary."""
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    bench = dual.prepare(settings, run_folder)
    reference = stages.frozen_reference(bench.policy)
    before = dual.exam(bench, reference)
    improve(settings, bench, reference)
    after = dual.exam(bench, reference)
    summary = {"verdict": None, "reason": "not_tested", **dual.compare(bench, before, after)}
    return dual.finish(bench, summary, began, "safe_rlhf_v")


def improve(settings: SafeRlhfV, bench: dual.Bench, reference: Any) -> None:
    """PPO under the limit; each critic starts from the model whose stream it predicts."""
    constraint = bench.constraint()
    limits = Limits([constraint])
    collector = Collector(
        bench.policy,
        reference,
        bench.generator,
        bench.template,
        stages.scores_by_name(bench.scorer),
        settings.rollout,
    )
    reward_critic = critic_from(bench.reward) if bench.reward else from_policy(bench.policy, ("value",))
    critics = {"value": reward_critic, f"value/{constraint.name}": critic_from(bench.cost)}
    algorithm = ActorCritic(
        collector,
        critics,
        stages.offset(settings.ppo, settings.seed),
        {"policy": settings.optimiser, "critic": settings.critic_optimiser},
        limits,
        dual.probe if settings.pocket else None,
    )
    online = stages.offset(settings.online, settings.seed)
    run_online(algorithm, bench.pools.practise, online, bench.run, stage="policy")
    for warning in limits.warnings():
        stages.say(warning)
    stages.keep(bench.run, bench.policy, bench.template, dual.probe_answers(bench.pools), "policy")

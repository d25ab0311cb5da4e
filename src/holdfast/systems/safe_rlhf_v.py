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
* PTX loss beside the surrogate                                  `training.ptx.PtxRows`

Departures, each with its reason:

1. The multiplier moves once per batch of answers, on a global window, so that its speed depends neither on the size
   of a micro-batch nor on the number of processes.
2. The default rule is `projected`. The published code steps on log lambda, which cannot leave small values in time
   and runs away from large ones; it remains available (`rule: log`).
3. The response mask comes from lengths. The published trainer for images fills it with ones, so padding earns
   rewards, and reads scores at the last column, which may be padding.
4. Limits are set on the scale of `constraint.measure`; `logit` with threshold -d is the published constraint.
5. PTX is off unless asked for, and then both gradients make one step; `preset: safe-rlhf` is the published script.
6. More limits than one, each for all prompts or for each source of them, and a look ahead at whether they can be met.
"""

from pathlib import Path
from typing import Any, Literal

from holdfast.systems import ppo
from holdfast.systems.scores import CostStage
from holdfast.training.actor_critic import ActorCriticSettings
from holdfast.training.lagrangian import ConstraintSettings


class SafeRlhfV(ppo.PpoRun):
    """Everything a run of Safe RLHF can be told."""

    system: Literal["safe_rlhf_v"] = "safe_rlhf_v"
    """Which system this recipe is for."""
    cost: CostStage = CostStage()
    """The cost model."""
    constraint: ConstraintSettings = ConstraintSettings(measure="logit", threshold=0.0, bound="mean")
    """The limit on the expected cost."""
    ppo: ActorCriticSettings = ActorCriticSettings()
    """How the policy learns."""


def run(settings: SafeRlhfV, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    Reward and cost model from dual-labelled pairs; the reference examined; critics that start from the models whose
    stream they predict; PPO on the Lagrangian while the multiplier answers to the cost; the policy examined.
    """
    return ppo.run(settings, folder, "safe_rlhf_v", overwrite=overwrite)

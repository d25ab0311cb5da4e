"""PPO-max: the set of ingredients with which PPO on a learned reward stays stable for long.

Zheng et al., "Secrets of RLHF in Large Language Models, Part I: PPO", arXiv 2307.04964 (2023).

Equation map (numbers as in the paper):

* reward model with language-model term (eq. 1, 2)               `losses.preference.bradley_terry`
* score normalised by running moments, clipped (eq. 18)          `training.scores.ScoreTransform`
* token-level KL penalty (eq. 19)                                `losses.advantage.token_rewards`
* generalised advantage estimation (eq. 8 to 11)                 `losses.advantage.gae`
* clipped surrogate                                              `losses.surrogate.clipped_ratio`
* clipped value loss (eq. 16)                                    `losses.surrogate.clipped_value`
* mixed-in language-model loss, PPO-ptx (eq. 17)                 `training.ptx.PtxRows`
* critic initialised from the reward model and trained first     `training.pretraining.pretrain_critics`
* length, perplexity, KL as signs of collapse (section 5)        `training.monitor.Monitor`

Departures, each with its reason:

1. The score is added at the last response token. Eq. 19 writes it at every token; the official code does as here.
2. Where the paper states no value (KL weight and score clip of PPO-max itself), those of its ablations are taken.
3. The critics are trained until their loss stops to fall, as it cannot reach the zero of the paper: early tokens do not
   tell the score. Gradients of policy and critics are clipped apart, where the official code clips them as one.
4. PTX and surrogate make one optimiser step. In the official code each makes its own, so its weight means little.
5. Perplexity is exp of the mean negative log-likelihood over response tokens. The released one divides by the length
   once more and falls when answers grow.
6. The collapse detector, its way back to healthy snapshots, decoupled lambdas and limits on costs are not the paper's.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from holdfast.systems import ppo
from holdfast.systems.presets import Preset
from holdfast.systems.scores import CostStage


class PpoMax(ppo.PpoRun):
    """Everything a run of PPO-max can be told."""

    system: Literal["ppo_max"] = "ppo_max"
    """Which system this recipe is for."""
    preset: Preset | None = "ppo-max"
    """A table of settings as published, over which everything else that is given goes."""
    cost: CostStage | None = None
    """A cost model, for a run under limits; null needs no safety labels and keeps no limit on harm."""

    @model_validator(mode="after")
    def _limited_by_something(self) -> "PpoMax":
        if self.cost is None and self.constraint != type(self).model_fields["constraint"].default:
            raise ValueError(
                "constraint limits the cost, and no cost model is trained; add a cost section ({} will do)"
            )
        return self


def run(settings: PpoMax, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    Imitation; the reward model; the reference examined; a critic that starts from the reward model and is trained
    while the policy stands still; PPO with every ingredient of the preset, watched for collapse; the policy examined.
    """
    return ppo.run(settings, folder, "ppo_max", overwrite=overwrite)

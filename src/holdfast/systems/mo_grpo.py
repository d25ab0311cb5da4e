"""Multi-objective GRPO: several named scores, groups of answers, no critic; weights or limits say what matters.

Li, Li, Kosuga, Bian, "Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach", arXiv
2503.21819 (2025); limits without critics after Safe RLHF, arXiv 2310.12773.

Equation map:

* one model, K labels, sum m a l(y', y) / sum m a                `losses.regression.masked_regression`
* R = sum_k w_k R_k, A = (R - mean) / std within the group       `losses.scalarise.sum_then_normalise`
* each reward over its own spread, or over that of all          `losses.scalarise.normalise_then_sum`
* weights by the spread of each                                 `losses.scalarise.variance_weighted`
* min(rho A, clip(rho) A), and the other forms of the family     `losses.ratio.weighted`
* mean over tokens, answers or prompts                           `losses.aggregate.token_weights`, `row_counts`
* k1 of the answer inside the reward; k2, k3, rho k3 as a loss   `losses.logprob.kl_k1`, `kl_loss`
* A = (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j)          `losses.advantage.mix`
* multiplier step on mean cost - limit                           `losses.dual.update`
* soft penalty for overlong answers                              `losses.advantage.overlong`
* weights pi_old / pi_sampler for another sampler's answers      `losses.correction.correct`

Of the paper, its abstract, the beginning of its introduction and its authors' summary could be read. Not available were
its reward model's base, link, loss and data, the weights, group size, KL weight, clip and learning rate, and all of its
tables; whatever stands in for them here is this project's choice. `preset: paper` is that reading.

Departures, each with its reason:

1. The KL stands inside the reward (k1) unless asked otherwise. As a loss beside normalised advantages its strength is
   beta times the spread of rewards, another one for every prompt.
2. Differences within a group below `std_floor` are taken for noise of the scores and not blown up to full size.
3. A part of the prompts of every iteration is benign (half of them unless said otherwise), and refusals of those are
   counted in every iteration: prompts that only attack cannot show that a policy refuses everyone.
4. A limit on a cost in place of a weight on safety; without a floor on the cost's spread it ends in refusals.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.mixture import Mixture
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.evaluate.policy import Outcome
from holdfast.pocket.ratings import LABELS, label_scores
from holdfast.preference.refusal import over_refusal
from holdfast.stats.estimate import Estimate, mean
from holdfast.systems import dual, exam, stages
from holdfast.systems.grpo_presets import GRPO_PRESETS, GrpoPreset
from holdfast.systems.presets import over
from holdfast.systems.scores import CostStage, RewardStage
from holdfast.training.grpo import OBJECTIVE, Grpo, GrpoSettings
from holdfast.training.lagrangian import ConstraintSettings
from holdfast.training.monitor import Monitor


class BenignSettings(Settings):
    """Prompts that ask for nothing harmful, so that refusing everyone is seen and does not pay."""

    share: float = Field(0.5, gt=0, lt=1)
    """Their share of the prompts of every iteration."""
    sources: tuple[str, ...] = Field(("benign",), min_length=1)
    """The `source` of prompts that are benign; an empty text is that of prompts without one."""

    def of(self, conversations: Sequence[Conversation]) -> list[bool]:
        """Which of the conversations have a benign prompt."""
        return [one.source in self.sources for one in conversations]


class MoGrpo(dual.DualSettings):
    """Everything a run of multi-objective GRPO can be told."""

    always_rewarded: ClassVar[bool] = False

    system: Literal["mo_grpo"] = "mo_grpo"
    """Which system this recipe is for."""
    preset: GrpoPreset | None = None
    """A table of settings as published, over which everything else that is given goes."""
    reward: RewardStage | None = None
    """A reward model from comparisons; null trains none."""
    cost: CostStage | None = None
    """A cost model, for a run under limits; null needs no safety labels."""
    constraint: ConstraintSettings = ConstraintSettings(
        measure="logit", threshold=0.0, bound="mean", rule="mirror", rate=0.3, floor=0.01, ceiling=10.0, window=256
    )
    """The limit on the cost, where there is a cost model."""
    grpo: GrpoSettings = GrpoSettings()
    """What is maximised, and how the policy learns."""
    benign: BenignSettings | None = BenignSettings()
    """How many prompts of every iteration are benign; null takes prompts as they come and cannot tell over-refusal."""
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-6, schedule="constant")
    """The policy's optimiser."""
    online: OnlineSettings = OnlineSettings()
    """How long the policy is improved."""

    @model_validator(mode="before")
    @classmethod
    def _over_the_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, Mapping) else None
        return over(GRPO_PRESETS[name], given) if name in GRPO_PRESETS else given

    @model_validator(mode="after")
    def _scored_by_something(self) -> "MoGrpo":
        if not (self.given_scores or self.scorers or self.functions or self.endpoints):
            raise ValueError(
                "nothing scores answers; give at least one of attributes, reward, scorers, functions, endpoints"
            )
        given = self.constraint != type(self).model_fields["constraint"].default
        if self.cost is None and given and not self.constraints:
            raise ValueError(
                "constraint limits the cost, and no cost model is trained; add a cost section ({} will do), or limit "
                "another score under constraints"
            )
        return self


def run(settings: MoGrpo, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    The models of scores; the reference examined; GRPO on the objectives, under the limits that were set; the policy
    examined.
    """
    seen = partial(further, settings)
    return exam.run(settings, folder, "mo_grpo", improve, further=seen, overwrite=overwrite)


def improve(settings: MoGrpo, bench: dual.Bench, reference: exam.Reference) -> dict[str, Any]:
    """Improve the policy in place and save it as `models/policy`; return what is to be told of it."""
    grpo, online = stages.offset(settings.grpo, settings.seed), stages.offset(settings.online, settings.seed)
    limits, prompts = bench.limits(), bench.pools.practise
    choose = mixture(settings, prompts, online)
    method = Grpo(bench.collector(reference), grpo, settings.optimiser, limits, partial(probe, settings))
    if not (grpo.kl.coef or grpo.kl.in_loss):
        stages.say("warning: nothing holds the policy to the reference, and learned scores will be gamed; set grpo.kl")
    facts = dual.outlook_of(bench, method.collector, limits, OBJECTIVE, grpo.kl)
    monitor = Monitor(settings.monitor, method.kl)
    result = run_online(method, prompts, online, bench.run, stage="policy", guard=monitor, choose=choose)
    facts |= dual.told(bench, limits, result)
    stages.keep(bench.run, bench.policy, bench.template, dual.probe_answers(bench.pools), "policy")
    return facts


def mixture(
    settings: MoGrpo, prompts: Sequence[Conversation], online: OnlineSettings
) -> Callable[[int], list[int]] | None:
    """What chooses the prompts of each iteration, or None where they come as they are."""
    if settings.benign is None:
        return None
    benign = settings.benign.of(prompts)
    if not any(benign):
        found = sorted({one.source or "(none)" for one in prompts})
        raise UserError(
            f"no prompt to practise on has a benign source ({', '.join(settings.benign.sources)}); the sources are "
            f"{', '.join(found)}. Name the benign ones in benign.sources, add benign prompts with data.prompts, or set "
            "benign=null to train without, blind to over-refusal"
        )
    mixed = Mixture(benign, settings.benign.share)
    return lambda number: mixed.take(online.prompts_per_iteration, number, online.seed)


def probe(settings: MoGrpo, conversations: Sequence[Conversation]) -> dict[str, float]:
    """What is seen of training answers beside scores: refusals of benign prompts, or in the pocket world the truth."""
    if settings.pocket:
        return exam.probe(conversations)
    found = refusals(settings, conversations)
    return {"over_refusal": found.value} if found else {}


def refusals(settings: MoGrpo, conversations: Sequence[Conversation]) -> Estimate | None:
    """The share of answers to benign prompts that decline; None where no prompt is known to be benign."""
    return over_refusal(conversations, settings.benign.of(conversations)).estimate() if settings.benign else None


def further(settings: MoGrpo, outcome: Outcome) -> dict[str, Any]:
    """What the summary says of a policy beside scores and KL: over-refusal, and in the pocket world true labels."""
    if settings.pocket:
        true = dict(zip(LABELS, np.array(label_scores(outcome.conversations)).T))
        return {f"true_{name}": mean(true[name]) for name in ("politeness", "brevity")}
    found = refusals(settings, outcome.conversations)
    return {"over_refusal": found} if found else {}

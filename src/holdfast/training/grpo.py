"""Group-relative policy optimisation (GRPO) for several objectives, under limits or without.

G answers to a prompt are compared with each other, so no critic is needed (DeepSeekMath, arXiv 2402.03300; several
objectives: arXiv 2503.21819). The family's members differ in three independent things, all settings here: how K rewards
become one advantage (`training.objectives`), what a token weighs at its ratio (`losses.ratio`), and what is averaged
(`losses.aggregate`). Limits work as in PPO, with advantages combined after each is on a scale of its own:
A = (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings, column_means
from holdfast.errors import UserError
from holdfast.losses import aggregate, ratio, scalarise
from holdfast.losses.advantage import overlong
from holdfast.losses.correction import current
from holdfast.losses.logprob import kl_loss
from holdfast.losses.reduce import Sum
from holdfast.rollout.experience import Collector, Experience, Score
from holdfast.rollout.reading import Reader
from holdfast.training.common_descent import gradient, inner_products
from holdfast.training.correction import CorrectionSettings, Weighed, weigh
from holdfast.training.group_batch import GroupBatch, GroupLearnable, Portions, Skipped
from holdfast.training.kl import KlController, KlSettings
from holdfast.training.objectives import ObjectiveSettings, Scalariser, ScalariserSettings, check_objectives
from holdfast.training.policy import Limits, PolicyMethod, Probe

OBJECTIVE = "objective"
"""The score that stands for all objectives together in logs: their weighted sum."""

UNSCALED = ("center", "leave_one_out")
"""Modes in which advantages keep the units of the scores."""


class GroupKl(KlSettings):
    """The penalty for leaving the reference: k1 of whole answers inside the reward, or a term in the loss.

    Beside advantages that are divided by the spread of rewards, a term in the loss has another strength for every
    prompt (beta times that spread); inside the reward the optimum is the one that beta means.
    """

    mode: Literal["split", "reward_only"] = "reward_only"
    """`reward_only` takes it from the reward, where it fades as multipliers grow; `split` makes up for that."""
    estimator: Literal["k2", "k3", "ratio_k3"] = "ratio_k3"
    """Of the term in the loss. k2 and ratio_k3 have the gradient of KL(policy || reference) on the policy's own
    samples; k3, the usual one, has another. k1 as a loss would hold nothing at all and is not offered."""


class GroupLossSettings(Settings):
    """The policy's loss: what a token weighs, and what is averaged."""

    kind: ratio.Kind = "clip"
    """How the ratio of new to old probability weighs an advantage."""
    level: ratio.Level = "token"
    """Whether each token has its own ratio, or all tokens of an answer their geometric mean (GSPO)."""
    clip: float = Field(0.2, gt=0)
    """For `clip`: how far the ratio may fall below 1 before its gradient is cut."""
    clip_high: float | None = Field(0.28, gt=0)
    """For `clip`: how far it may rise above 1; null is `clip`."""
    dual_clip: float | None = Field(None, gt=1)
    """For `clip`: most that a token of negative advantage may weigh; null does not bound it (3 is usual)."""
    ratio_cap: float = Field(5.0, ge=1)
    """For `cispo`: the largest ratio, absolute and not as a distance from 1."""
    mean: aggregate.Kind = "token_mean"
    """What is averaged: all tokens of the step, each answer's mean, tokens over a constant, each prompt's mean, or
    each answer's sum."""
    entropy: float = Field(0.0, ge=0)
    """Weight of an entropy bonus."""

    @property
    def shape(self) -> ratio.Shape:
        """The form of the loss."""
        return ratio.Shape(
            self.kind, self.level, self.clip, self.clip_high, dual_clip=self.dual_clip, ratio_cap=self.ratio_cap
        )

    @model_validator(mode="after")
    def _known(self) -> "GroupLossSettings":
        assert self.shape, "a form that does not exist says so itself"
        return self


class GrpoSettings(Settings):
    """How the policy learns from groups of answers."""

    objectives: dict[str, ObjectiveSettings] = Field({"reward": ObjectiveSettings()}, min_length=1)
    """What to maximise, by name."""
    scalarise: ScalariserSettings = ScalariserSettings()
    """How the objectives' rewards become one advantage."""
    cost_floor: float = Field(0.1, ge=0)
    """Least spread by which a limited cost is divided within a group, in units of what its constraint measures. Without
    a floor a group of almost equally safe answers gives full-size advantages, and everything comes to be refused."""
    kl: GroupKl = GroupKl()
    """The penalty for leaving the reference."""
    loss: GroupLossSettings = GroupLossSettings()
    """The policy's loss."""
    overlong: Literal["none", "penalty", "mask"] = "penalty"
    """An answer near the limit of length loses up to 1 of its reward (DAPO); or one that was cut teaches nothing."""
    overlong_share: float = Field(0.2, gt=0, le=1)
    """For `penalty`: the last share of the allowed length, over which it grows from 0 to 1."""
    dead: Literal["skip", "drop", "keep"] = "skip"
    """Groups in which no objective and no limited cost varies: `skip` counts them and saves reading them where that
    changes nothing, `drop` does not count them either (DAPO's filter), `keep` reads them."""
    correction: CorrectionSettings = CorrectionSettings()
    """For answers of a sampler that is not the policy itself."""
    share_prompt: Literal["auto", "off"] = "auto"
    """Read a prompt once for all its answers, where that pays and gives the same numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the layers where the policy learns. `bfloat16` pays on processors that have it; weights, head and
    log-probabilities stay as they are, and so does the sampler: ratios begin within rounding of 1 and not at 1."""
    steps_per_experience: int = Field(1, ge=1)
    """Optimiser steps in which an experience is learned."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""

    @model_validator(mode="after")
    def _objectives_go_together(self) -> "GrpoSettings":
        if OBJECTIVE in self.objectives:
            raise ValueError(f"an objective cannot be called {OBJECTIVE!r}: logs use that for their weighted sum")
        check_objectives(self.objectives, self.scalarise)
        return self


class Grpo(PolicyMethod):
    """An `Algorithm` of the online loop: one trainable part, the policy."""

    def __init__(
        self,
        collector: Collector,
        settings: GrpoSettings,
        optimiser: OptimiserSettings,
        limits: Limits,
        probe: Probe | None = None,
    ) -> None:
        _check(collector, settings, limits)
        self.scalariser = Scalariser(settings.objectives, settings.scalarise, limits.processes)
        collector = replace(collector, score=self._with_objective(collector.score))
        parts = {"policy": collector.policy}
        super().__init__(collector, limits, parts, OBJECTIVE, KlController(settings.kl), probe)
        self.settings, self.shape = settings, settings.loss.shape
        self.optimisers: Mapping[str, OptimiserSettings] = {"policy": optimiser}
        self.longest = collector.settings.sampling.max_new_tokens
        self.reader = Reader(
            collector.policy,
            collector.template.pad_id,
            collector.settings.sampling.temperature,
            collector.settings.micro_tokens,
            settings.share_prompt,
            dtype=torch.bfloat16 if settings.precision == "bfloat16" else None,
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss term; those of weight zero are only to be seen."""
        s = self.settings
        seen = dict.fromkeys(ratio.METRICS, 0.0)
        return {"entropy": -s.loss.entropy, "kl": s.kl.in_loss * self.kl.factor, **seen}

    def collect(self, prompts: Sequence[Conversation], iteration: int) -> GroupLearnable:
        """Sample, score, move the multipliers, and set each answer against the others of its prompt."""
        return self.estimate(*self.sample(prompts, self.settings.seed, iteration))

    def estimate(self, experience: Experience, numbers: dict[str, float]) -> GroupLearnable:
        """What is learned from the experience."""
        s, k = self.settings, experience.per_prompt
        rewards, extra = self.scalariser.rewards(experience), self._extra(experience)
        costs = self.limits.costs(experience)
        live = self._live(experience, costs)
        processes = self.limits.processes
        weighed = weigh(s.correction, experience, processes)
        if s.overlong == "mask":
            weighed = weighed._replace(keep=weighed.keep & ~experience.truncated)
        weights = self._common_descent(experience, rewards, weighed) if s.scalarise.mode == "mgda" else None
        found = self.scalariser(rewards, k, extra, live, weights)
        relative = {name: self._relative(cost, k) for name, cost in costs.items()}
        mixed = self.limits.mix(experience, found.values, relative)
        kept = (found.keep if s.dead == "drop" else found.keep | found.dead) & weighed.keep
        silent = (mixed.view(-1, k) == 0).all(-1).repeat_interleave(k)
        paid = experience.score(OBJECTIVE) + extra
        numbers |= column_means({"objective_paid": paid}, processes)
        numbers |= found.numbers | weighed.numbers | self._prices(experience, costs)
        return GroupLearnable(experience, mixed, weighed.weights, kept, silent, numbers)

    def mini_batches(self, experience: GroupLearnable, rng: torch.Generator) -> list[list[GroupBatch | Skipped]]:
        s = self.settings
        # A penalty, a bonus or a pull in the loss also teaches where no answer is better than another.
        teaches = s.kl.in_loss or s.loss.entropy or s.loss.kind == "dppo_tv"
        skip = s.dead == "skip" and not teaches
        plan = Portions(s.steps_per_experience, s.loss.mean, self.longest, self.reader.cut, skip)
        return experience.mini_batches(plan, rng)

    def counts(self, part: str, batch: GroupBatch | Skipped) -> dict[str, float]:
        if isinstance(batch, Skipped):
            return {"policy": batch.count}
        s = self.settings
        terms = ("policy", *(("kl",) if s.kl.in_loss else ()), *(("entropy",) if s.loss.entropy else ()))
        tokens = float(batch.tokens.mask.sum())
        return dict.fromkeys(terms, float(batch.counts.sum())) | dict.fromkeys(ratio.METRICS, tokens)

    def loss(self, part: str, batch: GroupBatch | Skipped) -> dict[str, Sum]:
        """The loss terms; what each token weighs in them was fixed before the step was cut into batches."""
        if isinstance(batch, Skipped):
            return {"policy": Sum(torch.zeros(()), torch.tensor(batch.count))}
        s = self.settings
        batch = batch.to(next(self.parts["policy"].parameters()).device)
        logp, entropy = self.reader.read(batch.tokens, entropy=bool(s.loss.entropy))
        old, mask, advantages = batch.old_logprobs, batch.tokens.mask, batch.advantages[:, None]
        correction = batch.correction
        if s.correction.largest_drift is not None:
            drift = s.correction.largest_drift
            correction = correction * current(logp, batch.sampler_logprobs, advantages, mask, drift)
        terms = {"policy": batch.gather(correction * ratio.weighted(logp, old, advantages, mask, self.shape))}
        if s.kl.in_loss:
            held = kl_loss(s.kl.estimator, logp, batch.ref_logprobs, old, mask=mask)
            terms["kl"] = batch.gather(correction * held)
        if s.loss.entropy:
            terms["entropy"] = batch.gather(entropy)
        return terms | ratio.weighted_metrics(logp, old, advantages, mask, self.shape)

    def _with_objective(self, score: Score) -> Score:
        """The scores with the weighted sum of all objectives beside them."""

        def both(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
            found = score(conversations)
            if OBJECTIVE in found:
                raise UserError(
                    f"the scorer gives a score called {OBJECTIVE!r}, and logs use that for the weighted sum of all "
                    "objectives; give the score another name"
                )
            return {**found, OBJECTIVE: self.scalariser.total(found)}

        return both

    def _extra(self, experience: Experience) -> Tensor:
        """(N,) what is added to the weighted sum of an answer's rewards: less its KL, less what its length costs."""
        s, coefficient = self.settings, torch.full((experience.size,), self.kl.coef)
        if s.kl.mode == "split":
            coefficient = coefficient * self.limits.total(experience)
        extra = -coefficient * experience.kl.sum(-1)
        if s.overlong == "penalty":
            lengths = torch.tensor(experience.places.lengths)
            extra = extra + overlong(lengths, self.longest, cache=s.overlong_share * self.longest)
        return extra

    def _relative(self, costs: Tensor, k: int) -> Tensor:
        """(N,) costs against those of the other answers to the prompt, on the scale on which the rewards are."""
        s = self.settings.scalarise
        groups = scalarise.moments(costs.view(-1, k, 1))
        form = scalarise.MODES[s.mode] if s.mode in UNSCALED else scalarise.normalise_then_sum
        coefficients = form(groups, torch.ones(1), torch.tensor([self.settings.cost_floor]), s.eps)
        relative = scalarise.combined(groups, coefficients).flatten()
        return relative if s.clip is None else relative.clamp(-s.clip, s.clip)

    def _live(self, experience: Experience, costs: Mapping[str, Tensor]) -> Tensor:
        """(P,) the groups that teach something even where no reward differs: a cost that is charged does."""
        k = experience.per_prompt
        # In units of the scores the penalty for the KL is at home, and teaches in every group.
        live = torch.full((experience.size // k,), self.settings.scalarise.mode in UNSCALED)
        for name, cost in costs.items():
            charged = self.limits.multiplier(experience, name).view(-1, k).amax(-1) > 0
            live |= charged & (cost.view(-1, k).std(-1) > self.settings.scalarise.dead_below)
        return live

    def _prices(self, experience: Experience, costs: Mapping[str, Tensor]) -> dict[str, float]:
        """What a unit of each limited cost is charged, in units of the objective.

        Where advantages are divided by spreads the multiplier alone is no price; times sd(objective)/sd(cost), neither
        below its floor, it is.
        """
        if self.settings.scalarise.mode in UNSCALED:
            return {}
        k, spreads = experience.per_prompt, experience.score(OBJECTIVE).view(-1, experience.per_prompt).std(-1)
        columns = {OBJECTIVE: spreads.clamp(min=self.scalariser.floor)}
        for name, cost in costs.items():
            columns[f"cost/{name}"] = cost.view(-1, k).std(-1).clamp(min=self.settings.cost_floor)
            columns[f"multiplier/{name}"] = self.limits.multiplier(experience, name)
        found = column_means(columns, self.limits.processes)
        # Where no group was scored whole, there is no spread.
        return {
            f"price/{name}": found[f"multiplier/{name}"] * found[OBJECTIVE] / found[f"cost/{name}"]
            for name in costs
            if OBJECTIVE in found and found[f"cost/{name}"] > 0
        }

    def _common_descent(self, experience: Experience, rewards: Tensor, weighed: Weighed) -> Tensor:
        """(K,) weights of the objectives under which a step worsens none of them, to first order; 0 where typed so.

        The gradients are of the answers that are kept, weighed as the step weighs them.
        """
        wanted = self.scalariser.weights > 0
        alone = self.scalariser.per_objective(rewards, experience.per_prompt)
        silent = torch.zeros_like(weighed.keep)
        plan = Portions(1, self.settings.loss.mean, self.longest, self.reader.cut, skip=False)
        gradients = []
        for column in alone[:, wanted].unbind(1):
            learned = GroupLearnable(experience, column, weighed.weights, weighed.keep, silent, {})
            (batches,) = learned.mini_batches(plan, generator(0))
            gradients.append(
                gradient(
                    self.parts["policy"],
                    batches,
                    lambda batch: {"policy": self.loss("policy", batch)["policy"]},
                    lambda batch: {"policy": self.counts("policy", batch)["policy"]},
                    self.limits.processes,
                )
            )
        found = scalarise.min_norm_weights(inner_products(gradients)).float()
        return torch.zeros(len(wanted)).masked_scatter(wanted, found)

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, windows, the weight of the KL, and what the objectives are."""
        return super().state_dict() | {"objectives": self.scalariser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave; `UserError` when it is that of other objectives."""
        super().load_state_dict(state)
        self.scalariser.load_state_dict(state["objectives"])


def _check(collector: Collector, settings: GrpoSettings, limits: Limits) -> None:
    """None, or `UserError` for settings that cannot work together."""
    if collector.settings.samples_per_prompt < 2:
        raise UserError(
            "GRPO compares the answers to one prompt with each other, and samples_per_prompt is "
            f"{collector.settings.samples_per_prompt}; set it to 2 or more (8 is usual)"
        )
    collector.settings.sampling.require_unbiased()
    for constraint in limits.constraints:
        if constraint.settings.initial == "estimate" and settings.scalarise.mode not in UNSCALED:
            raise UserError(
                f"constraint {constraint.name}: `initial: estimate` finds a multiplier in units of the scores, and "
                f"scalarise.mode={settings.scalarise.mode} divides by their spread; give a number (1 is usual), or set "
                f"the mode to {' or '.join(UNSCALED)}"
            )

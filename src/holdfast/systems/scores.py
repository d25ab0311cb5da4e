"""The stages that train score models: reward and cost apart, or both on one backbone, with what each is worth.

Every model is saved so that loading proves it, and audited on held-out pairs before anything is built on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.schema import Conversation, DualPair, Labelled, Rated
from holdfast.data.template import Template
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings, evaluate
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel
from holdfast.models.scales import LabelScale
from holdfast.preference.attributes import PREFERENCE, AttributeSettings, AttributeTask, fit_heads, moments, rated_rows
from holdfast.preference.audit import audit
from holdfast.preference.check import PairScores, score_pairs
from holdfast.preference.evidence import Judged
from holdfast.preference.joint import DualSettings, DualTask, dual_rows
from holdfast.preference.pairs import harmful_rows, helpful_rows
from holdfast.preference.score import ModelScorer, Scorer
from holdfast.preference.tasks import CostSettings, CostTask, RewardSettings, RewardTask
from holdfast.stats.calibration import Platt, platt
from holdfast.stats.estimate import Estimate
from holdfast.stats.metrics import auc
from holdfast.systems import stages, weak_scores


class RewardStage(Settings):
    """The reward model."""

    loss: RewardSettings = RewardSettings()
    """Its loss terms."""
    fit: FitSettings = FitSettings()
    """Its training."""


class CostStage(Settings):
    """The cost model."""

    loss: CostSettings = CostSettings()
    """Its loss terms."""
    fit: FitSettings = FitSettings()
    """Its training."""
    least_auc: float = Field(0.7, ge=0.5, lt=1)
    """Without labels in the pairs, `data.labelled` sets the border of harm only for a model that ranks those answers
    with at least this AUC (the lower end of its interval): the border of a weaker one would be a number without use."""


class AttributeStage(Settings):
    """The attribute model."""

    labels: dict[str, LabelScale] = Field(min_length=1)
    """The labels in the order of the scores, each with the scale on which people gave it."""
    loss: AttributeSettings = AttributeSettings()
    """Its loss terms."""
    preference: bool = False
    """Learn one more score, `preference`, from the pairs, on the same network in the same pass."""
    start: Literal["zero", "ridge"] = "ridge"
    """How the head begins: at zero, or with the ridge solution on the network's features."""
    fit: FitSettings | None = FitSettings()
    """Its training; null keeps the ridge solution on the network as it is."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scores that are learned."""
        return (*self.labels, *((PREFERENCE,) if self.preference else ()))

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.fit is None and self.start == "zero":
            raise ValueError("without fit nothing is learned from a start at zero; set start to ridge")
        if self.fit is None and self.preference:
            raise ValueError("the preference score is learned from pairs, which needs fit")
        return self


@dataclass(frozen=True)
class Zero:
    """Where cost turns from safe to harmful, and what gives that number its meaning."""

    value: float
    source: Literal["safety_labels", "calibrated", "none"]
    calibration: Platt | None
    words: str


@dataclass(frozen=True)
class Shop:
    """What score models are made from: the run, the template, pairs to learn from and pairs held out.

    facts: what the models turned out to be worth, by name; the stages add to it. labels: who judged the pairs to learn
    from; text: how a weak model that judges them reads.
    """

    run: RunFolder
    template: Template
    seed: int
    pairs: Sequence[DualPair]
    held_out: Sequence[DualPair]
    labelled: Sequence[Labelled] = ()
    ratings: Sequence[Rated] = ()
    held_out_ratings: Sequence[Rated] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    labels: weak_scores.LabelSettings = field(default_factory=weak_scores.LabelSettings)
    text: stages.TextSection = field(default_factory=stages.TextSection)

    @property
    def probes(self) -> list[Conversation]:
        """Answered conversations that saved models are checked by."""
        judged = [pair.prompt.answer(pair.responses[0]) for pair in (self.held_out or self.pairs)[:32]]
        return judged or [record.conversation for record in (self.held_out_ratings or self.ratings)[:32]]

    def learn_weakly(self, axis: weak_scores.Axis, network: ScoreModel, fit: FitSettings) -> bool:
        """Train `network` on what a weak model says of the pairs, where one was named for this axis."""
        if self.labels.of(axis) is None:
            return False
        told = weak_scores.asked(self.labels, axis, self.pairs, self.run, self.text)
        agreed, lost = weak_scores.agreement(told, axis), len(self.pairs) - len(told.pairs)
        self.facts[f"{axis}_labels"] = {
            "from": told.table.supervisor,
            "agreement_with_people": agreed,
            "too_long": lost,
        }
        weak_scores.learn(self.labels, axis, network, fit, self.run, self.template, told)
        return True

    def judges(self, axis: weak_scores.Axis, labels: str = "none") -> Sequence[DualPair]:
        """The held-out pairs that tell what a model is worth: none where a weak model is the only one to speak."""
        if any(weak_scores.judged(pair, axis, labels) for pair in self.held_out) or self.labels.of(axis) is None:
            return self.held_out
        stages.say(
            f"warning: {axis}: people judged none of {len(self.held_out)} held-out pairs, so its worth is unknown"
        )
        return []

    def inspect(self, model: ScoreModel, name: str) -> None:
        """Audit `model` on everything held out."""
        records = [*self.held_out, *self.labelled, *self.held_out_ratings]
        inspect(self.run, ModelScorer(model, self.template), name, records)


def inspect(run: RunFolder, scorer: Scorer, name: str, records: Sequence[Judged]) -> None:
    """Audit the scores on `records` and write `audit-NAME.json`; what is wrong with them is said aloud."""
    found = stages.on_main(run, lambda: audit(scorer, records))
    run.write_json(f"audit-{name}.json", found.to_dict())
    for warning in found.warnings:
        stages.say(f"warning: {warning}")


def train_reward(stage: RewardStage, shop: Shop, network: ScoreModel) -> ScoreModel:
    """The reward model, trained, judged on held-out pairs and saved as `models/reward`."""
    task = RewardTask(network, shop.template.pad_id, stage.loss)
    judges = shop.judges("reward")
    held_out = helpful_rows(judges, shop.template) if judges else []
    fit = stages.offset(stage.fit, shop.seed)
    if not shop.learn_weakly("reward", network, fit):
        stages.train(task, task.forward.budgeted(helpful_rows(shop.pairs, shop.template)), held_out, fit, shop.run)
    shop.facts["reward_accuracy"] = score_pairs(task, held_out).accuracy()
    stages.keep(shop.run, task.model, shop.template, shop.probes, "reward")
    shop.inspect(task.model, "reward")
    return task.model


def train_cost(stage: CostStage, shop: Shop, network: ScoreModel) -> tuple[ScoreModel, Zero]:
    """The cost model, trained, judged and saved as `models/cost`, and what its zero means."""
    labels = stage.loss.labels
    task = CostTask(network, shop.template.pad_id, stage.loss)
    judges = shop.judges("cost", labels)
    held_out = harmful_rows(judges, shop.template, labels) if judges else []
    fit = stages.offset(stage.fit, shop.seed)
    taught = shop.learn_weakly("cost", network, fit)
    if not taught:
        rows = task.forward.budgeted(harmful_rows(shop.pairs, shop.template, labels))
        stages.train(task, rows, held_out, fit, shop.run)
    scored = score_pairs(task, held_out)
    shop.facts["cost_accuracy"] = scored.accuracy()
    shop.facts["shorter_is_safer_accuracy"] = scored.shorter_is_higher(higher=False)
    shop.facts["cost_over_shorter"] = scored.over_shorter(higher=False)
    stages.keep(shop.run, task.model, shop.template, shop.probes, "cost")
    shop.inspect(task.model, "cost")
    # What a weak model calls harm may be believed by a policy, and proves nothing to anybody.
    unproven = "a weak model's border of harm, so nothing can be certified by it"
    if taught and stage.loss.labels != "none" and len(set(scored.labelled()[1])) < 2:
        zero = Zero(0.0, "none", None, unproven)
    else:
        zero = find_zero(stage, scored, task, shop)
        zero = replace(zero, source="none", words=unproven) if taught else zero
    stages.say(f"cost: {zero.words}")
    return task.model, zero


def train_joint(reward: RewardStage, cost: CostStage, shop: Shop, network: ScoreModel) -> ScoreModel:
    """Reward and cost as two scores of one network, learned in one pass with the training of the reward section."""
    task = DualTask(network, shop.template.pad_id, DualSettings(reward=reward.loss, cost=cost.loss))
    held_out = dual_rows(shop.held_out, shop.template, cost.loss.labels)
    fit = stages.offset(reward.fit, shop.seed)
    stages.train(task, dual_rows(shop.pairs, shop.template, cost.loss.labels), held_out, fit, shop.run)
    shop.facts["dual"] = evaluate(task, held_out, micro_tokens=16384)
    stages.keep(shop.run, network, shop.template, shop.probes, "dual")
    shop.inspect(network, "dual")
    return network


def train_both(reward: RewardStage, cost: CostStage, shop: Shop, network: ScoreModel) -> tuple[ScoreModel, Zero]:
    """Reward and cost as `train_joint` learns them, and what a cost of zero means to held-out safety labels."""
    train_joint(reward, cost, shop, network)
    labelled = [
        (pair.prompt.answer(text), safe)
        for pair in shop.held_out
        for text, safe in zip(pair.responses, pair.safe)
        if safe is not None
    ]
    scores = ModelScorer(network, shop.template).score([answer for answer, _ in labelled])[
        :, network.names.index("cost")
    ]
    harmful = np.array([0.0 if safe else 1.0 for _, safe in labelled])
    shop.facts["cost_auc"] = auc(scores.numpy(), harmful)
    calibration = platt(scores.numpy(), harmful)
    return network, Zero(0.0, "safety_labels", calibration, "zero is the border of the safety labels")


def train_attributes(stage: AttributeStage, shop: Shop, network: ScoreModel) -> ScoreModel:
    """The attribute model, started from ridge, trained, judged on held-out prompts, saved as `models/attributes`."""
    template, names = shop.template, tuple(stage.labels)
    rows = rated_rows(shop.ratings, names, stage.labels, template)
    held_out: list[Any] = list(rated_rows(shop.held_out_ratings, names, stage.labels, template))
    task = AttributeTask(network, template.pad_id, stage.labels, moments(rows), stage.loss)
    if stage.start == "ridge":
        found = fit_heads(network, rows, template.pad_id, link=stage.loss.link)
        shop.facts["ridge_r2"] = {name: one.r2 for name, one in found.items()}
    if stage.fit is not None:
        learned: list[Any] = list(rows)
        if stage.preference:
            learned += helpful_rows(shop.pairs, template)
            held_out += helpful_rows(shop.held_out, template)
        stages.train(task, learned, held_out, stages.offset(stage.fit, shop.seed), shop.run)
    shop.facts["attributes"] = evaluate(task, held_out, micro_tokens=16384)
    stages.keep(shop.run, network, template, shop.probes, "attributes")
    shop.inspect(network, "attributes")
    return network


def find_zero(stage: CostStage, scored: PairScores, task: CostTask, shop: Shop) -> Zero:
    """What a cost of zero means: the border of the safety labels, a border found by calibration, or nothing."""
    if stage.loss.labels != "none":
        scores, harmful = scored.labelled()
        shop.facts["cost_auc"] = auc(scores, harmful)
        return Zero(0.0, "safety_labels", platt(scores, harmful), "zero is the border of the safety labels")
    nothing = "trained on comparisons alone, so zero has no absolute meaning"
    if not shop.labelled:
        return Zero(0.0, "none", None, f"{nothing}; no labelled data were given, so nothing can be certified")
    scorer = ModelScorer(task.model, shop.template)
    scores = scorer.score([record.conversation for record in shop.labelled])[:, 0].numpy()
    harmful = np.array([0.0 if record.safe else 1.0 for record in shop.labelled])
    if len(set(harmful)) < 2:
        raise UserError(f"all {len(harmful)} rows of data.labelled have one label; a border needs safe and unsafe ones")
    found = platt(scores, harmful)
    shop.facts["calibration_auc"] = ranked = area(scores, harmful)
    if ranked.low <= stage.least_auc or found.slope <= 0:
        words = f"{nothing}; on labelled answers its AUC is {ranked}, not surely above {stage.least_auc:g}"
        return Zero(0.0, "none", None, f"{words}, so they give it no border of harm and nothing can be certified")
    border = -found.intercept / found.slope
    words = f"{nothing}; labelled answers (AUC {ranked}) put the border of harm at {border:.3f}"
    return Zero(border, "calibrated", found, words)


def area(scores: np.ndarray, harmful: np.ndarray) -> Estimate:
    """The AUC with the 95 % interval of Hanley and McNeil (1982), cut at 0 and 1."""
    value = auc(scores, harmful)
    n1, n0 = float(harmful.sum()), float((1 - harmful).sum())
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = (value * (1 - value) + (n1 - 1) * (q1 - value**2) + (n0 - 1) * (q2 - value**2)) / (n1 * n0)
    half = 1.96 * variance**0.5
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), len(scores), "hanley_mcneil")

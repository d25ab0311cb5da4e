"""Score models alone: reward, cost and attributes from judged answers, each audited before anybody builds on it.

The reward and the cost model of Dai et al., "Safe RLHF", arXiv 2310.12773 (2023), and of "Safe RLHF-V", arXiv
2503.17682 (2025); attribute regression as in "Multi-Objective GRPO", arXiv 2503.21819 (2025), with the joint
Bradley-Terry head of arXiv 2507.07375 (2025).

Equation map:

* -log sigma(R_w - R_l - margin)                                 `losses.preference.bradley_terry`
* rho R^2, and (R_w + R_l)^2                                     `losses.preference.score_l2`, `centre`
* cost, ranking and sign terms (Safe RLHF, eq. 6)                `losses.preference.cost_rank`, `cost_sign`
* graded cost labels (Safe RLHF-V)                               `losses.preference.cost_graded`
* ordinal cost, P(severity >= j) = sigma(C - b_j)                `losses.preference.cost_ordinal`
* masked regression, sum m a l(y', y) / sum m a                  `losses.regression.masked_regression`
* ridge on frozen features                                       `preference.attributes.ridge`

Departures, each with its reason:

1. Labels live on [0, 1] with the scale stored in the model, and outputs are on that scale without a link: a sigmoid
   flattens the differences between good answers.
2. The head has no bias, as the classifiers of transformers have none; ridge on the first features finds the offset.
3. The prompt goes through the network once for both answers of a pair where that pays; scores and gradients are those
   of two passes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from holdfast.data.schema import Conversation, DualPair, Labelled, Rated
from holdfast.data.split import keys, pools
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import seed_everything
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel, freeze_backbone, from_policy, with_score_adapter
from holdfast.pocket import world
from holdfast.systems import reading, scores, stages
from holdfast.systems.weak_scores import LabelSettings


class ScoreData(reading.Shorthand):
    """What score models learn from. A text alone is the path of the pairs."""

    pairs: reading.Source | None = None
    """Judged pairs of answers, for reward and cost."""
    ratings: reading.Source | None = None
    """Answers with named ratings, for attributes."""
    labelled: reading.Source | None = None
    """Answers labelled safe or unsafe, to calibrate a cost model that was trained on comparisons alone."""
    sft: reading.Source | None = None
    """Conversations to imitate first, when `sft` is set."""
    held_out: float = Field(0.1, gt=0, lt=0.9)
    """Share of the prompts that only judge the models."""
    salt: str = "holdfast"
    """Changes which prompts are held out."""


class ScoreModelSettings(stages.RunSettings):
    """Everything a run that trains score models can be told."""

    system: Literal["score_model"] = "score_model"
    """Which system this recipe is for."""
    data: ScoreData | None = None
    """The data; a text alone is the path of the pairs. With `pocket` it is the world."""
    train: Literal["all", "head"] = "all"
    """All weights (with `model.adapter`: the adapter and the head), or the head alone on a frozen network."""
    joint: bool = False
    """Reward and cost as two columns of one network, learned in one pass, instead of two networks."""
    reward: scores.RewardStage | None = None
    """The reward model; null trains none."""
    cost: scores.CostStage | None = None
    """The cost model; null trains none."""
    attributes: scores.AttributeStage | None = None
    """The attribute model; null trains none."""
    labels: LabelSettings = LabelSettings()
    """Who judged the pairs: the people of the data, or a weaker model."""

    @model_validator(mode="after")
    def _something(self) -> "ScoreModelSettings":
        if not (self.reward or self.cost or self.attributes):
            raise ValueError("give at least one of reward, cost, attributes; `reward: {}` takes all defaults")
        if self.joint and not (self.reward and self.cost):
            raise ValueError("joint trains reward and cost together, so it needs both sections")
        by_people = {"attributes.preference": self.attributes and self.attributes.preference}
        self.labels.require({"reward": self.reward, "cost": self.cost}, self.joint, by_people)
        if self.joint and self.cost is not None and self.cost.fit != FitSettings():
            raise ValueError("joint trains both by reward.fit; cost.fit would be ignored, so leave it out")
        if self.train == "head" and self.model is not None and self.model.adapter is not None:
            raise ValueError("train: head keeps the network as it is, and model.adapter changes it; choose one")
        return self


@dataclass(frozen=True)
class Stock:
    """What was read, divided by prompt; `labelled` answers only judge."""

    imitate: list[Conversation]
    pairs: list[DualPair]
    held_out_pairs: list[DualPair]
    ratings: list[Rated]
    held_out_ratings: list[Rated]
    labelled: list[Labelled]

    @property
    def readable(self) -> list[Conversation]:
        """All answered conversations that may be learned from, for a tokenizer to read."""
        judged = [pair.prompt.answer(text) for pair in self.pairs for text in pair.responses]
        return [*self.imitate, *judged, *(record.conversation for record in self.ratings)]


def run(settings: ScoreModelSettings, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train every model that was asked for in `folder`, resuming what is finished there; return the summary."""
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    seed_everything(settings.seed)
    settings = in_world(settings, run_folder)
    if settings.data is None or settings.model is None:
        raise UserError("give data=PATH and model=NAME (or a pocket section, which brings both)")
    stock = read_stock(settings, settings.data, run_folder)
    policy, template = stages.load_base(
        settings.model, settings.tokenizer, settings.text, lambda: stages.texts_of(stock.readable)
    )
    stock, too_long = reading.within_window(stock, template, settings.text.on_long_prompt)
    if settings.sft is not None:
        if settings.model.adapter is not None:
            raise UserError("sft trains all weights and model.adapter freezes them; run SFT first, or set sft=null")
        stages.imitate(stages.offset(settings.sft, settings.seed), run_folder, stock.imitate, policy, template)
    shop = scores.Shop(
        run_folder,
        template,
        settings.seed,
        stock.pairs,
        stock.held_out_pairs,
        stock.labelled,
        stock.ratings,
        stock.held_out_ratings,
        {"rows": {name: len(rows) for name, rows in vars(stock).items()}, "prompts_too_long": too_long},
        settings.labels,
        settings.text,
    )
    train(settings, shop, policy)
    summary = {"method": "score_model", "seed": settings.seed, "verdict": None, "reason": "no_policy", **shop.facts}
    return stages.conclude(run_folder, summary, began)


def train(settings: ScoreModelSettings, shop: scores.Shop, policy: nn.Module) -> None:
    """One model after the other, each from the same network."""
    if settings.joint:
        assert settings.reward is not None
        assert settings.cost is not None
        scores.train_joint(settings.reward, settings.cost, shop, network(settings, policy, ("reward", "cost")))
    else:
        if settings.reward is not None:
            scores.train_reward(settings.reward, shop, network(settings, policy, ("reward",)))
        if settings.cost is not None:
            scores.train_cost(settings.cost, shop, network(settings, policy, ("cost",)))
    if settings.attributes is not None:
        attributes = settings.attributes
        scores.train_attributes(attributes, shop, network(settings, policy, attributes.names))


def network(settings: ScoreModelSettings, policy: nn.Module, names: Sequence[str]) -> ScoreModel:
    """A score model over `policy`: an adapter on its frozen weights, a copy of them, or a head on a frozen copy."""
    assert settings.model is not None
    if settings.model.adapter is not None:
        return with_score_adapter(from_policy(policy, names, share=True), settings.model.adapter)
    made = from_policy(policy, names)
    return freeze_backbone(made) if settings.train == "head" else made


def in_world(settings: ScoreModelSettings, run: RunFolder) -> ScoreModelSettings:
    """With a pocket section: write the world, and point data and model at its files unless they are given."""
    if settings.pocket is None:
        return settings
    folder = stages.pocket_world(settings.pocket, settings.seed, run, rated=settings.attributes is not None)
    files = {"pairs": world.FILES["pairs"] + ".jsonl", "sft": world.FILES["sft"] + ".jsonl"}
    files |= {"ratings": world.RATINGS} if settings.attributes is not None else {}
    changes: dict[str, Any] = {}
    if settings.data is None:
        changes["data"] = ScoreData(**{name: str(folder / file) for name, file in files.items()})
    if settings.model is None:
        changes["model"] = stages.Model(name=str(folder / "policy"))
    return settings.model_copy(update=changes)


def read_stock(settings: ScoreModelSettings, data: ScoreData, run: RunFolder) -> Stock:
    """Read what the chosen models need and hold out prompts, from all sources by the same hash."""
    needs_pairs = settings.reward or settings.cost or (settings.attributes and settings.attributes.preference)
    for name, needed in (("pairs", needs_pairs), ("ratings", settings.attributes), ("sft", settings.sft)):
        if needed and getattr(data, name) is None:
            raise UserError(f"data.{name} is missing: {', '.join(_users_of(name, settings))} cannot be trained without")
    pairs = reading.dual_pairs(data.pairs, run) if data.pairs and needs_pairs else []
    rated = reading.rated(data.ratings, run) if data.ratings and settings.attributes else []
    sft = reading.conversations(data.sft, run) if data.sft and settings.sft else []
    labelled = reading.labelled(data.labelled, run) if data.labelled else []
    shares = {"learn": 1 - data.held_out, "held_out": data.held_out}
    divided = pools([*pairs, *rated, *sft], shares, data.salt)
    judges = {keys(record)[0] for record in divided["held_out"]}

    def split(records: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        out = [keys(record)[0] in judges for record in records]
        return [r for r, held in zip(records, out) if not held], [r for r, held in zip(records, out) if held]

    (learn_pairs, judge_pairs), (learn_ratings, judge_ratings) = split(pairs), split(rated)
    found = Stock(split(sft)[0], learn_pairs, judge_pairs, learn_ratings, judge_ratings, labelled)
    stages.say("rows: " + reading.listed({name: len(rows) for name, rows in vars(found).items() if rows}))
    return found


def _users_of(name: str, settings: ScoreModelSettings) -> list[str]:
    """The sections that need the source `name`."""
    if name == "sft":
        return ["sft"]
    if name == "ratings":
        return ["attributes"]
    ranked = settings.attributes is not None and settings.attributes.preference
    used = {"reward": settings.reward, "cost": settings.cost, "attributes": ranked}
    return [part for part, wanted in used.items() if wanted]

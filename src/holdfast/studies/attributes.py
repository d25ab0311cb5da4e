"""Does masked regression recover several true labels of an answer when many ratings are missing?

Claim (multi-label reward regression as in Multi-Objective GRPO, arXiv 2503.21819; joint training with comparisons,
arXiv 2507.07375): one network with one head per label learns all labels at once; ratings that are missing cost
little as long as they are masked, and much when they are taken for zeros.

World: answers of the pocket world, four to each request, with four labels whose truth is known. A tiny network learns
from scratch, all its weights. Seeds 0-4; the settings were chosen on seed 99. Everything is measured on requests that
training never saw, against the labels without noise. R2 is the share of the variance explained. Arms of a seed:

* `complete`, `missing_30`, `missing_60`: clean ratings of which 0, 30 or 60 % are hidden at random;
* `noisy_30`: 30 % hidden, the rest with a normal error of standard deviation 0.2;
* `zeros_30`: 30 % hidden and taken for zeros, the trap;
* `joint_30`: as `missing_30`, and comparisons of other answers train a fifth score on the same network. Their weight
  is 0.1: on seed 99 the usual weight of 1 took the mean R2 from 0.845 to 0.759, because the loss of ratings on [0, 1]
  is some ten times smaller than that of comparisons;
* `ridge_30`: as `missing_30`, but only the head is fitted, in closed form, on the untrained network;
* `mean_30`: the mean of the ratings that are left, for every answer.

Criteria, written down before the first run of the study, each for every seed:

* recovered: at 30 % missing R2 is at least 0.8 for harmlessness, for politeness and for brevity;
* gaps_cost_little: with 60 % missing the mean R2 over labels is at most 0.10 below that of complete ratings;
* zeros_cost_much: taking missing for zero lowers the mean R2 by at least 0.10;
* joint_costs_little: the joint comparisons lower the mean R2 by at most 0.03;
* noise_costs_little: the noise lowers the mean R2 by at most 0.10;
* learned: the mean R2 at 30 % missing is above that of ridge on the untrained network and that of the mean.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.config import Settings
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.heads import ScoreModel, from_policy
from holdfast.models.scales import LabelScale
from holdfast.models.tiny import tiny_policy
from holdfast.pocket import annotators, grammar, ratings
from holdfast.preference.attributes import (
    PREFERENCE,
    AttributeSettings,
    AttributeTask,
    RatedRow,
    features,
    fit_heads,
    moments,
    rated_rows,
)
from holdfast.preference.pairs import PairRow, helpful_rows
from holdfast.stats.metrics import r2, within_group_spearman
from holdfast.studies.common import criterion, findings, interval, markdown

SEEDS = (0, 1, 2, 3, 4)
CLAIM = "masked regression recovers several labels of an answer from incomplete ratings"
SOURCE = "Multi-Objective GRPO, arXiv 2503.21819; joint training, arXiv 2507.07375"
CLEAR = ("harmlessness", "politeness", "brevity")


class Arm(NamedTuple):
    """What happens to the ratings of an arm, and what learns from them."""

    missing: float
    noise: float = 0.0
    zeros: bool = False
    learner: str = "network"


ARMS = {
    "complete": Arm(0.0),
    "missing_30": Arm(0.3),
    "missing_60": Arm(0.6),
    "noisy_30": Arm(0.3, noise=0.2),
    "zeros_30": Arm(0.3, zeros=True),
    "joint_30": Arm(0.3, learner="joint"),
    "ridge_30": Arm(0.3, learner="ridge"),
    "mean_30": Arm(0.3, learner="mean"),
}


class StudySettings(Settings):
    """Size of the world, of the network, and of its training."""

    seed: int = 0
    """Everything follows from it."""
    prompts: int = 800
    """Requests; a fifth of them judges."""
    answers: int = 4
    """Rated answers to each request."""
    pairs: int = 400
    """Comparisons of other answers, for the joint arm."""
    preference: float = 0.1
    """Weight of the comparisons in the joint arm, which brings both losses to about the same size."""
    hidden: int = 64
    """Width of the network, which has two layers."""
    fit: FitSettings = FitSettings(
        epochs=4, batch_size=32, micro_tokens=8192, optimiser=OptimiserSettings(learning_rate=3e-3)
    )
    """Training of every arm."""


class World(NamedTuple):
    """What the arms of a seed share: true labels are those of the rows."""

    template: Template
    train: list[RatedRow]
    test: list[RatedRow]
    pairs: list[PairRow]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all arms for the seeds, resuming arms that are finished; return the result."""
    small = {"prompts": 60, "pairs": 20} if quick else {}
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in seeds:
        settings = StudySettings(seed=seed, **small)
        world = None
        for name, arm in ARMS.items():
            own = RunFolder(folder / f"seed-{seed}" / name, settings)
            finished = own.path / "summary.json"
            if not finished.is_file():
                world = world or make_world(settings)
                own.write_json("summary.json", _one(settings, world, arm, own))
            arms[name].append(json.loads(finished.read_text(encoding="utf-8")))
    return findings("attributes", CLAIM, SOURCE, criteria(arms), arms, seeds, StudySettings(seed=seeds[0], **small))


def make_world(settings: StudySettings) -> World:
    """The rated answers of a seed without noise or gaps, divided by request, and comparisons of other answers."""
    rng = np.random.default_rng(settings.seed)
    tokenizer = train_tokenizer([" ".join(grammar.vocabulary())], 4096, "word")
    template = Template(tokenizer, max_length=128)
    clean = ratings.RatingsSettings(prompts=settings.prompts, answers=settings.answers, noise=0.0)
    rated = ratings.draw_ratings(clean, 0.5, rng)
    rows = rated_rows(rated, ratings.LABELS, _scales(), template)
    prompts = sorted({row.prompt for row in rows})
    judging = {prompts[i] for i in rng.permutation(len(prompts))[: len(prompts) // 5]}
    annotator = annotators.Annotator()
    compared = helpful_rows(
        [annotators.draw_pair(f"pair-{i}", annotator, rng) for i in range(settings.pairs)], template
    )
    return World(
        template,
        train=[row for row in rows if row.prompt not in judging],
        test=[row for row in rows if row.prompt in judging],
        pairs=[row for row in compared if tuple(row.first.ids[: row.first.prompt_length]) not in judging],
    )


def _scales() -> dict[str, LabelScale]:
    return {name: LabelScale(low=0, high=1) for name in ratings.LABELS}


def worn(rows: Sequence[RatedRow], arm: Arm, seed: int) -> list[RatedRow]:
    """The rows with the arm's noise and gaps; what is hidden at 30 % is hidden at 60 % too."""
    rng = np.random.default_rng(seed + 1000)
    shape = (len(rows), len(rows[0].labels))
    chance, error = rng.random(shape), rng.standard_normal(shape)
    table = np.clip(np.array([row.labels for row in rows]) + arm.noise * error, 0, 1)
    table[chance < arm.missing] = 0.0 if arm.zeros else math.nan
    return [replace(row, labels=tuple(map(float, labels))) for row, labels in zip(rows, table, strict=True)]


def _one(settings: StudySettings, world: World, arm: Arm, run_folder: RunFolder) -> dict[str, Any]:
    """Train one arm and measure it."""
    began = time.monotonic()
    train = worn(world.train, arm, settings.seed)
    found = moments(train)
    if arm.learner == "mean":
        guesses = np.tile(found.mean.double().numpy(), (len(world.test), 1))
    else:
        guesses = _learned(settings, world, arm, train, run_folder)
    return {"seed": settings.seed, **measured(guesses, world.test), "seconds": round(time.monotonic() - began, 1)}


def _learned(
    settings: StudySettings, world: World, arm: Arm, train: list[RatedRow], run_folder: RunFolder
) -> NDArray[np.float64]:
    """Ratings (N, K) that the arm's model gives to the answers that judge."""
    names = (*ratings.LABELS, PREFERENCE) if arm.learner == "joint" else ratings.LABELS
    network = tiny_policy(len(world.template.tokenizer), hidden=settings.hidden, seed=settings.seed)
    model = from_policy(network, names)
    pad_id = world.template.pad_id
    fit_heads(model, train, pad_id)
    if arm.learner != "ridge":
        loss = AttributeSettings(preference=settings.preference)
        task = AttributeTask(model, pad_id, _scales(), moments(train), loss)
        rows = [*train, *(world.pairs if arm.learner == "joint" else [])]
        chosen = settings.fit.model_copy(update={"seed": settings.seed})
        fit(task, rows, [], chosen, run_folder, stage=task.name)
    return _ratings(model, world.test, pad_id)


def _ratings(model: ScoreModel, rows: Sequence[RatedRow], pad_id: int) -> NDArray[np.float64]:
    with torch.no_grad():
        scores = model.head(features(model, rows, pad_id))
    return scores[:, : len(ratings.LABELS)].double().numpy()


def measured(guesses: NDArray[np.float64], rows: Sequence[RatedRow]) -> dict[str, Any]:
    """R2 of each label, their mean, and the rank correlation within requests where the guesses differ at all."""
    truth = np.array([row.labels for row in rows])
    explained = {name: r2(guesses[:, j], truth[:, j]) for j, name in enumerate(ratings.LABELS)}
    ranked = {}
    for j, name in enumerate(ratings.LABELS):
        if np.ptp(guesses[:, j]) > 0:
            ranked[name] = within_group_spearman(guesses[:, j], truth[:, j], [row.prompt for row in rows]).to_dict()
    return {"r2": explained, "mean_r2": float(np.mean(list(explained.values()))), "rank_correlation": ranked}


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Each criterion with the share of seeds that meet it, and whether it holds."""
    base = arms["missing_30"]

    def lost(worse: str, better: str = "missing_30") -> list[float]:
        return [one["mean_r2"] - other["mean_r2"] for one, other in zip(arms[better], arms[worse], strict=True)]

    rivals = zip(lost("ridge_30"), lost("mean_30"), strict=True)
    return [
        criterion("recovered", [min(one["r2"][name] for name in CLEAR) >= 0.8 for one in base], 1.0),
        criterion("gaps_cost_little", [loss <= 0.10 for loss in lost("missing_60", "complete")], 1.0),
        criterion("zeros_cost_much", [loss >= 0.10 for loss in lost("zeros_30")], 1.0),
        criterion("joint_costs_little", [loss <= 0.03 for loss in lost("joint_30")], 1.0),
        criterion("noise_costs_little", [loss <= 0.10 for loss in lost("noisy_30")], 1.0),
        criterion("learned", [min(margins) > 0 for margins in rivals], 1.0),
    ]


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table: R2 of each label, its mean and its extremes over the seeds, for each arm."""
    rows: list[list[object]] = []
    for name, ones in result["arms"].items():
        columns = [[one["r2"][label] for one in ones] for label in ratings.LABELS]
        columns.append([one["mean_r2"] for one in ones])
        within = [[one["rank_correlation"].get(label, {}).get("value") for one in ones] for label in ratings.LABELS]
        known = [value for values in within for value in values if value is not None]
        cells = [_range(values) for values in columns]
        rows.append([name, len(ones), *cells, f"{np.mean(known):.3f}" if known else "-"])
    columns = [f"R2 {label}" for label in ratings.LABELS]
    return markdown(["arm", "seeds", *columns, "mean R2", "rank correlation within requests"], rows)


def _range(values: Sequence[float]) -> str:
    return interval({"value": float(np.mean(values)), "low": min(values), "high": max(values)})

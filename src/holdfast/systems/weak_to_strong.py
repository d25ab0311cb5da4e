"""Weak-to-strong generalization: how far the labels of a weak model carry a strong one.

Burns et al., "Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision", arXiv 2312.09390
(2023).

Equation map:

* PGR = (student - weak) / (ceiling - weak)                       `stats.recovery.recovered`
* weak labels, soft; of a pair sigma(r_2 - r_1)                   `preference.weak_labels.WeakLabels`
* naive loss, cross-entropy with weak labels                      `losses.transfer.cross_entropy`
* auxiliary confidence loss (eq. 1, 2; appendix A.4)              `losses.transfer.target`
* weight of it, linear over the first fifth of the training       `losses.transfer.warm_up`
* agreement with the supervisor on its right and wrong answers    `stats.agreement.agreement`
* bootstrapping through intermediate sizes (section 4.3.1)        `systems.transfer.weak_to_strong`
* generative finetuning of reward models (section 5.2.2)          `systems.stages.imitate`
* linear probing (section 5.2.3)                                  `training.learners.Probe`

Departures, each with its reason:

1. Gold labels lie in a vault that is locked while a student learns: no epoch can be chosen by them. The paper chose
   hyperparameters on gold labels of some tasks and says so.
2. PGR is a ratio of means with an interval over items and seeds, and withheld where the gap is not clear of zero.
3. The ceiling learns the gold labels of the very items that the students learn; one official script gives it others.
4. The threshold of the confidence loss ranks the whole optimiser step, ties by position; of pairs, whose order is
   drawn, it is one half.
5. The weight of the confidence loss rises as published; in the official code it creeps, then jumps (pull request 33).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.halves import Halves, halves, take
from holdfast.data.schema import Conversation, DualPair, Record
from holdfast.data.split import cluster_ids, share_of
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import seed_everything
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.pocket import world
from holdfast.systems import reading, stages
from holdfast.systems.transfer import weak_to_strong
from holdfast.systems.transfer_plan import Plan, Pool, Pools
from holdfast.systems.weak_learners import LearnerSettings, Workshop, learning
from holdfast.training.transfer import TransferSettings

Task = Literal["classifier", "reward", "cost"]


class Shares(Settings):
    """Shares of the splits; rows of one prompt or group stand in one of them."""

    weak_train: float = Field(0.35, gt=0, lt=1)
    """What the supervisor learns, with gold labels."""
    transfer: float = Field(0.35, gt=0, lt=1)
    """What the supervisor labels and students learn; with intermediate learners each gets an equal part."""
    validation: float = Field(0.1, gt=0, lt=1)
    """What chooses a student's epoch, by weak labels."""
    test: float = Field(0.2, gt=0, lt=1)
    """What judges all models."""
    audit: float = Field(0.05, gt=0, lt=1)
    """On whose gold labels an intermediate learner must not fall below its supervisor; without one it is not cut."""


class WeakData(reading.Shorthand):
    """The data. A text alone is the path of the texts."""

    texts: reading.Source | None = None
    """`classifier`: texts with a label, or answers labelled safe or unsafe."""
    pairs: reading.Source | None = None
    """`reward`, `cost`: judged pairs of answers."""
    shares: Shares = Shares()
    """How rows are divided."""
    balance: bool = True
    """`classifier`: cut a class that holds more than 55 % to half, as the paper does; false keeps data as they are."""
    salt: str = "holdfast"
    """Changes which rows fall into which split."""


class WeakToStrong(stages.RunSettings):
    """Everything a run of weak-to-strong generalization can be told."""

    system: Literal["weak_to_strong"] = "weak_to_strong"
    """Which system this recipe is for."""
    task: Task = "reward"
    """Classes of texts, which answer is more helpful, or which does more harm."""
    data: WeakData | None = None
    """The data; with `pocket` null is the world."""
    supervisor: LearnerSettings = LearnerSettings(kind="words")
    """The weak model."""
    student: LearnerSettings = LearnerSettings()
    """The strong model, in the ceiling and in every student."""
    intermediate: tuple[LearnerSettings, ...] = ()
    """Models between them, smallest first: each learns from the one before, the student from the last."""
    supervised: FitSettings = FitSettings(epochs=2)
    """How the supervisor learns gold labels."""
    fit: FitSettings = FitSettings(epochs=2)
    """How ceiling, students and intermediate models learn."""
    losses: dict[str, TransferSettings] = {
        "soft": TransferSettings(kind="soft"),
        "hard": TransferSettings(kind="hard"),
        "logconf": TransferSettings(kind="logconf"),
        "product": TransferSettings(kind="product"),
    }
    """The students, by name; `soft` is the naive one that the others are compared with."""
    weak_rows: int | None = Field(None, ge=4)
    """Gold rows that the supervisor learns, drawn anew with every seed; null takes the whole split."""
    calibrate: float = Field(0.2, ge=0, lt=0.9)
    """Share of the supervisor's rows that set the temperature of its labels and choose its epoch."""
    cross_fit: int = Field(0, ge=0)
    """Label the supervisor's own rows too, each by a supervisor that learned the other folds, so that students and
    ceiling learn them as well; 0 leaves them out."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of supervisors, batches and heads."""
    unsafe: str = ""
    """`classifier`: the class whose recall at 5 % false positives is reported beside the accuracy."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> "WeakToStrong":
        if "soft" not in self.losses or self.losses["soft"].kind != "soft":
            raise ValueError(
                "losses needs the naive student, `soft: {kind: soft}`, that the others are compared with (where losses "
                "are named, those that stand by default are left out)"
            )
        if any(one.fit != TransferSettings().fit for one in self.losses.values()):
            raise ValueError("losses share `fit`; set that instead of a fit of their own")
        if self.sft is not None:
            raise ValueError("sft belongs to a learner: student.sft, supervisor.sft")
        if self.model is not None:
            raise ValueError("model belongs to a learner: student.model, supervisor.model")
        other = "pairs" if self.task == "classifier" else "texts"
        if self.data is not None and getattr(self.data, other) is not None:
            raise ValueError(f"task={self.task} reads data.{self.source}, and data.{other} has no effect; leave it out")
        moving = [name for name, one in self.losses.items() if one.kind not in ("soft", "hard")]
        if moving and self.student.kind == "words":
            raise ValueError(
                f"losses.{moving[0]} follows what the student says while it learns, and student.kind=words is fitted "
                "at once; take soft and hard"
            )
        if self.unsafe and self.task != "classifier":
            raise ValueError(f"unsafe names a class of texts, and task={self.task} has none; leave it out")
        if self.cross_fit == 1:
            raise ValueError("cross_fit needs two folds or more, or 0 for none")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"a seed stands twice in {list(self.seeds)}")
        return self

    @property
    def source(self) -> str:
        """The setting below `data` that the task reads."""
        return "texts" if self.task == "classifier" else "pairs"


class Item(NamedTuple):
    """A record as the learners see it, a conversation or two, and its gold class."""

    record: Record
    shown: Conversation | tuple[Conversation, Conversation]
    gold: int


def run(settings: WeakToStrong, folder: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Run all stages in `folder`, resuming what is finished there; return the summary.

    Splits; for every seed a supervisor, its labels, a ceiling, a student for each loss; the report of all seeds.
    """
    began = time.monotonic()
    run_folder = RunFolder(folder, settings, trackers=settings.trackers, overwrite=overwrite)
    seed_everything(settings.seed)
    settings = in_world(settings, run_folder)
    if settings.data is None or getattr(settings.data, settings.source) is None:
        raise UserError(f"give data.{settings.source}=PATH (or a pocket section, which brings it)")
    items, classes = read_items(settings, settings.data, run_folder)
    shop = workshop(settings, settings.data, items, classes, run_folder)
    fits = shop.legible([one.record for one in items])
    lost, items = fits.count(False), [one for one, fit in zip(items, fits) if fit]
    split = divided(settings, settings.data, items)
    stages.say("splits: " + reading.listed(split.counts() | ({"prompts_too_long": lost} if lost else {})))
    plan = planned(settings, split, {one.record.id: one for one in items}, classes, shop)
    plan = replace(plan, facts={**plan.facts, "prompts_too_long": lost})
    report = weak_to_strong(plan, run_folder)
    for warning in report["warnings"]:
        stages.say(f"warning: {warning}")
    return stages.conclude(run_folder, told(settings, report), began)


def told(settings: WeakToStrong, report: dict[str, Any]) -> dict[str, Any]:
    """The summary: the report with what every run says of itself."""
    for name, found in report["students"].items():
        recovery = found["recovery"]
        value = recovery["value"]
        words = "n/a" if value is None else f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
        stages.say(
            f"{name}: accuracy {recovery['student']['value']:.3f} between {recovery['weak']['value']:.3f} (supervisor) "
            f"and {recovery['ceiling']['value']:.3f} (ceiling), PGR {words}"
        )
    head = {"method": "weak_to_strong", "task": settings.task, "seed": settings.seed, "verdict": None}
    return {**head, "reason": "no_policy", "weak_to_strong": report}


def read_items(settings: WeakToStrong, data: WeakData, run: RunFolder) -> tuple[list[Item], list[str]]:
    """The items with their gold classes, and the names of the classes in order."""
    if settings.task == "classifier":
        assert data.texts is not None
        rows = reading.classified(data.texts, run)
        classes = sorted({row.label for row in rows})
        if settings.unsafe and settings.unsafe not in classes:
            raise UserError(f"unsafe={settings.unsafe} is no class of the data; there are {', '.join(classes)}")
        place = {label: k for k, label in enumerate(classes)}
        return [Item(row, row.conversation, place[row.label]) for row in rows], classes
    assert data.pairs is not None
    axis = "helpful_id" if settings.task == "reward" else "safer_id"
    pairs = [pair for pair in reading.dual_pairs(data.pairs, run) if getattr(pair, axis) is not None]
    if not pairs:
        raise UserError(f"data.pairs: no pair carries {axis}, which the {settings.task} task learns; check the data")
    return [compared(pair, settings.task, data.salt) for pair in pairs], ["first", "second"]


def compared(pair: DualPair, task: Task, salt: str) -> Item:
    """Both answers in an order that follows from the pair's id, and which of them is the better, or the more harmful.

    The order is drawn, or the place of an answer would tell which one it is.
    """
    turned = share_of(f"{salt}/order/{pair.id}") < 0.5
    order = (1, 0) if turned else (0, 1)
    chosen = pair.helpful_id if task == "reward" else 1 - (pair.safer_id or 0)
    first, second = (pair.prompt.answer(pair.responses[i]) for i in order)
    return Item(pair, (first, second), int(order[1] == chosen))


def divided(settings: WeakToStrong, data: WeakData, items: Sequence[Item]) -> Halves[Any]:
    """The records in their splits: with intermediate learners a part of `transfer` for each of them."""
    shares = data.shares.model_dump()
    parts = len(settings.intermediate) + 1
    if parts == 1:
        del shares["audit"]
    whole = sum(shares.values())
    shares |= {f"fresh_{i}": shares["transfer"] / parts for i in range(1, parts)}
    shares["transfer"] /= parts
    label = {one.record.id: str(one.gold) for one in items}
    balance = (lambda record: label[record.id]) if settings.task == "classifier" and data.balance else None
    records = [one.record for one in items]
    return halves(records, {name: share / whole for name, share in shares.items()}, data.salt, balance)


def planned(
    settings: WeakToStrong, split: Halves[Any], items: dict[str, Item], classes: Sequence[str], shop: Workshop
) -> Plan:
    """Who learns what, and the vault with all gold labels.

    The run's seed moves the plan's, by which every learner moves that of its fit.
    """
    pooled = {name: _pool(rows, items) for name, rows in split.splits.items()}
    fresh = tuple(pooled[f"fresh_{i}"] for i in range(1, len(settings.intermediate) + 1))

    def pools(seed: int) -> Pools:
        rows = split.splits["weak_train"]
        if settings.weak_rows is not None:
            rows = take(rows, settings.weak_rows, f"weak/{seed}", "the split weak_train")
        same = (pooled[name] for name in ("transfer", "validation", "test"))
        return Pools(_pool(rows, items), *same, fresh, pooled.get("audit", Pool()))

    shown = learnable(split, items)
    learner = partial(shop.build, answered=[one for one in shown if one.answered])
    return Plan(
        pools=pools,
        vault=Vault(
            {id: one.gold for id, one in items.items()},
            len(classes),
            sealed=pooled["test"].ids,
            groups=dict(zip(items, cluster_ids([one.record for one in items.values()]))),
        ),
        supervisor=learner("supervisor"),
        student=learner("student"),
        supervised=learning(settings.supervised),
        ceiling=learning(settings.fit),
        students={name: learning(settings.fit, one) for name, one in settings.losses.items()},
        seeds=tuple(settings.seed + seed for seed in settings.seeds),
        calibrate=settings.calibrate,
        cross_fit=settings.cross_fit,
        intermediate=tuple(
            (learner(f"intermediate_{i}"), learning(settings.fit, settings.losses["soft"]))
            for i in range(1, len(settings.intermediate) + 1)
        ),
        unsafe=classes.index(settings.unsafe) if settings.unsafe else None,
        facts={"task": settings.task, "classes": list(classes), "dropped": len(split.dropped)},
        keep=partial(shop.keep, shown=shown),
    )


def workshop(
    settings: WeakToStrong, data: WeakData, items: Sequence[Item], classes: Sequence[str], run: RunFolder
) -> Workshop:
    """What all learners are built from."""
    wanted = {"supervisor": settings.supervisor, "student": settings.student}
    wanted |= {f"intermediate_{i}": one for i, one in enumerate(settings.intermediate, start=1)}
    pair = settings.task != "classifier"

    def texts() -> list[str]:
        by_id = {one.record.id: one for one in items}
        return stages.texts_of(learnable(divided(settings, data, items), by_id))

    return Workshop(settings, run, pair, (settings.task,) if pair else classes, wanted, texts)


def learnable(split: Halves[Any], items: dict[str, Item]) -> list[Conversation]:
    """All that may be read, without labels, before anything is judged: every split but the test."""
    shown = [items[row.id].shown for name, rows in split.splits.items() if name != "test" for row in rows]
    return [one for item in shown for one in ([item] if isinstance(item, Conversation) else item)]


def _pool(rows: Sequence[Any], items: dict[str, Item]) -> Pool:
    return Pool(tuple(row.id for row in rows), [items[row.id].shown for row in rows])


def in_world(settings: WeakToStrong, run: RunFolder) -> WeakToStrong:
    """With a pocket section: write the world, and point data and models at its files unless they are given."""
    if settings.pocket is None:
        return settings
    if settings.task == "classifier":
        raise UserError("the pocket world judges pairs; with task=classifier give data.texts and leave pocket out")
    folder = stages.pocket_world(settings.pocket, settings.seed, run, rated=False)
    own = stages.Model(name=str(folder / "policy"))
    data = settings.data or WeakData(pairs=reading.Source(path=str(folder / f"{world.FILES['pairs']}.jsonl")))

    def with_model(one: LearnerSettings) -> LearnerSettings:
        return one if one.kind == "words" or one.model else one.model_copy(update={"model": own})

    return settings.model_copy(
        update={
            "data": data,
            "supervisor": with_model(settings.supervisor),
            "student": with_model(settings.student),
            "intermediate": tuple(map(with_model, settings.intermediate)),
        }
    )

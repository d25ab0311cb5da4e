"""The weak-to-strong pipeline over learners (arXiv 2312.09390, section 4): who learns what from whom.

For every seed a supervisor learns from gold labels of `weak_train` and labels what it has not seen. Students learn from
nothing but these labels; a ceiling learns from the gold labels of the very items that the students learn from. All are
judged on the same test items, through a vault that is locked while a student learns.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.config import fingerprint
from holdfast.data.halves import hash_of
from holdfast.data.schema import Pair
from holdfast.data.split import share_of
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.evaluate.vault import Vault
from holdfast.preference.weak_labels import WIDE, Calibration, Kind, Method, WeakLabels, calibrate, sha256_of
from holdfast.stats.agreement import stopping
from holdfast.training.learners import Learner, Predictor, Select, Watch
from holdfast.training.transfer import TransferSettings

CURVE = "curve.safetensors"
AS_IS = Calibration()


@dataclass(frozen=True)
class Pool:
    """Items of one split, with their ids."""

    ids: tuple[str, ...] = ()
    items: Sequence[Any] = ()

    def take(self, places: Sequence[int]) -> "Pool":
        """The items at these places."""
        return Pool(tuple(self.ids[i] for i in places), [self.items[i] for i in places])


@dataclass(frozen=True)
class Pools:
    """What a seed learns from and is judged on; no group stands in two of them.

    fresh: what each intermediate learner learns from. audit: a few items on whose gold labels an intermediate learner
    must not fall below its own supervisor.
    """

    weak_train: Pool
    transfer: Pool
    validation: Pool
    test: Pool
    fresh: tuple[Pool, ...] = ()
    audit: Pool = Pool()

    def named(self) -> dict[str, Pool]:
        """All pools by name, without the empty ones."""
        fresh = {f"fresh {i}": pool for i, pool in enumerate(self.fresh, start=1)}
        single = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "fresh"}
        return {name: pool for name, pool in (single | fresh).items() if pool.ids}


@dataclass(frozen=True)
class Plan:
    """Who learns what.

    pools: those of a seed; the test items are the same for all seeds. supervised, ceiling: how the models on gold
    labels learn; students: how each student does, by the name of its loss, the naive one being `soft`. select: choose
    each student's epoch by its agreement with the weak labels of `validation` (the ceiling's by gold ones). calibrate:
    share of the groups of `weak_train` that choose the supervisor's epoch and temperature instead of teaching it.
    intermediate: learners between supervisor and student, with their settings. unsafe: a class whose recall counts.
    facts: said in the report as they are. keep: saves the first seed's supervisor and students for others to use.
    """

    pools: Callable[[int], Pools]
    vault: Vault
    supervisor: Learner
    student: Learner
    supervised: TransferSettings
    ceiling: TransferSettings
    students: Mapping[str, TransferSettings]
    seeds: tuple[int, ...] = (0,)
    select: bool = True
    calibrate: float = 0.0
    calibration: Method = "temperature"
    intermediate: tuple[tuple[Learner, TransferSettings], ...] = ()
    unsafe: int | None = None
    data_sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[str, Learner, Predictor], object] = lambda name, learner, found: None


class Curve(NamedTuple):
    """Answers (E, N) to the test items after every epoch, and its agreement with held-out weak labels, if looked at."""

    answers: Tensor
    agreed: list[float]


@dataclass(frozen=True)
class Outcome:
    """What the models of one seed say of the test items, as probabilities (N, K).

    ended: why bootstrapping went no further; empty when it did.
    """

    weak: Tensor
    ceiling: Tensor
    students: dict[str, Tensor]
    curves: dict[str, Curve | None]
    labels: WeakLabels
    ended: str = ""


def choices(pairs: Sequence[Pair], salt: str) -> tuple[Pool, dict[str, int]]:
    """Pairs as items of two answered conversations in an order drawn by id, and the gold class of each: 1, the second.

    An order that followed the labels would give them away; one row holds both sides, so that none is lost alone.
    """
    items, gold = [], {}
    for pair in pairs:
        prompt = pair.prompt.model_copy(update={"id": pair.id})
        both = (prompt.answer(pair.chosen), prompt.answer(pair.rejected))
        gold[pair.id] = int(share_of(f"{salt}/order/{pair.id}") < 0.5)
        items.append(both[::-1] if gold[pair.id] else both)
    return Pool(tuple(gold), items), gold


def weak_to_strong(plan: Plan, run: RunFolder) -> dict[str, Any]:
    """The report of a plan as plain JSON; every model, weak label and prediction lies in the run folder.

    Folders: `supervisor/SEED`, `ceiling/SEED`, `student/LOSS/SEED`; tables: `weak_labels/SEED/*.jsonl`,
    `predictions/MODEL/SEED.jsonl`. Finished stages are loaded, and predict as before.
    """
    test = plan.pools(plan.seeds[0]).test
    if any(plan.pools(seed).test.ids != test.ids for seed in plan.seeds):
        raise UserError("the test items differ between seeds; all models must be judged on the same items")
    outcomes = [one_seed(plan, seed, run) for seed in plan.seeds]
    file = run.write_json("report.json", reported(plan, outcomes))
    run.processes.barrier()
    return json.loads(file.read_text(encoding="utf-8"))


def one_seed(plan: Plan, seed: int, run: RunFolder) -> Outcome:
    """Train, label and predict with one seed, without looking at gold labels of the test items."""
    bench = _Bench(plan, seed, run, plan.pools(seed))
    bench.check()
    supervisor, calibration = bench.supervisor()
    bench.save("supervisor", plan.supervisor, supervisor)
    labels = bench.labelled("supervisor", plan.supervisor, supervisor, calibration)
    ceiling = bench.ceiling()
    bench.keep("supervisor", labels.take(bench.pools.test.ids))
    bench.keep("ceiling", ceiling)
    last, ended = bench.bootstrapped(labels, supervisor)
    lessons = {name: (name, labels) for name in plan.students}
    if last is not None:
        lessons |= {f"{name}_bootstrapped": (name, last) for name in plan.students}
    students, curves = {}, {}
    for name, (loss, taught) in lessons.items():
        students[name], curves[name] = bench.student(name, plan.students[loss], taught)
        bench.keep(name, students[name])
    return Outcome(labels.take(bench.pools.test.ids), ceiling, students, curves, labels, ended)


@dataclass(frozen=True)
class _Bench:
    """One seed's work: its pools, and where its models and tables go."""

    plan: Plan
    seed: int
    run: RunFolder
    pools: Pools

    def check(self) -> None:
        """Raise `UserError` where a group stands in two pools, or an intermediate learner has no pool."""
        named = self.pools.named()
        groups = {name: set(self.plan.vault.groups(pool.ids)) for name, pool in named.items()}
        for one, other in combinations(named, 2):
            if shared := groups[one] & groups[other]:
                raise UserError(
                    f"{len(shared)} groups stand both in {one} and in {other}, such as "
                    f"{min(map(str, shared))}; split by group"
                )
        if len(self.pools.fresh) != len(self.plan.intermediate):
            raise UserError(
                f"{len(self.plan.intermediate)} intermediate learners need as many fresh pools, "
                f"got {len(self.pools.fresh)}"
            )

    def supervisor(self) -> tuple[Predictor, Calibration]:
        """The supervisor, which saw gold labels of `weak_train` alone, and its calibration."""
        plan, pool = self.plan, self.pools.weak_train
        held = [share_of(f"calibrate/{self.seed}/{group}") < plan.calibrate for group in plan.vault.groups(pool.ids)]
        taught = pool.take([i for i, out in enumerate(held) if not out])
        asked = pool.take([i for i, out in enumerate(held) if out])
        targets = plan.vault.release(taught.ids, "supervisor")
        gold = plan.vault.release(asked.ids, "calibration") if asked.ids else None
        select = (asked.items, gold) if gold is not None and plan.select else None
        found = self._learn(plan.supervisor, taught, targets, plan.supervised, "supervisor", select)
        return found, AS_IS if gold is None else calibrate(found(asked.items), gold.argmax(1).numpy(), plan.calibration)

    def labelled(
        self, stage: str, learner: Learner, predictor: Predictor, calibration: Calibration = AS_IS
    ) -> WeakLabels:
        """What `predictor` says of all it did not learn from, written as a table; a table that stands is read."""
        plan = self.plan
        pools = [pool for kind, pool in self.pools.named().items() if kind != "weak_train"]
        file = self.run.path / "weak_labels" / str(self.seed) / f"{stage}.jsonl"
        stamp = {
            "data_sha256": plan.data_sha256 or sha256_of(id for pool in pools for id in pool.ids),
            "split_sha256": sha256_of(f"{kind} {hash_of(pool.ids)}" for kind, pool in self.pools.named().items()),
        }
        if not file.is_file():
            logits = torch.cat([predictor(pool.items) for pool in pools])
            ids = tuple(id for pool in pools for id in pool.ids)
            kind: Kind = "margin" if learner.pair else "soft"
            origin = fingerprint(plan.supervised)
            table = WeakLabels(ids, logits, learner.name, calibration, **stamp, created_from=origin, kind=kind)
            if self.run.processes.is_main:
                table.write(file)
            self.run.processes.barrier()
        return WeakLabels.read(file, **stamp)

    def ceiling(self) -> Tensor:
        """Test probabilities (N, K) of the student's model after it learned the gold labels of the same items."""
        plan, pools = self.plan, self.pools
        gold = plan.vault.release(pools.transfer.ids, "ceiling")
        select = (pools.validation.items, plan.vault.release(pools.validation.ids, "ceiling")) if plan.select else None
        found = self._learn(plan.student, pools.transfer, gold, plan.ceiling, "ceiling", select)
        return found(pools.test.items).softmax(-1)

    def student(self, name: str, settings: TransferSettings, labels: WeakLabels) -> tuple[Tensor, Curve | None]:
        """Test probabilities (N, K) of a student that saw nothing but `labels`, and how it came there."""
        stage = f"student/{name}"
        folder = self.run.path / stage / str(self.seed)

        def watch(epoch: int, predictor: Predictor) -> None:
            if self.run.processes.is_main:
                _note(folder / CURVE, epoch, predictor(self.pools.test.items).argmax(1))

        found = self._taught(self.plan.student, self.pools.transfer, settings, labels, stage, watch)
        self.run.processes.barrier()
        self.save(f"student_{name}", self.plan.student, found)
        return found(self.pools.test.items).softmax(-1), _curve(folder)

    def bootstrapped(self, labels: WeakLabels, supervisor: Predictor) -> tuple[WeakLabels | None, str]:
        """The labels of the last intermediate learner, each having learned fresh items from the one before.

        None when there is none, or when one fell below its supervisor on the audited items; then why.
        """
        audit = self.pools.audit
        for i, (learner, settings) in enumerate(self.plan.intermediate, start=1):
            found = self._taught(learner, self.pools.fresh[i - 1], settings, labels, f"intermediate/{i}")
            if audit.ids:
                before, now = (
                    self.plan.vault.accuracy(audit.ids, one(audit.items), "audit").value for one in (supervisor, found)
                )
                if now < before:
                    return None, f"intermediate learner {i} is right on {now:.3f} of the audit, below {before:.3f}"
            labels, supervisor = self.labelled(f"intermediate_{i}", learner, found), found
        return (labels if self.plan.intermediate else None), ""

    def keep(self, name: str, p: Tensor) -> None:
        """Write what a model says of the test items."""
        folder = self.run.path / "predictions" / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"id": id, "hard": int(line.argmax())} for id, line in zip(self.pools.test.ids, p)]
        if p.shape[1] <= WIDE:
            rows = [row | {"p": line.tolist()} for row, line in zip(rows, p)]
        self.run.write_lines(f"predictions/{name}/{self.seed}.jsonl", rows)

    def save(self, name: str, learner: Learner, found: Predictor) -> None:
        """Let the plan keep a model of the first seed."""
        if self.seed == self.plan.seeds[0]:
            self.plan.keep(name, learner, found)

    def _taught(
        self,
        learner: Learner,
        pool: Pool,
        settings: TransferSettings,
        labels: WeakLabels,
        stage: str,
        watch: Watch | None = None,
    ) -> Predictor:
        """What `learner` makes of the weak labels of a pool, with the vault locked."""
        validation = self.pools.validation
        select = (validation.items, labels.take(validation.ids)) if self.plan.select else None
        with self.plan.vault.locked(stage):
            return self._learn(learner, pool, labels.take(pool.ids), settings, stage, select, watch)

    def _learn(
        self,
        learner: Learner,
        pool: Pool,
        targets: Tensor,
        settings: TransferSettings,
        stage: str,
        select: Select | None,
        watch: Watch | None = None,
    ) -> Predictor:
        where: dict[str, Any] = {"seed": self.seed, "run": self.run, "stage": f"{stage}/{self.seed}"}
        return learner.learn(pool.items, targets, settings, **where, select=select, watch=watch)


def _note(file: Path, epoch: int, answers: Tensor) -> None:
    """Add the answers (N,) of an epoch to a file of them."""
    known = load_file(file) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(known | {str(epoch): answers}, partial)
    partial.replace(file)


def _curve(folder: Path) -> Curve | None:
    """What `_note` wrote, in order, and how the epochs agreed with weak labels; None for a learner without epochs."""
    if not (folder / CURVE).is_file():
        return None
    answers = load_file(folder / CURVE)
    selection = folder / "selection.json"
    agreed = json.loads(selection.read_text(encoding="utf-8"))["agreement"] if selection.is_file() else []
    return Curve(torch.stack([answers[str(epoch)] for epoch in sorted(map(int, answers))]), agreed)


def reported(plan: Plan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What came of all seeds, judged by the vault, as plain JSON."""
    vault, pools = plan.vault, plan.pools(plan.seeds[0])
    weak, ceiling = (torch.stack([getattr(one, name) for one in outcomes]) for name in ("weak", "ceiling"))
    students: dict[str, Any] = {}
    # A chain of learners may have ended in some seeds and not in others; a student is judged in those it exists in.
    for name in dict.fromkeys(name for one in outcomes for name in one.students):
        own = [i for i, one in enumerate(outcomes) if name in one.students]
        p = torch.stack([outcomes[i].students[name] for i in own])
        found = vault.examine(pools.test.ids, weak[own], p, ceiling[own], unsafe=plan.unsafe)
        stops = [_stopping(vault, pools.test.ids, outcomes[i].curves[name]) for i in own]
        students[name] = found | {"seeds": [plan.seeds[i] for i in own], "stopping": stops}
    per_seed = {
        kind: [vault.accuracy(pools.test.ids, one).value for one in table]
        for kind, table in (("supervisor", weak), ("ceiling", ceiling))
    }
    report = {
        "items": {name: len(pool.ids) for name, pool in pools.named().items()},
        "seeds": list(plan.seeds),
        "learners": {"supervisor": plan.supervisor.name, "student": plan.student.name},
        "accuracy": per_seed,
        "labels": [_labels(one.labels, pools.transfer.ids) for one in outcomes],
        "students": students,
        "bootstrapping_ended": [one.ended for one in outcomes],
        "facts": dict(plan.facts),
    }
    return report | {"warnings": list(warnings(report)), "vault": dict(vault.reads)}


def _labels(labels: WeakLabels, ids: Sequence[str]) -> dict[str, Any]:
    """What weak labels are like: their calibration, and mean and spread of each class, or of the surest of many."""
    p = labels.take(ids)
    shown = p if p.shape[1] <= 16 else p.amax(1, keepdim=True)
    spread = {"mean": shown.mean(0).tolist(), "sd": shown.std(0, correction=0).tolist()}
    return {"supervisor": labels.supervisor, "calibration": asdict(labels.calibration), **spread}


def _stopping(vault: Vault, ids: Sequence[str], curve: Curve | None) -> dict[str, Any] | None:
    """Accuracy by epoch, and what another choice of the epoch would have given; without selection the last is taken."""
    if curve is None:
        return None
    gold = vault.curve(ids, curve.answers)
    chosen = curve.agreed or list(range(len(gold)))
    found = stopping(gold, chosen)
    return {"gold": gold, "weak": curve.agreed, **asdict(found), "gap": found.gap}


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must not overlook, in words."""
    students = report["students"]
    level = {name: found["recovery"]["student"]["value"] for name, found in students.items()}
    for name, found in students.items():
        recovery = found["recovery"]
        if recovery["value"] is None:
            yield f"{name}: PGR: n/a ({recovery['reason']})"
        if level[name] < recovery["weak"]["value"]:
            yield f"{name}: student below supervisor, {level[name]:.3f} against {recovery['weak']['value']:.3f}"
        if recall := found.get("recall"):
            student, weak = recall["student"], recall["weak"]
            if student and weak and level[name] > recovery["weak"]["value"] and student["value"] < weak["value"]:
                yield f"{name}: more accurate than its supervisor, and its recall at 5 % false positives is lower"
    for ending in ("", "_bootstrapped"):
        naive, sure = level.get(f"soft{ending}"), level.get(f"logconf{ending}")
        if naive is not None and sure is not None and sure < naive:
            yield f"confidence loss below naive{ending.replace('_', ', ')}: {sure:.3f} against {naive:.3f}"
    for seed, ended, labels in zip(report["seeds"], report["bootstrapping_ended"], report["labels"]):
        if note := labels["calibration"]["note"]:
            yield f"seed {seed}: labels are not calibrated, {note}"
        if ended:
            yield f"seed {seed}: bootstrapping ended, {ended}"

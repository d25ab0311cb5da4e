"""The weak-to-strong pipeline over learners (arXiv 2312.09390, section 4): who learns what from whom.

For every seed a supervisor learns from gold labels of `weak_train` and labels what it has not seen. Students learn from
nothing but these labels; a ceiling learns from the gold labels of the very items that the students learn from. All are
judged on the same test items, through a vault that is locked while a student learns.
"""

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.config import fingerprint
from holdfast.data.halves import hash_of
from holdfast.data.split import share_of
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.preference.weak_labels import WIDE, Calibration, Kind, WeakLabels, calibrate, cross_fitted, sha256_of
from holdfast.systems import stages
from holdfast.systems.transfer_plan import Curve, Outcome, Plan, Pool, Pools
from holdfast.systems.transfer_report import reported
from holdfast.training.learners import Learner, Predictor, Select, Watch
from holdfast.training.transfer import TransferSettings

CURVE, SUPERVISOR = "curve.safetensors", "supervisor"
AS_IS = Calibration()


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
    labels = bench.labelled(SUPERVISOR, plan.supervisor, supervisor, calibration)
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
        own = plan.cross_fit > 0
        pools = [pool for kind, pool in self.pools.named().items() if own or kind != "weak_train"]
        file = self.run.path / "weak_labels" / str(self.seed) / f"{stage}.jsonl"
        stamp = {
            "data_sha256": plan.data_sha256 or sha256_of(id for pool in pools for id in pool.ids),
            "split_sha256": sha256_of(f"{kind} {hash_of(pool.ids)}" for kind, pool in self.pools.named().items()),
        }
        # One answer for all: who looked later would see the table that the first has written by then.
        if not stages.on_main(self.run, file.is_file):
            logits = torch.cat([self._asked(stage, predictor, pool) for pool in pools])
            ids = tuple(id for pool in pools for id in pool.ids)
            kind: Kind = "margin" if learner.pair else "soft"
            origin = fingerprint(plan.supervised)
            table = WeakLabels(ids, logits, learner.name, calibration, **stamp, created_from=origin, kind=kind)
            if self.run.processes.is_main:
                table.write(file)
            self.run.processes.barrier()
        table = WeakLabels.read(file, **stamp)
        if table.calibration.method != calibration.method:
            known, wanted = table.calibration.method, calibration.method
            raise UserError(
                f"{file} is stale: it was calibrated by {known}, now {wanted} is asked for; delete it, and the items "
                "are labelled again"
            )
        return table

    def _asked(self, stage: str, predictor: Predictor, pool: Pool) -> Tensor:
        """Logits (N, K) of a pool; where the supervisor has learned it, each item's by one that saw not its group."""
        plan = self.plan
        if stage != SUPERVISOR or pool is not self.pools.weak_train:
            return predictor(pool.items)

        def learn(items: list[Any], targets: Tensor, fold: int) -> Predictor:
            return self._learn(plan.supervisor, Pool(items=items), targets, plan.supervised, f"fold_{fold}", None)

        gold, groups = plan.vault.release(pool.ids, SUPERVISOR), plan.vault.groups(pool.ids)
        return cross_fitted(learn, pool.items, gold, groups, plan.cross_fit, self.seed)

    @property
    def lesson(self) -> Pool:
        """What students and ceiling learn: `transfer`, and with cross-fitting what taught the supervisor as well."""
        one, other = self.pools.transfer, self.pools.weak_train
        return Pool(one.ids + other.ids, [*one.items, *other.items]) if self.plan.cross_fit else one

    def ceiling(self) -> Tensor:
        """Test probabilities (N, K) of the student's model after it learned the gold labels of the same items."""
        plan, pools, lesson = self.plan, self.pools, self.lesson
        gold = plan.vault.release(lesson.ids, "ceiling")
        select = (pools.validation.items, plan.vault.release(pools.validation.ids, "ceiling")) if plan.select else None
        found = self._learn(plan.student, lesson, gold, plan.ceiling, "ceiling", select)
        return found(pools.test.items).softmax(-1)

    def student(self, name: str, settings: TransferSettings, labels: WeakLabels) -> tuple[Tensor, Curve | None]:
        """Test probabilities (N, K) of a student that saw nothing but `labels`, and how it came there."""
        stage = f"student/{name}"
        folder = self.run.path / stage / str(self.seed)

        def watch(epoch: int, predictor: Predictor) -> None:
            if self.run.processes.is_main:
                _note(folder / CURVE, epoch, predictor(self.pools.test.items).argmax(1))

        found = self._taught(self.plan.student, self.lesson, settings, labels, stage, watch)
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
                before, now = self._audited(supervisor, found)
                if now < before:
                    return None, f"intermediate learner {i} is right on {now:.3f} of the audit, below {before:.3f}"
            labels, supervisor = self.labelled(f"intermediate_{i}", learner, found), found
        return (labels if self.plan.intermediate else None), ""

    def _audited(self, *predictors: Predictor) -> list[float]:
        """The accuracy of each on the audited items, as the first process found it."""
        ids, items = self.pools.audit.ids, self.pools.audit.items
        found = [self.plan.vault.accuracy(ids, one(items), "audit").value for one in predictors]
        # One answer for all: where rounding ended it in one process alone, the others would wait for that one.
        return stages.on_main(self.run, lambda: found)

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

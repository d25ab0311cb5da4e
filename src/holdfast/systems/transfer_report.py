"""What came of a weak-to-strong run, judged by the vault: accuracy, recovered gap, agreement, and warnings in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from holdfast.evaluate.vault import Vault
from holdfast.preference.weak_labels import WeakLabels
from holdfast.stats.agreement import stopping
from holdfast.systems.transfer_plan import Curve, Outcome, Plan


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
        "labels": [
            _labels(one.labels, plan.pools(seed).transfer.ids) for seed, one in zip(plan.seeds, outcomes, strict=True)
        ],
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

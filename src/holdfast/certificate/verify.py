"""Recheck a certificate on any laptop: hashes, evidence, bound, verdict, ledger. No torch, no model.

Bounds are computed anew from the evidence and the statement is derived anew from plan and verdict, so nothing
in it has to be believed except `details` and `software`. What remains to be trusted are its assumptions.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from holdfast.certificate import ledger as ledgers
from holdfast.certificate.constraint import ConstraintResult
from holdfast.certificate.document import NAMES, PREDICATE, Predicate, predicate_for, render, statement
from holdfast.certificate.gate import Row, Verdict, decide, flags
from holdfast.certificate.records import digest
from holdfast.errors import UserError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Check:
    """One thing that was checked, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


class _Checks(list[Check]):
    """Checks in order; a step that raises is a check that failed."""

    def run(self, name: str, step: Callable[[], tuple[Found, str]]) -> Found | None:
        try:
            found, detail = step()
        except (UserError, ValueError, LookupError, TypeError, OSError, RecursionError) as error:
            self.append(Check(name, False, str(error)))
            return None
        self.append(Check(name, True, detail))
        return found


def verify(
    certificate_path: str | Path,
    evidence_path: str | Path | None = None,
    ledger_path: str | Path | None = None,
) -> list[Check]:
    """What was checked, in order; the certificate stands when every check is ok, whatever its verdict.

    Evidence and ledger lie beside the certificate when no path is given. Later checks are left out when what
    they build on has failed. Without a signature this shows accidents and edits, not a forger who wrote all
    files anew.
    """
    path = Path(certificate_path)
    checks = _Checks()
    document = checks.run("certificate", lambda: _certificate(path))
    if document is None:
        return checks
    predicate = checks.run("schema", lambda: _schema(document))
    if predicate is None:
        return checks
    rows = checks.run("evidence", lambda: _evidence(Path(evidence_path or path.with_name(NAMES[1])), predicate))
    if rows is not None:
        verdict = checks.run("bound", lambda: _bound(predicate, rows))
        if verdict is not None:
            checks.run("statement", lambda: _statement(document, predicate, verdict))
    checks.run("ledger", lambda: _ledger(Path(ledger_path or path.with_name(NAMES[2])), predicate))
    return checks


def _certificate(path: Path) -> tuple[dict[str, Any], str]:
    """The document, whose text is exactly what was written."""
    text = path.read_text(encoding="ascii")
    document = json.loads(text)
    kind = document.get("predicateType") if isinstance(document, dict) else None
    if kind != PREDICATE:
        raise ValueError(f"this version reads {PREDICATE}, the file says {kind}; use the holdfast that wrote it")
    body = {key: value for key, value in document.items() if key not in ("sha256", "signatures")}
    if document.get("sha256") != digest(body):
        raise ValueError("was altered: the hash of its content is not the one it names")
    if text != render(document):
        raise ValueError("was altered: its spelling is not the one that was written")
    return document, f"unaltered, sha256 {document['sha256'][:12]}, {len(document['signatures'])} signatures"


def _schema(document: dict[str, Any]) -> tuple[Predicate, str]:
    # From JSON text, where a list is a tuple; strict, so that no number is read out of a string.
    predicate = Predicate.model_validate_json(json.dumps(document["predicate"]), strict=True)
    if predicate.plan_sha256 != predicate.plan.sha256:
        raise ValueError("the hash of the plan is not the one named")
    for result in predicate.constraints:
        if result.delta != predicate.budget.delta_used:
            raise ValueError(
                f"constraint {result.name} was tested at delta {result.delta:g}, "
                f"the attempt had {predicate.budget.delta_used:g}"
            )
    return predicate, f"{PREDICATE}, plan {predicate.plan_sha256[:12]}"


def _evidence(path: Path, predicate: Predicate) -> tuple[list[Row], str]:
    bundle = path.read_bytes()
    if sha256(bundle).hexdigest() != predicate.evidence.bundle_sha256:
        raise ValueError(f"{path} is not the evidence of this certificate, or was altered")
    rows = [Row.model_validate_json(line) for line in bundle.splitlines()]
    if len(rows) != predicate.evidence.rows:
        raise ValueError(f"{path} has {len(rows)} rows, the certificate names {predicate.evidence.rows}")
    if len({row.key for row in rows}) < len(rows):
        raise ValueError(f"{path} names a prompt more than once")
    for row in rows:
        numbers = {name: [float(cost) for cost in costs] for name, costs in row.costs.items()}
        if row.harmful != flags(predicate.plan.plan, numbers):
            raise ValueError(f"prompt {row.key}: its flags do not follow from its costs")
    return rows, f"{len(rows)} prompts, each once"


def _bound(predicate: Predicate, rows: list[Row]) -> tuple[Verdict, str]:
    """The verdict that the certificate states, after deciding anew from the evidence."""
    names = rows[0].costs if rows else {}
    costs = {name: np.array([[float(cost) for cost in row.costs[name]] for row in rows]) for name in names}
    again = decide(predicate.plan, costs, [row.key for row in rows], predicate.budget.attempt)
    stated, budget = predicate.constraints, predicate.budget
    if len(stated) != len(again.constraints) or not all(map(_same, stated, again.constraints)):
        raise ValueError(
            "the bounds computed from the evidence differ from those stated (made with "
            + ", ".join(f"{name} {number}" for name, number in sorted(predicate.software.items()))
            + ")"
        )
    if (predicate.verdict, predicate.reason) != (again.verdict, again.reason):
        raise ValueError(f"the evidence gives {again.verdict} ({again.reason}), the certificate {predicate.verdict}")
    if budget.delta_used != again.delta:
        raise ValueError(f"attempt {budget.attempt} may spend {again.delta:g}, the certificate {budget.delta_used:g}")
    verdict = again.model_copy(update={"constraints": stated})
    return verdict, f"recomputed: {again.verdict}" + (f", {again.reason}" if again.reason else "")


def _same(stated: ConstraintResult, again: ConstraintResult) -> bool:
    """Equal to the last bit; only the p-value, which decides nothing, may differ by rounding."""
    close = math.isclose(stated.p_value, again.p_value, rel_tol=1e-9)
    return close and stated == again.model_copy(update={"p_value": stated.p_value})


def _statement(document: dict[str, Any], predicate: Predicate, verdict: Verdict) -> tuple[None, str]:
    """Claim, assumptions, limits and subject are those that follow from plan and verdict."""
    derived = predicate_for(
        predicate.plan, verdict, predicate.evidence, predicate.budget.ledger_head, predicate.details
    ).model_copy(update={"software": predicate.software})
    expected = statement(derived)
    differing = [key for key in expected["predicate"] if expected["predicate"][key] != document["predicate"][key]]
    differing += [key for key in ("_type", "subject", "signatures") if expected[key] != document.get(key)]
    if differing or document.keys() != expected.keys():
        raise ValueError(f"{', '.join(differing) or 'its fields'} do not follow from plan and evidence")
    return None, f"follows from plan and evidence: {predicate.claim}"


def _ledger(path: Path, predicate: Predicate) -> tuple[None, str]:
    """The intact chain contains the opening and the closing of exactly this attempt."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; without the ledger nobody knows how often the prompts were used")
    entries = ledgers.read(path)
    budget, plan = predicate.budget, predicate.plan
    place = [i for i, entry in enumerate(entries) if entry["sha256"] == budget.ledger_head]
    if not place:
        raise ValueError(f"{path} does not contain the entry that closed this attempt; entries were removed")
    ours = [entry for entry in entries[: place[0] + 1] if entry["fold"] == plan.fold_sha256]
    if len(ours) < 3 or [entry["event"] for entry in ours[-2:]] != ["open", "close"]:
        raise ValueError(f"{path}: the fold was not sealed, opened and closed in this order")
    opened, closed = ours[-2:]
    wanted = {
        "plan": predicate.plan_sha256,
        "policy": plan.policy_sha256,
        "attempt": budget.attempt,
        "delta": budget.delta_used,
        "delta_total": budget.delta_total,
        "schedule": budget.schedule,
    }
    for name, value in wanted.items():
        if opened.get(name) != value:
            raise ValueError(f"{path}: the attempt was opened with {name} {opened.get(name)}, not {value}")
    if closed.get("verdict") != predicate.verdict:
        raise ValueError(f"{path}: the attempt was closed as {closed.get('verdict')}, not {predicate.verdict}")
    return None, f"{len(entries)} entries, attempt {budget.attempt} of this fold"

"""The certificate as files: the claim, the evidence row by row, and the ledger that counts the attempts.

The body is an in-toto Statement (v1) about the policy's hash. It names only what is known; further facts
about policy, scorer or run go into `details`. The place for signatures is `signatures`; while it is empty the
hash in `sha256` shows accidents and careless edits, but not a forger, who would compute it anew.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy

from holdfast.certificate import ledger as ledgers
from holdfast.certificate.constraint import ConstraintPlan, ConstraintResult
from holdfast.certificate.gate import Outcome, Reason, Row, Verdict
from holdfast.certificate.plan import FrozenPlan
from holdfast.certificate.records import Record, Sha256, canonical, digest
from holdfast.errors import UserError
from holdfast.stats.power import Schedule, allowed_k

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "safety-certificate/v1"
NAMES = ("certificate.json", "evidence.jsonl", "ledger.jsonl")


class Budget(Record):
    """What may be spent in all, what this attempt spent, and the ledger entry that closed it."""

    delta_total: float
    schedule: Schedule
    attempt: int
    delta_used: float
    ledger_head: Sha256


class Evidence(Record):
    """The rows of evidence and the hash of their file."""

    bundle_sha256: Sha256
    format: Literal["jsonl"] = "jsonl"
    rows: int


class Predicate(Record):
    """Everything a certificate says."""

    verdict: Outcome
    reason: Reason | None
    tier: Literal["model_cost"] = "model_cost"
    guarantee: Literal["exact", "asymptotic"]
    claim: str
    plan: FrozenPlan
    plan_sha256: Sha256
    constraints: tuple[ConstraintResult, ...]
    multiplicity: dict[str, str]
    budget: Budget
    assumptions: tuple[str, ...]
    sensitivity: dict[str, dict[str, float | int]]
    evidence: Evidence
    limits: tuple[str, ...]
    software: dict[str, str]
    details: dict[str, Any]


def write(
    folder: str | Path,
    frozen: FrozenPlan,
    verdict: Verdict,
    rows: Sequence[Row],
    ledger: ledgers.Ledger,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write `certificate.json`, `evidence.jsonl` and a copy of the ledger; return the path of the first.

    Any verdict is written, since a refusal is evidence too. Raises `UserError` when the folder already holds
    a certificate, or the ledger no closed attempt with this verdict.
    """
    folder = Path(folder)
    certificate, evidence, copy = (folder / name for name in NAMES)
    if certificate.exists():
        raise UserError(f"{certificate} exists; certificates are not overwritten, choose another folder")
    try:
        canonical(details or {})
    except (TypeError, ValueError) as error:
        raise UserError(f"details of a certificate are plain JSON without infinite numbers: {error}") from error
    bundle = "".join(canonical(row.model_dump(mode="json")) + "\n" for row in rows)
    predicate = predicate_for(
        frozen,
        verdict,
        Evidence(bundle_sha256=sha256(bundle.encode()).hexdigest(), rows=len(rows)),
        ledger_head=_closing(ledger, frozen, verdict),
        details=details or {},
    )
    folder.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(ledger.path.read_bytes())
    evidence.write_text(bundle, encoding="ascii", newline="\n")
    # Last, so that a certificate never lies beside half its evidence.
    certificate.write_text(render(statement(predicate)), encoding="ascii", newline="\n")
    return certificate


def predicate_for(
    frozen: FrozenPlan, verdict: Verdict, evidence: Evidence, ledger_head: str, details: Mapping[str, Any]
) -> Predicate:
    """Everything the certificate says, derived from the plan and the verdict."""
    plan = frozen.plan
    asymptotic = any(not each.exact for each in plan.constraints)
    return Predicate(
        verdict=verdict.verdict,
        reason=verdict.reason,
        guarantee="asymptotic" if asymptotic else "exact",
        claim=" and ".join(each.claim(plan.samples_per_prompt) for each in plan.constraints),
        plan=frozen,
        plan_sha256=frozen.sha256,
        constraints=verdict.constraints,
        multiplicity={"gate": "intersection_union", "simultaneous_bounds": "bonferroni"},
        budget=Budget(
            delta_total=plan.delta,
            schedule=plan.schedule,
            attempt=verdict.attempt,
            delta_used=verdict.delta,
            ledger_head=ledger_head,
        ),
        assumptions=(
            "prompts are drawn independently from the prompts of deployment",
            "answers are drawn as in deployment",
            "policy, scorer and plan were fixed independently of these prompts",
            "nothing but pass or fail came back from earlier attempts",
            *(("mean costs are normally distributed",) if asymptotic else ()),
        ),
        sensitivity={
            each.name: _slack(each, result)
            for each, result in zip(plan.constraints, verdict.constraints)
            if result.passed and each.kind == "rate"
        },
        evidence=evidence,
        limits=(
            "about the scorer's output, not about human judgement of harm",
            "no claim for other prompts, other decoding, several turns, or adversarial use",
            "no claim per prompt or per category, nor about helpfulness",
            "delta is how often the procedure errs, not the probability that this policy is unsafe",
        ),
        software={"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
        | {"holdfast": version("holdfast")},
        details=dict(details),
    )


def statement(predicate: Predicate) -> dict[str, Any]:
    """The in-toto Statement around a predicate, with its hash and the empty place for signatures."""
    plan = predicate.plan
    body = {
        "_type": STATEMENT,
        "subject": [{"name": plan.plan.name, "digest": {"sha256": plan.policy_sha256}}],
        "predicateType": PREDICATE,
        "predicate": predicate.model_dump(mode="json"),
    }
    return {**body, "sha256": digest(body), "signatures": []}


def render(document: Mapping[str, Any]) -> str:
    """The text of `certificate.json`: readable, and the only spelling that verification accepts."""
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _slack(constraint: ConstraintPlan, result: ConstraintResult) -> dict[str, float | int]:
    """How far the deployed prompts may differ, or rows be corrupted, before a passed rate would fail.

    tv_slack: total variation distance; density_ratio_slack: largest ratio of densities; corrupt_rows: rows
    counted as harmless by mistake (Clopper-Pearson).
    """
    slack: dict[str, float | int] = {
        "tv_slack": result.tau - result.ucb,
        "density_ratio_slack": result.tau / result.ucb,
    }
    if constraint.method == "clopper_pearson":
        assert result.k is not None
        slack["corrupt_rows"] = (allowed_k(result.n, result.tau, result.delta) or 0) - result.k
    return slack


def _closing(ledger: ledgers.Ledger, frozen: FrozenPlan, verdict: Verdict) -> str:
    """The hash of the entry that closed this attempt."""
    entries = [entry for entry in ledger.entries() if entry["fold"] == frozen.fold_sha256]
    if len(entries) >= 2:
        opened, closed = entries[-2:]
        ours = (opened.get("plan"), opened.get("attempt"), closed.get("verdict"))
        if closed["event"] == "close" and ours == (frozen.sha256, verdict.attempt, verdict.verdict):
            return closed["sha256"]
    raise UserError(
        f"{ledger.path}: no attempt {verdict.attempt} of this plan was closed as {verdict.verdict} last; "
        "a certificate is written right after the gate has run"
    )

import json

import numpy as np
import pytest

from holdfast.certificate.constraint import ConstraintPlan
from holdfast.certificate.document import write
from holdfast.certificate.gate import run
from holdfast.certificate.ledger import Ledger
from holdfast.certificate.plan import Plan, freeze
from holdfast.errors import UserError

KEYS = [f"prompt {i}" for i in range(313)]


def run_gate(folder, harmful=2, **changes):
    plan = Plan(
        name="policy",
        n_prompts=313,
        zero_reference="calibrated",
        constraints=(ConstraintPlan(tau=0.02, threshold=0.5),),
        **changes,
    )
    frozen = freeze(plan, KEYS, "a" * 64, "b" * 64, "2026-01-05")
    ledger = Ledger(folder / "audit.jsonl")
    ledger.seal(frozen.fold_sha256, 313)
    costs = np.where(np.arange(313) < harmful, 0.9, 0.1)
    verdict, rows = run(frozen, ledger, [(key, key) for key in KEYS], list, lambda answers: costs)
    return frozen, verdict, rows, ledger


def test_a_certificate_says_what_was_found(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path)
    path = write(tmp_path / "out", frozen, verdict, rows, ledger, details={"dtype": "float32"})
    document = json.loads(path.read_text())
    predicate = document["predicate"]
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["subject"] == [{"name": "policy", "digest": {"sha256": "a" * 64}}]
    assert (document["predicateType"], document["signatures"]) == ("safety-certificate/v1", [])
    assert (predicate["verdict"], predicate["reason"], predicate["guarantee"]) == ("CERTIFIED", None, "exact")
    assert predicate["claim"] == "P(cost > 0.5) <= 0.02"
    found = predicate["constraints"][0]
    assert (found["n"], found["k"], found["passed"]) == (313, 2, True)
    assert found["ucb"] == pytest.approx(0.019977, abs=5e-7)
    slack = predicate["sensitivity"]["harm"]
    assert slack["tv_slack"] == pytest.approx(0.000023, abs=5e-7)
    assert slack["density_ratio_slack"] == pytest.approx(1.00116, abs=5e-6)
    assert slack["corrupt_rows"] == 0
    assert predicate["details"] == {"dtype": "float32"}
    assert predicate["budget"]["ledger_head"] == ledger.head()
    assert predicate["plan_sha256"] == frozen.sha256


def test_evidence_is_one_line_per_prompt(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path)
    path = write(tmp_path / "out", frozen, verdict, rows, ledger)
    lines = [json.loads(line) for line in path.with_name("evidence.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == KEYS
    assert (lines[0]["costs"], lines[0]["harmful"]) == ({"cost": ["0.9"]}, {"harm": True})
    assert path.with_name("ledger.jsonl").read_bytes() == ledger.path.read_bytes()


def test_corrupt_rows_count_down_to_the_limit(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path, harmful=0)
    path = write(tmp_path / "out", frozen, verdict, rows, ledger)
    assert json.loads(path.read_text())["predicate"]["sensitivity"]["harm"]["corrupt_rows"] == 2


def test_half_of_delta_does_not_certify_the_same_data(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path, schedule="geometric")
    path = write(tmp_path / "out", frozen, verdict, rows, ledger)
    predicate = json.loads(path.read_text())["predicate"]
    assert (predicate["verdict"], predicate["reason"], predicate["sensitivity"]) == (
        "NSF",
        "ucb_above_tau",
        {},
    )
    assert predicate["budget"]["delta_used"] == 0.025


def test_certificates_are_not_overwritten(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path)
    write(tmp_path / "out", frozen, verdict, rows, ledger)
    with pytest.raises(UserError, match="not overwritten, choose another folder"):
        write(tmp_path / "out", frozen, verdict, rows, ledger)


def test_a_verdict_without_its_attempt_is_not_written(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path)
    better = verdict.model_copy(update={"verdict": "NSF", "reason": "ucb_above_tau"})
    with pytest.raises(UserError, match="no attempt 1 of this plan was closed as NSF last"):
        write(tmp_path / "out", frozen, better, rows, ledger)
    with pytest.raises(UserError, match="no attempt 1"):
        write(tmp_path / "out", frozen, verdict, rows, Ledger(tmp_path / "empty.jsonl"))
    assert not (tmp_path / "out").exists()


def test_details_that_are_no_json_are_refused(tmp_path):
    frozen, verdict, rows, ledger = run_gate(tmp_path)
    for details in ({"loss": float("nan")}, {"path": tmp_path}):
        with pytest.raises(UserError, match="plain JSON"):
            write(tmp_path / "out", frozen, verdict, rows, ledger, details)

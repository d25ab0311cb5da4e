import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from holdfast.certificate.constraint import ConstraintPlan
from holdfast.certificate.document import render, write
from holdfast.certificate.gate import run
from holdfast.certificate.ledger import Ledger
from holdfast.certificate.plan import Plan, freeze
from holdfast.certificate.records import digest
from holdfast.certificate.verify import verify

N = 60
KEYS = [f"prompt {i}" for i in range(N)]
HARM = ConstraintPlan(tau=0.06, threshold=0.5)
SEVERITY = ConstraintPlan(name="severity", kind="mean", method="betting", tau=0.3)
CLEAN = np.linspace(0.0, 0.4, N)


def issue(folder, costs=CLEAN, constraints=(HARM, SEVERITY), **changes):
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(name="policy", n_prompts=N, zero_reference="calibrated", constraints=constraints, **changes)
    frozen = freeze(plan, KEYS, "a" * 64, "b" * 64, "2026-01-05")
    ledger = Ledger(folder / "audit.jsonl")
    ledger.seal(frozen.fold_sha256, N)
    verdict, rows = run(frozen, ledger, [(key, key) for key in KEYS], list, lambda answers: costs)
    return write(folder / "out", frozen, verdict, rows, ledger)


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    return issue(tmp_path_factory.mktemp("issued"))


@pytest.fixture
def copy(issued, tmp_path):
    """A copy of the certificate's folder that a test may spoil."""
    return shutil.copytree(issued.parent, tmp_path / "copy") / "certificate.json"


def failed(checks):
    return {check.name: check.detail for check in checks if not check.ok}


def forge(path, change):
    """Change the document and name the new hash, as a forger would without a signature."""
    document = json.loads(path.read_text())
    change(document)
    document["sha256"] = digest({k: v for k, v in document.items() if k not in ("sha256", "signatures")})
    path.write_text(render(document))


def test_a_sound_certificate_passes_every_check(issued):
    checks = verify(issued)
    assert not failed(checks)
    names = [check.name for check in checks]
    assert names == ["certificate", "schema", "evidence", "bound", "statement", "ledger"]


@pytest.mark.parametrize(
    "costs, changes",
    [
        (np.full(N, 0.9), {}),
        (np.r_[np.nan, CLEAN[1:]], {}),
        (np.r_[7.0, CLEAN[1:]], {}),
        (CLEAN[1:], {}),
        (CLEAN, {"schedule": "inverse_square", "delta": 0.2}),
        (np.random.default_rng(0).normal(-2, 1, N), {"constraints": (HARM.model_copy(update={"tau": 0.1}),)}),
        (
            np.random.default_rng(0).normal(-2, 1, N),
            {"constraints": (ConstraintPlan(kind="logit_mean", method="student_t", tau=0.0),)},
        ),
    ],
)
def test_every_verdict_can_be_rechecked(tmp_path, costs, changes):
    assert not failed(verify(issue(tmp_path, costs, **changes)))


def test_files_elsewhere_and_a_ledger_that_grew(copy):
    parent = copy.parent
    grown = Ledger(parent / "ledger.jsonl")
    grown.seal("c" * 64, 10)
    for name in ("evidence", "ledger"):
        (parent / f"{name}.jsonl").rename(parent / f"moved {name}.jsonl")
    assert not failed(verify(copy, parent / "moved evidence.jsonl", parent / "moved ledger.jsonl"))
    missing = failed(verify(copy))
    assert missing.keys() == {"evidence", "ledger"}
    assert "nobody knows how often" in missing["ledger"]


@pytest.mark.parametrize("name", ["certificate.json", "evidence.jsonl", "ledger.jsonl"])
def test_any_changed_byte_is_found(copy, name):
    path = copy.with_name(name)
    whole = path.read_bytes()
    # Every byte would take half a minute; the ledger's own tests walk through each.
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert failed(verify(copy)), place
    path.write_bytes(whole)
    assert not failed(verify(copy))


def test_another_spelling_of_the_same_content_is_noticed(copy):
    copy.write_text(json.dumps(json.loads(copy.read_text())))
    assert "its spelling is not the one" in failed(verify(copy))["certificate"]


@pytest.mark.parametrize("name", ["certificate.json", "evidence.jsonl", "ledger.jsonl"])
@pytest.mark.parametrize("content", [b"", b"[]\n", b"{}\n", b"\xff\xfe", b"[" * 100_000])
def test_garbage_is_a_failed_check(copy, name, content):
    copy.with_name(name).write_bytes(content)
    assert failed(verify(copy))


def _constraint(key, value):
    return lambda document: document["predicate"]["constraints"][0].update({key: value})


def _predicate(key, value):
    return lambda document: document["predicate"].update({key: value})


@pytest.mark.parametrize(
    "change, check, message",
    [
        (_constraint("ucb", 0.01), "bound", "bounds computed from the evidence differ"),
        (_constraint("k", 1), "bound", "bounds computed"),
        (_constraint("p_value", 0.001), "bound", "bounds computed"),
        (_constraint("passed", False), "bound", "bounds computed"),
        (_constraint("delta", 0.1), "schema", "tested at delta 0.1, the attempt had 0.05"),
        (_predicate("verdict", "NSF"), "bound", "the evidence gives CERTIFIED"),
        (_predicate("claim", "P(cost > 0.5) <= 0.001"), "statement", "claim do not follow"),
        (_predicate("limits", []), "statement", "limits do not follow"),
        (_predicate("guarantee", "asymptotic"), "statement", "guarantee do not follow"),
        (_predicate("plan_sha256", "c" * 64), "schema", "hash of the plan"),
        (_predicate("constraints", []), "bound", "bounds computed"),
        (_predicate("extra", 1), "schema", "[Ee]xtra"),
        (_predicate("sensitivity", {}), "statement", "sensitivity do not follow"),
        (lambda d: d["predicate"].pop("budget"), "schema", "budget"),
        (lambda d: d["predicate"]["budget"].update(attempt=2), "bound", "differ"),
        (lambda d: d["predicate"]["budget"].update(ledger_head="0" * 64), "ledger", "entries were removed"),
        (
            lambda d: d["predicate"]["evidence"].update(rows=59),
            "evidence",
            "60 rows, the certificate names 59",
        ),
        (lambda d: d["subject"][0].update(name="another"), "statement", "subject do not follow"),
        (lambda d: d.update(signatures=["x"]), "statement", "signatures do not follow"),
        (lambda d: d.update(note="trust me"), "statement", "do not follow"),
        (
            lambda d: d.update(predicateType="safety-certificate/v2"),
            "certificate",
            "reads safety-certificate/v1",
        ),
        (
            lambda d: d.update(predicateType="safety-certificate/v0"),
            "certificate",
            "says safety-certificate/v0",
        ),
        (lambda d: d.pop("predicateType"), "certificate", "says None"),
    ],
)
def test_edits_with_a_new_hash_are_found_too(copy, change, check, message):
    forge(copy, change)
    found = failed(verify(copy))
    assert check in found
    assert re.search(message, found[check])


def test_a_changed_limit_breaks_the_link_to_the_ledger(copy):
    def loosen(document):
        plan = document["predicate"]["plan"]
        plan["plan"]["constraints"][0]["tau"] = 0.07

    forge(copy, loosen)
    assert "hash of the plan" in failed(verify(copy))["schema"]


def test_evidence_exchanged_together_with_its_hash(copy):
    evidence = copy.with_name("evidence.jsonl")
    rows = [json.loads(line) for line in evidence.read_text().splitlines()]

    def exchange(rows):
        text = "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows)
        evidence.write_text(text)
        hashed = hashlib.sha256(text.encode()).hexdigest()
        forge(copy, lambda d: d["predicate"]["evidence"].update(bundle_sha256=hashed, rows=len(rows)))
        return failed(verify(copy))

    lower = [{**row, "costs": {"cost": ["0.0"]}} for row in rows]
    assert "bounds computed" in exchange(lower)["bound"]
    assert "more than once" in exchange([*rows[:-1], rows[0]])["evidence"]
    assert "flags do not follow" in exchange([{**rows[0], "harmful": {"harm": True}}, *rows[1:]])["evidence"]
    assert "bound" in exchange(rows[:-1])
    assert "bound" in exchange([{**rows[0], "costs": {"cost": ["nan"]}}, *rows[1:]])
    unscored = [{**row, "costs": {"other": ["0.0"]}, "harmful": {}} for row in rows]
    assert "bounds computed" in exchange(unscored)["bound"]
    mixed = [rows[0], {**rows[1], "costs": {"other": ["0.0"]}, "harmful": {}}, *rows[2:]]
    assert "bound" in exchange(mixed)


def test_a_ledger_of_another_attempt(copy, tmp_path):
    other = issue(tmp_path / "other", np.full(N, 0.9))
    assert "entries were removed" in failed(verify(copy, None, other.with_name("ledger.jsonl")))["ledger"]
    head = Ledger(other.with_name("ledger.jsonl")).head()
    forge(copy, lambda d: d["predicate"]["budget"].update(ledger_head=head))
    found = failed(verify(copy, None, other.with_name("ledger.jsonl")))["ledger"]
    assert "closed as NSF, not CERTIFIED" in found


def test_verification_needs_no_torch(issued):
    program = (
        "import sys\n"
        "sys.modules.update({name: None for name in ('torch', 'transformers', 'accelerate', 'peft')})\n"
        "from holdfast.certificate import document, explain, gate, ledger, plan, verify\n"
        "print(all(check.ok for check in verify.verify(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(issued)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("True", "")

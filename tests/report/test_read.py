from pathlib import Path

import pytest

from holdfast.errors import UserError
from holdfast.report.read import as_number, column, evenly, read

OPTIONAL = [
    "fingerprint.json",
    "metrics.jsonl",
    "summary.json",
    "scores.jsonl",
    "samples.jsonl",
    "alarms.jsonl",
    "certificate.json",
]


def test_every_file_becomes_a_table(finished: Path) -> None:
    run = read(finished)
    assert run.name == "tulip"
    assert run.config["policy"] == {"learning_rate": 0.0001, "kl_coefficient": 0.02}
    assert run.stages == ("sft", "reward", "cost", "critics", "policy")
    assert [row["step"] for row in run.stage("policy")] == list(range(1, 201))
    assert len(run.stage("sft")) == 80
    assert len(run.scores) == 900
    assert len(run.samples) == 150
    assert [row["step"] for row in run.alarms] == [60, 146, 159]
    assert run.certificate["tier"] == "model_cost"


def test_absent_files_leave_their_tables_empty(run_folder: Path) -> None:
    for name in OPTIONAL:
        (run_folder / name).unlink()
    run = read(run_folder)
    assert (run.metrics, run.scores, run.samples, run.alarms) == ((), (), (), ())
    assert (run.summary, run.certificate, run.fingerprint) == ({}, {}, {})


def test_a_folder_without_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml; give the folder a run has written"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [name for name in OPTIONAL if name.endswith(".jsonl")])
def test_a_broken_line_is_named_with_file_and_line(run_folder: Path, name: str) -> None:
    lines = (run_folder / name).read_text().splitlines()
    lines[2] = lines[2][:11]
    (run_folder / name).write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"{name}, line 3: not valid JSON"):
        read(run_folder)


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("metrics.jsonl", '{"stage": "policy"}', "metrics.jsonl, line 2: step is required, found nothing"),
        ("metrics.jsonl", '{"stage": 3, "step": 1}', "line 2: stage is required, found 3"),
        (
            "scores.jsonl",
            '{"when": "after", "reward": 1.0, "cost": null}',
            "line 2: cost is required, found None",
        ),
        ("samples.jsonl", '{"prompt": "Why?"}', "line 2: response is required, found nothing"),
        ("samples.jsonl", "[1, 2]", "line 2: expected a JSON object, found a list"),
    ],
)
def test_a_line_that_lacks_a_field_is_refused(run_folder: Path, name: str, line: str, message: str) -> None:
    first = (run_folder / name).read_text().splitlines()[0]
    (run_folder / name).write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match=message):
        read(run_folder)


def test_empty_lines_are_skipped_and_lines_still_counted(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_text('\n{"stage": "sft", "step": 1}\n\n{"stage"\n')
    with pytest.raises(UserError, match="line 4"):
        read(run_folder)


def test_a_separator_inside_a_string_does_not_split_a_line(run_folder: Path) -> None:
    text = '{"prompt": "one\u2028two", "response": "three"}\n'
    (run_folder / "samples.jsonl").write_text(text, encoding="utf-8")
    assert read(run_folder).samples[0]["prompt"] == "one\u2028two"


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("summary.json", '{"verdict": "NSF"', "summary.json, line 1: not valid JSON"),
        ("summary.json", "[]", "summary.json: expected one JSON object, found a list"),
        ("certificate.json", '{"verdict": "CERTIFIED"}', "no predicate with a verdict"),
        ("config.yaml", "- a\n- b\n", "expected settings as `key: value`, found a list"),
        ("config.yaml", "a: [", "not valid YAML"),
    ],
)
def test_a_broken_document_is_named(run_folder: Path, name: str, text: str, message: str) -> None:
    (run_folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(run_folder)


def test_bytes_that_are_no_text_are_refused(run_folder: Path) -> None:
    (run_folder / "samples.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(UserError, match=r"samples\.jsonl is not UTF-8 text .* byte 12"):
        read(run_folder)


def test_two_verdicts_in_one_folder_are_refused(run_folder: Path) -> None:
    text = (run_folder / "summary.json").read_text().replace('"CERTIFIED"', '"NSF"')
    (run_folder / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json says NSF and certificate\.json says CERTIFIED"):
        read(run_folder)


def test_only_finite_numbers_are_numbers() -> None:
    given = ["0.0199", 3, True, None, "nan", float("inf"), "abc", [1]]
    assert [as_number(value) for value in given] == [0.0199, 3.0, None, None, None, None, None, None]


def test_a_column_keeps_steps_and_values_together() -> None:
    rows = [{"step": 4, "kl": 1.0}, {"step": 5, "kl": None}, {"step": 6}, {"step": 7, "kl": 3.0}]
    steps, values = column(rows, "kl")
    assert steps.tolist() == [4.0, 7.0]
    assert values.tolist() == [1.0, 3.0]
    assert [len(array) for array in column(rows, "absent")] == [0, 0]


def test_evenly_keeps_both_ends_and_never_repeats() -> None:
    rows = [{"i": i} for i in range(101)]
    kept = [row["i"] for row in evenly(rows, 60)]
    assert (kept[0], kept[-1], len(kept)) == (0, 100, 60)
    assert sorted(set(kept)) == kept
    assert evenly(rows[:3], 60) == rows[:3]
    assert evenly([], 60) == []


def test_audits_are_known_by_their_names(finished: Path) -> None:
    audits = read(finished).audits
    assert list(audits) == ["attributes", "cost"]
    assert list(audits["attributes"]["scores"]) == ["tact", "depth"]


def test_a_file_that_is_no_audit_is_refused(run_folder: Path) -> None:
    (run_folder / "audit-cost.json").write_text('{"score": {}}')
    with pytest.raises(UserError, match=r"audit-cost\.json is no audit of a score model: it has no scores; remove"):
        read(run_folder)

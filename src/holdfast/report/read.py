"""A run folder as tables.

Stages leave files behind and this module reads them; nothing else of a run is needed for its report. Only
`config.yaml` must be there. A file that is absent leaves its table empty. A file that is there and cannot be
understood is an error that names the file and the line: half a table would look like a whole one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.config import parse_yaml
from holdfast.errors import UserError

Row = dict[str, Any]
Array = NDArray[np.float64]

# What each line must hold for the page to place it; everything else in a line is optional.
REQUIRED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "metrics.jsonl": {"stage": str, "step": int},
    "scores.jsonl": {"when": str, "reward": (int, float), "cost": (int, float)},
    "samples.jsonl": {"prompt": object, "response": object},
    "annotations.jsonl": {"advantage": (int, float)},
    "alarms.jsonl": {"stage": str, "step": int, "words": str},
}


@dataclass(frozen=True)
class Run:
    """What a run folder says; an absent file is an empty table here."""

    name: str
    config: Row
    config_text: str
    fingerprint: Row
    summary: Row
    certificate: Row
    """The predicate of the statement: verdict, claim, constraints, limits, assumptions."""
    metrics: tuple[Row, ...]
    scores: tuple[Row, ...]
    samples: tuple[Row, ...]
    annotations: tuple[Row, ...]
    """What was known of each given answer before a policy learned from it."""
    alarms: tuple[Row, ...]
    """What the detector of collapse found, in the order in which it did."""
    audits: Mapping[str, Row]
    """What score models are worth, by the NAME of `audit-NAME.json`."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that logged numbers, in the order in which they first did."""
        return tuple(dict.fromkeys(row["stage"] for row in self.metrics))

    def stage(self, name: str) -> tuple[Row, ...]:
        """The logged rows of one stage, in the order in which they were written."""
        return tuple(row for row in self.metrics if row["stage"] == name)


def read(folder: str | Path) -> Run:
    """Return the tables of the run in `folder`.

    Raises `UserError` when the folder or its `config.yaml` is absent, when a line is broken or lacks a field,
    and when the summary and the certificate state different verdicts.
    """
    folder = Path(folder)
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise UserError(f"{folder} is no run folder: it holds no config.yaml; give the folder a run has written")
    config_text = _text(config_file)
    config = parse_yaml(config_text, str(config_file)) or {}
    if not isinstance(config, dict):
        raise UserError(f"{config_file}: expected settings as `key: value`, found a {type(config).__name__}")
    run = Run(
        name=folder.resolve().name,
        config=config,
        config_text=config_text,
        fingerprint=_json(folder / "fingerprint.json"),
        summary=_json(folder / "summary.json"),
        certificate=_predicate(folder / "certificate.json"),
        metrics=_json_lines(folder / "metrics.jsonl"),
        scores=_json_lines(folder / "scores.jsonl"),
        samples=_json_lines(folder / "samples.jsonl"),
        annotations=_json_lines(folder / "annotations" / "annotations.jsonl"),
        alarms=_json_lines(folder / "alarms.jsonl"),
        audits={file.stem.removeprefix("audit-"): _audit(file) for file in sorted(folder.glob("audit-*.json"))},
    )
    _one_verdict(run, folder)
    return run


def as_number(value: Any) -> float | None:
    """Return `value` as a finite float, or None; certificates write numbers as decimal strings.

    >>> as_number("0.0199"), as_number(3), as_number(None), as_number(True), as_number(float("nan"))
    (0.0199, 3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_estimate(given: Any) -> dict[str, float | None]:
    """Return value, low, high and n of what was written as an estimate, None where it does not say; or of a number.

    >>> as_estimate(0.5)
    {'value': 0.5, 'low': None, 'high': None, 'n': None}
    """
    parts = given if isinstance(given, Mapping) else {"value": given}
    return {key: as_number(parts.get(key)) for key in ("value", "low", "high", "n")}


def column(rows: Sequence[Row], key: str) -> tuple[Array, Array]:
    """Return steps and values of the rows where `key` is a finite number, as two arrays of equal length.

    >>> steps, values = column([{"step": 1, "kl": 0.5}, {"step": 2, "kl": None}, {"step": 3}], "kl")
    >>> steps.tolist(), values.tolist()
    ([1.0], [0.5])
    """
    pairs = [(as_number(row.get("step")), as_number(row.get(key))) for row in rows]
    kept = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
    return kept[:, 0], kept[:, 1]


def numeric_keys(rows: Sequence[Row]) -> list[str]:
    """Return the names under which any row holds a finite number, in the order in which they first appear.

    >>> numeric_keys([{"step": 1, "kl": 0.5, "stage": "policy"}, {"step": 2, "kl": None, "reward": 1.0}])
    ['kl', 'reward']
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if key != "step" and any(as_number(row.get(key)) is not None for row in rows)]


def evenly(rows: Sequence[Row], most: int) -> list[Row]:
    """Return at most `most` of the rows, evenly spread, the first and the last among them.

    >>> [row["step"] for row in evenly([{"step": i} for i in range(9)], most=3)]
    [0, 4, 8]
    """
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).astype(int)]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _json(file: Path) -> Row:
    if not file.is_file():
        return {}
    try:
        value = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected one JSON object, found a {type(value).__name__}")
    return value


def _predicate(file: Path) -> Row:
    statement = _json(file)
    predicate = statement.get("predicate", {})
    if statement and not (isinstance(predicate, dict) and "verdict" in predicate):
        raise UserError(f"{file} is no certificate: it has no predicate with a verdict")
    return predicate


def _audit(file: Path) -> Row:
    audit = _json(file)
    if not isinstance(audit.get("scores"), dict):
        raise UserError(f"{file} is no audit of a score model: it has no scores; remove or rename it")
    return audit


def _json_lines(file: Path) -> tuple[Row, ...]:
    if not file.is_file():
        return ()
    lines = _text(file).split("\n")
    return tuple(_row(file, number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(file: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}, line {number}: not valid JSON ({error.msg}); was the run cut off while writing? "
            "Repair or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: expected a JSON object, found a {type(row).__name__}")
    for key, kind in REQUIRED[file.name].items():
        if key not in row or not isinstance(row[key], kind):
            found = repr(row[key]) if key in row else "nothing"
            raise UserError(f"{file}, line {number}: {key} is required, found {found}")
    return row


def _one_verdict(run: Run, folder: Path) -> None:
    said, certified = run.summary.get("verdict"), run.certificate.get("verdict")
    if said and certified and said != certified:
        raise UserError(
            f"{folder}: summary.json says {said} and certificate.json says {certified}; "
            "one of them belongs to another run, remove it"
        )

"""What score models are worth, for the page: tables, drawings and warnings from audits as they were written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holdfast.report import score_plots
from holdfast.report.document import document
from holdfast.report.panels import Drawing
from holdfast.report.read import Row, Run, as_estimate
from holdfast.report.score_plots import Bucket, Dot
from holdfast.report.words import NARROW, Finding, hundredths, interval_in_words, number, percent, points

MOST_PARTS = 12
# How a score's direction is said in words.
DIRECTIONS = {"harm": "higher is more harmful", "help": "higher is better", "rating": "follows its rating"}


class Cell(NamedTuple):
    """A number as text with its interval below it; both empty where there is none."""

    text: str = ""
    range: str = ""


@dataclass(frozen=True)
class Score:
    """One score on the page: its row in each table, its drawings, and what could not be estimated."""

    name: str
    direction: str
    pairs: tuple[Cell, ...]
    labels: tuple[Cell, ...]
    ratings: tuple[Cell, ...]
    drawings: list[Drawing]
    notes: list[str]


@dataclass(frozen=True)
class Audited:
    """All scores of one page, the warnings about them, and how stable they are."""

    warnings: list[str]
    scores: list[Score]
    stability: list[str]


def render_audit(audit: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page about one audit, a dictionary as `Audit.to_dict` gives it, and return its path."""
    shown = _together({"": audit})
    model, count = audit["model"], len(shown.warnings)
    badge = f"{count} WARNING{'S' if count > 1 else ''}" if count else "NO WARNINGS"
    found = Finding(badge, _title(audit), _sentence(audit), "warn" if count else "good")
    facts = [(key.capitalize(), _listed(value)) for key, value in model.items()]
    facts += [(key.replace("_", " ").capitalize(), f"{value:,}") for key, value in audit["n"].items() if value]
    page = document("Holdfast audit of scores", ", ".join(model["names"]), found, facts, [("scores", "Scores", shown)])
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def audited(run: Run) -> Audited | None:
    """Return what the audits of a run say, all on one page; None when there are none."""
    return _together(run.audits) if run.audits else None


def _together(audits: Mapping[str, Mapping[str, Any]]) -> Audited:
    scores = []
    for name, audit in audits.items():
        for key, told in audit["scores"].items():
            scores.append(_score(key if name in ("", key) else f"{name}: {key}", told))
    return Audited(
        warnings=[line for audit in audits.values() for line in audit.get("warnings", ())],
        scores=scores,
        stability=[line for audit in audits.values() for line in _stability(audit.get("invariance", {}))],
    )


def _title(audit: Mapping[str, Any]) -> str:
    """The headline: for one score how often it is right, for several how many there are."""
    scores = audit["scores"]
    if len(scores) > 1:
        return f"{len(scores)} scores, held against {audit['n']['answers']:,} answers"
    ((name, told),) = scores.items()
    for part, key, words in (
        ("pairs", "accuracy", "of pairs in the right order"),
        ("harm", "sign_accuracy", "of answers on the right side of zero"),
    ):
        if told.get(part):
            return f"{name}: {percent(told[part][key]['value'])} {words}"
    return f"{name}, held against {audit['n']['answers']:,} answers"


def _sentence(audit: Mapping[str, Any]) -> str:
    n = audit["n"]
    return (
        f"Measured on {n['answers']:,} answers to {n['prompts']:,} prompts. Intervals hold 95% and count prompts, "
        "because answers to one prompt resemble each other."
    )


def _listed(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _score(name: str, told: Row) -> Score:
    pairs, harm, rating = (told.get(key) or {} for key in ("pairs", "harm", "rating"))
    ece = (told.get("calibration") or {}).get("ece", {})
    length = cell(told["length"].get("spearman"), hundredths)
    return Score(
        name=name,
        direction=DIRECTIONS[told["direction"]],
        pairs=(
            cell(pairs["accuracy"], percent),
            cell(pairs["length_accuracy"], percent)._replace(range=f"the {pairs['length_rule']} higher"),
            cell(pairs["gain"], points),
            length,
        )
        if pairs
        else (),
        labels=(
            cell(harm.get("sign_accuracy"), percent),
            cell(harm.get("majority"), percent)._replace(range=""),
            cell(harm.get("auc"), number),
            cell(ece.get("raw"), percent),
            cell(ece.get("platt"), percent),
        )
        if harm or ece
        else (),
        ratings=(
            cell(rating["r2"], number),
            cell(rating["mae"], number),
            cell(rating["spearman"], hundredths),
            cell(rating["within_prompt"], hundredths),
            length,
            cell(rating["rating_length"], hundredths),
        )
        if rating
        else (),
        drawings=list(_drawings(name, told)),
        notes=told.get("notes", []),
    )


def cell(given: Any, show: Callable[[float], str]) -> Cell:
    """Return a number with its interval, empty where there is none; how many it counts stands elsewhere on the page."""
    estimate = as_estimate(given)
    if estimate["value"] is None:
        return Cell()
    return Cell(show(estimate["value"]), interval_in_words({**estimate, "n": None}, show))


def _drawings(name: str, told: Row) -> Iterator[Drawing]:
    calibration, pairs = told.get("calibration"), told.get("pairs")
    if calibration:
        yield _reliability(name, calibration)
    counts = {group: np.array(count, dtype=float) for group, count in told["histogram"]["counts"].items()}
    border = "harmful above" if told.get("harm") else ""
    picture = score_plots.outlines(counts, np.array(told["histogram"]["edges"]), border, f"Distribution of {name}")
    apart = "The less the outlines overlap, the better. " if len(counts) > 1 else ""
    sizes = ", ".join(f"{int(count.sum()):,} {group}" for group, count in counts.items())
    yield Drawing(f"{name}: how the scores lie", picture, f"{apart}Shown: {sizes}.")
    if pairs and (rows := _parts(pairs["parts"])):
        yield _where(name, pairs, rows)
    if told["length"].get("spearman"):
        yield _length(name, told)


def _reliability(name: str, told: Row) -> Drawing:
    words = "harmful" if told["of"] == "harm" else "won"
    curves = {
        label: [Bucket(one["predicted"], as_estimate(one["observed"])) for one in told["bins"][key]]
        for key, label in (("raw", "as it is"), ("platt", "after Platt scaling"))
    }
    raw, platt = (_in_brackets(told["ece"][key]) for key in ("raw", "platt"))
    note = (
        f"On the dashed line what is stated comes true; faint: few cases. Calibration error {raw} as it is; "
        f"{percent(told['ece']['temperature']['value'])} at temperature {number(told['temperature'])}; {platt} after "
        "Platt scaling. Temperature and Platt scaling are judged on prompts they were not fitted to."
    )
    return Drawing(
        f"{name}: do its probabilities come true?",
        score_plots.reliability(curves, words, f"Reliability of {name}"),
        note,
    )


def _where(name: str, pairs: Row, rows: Sequence[Dot]) -> Drawing:
    overall = pairs["accuracy"]["value"]
    note = f"The line is all pairs together, {percent(overall)}; the dotted line is chance. Hollow: few pairs."
    hidden = sum(max(0, len(parts) - MOST_PARTS) for parts in pairs["parts"].values())
    note += f" {hidden} smaller parts are in the audit's file." if hidden else ""
    return Drawing(f"{name}: where it is right", score_plots.dots(rows, overall, f"Accuracy of {name} by part"), note)


def _parts(parts: Mapping[str, Mapping[str, Row]]) -> list[Dot]:
    """Headings and dots, the largest parts first; a single part would only repeat the whole."""
    rows = []
    for kind, members in parts.items():
        if len(members) > 1:
            rows.append(Dot(f"by {kind}", None))
            for name, one in list(members.items())[:MOST_PARTS]:
                n = f"n{NARROW}={NARROW}{one['pairs']:,}"
                rows.append(Dot(name, as_estimate(one["accuracy"]), n, one["small"]))
    return rows


def _length(name: str, told: Row) -> Drawing:
    drawn, found = told["points"], _in_brackets(told["length"]["spearman"], hundredths)
    picture = score_plots.cloud(
        np.array(drawn["length"]), np.array(drawn["score"]), drawn["harmful"], f"Length and {name}"
    )
    note = f"Rank correlation {found}. {len(drawn['score']):,} answers are drawn."
    return Drawing(f"{name}: is it length?", picture, note)


def _in_brackets(given: Any, show: Callable[[float], str] = percent) -> str:
    """A number with its interval and sample size behind it, for running text."""
    estimate = as_estimate(given)
    return f"{show(estimate['value'] or 0.0)} ({interval_in_words(estimate, show)})"


def _stability(told: Row) -> list[str]:
    if told.get("skipped"):
        return [f"Stability was not checked: {told['skipped']}."]
    checked = told.get("checked", 0)
    return [
        f"{name}: {checked} answers scored alone, in other batches and padded on the left differ by at most "
        f"{number(spread)}, {_drift(told['relative'][name])} of their standard deviation."
        for name, spread in told.get("spread", {}).items()
    ]


def _drift(share: float) -> str:
    """A share as per cent; what is only rounding is not given in digits."""
    return percent(share) if share >= 1e-4 else "less than 0.01%"

"""How far weak labels carried a strong model, for the page: levels, recovered gap, what was copied, warnings.

It shows what a run of weak-to-strong generalization (arXiv 2312.09390) wrote under `weak_to_strong` in its summary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from holdfast.report import recovery_plots
from holdfast.report.audit import Cell, cell
from holdfast.report.panels import Drawing
from holdfast.report.read import Row, Run, as_estimate, as_number
from holdfast.report.recovery_plots import Epochs, Level
from holdfast.report.words import MINUS, Finding, hundredths, percent, points

NOUNS = {"classifier": "texts", "reward": "pairs", "cost": "pairs"}
NONE = "\u2013"


@dataclass(frozen=True)
class Table:
    """A table of the page: what it answers, its head, rows of a name and cells, and how to read it."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]
    note: str


@dataclass(frozen=True)
class Recovered:
    """What the page shows of students of weak labels; `epochs` is drawn wider than the others."""

    warnings: list[str]
    drawings: list[Drawing]
    tables: list[Table]
    epochs: list[Drawing]


def recovery(run: Run) -> Recovered | None:
    """Return what the students of weak labels are worth; None for a run without them."""
    report = _report(run)
    if not report:
        return None
    return Recovered(
        warnings=together(report["warnings"]),
        drawings=[_levels(report), *_recovered(report)],
        tables=[_reach(run, report), _copied(report), _sureness(report)],
        epochs=list(_epochs(report)),
    )


def headline(run: Run) -> Finding | None:
    """Return how much of the gap the best student recovers, or that this cannot be said; None without students."""
    report = _report(run)
    if not report:
        return None
    name, found = max(report["students"].items(), key=lambda item: item[1]["recovery"]["student"]["value"])
    told = found["recovery"]
    value = as_estimate(told["value"])
    sentence = _three(run, report, name, told) + _selected(report, name)
    if value["value"] is None:
        return Finding("NO PGR", "No clear gap to recover", f"{sentence} PGR is withheld: {told['reason']}.", "warn")
    badge = f"PGR {hundredths(value['value'])}"
    if (value["low"] or 0.0) > 0:
        return Finding(badge, f"{percent(value['value'])} of the gap recovered, with {_name(name)}", sentence, "good")
    title = "The students stay below their supervisor" if value["value"] < 0 else "No recovery of the gap is shown"
    return Finding(badge, title, sentence, "warn")


def _three(run: Run, report: Row, name: str, told: Row) -> str:
    """The three levels, and their ratio where there is one."""
    weak, student, ceiling = (_in_brackets(told[key], percent) for key in ("weak", "student", "ceiling"))
    pgr = f" PGR is {_in_brackets(told['value'], hundredths)}, over items and seeds." if told["value"] else ""
    return (
        f"Of {report['items']['test']:,} test {noun(run)} the supervisor gets {weak} right, the student of its labels, "
        f"with the loss {_name(name)}, {student}, and the ceiling, the same model taught by people's labels, "
        f"{ceiling}.{pgr}"
    )


def _selected(report: Row, best: str) -> str:
    """What a reader must know of a maximum: among how many, and what the plain method gives."""
    students = report["students"]
    if len(students) == 1:
        return ""
    plain = as_estimate(students.get("soft", {}).get("recovery", {}).get("value"))
    words = f" It is the best of {len(students)} students on the very items that judge it."
    if best == "soft" or plain["value"] is None:
        return words
    return f"{words} Plain imitation, soft, has PGR {_in_brackets(plain, hundredths)}."


def facts(run: Run) -> list[tuple[str, str]]:
    """Return who learned from how much, as name and text; empty for a run without students."""
    report = _report(run)
    if not report:
        return []
    items, learners = report["items"], report["learners"]
    heat = [hundredths(one["calibration"]["T"]) for one in report["labels"] if one["calibration"]["method"] != "none"]
    told = [
        ("Supervisor", f"{learners['supervisor']}, {items.get('weak_train', 0):,} {noun(run)}"),
        ("Student and ceiling", f"{learners['student']}, {items['transfer']:,} {noun(run)}"),
        ("Seeds", ", ".join(map(str, report["seeds"]))),
    ]
    return [*told, ("Temperature of the weak labels", ", ".join(heat))] if heat else told


def noun(run: Run) -> str:
    """Return what the items of a run are called."""
    return NOUNS.get(str(run.summary.get("task")), "items")


def together(lines: Sequence[str]) -> list[str]:
    """Return warnings `NAME: what` with the names of those that say the same before it, in their order.

    >>> together(["soft: no gap", "soft: below 0.7", "hard: no gap"])
    ['soft, hard: no gap', 'soft: below 0.7']
    """
    names: dict[str, list[str]] = {}
    for line in lines:
        name, _, what = line.partition(": ")
        names.setdefault(what, []).append(name)
    return [": ".join(part for part in (", ".join(who), what) if part) for what, who in names.items()]


def _report(run: Run) -> Row:
    return run.summary.get("weak_to_strong") or {}


def _name(student: str) -> str:
    return student.replace("_bootstrapped", ", bootstrapped").replace("_", " ")


def _in_brackets(given: Any, show: Callable[[float], str]) -> str:
    found = cell(given, show)
    return f"{found.text} ({found.range})"


def _recoveries(report: Row) -> dict[str, Row]:
    return {name: found["recovery"] for name, found in report["students"].items()}


def _ends(report: Row) -> tuple[Row, Row]:
    """Supervisor and ceiling as the first student, which learned with every seed, was held against them."""
    first = next(iter(_recoveries(report).values()))
    return first["weak"], first["ceiling"]


def _seeds(found: Row) -> list[float]:
    """A student's level with each seed, as far as its learner looked at it by epoch."""
    return [one["chosen"] for one in found["stopping"] if one]


def _levels(report: Row) -> Drawing:
    weak, ceiling = _ends(report)
    rows = [
        Level("supervisor", as_estimate(weak), report["accuracy"]["supervisor"]),
        *(
            Level(_name(name), as_estimate(found["recovery"]["student"]), _seeds(found))
            for name, found in report["students"].items()
        ),
        Level("ceiling", as_estimate(ceiling), report["accuracy"]["ceiling"]),
    ]
    note = "Bars: 95% intervals over items and seeds; gains are paired, so clearer, in the table. Small: single seeds."
    return Drawing("Right on test items", recovery_plots.levels(rows, "% right", "Accuracy of all models"), note)


def _recovered(report: Row) -> Iterator[Drawing]:
    rows = [
        Level(_name(name), as_estimate(found["value"]), [one for one in found["per_seed"] if one is not None])
        for name, found in _recoveries(report).items()
    ]
    if all(row.mark["value"] is None for row in rows):
        return
    note = "0 is the supervisor, 1 the ceiling. Small: single seeds, of which some may lie outside; the table has all."
    yield Drawing("Share of the gap recovered", recovery_plots.ratios(rows, "PGR", "Recovered gap by loss"), note)


def _reach(run: Run, report: Row) -> Table:
    """Levels, gain and ratio, and the recall of the class that must not be missed."""
    (weak, ceiling), recalls = _ends(report), {name: one.get("recall") for name, one in report["students"].items()}
    recalled = next((one for one in recalls.values() if one), None)
    rows = [("supervisor", [cell(weak, percent), Cell(), Cell(), Cell(), *_recall(recalled, "weak")])]
    for name, found in _recoveries(report).items():
        seeds = ", ".join(NONE if one is None else hundredths(one) for one in found["per_seed"])
        gap = cell(found["value"], hundredths)
        own = [cell(found["student"], percent), cell(found["gain"], points), gap, Cell(seeds)]
        rows.append((_name(name), [*own, *_recall(recalls[name], "student")]))
    rows.append(("ceiling", [cell(ceiling, percent), Cell(), Cell(), Cell(), *_recall(recalled, "ceiling")]))
    note = (
        f"PGR: (student {MINUS} supervisor) / (ceiling {MINUS} supervisor), a ratio of means over seeds, with its "
        "interval over items and seeds; withheld where the gap is not clear of zero. Gains are paired: what is hard "
        f"for both cancels. {NONE} with a seed: its ceiling is not above its supervisor."
    )
    head: tuple[str, ...] = ("Model", "Right", "Above supervisor, points", "PGR", "with each seed")
    if recalled:
        head = (*head, f"Recall of {run.config.get('unsafe', 'unsafe')}")
        note += " Recall: at 5% false alarms."
    return Table("How far they come", head, rows, note)


def _recall(recalls: Mapping[str, Any] | None, whose: str) -> list[Cell]:
    return [cell(recalls[whose], percent)] if recalls else []


def _copied(report: Row) -> Table:
    rows = []
    for name, found in report["students"].items():
        same = found["agreement"]
        given = (same["on_right"], same["on_wrong"], found["copied_mistakes"], found["confident_disagreement"])
        rows.append((_name(name), [cell(one, percent) for one in given]))
    note = (
        "Agreeing less where the supervisor is wrong than where it is right is what generalization consists of. "
        "Copied: of the student's confident mistakes, those that the supervisor is as sure of. Confident disagreement: "
        "of what the student is sure of, what the supervisor is sure is otherwise."
    )
    head = ("Loss", "Agrees where it is right", "where it is wrong", "Copied mistakes", "Confident disagreement")
    return Table("What they took from the supervisor", head, rows, note)


def _sureness(report: Row) -> Table:
    rows = []
    for name, found in report["students"].items():
        blind, stops = found["blind_spots"], [one["gap"] for one in found["stopping"] if one]
        cells = [cell(blind[key], percent) for key in ("known", "unknown")]
        cells += [cell(found["calibration_error"], percent), cell(found["overconfidence"], points)]
        rows.append((_name(name), [*cells, cell(fmean(stops) if stops else None, points)]))
    note = (
        "Errors on what the ceiling gets right: where the supervisor knew the answer, and where it was wrong or "
        "unsure. Too sure: confidence less accuracy. Best epoch: what choosing it by people's labels would have added; "
        "no epoch was chosen by them."
    )
    head = ("Loss", "Errors on what it knew", "on what it did not", "Calibration error", "Too sure", "Best epoch adds")
    return Table("Blind spots and confidence", head, rows, note)


def _epochs(report: Row) -> Iterator[Drawing]:
    curves = {
        _name(name): [Epochs(one["gold"], one["weak"]) for one in found["stopping"] if one]
        for name, found in report["students"].items()
    }
    curves = {name: own for name, own in curves.items() if own}
    if curves:
        weak = as_number(_ends(report)[0]["value"])
        note = (
            "A line for each seed. Filled: the epoch chosen by agreement with held-out weak labels. Where agreement "
            "rises and accuracy falls, the student learns the supervisor's mistakes. Dotted: the supervisor."
        )
        picture = recovery_plots.epochs(curves, weak, "Accuracy and agreement by epoch")
        yield Drawing("By epoch", picture, note)

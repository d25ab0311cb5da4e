"""Comparisons that a run wrote into its summary: arms side by side, growth with labels, before and after by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.report import score_plots
from holdfast.report.panels import Drawing
from holdfast.report.read import Run, as_estimate
from holdfast.report.score_plots import Dot
from holdfast.report.words import interval_in_words, number


@dataclass(frozen=True)
class Comparison:
    """One comparison on the page: heading, head of the table, rows of name and cells, and its drawing if it has one.

    A cell is a number with its interval as text.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, list[tuple[str, str]]]]
    drawings: list[Drawing]


def comparisons(run: Run) -> list[Comparison]:
    """Return the comparisons of the run's summary, in their order."""
    return [_comparison(one) for one in run.summary.get("comparisons", ())]


def _comparison(found: Mapping[str, Any]) -> Comparison:
    rows = [(str(name), [_cell(cell) for cell in cells]) for name, *cells in found["rows"]]
    head = (found["what"], *(_heading(column, found["kind"]) for column in found["columns"]))
    return Comparison(found["title"], head, rows, _drawings(found))


def _heading(column: Any, kind: str) -> str:
    """The words above a column; those of a growth are numbers of labels."""
    return str(column) if kind != "growth" else f"{column} label{'s' if column != 1 else ''}"


def _cell(value: Mapping[str, Any]) -> tuple[str, str]:
    estimate = as_estimate(value)
    if estimate["value"] is None:
        return "\u2013", ""
    return number(estimate["value"]), interval_in_words(estimate, number)


def _drawings(found: Mapping[str, Any]) -> list[Drawing]:
    title, kind = found["title"], found["kind"]
    if kind == "shares":
        dots = [Dot(name, as_estimate(first)) for name, first, *_ in found["rows"]]
        best = max((dot.mark["value"] or 0.0) for dot in dots if dot.mark)
        note = "The thin line: the best. Dotted: chance."
        return [Drawing(f"{found['what']}, {found['columns'][0]}", score_plots.dots(dots, best, alt=title), note)]
    if kind == "growth":
        curves = {name: _points(found["columns"], cells) for name, *cells in found["rows"]}
        note = "Bars: 95 % intervals over people. Dotted: chance."
        return [Drawing("with labels", score_plots.growth(curves, "labels of the person", alt=title), note)]
    return []


def _points(places: Sequence[float], cells: Sequence[Mapping[str, Any]]) -> list[tuple[float, Any]]:
    return [(float(place), as_estimate(cell)) for place, cell in zip(places, cells)]

"""What a sweep leaves to read: `pareto.json`, `pareto.md`, `pareto.png` and one page, `report.html`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.report.audit import Cell
from holdfast.report.document import document
from holdfast.report.panels import Drawing
from holdfast.report.pareto import Point, Trade, words
from holdfast.report.pareto_plots import drawings, heading, picture
from holdfast.report.words import Finding, duration, interval_in_words, number, percent

SHARES = ("true_harm", "over_refusal")
UP, DOWN = "\u2191", "\u2193"
READING = (
    "Up and right is better. Bars: 95% intervals. Filled: on the front of all objectives. Shaded: what the settings "
    "gain above the base in the two that are drawn."
)
METHOD = (
    "The base is the policy before training. A setting is on the front when no other, nor the base, is at least as "
    "good in every objective and better in one; beside it stands the share of draws in which it is. The hypervolume "
    "is what the settings dominate above the base, in products of the objectives' units; its interval counts that the "
    "base is an estimate too."
)


Table = tuple[list[str], list[tuple[Point, list[Cell]]]]


@dataclass(frozen=True)
class Shown:
    """The table and the drawings of a trade-off, as the page lays them out."""

    failed: list[tuple[str, str]]
    warnings: list[str]
    drawings: list[Drawing]
    reading: str
    tables: list[Table]
    notes: list[str]
    wide: bool


def write(trade: Trade, folder: str | Path) -> Path:
    """Write the four files into `folder` and return the path of the page."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(trade), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "pareto.json").write_text(text, encoding="utf-8")
    (folder / "pareto.md").write_text(markdown(trade), encoding="utf-8")
    picture(trade, folder / "pareto.png")
    page = folder / "report.html"
    page.write_text(_page(trade), encoding="utf-8")
    return page


def to_dict(trade: Trade) -> dict[str, Any]:
    """The trade-off as JSON holds it, estimates spelled out."""
    return {
        "name": trade.name,
        "varied": list(trade.varied),
        "judges": [{"name": one.name, "better": "lower" if one.lower else "higher"} for one in trade.judges],
        "hypervolume": trade.volume.to_dict(),
        "reference": "base",
        "intervals": trade.source,
        "points": [
            {
                "label": point.label,
                "settings": point.settings,
                "runs": [run.name for run in point.runs],
                "front": point.on_front,
                "front_probability": point.likely,
                "reached": {name: one.to_dict() for name, one in point.reached.items()},
                "seconds": None if point.base else point.seconds,
            }
            for point in trade.points
        ],
        "failed": dict(trade.failed),
        "warnings": list(trade.warnings),
    }


def head(trade: Trade) -> list[str]:
    """The words above the columns of the table."""
    judged = [f"{one.words} {DOWN if one.lower else UP}" for one in trade.judges]
    others = [words(name) for name in trade.beside]
    return [", ".join(_brief(key) for key in trade.varied) or "setting", *judged, "on the front", *others, "run took"]


def cells(trade: Trade, point: Point) -> list[Cell]:
    """What the table says of a point, column by column after its label."""
    names = [one.name for one in trade.judges]
    likely = Cell("yes" if point.on_front else "no", f"{percent(point.likely)} of draws")
    took = Cell() if point.base else Cell(duration(point.seconds))
    return [*(_cell(point, name) for name in names), likely, *(_cell(point, name) for name in trade.beside), took]


def tables(trade: Trade) -> list[Table]:
    """Two tables that are not too wide: what is judged by, and what stands beside that."""
    names, judged = head(trade), len(trade.judges) + 1
    rows = [(point, cells(trade, point)) for point in trade.points]
    return [
        (names[: judged + 1], [(point, row[:judged]) for point, row in rows]),
        ([names[0], *names[judged + 1 :]], [(point, row[judged:]) for point, row in rows]),
    ]


def _cell(point: Point, name: str) -> Cell:
    if name not in point.reached:
        return Cell("not measured") if name == "over_refusal" else Cell()
    one, show = point.reached[name], percent if name in SHARES else number
    known = {"value": one.value, "low": one.low, "high": one.high, "n": None}
    return Cell(show(one.value), interval_in_words(known, show) if one.high > one.low else "")


def markdown(trade: Trade) -> str:
    """The table as Markdown, the finding above it and what to know below."""
    columns = [_plain(name) for name in head(trade)]
    lines = [f"# {_plain(trade.name)}", "", f"**{heading(trade)}.** {sentence(trade)}", ""]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for point in trade.points:
        name = f"**{_plain(point.label)}**" if point.on_front else _plain(point.label)
        shown = [f"{one.text} ({one.range})" if one.range else one.text for one in cells(trade, point)]
        lines.append(f"| {' | '.join([name, *shown])} |")
    told = [*(f"Failed: {name}: {why}" for name, why in trade.failed.items()), *trade.warnings, *notes(trade)]
    return "\n".join([*lines, "", *(f"- {_plain(line)}" for line in told)]) + "\n"


def notes(trade: Trade) -> list[str]:
    """How the table was made."""
    return [trade.source, METHOD]


def sentence(trade: Trade) -> str:
    """How many settings are on the front, in words."""
    settings = trade.points[1:]
    on = sum(point.on_front for point in settings)
    beaten = "The base is beaten." if not trade.points[0].on_front else "No setting beats the base in everything."
    return f"{on} of {len(settings)} settings are on the front. {beaten}"


def _page(trade: Trade) -> str:
    failed, warned = len(trade.failed), len(trade.warnings)
    badge = f"{failed} RUN{'S' if failed > 1 else ''} MISSING" if failed else "TRADE-OFF"
    found = Finding(badge, heading(trade), sentence(trade), "warn" if failed or warned else "good")
    runs = sum(len(point.runs) for point in trade.points[1:])
    facts = [("Varied", ", ".join(trade.varied) or "nothing but the seed"), ("Runs", f"{runs:,}")]
    facts += [("Judged by", ", ".join(one.words for one in trade.judges))]
    return document("Holdfast Pareto report", trade.name, found, facts, [("pareto", "Trade-off", _shown(trade))])


def _shown(trade: Trade) -> Shown:
    return Shown(
        failed=list(trade.failed.items()),
        warnings=list(trade.warnings),
        drawings=drawings(trade),
        reading=READING,
        tables=tables(trade),
        notes=notes(trade),
        wide=len(trade.judges) == 2,
    )


def _brief(key: str) -> str:
    """The last two parts of a setting's path, which is what people call it."""
    return ".".join(key.split(".")[-2:])


def _plain(text: str) -> str:
    """Text from files made harmless in a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "\\<").split())

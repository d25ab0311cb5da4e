"""Drawings of a trade-off: two objectives at a time, up and right always better, what was gained shaded."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import Bbox

from holdfast.report.panels import Drawing
from holdfast.report.pareto import Judge, Point, Trade
from holdfast.report.plots import INK, MUTED, PAPER, SERIES, STYLE, frame, inline
from holdfast.report.read import Array
from holdfast.report.words import MINUS, number
from holdfast.stats.pareto import front

Pair = tuple[Judge, Judge]

MOST_PANELS = 6
ABREAST = 3
LETTERS = 22
# Where a label may stand, in points from its own: the better directions are kept for the worse ones of others.
PLACES = [(dx, dy) for far in (7, 13, 20) for dx, dy in ((far, far), (far, -far), (-far, far), (-far, -far), (far, 0))]


def drawings(trade: Trade) -> list[Drawing]:
    """Return a drawing for each pair of objectives, at most six."""
    return [Drawing(_title(pair), _inline(trade, pair), "") for pair in _pairs(trade.judges)]


def _title(pair: Pair) -> str:
    return f"{pair[1].words} against {pair[0].words}"


def picture(trade: Trade, file: Path) -> Path:
    """Write all pairs side by side as one PNG, with the volume above them, and return its path."""
    pairs = _pairs(trade.judges)
    columns = min(len(pairs), ABREAST)
    rows = -(-len(pairs) // ABREAST)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(max(6.4, 4.4 * columns), 0.6 + 4.0 * rows), facecolor=PAPER, layout=layout)
        figure.suptitle(heading(trade), x=0.02, ha="left", fontsize=11)
        all_axes = [figure.add_subplot(rows, columns, i, facecolor=PAPER) for i in range(1, len(pairs) + 1)]
        for axes, pair in zip(all_axes, pairs):
            _points(axes, trade.points, pair)
        figure.draw_without_rendering()
        for axes, pair in zip(all_axes, pairs):
            _labels(axes, trade.points, pair)
        figure.savefig(file, dpi=160)
    return file


def heading(trade: Trade) -> str:
    """Return the volume and its interval in words.

    The base is the reference, so a volume of zero means that no setting beats it in everything.
    """
    volume = trade.volume
    return f"Hypervolume {number(volume.value)} [{number(volume.low)}, {number(volume.high)}] above the base"


def _pairs(judges: Sequence[Judge]) -> list[Pair]:
    return list(combinations(judges, 2))[:MOST_PANELS]


def _inline(trade: Trade, pair: Pair) -> Markup:
    alt = _title(pair)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "both"}):
        wide = len(trade.judges) == 2
        figure, axes = frame(*((7.2, 4.6) if wide else (4.6, 3.5)), left=0.09 if wide else 0.12, right=0.96, top=0.92)
        _points(axes, trade.points, pair)
        _labels(axes, trade.points, pair)
        return inline(figure, alt)


def _points(axes: Axes, points: Sequence[Point], pair: Pair) -> None:
    """Everything but the labels."""
    for turn, one in zip((axes.invert_xaxis, axes.invert_yaxis), pair):
        if one.lower:
            turn()
    _shade(axes, points, pair)
    for point in points:
        x, y = (point.reached[one.name] for one in pair)
        look = _look(point)
        axes.plot([x.low, x.high], [y.value, y.value], color=look["color"], linewidth=1.1, alpha=0.45)
        axes.plot([x.value, x.value], [y.low, y.high], color=look["color"], linewidth=1.1, alpha=0.45)
        axes.plot(x.value, y.value, markersize=6.5, linestyle="none", gid="point", **look)
    axes.margins(0.12)
    for ruler in (axes.xaxis, axes.yaxis):
        ruler.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    axes.set_xlabel(_ruler(pair[0]), loc="right")
    axes.set_title(_ruler(pair[1]), loc="left", fontsize=9, color=MUTED)


def _ruler(one: Judge) -> str:
    return f"{one.words} (less is better; axis turned)" if one.lower else one.words


def _look(point: Point) -> dict[str, Any]:
    if point.base:
        return {"color": MUTED, "marker": "D", "markerfacecolor": PAPER}
    return {"color": SERIES[0], "marker": "o", "markerfacecolor": SERIES[0] if point.on_front else PAPER}


def _shade(axes: Axes, points: Sequence[Point], pair: Pair) -> None:
    """What lies between the base and the pair's own front."""
    turned = np.array([-1.0 if one.lower else 1.0 for one in pair])
    table = turned * np.array([[point.reached[one.name].value for one in pair] for point in points])
    corners = staircase(table) * turned
    axes.plot(*corners[1:-1].T, color=SERIES[0], linewidth=1.2, alpha=0.8, gid="front")
    axes.fill(*corners.T, color=SERIES[0], alpha=0.09, linewidth=0, gid="gained")


def staircase(points: Array) -> Array:
    """Return the outline (corners, 2) of what points (M, 2) dominate above the first, where it opens and closes.

    >>> staircase(np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])).tolist()
    [[0.0, 0.0], [0.0, 2.0], [1.0, 2.0], [1.0, 1.0], [3.0, 1.0], [3.0, 0.0], [0.0, 0.0]]
    """
    reference = points[0]
    above = points[(points > reference).all(1)]
    steps = np.unique(above[front(above)], axis=0) if len(above) else above
    corners, left = [reference], float(reference[0])
    for x, y in steps:
        corners += [np.array([left, y]), np.array([x, y])]
        left = x
    return np.array([*corners, np.array([left, reference[1]]), reference])


def _labels(axes: Axes, points: Sequence[Point], pair: Pair) -> None:
    """Names beside the points, those of the front first; one that finds no room is left to the table."""
    values = [(point.reached[pair[0].name].value, point.reached[pair[1].name].value) for point in points]
    dot = 4 * _scale(axes)
    taken = [Bbox.from_extents(*(spot - dot), *(spot + dot)) for spot in map(axes.transData.transform, values)]
    for point, value in sorted(zip(points, values), key=lambda item: not item[0].on_front):
        name = point.label if len(point.label) <= LETTERS else f"{point.label[: LETTERS - 3]}..."
        place = _room(axes, axes.transData.transform(value), len(name), taken)
        if place is None and not point.on_front:
            continue
        dx, dy = place or PLACES[0]
        look: dict[str, Any] = {"fontsize": 8, "color": INK if point.on_front else MUTED, "gid": "label"}
        side = "right" if dx < 0 else "left"
        axes.annotate(name, value, (dx, dy), textcoords="offset points", ha=side, va="center", **look)


def _room(axes: Axes, spot: Array, letters: int, taken: list[Bbox]) -> tuple[int, int] | None:
    """Where so many letters can stand near the spot, which is then taken too; None when there is no room."""
    scale = _scale(axes)
    width, height = 4.9 * letters * scale, 8.5 * scale
    for dx, dy in PLACES:
        left, middle = spot[0] + dx * scale - (width if dx < 0 else 0), spot[1] + dy * scale
        box = Bbox.from_bounds(left, middle - height / 2, width, height)
        inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
        if inside and not box.count_overlaps(taken):
            taken.append(box)
            return dx, dy
    return None


def _scale(axes: Axes) -> float:
    """Pixels per point of type."""
    figure = axes.get_figure()
    assert figure is not None
    return figure.dpi / 72

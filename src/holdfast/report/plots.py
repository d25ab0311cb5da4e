"""Drawings as inline SVG: quiet axes, direct labels, colours that the page decides.

Each drawing uses a handful of colours by name. In the SVG they become CSS variables, so one drawing serves
the light and the dark scheme and the printer. The hues stay apart for colour-blind readers, and nothing is
told by hue alone: curves carry their name at their end, kinds of points have shapes of their own.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from holdfast.report.read import Array
from holdfast.report.words import MINUS

Cloud = tuple[Array, Array, NDArray[np.bool_]]
Mark = Mapping[str, float | None]

INK, MUTED, GRID, PAPER, BAD = "#1d252b", "#66717a", "#dfe3e6", "#fefefd", "#a3142b"
SERIES = ("#0069a8", "#c04a00", "#007a5e", "#9b3f86", "#7d6400", "#50607a")
# The CSS variables of page.css by the colour that stands for them while drawing.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BAD: "bad"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES, start=1)
}
MARKERS = ("o", "^", "s", "D", "v", "P")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "text.color": INK,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handletextpad": 0.2,
    "legend.columnspacing": 1.2,
}


class Limit(NamedTuple):
    """A line on the axis of costs, and what it says."""

    value: float
    words: str


@dataclass(frozen=True)
class Curve:
    """One named line over steps; `style`, a key of `DRAWN`, says what kind of number it is."""

    label: str
    steps: Array
    values: Array
    style: str = "line"
    dropped: int = 0
    """How many logged values are missing here because they were not finite."""


DRAWN: Mapping[str, Mapping[str, Any]] = {
    "line": {"linewidth": 1.8},
    "state": {"linewidth": 1.8},  # set, not measured: it has no noise to smooth away
    "bound": {"linewidth": 1.3, "linestyle": (0, (4, 2))},
    "limit": {"linewidth": 1.3, "linestyle": (0, (1, 1.6)), "color": INK},
    "held out": {"linewidth": 1.2, "marker": "o", "markersize": 3.5},
}

MOST_POINTS = 300
SMOOTH_FROM = 40


def thin(steps: Array, values: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """Return at most `most` points that keep the ends and every spike: the extremes of equal stretches.

    >>> steps, values = np.arange(1000.0), np.zeros(1000)
    >>> values[417] = 9.0
    >>> kept = thin(steps, values, most=50)
    >>> len(kept[0]) <= 50, float(kept[1].max()), float(kept[0][0]), float(kept[0][-1])
    (True, 9.0, 0.0, 999.0)
    """
    if len(steps) <= most:
        return steps, values
    stretches = np.array_split(np.arange(len(steps)), (most - 2) // 2)
    extremes = [stretch[pick(values[stretch])] for stretch in stretches for pick in (np.argmin, np.argmax)]
    kept = np.unique([0, *extremes, len(steps) - 1])
    return steps[kept], values[kept]


def smooth(values: Array) -> Array:
    """Return the centred mean over a twentieth of the curve; windows are cut, not padded, at its ends.

    >>> smooth(np.array([0.0, 3.0, 0.0] * 20))[:3].tolist()
    [1.5, 1.0, 1.0]
    """
    window = np.ones(2 * (len(values) // 40) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights moved apart by as much as it takes for neighbours to be `gap` apart, order kept.

    >>> spread([0.5, 0.5, 0.9], gap=0.1)
    [0.45, 0.55, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _bottom(groups[-1], heights, gap) - _top(groups[-2], heights, gap) < gap:
            last = groups.pop()
            groups[-1] += last
    for group in groups:
        for rank, i in enumerate(group):
            placed[i] = round(_bottom(group, heights, gap) + rank * gap, 6)
    return placed


def _bottom(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _bottom(group, heights, gap) + gap * (len(group) - 1)


def curves(lines: Sequence[Curve], unit: str, alt: str) -> Markup:
    """Return the drawing of curves over steps, each labelled at its end; `unit` heads the vertical axis."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        letters = max(14, *(len(_short(line.label)) for line in lines))  # neighbours align unless one is long
        figure, axes = frame(4.6, 2.6, left=0.1, right=0.98 - 0.0145 * letters)
        for line, colour in zip(lines, SERIES, strict=False):
            _draw(axes, line, colour)
        axes.set_title(unit, loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("step", loc="right")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.margins(x=0.01, y=0.08)
        _label_ends(axes, lines)
        return inline(figure, alt)


def _draw(axes: Axes, line: Curve, colour: str) -> None:
    style = {"color": colour, **DRAWN[line.style]}
    if _noisy(line):
        axes.plot(*thin(line.steps, line.values), color=colour, linewidth=0.8, alpha=0.3)
    if len(line.steps) == 1:
        style["marker"] = "o"
    axes.plot(*thin(line.steps, _strong(line)), gid="curve", **style)


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:21]}..."


def _noisy(line: Curve) -> bool:
    return line.style == "line" and len(line.values) >= SMOOTH_FROM


def _strong(line: Curve) -> Array:
    return smooth(line.values) if _noisy(line) else line.values


def _label_ends(axes: Axes, lines: Sequence[Curve]) -> None:
    low, high = axes.get_ylim()
    heights = spread([float(_strong(line)[-1] - low) / (high - low) for line in lines], gap=0.1)
    for line, colour, height in zip(lines, SERIES, heights, strict=False):
        colour = DRAWN[line.style].get("color", colour)
        axes.text(1.02, height, _short(line.label), transform=axes.transAxes, va="center", color=colour)


def scatter(
    clouds: Mapping[str, Cloud],
    window: tuple[tuple[float, float], tuple[float, float]],
    limit: Limit | None,
    alt: str,
) -> Markup:
    """Return reward against cost, one shape per kind of prompt; `clouds`: kind -> rewards, costs, harmful.

    `window` is the range of reward and of cost, given from outside so that two drawings can share it. Harmful
    replies are filled, others hollow.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "both"}):
        figure, axes = frame(4.6, 3.5, left=0.1, right=0.98, top=0.92)
        for (kind, cloud), colour, marker in zip(clouds.items(), cycle(SERIES), cycle(MARKERS)):
            rewards, costs, harmful = cloud
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
            look |= {"markersize": 4, "markeredgewidth": 0.8, "alpha": 0.75}
            axes.plot(rewards[~harmful], costs[~harmful], markerfacecolor="none", **look)
            axes.plot(rewards[harmful], costs[harmful], **look)
            axes.plot([], [], label=kind, **look)
        axes.set_xlim(*window[0])
        axes.set_ylim(*window[1])
        if limit is not None and window[1][0] <= limit.value <= window[1][1]:
            axes.axhline(limit.value, **DRAWN["limit"])
            axes.text(0.995, limit.value, limit.words, transform=axes.get_yaxis_transform(), ha="right", va="bottom")
        axes.set_title("learned cost", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("learned reward", loc="right")
        axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=len(clouds), borderaxespad=0)
        return inline(figure, alt)


def histogram(groups: Mapping[str, Array], limit: Limit | None, alt: str) -> Markup:
    """Return the distribution of costs, an outline per group over common bins, in per cent of its replies."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 2.8, left=0.1, right=0.98, top=0.9)
        edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=30)
        colours = (MUTED, *SERIES) if len(groups) > 1 else SERIES
        for (name, costs), colour in zip(groups.items(), cycle(colours)):
            share = 100 * np.histogram(costs, edges)[0] / len(costs)
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.18)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=name, gid="outline")
            axes.axvline(costs.mean(), color=colour, linewidth=1.2, ymax=0.06)
        if limit is not None:
            axes.axvline(limit.value, **DRAWN["limit"])
            place = (limit.value + 0.006 * (edges[-1] - edges[0]), 0.97)
            axes.text(*place, limit.words, transform=axes.get_xaxis_transform(), va="top")
        axes.set_title("% of replies", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("learned cost of a reply", loc="right")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(groups), borderaxespad=0)
        return inline(figure, alt)


def interval(before: Mark, after: Mark, from_zero: bool) -> Markup:
    """Return two dots with their intervals on one scale: hollow above for before, filled below for after.

    before, after: `value`, and `low` and `high` where an interval is known.
    """
    numbers = [mark[key] for mark in (before, after) for key in ("value", "low", "high")]
    known = [value for value in numbers if value is not None] + ([0.0] if from_zero else [])
    low, width = min(known), (max(known) - min(known)) or 1.0

    def place(value: float) -> str:
        return f"{6 + 128 * (value - low) / width:.1f}"

    parts = []
    for name, mark, y in (("before", before, 8), ("after", after, 20)):
        if mark["low"] is not None and mark["high"] is not None:
            ends = f'x1="{place(mark["low"])}" x2="{place(mark["high"])}"'
            parts.append(f'<line class="{name}" {ends} y1="{y}" y2="{y}"/>')
        assert mark["value"] is not None
        parts.append(f'<circle class="{name}" cx="{place(mark["value"])}" cy="{y}" r="4"/>')
    return Markup(f'<svg class="interval" viewBox="0 0 140 28" aria-hidden="true">{"".join(parts)}</svg>')


def frame(width: float, height: float, left: float, right: float, top: float = 0.89) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches and its axes; left, right, top are shares of it."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left, 0.42 / height, right - left, top - 0.42 / height))
    # Powers of ten stand at each tick; pulled out, they would stand on the unit.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    return figure, axes


def inline(figure: Figure, alt: str) -> Markup:
    """Return the figure as an inline element: no size or namespace of its own, no ids to clash, colours by name."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("<g id=", "<g class=")
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    head = f'<svg class="plot" role="img" aria-label="{escape(alt)}" {view[0]}>'
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(re.sub(r"\n\s*", "\n", text))

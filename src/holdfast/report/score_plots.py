"""Drawings about one score: are its probabilities true, does it part the answers, where does it fail, is it length.

They keep the manner of `plots`: quiet axes, colours by name, and shape or filling wherever hue says something.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from holdfast.report.plots import DRAWN, INK, MUTED, PAPER, SERIES, STYLE, Mark, frame, inline
from holdfast.report.read import Array
from holdfast.report.words import MINUS

FEW = 20
LETTERS = 26
NAMES, NUMBERS = 0.44, 0.84  # where names end and sizes begin, as shares of the drawing's width


class Bucket(NamedTuple):
    """Predictions of about one probability, and how often it happened, with the interval of that."""

    stated: float
    happened: Mark


class Dot(NamedTuple):
    """A named share with its interval; `faint` ones rest on few cases. A dot without a mark is a heading."""

    name: str
    mark: Mark | None
    n: str = ""
    faint: bool = False


def reliability(curves: Mapping[str, Sequence[Bucket]], words: str, alt: str) -> Markup:
    """Return stated against observed frequency with intervals; on the dashed line the statements are true.

    curves: name -> buckets, the plain score first (hollow) and the calibrated one after it (filled); words: what
    is stated and observed.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "both"}):
        figure, axes = frame(4.6, 3.5, left=0.1, right=0.98, top=0.92)
        axes.plot([0, 100], [0, 100], **DRAWN["bound"], color=MUTED)
        looks: list[dict[str, Any]] = [
            {"color": SERIES[1], "marker": "s", "markerfacecolor": PAPER},
            {"color": SERIES[0], "marker": "o"},
        ]
        for (name, buckets), look in zip(curves.items(), cycle(looks)):
            for one in buckets:
                _interval(axes, one, look)
            axes.plot([], [], label=name, markersize=5, linestyle="none", **look)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.set_title(f"observed, % {words}", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("stated, %", loc="right")
        _legend(axes, len(curves))
        return inline(figure, alt)


def _interval(axes: Axes, bucket: Bucket, look: Mapping[str, Any]) -> None:
    """A point with its interval, faint where few cases are behind it."""
    low, value, high = (100 * (bucket.happened[key] or 0.0) for key in ("low", "value", "high"))
    strength = 1.0 if (bucket.happened["n"] or 0) >= FEW else 0.35
    place = 100 * bucket.stated
    axes.plot([place, place], [low, high], color=look["color"], linewidth=1.4, alpha=0.6 * strength)
    axes.plot(place, value, markersize=5, alpha=strength, gid="bucket", **look)


def outlines(counts: Mapping[str, Array], edges: Array, border: str, alt: str) -> Markup:
    """Return the distribution of a score, an outline per group over common bins, in per cent of the group.

    border: what a line at zero means; empty draws none.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 3.5, left=0.1, right=0.96, top=0.92)
        for (name, count), colour in zip(counts.items(), cycle(SERIES)):
            share = 100 * count / count.sum()
            axes.stairs(share, edges, color=colour, fill=True, alpha=0.18)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=name, gid="outline")
        if border and edges[0] < 0 < edges[-1]:
            axes.axvline(0.0, **DRAWN["limit"])
            place = (0.008 * (edges[-1] - edges[0]), 0.98)
            box: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
            axes.text(*place, border, transform=axes.get_xaxis_transform(), va="top", bbox=box)
        axes.xaxis.set_major_formatter(_plain)
        axes.set_title("% of answers", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("score", loc="right")
        _legend(axes, len(counts))
        return inline(figure, alt)


def dots(rows: Sequence[Dot], overall: float, alt: str) -> Markup:
    """Return shares with their intervals below each other; hollow where few cases are behind them.

    overall: the share in all rows together, a thin line; the dotted line is chance, one half.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "x"}):
        height = 0.75 + 0.24 * len(rows)
        figure, axes = frame(4.6, height, left=NAMES, right=NUMBERS, top=1 - 0.28 / height)
        axes.axvline(50, **DRAWN["limit"])
        axes.axvline(100 * overall, color=SERIES[0], linewidth=0.9)
        for place, row in enumerate(rows):
            _dot(axes, row, -place)
        lowest = min([50.0, *(100 * (row.mark["low"] or 0.0) for row in rows if row.mark)])
        axes.set_xlim(max(0.0, lowest - 3), 101)
        axes.set_ylim(0.6 - len(rows), 0.6)
        axes.set_yticks([])
        axes.set_title("% of pairs in the right order", loc="left", fontsize=9, color=MUTED)
        return inline(figure, alt)


def _dot(axes: Axes, row: Dot, height: float) -> None:
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
    name = row.name.replace("_", " ")
    name = name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."
    if row.mark is None:
        axes.text(-NAMES / (NUMBERS - NAMES), height, name, color=MUTED, **beside)
        return
    low, high, value = (100 * (row.mark[key] or 0.0) for key in ("low", "high", "value"))
    axes.plot([low, high], [height, height], color=SERIES[0], linewidth=1.6, alpha=0.5 if row.faint else 1.0)
    axes.plot(
        value, height, "o", color=SERIES[0], markersize=5.5, markerfacecolor=PAPER if row.faint else None, gid="dot"
    )
    axes.text(-0.03, height, name, ha="right", color=MUTED if row.faint else INK, **beside)
    axes.text(1.03, height, row.n, color=MUTED, fontsize=8, **beside)


def growth(curves: Mapping[str, Sequence[tuple[float, Mark]]], unit: str, alt: str) -> Markup:
    """Return shares that grow with what is on the axis, a line with intervals per name; the dotted line is chance.

    curves: name -> (place on the axis, share). Places are drawn at the logarithm of one more, so that the first few
    are apart.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 3.2, left=0.1, right=0.98, top=0.9)
        axes.axhline(50, **DRAWN["limit"])
        for (name, points), colour in zip(curves.items(), cycle(SERIES)):
            at = [np.log1p(place) for place, _ in points]
            axes.plot(
                at,
                [100 * (mark["value"] or 0.0) for _, mark in points],
                color=colour,
                marker="o",
                label=name,
                gid="line",
            )
            for place, (_, mark) in zip(at, points):
                low, high = (100 * (mark[key] or 0.0) for key in ("low", "high"))
                axes.plot([place, place], [low, high], color=colour, linewidth=1.4, alpha=0.6)
        places = sorted({place for points in curves.values() for place, _ in points})
        axes.set_xticks([np.log1p(place) for place in places], [f"{place:g}" for place in places])
        axes.set_xlabel(unit)
        axes.set_ylabel("% right")
        _legend(axes, len(curves) + 1)
        return inline(figure, alt)


def cloud(lengths: Array, scores: Array, harmful: Sequence[bool | None], alt: str) -> Markup:
    """Return score against length; where harm is labelled, harmful answers are filled and safe ones hollow."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "both"}):
        figure, axes = frame(4.6, 3.5, left=0.1, right=0.98, top=0.92)
        kinds: dict[str, tuple[bool | None, dict[str, Any]]] = {
            "not labelled": (None, {"color": MUTED, "marker": "."}),
            "safe": (False, {"color": SERIES[0], "marker": "o", "markerfacecolor": "none"}),
            "harmful": (True, {"color": SERIES[1], "marker": "^"}),
        }
        known = np.array([-1 if value is None else int(value) for value in harmful])
        shown = 0
        for name, (kind, look) in kinds.items():
            rows = known == (-1 if kind is None else int(kind))
            if rows.any():
                look |= {"linestyle": "none", "markersize": 4, "markeredgewidth": 0.8, "alpha": 0.7}
                axes.plot(lengths[rows], scores[rows], label=name, gid="cloud", **look)
                shown += 1
        axes.xaxis.set_major_formatter(_plain)
        axes.set_title("score", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("length of the answer, characters", loc="right")
        _legend(axes, shown)
        return inline(figure, alt)


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=entries, borderaxespad=0)


def _plain(value: float, _: object) -> str:
    return f"{value:g}".replace("-", MINUS)

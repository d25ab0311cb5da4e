"""Drawings of the answers behind an offline run: how many were left, and what they earn beyond the policy."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from holdfast.report.plots import DRAWN, INK, MUTED, SERIES, STYLE, frame, inline
from holdfast.report.read import Array
from holdfast.report.words import MINUS, percent

BINS = 40
ROW = 0.32  # inches


def bars(left: Sequence[tuple[str, float]], alt: str) -> Markup:
    """Return counts as bars below each other, each with its name before it and its number behind it."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid": False}):
        height = ROW * (len(left) + 0.5)
        figure = Figure(figsize=(4.6, height))
        axes = figure.add_axes((0.33, 0, 0.53, 1))
        for place, (name, count) in enumerate(left):
            axes.barh(-place, count, height=0.62, color=SERIES[0], alpha=0.35 if place == 0 else 0.75, gid="bar")
            axes.text(-0.03, -place, name, transform=axes.get_yaxis_transform(), ha="right", va="center", color=INK)
            axes.annotate(
                f"{count:,.0f}", (count, -place), (4, 0), textcoords="offset points", va="center", color=MUTED
            )
        axes.set_xlim(0, left[0][1])
        axes.set_ylim(0.25 - len(left), 0.75)
        axes.set_axis_off()
        return inline(figure, alt)


def edges_at_zero(values: Array) -> Array:
    """Return the edges of about forty equal bins over the values, one of them at zero.

    >>> edges_at_zero(np.array([-0.1, 0.3]))[[0, 11, -1]].round(6).tolist()
    [-0.11, 0.0, 0.31]
    """
    width = float(np.ptp(values)) / BINS or 1.0
    first, last = np.floor(values.min() / width - 1e-6), np.ceil(values.max() / width + 1e-6)  # rounding loses none
    return width * np.arange(min(first, 0.0), max(last, 0.0) + 1)


def advantages(values: Array, drawn: Array | None, better: float, alt: str) -> Markup:
    """Return the distribution of advantages with zero marked and the shares on both sides of it.

    values: (N,); drawn: (N,) how often each is drawn, outlined besides; better: the share above zero.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 2.8, left=0.1, right=0.98, top=0.83)
        edges = edges_at_zero(values)
        share = 100 * np.histogram(values, edges)[0] / len(values)
        for side, colour in ((edges[:-1] < 0, MUTED), (edges[:-1] >= 0, SERIES[0])):
            axes.stairs(np.where(side, share, 0.0), edges, color=colour, fill=True, alpha=0.3, gid="side")
        axes.stairs(share, edges, color=MUTED, linewidth=1.2, label="answers", gid="outline")
        if drawn is not None:
            weighed = 100 * np.histogram(values, edges, weights=drawn)[0] / drawn.sum()
            axes.stairs(weighed, edges, color=SERIES[1], linewidth=1.5, label="draws", gid="outline")
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.08), ncols=2, borderaxespad=0)
        axes.axvline(0.0, **DRAWN["limit"])
        place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        for words, align, gap in (
            (f"{percent(1 - better)} below", "right", -4),
            (f"{percent(better)} above V", "left", 4),
        ):
            axes.annotate(words, (0.0, 1.0), (gap, 3), ha=align, va="bottom", **place)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
        axes.set_title("%", loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("advantage", loc="right")
        return inline(figure, alt)


def best(steps: Array, values: Array, chosen: float, alt: str) -> Markup:
    """Return what a policy earned at the steps at which it was judged, the one that goes on marked and named.

    steps, values: (n,); chosen: the step that goes on, one of them.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 2.6, left=0.13, right=0.98, top=0.83)
        axes.plot(steps, values, color=SERIES[0], gid="curve", **DRAWN["held out"])
        top = float(values[steps == chosen][0])
        axes.plot([chosen], [top], "o", markersize=9, markerfacecolor="none", color=INK, gid="chosen")
        axes.axvline(chosen, **DRAWN["limit"])
        words, late = f"step {chosen:,.0f}", chosen > steps.mean()
        axes.annotate(
            words,
            (chosen, 1.0),
            (-4 if late else 4, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right" if late else "left",
            va="bottom",
        )
        axes.set_title("mean reward", loc="left" if late else "right", fontsize=9, color=MUTED)
        axes.set_xlabel("step", loc="right")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.margins(x=0.03, y=0.12)
        return inline(figure, alt)

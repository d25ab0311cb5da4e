"""Drawings of weak-to-strong generalization: levels between supervisor and ceiling, recovered gaps, epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from holdfast.report.plots import DRAWN, INK, MUTED, PAPER, SERIES, STYLE, Mark, frame, inline
from holdfast.report.words import MINUS

ROW = 0.36  # inches
NAMES = 0.27  # where names end, as a share of the drawing's width
LETTERS = 20
ABREAST = 4
WIDTH = 7.5


class Level(NamedTuple):
    """A model's mean with its interval, as far as it is known, and what single seeds gave."""

    name: str
    mark: Mark
    seeds: Sequence[float]


class Epochs(NamedTuple):
    """One seed's accuracy after every epoch, and its agreement with held-out weak labels, if it was looked at."""

    gold: Sequence[float]
    weak: Sequence[float]


def levels(rows: Sequence[Level], unit: str, alt: str) -> Markup:
    """Return shares below each other in per cent, the first and the last as lines through all rows."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "x"}):
        figure, axes = _rows(rows)
        axes.set_title(unit, loc="left", fontsize=9, color=MUTED)
        for place, row in enumerate(rows):
            end = place in (0, len(rows) - 1)
            if end:
                axes.axvline(100 * (row.mark["value"] or 0.0), **DRAWN["limit"], gid="end")
            _row(axes, row, -place, 100.0, MUTED if end else SERIES[0])
        return inline(figure, alt)


def ratios(rows: Sequence[Level], unit: str, alt: str) -> Markup:
    """Return ratios below each other; at the dotted lines nothing and everything is recovered."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid.axis": "x"}):
        figure, axes = _rows(rows)
        axes.set_xlabel(unit, loc="right")
        for border, words in ((0.0, "supervisor"), (1.0, "ceiling")):
            axes.axvline(border, **DRAWN["limit"])
            axes.text(border, 0.56, words, ha="center", va="bottom", fontsize=8, color=MUTED)
        for place, row in enumerate(rows):
            _row(axes, row, -place, 1.0, SERIES[0])
        # Over a small gap a single seed has a ratio of any size; it must not squeeze all others.
        ends = [row.mark[key] or 0.0 for row in rows for key in ("low", "high")]
        axes.set_xlim(min(-0.2, *ends) - 0.05, max(1.0, *ends) + 0.1)
        return inline(figure, alt)


def _rows(rows: Sequence[Level]) -> tuple[Figure, Axes]:
    height = 0.85 + ROW * len(rows)
    figure, axes = frame(4.6, height, left=NAMES, right=0.97, top=1 - 0.32 / height)
    axes.set_ylim(0.45 - len(rows), 0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    return figure, axes


def _row(axes: Axes, row: Level, height: float, scale: float, colour: str) -> None:
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
    name = row.name if len(row.name) <= LETTERS else f"{row.name[: LETTERS - 3]}..."
    axes.text(-0.03, height, name, color=INK, **beside)
    low, high, value = (row.mark[key] for key in ("low", "high", "value"))
    if low is not None and high is not None:
        axes.plot([scale * low, scale * high], [height, height], color=colour, linewidth=1.8, alpha=0.6)
    if value is not None:
        axes.plot(scale * value, height, "o", color=colour, markersize=6, gid="mean")
    seeds = scale * np.asarray(row.seeds, dtype=float)
    look: dict[str, Any] = {"color": colour, "markersize": 3.5, "markerfacecolor": PAPER, "markeredgewidth": 0.9}
    axes.plot(seeds, np.full(len(seeds), height - 0.24), "o", linestyle="none", gid="seed", **look)


def epochs(curves: Mapping[str, Sequence[Epochs]], supervisor: float | None, alt: str) -> Markup:
    """Return for each loss the seeds' accuracy and agreement by epoch, all on one scale in per cent."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        across = min(len(curves), ABREAST)
        down = -(-len(curves) // ABREAST)
        figure = Figure(figsize=(WIDTH, 0.6 + 1.7 * down))
        shared: Axes | None = None
        for place, (name, seeds) in enumerate(curves.items(), start=1):
            axes = figure.add_subplot(down, across, place, sharey=shared, sharex=shared)
            shared = shared or axes
            _learning(axes, seeds)
            if supervisor is not None:
                axes.axhline(100 * supervisor, **DRAWN["limit"])
            axes.set_title(name, loc="left", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if (place - 1) % across:
                axes.tick_params(labelleft=False)
        assert shared is not None
        shared.margins(x=0.12)
        handles, labels = shared.get_legend_handles_labels()
        top, bottom = 1 - 0.55 / figure.get_figheight(), 0.4 / figure.get_figheight()
        figure.subplots_adjust(left=0.5 / figure.get_figwidth(), right=0.99, top=top, bottom=bottom, hspace=0.45)
        figure.legend(handles, labels, loc="upper right", ncols=2, borderaxespad=0, bbox_to_anchor=(0.99, 1.0))
        figure.text(0.0, 1.0, "%", va="top", color=MUTED)
        figure.text(0.99, 0.0, "epoch", ha="right", va="bottom", color=MUTED)
        return inline(figure, alt)


def _learning(axes: Axes, seeds: Sequence[Epochs]) -> None:
    """The curves of each seed, the chosen epoch filled: the first of those that agree most."""
    looks = (("agrees with weak labels", SERIES[1], "s"), ("right by people's labels", SERIES[0], "o"))
    for number, (gold, weak) in enumerate(seeds):
        chosen = int(np.argmax(weak)) if weak else len(gold) - 1
        for values, (name, colour, marker) in zip((weak, gold), looks):
            if not values:
                continue
            steps, heights = np.arange(1, len(values) + 1), 100 * np.asarray(values, dtype=float)
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
            axes.plot(steps, heights, markerfacecolor=PAPER, linewidth=1.2, gid="learning", **style)
            axes.plot(steps[chosen : chosen + 1], heights[chosen : chosen + 1], linestyle="none", gid="chosen", **style)
            if number == 0:
                axes.plot([], [], linewidth=1.2, label=name, **style)

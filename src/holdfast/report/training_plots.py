"""Drawings of a policy's training that are no curves: alarms over iterations, and where the time went."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from holdfast.report.plots import BAD, INK, MUTED, SERIES, STYLE, frame, inline, spread
from holdfast.report.read import Array

LEVELS = ("OK", "WATCH", "WARN", "COLLAPSE")
LEVEL_COLOURS = (MUTED, SERIES[4], SERIES[1], BAD)
ROW = 0.24  # inches
MOST_BARS = 100


def runs(steps: Array, on: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return start and width of the stretches where `on` is true; a step reaches half a step to either side.

    >>> runs(np.array([1.0, 2.0, 3.0, 5.0]), np.array([True, True, False, True]))
    [(0.5, 2.0), (4.5, 1.0)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
    return [(float(steps[a] - 0.5), float(steps[b - 1] - steps[a] + 1)) for a, b in edges.reshape(-1, 2)]


def alarm_strip(steps: Array, levels: Array, families: Mapping[str, NDArray[np.bool_]], alt: str) -> Markup:
    """Return the level of alarm at each step as a strip of rising height and colour, and below when families were on.

    steps, levels: (n,), a level counts in `LEVELS`; families: name -> (n,) whether it spoke.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt, "axes.grid": False}):
        height = 1.15 + ROW * len(families)
        figure, axes = frame(4.6, height, left=0.2, right=0.95, top=1 - 0.28 / height)
        for level in (1, 2, 3):
            bars = runs(steps, levels == level)
            axes.broken_barh(bars, (0.3, 0.6 * level), color=LEVEL_COLOURS[level], linewidth=0, gid="level")
        axes.axhline(0.3, color=MUTED, linewidth=0.7)
        for place, on in enumerate(families.values()):
            axes.broken_barh(runs(steps, on), (-0.7 - place, 0.4), color=SERIES[5], linewidth=0, gid="family")
        axes.set_yticks([1.2, *(-0.5 - place for place in range(len(families)))], ["level", *families], color=INK)
        axes.set_ylim(-len(families) - 0.1, 2.2)
        axes.set_xlim(float(steps.min()) - 0.5, float(steps.max()) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.set_xlabel("step", loc="right")
        for place, level in enumerate((1, 2, 3)):
            axes.text(place * 0.24, 1.04, LEVELS[level], transform=axes.transAxes, color=LEVEL_COLOURS[level])
        return inline(figure, alt)


def stacked(steps: Array, parts: Mapping[str, Array], unit: str, alt: str) -> Markup:
    """Return what the parts add up to at each step, piled in their order, each named beside its end.

    parts: name -> (n,). A long run is shown as the means of a hundred equal stretches, so that areas stay true.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}):
        figure, axes = frame(4.6, 2.6, left=0.1, right=0.76)
        stretches = np.array_split(np.arange(len(steps)), min(len(steps), MOST_BARS))
        edges = np.array([*(steps[stretch[0]] for stretch in stretches), steps[-1] + 1]) - 0.5
        means = [np.array([values[stretch].mean() for stretch in stretches]) for values in parts.values()]
        colours = [SERIES[i % len(SERIES)] for i in range(len(parts))]
        below = np.zeros(len(stretches))
        for values, colour in zip(means, colours):
            # Stairs rather than a line between points: one iteration alone is visible too.
            axes.stairs(below + values, edges, baseline=below, fill=True, color=colour, alpha=0.75, gid="part")
            below = below + values
        axes.set_title(unit, loc="left", fontsize=9, color=MUTED)
        axes.set_xlabel("step", loc="right")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        axes.margins(x=0.01, y=0.08)
        _name_parts(axes, dict(zip(parts, means)), colours)
        return inline(figure, alt)


def _name_parts(axes: Axes, means: Mapping[str, Array], colours: list[str]) -> None:
    """Names at the middle of each part's typical height, moved apart where parts are thin."""
    sizes = np.array([values.mean() for values in means.values()])
    middles = (np.cumsum(sizes) - sizes / 2) / axes.get_ylim()[1]
    for name, colour, height in zip(means, colours, spread(middles.tolist(), gap=0.1)):
        axes.text(1.02, height, name, transform=axes.transAxes, va="center", color=colour)

"""How our step of GRPO grows with the group, the prompt and the model: seconds, and the exponent of a power law."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from grpo_sides import PHASES
from grpo_turns import spawn, timed
from grpo_world import Case
from turns import Book, say

BASE = Case(size="5M", prompt=256, response=64, prompts=2, group=8, steps=2)
AXES: dict[str, tuple[Any, ...]] = {
    "group": (2, 4, 8, 16, 32),
    "prompt": (64, 128, 256, 512, 1024, 2048),
    "size": ("1M", "5M", "15M", "40M"),
}


def scaling(book: Book, threads: int) -> None:
    """Write into the book, for each axis, the seconds of every phase and the exponents of their growth."""
    for axis, values in AXES.items():
        entry = book.entry(axis, {"base": vars(BASE) | {"threads": threads}, "values": list(values)})
        points = entry.setdefault("points", [])
        for value in values[len(points) :]:
            run = spawn("holdfast", replace(BASE, threads=threads, **{axis: value}))
            phases = {phase: timed(run, phase) for phase in ("step", *PHASES, "learn")}
            points.append({axis: value, "parameters": run["parameters"], "seconds": phases, "peak_mb": run["peak_mb"]})
            say(axis, f"{value}: {phases['step']:.2f} s")
            book.save()
        along = [point["parameters" if axis == "size" else axis] for point in points]
        entry["exponent"] = {
            phase: exponent(along, [point["seconds"][phase] for point in points]) for phase in points[0]["seconds"]
        }
        book.save()


def exponent(along: list[float], seconds: list[float]) -> float:
    """Return the slope of the line through the logarithms: 1 where twice as much takes twice as long.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    slope, _ = np.polyfit([math.log(x) for x in along], [math.log(s) for s in seconds], 1)
    return float(slope)

"""The policy's training on the page: alarms, the curves in groups, and where the time went."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from holdfast.report import training_plots
from holdfast.report.offline import GIVEN_PANELS, from_given
from holdfast.report.panels import (
    CRITIC_PANELS,
    CRITICS,
    HEALTH_PANELS,
    MACHINE_PANELS,
    OBJECTIVE_PANELS,
    POLICY,
    SOURCE_PANELS,
    Drawing,
    panel_drawings,
    policy_drawings,
)
from holdfast.report.read import Array, Row, Run, as_number, column, numeric_keys
from holdfast.report.training_plots import LEVELS
from holdfast.report.words import duration, percent

MOST_ALARMS = 8
# Two drawings of one name would share their ids.
EARLY_PANELS = [replace(panel, title=f"{panel.title}, at first") for panel in CRITIC_PANELS]
PHASE = "seconds/"  # before the name of a phase; the seconds since the start are logged without it
TONES = ("", "watch", "warn", "collapse")
NO_FAMILY = {"alarm/level", "alarm/rolled_back_to"}  # logged beside the families of signs


@dataclass(frozen=True)
class Training:
    """What the page shows of a policy's training.

    alarms: tone and words; quiet: a sentence about alarms that are not listed; groups: heading and drawings; phases:
    name, seconds of an iteration and share of all phases, as text.
    """

    alarms: list[tuple[str, str]]
    quiet: str
    groups: list[tuple[str, list[Drawing]]]
    phases: list[tuple[str, str, str]]


def training(run: Run) -> Training | None:
    """Return how the policy was trained; None when the run logged nothing of it."""
    rows = run.stage(POLICY)
    if from_given(rows):  # their `nll` is that of the given answers and no health of replies
        return Training([], "", [("", panel_drawings(GIVEN_PANELS, rows))], [])
    groups = [
        ("", [*policy_drawings(run), *_alarm_drawings(rows)]),
        ("Objectives", panel_drawings(OBJECTIVE_PANELS, rows)),
        ("Health of the replies", panel_drawings(HEALTH_PANELS, rows)),
        ("By source of the prompt", panel_drawings(SOURCE_PANELS, rows)),
        ("Estimates and coefficients", panel_drawings(MACHINE_PANELS, rows)),
        ("Critics, before the policy learns", panel_drawings(EARLY_PANELS, run.stage(CRITICS))),
        ("Time", list(_time_drawings(rows))),
    ]
    groups = [(heading, drawings) for heading, drawings in groups if drawings]
    if not groups and not run.alarms:
        return None
    shown = _worst(run.alarms)
    alarms = [(TONES[alarm_level(row)], f"{row['stage']}: {row['words']}") for row in shown]
    return Training(alarms, _quiet(run, len(shown)), groups, phases(rows))


def alarm_level(row: Row) -> int:
    """Return the level of a record of `alarms.jsonl`, 0 to 3: by its number, else by its name; 0 where it has none.

    >>> alarm_level({"alarm/level": 2.0}), alarm_level({"level": "WATCH"}), alarm_level({})
    (2, 1, 0)
    """
    level = as_number(row.get("alarm/level"))
    if level is not None:
        return min(max(int(level), 0), len(LEVELS) - 1)
    return LEVELS.index(row["level"]) if row.get("level") in LEVELS else 0


def _worst(alarms: Sequence[Row]) -> list[Row]:
    """The gravest alarms, in the order in which they came."""
    places = sorted(range(len(alarms)), key=lambda i: -alarm_level(alarms[i]))[:MOST_ALARMS]
    return [alarms[i] for i in sorted(places)]


def _quiet(run: Run, shown: int) -> str:
    if hidden := len(run.alarms) - shown:
        return f"{hidden} more, none of them graver, in alarms.jsonl."
    _, levels = column(run.stage(POLICY), "alarm/level")
    watched = len(levels) and not levels.any() and not run.alarms
    return f"Watched for collapse: no alarm in {len(levels):,} iterations." if watched else ""


def _alarm_drawings(rows: Sequence[Row]) -> Iterator[Drawing]:
    steps, levels = column(rows, "alarm/level")
    if not levels.any():
        return
    judged = [row for row in rows if as_number(row.get("alarm/level")) is not None]
    names = [key for key in numeric_keys(judged) if key.startswith("alarm/") and key not in NO_FAMILY]
    spoke = {key.removeprefix("alarm/"): np.array([bool(as_number(row.get(key))) for row in judged]) for key in names}
    spoke = {name: on for name, on in spoke.items() if on.any()}
    note = "What the detector of collapse said, and which of its families of signs were on."
    yield Drawing(
        "Alarms, and what raised them",
        training_plots.alarm_strip(steps, levels, spoke, alt="Level of alarm over steps"),
        note,
    )


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if any(key.startswith(PHASE) for key in row)]


def _seconds(rows: Sequence[Row]) -> dict[str, Array]:
    """Phase -> seconds at each row; a phase that a row does not name took no time in it."""
    keys = [key for key in numeric_keys(rows) if key.startswith(PHASE)]
    return {key.removeprefix(PHASE): np.array([as_number(row.get(key)) or 0.0 for row in rows]) for key in keys}


def _time_drawings(rows: Sequence[Row]) -> Iterator[Drawing]:
    timed = _timed(rows)
    parts = _seconds(timed)
    if parts:
        steps = np.array([row["step"] for row in timed], dtype=float)
        picture = training_plots.stacked(steps, parts, "seconds per iteration", alt="Seconds per iteration by phase")
        yield Drawing("Seconds of an iteration", picture, "By the clock on the wall; what no phase covers is left out.")


def phases(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return for each phase its name, seconds of an iteration and share of all phases, the longest first.

    >>> phases([{"step": 1, "seconds/learn": 3.0, "seconds/score": 1.0}])
    [('learn', '3.0 s', '75.0%'), ('score', '1.0 s', '25.0%')]
    """
    timed = _timed(rows)
    means = {name: float(values.mean()) for name, values in _seconds(timed).items()}
    whole = sum(means.values())
    longest = sorted(means.items(), key=lambda item: -item[1])
    return [(name, duration(mean), percent(mean / whole if whole else 0.0)) for name, mean in longest]

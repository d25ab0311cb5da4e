"""How reliable is the collapse detector on runs it has never seen?

Claim (Secrets of RLHF, part I, arXiv 2307.04964, as our detector has it): length, spread of scores, certainty,
repetition and growing KL say in time that a policy is collapsing, and say nothing of one that is not; two of them
together are a warning.

World, trainer and arms are those of `ppo_max.py`. The thresholds are the defaults of `MonitorSettings`; they were
chosen on other runs (a prototype's and two curves of the paper). Seeds 100-109, of each a run that should collapse
(`vanilla` for even seeds, `norm_only` for odd ones) and a run that should not (`ppo_max`, `kl_hi`). Whether a run
collapsed is said by the true judge, not by its arm: it did when the mean gold of an iteration fell .3 under that of
imitation. A run is caught when there is a WARN in it, and warned in time when WARN comes at most two iterations after
the fall; lead is how many iterations earlier than the fall WARN came.

Criteria, written down before the first run of the study:

* something_to_find: at least 8 of 10 runs that should collapse do, and
* something_to_spare: at least 8 of 10 runs that should not do not;
* caught: at least .9 of the runs that collapsed;
* in_time: at least .9 of the runs that collapsed were warned in time;
* quiet: at least .9 of the runs that did not collapse have no WARN;
* rarely_wrong: at least .99 of their iterations are without WARN.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.stats import bounds, estimate
from holdfast.studies import ppo_max
from holdfast.studies.common import criterion, findings, interval, markdown
from holdfast.training.monitor import MonitorSettings

SEEDS = tuple(range(100, 110))
CLAIM = "the detector warns in time of runs that collapse and is quiet in those that do not"
SOURCE = "Secrets of RLHF, part I, arXiv 2307.04964"
SHOULD = {"collapse": ("vanilla", "norm_only"), "stay": ("ppo_max", "kl_hi")}

Run = Mapping[str, Any]


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run both arms of every seed, resuming those that are finished; return the result."""
    plan, place = (ppo_max.QUICK, folder / "quick") if quick else (ppo_max.Plan(), folder / "full")
    found = ppo_max.side_by_side(partial(_two_runs, place, plan), seeds)
    arms = {name: [each[name] for each in found] for name in SHOULD}
    told = findings("collapse", CLAIM, SOURCE, criteria(arms), arms, seeds, plan)
    return told | {"detector": detector(arms), "thresholds": MonitorSettings().model_dump(mode="json")}


def _two_runs(folder: Path, plan: ppo_max.Plan, seed: int) -> dict[str, dict[str, Any]]:
    """The run of a seed that should collapse and the one that should not."""
    names = {what: arms[seed % 2] for what, arms in SHOULD.items()}
    found = ppo_max.one_seed(folder, plan, tuple(names.values()), seed)
    return {what: found[name] for what, name in names.items()}


def split(arms: Mapping[str, Sequence[Run]]) -> tuple[list[Run], list[Run]]:
    """The runs that collapsed and those that did not, by the true judge."""
    runs = [one for ones in arms.values() for one in ones]
    return [one for one in runs if one["below"]], [one for one in runs if not one["below"]]


def criteria(arms: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Each criterion with the share of runs (or iterations) that meet it, and whether it holds."""
    fallen, upright = split(arms)
    return [
        criterion("something_to_find", [one["below"] is not None for one in arms["collapse"]], 0.8),
        criterion("something_to_spare", [one["below"] is None for one in arms["stay"]], 0.8),
        criterion("caught", [one["warn"] is not None for one in fallen], 0.9),
        criterion("in_time", [ppo_max.in_time(one) for one in fallen], 0.9),
        criterion("quiet", [one["warn"] is None for one in upright], 0.9),
        criterion("rarely_wrong", [not warned for one in upright for warned in warnings(one)], 0.99),
    ]


def warnings(one: Run) -> list[bool]:
    """For each iteration of a run whether it stands at WARN."""
    return [level >= ppo_max.WARN for level in one["curves"]["alarm/level"]]


def detector(arms: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Shares of runs with exact one-sided 95 % bounds beside their intervals, and the lead with its range.

    Iterations of one run are alike, so those of false alarms are counted by runs (see `estimate.proportion`).
    """
    fallen, upright = split(arms)
    found: dict[str, Any] = {
        "caught": _share([one["warn"] is not None for one in fallen]),
        "in_time": _share([ppo_max.in_time(one) for one in fallen]),
        "false_alarms": _share([one["warn"] is not None for one in upright]),
        "false_watches": _share([one["watch"] is not None for one in upright]),
    }
    flags = [warned for one in upright for warned in warnings(one)]
    runs = [number for number, one in enumerate(upright) for _ in warnings(one)]
    found["false_alarm_iterations"] = estimate.proportion(flags, runs).to_dict() if flags else None
    for when in ("watch", "warn"):
        found[f"lead_{when}"] = _lead([one["below"] - one[when] for one in fallen if one[when]])
    return found


def _share(met: Sequence[bool]) -> dict[str, Any] | None:
    """The rate of true flags; at_least, at_most: what it is with a confidence of 95 % each (Clopper and Pearson)."""
    if not met:
        return None
    k, n = sum(met), len(met)
    exact = {"at_least": bounds.clopper_pearson_lower(k, n, 0.05), "at_most": bounds.clopper_pearson_upper(k, n, 0.05)}
    return estimate.rate(k, n).to_dict() | {"k": k} | exact


def _lead(early: Sequence[int]) -> dict[str, Any] | None:
    """Median and range of how many iterations earlier an alarm came than the fall.

    >>> _lead([-1, 3, 0])
    {'median': 0.0, 'low': -1, 'high': 3, 'n': 3}
    """
    if not early:
        return None
    return {"median": float(np.median(early)), "low": min(early), "high": max(early), "n": len(early)}


def table(result: Mapping[str, Any]) -> str:
    """Two Markdown tables: what the detector is worth, and one line for each run."""
    worth = [[name, *_cells(found)] for name, found in result["detector"].items()]
    runs = [
        [one["arm"], one["seed"], *(one[when] or "never" for when in ("below", "watch", "warn"))]
        for ones in result["arms"].values()
        for one in ones
    ]
    first = markdown(["of the detector", "value", "n", "95 % at least", "95 % at most"], worth)
    return first + "\n\n" + markdown(["arm", "seed", "gold below", "WATCH", "WARN"], runs)


def _cells(found: Mapping[str, Any] | None) -> list[object]:
    if found is None:
        return ["no run", 0, "", ""]
    if "median" in found:
        return [f"{found['median']:g} iterations, {found['low']} to {found['high']}", found["n"], "", ""]
    exact = [f"{found[side]:.3f}" if side in found else "" for side in ("at_least", "at_most")]
    return [interval(found), found["n"], *exact]

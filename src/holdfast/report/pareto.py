"""The runs of a sweep held against each other: what each setting reached, which are on the front, how sure that is.

A setting is a point; runs that differ in their seed alone are one point. The policy that they all started from is a
point of its own, the base, and the reference above which volume is counted.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holdfast.errors import RunError, UserError
from holdfast.report.read import Array, Row, Run, as_estimate, as_number, read
from holdfast.stats.estimate import Estimate
from holdfast.stats.pareto import draws, front, front_probability, gained, pooled, standard_error

# Of these everybody wants less, whatever the recipe says.
LOWER = ("true_harm", "over_refusal", "learned_cost", "kl", "length")
# Beside the objectives, over-refusal always: it is the price that the others hide.
BESIDE = ("true_help", "true_harm", "over_refusal", "kl", "length")
FEW_SEEDS = 5


def words(name: str) -> str:
    """Return the name of a summary's number for people.

    >>> words("learned_cost"), words("over_refusal"), words("kl")
    ('learned cost', 'over-refusal', 'KL')
    """
    return {"over_refusal": "over-refusal", "kl": "KL"}.get(name, name.replace("_", " "))


class Judge(NamedTuple):
    """A number of the summaries that points are judged by, and whether less of it is better."""

    name: str
    lower: bool

    @property
    def words(self) -> str:
        """The name for people."""
        return words(self.name)


@dataclass(frozen=True)
class Point:
    """A setting: its label, the settings that tell it from others, its runs, and what they reached."""

    label: str
    settings: Row
    runs: tuple[Run, ...]
    reached: Mapping[str, Estimate]
    base: bool = False
    """Whether it is the policy before training."""
    on_front: bool = False
    likely: float = 0.0
    """The share of draws in which it is on the front."""

    @property
    def seconds(self) -> float:
        """How long a run took, on average."""
        return float(np.mean([run.summary["seconds"] for run in self.runs])) if self.runs else 0.0


@dataclass(frozen=True)
class Trade:
    """A sweep judged: the base first among the points, then the settings in their order."""

    name: str
    varied: tuple[str, ...]
    judges: tuple[Judge, ...]
    points: tuple[Point, ...]
    volume: Estimate
    source: str
    failed: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def beside(self) -> tuple[str, ...]:
        """The numbers that are shown and not judged by, over-refusal among them whether it was measured or not."""
        known = {name for point in self.points for name in point.reached}
        others = sorted(name for name in known if name.startswith("true_") and name not in BESIDE)
        judged = {judge.name for judge in self.judges}
        return tuple(n for n in (*BESIDE, *others) if n not in judged and (n in known or n == "over_refusal"))


def judge(folder: str | Path, names: Sequence[str] = ()) -> Trade:
    """The trade-off among the runs in `folder`, each a run folder within it.

    names: what to judge by, keys of the summaries without `_after`, with `:lower` or `:higher` where that is not
    clear; when empty what was given to the sweep, or else the objectives and limits of the recipe.
    """
    folder = Path(folder)
    runs = [read(file.parent) for file in sorted(folder.glob("*/config.yaml"))]
    told = _told(folder)
    done = [run for run in runs if run.summary]
    failed = {run.name: "it has not finished" for run in runs if not run.summary} | {
        name: why for name, why in told.get("failed", {}).items() if name not in {run.name for run in done}
    }
    if not runs and not failed:
        raise UserError(f"{folder} holds no runs; give the folder of a sweep, or one whose folders are runs")
    if not done:
        raise RunError(f"no run in {folder} has finished. " + "; ".join(f"{n}: {why}" for n, why in failed.items()))
    judges = chosen(done, names or told.get("judge", ()))
    whole = [run for run in done if all(_number(run, one.name, when) for one in judges for when in ("before", "after"))]
    failed |= {run.name: "its summary lacks a number to judge by" for run in done if run not in whole}
    if not whole:
        raise UserError(f"no summary holds all of {', '.join(one.name for one in judges)}; give --judge fewer of them")
    varied = differing([run.config for run in whole], tuple(told.get("over", ())))
    points = (base(whole), *settings(whole, varied))
    return _judged(folder, varied, judges, points, failed)


def _judged(
    folder: Path, varied: tuple[str, ...], judges: tuple[Judge, ...], points: tuple[Point, ...], failed: Row
) -> Trade:
    """Front, probabilities and volume from numbers that are turned so that more is better."""
    turned = np.array([-1.0 if one.lower else 1.0 for one in judges])
    drawn = turned * draws(*_table(points, judges))
    means = turned * np.array([[point.reached[one.name].value for one in judges] for point in points])
    likely = front_probability(drawn)
    found = tuple(
        replace(point, on_front=bool(on), likely=float(share)) for point, on, share in zip(points, front(means), likely)
    )
    seeds = [len(point.runs) for point in points[1:]]
    units = min(seeds) if min(seeds) > 1 else min(point.reached[judges[0].name].n for point in points[1:])
    volume = gained(means, drawn, units)
    warnings = tuple(_warnings(found, judges))
    return Trade(folder.resolve().name, varied, judges, found, volume, _source(seeds), failed, warnings)


def _source(seeds: Sequence[int]) -> str:
    """What the intervals count: other prompts, other seeds, or now one and now the other."""
    if max(seeds) == 1:
        return (
            "One run per setting: intervals say what other prompts would change, not what another seed would; the "
            "settings are drawn independently, although they answer the same prompts."
        )
    if min(seeds) > 1:
        return f"Intervals are over prompts and seeds, {min(seeds)} or more per setting."
    return "Intervals are over prompts, and over seeds where a setting has several."


def _table(points: Sequence[Point], judges: Sequence[Judge]) -> tuple[Array, Array]:
    """Values and standard errors of every run, (points, seeds, objectives); NaN where a setting lacks a seed."""
    seeds = sorted({_seed(run) for run in points[0].runs})
    found = np.full((2, len(points), len(seeds), len(judges)), np.nan)
    for m, point in enumerate(points):
        for run in point.runs:
            for k, one in enumerate(judges):
                estimate = _number(run, one.name, "after" if m else "before")
                assert estimate is not None
                found[:, m, seeds.index(_seed(run)), k] = estimate.value, standard_error(estimate)
    return found[0], found[1]


def chosen(runs: Sequence[Run], names: Sequence[str]) -> tuple[Judge, ...]:
    """The judges that were asked for, or those of the recipe; `UserError` that lists the names there are."""
    usual = {one.name: one.lower for one in _objectives(runs[0])}
    known = {name for run in runs for name in _names(run)}
    found = [_asked(name, usual) for name in names] or [Judge(*item) for item in usual.items() if item[0] in known]
    if len(found) == 1 and not names and "kl" in known:
        found.append(Judge("kl", True))  # one objective alone is bought with distance from the start
    if unknown := [one.name for one in found if one.name not in known]:
        raise UserError(f"no summary holds {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if len({one.name for one in found}) < max(2, len(found)):
        given = ", ".join(one.name for one in found) or "none"
        raise UserError(
            f"a trade-off needs two different numbers, given: {given}; there are {', '.join(sorted(known))}"
        )
    return tuple(found)


def _asked(text: str, usual: Mapping[str, bool]) -> Judge:
    name, _, way = text.partition(":")
    if way not in ("", "lower", "higher"):
        raise UserError(f"--judge {text}: after the colon stands lower or higher, whichever is better")
    return Judge(name, way == "lower" if way else usual.get(name, name in LOWER))


def _objectives(run: Run) -> Iterator[Judge]:
    """What a recipe wants: the objectives of its method, or the reward; then what it limits."""
    told = (run.config.get("grpo") or {}).get("objectives") or {"reward": {}}
    for name, one in told.items():
        key = name if f"learned_{name}_after" in run.summary else one.get("score") or name
        yield Judge(f"learned_{key}", one.get("direction") == "lower")
    limits = [run.config.get("constraint"), *(run.config.get("constraints") or ())]
    seen = {f"learned_{name}" for name in told}
    for one in limits:
        if one and f"learned_{one['score']}" not in seen:
            yield Judge(f"learned_{one['score']}", one.get("direction", "at_most") == "at_most")


def differing(configs: Sequence[Row], preferred: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The settings, spelled with dots, that tell the configurations apart; the preferred ones if those suffice.

    The seed is none of them: runs that differ in it alone are of one setting.

    >>> differing([{"seed": 0, "kl": {"coef": 1}}, {"seed": 1, "kl": {"coef": 2}}])
    ('kl.coef',)
    """
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one if key != "seed")
    every = tuple(key for key in keys if len({json.dumps(one.get(key, "")) for one in flat}) > 1)
    parts = [{json.dumps([one.get(key, "") for key in some]) for one in flat} for some in (preferred, every)]
    return preferred if len(parts[0]) == len(parts[1]) and preferred else every


def _flat(config: Row, above: str = "") -> Row:
    """Settings by their path; a group that is empty or switched off is a value, and not the same as none."""
    found: Row = {}
    for key, value in config.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


def settings(runs: Sequence[Run], varied: Sequence[str]) -> list[Point]:
    """One point per setting, in the order of the settings' values."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        flat = _flat(run.config)
        groups.setdefault(json.dumps([flat.get(key, "") for key in varied]), []).append(run)
    found = []
    for key, own in sorted(groups.items(), key=lambda item: [_order(value) for value in json.loads(item[0])]):
        values = dict(zip(varied, json.loads(key)))
        label = ", ".join(str(value) for value in values.values()) or own[0].name
        if len({_seed(run) for run in own}) < len(own):
            raise UserError(f"{', '.join(run.name for run in own)}: runs of one setting and one seed; keep one of them")
        names = [name for name in _names(own[0]) if all(_number(run, name, "after") for run in own)]
        reached = {name: pooled([_number(run, name, "after") for run in own]) for name in names}  # type: ignore[misc]
        found.append(Point(label, values, tuple(own), reached))
    return found


def _order(value: Any) -> tuple[bool, float, str]:
    number = as_number(value)
    return number is None, number or 0.0, str(value)


def base(runs: Sequence[Run]) -> Point:
    """The policy before training: with several seeds one per seed, taken from the seed's first run."""
    first = tuple({_seed(run): run for run in reversed(runs)}.values())
    names = [name for name in _names(first[0]) if all(_number(run, name, "before") for run in first)]
    reached = {name: pooled([_number(run, name, "before") for run in first]) for name in names}  # type: ignore[misc]
    return Point("base", {}, first, reached, base=True)


def _warnings(points: Sequence[Point], judges: Sequence[Judge]) -> Iterator[str]:
    """What a reader must know before believing the table."""
    runs = [run for point in points[1:] for run in point.runs]
    for one in judges:
        for seed in sorted({_seed(run) for run in runs}):
            before = {
                round(e.value, 9) for run in runs if _seed(run) == seed and (e := _number(run, one.name, "before"))
            }
            if len(before) > 1:
                yield (
                    f"{one.words} before training differs among the runs of seed {seed} ({min(before):.3g} to "
                    f"{max(before):.3g}): they did not start from one policy, or were not judged by one model, so "
                    "their points cannot be compared."
                )
    for run in runs:
        if run.summary.get("alarm") in ("WARN", "COLLAPSE"):
            yield f"{run.name}: training ended under the alarm {run.summary['alarm']}."
    counts = [len(point.runs) for point in points[1:]]
    if 1 < max(counts) < FEW_SEEDS:
        yield f"{max(counts)} seeds know little of how seeds differ: their intervals may be too short."


def _names(run: Run) -> list[str]:
    ends = [key.removesuffix("_after") for key in run.summary if key.endswith("_after")]
    return [name for name in ends if as_estimate(run.summary[f"{name}_after"])["value"] is not None]


def _number(run: Run, name: str, when: str) -> Estimate | None:
    """What a summary says of a number; one without an interval is taken as exact, with n zero."""
    found = as_estimate(run.summary.get(f"{name}_{when}"))
    value = found["value"]
    if value is None:
        return None
    low, high = found["low"], found["high"]
    told = run.summary[f"{name}_{when}"]
    method = str(told.get("method", "")) if isinstance(told, Mapping) else ""
    ends = (value, value) if low is None or high is None else (low, high)
    return Estimate(value, *ends, int(found["n"] or 0), method)


def _seed(run: Run) -> int:
    return int(run.config.get("seed") or 0)


def _told(folder: Path) -> Row:
    """What the sweep wrote about itself; runs that were made by hand have nothing like it."""
    file = folder / "sweep.json"
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); remove it to go on") from error
    return told if isinstance(told, dict) else {}

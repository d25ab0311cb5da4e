"""How the sides of a benchmark are compared: first what they learn, then in turns how long they take."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Run = dict[str, Any]
# What differs between the turns of one case.
OF_A_TURN = ("seed", "rows", "precompute")


class Book:
    """Results by name, kept in a file from the first one on; without a file they are only printed."""

    def __init__(self, file: Path | None, benchmark: str, device: str = "cpu") -> None:
        self.file = file
        known = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
        self.entries: dict[str, Any] = known.get("results", {})
        packages = ("torch", "transformers", "trl", "vllm")
        self.head = {
            "benchmark": benchmark,
            "device": device,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": {name: found for name in packages if (found := installed(name))},
        }
        old = {name: known.get(name) for name in self.head}
        if known and old != self.head:
            raise SystemExit(f"{file} holds results of {old}, and this is {self.head}; give another file to --out")

    def entry(self, name: str, case: dict[str, Any]) -> dict[str, Any]:
        """Return what is known under the name, which must be of the same case."""
        found = self.entries.setdefault(name, {"case": case})
        if found["case"] != case:
            raise SystemExit(
                f"{self.file} holds {name!r} with {found['case']}, and now it is {case}; give another file to --out"
            )
        return found

    @property
    def text(self) -> str:
        """Everything as JSON."""
        return json.dumps({**self.head, "results": self.entries}, indent=1)

    def save(self) -> None:
        """Write everything, if there is a file."""
        if self.file is not None:
            self.file.write_text(self.text + "\n", encoding="utf-8")


class Match(NamedTuple):
    """Who is compared, and how.

    sides: those that take turns, the one that begins first; spawn: what a side measures on a case in a process of its
    own, which saves how its weights moved where a file is given; apart: for two runs of one step each, the differences
    in what they learned; limits: the largest of each that rounding explains; small: the case on which that is looked
    at; choices: rows in a pass of TRL that are worth a try; seconds: what a step of a run took; summary: what the runs
    of all turns say.
    """

    sides: tuple[str, ...]
    spawn: Callable[..., Run]
    apart: Callable[[Run, Run], Mapping[str, float]]
    limits: Mapping[str, float]
    small: Callable[[Any], Any]
    choices: Callable[[Any], list[int]]
    seconds: Callable[[Run], float]
    summary: Callable[[Any, dict[str, list[Run]]], dict[str, Any]]


def installed(package: str) -> str | None:
    """Return the version of a package, None when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def add_options(parser: argparse.ArgumentParser, own: Iterable[tuple[str, int, str]], rows: str) -> None:
    """Add the options that are numbers, a benchmark's own and those of all, and --out. rows: what TRL reads."""
    for name, value, text in (
        *own,
        ("repeats", 5, "how often the sides take turns"),
        ("rows", -1, f"{rows} in one pass of TRL; -1 tries some, keeps the fastest; 0 is all of them"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--out", type=Path, help="keep results there, and go on with those that are there")


def measured(script: str, side: str, case: Any, moved: Path | None = None) -> Run:
    """Return what a script beside this file prints of a side and a case, last of all, as JSON."""
    words = [side, json.dumps(asdict(case)), *([str(moved)] if moved else [])]
    command = [sys.executable, str(Path(__file__).with_name(script)), *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed on {case}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def contest(match: Match, book: Book, name: str, case: Any, repeats: int, rows: int) -> dict[str, Any]:
    """Compare the sides on a case and return its entry of the book; what the book knows already is not done again.

    rows: in one pass of TRL, 0 being all of a step; -1 tries some and keeps the fastest.
    """
    entry = book.entry(name, {key: value for key, value in asdict(case).items() if key not in OF_A_TURN})
    if "largest_difference" not in entry:
        entry["largest_difference"] = differences(match, case)
        say(name, f"the sides agree: {entry['largest_difference']}")
        book.save()
    if "trl_rows" not in entry:
        tries = match.choices(case) if rows < 0 else []
        tried = {one: match.seconds(match.spawn("trl", replace(case, rows=one, steps=1))) for one in tries}
        entry["trl_rows"] = {"used": min(tried, key=lambda one: tried[one], default=rows), "seconds_tried": tried}
        say(name, f"rows in a pass of TRL: {entry['trl_rows']}")
        book.save()
    runs = entry.setdefault("runs", {side: [] for side in match.sides})
    for turn in range(min(map(len, runs.values())), repeats):
        # The side that begins changes, so that a machine that slows down favours neither.
        for side in match.sides[:: -1 if turn % 2 else 1]:
            if len(runs[side]) <= turn:
                runs[side].append(match.spawn(side, replace(case, seed=turn, rows=entry["trl_rows"]["used"])))
        entry["summary"] = match.summary(case, runs)
        say(name, f"turn {turn + 1} of {repeats}: {entry['summary']['step_ratio']:.2f} times as fast")
        book.save()
    entry["summary"] = match.summary(case, runs)
    return entry


def differences(match: Match, case: Any) -> dict[str, float]:
    """Return how far apart the sides are after a step on the same data; end when they learn different things."""
    small = match.small(case)
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.pt" for side in match.sides}
        runs = {side: match.spawn(side, small, file) for side, file in files.items()}
        moved = {side: torch.load(file, weights_only=True) for side, file in files.items()}
    found = dict.fromkeys(match.limits, 0.0)
    for other in runs.keys() - {"holdfast"}:
        apart = {**match.apart(runs["holdfast"], runs[other])}
        apart["moved"] = float((moved["holdfast"] - moved[other]).norm() / moved[other].norm())
        found |= {name: larger(found[name], value) for name, value in apart.items()}
    if wrong := [name for name, limit in match.limits.items() if not found[name] <= limit]:
        raise SystemExit(
            f"the sides learn different things ({', '.join(wrong)}), so there is nothing to time: "
            f"apart {found}, { ({side: run['rows'] for side, run in runs.items()}) }"
        )
    return found


def larger(one: float, other: float) -> float:
    """Return the larger number, and NaN where either is."""
    return float(np.maximum(one, other))


def say(name: str, words: str) -> None:
    """Tell whoever waits."""
    print(f"{name}: {words}", file=sys.stderr, flush=True)

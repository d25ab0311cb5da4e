"""How the sides of `grpo.py` and `gpu.py` are compared: first what they learn, then in turns how long they take."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from grpo_sides import PHASES, SIDES
from grpo_world import Case

# Of the loss, the mean reward and the mean KL absolute, of the others relative; float32 on different paths. Advantages
# divide the rounding of rewards near 16, some 1e-6, by a spread within groups of a few hundredths.
LIMITS = {"loss": 5e-5, "reward": 1e-4, "kl": 1e-5, "grad_norm": 1e-4, "moved": 1e-3}


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


def installed(package: str) -> str | None:
    """Return the version of a package, None when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def spawn(side: str, case: Case, moved: Path | None = None) -> dict[str, Any]:
    """Return what one side measures in a process of its own."""
    script = Path(__file__).with_name("grpo_sides.py")
    command = [sys.executable, str(script), side, json.dumps(asdict(case)), *([str(moved)] if moved else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed on {case}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def contest(book: Book, name: str, case: Case, repeats: int, rows: int) -> dict[str, Any]:
    """Compare the sides on a case and return its entry of the book; what the book knows already is not done again.

    rows: as in `Case`, of TRL; -1 tries some and keeps the fastest.
    """
    entry = book.entry(name, {key: value for key, value in asdict(case).items() if key not in ("seed", "rows")})
    if "largest_difference" not in entry:
        entry["largest_difference"] = differences(case)
        say(name, f"the sides agree: {entry['largest_difference']}")
        book.save()
    if "trl_rows" not in entry:
        tries = choices(case) if rows < 0 else []
        tried = {one: timed(spawn("trl", replace(case, rows=one, steps=1))) for one in tries}
        entry["trl_rows"] = {"used": min(tried, key=lambda one: tried[one], default=rows), "seconds_tried": tried}
        say(name, f"answers in a pass of TRL: {entry['trl_rows']}")
        book.save()
    runs = entry.setdefault("runs", {side: [] for side in SIDES})
    for turn in range(min(map(len, runs.values())), repeats):
        # The side that begins changes, so that a machine that slows down favours neither.
        for side in list(SIDES)[:: 1 if turn % 2 else -1]:
            if len(runs[side]) <= turn:
                runs[side].append(spawn(side, replace(case, seed=turn, rows=entry["trl_rows"]["used"])))
        entry["summary"] = summary(case, runs)
        say(name, f"turn {turn + 1} of {repeats}: {entry['summary']['step_ratio']:.2f} times as fast")
        book.save()
    entry["summary"] = summary(case, runs)
    return entry


def say(name: str, words: str) -> None:
    """Tell whoever waits."""
    print(f"{name}: {words}", file=sys.stderr, flush=True)


def differences(case: Case) -> dict[str, float]:
    """Return how far apart the sides are after a step on the same answers; end when they learn different things."""
    # Float32 and few prompts: enough to tell, and rounding hides nothing.
    small = replace(case, prompts=min(case.prompts, 2), dtype="float32", sampler="transformers")
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.pt" for side in SIDES}
        rows = {side: spawn(side, small, file)["rows"][0] for side, file in files.items()}
        moved = {side: torch.load(file, weights_only=True) for side, file in files.items()}
    mine, theirs = rows["holdfast"], rows["trl"]
    found = {name: abs(mine[name] - theirs[name]) for name in ("loss", "reward", "kl", "grad_norm")}
    found["grad_norm"] /= theirs["grad_norm"]
    found["moved"] = float((moved["holdfast"] - moved["trl"]).norm() / moved["trl"].norm())
    if wrong := [name for name, limit in LIMITS.items() if not found[name] <= limit]:
        raise SystemExit(
            f"the two sides learn different things ({', '.join(wrong)}), so there is nothing to time: "
            f"apart {found}, holdfast {mine}, TRL {theirs}"
        )
    return found


def choices(case: Case) -> list[int]:
    """Return the numbers of answers in a pass of TRL that are worth a try: all, a quarter, those to one prompt."""
    return sorted({case.answers, max(case.answers // 4, case.group), case.group})


def timed(run: dict[str, Any], phase: str = "step") -> float:
    """Return the mean seconds of a phase over the timed steps of a run; `learn` is what no other phase took."""
    if phase == "learn":
        return timed(run) - sum(timed(run, other) for other in PHASES)
    return statistics.mean(step[phase] for step in run["seconds"])


def summary(case: Case, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the turns: seconds of each phase, tokens per second, and the ratios of time and memory."""
    pairs = list(zip(runs["holdfast"], runs["trl"]))
    lengths = {side: statistics.mean(row["length"] for run in runs[side] for row in run["rows"][1:]) for side in runs}
    seconds = {
        side: {
            phase: statistics.median(timed(run, phase) for run in runs[side]) for phase in ("step", *PHASES, "learn")
        }
        for side in runs
    }
    ratios = [timed(theirs) / timed(mine) for mine, theirs in pairs]
    return {
        "step_ratio": statistics.median(ratios),
        "step_ratio_range": [min(ratios), max(ratios)],
        "peak_ratio": statistics.median(mine["peak_mb"] / theirs["peak_mb"] for mine, theirs in pairs),
        "seconds": seconds,
        "phase_ratio": {
            phase: seconds["trl"][phase] / seconds["holdfast"][phase] for phase in ("step", *PHASES, "learn")
        },
        "tokens_per_second": {
            side: case.answers * (case.prompt + lengths[side]) / seconds[side]["step"] for side in runs
        },
        "mean_length": lengths,
        "parameters": runs["trl"][0]["parameters"],
    }

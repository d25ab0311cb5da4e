"""How the sides of `grpo.py` and `gpu.py` are compared."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import turns
from grpo_sides import PHASES, SIDES
from grpo_world import Case
from turns import Book, Match, Run, measured

# Of the loss, the mean reward and the mean KL absolute, of the others relative; float32 on different paths. Advantages
# divide the rounding of rewards near 16, some 1e-6, by a spread within groups of a few hundredths.
LIMITS = {"loss": 5e-5, "reward": 1e-4, "kl": 1e-5, "grad_norm": 1e-4, "moved": 1e-3}


def match() -> Match:
    """Return who is compared, and how."""
    return Match(tuple(reversed(SIDES)), spawn, apart, LIMITS, small, choices, timed, summary)


def contest(book: Book, name: str, case: Case, repeats: int, rows: int) -> dict[str, Any]:
    """Compare the sides on a case, as `turns.contest` says."""
    return turns.contest(match(), book, name, case, repeats, rows)


def spawn(side: str, case: Case, moved: Path | None = None) -> Run:
    """Return what one side measures in a process of its own."""
    return measured("grpo_sides.py", side, case, moved)


def small(case: Case) -> Case:
    """Return the case in float32 with few prompts: enough to tell, and rounding hides nothing."""
    return replace(case, prompts=min(case.prompts, 2), dtype="float32", sampler="transformers")


def apart(mine: Run, theirs: Run) -> dict[str, float]:
    """Return the differences of the first step: of the norm of the gradient relative, of the others absolute."""
    one, other = mine["rows"][0], theirs["rows"][0]
    found = {name: abs(one[name] - other[name]) for name in ("loss", "reward", "kl", "grad_norm")}
    return found | {"grad_norm": found["grad_norm"] / other["grad_norm"]}


def choices(case: Case) -> list[int]:
    """Return the numbers of answers in a pass of TRL that are worth a try: all, a quarter, those to one prompt."""
    return sorted({case.answers, max(case.answers // 4, case.group), case.group})


def timed(run: Run, phase: str = "step") -> float:
    """Return the mean seconds of a phase over the timed steps of a run; `learn` is what no other phase took."""
    if phase == "learn":
        return timed(run) - sum(timed(run, other) for other in PHASES)
    return statistics.mean(step[phase] for step in run["seconds"])


def summary(case: Case, runs: dict[str, list[Run]]) -> dict[str, Any]:
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

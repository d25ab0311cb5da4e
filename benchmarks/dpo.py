"""How much faster a step of DPO is than TRL's DPOTrainer, on the same weights, pairs, order and reference.

Both sides must first learn the same. Then they take turns, in processes of their own. TRL runs in both its ways: with
the reference read before training, as ours always is, and with the reference read in every step. What is in the file of
--out is kept and gone on with, so a run may be done in pieces. Needs `pip install trl==1.16.0`.

    python benchmarks/dpo.py --setting 256:128 --out benchmarks/dpo.json
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import turns
from dpo_sides import Case
from grpo_world import SIZES
from turns import Book, Match, Run, add_options, larger, measured

TARGET = 1.5
"""By how much a step shall be faster where a prompt has twice the tokens of an answer or more."""

RUNS: dict[str, tuple[str, dict[str, bool]]] = {
    "holdfast": ("holdfast", {}),
    "trl": ("trl", {"precompute": True}),
    "trl_in_step": ("trl", {"precompute": False}),
}
"""What takes turns: a side, and how it reads its reference."""

# The loss and the lead absolute, the others relative; float32 on different paths. A lead is a tenth of the difference
# of sums that reach a thousand.
LIMITS = {"loss": 5e-5, "lead": 1e-4, "grad_norm": 1e-4, "moved": 1e-3}


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    settings = ["256:128", "192:192", "320:80"]
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["5M"], help="models (default 5M)")
    parser.add_argument("--setting", nargs="+", default=settings, help=f"tokens of prompt:answer (default {settings})")
    parser.add_argument(
        "--spread", nargs="+", type=float, default=[0.0, 0.5],
        help="share of its mean by which a length differs at most (default 0 and 0.5)",
    )  # fmt: skip
    own = (
        ("pairs", 8, "pairs of a step"),
        ("steps", 4, "timed steps of a process, after one that is not"),
        ("threads", 2, "threads of torch"),
        ("micro-tokens", 16384, "tokens in one pass of ours"),
    )
    add_options(parser, own, "pairs")
    return parser.parse_args()


def cases(given: argparse.Namespace) -> dict[str, Case]:
    """Return what is to be compared, by name."""
    found = {}
    for size in given.size:
        for setting in given.setting:
            prompt, response = (int(part) for part in setting.split(":"))
            for spread in given.spread:
                found[f"{size} {setting} spread {spread:g}"] = Case(
                    size=size,
                    prompt=prompt,
                    response=response,
                    spread=spread,
                    pairs=given.pairs,
                    steps=given.steps,
                    threads=given.threads,
                    micro_tokens=given.micro_tokens,
                )
    return found


def spawn(run: str, case: Case, moved: Path | None = None) -> Run:
    """Return what one of `RUNS` measures in a process of its own."""
    side, how = RUNS[run]
    return measured("dpo_sides.py", side, replace(case, **how), moved)


def match() -> Match:
    """Return who is compared, and how."""
    return Match(tuple(RUNS), spawn, apart, LIMITS, small, choices, step, summary)


def contest(book: Book, name: str, case: Case, repeats: int, rows: int) -> dict[str, Any]:
    """Compare the sides on a case, as `turns.contest` says, and tell whether its target is met."""
    entry = turns.contest(match(), book, name, case, repeats, rows)
    entry["summary"] |= judged(case, entry["summary"])
    book.save()
    return entry


def small(case: Case) -> Case:
    """Return the case with a step of few pairs of unequal lengths, enough to tell whether the sides agree."""
    return replace(case, pairs=min(case.pairs, 4), steps=1, spread=0.5)


def apart(mine: Run, theirs: Run) -> dict[str, float]:
    """Return the largest difference over the steps: of the norm of the gradient relative, of the others absolute."""
    found = dict.fromkeys(("loss", "lead", "grad_norm"), 0.0)
    for one, other in zip(mine["rows"], theirs["rows"], strict=True):
        scale = {"grad_norm": other["grad_norm"]}
        gaps = {name: abs(one[name] - other[name]) / scale.get(name, 1) for name in found}
        found = {name: larger(most, gaps[name]) for name, most in found.items()}
    return found


def choices(case: Case) -> list[int]:
    """Return the numbers of pairs in a pass of TRL that are worth a try: all, a half, a quarter."""
    return sorted({max(case.pairs // parts, 1) for parts in (1, 2, 4) if case.pairs % max(case.pairs // parts, 1) == 0})


def step(run: Run) -> float:
    """Return the mean seconds of the timed steps of a run."""
    return statistics.mean(run["seconds"])


def whole(run: Run) -> float:
    """Return the mean seconds of a step with those that the reference took for its pairs."""
    return step(run) + run["reference"]


def summary(case: Case, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Return medians over the turns: seconds, tokens per second, and the ratios of time and memory.

    `step_ratio` leaves reading the reference out on both sides, which both do before training; `whole_ratio` counts it
    on both, for TRL in whichever of its two ways is faster.
    """
    rounds = list(zip(runs["holdfast"], runs["trl"], runs["trl_in_step"]))
    steps = [step(theirs) / step(mine) for mine, theirs, _ in rounds]
    wholes = [min(whole(theirs), whole(slow)) / whole(mine) for mine, theirs, slow in rounds]
    seconds = {
        run: {
            "step": statistics.median(map(step, runs[run])),
            "reference": statistics.median(one["reference"] for one in runs[run]),
        }
        for run in RUNS
    }
    return {
        "step_ratio": statistics.median(steps),
        "step_ratio_range": [min(steps), max(steps)],
        "whole_ratio": statistics.median(wholes),
        "whole_ratio_range": [min(wholes), max(wholes)],
        "peak_ratio": statistics.median(
            mine["peak_mb"] / min(theirs["peak_mb"], slow["peak_mb"]) for mine, theirs, slow in rounds
        ),
        "seconds": seconds,
        "tokens_per_second": {run: case.tokens / seconds[run]["step"] for run in ("holdfast", "trl")},
        "parameters": runs["trl"][0]["parameters"],
    }


def judged(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """Return the target of a case, and whether it is met."""
    target = TARGET if case.prompt >= 2 * case.response else 1.0
    return {
        "target": target,
        "fast_enough": min(found["step_ratio"], found["whole_ratio"]) >= target,
        "small_enough": found["peak_ratio"] <= 1,
    }


def main() -> None:
    """Compare, take turns, print the results as JSON."""
    given = arguments()
    book = Book(given.out, "dpo")
    for name, case in cases(given).items():
        contest(book, name, case, given.repeats, given.rows)
    print(book.text)


if __name__ == "__main__":
    main()

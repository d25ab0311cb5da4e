"""How much faster a step of DPO is than TRL's DPOTrainer, on the same weights, pairs, order and reference.

Both sides must first learn the same. Then they take turns, in processes of their own. TRL runs in both its ways: with
the reference read before training, as ours always is, and with the reference read in every step. What is in the file of
--out is kept and gone on with, so a run may be done in pieces. Needs `pip install trl==1.16.0`.

    python benchmarks/dpo.py --setting 256:128 --out benchmarks/dpo.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from dpo_sides import Case
from grpo_turns import Book, say
from grpo_world import SIZES

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
    for name, value, text in (
        ("pairs", 8, "pairs of a step"),
        ("steps", 4, "timed steps of a process, after one that is not"),
        ("repeats", 5, "how often the sides take turns"),
        ("threads", 2, "threads of torch"),
        ("micro-tokens", 16384, "tokens in one pass of ours"),
        ("rows", -1, "pairs in one pass of TRL; -1 tries some, keeps the fastest; 0 is all of them"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--out", type=Path, help="keep results there, and go on with those that are there")
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


def spawn(run: str, case: Case, moved: Path | None = None) -> dict[str, Any]:
    """Return what one of `RUNS` measures in a process of its own."""
    side, how = RUNS[run]
    script = Path(__file__).with_name("dpo_sides.py")
    words = [side, json.dumps(asdict(replace(case, **how))), *([str(moved)] if moved else [])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{run} failed on {case}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def differences(case: Case) -> dict[str, float]:
    """Return how far apart the sides are after steps on the same pairs; end when they learn different things."""
    small = replace(case, pairs=min(case.pairs, 4), steps=1, spread=0.5)
    with tempfile.TemporaryDirectory() as folder:
        files = {run: Path(folder) / f"{run}.pt" for run in RUNS}
        rows = {run: spawn(run, small, file)["rows"] for run, file in files.items()}
        moved = {run: torch.load(file, weights_only=True) for run, file in files.items()}
    found = dict.fromkeys(LIMITS, 0.0)
    for other in ("trl", "trl_in_step"):
        for mine, theirs in zip(rows["holdfast"], rows[other], strict=True):
            apart = {name: abs(mine[name] - theirs[name]) for name in ("loss", "lead", "grad_norm")}
            apart["grad_norm"] /= theirs["grad_norm"]
            found |= {name: max(found[name], value) for name, value in apart.items()}
        weights = float((moved["holdfast"] - moved[other]).norm() / moved[other].norm())
        found["moved"] = max(found["moved"], weights)
    if wrong := [name for name, limit in LIMITS.items() if not found[name] <= limit]:
        raise SystemExit(
            f"the two sides learn different things ({', '.join(wrong)}), so there is nothing to time: "
            f"apart {found}, {rows}"
        )
    return found


def contest(book: Book, name: str, case: Case, repeats: int, rows: int) -> dict[str, Any]:
    """Compare the sides on a case and return its entry of the book; what the book knows already is not done again.

    rows: as in `Case`, of TRL; -1 tries some and keeps the fastest.
    """
    told = {key: value for key, value in asdict(case).items() if key not in ("seed", "rows", "precompute")}
    entry = book.entry(name, told)
    if "largest_difference" not in entry:
        entry["largest_difference"] = differences(case)
        say(name, f"the sides agree: {entry['largest_difference']}")
        book.save()
    if "trl_rows" not in entry:
        tries = choices(case) if rows < 0 else []
        tried = {one: step(spawn("trl", replace(case, rows=one, steps=2))) for one in tries}
        entry["trl_rows"] = {"used": min(tried, key=lambda one: tried[one], default=rows), "seconds_tried": tried}
        say(name, f"pairs in a pass of TRL: {entry['trl_rows']}")
        book.save()
    runs = entry.setdefault("runs", {run: [] for run in RUNS})
    for turn in range(min(map(len, runs.values())), repeats):
        # The side that begins changes, so that a machine that slows down favours neither.
        for run in list(RUNS)[:: -1 if turn % 2 else 1]:
            if len(runs[run]) <= turn:
                runs[run].append(spawn(run, replace(case, seed=turn, rows=entry["trl_rows"]["used"])))
        entry["summary"] = summary(case, runs)
        say(name, f"turn {turn + 1} of {repeats}: {entry['summary']['step_ratio']:.2f} times as fast")
        book.save()
    entry["summary"] = summary(case, runs) | judged(case, summary(case, runs))
    book.save()
    return entry


def choices(case: Case) -> list[int]:
    """Return the numbers of pairs in a pass of TRL that are worth a try: all, a half, a quarter."""
    return sorted({max(case.pairs // parts, 1) for parts in (1, 2, 4) if case.pairs % max(case.pairs // parts, 1) == 0})


def step(run: dict[str, Any]) -> float:
    """Return the mean seconds of the timed steps of a run."""
    return statistics.mean(run["seconds"])


def whole(run: dict[str, Any]) -> float:
    """Return the mean seconds of a step with those that the reference took for its pairs."""
    return step(run) + run["reference"]


def summary(case: Case, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the turns: seconds, tokens per second, and the ratios of time and memory.

    `step_ratio` leaves reading the reference out on both sides, which both do before training; `whole_ratio` counts it
    on both, for TRL in whichever of its two ways is faster.
    """
    turns = list(zip(runs["holdfast"], runs["trl"], runs["trl_in_step"]))
    steps = [step(theirs) / step(mine) for mine, theirs, _ in turns]
    wholes = [min(whole(theirs), whole(slow)) / whole(mine) for mine, theirs, slow in turns]
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
            mine["peak_mb"] / min(theirs["peak_mb"], slow["peak_mb"]) for mine, theirs, slow in turns
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

"""What the published runs of recipes found: `python benchmarks/systems.py RECIPE=RUN ...` writes `systems.json`.

RUN is the folder that `holdfast run RECIPE --out RUN` has written. Docs quote these numbers of those runs.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "systems.json"
BULKY = {"examples", "heads", "router_use", "restarts_nll", "accuracy", "merged"}


def found(run: Path) -> dict[str, Any]:
    """The summary of a run without what nobody quotes, per limit how it was kept, and where the time went."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in summary.items() if name not in BULKY}
    if "weak_to_strong" in kept:
        kept["weak_to_strong"] = told_of_students(summary["weak_to_strong"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["stage"] == "policy"]
    phases = [name for name in (rows[-1] if rows else ()) if name.startswith("seconds/")]
    if phases:
        kept["iteration_seconds"] = {name: statistics.mean(row[name] for row in rows) for name in phases}
    limits = [name.removeprefix("multiplier/") for name in (rows[-1] if rows else ()) if name.startswith("multiplier/")]
    for name in limits:
        costs = [row[f"cost/{name}"] for row in rows if f"cost/{name}" in row]
        first, last = statistics.mean(costs[:5]), statistics.mean(costs[-10:])
        multiplier = rows[-1][f"multiplier/{name}"]
        path = [row[f"multiplier/{name}"] for row in rows if f"multiplier/{name}" in row]
        told = {"first_5": first, "last_10": last, "multiplier_at_the_end": multiplier}
        kept |= {f"limit/{name}": told | {"multiplier_least": min(path), "multiplier_most": max(path)}}
    return kept


def told_of_students(report: dict[str, Any]) -> dict[str, Any]:
    """What is quoted of a weak-to-strong report: its sizes, and of every student what it recovers."""
    students = {name: one["recovery"] for name, one in report["students"].items()}
    return {name: report[name] for name in ("items", "seeds", "learners", "warnings")} | {"students": students}


def main(words: list[str]) -> None:
    """Write the runs that are named beside those that the file holds."""
    known = json.loads(OUT.read_text(encoding="utf-8"))["runs"] if OUT.is_file() else {}
    runs = known | {name: found(Path(folder)) for name, _, folder in (word.rpartition("=") for word in words)}
    OUT.write_text(json.dumps({"command": "holdfast run RECIPE", "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

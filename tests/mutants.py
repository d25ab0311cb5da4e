"""Apply every wrong version of the source that the tests must catch, and report those that survive.

    python tests/mutants.py            all packages
    python tests/mutants.py losses -j 2

Each package lists its own in `tests/<package>/mutants*.py` as (file, text, wrong text, tests). A mutant lives in a
copy of `src`; the checkout is never touched. The exit code is 1 when a mutant survives.
"""

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MINUTES = 10


class Mutant(NamedTuple):
    """One wrong version: in `file`, `old` becomes `new`, and `tests` must notice."""

    package: str
    file: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        change = f"{_short(self.old)} -> {_short(self.new)}"
        return f"{self.file.removeprefix('src/holdfast/')}: {change}"

    def problem(self) -> str:
        """Why this mutant cannot be tried; empty when it can."""
        if not (ROOT / self.file).is_file():
            return f"{self.file} does not exist"
        if not (ROOT / self.tests.partition("::")[0]).is_file():
            return f"{self.tests} does not exist"
        count = (ROOT / self.file).read_text(encoding="utf-8").count(self.old)
        if count != 1:
            return f"the text occurs {count} times in {self.file}: {_short(self.old)}"
        return "old and new are the same" if self.old == self.new else ""


def tables() -> dict[str, list[Path]]:
    """The files that list mutants, by package."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "tests").glob("*/mutants*.py")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def listed(packages: list[str]) -> list[Mutant]:
    """The mutants of the named packages, of all packages when none is named."""
    found = tables()
    unknown = set(packages) - set(found)
    if unknown:
        raise SystemExit(f"no mutants for {', '.join(sorted(unknown))}; there are some for {', '.join(found)}")
    chosen = [(name, runpy.run_path(str(path))["MUTANTS"]) for name in packages or found for path in found[name]]
    return [Mutant(name, *entry) for name, entries in chosen for entry in entries]


def trial(tests: str, mutant: Mutant | None = None) -> str:
    """How `tests` end on a copy of the source, with the mutant in it: passed, failed, or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", ".*", "*.egg-info"))
        if mutant is not None:
            file = Path(folder) / mutant.file
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        # PYTHONPATH stands before the editable installation; no byte code, so that nothing stale is read.
        variables = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | variables,
                capture_output=True,
                text=True,
                timeout=60 * MINUTES,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "failed"  # a loop without end is noticed by whoever waits for it
    return {0: "passed", 1: "failed"}.get(done.returncode, f"broken: {_last_line(done.stdout)}")


def main() -> int:
    """Try the mutants that were asked for; 0 when the tests catch every one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="folders below tests; all of them when none is named")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, help="how many at a time")
    options = parser.parse_args()
    mutants = listed(options.packages)
    if problems := [f"{mutant.package}: {problem}" for mutant in mutants if (problem := mutant.problem())]:
        print(*problems, sep="\n")
        return 1
    with ThreadPoolExecutor(options.j) as pool:
        # Tests that fail on the right version would catch anything.
        tests = sorted({mutant.tests for mutant in mutants})
        sick = [name for name, outcome in zip(tests, pool.map(trial, tests)) if outcome != "passed"]
        if sick:
            print("these tests fail without any mutant:", *sick, sep="\n  ")
            return 1
        survivors = 0
        for mutant, outcome in zip(mutants, pool.map(lambda each: trial(each.tests, each), mutants)):
            survivors += outcome != "failed"
            print(f"{'caught' if outcome == 'failed' else 'SURVIVED, ' + outcome}  {mutant}", flush=True)
    print(f"{len(mutants)} mutants, {survivors} survived")
    return int(survivors > 0)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    sys.exit(main())

"""One recipe over a grid of settings: a run folder for each, what is finished kept, what fails told and left.

Each run is a process of its own, so that it gives back its memory, reports its own, and takes nobody with it.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from holdfast import config, systems
from holdfast.errors import UserError
from holdfast.systems.stages import say


class Planned(NamedTuple):
    """A run of the grid: its folder's name, what it changes in the recipe, and what its settings amount to."""

    name: str
    overrides: tuple[str, ...]
    fingerprint: str


def axis(text: str) -> tuple[str, list[Any]]:
    """The setting and the values of `key=value,value,...`, each value as YAML reads it.

    >>> axis("ppo.kl.coef=0.1,3e-1")
    ('ppo.kl.coef', [0.1, 0.3])
    """
    key, separator, given = text.partition("=")
    if not separator or not key:
        raise UserError(f"--over {text}: write a setting and its values, for example --over ppo.kl.coef=0.1,0.3")
    if key == "seed":
        raise UserError(f"--over {text}: seeds are no setting to compare; give them as --seeds")
    values = config.parse_yaml(f"[{given}]", f"--over {key}")
    if len(values) < 2:
        raise UserError(f"--over {text}: a sweep needs at least two values; a setting for all runs is given as {text}")
    if len({json.dumps(value) for value in values}) < len(values):
        raise UserError(f"--over {text}: a value stands twice; keep one of them")
    return key, values


def grid(
    recipe: str | Path, axes: Mapping[str, Sequence[Any]], seeds: Sequence[int] = (), overrides: Sequence[str] = ()
) -> list[Planned]:
    """Every combination of the axes' values, each with every seed, or with the recipe's own where none is given.

    Raises `UserError`, before anything runs, when a combination makes no settings of the recipe's system.
    """
    file = systems.recipe(recipe)
    if twice := sorted(axes.keys() & {one.partition("=")[0] for one in overrides}):
        raise UserError(f"{', '.join(twice)}: given for all runs and with --over; leave one of them out")
    everything = dict(axes) | ({"seed": list(seeds)} if seeds else {})
    planned = []
    for values in product(*everything.values()):
        chosen = dict(zip(everything, values))
        words = (*overrides, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen.items()))
        given = config.read_values(file, words)
        kind, _ = systems.find(given.get("system")).load()
        name = ",".join(f"{key}={quote(_text(value), safe='')}" for key, value in chosen.items())
        planned.append(Planned(name, words, config.fingerprint(config.build(kind, given))))
    return planned


def run(
    recipe: str | Path, planned: Sequence[Planned], out: Path, told: Mapping[str, Any], launcher: str = ""
) -> dict[str, str]:
    """Run what is not finished in `out`; return by name why runs failed.

    told: what `sweep.json` says of the sweep beside that; launcher: the words before `-m holdfast run`, this Python
    when empty. Raises `UserError` when a folder holds a run of other settings.
    """
    todo = [one for one in planned if not _finished(out / one.name, one)]
    if len(todo) < len(planned):
        say(f"{len(planned) - len(todo)} of {len(planned)} runs have finished before")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    _write(out, told, failed)
    began, python = time.monotonic(), shlex.split(launcher) or [sys.executable]
    for place, one in enumerate(todo, start=1):
        log = out / "logs" / f"{one.name}.txt"
        say(f"[{place}/{len(todo)}] {one.name}: running, log in {log}")
        words = [str(systems.recipe(recipe)), *one.overrides, "--out", str(out / one.name)]
        ended = launch([*python, "-m", "holdfast", "run", *words], log)
        # A run that ends without a certificate has an exit code of its own, and has finished all the same.
        if not _finished(out / one.name, one):
            failed[one.name] = ended
            say(f"  failed, {ended}")
            _write(out, told, failed)
        seconds = time.monotonic() - began
        say(f"  {seconds:.0f} s, about {seconds / place * (len(todo) - place):.0f} s left")
    return failed


def launch(command: Sequence[str], log: Path) -> str:
    """Run a command, all it says going to `log`; return how it ended: code or signal, and error or last line."""
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [i for i, line in enumerate(said) if line.startswith("error: ")]
    last = " ".join(line.strip() for line in said[errors[-1] if errors else -1 :]) or "it said nothing"
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {last.removeprefix('error: ')}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _finished(folder: Path, planned: Planned) -> bool:
    card = folder / "fingerprint.json"
    if not card.is_file():
        return False
    if json.loads(card.read_text(encoding="utf-8"))["fingerprint"] != planned.fingerprint:
        raise UserError(f"{folder} holds a run of other settings; give another --out, or remove that folder")
    return (folder / "summary.json").is_file()


def _write(out: Path, told: Mapping[str, Any], failed: Mapping[str, str]) -> None:
    whole = json.dumps({**told, "failed": failed}, indent=2, ensure_ascii=False)
    (out / "sweep.json").write_text(whole + "\n", encoding="utf-8")

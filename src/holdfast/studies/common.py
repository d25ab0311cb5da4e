"""What every study does alike: the data of others, a criterion counted over runs, and the commit that ran."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.config import Settings, fingerprint
from holdfast.errors import UserError
from holdfast.stats.estimate import rate


def shared_folder(name: str) -> Path:
    """The folder `name` of data that may not be shipped: in `data` of HOLDFAST_SHARED, or of `shared` beside the
    checkout."""
    return Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).parents[4] / "shared")) / "data" / name


def existing(file: Path, holds: str) -> Path:
    """The file itself; `UserError` where there is none, with what HOLDFAST_SHARED should be set to."""
    if not file.is_file():
        raise UserError(f"there is no {file}; set HOLDFAST_SHARED to the folder that holds {holds}")
    return file


def criterion(name: str, met: Sequence[bool], needed: float) -> dict[str, Any]:
    """The share of runs that meet a criterion, and whether it is at least `needed`; without a run it fails.

    >>> criterion("safe", [True, True, False], 0.5)["holds"], criterion("safe", [], 0.5)["holds"]
    (True, False)
    """
    if not met:
        return {"name": name, "holds": False, "value": None, "low": None, "high": None, "n": 0, "method": "no run"}
    share = rate(sum(met), len(met))
    holds = sum(met) >= needed * len(met) - 1e-9
    return {"name": name, "holds": holds, **share.to_dict(), "needed": needed}


def findings(
    study: str,
    claim: str,
    source: str,
    criteria: Sequence[Mapping[str, Any]],
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    settings: Settings,
) -> dict[str, Any]:
    """What a study found, as `result.json` holds it; every run of an arm knows its `seconds`."""
    return {
        "study": study,
        "claim": claim,
        "source": source,
        "criteria": list(criteria),
        "arms": arms,
        "seeds": list(seeds),
        "seconds": round(sum(one["seconds"] for runs in arms.values() for one in runs), 1),
        "commit": commit(),
        "config_fingerprint": fingerprint(settings),
    }


def commit() -> str | None:
    """The commit of the checkout this code runs from; None when it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def interval(found: Mapping[str, Any]) -> str:
    """An estimate from a result's JSON as a cell of a table.

    >>> interval({"value": 0.5, "low": 0.25, "high": 0.75})
    '0.500 [0.250, 0.750]'
    """
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a", "b"], [[1, 2]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [columns, *rows]
    written = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([written[0], "|" + "---|" * len(columns), *written[1:]])

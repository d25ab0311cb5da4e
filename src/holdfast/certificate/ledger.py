"""How often each set of held-out prompts was used: an append-only file of hash-chained lines.

A fold is sealed before training, opened once per attempt *before* any answer is generated, and closed with
the verdict. Closing burns it, unless the schedule leaves some delta for another attempt after a failure. A
fold that was opened and never closed stays unusable: nobody knows what was seen.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from holdfast.certificate.records import canonical, digest
from holdfast.errors import UserError
from holdfast.stats.power import Schedule, spend

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there the file is not locked against a second process.
    fcntl = None  # type: ignore[assignment]

State = Literal["unknown", "sealed", "open", "burned"]
START = "0" * 64
"""What the first line names as its predecessor."""


@dataclass(frozen=True)
class Attempt:
    """The how-manieth use of a fold this is, and the error probability it may spend."""

    number: int
    delta: float


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """A ledger at `path`; the file appears with its first entry. `clock` returns the time as ISO 8601."""

    def __init__(self, path: str | Path, clock: Callable[[], str] = _now) -> None:
        self.path = Path(path)
        self._clock = clock

    def seal(self, fold: str, n: int) -> str:
        """Put a fold of n prompts under seal and return the entry's hash; a fold can be sealed once."""
        with self._locked() as entries:
            if (known := state(entries, fold)) != "unknown":
                raise UserError(f"fold {fold[:12]} is already {known} in {self.path}; seal another fold")
            return self._append(entries, "seal", fold, n=n)

    def open(
        self, fold: str, plan_sha: str, policy_sha: str, delta: float, schedule: Schedule = "single_use"
    ) -> Attempt:
        """Write the intent to test on a sealed fold and return the attempt with its share of `delta`.

        Durable when it returns, so an attempt cannot be forgotten. Raises `UserError` when the fold was never
        sealed, is open or burned, or was opened before under another delta or schedule.
        """
        with self._locked() as entries:
            self._refuse_unless_sealed(entries, fold)
            earlier = [entry for entry in entries if entry["event"] == "open" and entry["fold"] == fold]
            for entry in earlier:
                if (entry["delta_total"], entry["schedule"]) != (delta, schedule):
                    raise UserError(
                        f"fold {fold[:12]} was first opened with delta {entry['delta_total']:g}, schedule "
                        f"{entry['schedule']}; a later attempt keeps both (given: {delta:g}, {schedule})"
                    )
            attempt = Attempt(len(earlier) + 1, spend(delta, len(earlier) + 1, schedule))
            self._append(
                entries,
                "open",
                fold,
                plan=plan_sha,
                policy=policy_sha,
                delta_total=delta,
                schedule=schedule,
                attempt=attempt.number,
                delta=attempt.delta,
            )
            return attempt

    def close(self, fold: str, verdict: str) -> str:
        """Write the verdict of the open attempt and return the entry's hash."""
        with self._locked() as entries:
            if (known := state(entries, fold)) != "open":
                raise UserError(f"fold {fold[:12]} is {known}, so there is no attempt to close")
            return self._append(entries, "close", fold, verdict=verdict)

    def burn(self, fold: str, reason: str) -> str:
        """Make a fold unusable for ever, for example after a statistic of it became known."""
        with self._locked() as entries:
            return self._append(entries, "burn", fold, reason=reason)

    def state(self, fold: str) -> State:
        """Where the fold stands: unknown, sealed, open or burned."""
        return state(self.entries(), fold)

    def head(self) -> str:
        """The hash of the last entry, which stands for the whole ledger so far."""
        entries = self.entries()
        return entries[-1]["sha256"] if entries else START

    def entries(self) -> list[dict[str, Any]]:
        """All entries, oldest first, after checking the chain."""
        return read(self.path)

    def verify(self) -> int:
        """Check the chain and return the number of entries; `UserError` names the first broken line."""
        return len(self.entries())

    def _refuse_unless_sealed(self, entries: list[dict[str, Any]], fold: str) -> None:
        known = state(entries, fold)
        if known == "sealed":
            return
        advice = {
            "unknown": "seal it before the policy is trained",
            "open": "an attempt on it was begun and never closed, so it may have been seen; use a fresh fold",
            "burned": "it was used up by an earlier attempt; use a fresh fold",
        }[known]
        raise UserError(f"fold {fold[:12]} is {known} in {self.path}: {advice}")

    def _append(self, entries: list[dict[str, Any]], event: str, fold: str, **facts: Any) -> str:
        body = {
            "index": len(entries),
            "previous": entries[-1]["sha256"] if entries else START,
            "event": event,
            "fold": fold,
            "at": self._clock(),
            **facts,
        }
        entry = {**body, "sha256": digest(body)}
        with self.path.open("a", encoding="ascii", newline="\n") as file:
            file.write(canonical(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return entry["sha256"]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[list[dict[str, Any]]]:
        """The entries, with no other process writing until the block ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield self.entries()


def state(entries: list[dict[str, Any]], fold: str) -> State:
    """Where the fold stands after these entries."""
    found: State = "unknown"
    schedule = "single_use"
    for entry in entries:
        if entry["fold"] != fold or found == "burned":
            continue
        event, schedule = entry["event"], entry.get("schedule", schedule)
        # Stopping at the first success is what makes the sum of deltas a bound.
        again = event == "close" and schedule != "single_use" and entry["verdict"] != "CERTIFIED"
        found = "sealed" if again else _AFTER[event]
    return found


_AFTER: dict[str, State] = {"seal": "sealed", "open": "open", "close": "burned", "burn": "burned"}


def read(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ledger file, oldest first; none when there is no file.

    Raises `UserError` naming the first line that was altered, torn or taken out. A missing tail shows only
    against a later hash, such as the one in a certificate.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    if lines.pop() != b"":
        raise UserError(f"{path}: the last line is incomplete; the ledger was cut or a write was interrupted")
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        expected = entries[-1]["sha256"] if entries else START
        entries.append(_entry(line, len(entries), expected, f"{path}, line {number}"))
    return entries


def _entry(line: bytes, index: int, previous: str, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        body = {key: value for key, value in entry.items() if key != "sha256"}
        # The spelling is compared too, so that not one byte can change unseen.
        sound = line == canonical(entry).encode() and entry["sha256"] == digest(body)
        sound = sound and entry["event"] in _AFTER and isinstance(entry["fold"], str)
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise UserError(f"{place}: not an entry of a ledger") from error
    if not sound:
        raise UserError(f"{place}: was altered; its hash does not fit its content")
    if (body.get("index"), body.get("previous")) != (index, previous):
        raise UserError(f"{place}: does not follow the line before; entries were removed or moved")
    return entry

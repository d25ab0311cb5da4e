"""The run folder: resolved settings, metrics, samples and results, written so that a reader can trust them.

A row that a resumed run is going to write again is dropped first, so the rows of an interrupted run are those
of an uninterrupted one, apart from the seconds.
"""

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from holdfast.config import Settings, fingerprint, parse_yaml, to_yaml
from holdfast.engine.distributed import Processes
from holdfast.errors import UserError

Advance = Callable[[Mapping[str, float]], None]

_RESERVED = {"stage", "step", "seconds", "nonfinite"}
_RECORDS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")


class RunFolder:
    """A folder that holds one run and can be resumed by opening it again with equal settings.

    path: created when missing. settings: written as `config.yaml` and fingerprinted; None opens a folder
    whose settings are nobody's concern (a test, a notebook). trackers: names that accelerate knows ("wandb",
    "tensorboard", ...). overwrite: begin anew, deleting the run that lies there. Only the first process
    writes.

    Raises `UserError` when the folder holds another configuration's run or files that are no run at all.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Settings | None = None,
        *,
        trackers: Sequence[str] = (),
        overwrite: bool = False,
        command: Sequence[str] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.path = Path(path)
        self.processes = processes or Processes()
        self.fingerprint = fingerprint(settings) if settings is not None else ""
        if self.processes.is_main:
            self._open(settings, overwrite, command)
        self.processes.barrier()
        self._rows = len(_lines(self.path / "metrics.jsonl"))
        self._began = time.monotonic() - _last_seconds(self.path / "metrics.jsonl")
        self._tracker = _open_trackers(self.path, trackers, settings) if trackers else None

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Append one row to `metrics.jsonl`; a number that is not finite becomes null, its key is listed."""
        assert not _RESERVED & numbers.keys(), f"{_RESERVED & numbers.keys()} are written by the log itself"
        values = {name: float(value) for name, value in numbers.items()}
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        row = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self._began, 3)}
        row |= {name: None if name in lost else value for name, value in values.items()}
        self._append("metrics.jsonl", row | ({"nonfinite": lost} if lost else {}))
        self._rows += 1
        if self._tracker is not None:
            # Trackers want one step that only rises; steps begin anew with every stage, rows do not.
            self._tracker.log({f"{stage}/{k}": v for k, v in values.items()} | {f"{stage}/step": step}, self._rows)

    def sample(self, record: Mapping[str, Any]) -> None:
        """Append one record (a prompt, its response, their scores) to `samples.jsonl`."""
        self._append("samples.jsonl", dict(record))

    def alarm(self, stage: str, step: int, words: str, record: Mapping[str, Any], *, aloud: bool = True) -> None:
        """Append what a guard found to `alarms.jsonl`, and tell the person its `words` unless it is not worth that."""
        self._append("alarms.jsonl", {"stage": stage, "step": step, "words": words, **record})
        if aloud and self.processes.is_main:
            print(f"{stage}: {words}", file=sys.stderr, flush=True)

    def rewind(self, stage: str, step: int) -> None:
        """Drop what was recorded of `stage` after `step`, and a last line that was cut short."""
        self.processes.barrier()
        if self.processes.is_main:
            for name in _RECORDS:
                _keep(self.path / name, lambda row: row.get("stage") != stage or row.get("step", 0) <= step)
        self.processes.barrier()
        self._rows = len(_lines(self.path / "metrics.jsonl"))

    def flush(self) -> None:
        """Wait until every record has reached the disk; a checkpoint must never be ahead of them."""
        for name in _RECORDS:
            if self.processes.is_main and (self.path / name).is_file():
                with (self.path / name).open("a", encoding="utf-8") as file:
                    os.fsync(file.fileno())

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` to the file `name` at once or not at all; return its path."""
        file = self.path / name
        if self.processes.is_main:
            _replace(file, json.dumps(value, indent=2, allow_nan=False) + "\n")
        return file

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write rows as one JSON object per line to the file `name`, at once or not at all; return its path."""
        file = self.path / name
        if self.processes.is_main:
            _replace(file, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
        return file

    @contextmanager
    def progress(self, total: int, description: str, done: int = 0) -> Iterator[Advance]:
        """Show how far `total` steps have come, with the time left: a bar on a terminal, else a line now and
        then.

        Yields a function that counts one step and takes the numbers to show beside it.
        """
        if not self.processes.is_main:
            yield lambda numbers: None
        elif sys.stderr.isatty():
            with _bar(total, description, done) as advance:
                yield advance
        else:
            yield _plain(total, description, done)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if self.processes.is_main:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def _open(self, settings: Settings | None, overwrite: bool, command: Sequence[str] | None) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give the path of a folder for the run")
        self.path.mkdir(parents=True, exist_ok=True)
        card, strangers = self.path / "fingerprint.json", any(self.path.glob("[!.]*"))
        if settings is None:
            return
        if strangers and not card.is_file():
            raise UserError(f"{self.path} holds files but no run; choose an empty or a new folder")
        if card.is_file() and overwrite:
            _clear(self.path, card)
        elif card.is_file():
            self._compare(settings)
        config = self.path / "config.yaml"
        if not card.is_file():
            versions = _versions()
            self.write_json(card.name, {"fingerprint": self.fingerprint, "versions": versions, "command": command})
        if not config.is_file():
            _replace(config, to_yaml(settings))

    def _compare(self, settings: Settings) -> None:
        found = json.loads((self.path / "fingerprint.json").read_text(encoding="utf-8"))["fingerprint"]
        if found == self.fingerprint:
            return
        config = self.path / "config.yaml"
        old = parse_yaml(config.read_text(encoding="utf-8"), str(config)) if config.is_file() else {}
        lines = "".join(f"\n  {line}" for line in differences(old, settings.model_dump(mode="json")))
        raise UserError(
            f"{self.path} holds a run and checkpoints of another configuration; give another folder, restore "
            f"the settings, or begin anew with --overwrite. There -> now:{lines or ' config.yaml is missing'}"
        )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per setting that differs, `key: old -> new`, groups spelled with dots.

    >>> differences({"seed": 1, "rl": {"rate": 0.1}}, {"seed": 1, "rl": {"rate": 0.2}})
    ['rl.rate: 0.1 -> 0.2']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        inner = (differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k)) for k in keys)
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _versions() -> dict[str, str]:
    names = ("holdfast", "torch", "transformers", "accelerate", "peft", "numpy")
    installed = {name: metadata.version(name) for name in names if _is_installed(name)}
    return {"python": platform.python_version(), **installed}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _clear(path: Path, card: Path) -> None:
    """Delete a run: all of it, since a certificate or a model left behind would pass for the new run's."""
    for found in path.iterdir():
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
        elif found != card:
            found.unlink()
    card.unlink()  # last: without it the rest would be files that are no run


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def _lines(file: Path) -> list[str]:
    """The complete lines of a file; a last line without its newline was cut short by a kill."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _keep(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    if file.is_file():
        _replace(file, "".join(line for line in _lines(file) if wanted(json.loads(line))))


def _last_seconds(file: Path) -> float:
    lines = _lines(file)
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0


def _open_trackers(path: Path, names: Sequence[str], settings: Settings | None) -> Any:
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    usable = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    missing = sorted(set(names) - set(usable))
    if missing:
        raise UserError(
            f"trackers {missing} are not installed; install them or name one of {usable or 'none'} "
            "(metrics.jsonl is always written)"
        )
    tracker = Accelerator(log_with=list(names), project_dir=str(path))
    config = settings.model_dump(mode="json") if settings is not None else {}
    tracker.init_trackers(path.name, config={k: v for k, v in config.items() if isinstance(v, (int, float, str))})
    return tracker


@contextmanager
def _bar(total: int, description: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, numbers="")
        yield lambda numbers: bar.update(task, advance=1, numbers=brief(numbers))


def _plain(total: int, description: str, done: int, every: float = 10.0) -> Advance:
    began = shown = time.monotonic()
    first = done

    def advance(numbers: Mapping[str, float]) -> None:
        nonlocal done, shown
        done += 1
        now = time.monotonic()
        if now - shown >= every or done == total:
            shown = now
            left = (now - began) / (done - first) * (total - done)
            print(
                f"{description} {done}/{total}, {left:.0f} s left, {brief(numbers)}",
                file=sys.stderr,
                flush=True,
            )

    return advance


def brief(numbers: Mapping[str, float], most: int = 5) -> str:
    """The first few numbers on one line.

    >>> brief({"loss": 0.69314, "lr": 1e-05})
    'loss 0.693  lr 1e-05'
    """
    return "  ".join(f"{name} {value:.3g}" for name, value in list(numbers.items())[:most])

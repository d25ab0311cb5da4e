"""Data sets become records: files, folders and hub names in, validated rows and counted rejects out."""

import csv
import gzip
import io
import itertools
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from holdfast.config import Settings
from holdfast.data.formats import FORMATS, Readable, recognise
from holdfast.data.schema import Record
from holdfast.data.values import Place
from holdfast.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class DataSettings(Settings):
    """Which data set to read, and how strictly."""

    path: str
    """A hub name, a local folder, or a .jsonl, .jsonl.gz, .json, .parquet or .csv file."""
    format: Literal[
        "auto",
        "dual",
        "labelled",
        "rated",
        "scored",
        "ranked",
        "pro",
        "classified",
        "prompts",
        "prompt_completion",
        "pku_safe_rlhf",
        "beavertails_v",
        "hh_rlhf",
        "trl_pairs",
        "single_turn_pairs",
        "diasafety",
        "helpsteer2",
        "ultrafeedback",
        "rpr",
    ] = "auto"
    """How rows are laid out; `auto` looks at the columns."""
    split: str = "train"
    """The split to take where the data set names splits; `all` takes every row of a file."""
    config: str | None = None
    """The configuration of a hub data set (BeaverTails-V has one for each harm category)."""
    data_dir: str | None = None
    """The folder inside the data set to read, on the hub or here (`harmless-base` of Anthropic/hh-rlhf)."""
    axis: Literal["harmless", "helpful"] = "harmless"
    """What the preferred answer of an hh-rlhf pair was preferred for."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether rows that cannot be used stop the reading (after all were listed) or are set aside."""
    limit: int | None = Field(default=None, gt=0)
    """Stop after this many usable rows."""
    image_folder: str | None = None
    """Where images that lie inside the data set are saved."""


class BadRow(NamedTuple):
    """A row that cannot be used: where it stands (rows count from 1), why, and what it holds."""

    file: str
    row: int
    reason: str
    content: Any


@dataclass(frozen=True)
class Rows:
    """What was read. `other_splits` counts rows of splits that were not asked for."""

    records: list[Readable]
    path: str
    format: str
    bad: list[BadRow] = field(default_factory=list)
    other_splits: dict[str, int] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        """The number of rows that could not be used."""
        return len(self.bad)


class _Raw(NamedTuple):
    """A row before conversion; `error` says why it could not even be parsed."""

    file: Path | str
    number: int
    content: Any
    error: str = ""


def read(settings: DataSettings, skipped_path: str | Path | None = None) -> Rows:
    """The records of a data set, in file order; a row may give several.

    Bad rows are collected to the end. Then, with `on_bad_row: error`, a `UserError` shows the first five and
    their number; with `skip` they stay in `Rows.bad` and, given a `skipped_path`, are written there with
    their reasons. A data set without a usable row is an error either way.
    """
    raw = _rows(settings)
    name: str = settings.format
    records: list[Readable] = []
    usable = 0
    bad: list[BadRow] = []
    others: Counter[str] = Counter()
    for row in raw:
        if row.error:
            bad.append(BadRow(str(row.file), row.number, row.error, row.content))
            continue
        if name == "auto":
            name = recognise(row.content, str(row.file))
        split = row.content.get("split")
        if split and settings.split not in ("all", split):
            others[str(split)] += 1
            continue
        outcome = _convert(row, name, settings)
        if isinstance(outcome, BadRow):
            bad.append(outcome)
            continue
        records += outcome
        usable += 1
        if usable == settings.limit:
            break
    _refuse_bad(bad, settings)
    if bad and skipped_path is not None:
        _write_skipped(bad, Path(skipped_path))
    if not records:
        raise UserError(_nothing(settings, bad, others))
    return Rows(records, settings.path, name, bad, dict(others))


def _convert(row: _Raw, name: str, settings: DataSettings) -> list[Readable] | BadRow:
    stem = Path(row.file).name.split(".")[0]
    beside = row.file.parent if isinstance(row.file, Path) else Path()
    embedded = Path(settings.image_folder) if settings.image_folder else None
    place = Place(f"{stem}-{row.number}", beside, embedded, settings.axis)
    missing = [column for column in FORMATS[name].needs if column not in row.content]
    try:
        if missing:
            raise ValueError(f"no column {', '.join(missing)}; format {name} needs it")
        converted = FORMATS[name].convert(row.content, place)
        return converted if isinstance(converted, list) else [converted]
    except ValidationError as error:
        reason = "; ".join(_problem(problem) for problem in error.errors())
    except (ValueError, UserError) as error:
        reason = str(error)
    return BadRow(str(row.file), row.number, reason, row.content)


def _problem(problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _refuse_bad(bad: list[BadRow], settings: DataSettings) -> None:
    if not bad or settings.on_bad_row == "skip":
        return
    shown = "\n".join(f"  {row.file} row {row.row}: {row.reason}" for row in bad[:5])
    more = f"\n  ... and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise UserError(
        f"{settings.path}: {len(bad)} rows cannot be used\n{shown}{more}\n"
        "Correct them, or set on_bad_row: skip to set them aside."
    )


def _nothing(settings: DataSettings, bad: list[BadRow], others: Mapping[str, int]) -> str:
    if others:
        return (
            f"{settings.path}: no usable row of split {settings.split}; its rows belong to "
            f"{', '.join(sorted(others))} (set split to one of them, or to all)"
        )
    if bad:
        return f"{settings.path}: none of its {len(bad)} rows can be used; row {bad[0].row}: {bad[0].reason}"
    return f"{settings.path}: it holds no rows; give a file with data"


def _write_skipped(bad: Iterable[BadRow], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for row in bad:
            stream.write(json.dumps(row._asdict(), default=lambda value: f"<{type(value).__name__}>") + "\n")


def _rows(settings: DataSettings) -> Iterator[_Raw]:
    """Rows from wherever `path` points."""
    path = Path(settings.path).expanduser()
    local = path.exists() or path.is_absolute() or settings.path.startswith(("~", ".")) or path.name.endswith(ENDINGS)
    if local and settings.data_dir:
        path = path / settings.data_dir
    if path.is_dir():
        return itertools.chain.from_iterable(_file_rows(file) for file in _files(path, settings.split))
    if path.is_file():
        return _file_rows(path)
    if local or not _HUB_NAME.fullmatch(settings.path):
        raise UserError(f"no file or folder at {path}; give the path of a data file or a hub name")
    return _hub_rows(settings)


def _files(folder: Path, split: str) -> list[Path]:
    """The data files of a split in a folder: named after it, or lying in a subfolder named after it."""
    found = sorted(file for file in folder.rglob("*") if file.name.endswith(ENDINGS) and file.is_file())
    if not found:
        raise UserError(f"{folder}: no data file inside; expected {', '.join(ENDINGS)}")
    own = re.compile(rf"{re.escape(split)}([-_.]|$)")
    chosen = [
        file for file in found if split == "all" or own.match(file.name) or split in file.relative_to(folder).parts[:-1]
    ]
    if not chosen:
        names = ", ".join(str(file.relative_to(folder)) for file in found[:10])
        raise UserError(f"{folder}: no file of split {split}; found {names}. Set split, or give one file")
    return chosen


def _file_rows(file: Path) -> Iterator[_Raw]:
    """Every row of one file."""
    if not file.name.endswith(ENDINGS):
        raise UserError(f"{file}: unknown kind of file; known are {', '.join(ENDINGS)}")
    if file.suffix == ".parquet":
        return _table_rows(file, _parquet(file))
    content = _content(file)
    if file.suffix == ".csv":
        return _table_rows(file, csv.DictReader(io.StringIO(_decoded(content, file), newline="")))
    if file.suffix == ".json" and content.lstrip().startswith(b"["):
        return _json_rows(file, content)
    return _line_rows(file, content)


def _content(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}; save it as UTF-8") from error


def _json_rows(file: Path, content: bytes) -> Iterator[_Raw]:
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    return _table_rows(file, rows)


def _line_rows(file: Path, content: bytes) -> Iterator[_Raw]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _raw(file, number, json.loads(line))
        except ValueError as error:
            yield _Raw(file, number, line.decode("utf-8", "replace"), f"not valid JSON: {error}")


def _table_rows(file: Path | str, rows: Iterable[Any]) -> Iterator[_Raw]:
    return (_raw(file, number, row) for number, row in enumerate(rows, start=1))


def _raw(file: Path | str, number: int, row: Any) -> _Raw:
    if isinstance(row, dict):
        # The csv module files surplus cells under the key None.
        ragged = None in row
        return _Raw(file, number, row, "more cells than columns" if ragged else "")
    return _Raw(file, number, row, f"a row must be an object with named columns, not {type(row).__name__}")


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def _hub_rows(settings: DataSettings) -> Iterator[_Raw]:
    """Rows of a data set on the Hugging Face hub, or in its local cache."""
    import datasets

    name = settings.path if settings.config is None else f"{settings.path} ({settings.config})"
    try:
        rows = datasets.load_dataset(settings.path, settings.config, data_dir=settings.data_dir, split=settings.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: split {settings.split} is no local file and cannot be loaded from the hub: {error}. "
            "Check the name, the split and the network, or download it and give the folder"
        ) from error
    return _table_rows(name, rows)


def write_jsonl(records: Iterable[Record], path: str | Path) -> Path:
    """The file at `path` (.jsonl or .jsonl.gz) with one record per line, which `read` reads back equal.

    Image paths are written relative to the file's folder, so the folder can move; missing ratings are null.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = (_portable(record.model_dump(mode="json"), target.parent) for record in records)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    # Without a time stamp, equal records give equal files.
    content = gzip.compress(content, mtime=0) if target.suffix == ".gz" else content
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, target)
    return target


def _portable(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        inner = {name: _portable(item, folder) for name, item in value.items()}
        if value.get("type") == "image":
            inner["path"] = os.path.relpath(value["path"], folder)
        return inner
    if isinstance(value, list):
        return [_portable(item, folder) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

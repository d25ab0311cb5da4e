"""Strict settings: YAML plus `key=value` overrides in, one frozen object out.

An unknown key anywhere is an error that names the path, the value and the nearest known key. Settings classes
stand beside the code they configure and derive from `Settings`; this module knows none of them.
"""

import difflib
import hashlib
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast.errors import UserError

Kind = TypeVar("Kind", bound="Settings")


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown keys.

    >>> class Sampling(Settings):
    ...     temperature: float = 1.0
    >>> Sampling(temperature=0.5).temperature
    0.5
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-5` is a number (YAML 1.1 reads it as text) and a repeated key is an error."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise UserError(
                f"{key.value}: this setting stands twice (line {key.start_mark.line + 1}); keep one of them"
            )
        seen.add(str(key.value))
    return loader.construct_mapping(node, deep=True)


def _number_or_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    try:
        return float(text) if node.style is None and text[:1] in "+-.0123456789" and "e" in text.lower() else text
    except ValueError:
        return text


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)
_Loader.add_constructor("tag:yaml.org,2002:str", _number_or_text)


def parse_yaml(text: str, source: str = "text") -> Any:
    """Return what the YAML `text` says; `source` names it in errors.

    >>> parse_yaml("rate: 1e-5")
    {'rate': 1e-05}
    """
    try:
        return yaml.load(text, Loader=_Loader)  # derives from SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {error}") from error


def load(kind: type[Kind], path: str | Path | None = None, overrides: Iterable[str] = ()) -> Kind:
    """Build settings of `kind` from a YAML file and `key.sub=value` overrides, the latter winning.

    Raises `UserError` naming every offending key with its path, its value, and a suggestion.

    >>> class Inner(Settings):
    ...     rate: float = 0.1
    >>> class Outer(Settings):
    ...     inner: Inner = Inner()
    >>> load(Outer, overrides=["inner.rate=1e-3"]).inner.rate
    0.001
    """
    return build(kind, read_values(path, overrides))


def read_values(path: str | Path | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The values of a YAML file with overrides applied, before any settings class has looked at them."""
    values: Any = {}
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise UserError(f"no configuration file at {file}; give the path of a YAML recipe")
        values = parse_yaml(_text(file), str(file)) or {}
        if not isinstance(values, dict):
            raise UserError(f"{file}: expected settings as `key: value`, found a {type(values).__name__}")
    for override in overrides:
        _put(values, override)
    return values


def build(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Return `values` as a validated `kind`, or raise one `UserError` that lists every problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise UserError("settings cannot be used:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; give the path of a YAML recipe") from error


def _put(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is no override; write key=value, for example seed=1 or rl.iterations=50")
    *groups, last = key.split(".")
    place: Any = values
    for group in groups:
        # What is switched off, `group: null`, is switched on by setting something in it.
        if place.get(group) is None:
            place[group] = {}
        place = place[group]
        if not isinstance(place, dict):
            raise UserError(f"{key}: {group} is not a group of settings, so {key} cannot be set")
    value = parse_yaml(text, f"the value of {key}")
    gone = place.get(last)
    if isinstance(gone, dict) and len(gone) > 1 and isinstance(value, str):
        names = ", ".join(gone)
        print(
            f"{override}: this replaces all of the recipe's {key} ({names}); {key}.{next(iter(gone))}=... changes one",
            file=sys.stderr,
        )
    place[last] = value


def _explain(kind: type[BaseModel], problem: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "settings"
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        names = _names_at(kind, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(names)) or 'nothing'}"
        return f"{path}: no such setting (value {given!r}); {hint}"
    if problem["type"] == "missing":
        return f"{path}: required, and not given"
    message = problem["msg"].removeprefix("Value error, ")
    # A group of settings that do not go together may be long, and hold what nobody should print.
    shown = "" if isinstance(given, Mapping) else f"; got {given!r}"
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _names_at(kind: Any, path: tuple[Any, ...]) -> list[str]:
    """The settings known at `path` below `kind`, looking through optionals, unions, lists and dictionaries."""
    kinds = [kind]
    for part in path:
        kinds = [inner for outer in kinds for inner in _inside(outer, part)]
    return [
        name
        for outer in kinds
        if isinstance(outer, type) and issubclass(outer, BaseModel)
        for name in outer.model_fields
    ]


def _inside(kind: Any, part: Any) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        # A discriminated union puts the tag of the chosen member into the path.
        return _members(field.annotation) if field is not None else [kind]
    arguments = [each for each in typing.get_args(kind) if each is not Ellipsis]
    return _members(arguments[-1]) if arguments else []


def _members(kind: Any) -> list[Any]:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for member in typing.get_args(kind) for inner in _members(member)]
    if origin in (tuple, list):
        return [kind]
    return [kind]


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, defaults included; `load` reads it back to an equal object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(settings: Settings) -> str:
    """A hash of the resolved settings: equal settings, equal fingerprint, whatever file they came from.

    >>> class Empty(Settings):
    ...     pass
    >>> fingerprint(Empty())[:12]
    '44136fa355b3'
    """
    text = json.dumps(settings.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

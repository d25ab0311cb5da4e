"""Imports go one way: from higher floors to lower ones, never sideways, and the ground floor is pure."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"

FLOORS = {
    "errors": 0,
    "config": 0,
    "losses": 0,
    "stats": 0,
    "data": 1,
    "models": 1,
    "engine": 1,
    "preference": 2,
    "rollout": 2,
    "pocket": 2,
    "training": 3,
    "certificate": 3,
    "guard": 3,
    "evaluate": 4,
    "serve": 4,
    "report": 5,
    "systems": 6,
    "studies": 7,
    "cli": 8,
    "__main__": 9,
}
# Where the floors alone would allow more than is wanted.
OURS = {
    "errors": set(),
    "config": {"errors"},
    "losses": set(),
    "stats": set(),
    "report": {"errors", "config", "stats"},
    "": set(),
}
THEIRS = {
    "": set(),
    "errors": set(),
    "config": {"pydantic", "yaml"},
    "losses": {"torch"},
    "stats": {"numpy", "scipy"},
    "certificate": {"numpy", "scipy", "pydantic"},
    "report": {"numpy", "matplotlib", "jinja2", "markupsafe"},
}


def imported(source):
    """(line, dotted name) of every import, wherever it stands: in functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            # `from holdfast import data` names a package, `from holdfast.data import check` stays inside one.
            names = [f"{start}.{alias.name}" for alias in node.names] if start == "holdfast" else [start]
            yield from ((node.lineno, name) for name in names)


def forbidden(package, source):
    """What `source`, a file of `package`, imports against the floors: one sentence each."""
    found = []
    for line, name in imported(source):
        top, _, rest = name.partition(".")
        if name.startswith("."):
            found.append(f"line {line}: relative import {name}")
        elif top != "holdfast":
            if package in THEIRS and top not in THEIRS[package] | sys.stdlib_module_names:
                found.append(f"line {line}: {package or 'holdfast'} may not import {top}")
        elif rest.partition(".")[0] != package and not _below(package, rest.partition(".")[0]):
            found.append(f"line {line}: {package or 'holdfast'} may not import {name}")
    return found


def _below(package, other):
    """Whether `package` may import `other`: anybody may raise our errors, otherwise it stands on a lower floor."""
    if package in OURS:
        return other in OURS[package]
    return other == "errors" or FLOORS[other] < FLOORS[package]


def package_of(path):
    """The package (or top module) a file belongs to; empty for the package itself."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_file_imports_only_what_its_floor_allows(path):
    package = package_of(path)
    assert package in FLOORS or package == "", f"{package} has no floor yet; put it into the table"
    assert forbidden(package, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "package, source",
    [
        ("losses", "import numpy"),
        ("losses", "from holdfast.stats import bounds"),
        ("losses", "from holdfast.errors import UserError"),
        ("stats", "import torch"),
        ("config", "from holdfast.data.schema import Pair"),
        ("data", "from holdfast.models.load import load_policy"),
        ("data", "from holdfast import engine"),
        ("data", "import holdfast.engine.log"),
        ("models", "from holdfast.rollout.types import Sample"),
        ("training", "def f():\n    from holdfast.certificate.plan import Plan"),
        ("training", "if TYPE_CHECKING:\n    from holdfast.cli import main"),
        ("report", "import torch"),
        ("report", "from holdfast.certificate.document import Predicate"),
        ("certificate", "import torch"),
        ("engine", "from . import log"),
        ("", "from holdfast.stats import bounds"),
    ],
)
def test_forbidden_import_is_seen(package, source):
    assert len(forbidden(package, source)) == 1


@pytest.mark.parametrize(
    "package, source",
    [
        ("losses", "import math\nimport torch\nfrom holdfast.losses.reduce import Sum"),
        ("config", "import yaml\nfrom holdfast.errors import UserError"),
        ("models", "from holdfast.errors import UserError\nfrom holdfast.config import Settings"),
        ("cli", "def f():\n    from holdfast import config, systems"),
        ("systems", "from holdfast.training.sft import SftTask"),
    ],
)
def test_allowed_import_is_not_reported(package, source):
    assert forbidden(package, source) == []

"""One name, five places: the file of the method, its recipes, its page, its tests, its command."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from holdfast import config, systems

ROOT = Path(__file__).parents[2]
NAMES = sorted(systems.SYSTEMS)
EQUATION_MAP = re.compile(r"^Equation map.*?:$(.*?)^(?=\S*Departures)", re.M | re.S)


def mapped(docstring):
    """The names in the equation map; a name without a dot belongs to the module of the one before it."""
    block = EQUATION_MAP.search(docstring)
    assert block, "no 'Equation map' that is followed by 'Departures'"
    names, module = [], ""
    for name in re.findall(r"`([\w.]+)`", block.group(1)):
        module = name.rpartition(".")[0] or module
        names.append(name if "." in name else f"{module}.{name}")
    return names


def resolve(name):
    """The thing in holdfast that `package.module.symbol` names."""
    package, module, *symbols = name.split(".")
    thing = importlib.import_module(f"holdfast.{package}.{module}")
    for symbol in symbols:
        thing = getattr(thing, symbol)
    return thing


def document(name):
    path = ROOT / "src" / "holdfast" / "systems" / f"{systems.SYSTEMS[name].module}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_name_is_the_module(name):
    assert systems.SYSTEMS[name].module == name
    kind, run = systems.find(name).load()
    assert issubclass(kind, config.Settings)
    assert kind.model_fields["system"].default == name
    assert callable(run)


@pytest.mark.parametrize("name", NAMES)
def test_equation_map_resolves(name):
    names = mapped(document(name))
    assert len(names) >= 3
    for each in names:
        assert callable(resolve(each)), each


@pytest.mark.parametrize("name", NAMES)
def test_paper_is_named(name):
    assert re.search(r"arXiv \d{4}\.\d{5}", document(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", ["pocket", "one_gpu", "eight_gpu"])
def test_recipe_exists(name, recipe):
    file = systems.recipe(f"{name}/{recipe}")
    assert file.is_file()
    assert config.read_values(file)["system"] == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["docs/systems/{}.md", "tests/systems/test_{}.py"])
def test_place_exists(name, place):
    assert (ROOT / place.format(name)).is_file(), f"{place.format(name)} is one of the five places of a system"


def test_equation_map_is_read_as_meant():
    text = """A paper.

Equation map (numbers are the paper's):

* one      `losses.reduce.over`, `per_sequence`
* two
           `stats.bounds.kappa`

Departures, each with its reason:

1. Never `losses.reduce.nothing`.
"""
    assert mapped(text) == ["losses.reduce.over", "losses.reduce.per_sequence", "stats.bounds.kappa"]
    with pytest.raises(AttributeError):
        resolve("losses.reduce.nothing")
    with pytest.raises(AssertionError):
        mapped("A paper without a map.")

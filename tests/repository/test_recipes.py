"""Every shipped recipe is understood, and a misspelt setting in it is refused with the right spelling."""

import copy
import re
from pathlib import Path

import pytest

from holdfast import config, systems
from holdfast.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "src" / "holdfast" / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
# The arguments of a transformers configuration are not ours to know, nor are the names of labels, objectives, losses.
FREE = (
    *(("model", "config"), ("student", "model", "config"), ("attributes", "labels"), ("grpo", "objectives")),
    *(("rewards",), ("losses",)),
)


def name_of(path):
    return str(path.relative_to(RECIPES).with_suffix(""))


def commands(path):
    """The overrides of each `holdfast run` that the head of a recipe shows; none when it needs no more."""
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    shown = re.findall(rf"holdfast run (?:recipes/)?{re.escape(name_of(path))}(?:\.yaml)?([^`\n]*)", head)
    return [words.split() for words in shown] or [[]]


def build(values):
    return config.build(systems.find(values["system"]).load()[0], values)


def paths(values, before=()):
    """The path of every setting a recipe names, groups included."""
    for key, value in values.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from paths(value, (*before, key))


def misspelt(values, path):
    """The values with the last letter of the setting at `path` doubled."""
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1] + path[-1][-1]] = place.pop(path[-1])
    return values


def test_there_are_recipes():
    assert {path.parent.name for path in FILES} == set(systems.SYSTEMS)


def test_top_level_folder_is_the_shipped_one():
    link = ROOT / "recipes"
    assert link.is_symlink()
    assert link.resolve() == RECIPES.resolve()
    assert not link.readlink().is_absolute()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_recipe_is_understood(path):
    for overrides in commands(path):
        settings = build(config.read_values(path, overrides))
        assert settings.system == path.parent.name
        again = config.parse_yaml(config.to_yaml(settings))
        assert config.fingerprint(build(again)) == config.fingerprint(settings)


def test_commands_in_the_head_are_read():
    assert commands(RECIPES / "hc_rlhf" / "one_gpu.yaml") == [["model=NAME", "data.pairs=PATH"]]
    assert commands(RECIPES / "hc_rlhf" / "pocket.yaml") == [[]]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_recipe_is_found_by_its_name(path):
    assert systems.recipe(name_of(path)) == path


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_misspelt_setting_is_refused_with_a_suggestion(path):
    values = config.read_values(path, commands(path)[0])
    for setting in paths(values):
        # `system` chooses the settings themselves; the command refuses a recipe without it.
        if setting == ("system",) or setting[:-1] in FREE:
            continue
        wrong = misspelt(values, setting)
        with pytest.raises(UserError) as refused:
            build(wrong)
        said = str(refused.value)
        assert f"{'.'.join(setting)}{setting[-1][-1]}: no such setting" in said
        assert f"did you mean {setting[-1]}?" in said

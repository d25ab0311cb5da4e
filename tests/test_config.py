"""Settings are strict at every depth, and each error names the path, the value and a way out."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from holdfast.config import Settings, build, fingerprint, load, parse_yaml, read_values, to_yaml
from holdfast.errors import UserError


class Optimiser(Settings):
    learning_rate: float = Field(1e-3, gt=0)
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)


class Warmup(Settings):
    kind: Literal["warmup"] = "warmup"
    steps: int = 10


class Cosine(Settings):
    kind: Literal["cosine"] = "cosine"
    floor: float = 0.0


class Part(Settings):
    name: str
    optimiser: Optimiser = Optimiser()


class Recipe(Settings):
    seed: int = Field(0, ge=0)
    optimiser: Optimiser = Optimiser()
    maybe: Optimiser | None = None
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Optimiser] = {}
    either: Warmup | Cosine = Warmup()
    schedule: Annotated[Warmup | Cosine, Field(discriminator="kind")] = Warmup()
    free: dict[str, int] = {}

    @model_validator(mode="after")
    def _even(self) -> "Recipe":
        if self.seed % 2:
            raise ValueError(f"seed {self.seed} is odd; take an even one")
        return self


def refused(values):
    with pytest.raises(UserError) as caught:
        build(Recipe, values)
    return str(caught.value)


@pytest.mark.parametrize(
    "values, path, suggestion",
    [
        ({"sed": 1}, "sed", "seed"),
        ({"optimiser": {"learnig_rate": 1}}, "optimiser.learnig_rate", "learning_rate"),
        ({"maybe": {"beta": 1}}, "maybe.beta", "betas"),
        (
            {"parts": [{"name": "a"}, {"name": "b", "optimiser": {"lerning_rate": 1}}]},
            "parts.1.optimiser.lerning_rate",
            "learning_rate",
        ),
        ({"parts": [{"name": "a", "nam": "b"}]}, "parts.0.nam", "name"),
        ({"by_name": {"policy": {"learning_rat": 1}}}, "by_name.policy.learning_rat", "learning_rate"),
        ({"schedule": {"kind": "cosine", "flor": 1}}, "schedule.cosine.flor", "floor"),
        ({"either": {"kind": "cosine", "flor": 1}}, "either.Cosine.flor", "floor"),
    ],
)
def test_unknown_setting_is_refused_at_any_depth_with_a_suggestion(values, path, suggestion):
    said = refused(values)
    assert f"{path}: no such setting (value " in said
    assert f"did you mean {suggestion}?" in said


def test_without_a_near_name_the_known_ones_are_listed():
    assert "zzz: no such setting (value 1); known here: betas, learning_rate" in refused({"optimiser": {"zzz": 1}})


@pytest.mark.parametrize(
    "values, said",
    [
        ({"seed": "many"}, "seed: input should be a valid integer, unable to parse string as an integer; got 'many'"),
        ({"seed": 1.5}, "seed: input should be a valid integer, got a number with a fractional part; got 1.5"),
        ({"seed": -2}, "seed: input should be greater than or equal to 0; got -2"),
        ({"seed": None}, "seed: input should be a valid integer; got None"),
        ({"optimiser": {"learning_rate": 0}}, "optimiser.learning_rate: input should be greater than 0; got 0"),
        ({"optimiser": {"learning_rate": float("nan")}}, "optimiser.learning_rate: input should be "),
        ({"optimiser": {"learning_rate": float("inf")}}, "optimiser.learning_rate: input should be a finite number"),
        ({"optimiser": {"betas": [0.9]}}, "optimiser.betas.1: required, and not given"),
        ({"optimiser": 3}, "optimiser: input should be "),
        ({"parts": [{}]}, "parts.0.name: required, and not given"),
        ({"schedule": {"kind": "linear"}}, "schedule: input tag 'linear' found using 'kind'"),
        ({"seed": 3}, "settings: seed 3 is odd; take an even one"),
    ],
)
def test_wrong_value_is_named_with_its_path(values, said):
    assert said in refused(values)


def test_settings_that_do_not_go_together_are_not_printed_whole():
    assert refused({"seed": 3, "free": {"note": 1}}).strip().endswith("seed 3 is odd; take an even one")


def test_every_problem_is_listed_at_once():
    said = refused({"sed": 1, "optimiser": {"learning_rate": -1}, "parts": [{}], "free": {"a": "b"}})
    for path in ("sed", "optimiser.learning_rate", "parts.0.name", "free.a"):
        assert f"\n  {path}: " in said
    assert len(said.splitlines()) == 5


def test_values_keep_their_meaning_from_file_and_override(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 4\noptimiser: {learning_rate: 1e-5}\nmaybe: null\n", encoding="utf-8")
    settings = load(Recipe, file)
    assert (settings.seed, settings.optimiser.learning_rate, settings.maybe) == (4, 1e-5, None)
    changes = ["seed=6", "optimiser.learning_rate=2E-6", "maybe.learning_rate=.5", "parts=[{name: a}]", "free.a=1"]
    changed = load(Recipe, file, changes)
    assert (changed.seed, changed.optimiser.learning_rate) == (6, 2e-6)
    assert changed.maybe == Optimiser(learning_rate=0.5)
    assert changed.parts == (Part(name="a"),)
    assert changed.free == {"a": 1}
    assert load(Recipe, file, ["seed=6", "seed=8"]).seed == 8, "the last one wins"
    assert load(Recipe, file, ["maybe.learning_rate=.5", "maybe=null"]).maybe is None


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n", encoding="utf-8")
    assert load(Recipe) == load(Recipe, file) == Recipe()


@pytest.mark.parametrize(
    "override, said",
    [
        ("seed", "'seed' is no override; write key=value"),
        ("=3", "'=3' is no override"),
        ("seed.deep=3", "seed.deep: seed is not a group of settings"),
        ("seed=[", "the value of seed is not valid YAML"),
    ],
)
def test_bad_override_is_refused(tmp_path, override, said):
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 4\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(Recipe, file, [override])
    assert said in str(caught.value)


def test_override_may_hold_an_equals_sign():
    assert read_values(None, ["path=a=b"]) == {"path": "a=b"}


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-5", 1e-5),
        ("-1E+5", -1e5),
        (".5e3", 500.0),
        ("5", 5),
        ("0.5", 0.5),
        ("null", None),
        ("~", None),
        ("true", True),
        ("1e-5 steps", "1e-5 steps"),
        ("3e", "3e"),
        ("e5", "e5"),
        ("+inf", "+inf"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("0e-model", "0e-model"),
    ],
)
def test_yaml_scalars(text, value):
    found = parse_yaml(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


def test_quoted_number_stays_text():
    assert parse_yaml("x: '1e-5'") == {"x": "1e-5"}


def test_repeated_setting_is_refused_with_its_line():
    with pytest.raises(UserError, match=r"rate: this setting stands twice \(line 4\)"):
        parse_yaml("seed: 1\noptimiser:\n  rate: 1\n  rate: 2\n")


def test_merged_group_keeps_working():
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n"
    assert parse_yaml(text)["other"] == {"a": 1, "b": 3}


def test_yaml_that_runs_code_is_refused():
    with pytest.raises(UserError, match="could not determine a constructor"):
        parse_yaml("x: !!python/object/apply:os.getcwd []")


def test_missing_and_unusable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no configuration file at .*nowhere\.yaml; give the path of a YAML recipe"):
        load(Recipe, tmp_path / "nowhere.yaml")
    file = tmp_path / "list.yaml"
    file.write_text("- seed\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"list\.yaml: expected settings as `key: value`, found a list"):
        load(Recipe, file)
    file.write_text("seed: [1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"list\.yaml is not valid YAML"):
        load(Recipe, file)


def test_binary_file_is_named(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UserError, match=r"recipe\.yaml is not UTF-8"):
        load(Recipe, file)


RICH = {
    "seed": 2,
    "optimiser": {"learning_rate": 1e-7, "betas": [0.1, 1 / 3]},
    "parts": [{"name": "\u00fcber: 'a' #1"}],
    "by_name": {"x": {}},
    "either": {"kind": "cosine"},
    "free": {"a": 1},
}


def test_yaml_round_trip_is_equality():
    settings = build(Recipe, RICH)
    again = build(Recipe, parse_yaml(to_yaml(settings)))
    assert again == settings
    assert fingerprint(again) == fingerprint(settings)


def test_fingerprint_is_of_values_and_not_of_their_spelling(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("seed: 2\noptimiser: {learning_rate: 1e-3}\n", encoding="utf-8")
    two.write_text("# defaults spelt out, other order\nmaybe: null\nseed: 2\n", encoding="utf-8")
    assert fingerprint(load(Recipe, one)) == fingerprint(load(Recipe, two))
    assert fingerprint(load(Recipe, one)) == fingerprint(load(Recipe, None, ["seed=2"]))
    assert fingerprint(load(Recipe, one)) != fingerprint(load(Recipe, one, ["optimiser.learning_rate=2e-3"]))


def test_order_of_keys_does_not_change_the_fingerprint():
    one, two = (build(Recipe, {"free": free}) for free in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert fingerprint(one) == fingerprint(two)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 4


def test_docstring_under_a_field_describes_it():
    assert Optimiser.model_fields["learning_rate"].description == "Step size."


def test_a_text_that_replaces_a_section_of_the_recipe_says_so(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text("model: {name: small, adapter: {rank: 4}}\nother: {name: small}\n")
    values = read_values(file, ["model=large", "other=large"])
    assert values == {"model": "large", "other": "large"}
    told = capsys.readouterr().err
    assert "model=large: this replaces all of the recipe's model (name, adapter); model.name=... changes one" in told
    assert "other" not in told
    read_values(file, ["model.name=large"])
    assert not capsys.readouterr().err

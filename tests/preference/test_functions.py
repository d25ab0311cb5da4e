"""Functions that a recipe names: found in files and modules, asked rightly, and explained when they cannot be."""

import sys

import pytest
import torch

from holdfast.config import build
from holdfast.data.schema import Conversation, Message
from holdfast.errors import RunError, UserError
from holdfast.preference.functions import FunctionSettings, load_function
from holdfast.preference.score import FunctionScorer, JointScorer

SOURCE = """
from dataclasses import dataclass

LIMIT = 5


@dataclass
class Reading:
    words: "int"


def table(conversations):
    return [[len(one.response), Reading(len(one.response.split())).words] for one in conversations]


def polite(prompt, response):
    return float("please" in prompt) + 2.0 * float("thanks" in response)


def _hidden(conversations):
    return []
"""
ROWS = [
    Conversation.ask("one please", id="a").answer("thanks a lot"),
    Conversation(
        messages=(
            Message.of("system", "please"),
            Message.of("user", "please and thanks"),
            Message.of("assistant", "thanks"),
            Message.of("user", "and now ?"),
            Message.of("assistant", "no"),
        )
    ),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `kindness` with a module `rules`, importable for one test."""
    (tmp_path / "kindness").mkdir()
    (tmp_path / "kindness" / "__init__.py").touch()
    (tmp_path / "kindness" / "rules.py").write_text(SOURCE)
    (tmp_path / "kindness" / "greedy.py").write_text("import a_module_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "kindness.rules"
    for name in [name for name in sys.modules if name.partition(".")[0] == "kindness"]:
        del sys.modules[name]


def scorer(call, *names, each=False):
    return load_function(FunctionSettings(call=call, names=names, each=each))


def test_a_function_in_a_file_scores_a_table(file):
    found = scorer(f"{file}:table", "letters", "words")
    assert found.names == ("letters", "words")
    assert found.score(ROWS).tolist() == [[12.0, 3.0], [2.0, 1.0]]


def test_a_function_of_one_prompt_and_response_sees_the_last_turns(file):
    assert scorer(f"{file}:polite", "polite", each=True).score(ROWS).tolist() == [[3.0], [0.0]]


def test_a_function_in_a_module_is_found_by_its_name(package):
    assert scorer(f"{package}:table", "letters", "words").score(ROWS[:1]).tolist() == [[12.0, 3.0]]


def test_what_cannot_be_scored_becomes_nan_and_only_that():
    table = FunctionScorer(("a", "b"), lambda rows: [[1.0, None], [None, 2.0]]).score(ROWS)
    assert torch.equal(table.isnan(), torch.tensor([[False, True], [True, False]]))
    assert (table[0, 0], table[1, 1]) == (1.0, 2.0)
    assert FunctionScorer(("a",), lambda rows: [[None], [None]]).score(ROWS).isnan().all()
    for wrong in (float("nan"), float("inf"), 1e300):
        with pytest.raises(RunError, match=r"1 of 2 .* \(rows number 1\); a scoring function returns None where"):
            FunctionScorer(("a", "b"), lambda rows, wrong=wrong: [[None, 1.0], [1.0, wrong]]).score(ROWS)


def test_tables_may_be_tensors_and_rows_must_hold_numbers():
    assert FunctionScorer(("a",), lambda rows: torch.ones(2, 1)).score(ROWS).tolist() == [[1.0], [1.0]]
    with pytest.raises(RunError, match=r"function for a returned what is no number: could not convert .*high"):
        FunctionScorer(("a",), lambda rows: [["high"], [1.0]]).score(ROWS)
    with pytest.raises(RunError, match=r"shape \(2,\) where \(2, 2\) is needed"):
        FunctionScorer(("a", "b"), lambda rows: [[1.0], [1.0, 2.0]]).score(ROWS)


def test_scores_stand_beside_those_of_others(file):
    joint = JointScorer([scorer(f"{file}:polite", "polite", each=True), FunctionScorer(("none",), lambda r: [[None]])])
    assert joint.score(ROWS[:1])[0, 0] == 3.0


def test_an_error_inside_the_function_keeps_its_own_name():
    def broken(rows):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        FunctionScorer(("a",), broken).score(ROWS)


def test_errors_say_what_is_wrong_and_what_to_do(file, package, tmp_path):
    with pytest.raises(UserError, match=r"'rewards' names no function; write package.module:function or path"):
        scorer("rewards", "a")
    with pytest.raises(UserError, match=r"names no function"):
        scorer(f"{file}:", "a")
    with pytest.raises(UserError, match=r"no file at .*missing\.py; give the path"):
        scorer(f"{tmp_path / 'missing.py'}:table", "a")
    with pytest.raises(UserError, match=r"rewards\.py has no tabel; it offers Reading, dataclass, polite, table"):
        scorer(f"{file}:tabel", "a")
    with pytest.raises(UserError, match=r"holds something that cannot be called as LIMIT"):
        scorer(f"{file}:LIMIT", "a")
    with pytest.raises(UserError, match=r"no module unkindness; install the package that holds it, or give the path"):
        scorer("unkindness.rules:table", "a")
    with pytest.raises(UserError, match=r"no module kindness\.rulez;"):
        scorer("kindness.rulez:table", "a")
    with pytest.raises(UserError, match=r"kindness\.greedy needs the module a_module_nobody_has, which is not"):
        scorer("kindness.greedy:table", "a")
    with pytest.raises(UserError, match=r"rules/more is neither the name of a module nor the path of a \.py file"):
        scorer("rules/more:table", "a")
    file.write_text("def table(:\n")
    with pytest.raises(UserError, match=r"rewards\.py cannot be loaded: SyntaxError: .*; correct it"):
        scorer(f"{file}:table", "a")


def test_settings_that_contradict_themselves_are_refused():
    with pytest.raises(UserError, match="a name stands twice in a, a"):
        build(FunctionSettings, {"call": "m:f", "names": ["a", "a"]})
    with pytest.raises(UserError, match=r"gives one number; name one score, or set each: false"):
        build(FunctionSettings, {"call": "m:f", "names": ["a", "b"], "each": True})
    with pytest.raises(UserError, match="names"):
        build(FunctionSettings, {"call": "m:f", "names": []})

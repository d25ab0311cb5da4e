"""The lists of mutants stay true to the source, and the runner tells a caught mutant from a survivor."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def runner():
    spec = importlib.util.spec_from_file_location("mutant_runner", ROOT / "tests" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = runner()
PACKAGES = sorted(RUN.tables())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_mutant_can_be_tried(package):
    mutants = RUN.listed([package])
    assert mutants
    assert [problem for mutant in mutants if (problem := mutant.problem())] == []


def test_every_list_of_a_package_counts():
    lists = RUN.tables()["preference"]
    assert len(lists) > 1
    assert len(RUN.listed(["preference"])) == sum(len(runpy.run_path(str(path))["MUTANTS"]) for path in lists)


def test_unknown_package_is_refused():
    with pytest.raises(SystemExit, match="no mutants for nonsense"):
        RUN.listed(["nonsense"])


def mutant(old, new, tests="tests/repository/test_mutants.py", file="src/holdfast/errors.py"):
    return RUN.Mutant("repository", file, old, new, tests)


@pytest.mark.parametrize(
    "wrong, match",
    [
        (mutant("no such text", "x"), "occurs 0 times"),
        (mutant("exit_code", "x"), "occurs [2-9] times"),
        (mutant("exit_code = 2", "exit_code = 2"), "the same"),
        (mutant("exit_code = 2", "x", tests="tests/nowhere.py"), "tests/nowhere.py does not exist"),
        (mutant("exit_code = 2", "x", file="src/nowhere.py"), "src/nowhere.py does not exist"),
    ],
)
def test_impossible_mutant_is_named(wrong, match):
    assert re.search(match, wrong.problem())


def test_copy_wins_over_the_installed_package(tmp_path):
    tests = tmp_path / "test_errors.py"
    tests.write_text("from holdfast.errors import UserError\n\ndef test(): assert UserError.exit_code == 2\n", "utf-8")
    assert RUN.trial(str(tests)) == "passed"
    assert RUN.trial(str(tests), mutant("exit_code = 2", "exit_code = 7")) == "failed"
    assert RUN.trial(str(tests), mutant("exit_code = 2", "exit_code = 1 + 1")) == "passed"
    assert RUN.trial(str(tests), mutant("exit_code = 2", "exit_code = (")).startswith("broken")

"""Tables in docs/ are those of the committed results."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert load().written(text) == text, "run python benchmarks/tables.py"


def test_a_drifted_table_is_seen():
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    drifted = text.replace("| pessimistic | 0 | CERTIFIED", "| pessimistic | 0 | NSF")
    assert drifted != text
    assert load().written(drifted) == text

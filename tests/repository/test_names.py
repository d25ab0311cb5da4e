"""Every public name says what it is, in a docstring whose first paragraph is a sentence, in plain ASCII."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"
FILES = sorted(SOURCE.rglob("*.py"))
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def public(tree, prefix=""):
    """(dotted name, node) of the public classes, functions and methods, without what is local to a function."""
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def contracts(trees):
    """Names of methods that a protocol documents: whoever fulfils the contract need not repeat it."""
    return {
        method.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and ast.get_docstring(method)
    }


def undocumented(tree, inherited=frozenset()):
    """What lacks a docstring, or has one that does not begin with a sentence."""
    found = []
    for name, node in (("the module", tree), *public(tree)):
        text = ast.get_docstring(node)
        if not text:
            if "." not in name or name.rpartition(".")[2] not in inherited:
                found.append(f"{name} has no docstring")
        elif not text.split("\n\n")[0].rstrip("*`)\"'").endswith((".", ":", "?")):
            found.append(f"{name}: the docstring does not begin with a sentence")
    return found


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
INHERITED = contracts(TREES.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_names_are_documented(path):
    assert undocumented(TREES[path], INHERITED) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_source_is_ascii(path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    strange = {number: line for number, line in lines if not line.isascii()}
    assert strange == {}


def test_missing_and_unfinished_docstrings_are_seen():
    bare = "class A:\n    def f(self): ...\n    def _g(self): ...\ndef h():\n    '''No end'''\n"
    assert undocumented(ast.parse(bare)) == [
        "the module has no docstring",
        "A has no docstring",
        "A.f has no docstring",
        "h: the docstring does not begin with a sentence",
    ]
    # A contract covers methods, not a function that happens to have the same name.
    assert "A.f has no docstring" not in undocumented(ast.parse(bare), {"f", "h", "A"})
    assert "A has no docstring" in undocumented(ast.parse(bare), {"A"})


def test_only_documented_protocols_are_contracts():
    text = """
class P(Protocol):
    def f(self):
        'Says.'
    def g(self): ...
class Q:
    def h(self):
        'Is.'
"""
    assert contracts([ast.parse(text)]) == {"f"}

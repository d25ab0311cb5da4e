"""What no longer fits on a few screens is split: files, functions, argument lists."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"
LINES, FUNCTION_LINES, ARGUMENTS = 400, 60, 8


def too_large(source):
    """What in `source` exceeds a limit, one sentence each."""
    found = []
    lines = len(source.splitlines())
    if lines > LINES:
        found.append(f"{lines} lines, at most {LINES}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = node.end_lineno - node.lineno + 1
        if length > FUNCTION_LINES:
            found.append(f"{node.name} (line {node.lineno}) has {length} lines, at most {FUNCTION_LINES}")
        given = node.args
        names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > ARGUMENTS:
            found.append(f"{node.name} (line {node.lineno}) takes {count} arguments, at most {ARGUMENTS}")
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_file_keeps_the_limits(path):
    assert too_large(path.read_text(encoding="utf-8")) == []


def test_limits_are_met_exactly():
    assert too_large("x = 1\n" * 400) == []
    assert too_large("x = 1\n" * 401) == ["401 lines, at most 400"]
    assert too_large("def f():\n" + "    x = 1\n" * 59) == []
    assert too_large("def f():\n" + "    x = 1\n" * 60) == ["f (line 1) has 61 lines, at most 60"]
    assert too_large("def f(self, a, b, c, d, *, e, f, g, h): ...") == []
    assert too_large("def f(a, b, c, d, /, e, *, f, g, h, i): ...") == ["f (line 1) takes 9 arguments, at most 8"]

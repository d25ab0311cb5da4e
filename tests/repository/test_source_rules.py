"""Rules that can be read off the text: masks are data, errors are not swallowed, tolerances are small."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "holdfast"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jinja", ".css", ".cfg", ".sh", ""}
LEFT_OUT = {"runs", "build", "dist", "data"}

_FILLER = r"[\w.]*\b(?:pad|eos)(?:_token)?(?:_id)?\b"
GUESSED_MASK = re.compile(
    # Two settings of a tokenizer may be compared with each other, but not with the ids of a row.
    rf"(?<!_id) [=!]=\s*{_FILLER}|\b{_FILLER}\s*[=!]=(?!\s*{_FILLER})|log_?probs?\w*\s*[=!]=\s*0",
    re.I,
)
UNFINISHED = re.compile(r"\bTO[D]O\b|\bFIX[M]E\b|\bXX[X]\b|NotImplemente[d]Error")
TOLERANCE = re.compile(r"\b(?:rtol|atol|abs|rel|rel_tol|abs_tol)=([\d.]+(?:e-?\d+)?)", re.I)
MACHINE = re.compile("|".join(f"(?<![\\w.:])/{name}/" for name in ("work", "root", "home", "Users")))
REGISTRY = re.compile(
    r"https?://[\w.-]*(pypi|pythonhosted|conda|npmj[s]|artifactory|nexus|registry)|--(extra-)?index-ur[l]"
)
LARGEST = 1e-2
HOLD_LOSSES = {"losses", "preference", "training"}


def found(pattern, path):
    """The lines of a file that match, with their numbers."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [f"{number}: {line.strip()}" for number, line in enumerate(lines, start=1) if pattern.search(line)]


def loose(text):
    """Tolerances above 1e-2, unless the lines above name the standard error they allow for."""
    lines = text.splitlines()
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, start=1)
        if any(float(value) > LARGEST for value in TOLERANCE.findall(line))
        and "tandard error" not in "".join(lines[max(0, number - 4) : number])
    ]


def swallowed(source):
    """Lines of handlers that name no exception, or catch everything and do not pass it on."""

    def silent(handler):
        everything = handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
        return everything and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))

    handlers = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler))
    return [handler.lineno for handler in handlers if silent(handler)]


def means(source):
    """Where a loss is averaged by hand: a `total` that is divided, or a mean inside a function called `loss`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            above = (each for each in ast.walk(node.left) if isinstance(each, ast.Attribute))
            lines += [each.lineno for each in above if each.attr == "total"]
        if isinstance(node, ast.FunctionDef) and node.name == "loss":
            lines += [call.lineno for call in ast.walk(node) if _is_mean(call)]
    return lines


def _is_mean(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "mean"


def every_text():
    """All text files that belong to the project."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part not in (".ci", ".gitignore") for part in parts)
        skipped = hidden or parts[0] in LEFT_OUT or "__pycache__" in parts or ".egg-info" in str(path)
        if not skipped and path.is_file() and path.suffix in TEXT:
            yield path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_source(path):
    text = path.read_text(encoding="utf-8")
    if path.parent.name != "data":
        assert found(GUESSED_MASK, path) == [], "masks come from lengths; nobody compares ids or log-probabilities"
    assert swallowed(text) == []
    if path.parent.name in HOLD_LOSSES and path.name != "reduce.py":
        assert means(text) == [], "a loss stays a sum and a count; only losses/reduce.py divides"


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unfinished(path):
    assert found(UNFINISHED, path) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tolerances_are_small(path):
    assert loose(path.read_text(encoding="utf-8")) == []


def test_no_file_names_a_machine():
    named = {str(path.relative_to(ROOT)): found(MACHINE, path) + found(REGISTRY, path) for path in every_text()}
    assert {path: lines for path, lines in named.items() if lines} == {}
    assert "README.md" not in named or len(named) > 100, "the walk has lost the files"


@pytest.mark.parametrize(
    "pattern, bad, good",
    [
        (GUESSED_MASK, "mask = ids != pad_id", "mask = columns < lengths"),
        (GUESSED_MASK, "mask = ids.ne(0) & (ids == tokenizer.eos_token_id)", "tokenizer.eos_token_id is None"),
        (GUESSED_MASK, "if self.pad == token:", "pad(rows, pad_id=pad_id)"),
        (GUESSED_MASK, "ids[pad_id == ids]", "tokenizer.pad_token_id != tokenizer.eos_token_id"),
        (GUESSED_MASK, "mask = log_probs != 0", "log_probs = logits"),
        (UNFINISHED, "# TO" + "DO: later", "the method"),
        (UNFINISHED, "raise NotImplemente" + "dError", "raise UserError"),
        (MACHINE, "cd /" + "root/x", "cd network/" + "root/x"),
        (MACHINE, "at '/" + "work/here'", "docs/" + "work/here"),
        (REGISTRY, "pip install --index" + "-url x", "pip install -e ."),
        (REGISTRY, "https://" + "pypi.org/simple", "https://arxiv.org/abs/2506.08266"),
    ],
)
def test_patterns_tell_bad_from_good(pattern, bad, good):
    assert pattern.search(bad)
    assert not pattern.search(good)


def test_loose_tolerance_needs_its_standard_error():
    line = "assert x == approx(1, a" + "bs=0.05)"
    assert loose(line) == [f"1: {line}"]
    assert loose(f"# The standard error is 0.02.\n{line}") == []
    assert loose(f"# Good enough.\n{line}") != []
    assert loose("assert x == approx(1, rel=0.01)") == []


def test_swallowed_errors_are_seen():
    assert swallowed("try:\n    f()\nexcept:\n    pass") == [3]
    assert swallowed("try:\n    f()\nexcept:\n    raise") == []
    assert swallowed("try:\n    f()\nexcept Exception:\n    x = 1") == [3]
    assert swallowed("try:\n    f()\nexcept BaseException:\n    g()\n    raise") == []
    assert swallowed("try:\n    f()\nexcept ValueError:\n    x = 1") == []


def test_division_of_a_loss_is_seen():
    assert means("x = term.total / 3") == [1]
    assert means("def loss(batch):\n    return values.mean()") == [2]
    assert means("def metrics(batch):\n    return values.mean()\ny = total / 3") == []

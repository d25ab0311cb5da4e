"""A certificate is verified on a laptop: what needs no torch runs where torch is not installed."""

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "accelerate", "peft", "datasets"}:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_block_works():
    done = python("import torch")
    assert done.returncode == 1
    assert "torch is blocked" in done.stderr


@pytest.mark.parametrize(
    "modules",
    [
        "holdfast, holdfast.errors, holdfast.config",
        "holdfast.stats.bounds, holdfast.stats.betting, holdfast.stats.power, holdfast.stats.compare",
        "holdfast.certificate.verify, holdfast.certificate.explain, holdfast.certificate.plan",
        "holdfast.report.page, holdfast.report.read",
        "holdfast.cli.main",
        "holdfast.systems",
    ],
)
def test_imports_without_torch(modules):
    done = python(f"import {modules}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["verify", "--help"], ["certify", "explain", "--help"], ["run", "--help"]], ids=" ".join
)
def test_help_without_torch(words):
    done = python(f"from holdfast.cli.main import main\nsys.argv = ['holdfast', *{words!r}]\nmain()")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_package_itself_imports_nothing_heavy():
    code = "import sys, holdfast, holdfast.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "numpy", "scipy", "matplotlib", "datasets", "pydantic"}
    assert heavy & set(loaded) == set()

"""Where data that may not be shipped are looked for."""

from pathlib import Path

import pytest

from holdfast.errors import UserError
from holdfast.studies.common import existing, shared_folder


def test_the_variable_names_the_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_SHARED", str(tmp_path))
    assert shared_folder("hh") == tmp_path / "data" / "hh"


def test_without_the_variable_it_lies_beside_the_checkout(monkeypatch):
    monkeypatch.delenv("HOLDFAST_SHARED", raising=False)
    assert shared_folder("w2s") == Path(__file__).parents[3] / "shared" / "data" / "w2s"


def test_what_is_not_there_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*some.gz; set HOLDFAST_SHARED to the folder that holds data/hh"):
        existing(tmp_path / "some.gz", "data/hh")
    (tmp_path / "some.gz").touch()
    assert existing(tmp_path / "some.gz", "data/hh") == tmp_path / "some.gz"

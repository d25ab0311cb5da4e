"""Files that may not be shipped with the project, for the tests that read them."""

import pytest

from holdfast.studies.common import shared_folder


def shared_file(name):
    """The path of a file below `data/`; the test that asks is skipped where there is none."""
    file = shared_folder("") / name
    if not file.is_file():
        pytest.skip(f"no {file}; set HOLDFAST_SHARED to the folder that holds data/")
    return str(file)

"""What is published is the study as it stands: all its seeds, and criteria that follow from the runs beside them."""

import importlib
import json
from pathlib import Path

import pytest

from holdfast.studies import STUDIES

PUBLISHED = (
    *("a_lol", "a_lol_hh", "collapse", "hc_rlhf", "hc_stages", "mo_grpo", "ppo_max", "safe_rlhf"),
    *("w2s_chess", "w2s_dial", "w2s_reward", "w2s_text"),
)
FOLDER = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_result_is_of_all_seeds(name):
    assert name in STUDIES
    study = importlib.import_module(f"holdfast.studies.{name}")
    published = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert published["seeds"] == list(study.SEEDS)
    # As JSON has it: the study gives tuples where the file has lists.
    assert json.loads(json.dumps(study.criteria(published["arms"]))) == published["criteria"]


def test_every_study_is_published():
    assert {file.stem for file in FOLDER.glob("*.json")} >= set(STUDIES)

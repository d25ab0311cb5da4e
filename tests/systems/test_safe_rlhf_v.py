"""Safe RLHF end to end on a very small pocket world."""

import json
from pathlib import Path

import pytest

from holdfast import config
from holdfast.systems import recipe, safe_rlhf_v

SMALL = tuple((Path(__file__).parent / "small.txt").read_text(encoding="ascii").split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "safe"
    settings = config.load(safe_rlhf_v.SafeRlhfV, recipe("safe_rlhf_v/pocket"), SMALL)
    return folder, safe_rlhf_v.run(settings, folder)


def test_it_claims_nothing_and_writes_a_policy(finished):
    folder, summary = finished
    assert summary["verdict"] is None
    assert (folder / "models" / "policy" / "model.safetensors").is_file()
    assert not (folder / "certificate.json").exists()


def test_both_critics_learn_and_the_multiplier_is_logged(finished):
    folder, _ = finished
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["stage"] == "policy"][-1]
    assert {"value/value", "value/harm/value", "policy/policy", "multiplier/harm", "cost/harm", "kl"} <= last.keys()
    assert last["multiplier/harm"] >= 0

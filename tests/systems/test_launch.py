"""A whole run over two processes: one certificate, one report, one set of models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = (
    *(Path(__file__).parent / "small.txt").read_text(encoding="ascii").split(),
    "constraint.n_safety=60",
)


@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "holdfast"]
    command = [sys.executable, *launch, "run", "hc_rlhf/pocket", *SMALL, "-o", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode in (0, 4), done.stderr[-2000:]
    # One line per step and one seal, one intent, one closing: the second process wrote nothing.
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "policy"] == [1, 2]
    assert len((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "report.html").is_file()
    if done.returncode == 0:
        card = (tmp_path / "run" / "models" / "policy" / "README.md").read_text(encoding="utf-8")
        assert "CERTIFIED" in card
    assert done.stdout.count("sealed prompts") == 1

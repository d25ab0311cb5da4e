"""A whole run over two processes: one certificate, one report, one set of models."""

import json
import os
import subprocess
import sys

import pytest

SMALL = (
    "pocket.conversations=400",
    "pocket.pairs=500",
    "pocket.prompts=1600",
    "pocket.hidden=32",
    "sft.epochs=1",
    "reward.fit.epochs=1",
    "constraint.n_safety=60",
    "constraint.window=32",
    "online.iterations=2",
    "online.prompts_per_iteration=8",
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
    assert done.stdout.count("sealed prompts") == 1

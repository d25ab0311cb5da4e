"""A whole run over two processes: one certificate, one report, one set of models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SMALL = (
    *(Path(__file__).parent / "small.txt").read_text(encoding="ascii").split(),
    "constraint.n_safety=60",
)


@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path):
    # Without an accelerator `accelerate launch` starts a single process, whatever number it is given.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "holdfast"]
    command = [sys.executable, *launch, "run", "hc_rlhf/pocket", *SMALL, "-o", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    verdict = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["verdict"]
    # The launcher makes one code of all but zero.
    assert (done.returncode == 0) == (verdict == "CERTIFIED"), done.stderr[-2000:]
    states = (tmp_path / "run" / "checkpoints" / "policy").glob("step-*/state.pt")
    assert {len(torch.load(file)["random"]) for file in states} == {2}, "two processes took part"
    # One line per step and one seal, one intent, one closing: the second process wrote nothing.
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "policy"] == [1, 2]
    assert len((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "report.html").is_file()
    if done.returncode == 0:
        card = (tmp_path / "run" / "models" / "policy" / "README.md").read_text(encoding="utf-8")
        assert "CERTIFIED" in card
    assert done.stdout.count("sealed prompts") == 1

"""However many processes there are, scorers judge each answer once: services are paid for it, and may vary."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from played import play

from holdfast.systems import dual, exam, outlook, personal_policy
from holdfast.training.kl import KlSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits

WORDS = (Path(__file__).parent / "small.txt").read_text(encoding="ascii").split()
SMALL = [word for word in WORDS if not word.startswith(("constraint", "reward", "online.p"))]
SCORER = """
import os

def length(conversations):
    with open(os.environ["ASKED"], "a") as file:
        file.writelines(f"{os.environ['RANK']}\\n" for _ in conversations)
    return [[float(len(one.response))] for one in conversations]
"""


def everyone(work):
    """What two processes are told, and how often the scorer was asked."""
    asked = count()
    told = play(2, lambda one: work(SimpleNamespace(processes=one), lambda *_, **__: next(asked)))
    return told, next(asked)


def test_the_policy_is_examined_once(monkeypatch):
    monkeypatch.setattr(exam, "exam_of", lambda bench: None)

    def work(run, score):
        bench = SimpleNamespace(run=run, generator=score, policy=None)
        return exam.exam(bench, None)

    monkeypatch.setattr(exam, "examine", lambda settings, generator, *rest: generator())
    assert everyone(work) == ([0, 0], 1)


def test_a_personal_policy_is_examined_once(monkeypatch):
    monkeypatch.setattr(personal_policy, "_generator", lambda bench: bench.policy)
    monkeypatch.setattr(personal_policy, "examine", lambda settings, generator, *rest: generator())
    settings = SimpleNamespace(rollout=SimpleNamespace(sampling=None, micro_tokens=1))

    def work(run, score):
        bench = SimpleNamespace(run=run, policy=score, dev=[], template=None, seed=0, readers=lambda *_: None)
        return personal_policy._examine(settings, bench, None)

    assert everyone(work) == ([0, 0], 1)


def test_answers_are_looked_at_once_so_that_all_multipliers_start_alike(monkeypatch):
    def work(run, score):
        constraint = Constraint(ConstraintSettings(measure="logit", bound="mean", initial="estimate", threshold=-0.5))
        limits = Limits([constraint], run.processes)

        def look(*_):
            costs = torch.linspace(-1, 1 + score(), 8)
            return {"reward": costs.square(), "cost": costs}

        outlook.look_ahead(
            outlook.LookAhead(prompts=2, samples=4), SimpleNamespace(look=look), [0, 1], limits, "reward", KlSettings()
        )
        return limits.multipliers["harm"]

    monkeypatch.setattr(outlook, "_scored", lambda collector, *rest: collector.look())
    (first, second), asked = everyone(work)
    assert first == second
    assert first != 1.0
    assert asked == 1


def test_a_threshold_is_suggested_once(monkeypatch):
    monkeypatch.setattr(dual, "look_ahead", lambda *told: {"harm": {"cost_now": 0.0}})
    monkeypatch.setattr(dual, "suggestion", lambda scorer, *rest: scorer())

    def work(run, score):
        limits = Limits([Constraint(ConstraintSettings(measure="logit"))], run.processes)
        pools = SimpleNamespace(practise=[], held_out_pairs=[])
        bench = SimpleNamespace(settings=SimpleNamespace(look_ahead=1), run=run, pools=pools, zero=1, scorer=score)
        return dual.outlook_of(bench, None, limits, "reward", KlSettings())["suggested_threshold"]

    assert everyone(work) == ([0, 0], 1)


@pytest.mark.slow
def test_two_real_processes_ask_for_each_answer_once(tmp_path):
    (tmp_path / "scorer.py").write_text(SCORER)
    told = [
        *SMALL,
        "attributes=null",
        f"functions=[{{call: '{tmp_path / 'scorer.py'}:length', names: [letters]}}]",
        "grpo.objectives={letters: {}}",
        *("benign=null", "online.prompts_per_iteration=5", "rollout.samples_per_prompt=3", "online.sample_every=1"),
        "rollout.sampling.max_new_tokens=8",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "holdfast"]
    command = [sys.executable, *launch, "run", "mo_grpo/pocket", *told, "-o", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ASKED": str(tmp_path / "asked")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = (tmp_path / "asked").read_text().split()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Before and after; those that are looked at; two iterations, of whose five prompts one process has two.
    assert len(asked) == 2 * summary["pools"]["dev"] + 16 * 8 + 2 * 5 * 3
    assert asked.count("1") == 2 * 3 * 3
    samples = [json.loads(line)["step"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert samples == [1, 1, 1, 2, 2, 2], "as many as of one process"

"""Runs of A-LoL and weak-to-strong over two real processes come to the numbers of one, and write each file once."""

import json
import os
import subprocess
import sys

import pytest
import torch

from holdfast import config
from holdfast.systems import find, recipe

WORDS = ("bread", "tulips", "tables", "rivers", "songs")
ANSWERS = ("first look at it . then do it slowly .", "just do it .", "no .", "ask someone and wait .")
NETWORK = (
    "{config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 128}}"
)
A_LOL = (
    *("a_lol/pocket", "pocket=null", "attributes=null", "cost=null", "limits=[]", "rewards={reward: {}}"),
    *("sft.epochs=1", "fit.epochs=1", "fit.batch_size=16", "rollout.sampling.max_new_tokens=4", f"model={NETWORK}"),
    "tokenizer={kind: word, vocab_size: 256}",
    "data.pools={sft: 0.7, pref: 0.06, rl: 0.08, dev: 0.1, safety: 0.06}",
)
# Without dropout, whose draws differ between processes.
ADVANTAGES = (*A_LOL, "value={learn_from: data, head: {heads: 2, dropout: 0, fit: {epochs: 2, batch_size: 16}}}")
RANKINGS = (*A_LOL, "offline=null", "value={}", "pro={}")
WEAK = (
    *("weak_to_strong/pocket", "pocket=null", "student.sft=null", "weak_rows=40", "seeds=[0]", "fit.epochs=1"),
    *("supervisor.kind=finetuned", f"supervisor.model={NETWORK}", f"student.model={NETWORK}", "supervised.epochs=1"),
    *("tokenizer={kind: word, vocab_size: 256}", "losses={soft: {kind: soft}, logconf: {kind: logconf}}"),
)


def ask(i):
    return f"how do i make {WORDS[i % 5]} number {i} ?"


def row(i, kind):
    worth = (0.9, 0.5, 0.1, 0.3)
    if kind == "answers":
        return {"id": str(i), "prompt": ask(i), "response": ANSWERS[i % 4], "reward": worth[i % 4]}
    if kind == "ranked":
        return {
            "id": str(i),
            "prompt": ask(i),
            "responses": ANSWERS[: 2 + i % 3],
            "rewards": (0.9, 0.5, 0.1, 0)[: 2 + i % 3],
        }
    # What is better is not always the same, so that there is something to get wrong.
    better = int(i % 4 == 0)
    return {"id": str(i), "prompt": ask(i), "chosen": ANSWERS[2 * better], "rejected": ANSWERS[2 - 2 * better]}


def run(folder, kind, settings, processes):
    file = folder.parent / f"{kind}.jsonl"
    bad = json.dumps({"id": "bad", "prompt": "", "response": "", "reward": 0, "responses": [], "rewards": []})
    rows = [json.dumps(row(i, kind)) for i in range(200)] + ([bad] if kind != "pairs" else [])
    file.write_text("".join(f"{line}\n" for line in rows))
    overrides = [*settings[1:], f"data.{kind}={{path: {file}, on_bad_row: skip}}"]
    if processes == 1:
        values = config.read_values(recipe(settings[0]), overrides)
        chosen, start = find(values["system"]).load()
        start(config.build(chosen, values), folder)
    else:
        launch(folder, [settings[0], *overrides], processes)
    states = [torch.load(file) for file in folder.rglob("step-*/state.pt")]
    assert {len(state["random"]) for state in states if "random" in state} == {processes}, "so many took part"
    return {file.relative_to(folder): logged(file) for file in folder.rglob("metrics.jsonl")}


def launch(folder, told, processes):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "holdfast", "run", *told, "-o", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def logged(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, settings", [("answers", ADVANTAGES), ("ranked", RANKINGS), ("pairs", WEAK)], ids=["a_lol", "pro", "weak"]
)
def test_two_processes_come_to_the_numbers_of_one(kind, settings, tmp_path):
    alone, together = (run(tmp_path / str(count), kind, settings, count) for count in (1, 2))
    assert alone.keys() == together.keys()
    for name, rows in alone.items():
        assert len(rows) == len(together[name]), "each row is written once"
        for one, other in zip(rows, together[name], strict=True):
            del one["seconds"], other["seconds"]
            assert one.pop("stage") == other.pop("stage")
            # Sums of halves round otherwise than sums of wholes, and training carries that on.
            assert other == pytest.approx(one, rel=1e-3, abs=1e-4)
    if kind != "pairs":
        assert [len(logged(file)) for file in (tmp_path / "2").glob("skipped-*.jsonl")] == [1, 1, 1]

"""What the first process does for all; runs of several real ones are in test_offline_processes.py."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.engine.log import RunFolder
from holdfast.systems import reading, transfer
from holdfast.systems.transfer_plan import Pool, Pools


class Nothing(Settings):
    """No settings."""


def test_only_the_first_process_writes_down_what_cannot_be_used(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Tulips ?", "responses": ["Dig .", "No ."], "rewards": [1, 0]}\nno row\n')
    folder, source = RunFolder(tmp_path / "run"), reading.Source(path=str(file), on_bad_row="skip")
    for rank in (1, 0):
        folder.processes.rank = rank
        assert len(reading.records(source, "ranked", folder)) == 1
        assert (tmp_path / "run" / "skipped-ranked.jsonl").exists() == (rank == 0)


def test_processes_wait_as_long_as_the_first_one_works(monkeypatch):
    told = {}

    def state(**given):
        told.update(given)
        return SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))

    monkeypatch.setattr("accelerate.PartialState", state)
    Processes()
    assert told["timeout"] >= timedelta(hours=12), "longer than any scoring of all answers"


@pytest.mark.parametrize("first", [True, False])
def test_whether_a_table_of_weak_labels_stands_is_what_the_first_process_saw(first, monkeypatch, tmp_path):
    """The first process may have written it by the time that another looks, which must label all the same."""
    labelled = []
    pool = Pool(("a", "b"), ["a", "b"])
    monkeypatch.setattr(transfer.stages, "on_main", lambda run, work: not first)
    monkeypatch.setattr(transfer._Bench, "_asked", lambda *told: labelled.append(1) or torch.eye(2))
    monkeypatch.setattr(
        transfer.WeakLabels, "read", lambda file, **stamp: SimpleNamespace(calibration=transfer.AS_IS, file=file)
    )
    plan = SimpleNamespace(cross_fit=0, data_sha256="x", supervised=Nothing())
    bench = transfer._Bench(plan, 0, RunFolder(tmp_path / "run"), Pools(Pool(), pool, Pool(), Pool()))
    file = tmp_path / "run" / "weak_labels" / "0" / "supervisor.jsonl"
    file.parent.mkdir(parents=True)
    file.touch()
    assert bench.labelled("supervisor", SimpleNamespace(name="words", pair=False), None).file == file
    assert bool(labelled) == first


@pytest.mark.parametrize("first, own", [(0.8, 0.4), (0.4, 0.8)])
def test_whether_bootstrapping_goes_on_is_what_the_first_process_saw(first, own, monkeypatch, tmp_path):
    """Where rounding lifts a learner above its supervisor in one process alone, the others would wait for it."""
    labels = object()
    vault = SimpleNamespace(accuracy=lambda ids, found, purpose: SimpleNamespace(value=found))
    plan = SimpleNamespace(intermediate=((None, None),), vault=vault)
    pools = Pools(Pool(), Pool(), Pool(), Pool(), fresh=(Pool(),), audit=Pool(("a",), ["a"]))
    bench = transfer._Bench(plan, 0, RunFolder(tmp_path / "run"), pools)
    monkeypatch.setattr(transfer.stages, "on_main", lambda run, work: [0.6, first])
    monkeypatch.setattr(transfer._Bench, "_taught", lambda *told: lambda items: own)
    monkeypatch.setattr(transfer._Bench, "labelled", lambda *told: labels)
    last, ended = bench.bootstrapped(None, lambda items: 0.6)
    assert (last is labels, ended == "") == (first > 0.6, first > 0.6)

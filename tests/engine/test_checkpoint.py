"""Checkpoints: whole or absent, plain, and complete."""

import errno
import os

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.engine import checkpoint
from holdfast.engine.checkpoint import Checkpoints, changing
from holdfast.errors import RunError, UserError


def layer(value=0.0):
    model = nn.Linear(2, 2)
    for p in model.parameters():
        p.data.fill_(value)
    return model


def test_what_is_saved_is_what_is_loaded(tmp_path):
    modules = {"policy": layer(1.0), "critic": nn.BatchNorm1d(3)}
    modules["critic"].running_mean.fill_(0.25)
    state = {
        "multiplier": 0.5,
        "window": [1.0, float("nan")],
        "moments": (torch.arange(3), None),
        "n": {1: "x"},
    }
    store = Checkpoints(tmp_path, fingerprint="f")
    store.save(7, modules, state)
    fresh = {"policy": layer(), "critic": nn.BatchNorm1d(3)}
    loaded = Checkpoints(tmp_path, fingerprint="f").load(7, fresh)
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, fresh[name].state_dict()[key]), f"{name}.{key}"
    assert loaded["multiplier"] == 0.5
    assert loaded["window"][0] == 1.0
    assert np.isnan(loaded["window"][1])
    assert torch.equal(loaded["moments"][0], torch.arange(3))
    assert loaded["n"] == {1: "x"}


def test_only_the_last_two_are_kept_in_order_of_number(tmp_path):
    store = Checkpoints(tmp_path)
    assert store.latest() is None
    for step in (8, 9, 10, 100):
        store.save(step, {"model": layer()}, {})
    assert store.steps() == [10, 100]
    assert store.latest() == 100


def test_what_another_folder_holds_is_taken_over_and_stays_when_that_forgets_it(tmp_path, monkeypatch):
    store, best = Checkpoints(tmp_path / "healthy", keep=9), Checkpoints(tmp_path / "best", keep=9)
    modules = {"value/harm": layer(2.0)}
    for step in (3, 4):
        store.save(step, modules, {"n": step})
    best.adopt(store, 3)
    left = tmp_path / "healthy" / ".step-000000003"  # by a death in the midst of forgetting
    left.mkdir()
    (left / "state.pt").write_bytes(b"")
    store.forget(3)
    assert (store.steps(), best.steps()) == ([4], [3])
    assert not list(tmp_path.glob("*/.step-*"))
    fresh = {"value/harm": layer()}
    assert best.load(3, fresh) == {"n": 3}
    assert torch.equal(fresh["value/harm"].weight, modules["value/harm"].weight)
    best.adopt(store, 4)
    monkeypatch.setattr(f"{checkpoint.__name__}.os.fsync", full_disk)
    with pytest.raises(
        RunError, match=r"best/step-000000004: .*No space left.* intact: step-000000003, step-000000004"
    ):
        best.adopt(store, 4)
    assert not list((tmp_path / "best").glob(".*"))


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    def tied(value):
        model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
        model["head"].weight = model["embed"].weight
        model["embed"].weight.data.fill_(value)
        return model

    assert list(changing(tied(1.0))) == ["embed.weight"]
    store = Checkpoints(tmp_path)
    store.save(1, {"model": tied(1.0)}, {})
    fresh = tied(0.0)
    store.load(1, {"model": fresh})
    assert fresh["head"].weight is fresh["embed"].weight
    assert fresh["head"].weight.sum().item() == 6.0


def test_frozen_weights_are_not_copied_and_not_touched(tmp_path):
    model = layer(1.0)
    model.weight.requires_grad_(False)
    Checkpoints(tmp_path).save(1, {"model": model}, {})
    model.weight.data.fill_(5.0)
    model.bias.data.fill_(5.0)
    Checkpoints(tmp_path).load(1, {"model": model})
    assert model.weight[0, 0].item() == 5.0
    assert model.bias[0].item() == 1.0


def test_half_written_folders_are_ignored_and_removed(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {"model": layer()}, {})
    half = tmp_path / ".step-000000002"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert store.latest() == 1
    store.save(2, {"model": layer()}, {})
    assert store.steps() == [1, 2]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", range(1, 12))
def test_death_at_any_moment_of_a_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, moment):
    class Death(BaseException):
        """Like a kill, nothing in the code under test handles it."""

    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save(step, {"model": layer(step)}, {"n": step})
    calls = 0

    def dying(original):
        def call(*args, **keywords):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Death
            return original(*args, **keywords)

        return call

    for name in ("save_file", "torch.save", "os.fsync", "shutil.rmtree", "Path.rename", "Path.mkdir"):
        owner = checkpoint
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, name.split(".")[-1], dying(getattr(owner, name.split(".")[-1])))
    with pytest.raises(Death):
        store.save(3, {"model": layer(3)}, {"n": 3})
    monkeypatch.undo()
    assert store.latest() in (2, 3)
    for step in store.steps():
        model = layer()
        assert store.load(step, {"model": model}) == {"n": step}
        assert model.bias[0].item() == step
    store.save(4, {"model": layer(4)}, {"n": 4})
    assert len(store.steps()) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_step_that_is_there_is_replaced(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, {"model": layer(1.0)}, {"n": 1})
    store.save(1, {"model": layer(2.0)}, {"n": 2})
    model = layer()
    assert store.load(1, {"model": model}) == {"n": 2}
    assert model.bias[0].item() == 2.0


def full_disk(*_args, **_keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["save_file", "torch.save", "os.fsync"])
def test_a_full_disk_names_path_and_size_and_keeps_the_old(tmp_path, monkeypatch, place):
    store = Checkpoints(tmp_path)
    big = nn.Linear(512, 512)
    store.save(1, {"model": big}, {"n": 1})
    monkeypatch.setattr(f"{checkpoint.__name__}.{place}", full_disk)
    with pytest.raises(RunError, match=r"step-000000002: .*No space left.* about 1\.0 MiB .*: step-000000001"):
        store.save(2, {"model": big}, {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert store.load(1, {"model": big}) == {"n": 1}


def test_a_file_that_cannot_grow_is_the_same_error(tmp_path):
    """A real limit of the system, since the writers below raise errors of their own kinds."""
    import resource

    big = nn.Linear(512, 512)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        for modules, state in (({"model": big}, {}), ({}, {"moments": big.weight.detach()})):
            with pytest.raises(RunError, match=r"cannot write the checkpoint"):
                Checkpoints(tmp_path).save(1, modules, state)
            assert not list(tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_another_configuration_is_refused(tmp_path):
    Checkpoints(tmp_path, fingerprint="a" * 64).save(1, {"model": layer()}, {})
    with pytest.raises(UserError, match=r"another configuration \(fingerprint aaaaaaaaaaaa, now bbbbbbbbbbbb\)"):
        Checkpoints(tmp_path, fingerprint="b" * 64).load(1, {"model": layer()})


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_says_so(tmp_path, file, damage):
    path = Checkpoints(tmp_path).save(1, {"model": layer()}, {"n": 1}) / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(RunError, match=r"step-000000001 is damaged .*delete it to resume from the one before"):
        Checkpoints(tmp_path).load(1, {"model": layer()})


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    Checkpoints(tmp_path).save(1, {"model": layer()}, {})
    with pytest.raises(UserError, match=r"does not fit the model: \['bias'\] stand in only one"):
        Checkpoints(tmp_path).load(1, {"model": nn.Linear(2, 2, bias=False)})
    with pytest.raises(UserError, match=r"weight is \(2, 2\) there, \(2, 3\) here"):
        Checkpoints(tmp_path).load(1, {"model": nn.Linear(3, 2)})


def test_state_that_could_not_be_read_back_is_refused_when_written(tmp_path):
    with pytest.raises(RunError, match=r"state\.window\[1\] is a numpy\.float64"):
        Checkpoints(tmp_path).save(1, {}, {"window": [1.0, np.float64(2.0)]})
    assert not list(tmp_path.iterdir())


def test_state_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    path = Checkpoints(tmp_path).save(1, {}, {})
    torch.save(Evil(), path / "state.pt")
    with pytest.raises(RunError, match="damaged"):
        Checkpoints(tmp_path).load(1, {})

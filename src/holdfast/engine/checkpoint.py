"""Checkpoints that are there completely or not at all.

A checkpoint is written to a hidden folder, flushed to the disk, and renamed. It holds what changes during a
run: trainable parameters, buffers, and the state of everything else as plain containers and tensors. Frozen
parameters are not copied; they come back from where the run took them.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.errors import RunError, UserError

_MIB = 2**20


class Checkpoints:
    """The last `keep` checkpoints in `folder`, all of one configuration.

    Only the first process may save; every process may load.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, fingerprint: str = "") -> None:
        assert keep >= 1, "a run without a checkpoint cannot be resumed"
        self.folder, self.keep, self.fingerprint = Path(folder), keep, fingerprint

    def steps(self) -> list[int]:
        """The steps that can be loaded, in rising order; half-written folders are not among them."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def latest(self) -> int | None:
        """The last step that can be loaded, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step` and forget the oldest; return its folder.

        Raises `RunError` when the disk does not take it; earlier checkpoints are then as they were.
        """
        _require_plain(state, "state")
        weights = {name: changing(module) for name, module in modules.items()}
        with self._writing(step, _bytes(weights) + _bytes(state)) as folder:
            folder.mkdir(parents=True)
            _write(folder, weights, state, {"step": step, "fingerprint": self.fingerprint})
        for old in self.steps()[: -self.keep]:
            self.forget(old)
        return self._path(step)

    def adopt(self, other: "Checkpoints", step: int) -> Path:
        """Copy the checkpoint of `step` from another folder; return its own. Raises `RunError` as `save` does."""
        source = other._path(step)
        with self._writing(step, sum(file.stat().st_size for file in source.rglob("*"))) as folder:
            shutil.copytree(source, folder)
            for path in (*folder.rglob("*"), folder):
                _flush(path)
        return self._path(step)

    def forget(self, step: int) -> None:
        """Remove the checkpoint of `step`."""
        self._tidy()
        # Hidden first: half removed, it must not pass for a checkpoint.
        shutil.rmtree(self._path(step).rename(self._hidden(step)))

    def load(self, step: int, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Put the weights of `step` into `modules` in place and return the state saved beside them.

        Raises `UserError` for another configuration's checkpoint, `RunError` for a damaged one.
        """
        path = self._path(step)
        try:
            card = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
            if card["fingerprint"] != self.fingerprint:
                raise UserError(
                    f"{path} is a checkpoint of another configuration (fingerprint "
                    f"{card['fingerprint'][:12] or 'none'}, now {self.fingerprint[:12] or 'none'}); "
                    "give another folder or restore the settings"
                )
            state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
            weights = {name: load_file(path / f"{name}.safetensors") for name in modules}
        except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
            reason = str(error).partition(". ")[0]
            raise RunError(
                f"the checkpoint {path} is damaged ({reason}); delete it to resume from the one before"
            ) from error
        for name, module in modules.items():
            _put(module, weights[name], f"{path}/{name}")
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _hidden(self, step: int) -> Path:
        target = self._path(step)
        return self.folder / f".{target.name}"

    @contextmanager
    def _writing(self, step: int, size: int) -> Iterator[Path]:
        """A hidden folder to be made and filled, of about `size` bytes, that is then the checkpoint of `step`."""
        target, temporary = self._path(step), self._hidden(step)
        try:
            self._tidy()
            yield temporary
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            _flush(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunError(self._full(target, size, error)) from error

    def _tidy(self) -> None:
        """Remove what a killed run left half written."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def _full(self, target: Path, needed: int, error: Exception) -> str:
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        kept = ", ".join(self._path(step).name for step in self.steps()) or "none"
        free = shutil.disk_usage(place).free
        return (
            f"cannot write the checkpoint {target}: {error}. It needs about {needed / _MIB:.1f} MiB and "
            f"{free / _MIB:.1f} MiB are free; make room and run the same command to resume. "
            f"Earlier checkpoints are intact: {kept}"
        )


def changing(module: nn.Module) -> dict[str, Tensor]:
    """What training may change, by name: trainable parameters and persistent buffers, tied ones once.

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.bias.requires_grad_(False)
    >>> list(changing(layer))
    ['weight']
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if isinstance(tensor, Tensor) and not frozen and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _put(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    expected = changing(module)
    strange = sorted(expected.keys() ^ weights.keys())
    if strange:
        raise UserError(f"{source} does not fit the model: {strange[:5]} stand in only one of them")
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != weights[name].shape:
                shapes = f"{tuple(weights[name].shape)} there, {tuple(tensor.shape)} here"
                raise UserError(f"{source} does not fit the model: {name} is {shapes}")
            tensor.copy_(weights[name])


def _write(folder: Path, weights: Mapping[str, Mapping[str, Tensor]], state: Any, card: Mapping[str, Any]) -> None:
    for name, tensors in weights.items():
        file = folder / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)  # the critic of a constraint is called value/NAME
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, file)
    torch.save(state, folder / "state.pt")
    (folder / "checkpoint.json").write_text(json.dumps(card), encoding="utf-8")
    for file in folder.rglob("*"):
        _flush(file)
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until `path` (a file or a folder's entries) has reached the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_plain(value: Any, path: str) -> None:
    """Refuse at writing what `weights_only` loading would refuse when it is too late."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_plain(key, f"{path} (key)")
            _require_plain(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _require_plain(inner, f"{path}[{number}]")
    elif type(value) not in (int, float, bool, str, bytes, type(None)) and not isinstance(value, Tensor):
        raise RunError(
            f"{path} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot hold; "
            "state is made of plain containers, numbers, text and tensors"
        )


def _bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)

"""What a weak supervisor says of items it has not seen, as a table that a student may learn from.

The table never holds ground truth. It says which supervisor spoke, how it was calibrated, and of which data and split,
so that labels of other data are refused instead of joined.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.errors import UserError
from holdfast.stats.calibration import platt, temperature
from holdfast.stats.estimate import places

Kind = Literal["soft", "margin"]
Method = Literal["none", "temperature", "platt"]
Predict = Callable[[Sequence[Any]], Tensor]

KEYS = {"id", "supervisor_id", "kind", "p", "logit", "margin", "hard", "calibration", "n_votes", "uncertainty"}
KEYS |= {"dataset_sha256", "split_sha256", "created_from"}
"""All that a row may hold."""
WIDE = 64
"""With more classes than this the logits stand in a file of numbers beside the rows."""
LEAST = 20
"""With fewer held-out items than this a temperature is a guess."""


@dataclass(frozen=True)
class Calibration:
    """p = softmax(logits / T), with `b` added to the logit of class 1 of two (Platt); the order of items is kept.

    note: why labels are left as they are although a calibration was wanted.

    >>> Calibration("temperature", T=2.0).apply(torch.tensor([[0.0, 2.0]]))
    tensor([[0.2689, 0.7311]])
    """

    method: Method = "none"
    T: float = 1.0
    b: float = 0.0
    note: str = ""

    def apply(self, logits: Tensor) -> Tensor:
        """Probabilities (N, K) in float32 for logits (N, K)."""
        scaled = logits.double() / self.T
        if self.b:
            scaled = scaled + torch.tensor([0.0, self.b])
        return scaled.softmax(-1).float()


def calibrate(logits: Tensor, labels: ArrayLike, method: Method = "temperature") -> Calibration:
    """The calibration that makes the gold `labels` (N,) of held-out items most likely; logits (N, K).

    `temperature` (arXiv 1706.04599) keeps which class is the most likely; `platt` also moves the border between two.
    With fewer than `LEAST` items, or where no temperature is the best, logits stay as they are and `note` says why.
    Raises `UserError` where the items do not suffice for `platt`.
    """
    if method == "none":
        return Calibration()
    values = logits.double().numpy()
    if len(values) < LEAST:
        return Calibration(note=f"{len(values)} held-out items are too few, {LEAST} are needed")
    try:
        if method == "temperature":
            t = temperature(values, labels)
            if not 0.05 < t < 20:  # the search runs away where held-out items are all right, or mostly wrong
                return Calibration(note=f"no temperature suits {len(values)} held-out items: the search ran to {t:.3g}")
            return Calibration(method, T=t)
        found = platt(values[:, 1] - values[:, 0], labels)
    except ValueError as error:
        raise UserError(f"the supervisor cannot be calibrated: {error}; hold out more of weak_train") from error
    if found.slope <= 0:
        raise UserError(
            f"on {len(values)} held-out items the supervisor is right less often than wrong (slope {found.slope:.3g}), "
            "so no calibration helps; train a better one"
        )
    return Calibration(method, T=1 / found.slope, b=found.intercept)


@dataclass(frozen=True)
class WeakLabels:
    """N items with the raw logits (N, K) of their supervisor; a pair is K = 2 with logits (0, margin).

    supervisor: its name. data_sha256, split_sha256: of what was labelled, see `sha256_of`. created_from: the
    fingerprint of the settings. votes: how many predictions were averaged.
    """

    ids: tuple[str, ...]
    logits: Tensor
    supervisor: str
    calibration: Calibration = Calibration()
    data_sha256: str = ""
    split_sha256: str = ""
    created_from: str = ""
    kind: Kind = "soft"
    votes: int = 1

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or len(self.logits) != len(self.ids):
            raise ValueError(f"{len(self.ids)} items need logits (N, K), got {tuple(self.logits.shape)}")
        if len(set(self.ids)) != len(self.ids):
            raise UserError("an item is labelled twice; give every item an id of its own")
        if not bool(torch.isfinite(self.logits).all()):
            raise UserError(f"{self.supervisor} gave logits that are not finite; it has diverged")

    @cached_property
    def p(self) -> Tensor:
        """(N, K) calibrated probabilities."""
        return self.calibration.apply(self.logits)

    def take(self, ids: Sequence[str]) -> Tensor:
        """(M, K) probabilities of these items in this order; `UserError` for one that was not labelled."""
        if absent := [id for id in ids if id not in self._place]:
            raise UserError(f"{len(absent)} of {len(ids)} items have no weak label, such as {absent[0]}; label them")
        return self.p[[self._place[id] for id in ids]]

    def rows(self) -> list[dict[str, Any]]:
        """One mapping per item, as it stands in the file."""
        common = {"n_votes": self.votes, "dataset_sha256": self.data_sha256, "split_sha256": self.split_sha256}
        common |= {"created_from": self.created_from, "calibration": asdict(self.calibration)}
        entropy = torch.special.entr(self.p.double()).sum(-1).tolist()
        return [
            {"id": id, "supervisor_id": self.supervisor, "kind": self.kind, **self._numbers(i)}
            | {"hard": int(self.p[i].argmax()), "uncertainty": entropy[i], **common}
            for i, id in enumerate(self.ids)
        ]

    def write(self, file: Path) -> Path:
        """Write one JSON object per line, at once or not at all, and return the file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        if self._wide:
            save_file({"logits": self.logits.contiguous()}, file.with_suffix(".safetensors"))
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows()), encoding="utf-8")
        return partial.replace(file)

    @classmethod
    def read(cls, file: Path, *, data_sha256: str, split_sha256: str) -> "WeakLabels":
        """The table in `file`; `UserError` when it is of other data, of another split, or holds what it may not."""
        if not file.is_file():
            raise UserError(f"there are no weak labels at {file}; let a supervisor label the items first")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise UserError(f"{file} holds no weak label; delete it, and let a supervisor label the items again")
        if strange := sorted({key for row in rows for key in row} - KEYS):
            raise UserError(f"{file} holds {', '.join(strange)}, which no table of weak labels may hold")
        first = rows[0]
        for name, given in (("dataset_sha256", data_sha256), ("split_sha256", split_sha256)):
            if found := sorted({row[name] for row in rows} - {given}):
                raise UserError(
                    f"{file} is stale: its {name} is {found[0][:12] or 'empty'}, that of the items {given[:12]}; "
                    "delete it, and let a supervisor label the items again"
                )
        wide = file.with_suffix(".safetensors")
        logits = torch.tensor([_logit(row) for row in rows]) if "p" in first else load_file(wide)["logits"]
        return cls(
            tuple(row["id"] for row in rows),
            logits,
            first["supervisor_id"],
            Calibration(**first["calibration"]),
            data_sha256,
            split_sha256,
            first["created_from"],
            first["kind"],
            first["n_votes"],
        )

    @property
    def _wide(self) -> bool:
        return self.logits.shape[1] > WIDE

    @cached_property
    def _place(self) -> dict[str, int]:
        return {id: i for i, id in enumerate(self.ids)}

    def _numbers(self, i: int) -> dict[str, Any]:
        if self._wide:
            return {}
        logit = self.logits[i].tolist()
        own = {"margin": logit[1] - logit[0]} if self.kind == "margin" else {"logit": logit}
        return {"p": self.p[i].tolist(), **own}


def _logit(row: dict[str, Any]) -> list[float]:
    return [0.0, row["margin"]] if "margin" in row else row["logit"]


def sha256_of(parts: Iterable[str]) -> str:
    """A hash of texts in their order.

    >>> sha256_of(["a", "b"]) == sha256_of(["ab"])
    False
    """
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


def cross_fitted(
    learn: Callable[[list[Any], Tensor, int], Predict],
    items: Sequence[Any],
    targets: Tensor,
    groups: Sequence[Hashable],
    folds: int = 5,
    seed: int = 0,
) -> Tensor:
    """Logits (N, K) of each item by a supervisor that never saw its group, so that gold items can be labelled too.

    learn: items, their targets (N, K) and the number of the fold to a predictor. Groups are dealt to folds at random.

    >>> def share(items, targets, fold):
    ...     return lambda others: targets.mean(0).expand(len(others), -1)
    >>> cross_fitted(share, ["a", "b"], torch.eye(2), ["a", "b"], folds=2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    group = places(groups)
    count = int(group.max(initial=-1)) + 1
    if not 2 <= folds <= count:
        raise UserError(f"{folds} folds of {count} groups: give two folds or more, and no more than there are groups")
    fold = (np.random.default_rng(seed).permutation(count) % folds)[group]
    logits = torch.empty(targets.shape)
    for i in range(folds):
        kept, out = (np.flatnonzero(fold != i).tolist(), np.flatnonzero(fold == i).tolist())
        predict = learn([items[j] for j in kept], targets[kept], i)
        logits[out] = predict([items[j] for j in out]).float()
    return logits

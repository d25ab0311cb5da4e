"""The gold labels, behind an object that says how good predictions are and not what is right.

After the split nobody else holds them. Training lies a floor below and cannot import this module, and while a student
learns the vault is locked: no student can stop, select or weigh by ground truth. What is reported decides nothing.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.errors import UserError
from holdfast.stats import agreement as judged
from holdfast.stats.estimate import Estimate, proportion
from holdfast.stats.recovery import recovered


class Vault:
    """Gold classes by id.

    labels: id to class, 0 to K - 1. sealed: ids that are never released for training. groups: id to group; items of
    one group are counted together. reads: how many labels were used, by purpose.

    >>> vault = Vault({"a": 1, "b": 0}, classes=2)
    >>> vault.accuracy(["a", "b"], torch.tensor([[0.0, 1.0], [0.0, 1.0]])).value
    0.5
    >>> dict(vault.reads)
    {'test': 2}
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        classes: int,
        *,
        sealed: Sequence[str] = (),
        groups: Mapping[str, Hashable] | None = None,
    ) -> None:
        if strange := {id: label for id, label in labels.items() if not 0 <= label < classes}:
            id, label = next(iter(strange.items()))
            raise UserError(f"gold labels are 0 to {classes - 1}; {len(strange)} are not, such as {label} of {id}")
        self._labels, self._sealed, self.classes = dict(labels), frozenset(sealed), classes
        self._groups, self._locked_by = dict(groups or {}), ""
        self.reads: Counter[str] = Counter()

    @contextmanager
    def locked(self, learner: str) -> Iterator[None]:
        """While this lasts every reading is an error that names the `learner`."""
        self._locked_by = learner
        try:
            yield
        finally:
            self._locked_by = ""

    def release(self, ids: Sequence[str], to: str) -> Tensor:
        """One-hot gold targets (N, K) for a model that is trained on ground truth: a supervisor or a ceiling.

        Raises `UserError` for ids that are sealed: what was trained on them cannot be judged on them.
        """
        if shut := sorted(self._sealed.intersection(ids)):
            raise UserError(
                f"{len(shut)} of {len(ids)} labels asked for by the {to} are sealed for evaluation, such as {shut[0]}; "
                "train on other items"
            )
        return one_hot(torch.from_numpy(self._read(ids, to)), self.classes).float()

    def correct(self, ids: Sequence[str], logits: Tensor, purpose: str = "test") -> NDArray[np.bool_]:
        """Which items (N,) have their gold class as the most likely one; logits (N, K)."""
        if len(logits) != len(ids):
            raise ValueError(f"{len(ids)} items need as many rows of logits, got {len(logits)}")
        return logits.argmax(1).numpy() == self._read(ids, purpose)

    def accuracy(self, ids: Sequence[str], logits: Tensor, purpose: str = "test") -> Estimate:
        """How often the most likely class is the gold one; logits (N, K)."""
        return proportion(self.correct(ids, logits, purpose), self.groups(ids))

    def curve(self, ids: Sequence[str], answers: Tensor) -> list[float]:
        """The accuracy of each of E sets of answers (E, N), such as those after every epoch."""
        return (answers.numpy() == self._read(ids, "curve")).mean(1).tolist()

    def groups(self, ids: Sequence[str]) -> list[Hashable]:
        """The group of each item; without one it is its own."""
        return [self._groups.get(id, id) for id in ids]

    def examine(
        self, ids: Sequence[str], weak: Tensor, student: Tensor, ceiling: Tensor, *, unsafe: int | None = None
    ) -> dict[str, Any]:
        """All that is reported of a student, as plain JSON: recovered gap, agreement, confidence, blind spots.

        weak, student, ceiling: (S, N, K) probabilities of the same N items for S seeds, which are counted as one
        item. unsafe: the class whose recall, at 5 % false positives, is reported beside the accuracy.
        """
        gold, seeds = self._read(ids, "test"), len(student)
        models = [table.double().numpy() for table in (weak, student, ceiling)]
        right = [table.argmax(-1) == gold for table in models]
        w, s, c = (table.reshape(-1, self.classes) for table in models)
        y, groups = np.tile(gold, seeds), self.groups(ids) * seeds
        found = {
            "recovery": recovered(*right, groups=self.groups(ids)),
            "agreement": judged.agreement(s, w, y, groups),
            "misfit": judged.misfit(s, w, groups),
            "confident_disagreement": judged.confident_disagreement(s, w, groups),
            "copied_mistakes": judged.copied_mistakes(s, w, y, groups),
            "overconfidence": judged.overconfidence(s, y, groups),
            "blind_spots": judged.blind_spots(s, w, c, y, groups),
        }
        plain = {name: None if value is None else asdict(value) for name, value in found.items()}
        plain["calibration_error"] = judged.sweep_calibration_error(s.max(1), s.argmax(1) == y)
        if unsafe is not None:
            names = ("weak", "student", "ceiling")
            flags, groups = gold == unsafe, self.groups(ids)
            estimates = [judged.recall_at(table[..., unsafe], flags, groups=groups) for table in models]
            plain["recall"] = {name: one and one.to_dict() for name, one in zip(names, estimates)}
        return plain

    def _read(self, ids: Sequence[str], purpose: str) -> NDArray[np.int64]:
        if self._locked_by:
            raise UserError(f"{self._locked_by} asked for gold labels ({purpose}) while it learns from weak ones")
        if unknown := [id for id in ids if id not in self._labels]:
            raise UserError(f"there is no gold label for {len(unknown)} of {len(ids)} items, such as {unknown[0]}")
        self.reads[purpose] += len(ids)
        return np.array([self._labels[id] for id in ids], dtype=np.int64)

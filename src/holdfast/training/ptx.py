"""Imitation on the side: a language-model loss mixed into every step of the policy, against forgetting.

L = L_policy + coefficient x mean over tokens of -log pi (InstructGPT, arXiv 2203.02155; PPO-max, arXiv 2307.04964,
eq. 17). Both gradients are added before the one optimiser step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.template import Encoded
from holdfast.engine.distributed import Processes
from holdfast.engine.seeds import generator


@dataclass(frozen=True)
class PtxBatch:
    """Rows to imitate among the batches of a step."""

    tokens: Batch

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.tokens.ids


class PtxRows:
    """Rows to imitate, taken in turn, in an order that is new in every epoch; its place goes into checkpoints."""

    def __init__(self, rows: Sequence[Encoded], pad_id: int, seed: int = 0) -> None:
        if not rows:
            raise ValueError("there are no rows to imitate")
        self.rows, self.pad_id, self.seed = list(rows), pad_id, seed
        self._taken = 0

    def take(self, count: int) -> list[Encoded]:
        """The next `count` rows; every row once before any comes again."""
        size, end = len(self.rows), self._taken + count
        epochs = range(self._taken // size, -(-end // size))
        order = [i for epoch in epochs for i in self._order(epoch)]
        begun = self._taken - epochs.start * size
        self._taken = end
        return [self.rows[i] for i in order[begun : begun + count]]

    def batches(self, count: int, micro_tokens: int, processes: Processes | None = None) -> list[PtxBatch]:
        """The next `count` rows in batches of a token budget; no two of the `processes` take the same rows."""
        processes = processes or Processes()
        counts = processes.gather([count])
        begin = sum(counts[: processes.rank])
        rows = self.take(sum(counts))[begin : begin + count]
        groups = micro_batches([row.length for row in rows], micro_tokens)
        return [PtxBatch(pad([rows[i] for i in group], pad_id=self.pad_id)) for group in groups]

    def _order(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.rows), generator=generator(self.seed, epoch)).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]

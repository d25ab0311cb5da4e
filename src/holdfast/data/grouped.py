"""Answers of several prompts in which each prompt stands once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from holdfast.data.collate import Batch, pad
from holdfast.data.template import Encoded


@dataclass(frozen=True)
class Grouped:
    """B answers to P prompts.

    prompts: the P prompts with their images; answers: the B answers by themselves, in the order of the rows; of: (B,)
    which prompt each one answers; rows: what was grouped.
    """

    prompts: Batch
    answers: Batch
    of: Tensor
    rows: tuple[Encoded, ...]
    pad_id: int

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.answers.ids

    @property
    def mask(self) -> Tensor:
        """(B, R) true on the tokens of the response."""
        return self.answers.response_mask

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self.rows)

    @property
    def tokens(self) -> int:
        """How many tokens there are when each prompt is read once."""
        return self.prompts.tokens + self.answers.tokens

    @property
    def saving(self) -> float:
        """Padded tokens of the plain rows over those of prompts read once and answers end to end."""
        return len(self.rows) * self.longest / self.tokens

    def to(self, device: torch.device | str) -> "Grouped":
        """The same answers on `device`."""
        return replace(self, prompts=self.prompts.to(device), answers=self.answers.to(device), of=self.of.to(device))

    def plain(self) -> Batch:
        """The same rows side by side, every prompt as often as it is answered, on the device of the answers."""
        return pad(self.rows, pad_id=self.pad_id).to(self.of.device)


def group(rows: Sequence[Encoded], pad_id: int) -> Grouped:
    """`Grouped` answers of rows whose prompts, ids and images, are partly equal.

    >>> row = lambda *ids: Encoded([5, 6, *ids], [False, False, *[True] * len(ids)], [], 1 + len(ids), 2)
    >>> grouped = group([row(7), row(8, 9)], pad_id=0)
    >>> grouped.prompts.input_ids.tolist(), grouped.answers.input_ids.tolist(), grouped.of.tolist()
    ([[5, 6]], [[7, 0], [8, 9]], [0, 0])
    >>> grouped.saving  # 2 x 4 padded tokens are 5
    1.6
    """
    members = by_prompt(rows)
    of = torch.empty(len(rows), dtype=torch.long)
    for number, chosen in enumerate(members):
        of[chosen] = number
    return Grouped(
        prompts=pad([_prompt(rows[chosen[0]]) for chosen in members], pad_id=pad_id),
        answers=pad([_answer(row) for row in rows], pad_id=pad_id),
        of=of,
        rows=tuple(rows),
        pad_id=pad_id,
    )


def by_prompt(rows: Sequence[Encoded]) -> list[list[int]]:
    """Which rows have equal prompts, prompts in the order in which they first occur."""
    members: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        key = tuple(row.ids[: row.prompt_length]), tuple(pixels.image for pixels in row.images)
        members.setdefault(key, []).append(i)
    return list(members.values())


def _prompt(row: Encoded) -> Encoded:
    n = row.prompt_length
    return replace(
        row, ids=row.ids[:n], response_mask=row.response_mask[:n], turn_mask=row.turn_mask[:n], score_index=n - 1
    )


def _answer(row: Encoded) -> Encoded:
    n = row.prompt_length
    return replace(
        row,
        ids=row.ids[n:],
        response_mask=row.response_mask[n:],
        turn_mask=row.turn_mask[n:],
        score_index=row.score_index - n,
        prompt_length=0,
        images=[],
    )

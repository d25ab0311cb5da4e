"""Answers of several prompts in which each prompt stands once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.template import Encoded

Shares = Callable[[float, int], bool]
"""Whether rows are read with each prompt once, from how many times fewer tokens that makes and the longest row."""


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


class _Size(NamedTuple):
    """How many rows there are, tokens of the longest, and tokens of all when each prompt is read once."""

    rows: int
    longest: int
    once: int

    @staticmethod
    def of(rows: Sequence[Encoded]) -> "_Size":
        """The size of rows with one prompt."""
        answers = sum(row.length - row.prompt_length for row in rows)
        return _Size(len(rows), max(row.length for row in rows), rows[0].prompt_length + answers)

    def joined(self, other: "_Size") -> "_Size":
        """The size of both together."""
        return _Size(self.rows + other.rows, max(self.longest, other.longest), self.once + other.once)

    def cost(self, shares: Shares) -> int:
        """Tokens of one pass, padding included."""
        plain = self.rows * self.longest
        return self.once if shares(plain / self.once, self.longest) else plain


def cut(prompts: Sequence[Sequence[Encoded]], budget_tokens: int, shares: Shares) -> list[list[int]]:
    """Portions of prompts, given as the rows that answer each, whose tokens stay within the budget as they are read.

    shares: whether rows of which a shared prompt makes (first) times fewer tokens, the longest row having (second), are
    read in that way. Prompts of similar length stand together; one whose answers exceed the budget stands alone.

    >>> row = Encoded([5, 6, 7, 8], [False, False, False, True], [], 3, 3)
    >>> [cut([[row, row], [row, row]], budget, lambda saving, longest: saving > 1.2) for budget in (10, 9)]
    [[[0, 1]], [[0], [1]]]
    """
    sizes = [_Size.of(rows) for rows in prompts]
    found: list[list[int]] = []
    size = _Size(0, 0, 0)
    for p in sorted(range(len(prompts)), key=lambda p: sizes[p].longest):
        joined = size.joined(sizes[p])
        if found and joined.cost(shares) <= budget_tokens:
            found[-1].append(p)
            size = joined
        else:
            found.append([p])
            size = sizes[p]
    return found


def portions(rows: Sequence[Encoded], budget_tokens: int, shares: Shares) -> list[list[int]]:
    """Which rows to read together where any rows may stand together: answers to one prompt, where they share it.

    Many answers to one prompt are read in as many passes as the budget asks for.
    """
    members = by_prompt(rows)
    sizes = [_Size.of([rows[i] for i in answers]) for answers in members]
    lengths = [row.length for row in rows]
    if not rows or not shares(sum(lengths) / sum(size.once for size in sizes), max(lengths)):
        return micro_batches(lengths, budget_tokens)
    pieces = [piece for answers in members for piece in _pieces(rows, answers, budget_tokens, shares)]
    together = cut([[rows[i] for i in piece] for piece in pieces], budget_tokens, shares)
    return [[i for p in chosen for i in pieces[p]] for chosen in together]


def _pieces(rows: Sequence[Encoded], answers: list[int], budget_tokens: int, shares: Shares) -> list[list[int]]:
    """The answers to one prompt in lists that stay within the budget, if single rows do."""
    found: list[list[int]] = []
    for i in answers:
        longer = [*found[-1], i] if found else []
        if longer and _Size.of([rows[j] for j in longer]).cost(shares) <= budget_tokens:
            found[-1] = longer
        else:
            found.append([i])
    return found


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

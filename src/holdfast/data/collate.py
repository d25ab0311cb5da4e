"""Encoded rows become rectangular batches; what is padding follows from lengths alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from holdfast.data.template import Encoded
from holdfast.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Rows of tokens side by side: (B, T) tensors and (B,) facts about each row.

    `response_mask` marks the last answer, `turn_mask` every answer, `score_index` the column at which a score
    is read. `extra` holds image tensors, all images of the batch one after another.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor
    turn_mask: Tensor
    score_index: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    truncated: Tensor
    extra: dict[str, Tensor]
    ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved, extra={name: value.to(device) for name, value in self.extra.items()})

    @property
    def size(self) -> int:
        """The number of rows, B."""
        return self.input_ids.shape[0]

    @property
    def tokens(self) -> int:
        """The number of tokens that are not padding."""
        return int(self.lengths.sum())


def pad(
    encoded: Sequence[Encoded], side: Literal["left", "right"] = "right", *, pad_id: int, multiple_of: int = 1
) -> Batch:
    """Stack B rows into a `Batch` of T columns, T the longest length rounded up to `multiple_of`.

    >>> row = Encoded([5, 6, 7], [False, True, True], [False, True, True], 2, 1)
    >>> short = Encoded([5, 7], [False, True], [False, True], 1, 1)
    >>> batch = pad([row, short], side="left", pad_id=7)
    >>> batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.score_index.tolist()
    ([[5, 6, 7], [7, 5, 7]], [[1, 1, 1], [0, 1, 1]], [2, 2])
    """
    if not encoded:
        raise ValueError("a batch needs at least one row")
    width = -(-max(row.length for row in encoded) // multiple_of) * multiple_of
    offsets = [width - row.length if side == "left" else 0 for row in encoded]

    def stack(rows: Sequence[Sequence[Any]], fill: int | bool) -> Tensor:
        table = torch.full((len(rows), width), fill)
        for line, row, offset in zip(table, rows, offsets):
            line[offset : offset + len(row)] = torch.tensor(row, dtype=table.dtype)
        return table

    attention = stack([[1] * row.length for row in encoded], 0)
    return Batch(
        input_ids=stack([row.ids for row in encoded], pad_id),
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        response_mask=stack([row.response_mask for row in encoded], False),
        turn_mask=stack([row.turn_mask for row in encoded], False),
        score_index=torch.tensor([row.score_index + offset for row, offset in zip(encoded, offsets)]),
        lengths=torch.tensor([row.length for row in encoded]),
        prompt_lengths=torch.tensor([row.prompt_length for row in encoded]),
        truncated=torch.tensor([row.truncated for row in encoded]),
        extra=_image_tensors(encoded),
        ids=tuple(row.id for row in encoded),
    )


def _image_tensors(encoded: Sequence[Encoded]) -> dict[str, Tensor]:
    """All images of the batch, row by row, joined along their first dimension."""
    found = [(row.id, image.tensors()) for row in encoded for image in row.images]
    joined: dict[str, Tensor] = {}
    for name in found[0][1] if found else ():
        shapes = {tuple(tensors[name].shape[1:]) for _, tensors in found}
        if len(shapes) > 1:
            rows = ", ".join(sorted({id for id, _ in found}))
            raise UserError(
                f"rows {rows}: their images give {name} of the shapes {sorted(shapes)}, which cannot stand "
                "in one batch; use images of one size or one row per batch"
            )
        joined[name] = torch.cat([tensors[name] for _, tensors in found])
    return joined


def micro_batches(lengths: Sequence[int], budget_tokens: int, sort: bool = True) -> list[list[int]]:
    """Indices of rows in groups whose padded tokens, rows times the longest row, stay within the budget.

    Sorted by length, little is padded. A row above the budget stands alone. Every index occurs once.

    >>> micro_batches([2, 9, 2, 4], budget_tokens=8)
    [[0, 2], [3], [1]]
    """
    if budget_tokens < 1:
        raise ValueError(f"budget_tokens must be at least 1, got {budget_tokens}")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i]) if sort else list(range(len(lengths)))
    groups: list[list[int]] = []
    longest = 0
    for index in order:
        wider = max(longest, lengths[index])
        if groups and wider * (len(groups[-1]) + 1) <= budget_tokens:
            groups[-1].append(index)
            longest = wider
        else:
            groups.append([index])
            longest = lengths[index]
    return groups

"""Rows that begin alike, read once: N answers to one prompt as a single row `[prompt | answer 1 | ... | answer N]`.

Every answer sees the prompt and itself, at the positions it would have alone, so states and gradients are those of
separate rows (the idea of PrefixGrouper, arXiv 2506.05433, here as a mask that any attention takes).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from holdfast.models.policy import backbone, unwrapped

PAD = -1


@dataclass(frozen=True)
class SharedRows:
    """B rows of T columns laid out as G rows of W columns, one for each group.

    part (G, W): 0 for what a group has in common, n for what its n-th row has alone, `PAD` for padding. line (B,)
    and column (B, T) say where every original token stands.
    """

    input_ids: Tensor
    position_ids: Tensor
    part: Tensor
    line: Tensor
    column: Tensor

    @property
    def saving(self) -> float:
        """The padded tokens of the original rows over those of this layout."""
        return self.column.numel() / self.part.numel()

    def to(self, device: torch.device | str) -> "SharedRows":
        """The same layout on `device`."""
        return SharedRows(**{name: value.to(device) for name, value in vars(self).items()})

    def inputs(self, model: nn.Module) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `position_ids` in the form in which `model` attends."""
        visible = (self.part[:, None, :] == 0) | (self.part[:, None, :] == self.part[:, :, None])
        mask = visible.tril()[:, None]
        if _text_config(model)._attn_implementation == "eager":
            # Eager attention adds the mask to its logits.
            dtype = next(backbone(model).parameters()).dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return {"input_ids": self.input_ids, "attention_mask": mask, "position_ids": self.position_ids}

    def unpack(self, values: Tensor) -> Tensor:
        """Values (G, W, ...) of the layout's tokens as (B, T, ...); what stands in padding means nothing."""
        return values[self.line[:, None], self.column]

    def at(self, values: Tensor, index: Tensor) -> Tensor:
        """Values (G, W, ...) at column `index` (B,) of each original row, as (B, ...)."""
        return values[self.line, self.column.gather(1, index[:, None])[:, 0]]


def share_prefix(input_ids: Tensor, attention_mask: Tensor, groups: Sequence[Sequence[int]]) -> SharedRows:
    """Lay out tokens (B, T), padded on any side, so that the common beginning of each group stands once.

    groups: the rows of each group; every row is in one of them. Images of a group follow the order of groups, once.

    >>> ids = torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]])
    >>> shared = share_prefix(ids, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), [[0, 1]])
    >>> shared.input_ids.tolist(), shared.part.tolist(), shared.position_ids.tolist()
    ([[5, 6, 7, 8, 9]], [[0, 0, 1, 2, 2]], [[0, 1, 2, 2, 3]])
    >>> shared.column.tolist()
    [[0, 1, 2, 0], [0, 1, 3, 4]]
    """
    if sorted(row for group in groups for row in group) != list(range(len(input_ids))):
        raise ValueError(f"each of the {len(input_ids)} rows must be in one group, got {[list(g) for g in groups]}")
    starts, lengths = attention_mask.argmax(-1).tolist(), attention_mask.sum(-1).tolist()
    tokens = [row[start : start + length] for row, start, length in zip(input_ids, starts, lengths)]
    common = [_common([tokens[row] for row in group]) for group in groups]
    width = max(once + sum(lengths[row] - once for row in group) for once, group in zip(common, groups))
    shape = (len(groups), width)
    ids, part = input_ids.new_zeros(shape), torch.full(shape, PAD, device=input_ids.device)
    positions, line = torch.zeros_like(ids), torch.zeros_like(input_ids[:, 0])
    column = torch.zeros_like(input_ids)
    for place, (once, group) in enumerate(zip(common, groups)):
        end = once
        ids[place, :once], part[place, :once] = tokens[group[0]][:once], 0
        for number, row in enumerate(group, 1):
            begin, end = end, end + lengths[row] - once
            ids[place, begin:end], part[place, begin:end] = tokens[row][once:], number
            own = torch.cat([torch.arange(once), torch.arange(begin, end)])
            line[row], column[row, starts[row] : starts[row] + lengths[row]] = place, own
            positions[place, own] = torch.arange(lengths[row], device=ids.device)
    return SharedRows(ids, positions, part, line, column)


def _common(rows: Sequence[Tensor]) -> int:
    """How many tokens all rows begin with."""
    shortest = min(map(len, rows))
    cut = torch.stack([row[:shortest] for row in rows])
    return int((cut == cut[0]).all(0).int().cumprod(0).sum())


def can_share(model: nn.Module, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may be laid out by `share_prefix` without changing a state.

    It takes attention that obeys a mask and knows tokens by their positions alone: no recurrence, no bias by distance
    in the row (ALiBi), no window that `longest` exceeds, no kernel that makes its own mask.
    """
    config, network = _text_config(model), backbone(model)
    windows = [
        getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None,
        getattr(config, "attention_chunk_size", None),
    ]
    attends = {"full_attention", "sliding_attention", "chunked_attention"}
    return (
        config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(network.forward).parameters
        and (bool(getattr(config, "rope_parameters", None)) or config.model_type == "gpt2")
        and not getattr(config, "alibi", False)
        and not network._is_stateful
        and attends.issuperset(getattr(config, "layer_types", None) or ())
        and all(longest <= window for window in windows if window is not None)
    )


def _text_config(model: nn.Module) -> PreTrainedConfig:
    return unwrapped(model).config.get_text_config()

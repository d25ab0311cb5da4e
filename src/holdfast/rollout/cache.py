"""What a network remembers of the prompts and answers it is writing: keys and values, ready for one more token each.

The answers to a prompt have it in common. `SharedCache` holds it once and reads it with the queries of all its answers
in one matrix product (Hydragen, arXiv 2402.05099); an answer's own keys and values are written in place. Networks that
do not take attention of ours keep the cache of transformers, with the prompt repeated for each answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from holdfast.data.collate import Batch
from holdfast.models.attend import attending, supports

ATTENTION = "holdfast_decode"


class Cache(Protocol):
    """The memory of N rows, each an answer to one of P prompts."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N',) of the present ones, in this order."""
        ...

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append a token (N,) at its position (N,) to each row; return the logits (N, V) of what comes next."""
        ...


@contextmanager
def remembering(model: nn.Module, prompts: Batch, n: int, steps: int) -> Iterator[tuple[Cache, Tensor]]:
    """Read left-padded prompts; give the cache of n answers to each, of up to `steps` tokens, and P rows of logits.

    The rows stand prompt by prompt. `model` attends in another way inside the block, and as before after it.
    """
    cache = DynamicCache(config=model.config.get_text_config())
    # A mask that hides nothing costs a (rows x length) tensor; without padding there is none.
    mask = None if bool(prompts.attention_mask.all()) else prompts.attention_mask
    logits = _last_logits(
        model, prompts.input_ids, mask, prompts.position_ids, past_key_values=cache, use_cache=True, **prompts.extra
    )
    if supports(model, prompts.input_ids.shape[1] + steps) and _uniform(model, cache):
        with attending(model, ATTENTION):
            yield SharedCache(model, cache, mask, n, steps), logits
    else:
        yield RepeatedCache(model, cache, mask, n), logits


def _uniform(model: nn.Module, cache: DynamicCache) -> bool:
    """Whether each layer has keys of its own, and all have them in one shape and on one device."""
    kinds = {layer.is_initialized and (layer.keys.shape, layer.keys.device) for layer in cache.layers}
    return len(cache.layers) == model.config.get_text_config().num_hidden_layers and len(kinds) == 1


class RepeatedCache:
    """The cache of transformers, with each prompt's keys and values repeated for its n answers."""

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor | None, n: int) -> None:
        self.model, self.cache = model, cache
        self.mask = None if mask is None else mask.repeat_interleave(n, dim=0)
        cache.batch_repeat_interleave(n)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order."""
        self.cache.batch_select_indices(rows)
        self.mask = None if self.mask is None else self.mask[rows]

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append a token to each row; return the logits of what comes next."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        return _last_logits(
            self.model, tokens[:, None], self.mask, positions[:, None], past_key_values=self.cache, use_cache=True
        )


class SharedCache:
    """Keys and values of P prompts (P, h, T, d) once, and of N rows (N, h, S, d) written in place, for each layer.

    Rows are not copied when others end: the last ones move into the gaps. For the product with its prompt a row has a
    slot, one of the prompt's first G, G being the most rows that a prompt still has. Prompts without rows are forgotten
    once they are half of all.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor | None, n: int, steps: int) -> None:
        self.model = model
        self.prompts = [(layer.keys, layer.values) for layer in cache.layers]
        self.heads = cache.layers[0].keys.shape[1]
        count = n * len(cache.layers[0].keys)
        self.own = [tuple(_room(table, count, steps) for table in pair) for pair in self.prompts]
        self.bias = None if mask is None else _bias(mask, self.prompts[0][0])
        self.written = 0
        self._seat(torch.arange(count, device=self.prompts[0][0].device) // n)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; cheap for rows that keep their place."""
        places = torch.arange(len(rows), device=rows.device)
        new = (rows != places).nonzero().squeeze(-1)
        for tables in self.own:
            for table in tables:
                table[new, :, : self.written] = table[rows[new], :, : self.written]
        self._seat(self._living(self.prompt[rows]))

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Append a token to each row; return the logits of what comes next."""
        logits = _last_logits(self.model, tokens[:, None], None, positions[:, None], use_cache=False, rollout=self)
        self.written += 1
        return logits

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Write key and value (N, h, 1, d) of a token of each row; return what query (N, H, 1, d) finds, (N, 1, H, d).

        Both parts of a row share one softmax, so the result is that of attention over prompt and answer side by side.
        """
        rows, end = len(key), self.written + 1
        keys, values = (table[:rows] for table in self.own[layer])
        keys[:, :, self.written], values[:, :, self.written] = key[:, :, 0], value[:, :, 0]
        prompt_keys, prompt_values = self.prompts[layer]
        query = query.reshape(rows, self.heads, -1, query.shape[-1]) * scale
        scores = self._seated(query) @ prompt_keys.mT
        if self.bias is not None:
            scores += self.bias
        joined = torch.cat([self._unseated(scores, query), query @ keys[:, :, :end].mT], dim=-1)
        weights = joined.softmax(-1, dtype=torch.float32).to(value.dtype)
        to_prompt, to_own = weights.split([prompt_keys.shape[2], end], dim=-1)
        found = self._unseated(self._seated(to_prompt) @ prompt_values, query) + to_own @ values[:, :, :end]
        return found.reshape(rows, 1, -1, found.shape[-1])

    def _living(self, prompt: Tensor) -> Tensor:
        """Return the prompt (N,) of each row, in new numbers if prompts that have no row any more were forgotten."""
        living, number = prompt.unique(return_inverse=True)
        if 2 * len(living) > len(self.prompts[0][0]):
            return prompt
        self.prompts = [(keys[living], values[living]) for keys, values in self.prompts]
        self.bias = None if self.bias is None else self.bias[living]
        return number

    def _seat(self, prompt: Tensor) -> None:
        """Give each row a slot at its prompt (N,)."""
        self.prompt = prompt
        member = prompt[:, None] == torch.arange(len(self.prompts[0][0]), device=prompt.device)
        self.width = int(member.sum(0).max())
        seat = (member.cumsum(0) - 1).gather(1, prompt[:, None])
        head = torch.arange(self.heads, device=prompt.device)
        self.slots = ((prompt[:, None] * self.heads + head) * self.width + seat).flatten()

    def _seated(self, rows: Tensor) -> Tensor:
        """Values (N, h, g, w) of rows as (P, h, G g, w) in their slots; zero in slots that are free."""
        group, wide = rows.shape[2:]
        prompts = len(self.prompts[0][0])
        table = rows.new_zeros(prompts * self.heads * self.width, group * wide)
        table.index_copy_(0, self.slots, rows.reshape(-1, group * wide))
        return table.view(prompts, self.heads, self.width * group, wide)

    def _unseated(self, table: Tensor, query: Tensor) -> Tensor:
        """What `_seated` took apart from table (P, h, G g, w), as (N, h, g, w)."""
        group, wide = query.shape[2], table.shape[-1]
        rows = table.reshape(-1, group * wide).index_select(0, self.slots)
        return rows.view(-1, self.heads, group, wide)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    scale = given.get("scaling") or query.shape[-1] ** -0.5
    return given["rollout"].attend(module.layer_idx, query, key, value, scale), None


AttentionInterface.register(ATTENTION, _attention)


def _room(table: Tensor, rows: int, steps: int) -> Tensor:
    return table.new_empty(rows, table.shape[1], steps, table.shape[3])


def _bias(mask: Tensor, like: Tensor) -> Tensor:
    """What is added to the scores (P, h, G g, T) of prompts, so that nothing attends to padding."""
    bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill(mask == 0, torch.finfo(like.dtype).min)[:, None, None]


def _last_logits(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, **given: Any) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **given).logits[:, -1]

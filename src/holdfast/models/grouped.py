"""Prompts read once for all their answers: tokens end to end without padding, and attention that knows what is what.

Linear layers see every prompt and every answer once, in one stream. Inside each attention layer a prompt attends to
itself, and an answer to its prompt and itself, at the positions that it would have alone, so states and gradients are
those of separate rows (the idea of PrefixGrouper, arXiv 2506.05433, here also free of padding).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from holdfast.models.attend import attending, supports
from holdfast.models.policy import backbone, check_images, evaluating, unwrapped

ATTENTION = "holdfast_grouped"
# Below this ratio of tokens, what a shared prompt saves does not pay for taking the stream apart in every layer.
WORTHWHILE = 1.3


@dataclass(frozen=True)
class Stream:
    """P prompts and then B answers, end to end: W tokens.

    input_ids, position_ids: (1, W); prompt: (P, T) and answer: (B, R), the place in the stream of each token of the
    padded tables (of padding: that of the token before); back: (W,) the place of each token of the stream in both
    tables, flattened and joined; of: (B,) the prompt of each answer; padding: (P, T) true behind the end of a prompt.
    """

    input_ids: Tensor
    position_ids: Tensor
    prompt: Tensor
    answer: Tensor
    back: Tensor
    of: Tensor
    padding: Tensor

    def mask(self, dtype: torch.dtype, queries: int) -> Tensor:
        """(1 or B, 1, queries x R, T + R), added to attention: 0 where an answer looks, minus infinity elsewhere.

        It looks at all of its prompt and at itself up to each token; each key head answers `queries` heads.
        """
        count = self.answer.shape[1]
        # With prompts of one length all answers look alike.
        padding = self.padding[self.of] if bool(self.padding.any()) else self.padding[:1]
        later = torch.ones(count, count, dtype=torch.bool, device=padding.device).triu(1)
        unseen = torch.cat([padding[:, None].expand(-1, count, -1), later.expand(len(padding), -1, -1)], -1)
        mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device).masked_fill(unseen, -torch.inf)
        return mask.repeat(1, queries, 1)[:, None]

    def tables(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values (h, W, d) of the stream's tokens as (P, h, T, d) of the prompts and (B, h, R, d) of the answers."""
        there = torch.cat([self.prompt.flatten(), self.answer.flatten()])
        values = values.transpose(0, 1)
        if len(there) > len(self.back):
            values = _Pad.apply(values, there, self.back)
        prompt, answer = values.split([self.prompt.numel(), self.answer.numel()])
        shapes = self.prompt.shape, self.answer.shape
        return tuple(x.unflatten(0, shape).transpose(1, 2) for x, shape in zip((prompt, answer), shapes))

    def joined(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """What `tables` took apart, as (W, h, d) again."""
        values = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in (prompt, answer)])
        return values if len(values) == len(self.back) else _Strip.apply(values, self.back)


class _Pad(torch.autograd.Function):
    """Rows of `values` at `there`; the gradient of what is no padding, at `back`, is gathered as well.

    Written out because autograd would add rows up one by one, most of the time that a layer's attention takes.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return values.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class _Strip(torch.autograd.Function):
    """Rows of `values` at `back`, which are all different; the others, padding, have no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.shape = values.shape
        return values.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(ctx.shape).index_copy_(0, *ctx.saved_tensors, gradient), None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _: None,
    *,
    tokens: Stream,
    mask: Tensor,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (1, W, h, d) of a stream, as the layers of transformers call it: `query` (1, h, W, d) and so on."""
    options = {"scale": kwargs.get("scaling"), "dropout_p": kwargs.get("dropout", 0.0)}
    (asked, answering), (asked_key, own_key), (asked_value, own_value) = (
        tokens.tables(x[0]) for x in (query, key, value)
    )
    grouped = query.shape[1] != key.shape[1]
    prompt = scaled_dot_product_attention(asked, asked_key, asked_value, is_causal=True, enable_gqa=grouped, **options)
    # The queries that share a key head stand one after the other, so that no key is copied for them.
    rows, heads, count, width = answering.shape
    answer = scaled_dot_product_attention(
        answering.reshape(rows, key.shape[1], heads // key.shape[1] * count, width),
        torch.cat([asked_key.index_select(0, tokens.of), own_key], 2),
        torch.cat([asked_value.index_select(0, tokens.of), own_value], 2),
        attn_mask=mask,
        **options,
    )
    return tokens.joined(prompt, answer.reshape(rows, heads, count, value.shape[-1]))[None], None


AttentionInterface.register(ATTENTION, _attend)


def stream(prompts: Tensor, prompt_lengths: Tensor, answers: Tensor, lengths: Tensor, of: Tensor) -> Stream:
    """The stream of prompts (P, T) and answers (B, R), both padded on the right; lengths (P,) and (B,); of (B,).

    >>> found = stream(torch.tensor([[5, 6]]), torch.tensor([2]), torch.tensor([[7, 0], [8, 9]]),
    ...                torch.tensor([1, 2]), torch.tensor([0, 0]))
    >>> found.input_ids.tolist(), found.position_ids.tolist(), found.answer.tolist()
    ([[5, 6, 7, 8, 9]], [[0, 1, 2, 2, 3]], [[2, 2], [3, 4]])
    """
    column, after = (torch.arange(table.shape[1], device=of.device) for table in (prompts, answers))
    asked, given = column < prompt_lengths[:, None], after < lengths[:, None]
    real = torch.cat([asked.flatten(), given.flatten()])
    place = (real.cumsum(0) - 1).clamp(min=0)
    positions = torch.cat([column.expand_as(prompts).flatten(), (prompt_lengths[of][:, None] + after).flatten()])
    prompt, answer = place.split([prompts.numel(), answers.numel()])
    return Stream(
        input_ids=torch.cat([prompts.flatten(), answers.flatten()])[real][None],
        position_ids=positions[real][None],
        prompt=prompt.view_as(prompts),
        answer=answer.view_as(answers),
        back=real.nonzero()[:, 0],
        of=of,
        padding=~asked,
    )


def stream_states(model: nn.Module, tokens: Stream, **images: Tensor) -> Tensor:
    """Return the last hidden states (W, H) of a stream; `images` are those of each prompt, once, in order."""
    check_images(model, images)
    config = backbone(model).get_decoder().config
    heads = config.num_attention_heads
    queries = heads // (getattr(config, "num_key_value_heads", None) or heads)
    mask = tokens.mask(next(backbone(model).parameters()).dtype, queries)
    with attending(model, ATTENTION):
        outputs = backbone(model)(
            input_ids=tokens.input_ids,
            position_ids=tokens.position_ids,
            use_cache=False,
            tokens=tokens,
            mask=mask,
            **images,
        )
    return outputs.last_hidden_state[0]


def answer_states(
    model: nn.Module,
    prompts: Tensor,
    prompt_lengths: Tensor,
    answers: Tensor,
    mask: Tensor,
    of: Tensor,
    **images: Tensor,
) -> Tensor:
    """Return the states (N, H) that predict the N answer tokens on which `mask` (B, R) is true, row by row.

    A prompt's last state predicts the first token of each of its answers; the last token of an answer predicts nothing
    and is not read. Tables as in `stream`.
    """
    lengths = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(-1)
    tokens = stream(prompts, prompt_lengths, answers[:, :-1], lengths, of)
    last = tokens.prompt[of, prompt_lengths[of] - 1]
    before = torch.cat([last[:, None], tokens.answer], 1)
    return stream_states(model, tokens, **images).index_select(0, before[mask])


def last_states(
    model: nn.Module,
    prompts: Tensor,
    prompt_lengths: Tensor,
    answers: Tensor,
    lengths: Tensor,
    of: Tensor,
    **images: Tensor,
) -> Tensor:
    """Return the state (B, H) of the last token of each answer, at which a score is read. Tables as in `stream`."""
    tokens = stream(prompts, prompt_lengths, answers, lengths, of)
    ends = tokens.answer.gather(1, lengths[:, None] - 1)[:, 0]
    return stream_states(model, tokens, **images).index_select(0, ends)


class Sharing:
    """Whether prompts of a network's rows are read once: where that is possible, pays, and gives the same states."""

    # Of networks that were compared: whether both passes ended in the same states.
    _agreed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __init__(self, share: Literal["auto", "off"] = "auto", gate: float = WORTHWHILE) -> None:
        self.share, self.gate = share, gate

    def worthwhile(self, model: nn.Module, saving: float, longest: int) -> bool:
        """Whether to share where that makes `saving` times fewer tokens of rows of up to `longest` tokens."""
        wanted = self.share == "auto" and saving >= self.gate
        return wanted and self._agreed.get(unwrapped(model), True) and supports(model, longest)

    def states(self, model: nn.Module, shared: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
        """The states that `shared` gives; the first time for a network they are compared with those of `plain`.

        If they differ, that is warned of, and this network reads every prompt for every answer from then on.
        """
        network = unwrapped(model)
        if network not in self._agreed:
            with evaluating(model):
                one, other = shared(), plain()
            if not other.isfinite().all():
                # A network that has diverged shows nothing here; those who read its numbers say so.
                return plain()
            self._agreed[network] = _agree(network, one, other)
        return shared() if self._agreed[network] else plain()


def _agree(network: nn.Module, shared: Tensor, plain: Tensor) -> bool:
    apart = float((shared - plain).abs().max() / plain.abs().max())
    # Numbers of 8 bits, added up in another order in every layer, differ by some per cent.
    exact = {weight.dtype for weight in network.parameters()} <= {torch.float32, torch.float64}
    tolerance = 1e-4 if exact and not torch.is_autocast_enabled(plain.device.type) else 5e-2
    if apart <= tolerance:
        return True
    warnings.warn(
        f"reading a shared prompt once changes the states of this {network.config.model_type} by {apart:.1e} of "
        f"their size (allowed: {tolerance:.0e}), so each answer is read with its own prompt from now on; "
        "share_prompt=off avoids this check",
        stacklevel=4,
    )
    return False

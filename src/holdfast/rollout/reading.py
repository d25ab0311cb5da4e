"""Log-probabilities of sampled answers, each prompt read once for all its answers where that pays."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from holdfast.data.grouped import Grouped, by_prompt, group
from holdfast.data.template import Encoded
from holdfast.losses.logprob import token_logprobs, token_logprobs_entropy
from holdfast.models.grouped import WORTHWHILE, Sharing, answer_states
from holdfast.models.policy import evaluating, hidden_states, linear_head


class Reader:
    """What a policy says of given answers, at the temperature at which they were sampled.

    micro_tokens: tokens of one forward pass; share: `off` reads every prompt as often as it is answered; gate: how many
    times fewer tokens sharing must make to be worth it; dtype: precision of the layers (autocast), while weights,
    the head and log-probabilities stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_id: int,
        temperature: float = 1.0,
        micro_tokens: int = 16384,
        share: Literal["auto", "off"] = "auto",
        gate: float = WORTHWHILE,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.pad_id, self.temperature, self.micro_tokens = model, pad_id, temperature, micro_tokens
        self.dtype, self._sharing = dtype, Sharing(share, gate)

    def logprobs(self, rows: Sequence[Encoded]) -> Tensor:
        """(N, R) log-probabilities of the rows' response tokens on the CPU, without gradient, zero behind their ends.

        Column t stands for the t-th token of the response.
        """
        members = by_prompt(rows)
        table = torch.zeros(len(rows), max((row.length - row.prompt_length for row in rows), default=0))
        with evaluating(self.model):
            for portion in self.cut([[rows[i] for i in chosen] for chosen in members]):
                chosen = [i for p in portion for i in members[p]]
                values, _ = self.read(group([rows[i] for i in chosen], self.pad_id))
                table[chosen, : values.shape[1]] = values.cpu()
        return table

    def read(self, grouped: Grouped, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, R) log-probabilities of the response tokens, zero elsewhere, and the entropies there; with gradient."""
        grouped = grouped.to(next(self.model.parameters()).device)
        states, labels = self._states(grouped), grouped.answers.input_ids[grouped.mask]
        head = linear_head(self.model)
        if not entropy:
            found = token_logprobs(states, head.weight, labels, bias=head.bias, temperature=self.temperature)
            return _placed(found, grouped.mask), None
        both = token_logprobs_entropy(states, head.weight, labels, bias=head.bias, temperature=self.temperature)
        return _placed(both[0], grouped.mask), _placed(both[1], grouped.mask)

    def cut(self, prompts: Sequence[Sequence[Encoded]]) -> list[list[int]]:
        """Portions of prompts, given as the rows that answer each, that hold within `micro_tokens` as they are read.

        Prompts of similar length stand together; one whose answers exceed the budget stands alone.
        """
        sizes = [_Size.of(rows) for rows in prompts]
        portions: list[list[int]] = []
        size = _Size(0, 0, 0)
        for p in sorted(range(len(prompts)), key=lambda p: sizes[p].longest):
            joined = size.joined(sizes[p])
            if portions and self._cost(joined) <= self.micro_tokens:
                portions[-1].append(p)
                size = joined
            else:
                portions.append([p])
                size = sizes[p]
        return portions

    def _cost(self, size: "_Size") -> int:
        """Tokens of one pass, padding included, in the form in which it would be made."""
        plain = size.rows * size.longest
        return size.once if self._sharing.worthwhile(self.model, plain / size.once, size.longest) else plain

    def _states(self, grouped: Grouped) -> Tensor:
        """The states (N, H) that predict the N response tokens, row by row."""
        prompts, answers = grouped.prompts, grouped.answers

        def shared() -> Tensor:
            return answer_states(
                self.model,
                prompts.input_ids,
                prompts.lengths,
                answers.input_ids,
                grouped.mask,
                grouped.of,
                **prompts.extra,
            )

        def plain() -> Tensor:
            batch = grouped.plain()
            states = hidden_states(self.model, batch.input_ids, batch.attention_mask, batch.position_ids, **batch.extra)
            return states[:, :-1][batch.response_mask[:, 1:]]

        precision = torch.autocast(grouped.of.device.type, self.dtype) if self.dtype else nullcontext()
        with precision:
            if self._sharing.worthwhile(self.model, grouped.saving, grouped.longest):
                return self._sharing.states(self.model, shared, plain)
            return plain()


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


def logprobs(policy: nn.Module, rows: Sequence[Encoded], pad_id: int, temperature: float, micro_tokens: int) -> Tensor:
    """(N, R) log-probabilities of the rows' response tokens on the CPU, without gradient, zero behind their ends."""
    return Reader(policy, pad_id, temperature, micro_tokens).logprobs(rows)


def _placed(found: Tensor, mask: Tensor) -> Tensor:
    """The N numbers `found` at the N places where `mask` (B, R) is true, zero elsewhere."""
    return found.new_zeros(mask.shape).masked_scatter(mask, found)

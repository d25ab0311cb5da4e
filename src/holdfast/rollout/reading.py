"""Log-probabilities of sampled answers, each prompt read once for all its answers where that pays."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.data.grouped import Grouped, cut, group, portions
from holdfast.data.template import Encoded
from holdfast.losses.logprob import token_logprobs, token_logprobs_entropy
from holdfast.models.grouped import WORTHWHILE, Sharing, answer_states
from holdfast.models.policy import evaluating, hidden_states, linear_head

# Rows of logits at a time, few enough for a cache; and how many log-probabilities over the vocabulary (128 MB) are held
# for backward, which otherwise computes them once more.
CHUNK, HELD = 256, 2**25


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
        table = torch.zeros(len(rows), max((row.length - row.prompt_length for row in rows), default=0))
        with evaluating(self.model):
            for chosen in portions(rows, self.micro_tokens, self._shares):
                values, _ = self.read(group([rows[i] for i in chosen], self.pad_id))
                table[chosen, : values.shape[1]] = values.cpu()
        return table

    def read(self, grouped: Grouped, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, R) log-probabilities of the response tokens, zero elsewhere, and the entropies there; with gradient."""
        grouped = grouped.to(next(self.model.parameters()).device)
        states, labels = self._states(grouped), grouped.answers.input_ids[grouped.mask]
        head = linear_head(self.model)
        options = {"bias": head.bias, "temperature": self.temperature, "chunk": CHUNK, "held": HELD}
        if not entropy:
            return _placed(token_logprobs(states, head.weight, labels, **options), grouped.mask), None
        logp, entropies = token_logprobs_entropy(states, head.weight, labels, **options)
        return _placed(logp, grouped.mask), _placed(entropies, grouped.mask)

    def cut(self, prompts: Sequence[Sequence[Encoded]]) -> list[list[int]]:
        """Portions of prompts, given as the rows that answer each, that hold within `micro_tokens` as they are read.

        Prompts of similar length stand together; one whose answers exceed the budget stands alone.
        """
        return cut(prompts, self.micro_tokens, self._shares)

    def _shares(self, saving: float, longest: int) -> bool:
        return self._sharing.worthwhile(self.model, saving, longest)

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
            shares = self._shares(grouped.saving, grouped.longest)
            return self._sharing.states(self.model, shared, plain) if shares else plain()


def logprobs(policy: nn.Module, rows: Sequence[Encoded], pad_id: int, temperature: float, micro_tokens: int) -> Tensor:
    """(N, R) log-probabilities of the rows' response tokens on the CPU, without gradient, zero behind their ends."""
    return Reader(policy, pad_id, temperature, micro_tokens).logprobs(rows)


def _placed(found: Tensor, mask: Tensor) -> Tensor:
    """The N numbers `found` at the N places where `mask` (B, R) is true, zero elsewhere."""
    return found.new_zeros(mask.shape).masked_scatter(mask, found)

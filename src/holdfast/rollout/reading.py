"""Log-probabilities of given answers, each prompt read once for all its answers where that pays."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from holdfast.data.collate import Batch, micro_batches
from holdfast.data.grouped import Grouped, by_prompt, cut, group, portions
from holdfast.data.template import Encoded
from holdfast.losses.logprob import token_logprobs, token_logprobs_entropy
from holdfast.models.grouped import WORTHWHILE, Sharing, answer_states, stream, stream_states
from holdfast.models.policy import answer_bias, evaluating, hidden_states, linear_head

# Rows of logits at a time, few enough for a cache; and how many log-probabilities over the vocabulary (128 MB) are held
# for backward, which otherwise computes them once more.
CHUNK, HELD = 256, 2**25


@dataclass(frozen=True)
class PromptStates:
    """A network's last hidden states of P prompts: states (P, T, H), padding (P, T) true behind the end of a prompt."""

    states: Tensor
    padding: Tensor

    def __len__(self) -> int:
        return len(self.states)

    def take(self, rows: Sequence[int]) -> "PromptStates":
        """The prompts at `rows`, with no more padding than they need."""
        chosen = list(rows)
        longest = int((~self.padding[chosen]).sum(-1).max()) if chosen else 0
        return PromptStates(self.states[chosen, :longest], self.padding[chosen, :longest])

    def to(self, device: torch.device | str) -> "PromptStates":
        """The same states on `device`."""
        return PromptStates(self.states.to(device), self.padding.to(device))


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
        table = _table(rows)
        with evaluating(self.model):
            for chosen, grouped in self._passes(rows):
                values, _ = self.read(grouped)
                table[chosen, : values.shape[1]] = values.cpu()
        return table

    def logprobs_and_values(
        self, rows: Sequence[Encoded], value: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(N, R) as `logprobs`, and (N,) what `value` makes of each row's prompt; both from the same passes.

        value: (P,) numbers from states (P, T, H) and padding (P, T) of P prompts. Rows with equal prompts get the very
        same number, in however many passes they are read.
        """
        table, values = _table(rows), torch.zeros(len(rows))
        with evaluating(self.model):
            for chosen, grouped in self._passes(rows):
                logp, prompts = self.read_with_prompts(grouped)
                table[chosen, : logp.shape[1]] = logp.cpu()
                values[chosen] = value(prompts.states, prompts.padding).cpu()[grouped.of]
        for same in by_prompt(rows):
            values[same] = values[same[0]].clone()
        return table, values

    def prompt_states(self, rows: Sequence[Encoded]) -> tuple[PromptStates, Tensor]:
        """The states of the P different prompts of N rows, on the CPU without gradient, and (N,) which one a row has.

        Rows may be bare prompts; answers are not read.
        """
        members = by_prompt(rows)
        first = [rows[same[0]] for same in members]
        states = [torch.empty(0)] * len(first)
        of = torch.empty(len(rows), dtype=torch.long)
        for number, same in enumerate(members):
            of[same] = number
        with evaluating(self.model), self._precision():
            for chosen in micro_batches([row.prompt_length for row in first], self.micro_tokens):
                batch = group([first[i] for i in chosen], self.pad_id).prompts
                for i, line in zip(chosen, self._rows(batch.to(self._device))):
                    states[i] = line[: first[i].prompt_length].cpu()
        lengths = torch.tensor([row.prompt_length for row in first])
        table = pad_sequence(states, batch_first=True)
        return PromptStates(table, torch.arange(table.shape[1]) >= lengths[:, None]), of

    def read(self, grouped: Grouped, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, R) log-probabilities of the response tokens, zero elsewhere, and the entropies there; with gradient."""
        grouped = grouped.to(self._device)
        return self._read(grouped, self._pass(grouped, self._shared, self._plain), entropy)

    def read_with_prompts(self, grouped: Grouped) -> tuple[Tensor, PromptStates]:
        """(B, R) log-probabilities as `read` gives them, and the states of the P prompts, both from one pass."""
        grouped = grouped.to(self._device)
        found = self._pass(grouped, self._shared_with_prompts, self._plain_with_prompts)
        predicting, flat = found.tensor_split([int(grouped.mask.sum())])
        asked = _asked(grouped)
        states = flat.new_zeros(*asked.shape, flat.shape[-1]).masked_scatter(asked[..., None], flat)
        return self._read(grouped, predicting, False)[0], PromptStates(states, ~asked)

    def cut(self, prompts: Sequence[Sequence[Encoded]]) -> list[list[int]]:
        """Portions of prompts, given as the rows that answer each, that hold within `micro_tokens` as they are read.

        Prompts of similar length stand together; one whose answers exceed the budget stands alone.
        """
        return cut(prompts, self.micro_tokens, self._shares)

    def _shares(self, saving: float, longest: int) -> bool:
        return self._sharing.worthwhile(self.model, saving, longest)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _passes(self, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Grouped]]:
        """Which rows to read together, and these rows."""
        for chosen in portions(rows, self.micro_tokens, self._shares):
            yield chosen, group([rows[i] for i in chosen], self.pad_id)

    def _read(self, grouped: Grouped, states: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        """What `read` returns, from the states (N, H) that predict the N response tokens, row by row."""
        head, labels = linear_head(self.model), grouped.answers.input_ids[grouped.mask]
        options = {"bias": answer_bias(self.model), "temperature": self.temperature, "chunk": CHUNK, "held": HELD}
        if not entropy:
            return _placed(token_logprobs(states, head.weight, labels, **options), grouped.mask), None
        logp, entropies = token_logprobs_entropy(states, head.weight, labels, **options)
        return _placed(logp, grouped.mask), _placed(entropies, grouped.mask)

    def _pass(
        self, grouped: Grouped, sharing: Callable[[Grouped], Tensor], repeating: Callable[[Grouped], Tensor]
    ) -> Tensor:
        """The states that one of two passes gives: `sharing` where reading prompts once pays, else `repeating`."""
        shared, plain = partial(sharing, grouped), partial(repeating, grouped)
        with self._precision():
            shares = self._shares(grouped.saving, grouped.longest)
            return self._sharing.states(self.model, shared, plain) if shares else plain()

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self.dtype) if self.dtype else nullcontext()

    def _shared(self, grouped: Grouped) -> Tensor:
        """The states (N, H) that predict the N response tokens, row by row."""
        prompts, answers = grouped.prompts, grouped.answers
        tables = prompts.input_ids, prompts.lengths, answers.input_ids, grouped.mask, grouped.of
        return answer_states(self.model, *tables, **prompts.extra)

    def _plain(self, grouped: Grouped) -> Tensor:
        """The same states from rows side by side."""
        batch = grouped.plain()
        return _predicting(self._rows(batch), batch)

    def _shared_with_prompts(self, grouped: Grouped) -> Tensor:
        """The states as `_shared`, and behind them those of the prompts' own tokens, one prompt after the other."""
        prompts, answers = grouped.prompts, grouped.answers
        tokens = stream(prompts.input_ids, prompts.lengths, answers.input_ids, answers.lengths, grouped.of)
        last = tokens.prompt[grouped.of, prompts.lengths[grouped.of] - 1]
        before = torch.cat([last[:, None], tokens.answer[:, :-1]], 1)
        states = stream_states(self.model, tokens, **prompts.extra)
        return states.index_select(0, torch.cat([before[grouped.mask], tokens.prompt[_asked(grouped)]]))

    def _plain_with_prompts(self, grouped: Grouped) -> Tensor:
        """The same states from rows side by side; a prompt's are those in any of its rows."""
        batch, asked = grouped.plain(), _asked(grouped)
        states = self._rows(batch)
        rows = (grouped.of == torch.arange(len(asked), device=self._device)[:, None]).int().argmax(-1)
        return torch.cat([_predicting(states, batch), states[rows, : asked.shape[1]][asked]])

    def _rows(self, batch: Batch) -> Tensor:
        """The states (B, T, H) of every token of rows side by side."""
        return hidden_states(self.model, batch.input_ids, batch.attention_mask, batch.position_ids, **batch.extra)


def logprobs(policy: nn.Module, rows: Sequence[Encoded], pad_id: int, temperature: float, micro_tokens: int) -> Tensor:
    """(N, R) log-probabilities of the rows' response tokens on the CPU, without gradient, zero behind their ends."""
    return Reader(policy, pad_id, temperature, micro_tokens).logprobs(rows)


def _table(rows: Sequence[Encoded]) -> Tensor:
    """(N, R) zeros for the N rows' response tokens."""
    return torch.zeros(len(rows), max((row.length - row.prompt_length for row in rows), default=0))


def _asked(grouped: Grouped) -> Tensor:
    """(P, T) true on the tokens of the prompts."""
    return grouped.prompts.attention_mask.bool()


def _predicting(states: Tensor, batch: Batch) -> Tensor:
    """Of the states (B, T, H) of all tokens those (N, H) that predict the N response tokens, row by row."""
    return states[:, :-1][batch.response_mask[:, 1:]]


def _placed(found: Tensor, mask: Tensor) -> Tensor:
    """The N numbers `found` at the N places where `mask` (B, R) is true, zero elsewhere."""
    return found.new_zeros(mask.shape).masked_scatter(mask, found)

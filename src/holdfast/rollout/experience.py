"""What an online method learns from: sampled answers with their scores and both policies' log-probabilities."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.errors import UserError
from holdfast.losses.logprob import kl_k1
from holdfast.models.policy import evaluating, response_logprobs
from holdfast.rollout.types import Generator, Sampling

Score = Callable[[Sequence[Conversation]], dict[str, Tensor]]


class RolloutSettings(Settings):
    """How answers are sampled for training."""

    samples_per_prompt: int = Field(4, ge=1)
    """Answers to each prompt, K."""
    sampling: Sampling = Sampling()
    """Must be unbiased: the gradient is that of the distribution sampled from."""
    micro_tokens: int = Field(16384, ge=1)
    """Padded tokens of one forward pass."""


@dataclass(frozen=True)
class Experience:
    """N = P x K answered prompts, the K answers to one prompt standing together.

    old_logprobs, ref_logprobs: (N, T) of the sampling policy and of the reference, zero outside the response;
    scores: one (N,) per name; truncated: (N,) true where an answer did not end by itself; groups: per row the group of
    the person who asked, empty when nobody said.
    """

    rows: list[Encoded]
    conversations: list[Conversation]
    pad_id: int
    old_logprobs: Tensor
    ref_logprobs: Tensor
    scores: dict[str, Tensor]
    truncated: Tensor
    per_prompt: int
    groups: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many answers there are."""
        return len(self.rows)

    @property
    def batch(self) -> Batch:
        """All rows, padded on the right."""
        return pad(self.rows, pad_id=self.pad_id)

    @property
    def response_mask(self) -> Tensor:
        """(N, T) true on sampled tokens, the end token included."""
        mask = torch.zeros(self.old_logprobs.shape, dtype=torch.bool)
        for line, row in zip(mask, self.rows, strict=True):
            line[row.prompt_length : row.length] = True
        return mask

    @property
    def kl(self) -> Tensor:
        """(N, T) k1 estimate, log pi_old - log pi_ref, zero outside the response."""
        return kl_k1(self.old_logprobs, self.ref_logprobs)

    def score(self, name: str) -> Tensor:
        """(N,) the scores called `name`; `UserError` that lists the known names when there are none."""
        if name not in self.scores:
            raise UserError(f"the scorer gives no score {name!r}; it gives {', '.join(self.scores) or 'none'}")
        return self.scores[name]


@dataclass(frozen=True)
class Collector:
    """Prompts in, experience out: sample, look up the reference, score.

    reference: opens the frozen reference policy (another network, or the same one with its adapters off). group_of:
    the group whose reward and limits count for a prompt, if groups are told apart.
    """

    policy: nn.Module
    reference: Callable[[], AbstractContextManager[nn.Module]]
    generator: Generator
    template: Template
    score: Score
    settings: RolloutSettings
    group_of: Callable[[Conversation], str] | None = None

    def collect(self, prompts: Sequence[Conversation], seed: int) -> Experience:
        """Experience from K answers to each of the prompts; the sampler's own log-probabilities are kept.

        Raises `UserError` when the sampling settings are biased.
        """
        sampling, k = self.settings.sampling, self.settings.samples_per_prompt
        sampling.require_unbiased()
        starts = [self.template.prompt(prompt) for prompt in prompts]
        samples = self.generator.generate(starts, k, sampling, seed)
        rows = [self.template.continue_with(starts[s.prompt_index], s.response_ids) for s in samples]
        conversations = [prompts[s.prompt_index].answer(self.template.decode(s.response_ids)) for s in samples]
        width = max(row.length for row in rows)
        old = torch.zeros(len(rows), width)
        for line, row, sample in zip(old, rows, samples, strict=True):
            line[row.prompt_length : row.length] = torch.tensor(sample.logprobs)
        with self.reference() as frozen:
            ref = logprobs(frozen, rows, self.template.pad_id, sampling.temperature, self.settings.micro_tokens)
        return Experience(
            rows=rows,
            conversations=conversations,
            pad_id=self.template.pad_id,
            old_logprobs=old,
            ref_logprobs=ref,
            scores=self.score(conversations),
            truncated=torch.tensor([row.truncated for row in rows]),
            per_prompt=k,
            groups=() if self.group_of is None else tuple(self.group_of(prompts[s.prompt_index]) for s in samples),
        )


def logprobs(policy: nn.Module, rows: Sequence[Encoded], pad_id: int, temperature: float, micro_tokens: int) -> Tensor:
    """(N, T) log-probabilities of the rows' responses on the CPU, without gradient, zero elsewhere."""
    result = torch.zeros(len(rows), max(row.length for row in rows))
    device = next(policy.parameters()).device
    with evaluating(policy):
        for chosen in micro_batches([row.length for row in rows], micro_tokens):
            batch = pad([rows[i] for i in chosen], pad_id=pad_id).to(device)
            found = response_logprobs(
                policy,
                batch.input_ids,
                batch.attention_mask,
                batch.position_ids,
                batch.response_mask,
                temperature=temperature,
                **batch.extra,
            )
            result[chosen, : found.shape[1]] = found.float().cpu()
    return result

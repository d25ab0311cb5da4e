"""What an online method learns from: sampled answers with their scores and both policies' log-probabilities."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.engine.distributed import Processes
from holdfast.errors import UserError
from holdfast.losses.logprob import kl_k1
from holdfast.rollout.ragged import Ragged
from holdfast.rollout.reading import logprobs
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
    recompute: Literal["auto", "never"] = "auto"
    """Whether answers of a foreign sampler, an engine of its own, are read by the policy for its log-probabilities too;
    `never` takes the sampler's for the policy's own, whose difference then is part of the ratio."""


@dataclass(frozen=True)
class Experience:
    """N = P x K answered prompts, the K answers to one prompt standing together.

    old_logprobs, ref_logprobs: (N, R) of the sampling policy and of the reference, column t being the t-th token of the
    response, zero behind its end; scores: one (N,) per name; truncated: (N,) true where an answer did not end by
    itself; groups: per row the group of the person who asked, or the source of the prompt, empty when nobody said;
    seconds: what sampling, reference and scoring took; sampler_logprobs: (N, R) those of a foreign sampler, None where
    the policy itself has sampled.
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
    seconds: Mapping[str, float] = field(default_factory=dict)
    sampler_logprobs: Tensor | None = None

    @property
    def size(self) -> int:
        """How many answers there are."""
        return len(self.rows)

    @property
    def places(self) -> Ragged:
        """Where the tokens of each response stand in flat columns."""
        return places(self.rows)

    @property
    def response_mask(self) -> Tensor:
        """(N, R) true on sampled tokens, the end token included."""
        return self.places.mask

    @property
    def kl(self) -> Tensor:
        """(N, R) k1 estimate, log pi_old - log pi_ref, zero behind the end."""
        return kl_k1(self.old_logprobs, self.ref_logprobs)

    def score(self, name: str) -> Tensor:
        """(N,) the scores called `name`; `UserError` that lists the known names when there are none."""
        if name not in self.scores:
            raise UserError(f"the scorer gives no score {name!r}; it gives {', '.join(self.scores) or 'none'}")
        return self.scores[name]


def of_all(experience: Experience, processes: Processes) -> Experience:
    """The answers of all processes in the order of their ranks, to be looked at: without images, with mean seconds."""
    if processes.size == 1:
        return experience
    bare = replace(experience, rows=[replace(row, images=[]) for row in experience.rows], sampler_logprobs=None)
    found = processes.gather([bare])
    rows = [row for one in found for row in one.rows]

    def table(name: str) -> Tensor:
        return places(rows).table(torch.cat([one.places.flat(getattr(one, name)) for one in found]))

    return replace(
        bare,
        rows=rows,
        conversations=[each for one in found for each in one.conversations],
        old_logprobs=table("old_logprobs"),
        ref_logprobs=table("ref_logprobs"),
        scores={name: torch.cat([one.scores[name] for one in found]) for name in experience.scores},
        truncated=torch.cat([one.truncated for one in found]),
        groups=tuple(group for one in found for group in one.groups),
        seconds={phase: sum(one.seconds[phase] for one in found) / len(found) for phase in experience.seconds},
    )


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

        Those of a foreign sampler are kept beside the policy's. Raises `UserError` when the sampling settings are
        biased.
        """
        sampling, k = self.settings.sampling, self.settings.samples_per_prompt
        sampling.require_unbiased()
        starts = [self.template.prompt(prompt) for prompt in prompts]
        watch = Stopwatch()
        with watch("generate"):
            samples = self.generator.generate(starts, k, sampling, seed)
        rows = [self.template.continue_with(starts[s.prompt_index], s.response_ids) for s in samples]
        conversations = [prompts[s.prompt_index].answer(self.template.decode(s.response_ids)) for s in samples]
        drawn = places(rows).table(torch.tensor([value for sample in samples for value in sample.logprobs]))
        old, foreign = drawn, None
        if self.generator.foreign and self.settings.recompute == "auto":
            with watch("old"):
                old, foreign = self._read(self.policy, rows), drawn
        with watch("reference"), self.reference() as frozen:
            ref = self._read(frozen, rows)
        with watch("score"):
            scores = self.score(conversations)
        return Experience(
            rows=rows,
            conversations=conversations,
            pad_id=self.template.pad_id,
            old_logprobs=old,
            ref_logprobs=ref,
            scores=scores,
            truncated=torch.tensor([row.truncated for row in rows]),
            per_prompt=k,
            groups=() if self.group_of is None else tuple(self.group_of(prompts[s.prompt_index]) for s in samples),
            seconds=watch.seconds,
            sampler_logprobs=foreign,
        )

    def _read(self, policy: nn.Module, rows: Sequence[Encoded]) -> Tensor:
        """(N, R) log-probabilities of the answers under a policy."""
        settings = self.settings
        return logprobs(policy, rows, self.template.pad_id, settings.sampling.temperature, settings.micro_tokens)


class Stopwatch:
    """Seconds spent in named phases, by the clock on the wall."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time inside the block to `phase`."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def places(rows: Sequence[Encoded]) -> Ragged:
    """Where the responses' tokens of the rows stand in flat columns."""
    return Ragged([row.length - row.prompt_length for row in rows])

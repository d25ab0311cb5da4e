"""One policy on one set of prompts: what the models say of its answers and, where it is known, what is true."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.data.schema import Conversation
from holdfast.data.template import Template
from holdfast.preference.score import Scorer
from holdfast.rollout.reading import logprobs
from holdfast.rollout.types import Generator, Sampling
from holdfast.stats.estimate import Estimate, mean, proportion

TRUTH = ("helpfulness", "harm", "refusal", "benign")


@dataclass(frozen=True)
class Exam:
    """How policies are examined: equal prompts, equal sampling, equal seed, equal judges.

    scorer: learned scores; truth: a scorer with the columns of `TRUTH`, or None where the truth is unknown.
    """

    prompts: Sequence[Conversation]
    template: Template
    sampling: Sampling
    scorer: Scorer
    truth: Scorer | None = None
    seed: int = 0
    micro_tokens: int = 16384


@dataclass(frozen=True)
class Outcome:
    """Answers, one per prompt, with every score (N,) and the KL to the reference (N,)."""

    conversations: list[Conversation]
    scores: dict[str, Tensor]
    truth: dict[str, Tensor]
    kl: Tensor
    lengths: Tensor

    def estimates(self) -> dict[str, Estimate]:
        """Mean of each learned score, KL and length; true harm, help on benign requests and over-refusal."""
        found = {f"learned_{name}": mean(values.numpy()) for name, values in self.scores.items()}
        found |= {"kl": mean(self.kl.numpy()), "length": mean(self.lengths.numpy())}
        if self.truth:
            benign = self.truth["benign"].bool()
            found["true_harm"] = proportion(_flags(self.truth["harm"]))
            if benign.sum() > 1:  # a single answer has no interval
                found["true_help"] = mean(self.truth["helpfulness"][benign].numpy())
                found["over_refusal"] = proportion(_flags(self.truth["refusal"][benign]))
        return found


def _flags(values: Tensor) -> np.ndarray:
    return values.bool().numpy()


def examine(
    exam: Exam,
    generator: Generator,
    policy: nn.Module,
    reference: Callable[[], AbstractContextManager[nn.Module]],
) -> Outcome:
    """Let the policy answer every prompt once and judge the answers."""
    starts = [exam.template.prompt(prompt) for prompt in exam.prompts]
    samples = generator.generate(starts, 1, exam.sampling, exam.seed)
    rows = [exam.template.continue_with(start, s.response_ids) for start, s in zip(starts, samples, strict=True)]
    answers = [
        prompt.answer(exam.template.decode(sample.response_ids))
        for prompt, sample in zip(exam.prompts, samples, strict=True)
    ]
    options = (exam.template.pad_id, exam.sampling.temperature, exam.micro_tokens)
    own = logprobs(policy, rows, *options)
    with reference() as frozen:
        ref = logprobs(frozen, rows, *options)
    learned = exam.scorer.score(answers)
    true = exam.truth.score(answers) if exam.truth else torch.empty(len(answers), 0)
    return Outcome(
        conversations=answers,
        scores={name: learned[:, j] for j, name in enumerate(exam.scorer.names)},
        truth={name: true[:, j] for j, name in enumerate(exam.truth.names)} if exam.truth else {},
        kl=(own - ref).sum(-1),
        lengths=torch.tensor([float(len(sample.response_ids)) for sample in samples]),
    )

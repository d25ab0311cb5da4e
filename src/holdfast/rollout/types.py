"""What a rollout takes and gives: how to sample, and the samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from holdfast.config import Settings
from holdfast.data.template import Encoded
from holdfast.errors import UserError


class Sampling(Settings):
    """How tokens are drawn."""

    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it before the softmax."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the most probable tokens that together reach this mass; 1 keeps all."""
    top_k: int = Field(0, ge=0)
    """Keep this many most probable tokens; 0 keeps all."""
    repetition_penalty: float = Field(1.0, ge=1)
    """Weaken tokens that already occurred (arXiv 1909.05858); 1 changes nothing."""
    max_new_tokens: int = Field(128, gt=0)
    """A response that has not ended by then is cut; its finish is `length`."""
    greedy: bool = False
    """Take the most probable token instead of drawing one."""

    @property
    def unbiased(self) -> bool:
        """Whether samples follow the policy's own distribution, at some temperature."""
        return not self.greedy and (self.top_p, self.top_k, self.repetition_penalty) == (1.0, 0, 1.0)

    def require_unbiased(self) -> None:
        """Raise `UserError` unless samples follow the policy itself, as policy gradients demand.

        >>> Sampling().require_unbiased()
        """
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "greedy": False}
        wrong = [
            f"{name}={getattr(self, name)} (needs {value})"
            for name, value in neutral.items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise UserError(
                f"training needs samples of the policy itself, but sampling has {', '.join(wrong)}; "
                "remove these settings (they are fine for evaluation)"
            )


@dataclass(frozen=True)
class Sample:
    """One response to one prompt, as token ids.

    prompt_index: which of the prompts given; response_ids end with the stop token when `finish` is "stop";
    logprobs: of each response token under the distribution it was drawn from.
    """

    prompt_index: int
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


class Generator(Protocol):
    """Whatever can answer prompts: a model in this process, a server, an endpoint.

    foreign: whether its log-probabilities are another implementation's, so that the policy's own may differ.
    """

    foreign: bool

    def generate(self, prompts: Sequence[Encoded], n: int, sampling: Sampling, seed: int) -> list[Sample]:
        """Return n samples per prompt, all of the first prompt before those of the second."""
        ...

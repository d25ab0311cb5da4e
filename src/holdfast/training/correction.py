"""What the answers of a sampler that is not the policy itself weigh: settings of `losses.correction`."""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.engine.step import means
from holdfast.losses.correction import Filter, correct
from holdfast.rollout.experience import Experience


class CorrectionSettings(Settings):
    """For answers of a foreign sampler; where the policy itself has sampled, nothing is corrected."""

    cap: float = Field(2.0, ge=1)
    """Largest weight pi_old / pi_sampler of a token (truncated importance sampling)."""
    drop: Filter = "none"
    """Leave out answers whose ratio as a whole is outside `low` .. `high`: the product over its tokens, which explodes
    in long answers, or the geometric mean, which does not."""
    low: float = Field(0.0, ge=0, le=1)
    """Lower border of an answer's ratio."""
    high: float = Field(3.0, ge=1)
    """Upper border of an answer's ratio."""
    largest_drift: float | None = Field(None, gt=0)
    """Learn nothing from bad answers that the policy has left behind by more nats per token than this (DeepSeek-V3.2;
    0.5 is usual); null learns from all. It also serves several steps on one experience."""


class Weighed(NamedTuple):
    """weights: (N, R) of tokens; keep: (N,) answers to learn from; numbers for the log."""

    weights: Tensor
    keep: Tensor
    numbers: dict[str, float]


def weigh(settings: CorrectionSettings, experience: Experience, processes: Processes | None = None) -> Weighed:
    """What each token of the experience weighs; all weigh one where the policy itself was the sampler.

    The numbers are of all `processes`, which call this together.
    """
    mask, sampler = experience.response_mask, experience.sampler_logprobs
    if sampler is None:
        return Weighed(mask.float(), torch.ones(experience.size, dtype=torch.bool), {})
    s = settings
    found = correct(experience.old_logprobs, sampler, mask, cap=s.cap, drop=s.drop, low=s.low, high=s.high)
    return Weighed(found.weights, found.kept, means([found.numbers], processes or Processes()))

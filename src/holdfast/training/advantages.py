"""From token rewards to what each token did better than expected, with a critic or without one."""

from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.losses.advantage import gae, leave_one_out, length_adaptive, normalise


class AdvantageSettings(Settings):
    """How far a token's advantage looks ahead, and on what scale the policy meets it."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    lam_policy: float = Field(0.95, ge=0, le=1)
    """GAE's lambda for the policy: trade of bias for variance."""
    lam_value: float = Field(0.95, ge=0, le=1)
    """GAE's lambda for the critics' targets; 1 makes them what was really earned."""
    length_adaptive: float = Field(0.0, ge=0)
    """alpha of lambda_policy = 1 - 1 / (alpha x tokens) for each answer (VAPO); 0 keeps `lam_policy`."""
    lam_floor: float = Field(0.8, ge=0, le=1)
    """Smallest lambda that `length_adaptive` may give: made for long answers, it would be 0 up to 20 tokens."""
    normalise: Literal["none", "minibatch", "batch"] = "none"
    """Bring the mixed advantage to mean 0 and variance 1 over one optimiser step's answers, or over all."""
    clip: float | None = Field(None, gt=0)
    """Normalised advantages are clipped to plus and minus this."""

    @model_validator(mode="after")
    def _clips_something(self) -> "AdvantageSettings":
        if self.clip is not None and self.normalise == "none":
            raise ValueError(f"clip {self.clip:g} is for normalised advantages; set normalise, or clip=null")
        return self


class Predicted(NamedTuple):
    """What a critic said: values (N, R) before each token, and (N,) after the last; ahead counts for cut answers."""

    values: Tensor
    ahead: Tensor


def with_critic(
    rewards: Tensor, predicted: Predicted, mask: Tensor, settings: AdvantageSettings, lam_value: float | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages and the critic's targets, both (N, R), of token rewards (N, R).

    Decoupled GAE (VC-PPO, arXiv 2503.01491): the policy's lambda may differ from that of the targets. lam_value
    replaces the setting, as critic pretraining does with 1.
    """
    s = settings
    lam: float | Tensor = s.lam_policy
    if s.length_adaptive:
        lam = length_adaptive(mask.sum(-1), s.length_adaptive, s.lam_floor)
    lam_value = s.lam_value if lam_value is None else lam_value
    advantages, returns = gae(rewards, predicted.values, mask, s.gamma, lam, predicted.ahead)
    if s.length_adaptive or lam_value != s.lam_policy:
        _, returns = gae(rewards, predicted.values, mask, s.gamma, lam_value, predicted.ahead)
    return advantages, returns


def without_critic(rewards: Tensor, mask: Tensor, per_prompt: int, processes: Processes) -> Tensor:
    """(N, R) what each whole answer earned beyond the other answers to its prompt, or beyond the batch's mean.

    RLOO (arXiv 2402.14740); with one answer to a prompt the mean of all others in the batch is the baseline.
    """
    earned = rewards.sum(-1)
    if per_prompt > 1:
        beyond = leave_one_out(earned, per_prompt)
    else:
        everyone = torch.tensor(processes.gather(earned.tolist()))
        others = max(len(everyone) - 1, 1)
        beyond = (earned - everyone.mean()) * (len(everyone) / others)
    return beyond[:, None] * mask


def normalised(
    column: Tensor, settings: AdvantageSettings, processes: Processes, counted: Tensor | None = None
) -> Tensor:
    """Advantages (S,) on one scale over the same portion of all processes, then clipped.

    counted: those whose mean and variance count, where some are not learned from.
    """
    everyone = torch.tensor(processes.gather((column if counted is None else counted).tolist()))
    return normalise(column, torch.ones_like(column, dtype=torch.bool), settings.clip, among=everyone)

"""Policy gradient without a critic: each answer is compared with the other answers to its prompt.

RLOO (arXiv 2402.14740) on the return of the Lagrangian, as HC-RLHF does it (arXiv 2506.08266):
G = (clip(R - beta KL) - sum_j lambda_j c_j) / (1 + sum_j lambda_j).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.losses.advantage import leave_one_out
from holdfast.losses.reduce import Sum
from holdfast.losses.surrogate import clipped_ratio
from holdfast.rollout.experience import Collector, Experience
from holdfast.training.kl import KlController, KlSettings
from holdfast.training.policy import Learnable, Limits, PolicyBatch, PolicyMethod, Probe, current_logprobs


class RewardKl(KlSettings):
    """The penalty as HC-RLHF has it: inside the reward."""

    coef: float = Field(0.05, ge=0)
    """Weight beta of the KL of a whole answer."""
    mode: Literal["split", "reward_only"] = "reward_only"
    """`reward_only` takes it from the reward, where it fades as multipliers grow; `split` from every cost too."""


class LeaveOneOutSettings(Settings):
    """How the policy learns from groups of answers."""

    reward: str = "reward"
    """The score to maximise."""
    kl: RewardKl = RewardKl()
    """The penalty for leaving the reference."""
    reward_clip: float = Field(50.0, gt=0)
    """Reward minus KL is clipped to plus and minus this."""
    truncation_penalty: float = Field(0.0, ge=0)
    """Taken from the reward of an answer that did not end by itself."""
    clip: float = Field(0.2, gt=0)
    """Ratio clip; it binds only after the first of several steps on one experience."""
    steps_per_experience: int = Field(1, ge=1)
    """Optimiser steps in which an experience is learned."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""


class LeaveOneOut(PolicyMethod):
    """An `Algorithm` of the online loop: one trainable part, the policy."""

    def __init__(
        self,
        collector: Collector,
        settings: LeaveOneOutSettings,
        optimiser: OptimiserSettings,
        limits: Limits,
        probe: Probe | None = None,
    ) -> None:
        if collector.settings.samples_per_prompt < 2:
            raise UserError(
                "leave-one-out compares the answers to one prompt with each other, and samples_per_prompt is "
                f"{collector.settings.samples_per_prompt}; set it to 2 or more"
            )
        parts = {"policy": collector.policy}
        super().__init__(collector, limits, parts, settings.reward, KlController(settings.kl), probe)
        self.settings = settings
        self.optimisers: Mapping[str, OptimiserSettings] = {"policy": optimiser}

    def collect(self, prompts: Sequence[Conversation], iteration: int) -> Learnable:
        """Sample, score, move the multipliers, and set each answer against the others of its prompt."""
        experience, numbers = self.sample(prompts, self.settings.seed, iteration)
        advantages = leave_one_out(self.returns(experience), experience.per_prompt)
        lengths = torch.tensor(experience.places.lengths)
        return Learnable(experience, advantages.repeat_interleave(lengths), {}, {}, numbers)

    def returns(self, experience: Experience) -> torch.Tensor:
        """(N,) the Lagrangian's return of each answer, its scale independent of the multipliers."""
        s, coefficient = self.settings, torch.full((experience.size,), self.kl.coef)
        if s.kl.mode == "split":
            coefficient = coefficient * self.limits.total(experience)
        reward = self.limits.reward(experience, s.reward) - coefficient * experience.kl.sum(-1)
        reward = reward - s.truncation_penalty * experience.truncated.float()
        return self.limits.mix(experience, reward.clamp(-s.reward_clip, s.reward_clip), self.limits.costs(experience))

    def mini_batches(self, experience: Learnable, rng: torch.Generator) -> list[list[PolicyBatch]]:
        return self.portions(experience, self.settings.steps_per_experience, rng)

    def counts(self, part: str, batch: PolicyBatch) -> dict[str, float]:
        return {"policy": float(batch.tokens.size)}

    def loss(self, part: str, batch: PolicyBatch) -> dict[str, Sum]:
        """-(A log pi) summed over tokens, per answer; the clipped ratio has this gradient at the sampling policy."""
        policy = self.collector.policy
        device = next(policy.parameters()).device
        tokens = batch.tokens.to(device)
        logp = current_logprobs(policy, tokens, self.collector.settings.sampling.temperature)
        per_token = clipped_ratio(logp, batch.old_logprobs.to(device), batch.advantages.to(device), self.settings.clip)
        total = per_token.where(tokens.response_mask, 0.0).sum()
        return {"policy": Sum(total, torch.tensor(tokens.size, device=device))}

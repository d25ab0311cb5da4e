"""PPO with a critic for the reward and one for each constraint (Safe RLHF, arXiv 2310.12773).

Every stream has its own token rewards, values and advantages; the policy learns from
A = (A_r - sum_j lambda_j A_j) / (1 + sum_j lambda_j).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.collate import micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.engine.step import OptimiserSettings
from holdfast.losses.advantage import gae, token_rewards
from holdfast.losses.reduce import Sum, over, per_sequence
from holdfast.losses.surrogate import clipped_ratio, clipped_value
from holdfast.models.heads import ScoreModel
from holdfast.models.policy import evaluating
from holdfast.rollout.experience import Collector, Experience
from holdfast.training.policy import Learnable, Limits, PolicyBatch, PolicyMethod, Probe, current_logprobs


class ActorCriticSettings(Settings):
    """PPO in its plain form."""

    reward: str = "reward"
    """The score to maximise; its critic is called `value`."""
    kl: float = Field(0.02, ge=0)
    """Weight beta of the token-level KL to the reference."""
    kl_mode: Literal["split", "reward_only"] = "split"
    """`split` adds beta KL to every cost too, so that its weight in the mixture does not depend on lambda."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Trade of bias for variance in the advantage."""
    clip: float = Field(0.2, gt=0)
    """Ratio clip."""
    value_clip: float = Field(5.0, gt=0)
    """How far a value may move from its old one before its error stops to count."""
    score_clip: float = Field(50.0, gt=0)
    """Token rewards, score and KL together, are clamped to plus and minus this."""
    loss_mean: Literal["sequence", "token"] = "sequence"
    """Whether every answer weighs the same (as published) or every token does."""
    steps_per_experience: int = Field(1, ge=1)
    """Optimiser steps in which an experience is learned."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""


class ActorCritic(PolicyMethod):
    """An `Algorithm` of the online loop: the policy, `value`, and `value/NAME` for each constraint."""

    def __init__(
        self,
        collector: Collector,
        critics: Mapping[str, ScoreModel],
        settings: ActorCriticSettings,
        optimisers: Mapping[str, OptimiserSettings],
        limits: Limits,
        probe: Probe | None = None,
    ) -> None:
        needed = {"value", *(f"value/{name}" for name in limits.streams)}
        if critics.keys() != needed:
            raise ValueError(f"critics {sorted(critics)} given, {sorted(needed)} needed: one for each stream")
        super().__init__(collector, limits, {"policy": collector.policy, **critics}, probe)
        self.settings, self.critics = settings, dict(critics)
        self.optimisers = {name: optimisers["policy" if name == "policy" else "critic"] for name in self.parts}

    def collect(self, prompts: Sequence[Conversation], iteration: int) -> Learnable:
        """Sample, score, move the multipliers, and estimate the advantages of every stream."""
        experience, numbers = self.sample(prompts, self.settings.seed, iteration)
        s, mask = self.settings, experience.response_mask
        streams = {"value": (self.limits.reward(experience, s.reward), -s.kl)}
        for name, cost in self.limits.costs(experience).items():
            streams[f"value/{name}"] = (cost, s.kl if s.kl_mode == "split" else 0.0)
        advantages, old_values, returns = {}, {}, {}
        for name, (score, coefficient) in streams.items():
            shaped, clamped = token_rewards(experience.kl, score, mask, coefficient, s.score_clip)
            old_values[name] = self._values(name, experience)
            advantages[name], returns[name] = gae(shaped, old_values[name], mask, s.gamma, s.gae_lambda)
            numbers[f"clamped/{name}"] = float(clamped.mean)
            numbers[f"explained_variance/{name}"] = explained_variance(returns[name], old_values[name], mask)
        costs = {name: advantages[f"value/{name}"] for name in self.limits.streams}
        mixed = self.limits.mix(experience, advantages["value"], costs)
        return Learnable(experience, mixed, old_values, returns, numbers)

    def _values(self, name: str, experience: Experience) -> Tensor:
        """(N, T) values aligned with actions: column t holds the value of the state before token t."""
        critic, table = self.critics[name], torch.zeros_like(experience.old_logprobs)
        device = next(critic.parameters()).device
        with evaluating(critic):
            for chosen in micro_batches([row.length for row in experience.rows], self.collector.settings.micro_tokens):
                batch = pad([experience.rows[i] for i in chosen], pad_id=experience.pad_id).to(device)
                table[chosen, : batch.input_ids.shape[1]] = _before(critic, batch).cpu()
        return table

    def mini_batches(self, experience: Learnable, rng: torch.Generator) -> list[list[PolicyBatch]]:
        return self.portions(experience, self.settings.steps_per_experience, rng)

    def counts(self, part: str, batch: PolicyBatch) -> dict[str, float]:
        mask = batch.tokens.response_mask
        items = mask.any(-1).sum() if self.settings.loss_mean == "sequence" else mask.sum()
        return {"policy" if part == "policy" else "value": float(items)}

    def loss(self, part: str, batch: PolicyBatch) -> dict[str, Sum]:
        module = self.parts[part]
        device = next(module.parameters()).device
        tokens = batch.tokens.to(device)
        if part == "policy":
            logp = current_logprobs(module, tokens, self.collector.settings.sampling.temperature)
            per_token = clipped_ratio(
                logp, batch.old_logprobs.to(device), batch.advantages.to(device), self.settings.clip
            )
        else:
            per_token = clipped_value(
                _before(self.critics[part], tokens),
                batch.old_values[part].to(device),
                batch.returns[part].to(device),
                self.settings.value_clip,
            )
        reduce = per_sequence if self.settings.loss_mean == "sequence" else over
        return {"policy" if part == "policy" else "value": reduce(per_token, tokens.response_mask)}


def _before(critic: ScoreModel, tokens: Any) -> Tensor:
    """(B, T) values of the state in which each token was chosen: the critic's column one to the left."""
    values = critic.token_values(tokens.input_ids, tokens.attention_mask, tokens.position_ids, **tokens.extra)[..., 0]
    return torch.nn.functional.pad(values[:, :-1], (1, 0))


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over response tokens: 1 a perfect critic, 0 a constant one."""
    error, spread = (table[mask].var(correction=0) for table in (returns - values, returns))
    return float(1 - error / spread) if spread > 0 else 0.0

"""What every method that improves a policy shares: collecting under limits, and saying what happened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.engine.distributed import Processes
from holdfast.errors import UserError
from holdfast.losses.advantage import mix
from holdfast.losses.logprob import kl_k3
from holdfast.losses.reduce import masked_mean
from holdfast.models.policy import response_logprobs
from holdfast.rollout.experience import Collector, Experience
from holdfast.training.lagrangian import Constraint

Probe = Callable[[Sequence[Conversation]], dict[str, float]]


@dataclass(frozen=True)
class PolicyBatch:
    """B answered prompts of an experience with what the losses need: (B, T) tensors beside the tokens.

    advantages: the mixture the policy learns from; old_values, returns: per critic, empty without critics.
    """

    tokens: Batch
    old_logprobs: Tensor
    advantages: Tensor
    old_values: dict[str, Tensor]
    returns: dict[str, Tensor]

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.tokens.ids


@dataclass(frozen=True)
class Learnable:
    """An experience with advantages (N, T), and per critic the values it gave and the returns it should give."""

    experience: Experience
    advantages: Tensor
    old_values: dict[str, Tensor]
    returns: dict[str, Tensor]
    numbers: dict[str, float]

    def select(self, chosen: Sequence[int]) -> PolicyBatch:
        """The chosen rows as a batch, padded no wider than they need."""
        tokens = pad([self.experience.rows[i] for i in chosen], pad_id=self.experience.pad_id)
        width = tokens.input_ids.shape[1]

        def cut(table: Tensor) -> Tensor:
            return table[list(chosen), :width]

        return PolicyBatch(
            tokens=tokens,
            old_logprobs=cut(self.experience.old_logprobs),
            advantages=cut(self.advantages),
            old_values={name: cut(table) for name, table in self.old_values.items()},
            returns={name: cut(table) for name, table in self.returns.items()},
        )

    def mini_batches(self, steps: int, micro_tokens: int, rng: torch.Generator) -> list[list[PolicyBatch]]:
        """The rows in `steps` portions of nearly equal size in random order, each cut by a token budget."""
        order = torch.randperm(self.experience.size, generator=rng).tolist()
        lengths = [row.length for row in self.experience.rows]
        portions = [order[i::steps] for i in range(steps)]
        return [
            [
                self.select([portion[i] for i in group])
                for group in micro_batches([lengths[i] for i in portion], micro_tokens)
            ]
            for portion in portions
            if portion
        ]


class Limits:
    """The constraints of a run: they watch every experience and say what each answer costs the policy."""

    def __init__(self, constraints: Sequence[Constraint], processes: Processes | None = None) -> None:
        self.constraints = tuple(constraints)
        names = [constraint.name for constraint in self.constraints]
        if len(set(names)) != len(names):
            raise UserError(f"constraints need distinct names, got {names}; set constraint.name")
        self.processes = processes or Processes()

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier of each constraint by its name."""
        return {constraint.name: constraint.multiplier for constraint in self.constraints}

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the costs that `costs` gives: one for each constraint."""
        return tuple(self.multipliers)

    def observe(self, experience: Experience) -> dict[str, float]:
        """Add the experience's costs of all processes to every window and move every multiplier once."""
        numbers: dict[str, float] = {}
        for constraint in self.constraints:
            costs = constraint.measure(experience.score(constraint.settings.score))
            constraint.observe(torch.tensor(self.processes.gather(costs.tolist())), experience.per_prompt)
            numbers.update(constraint.step())
        return numbers

    def costs(self, experience: Experience) -> dict[str, Tensor]:
        """Per constraint the (N,) cost whose policy gradient is that of its bound."""
        return {
            constraint.name: constraint.augmented(constraint.measure(experience.score(constraint.settings.score)))
            for constraint in self.constraints
        }

    def reward(self, experience: Experience, name: str) -> Tensor:
        """(N,) what each answer is paid: the score `name`."""
        return experience.score(name)

    def mix(self, experience: Experience, reward: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        """The Lagrangian's mixture of rewards (N, ...) and costs of the same shape, one for each stream."""
        return mix(reward, costs, self.multipliers)

    def warnings(self) -> list[str]:
        """What each constraint has to say at the end: out of reach, or not met yet."""
        found = (constraint.warning() or constraint.shortfall() for constraint in self.constraints)
        return [text for text in found if text]

    def state_dict(self) -> dict[str, Any]:
        return {constraint.name: constraint.state_dict() for constraint in self.constraints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for constraint in self.constraints:
            constraint.load_state_dict(state[constraint.name])


class PolicyMethod:
    """What every algorithm that improves a policy does alike; each adds advantages and losses of its own.

    parts: the trainable parts. They stay in evaluation mode, because the policy that learns must be the one that
    sampled, without dropout.
    """

    weights: Mapping[str, float] = {}

    def __init__(
        self, collector: Collector, limits: Limits, parts: Mapping[str, nn.Module], probe: Probe | None = None
    ) -> None:
        self.collector, self.limits, self.probe = collector, limits, probe
        self.parts = {name: part.eval() for name, part in parts.items()}

    def sample(self, prompts: Sequence[Conversation], seed: int, iteration: int) -> tuple[Experience, dict[str, float]]:
        """Experience from the prompts, and the constraints' numbers after every multiplier has moved once."""
        experience = self.collector.collect(prompts, stream(seed, iteration, self.limits.processes.rank))
        return experience, self.limits.observe(experience)

    def portions(self, experience: Learnable, steps: int, rng: torch.Generator) -> list[list[PolicyBatch]]:
        """The experience cut for `steps` optimiser steps."""
        return experience.mini_batches(steps, self.collector.settings.micro_tokens, rng)

    def after(self, experience: Learnable) -> dict[str, float]:
        """The numbers of an iteration, those to watch first: scores, constraints, then the rest."""
        told = describe(experience.experience, self.probe)
        scores = {name: told[name] for name in experience.experience.scores}
        return scores | experience.numbers | told

    def samples(self, experience: Learnable) -> list[dict[str, Any]]:
        """A few answers for people to read."""
        return readable(experience.experience)

    def state_dict(self) -> dict[str, Any]:
        """Multipliers and windows."""
        return {"limits": self.limits.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""
        self.limits.load_state_dict(state["limits"])


def stream(seed: int, iteration: int, rank: int) -> int:
    """The sampler's seed of one iteration on one process; no two share a stream of random numbers.

    >>> stream(0, 1, 0) != stream(0, 0, 1)
    True
    """
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])


def current_logprobs(policy: nn.Module, tokens: Batch, temperature: float) -> Tensor:
    """(B, T) log-probabilities of the responses under the policy as it is now, with gradient."""
    return response_logprobs(
        policy,
        tokens.input_ids,
        tokens.attention_mask,
        tokens.position_ids,
        tokens.response_mask,
        temperature=temperature,
        **tokens.extra,
    )


def describe(experience: Experience, probe: Probe | None) -> dict[str, float]:
    """Numbers of one experience: raw scores, KL to the reference per answer, length, truncation, and the probe's."""
    mask = experience.response_mask
    numbers = {name: float(values.mean()) for name, values in experience.scores.items()}
    numbers["kl"] = float(experience.kl.sum(-1).mean())
    numbers["kl_k3"] = float(kl_k3(experience.old_logprobs, experience.ref_logprobs).sum(-1).mean())
    numbers["entropy"] = float(-masked_mean(experience.old_logprobs, mask))
    numbers["length"] = float(mask.sum(-1).float().mean())
    numbers["truncated"] = float(experience.truncated.float().mean())
    return numbers | (probe(experience.conversations) if probe else {})


def readable(experience: Experience, most: int = 3) -> list[dict[str, Any]]:
    """A few answers with their scores, one per prompt, for people to read."""
    chosen = range(0, experience.size, experience.per_prompt)[:most]
    return [
        {
            "prompt": experience.conversations[i].prompt.messages[-1].text,
            "response": experience.conversations[i].response,
            **{name: float(values[i]) for name, values in experience.scores.items()},
        }
        for i in chosen
    ]

"""What every method that improves a policy shares: collecting under limits, and saying what happened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.schema import Conversation
from holdfast.engine.distributed import Processes
from holdfast.errors import UserError
from holdfast.losses.advantage import mix
from holdfast.models.policy import response_logprobs
from holdfast.rollout.experience import Collector, Experience, of_all
from holdfast.training.health import measure
from holdfast.training.kl import KlController
from holdfast.training.lagrangian import Constraint, Part, refuse_contradictions

Probe = Callable[[Sequence[Conversation]], dict[str, float]]


@dataclass(frozen=True)
class PolicyBatch:
    """B answered prompts of an experience with what the losses need: (B, T) tensors beside the tokens.

    advantages: the mixture the policy learns from; old_values, returns: by what critics predict, empty without critics.
    """

    tokens: Batch
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    old_values: dict[str, Tensor]
    returns: dict[str, Tensor]

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the rows."""
        return self.tokens.ids

    def to(self, device: torch.device | str) -> "PolicyBatch":
        """The same batch on `device`."""
        return PolicyBatch(
            tokens=self.tokens.to(device),
            old_logprobs=self.old_logprobs.to(device),
            ref_logprobs=self.ref_logprobs.to(device),
            advantages=self.advantages.to(device),
            old_values={name: table.to(device) for name, table in self.old_values.items()},
            returns={name: table.to(device) for name, table in self.returns.items()},
        )

    def with_advantages(self, column: Tensor) -> "PolicyBatch":
        """The same batch with the advantages of its response tokens given end to end."""
        table = torch.zeros_like(self.advantages).masked_scatter(self.tokens.response_mask, column)
        return replace(self, advantages=table)


@dataclass(frozen=True)
class Learnable:
    """An experience with what is learned from it, in flat columns (S,) of its response tokens (see `Ragged`).

    old_values, returns: by name what critics said and what they should say; kept: the answers to learn from, all when
    None.
    """

    experience: Experience
    advantages: Tensor
    old_values: dict[str, Tensor]
    returns: dict[str, Tensor]
    numbers: dict[str, float]
    kept: tuple[int, ...] | None = None

    @cached_property
    def _logprobs(self) -> tuple[Tensor, Tensor]:
        """The sampling policy's and the reference's, as flat columns."""
        places = self.experience.places
        return places.flat(self.experience.old_logprobs), places.flat(self.experience.ref_logprobs)

    def select(self, chosen: Sequence[int]) -> PolicyBatch:
        """The chosen answers as a batch, padded no wider than they need."""
        places = self.experience.places
        tokens = pad([self.experience.rows[i] for i in chosen], pad_id=self.experience.pad_id)
        mask = tokens.response_mask

        def spread(column: Tensor) -> Tensor:
            return column.new_zeros(mask.shape).masked_scatter(mask, places.chosen(column, chosen))

        old, ref = map(spread, self._logprobs)
        return PolicyBatch(
            tokens=tokens,
            old_logprobs=old,
            ref_logprobs=ref,
            advantages=spread(self.advantages),
            old_values={name: spread(column) for name, column in self.old_values.items()},
            returns={name: spread(column) for name, column in self.returns.items()},
        )

    def mini_batches(self, steps: int, micro_tokens: int, rng: torch.Generator) -> list[list[PolicyBatch]]:
        """The kept answers in `steps` portions of nearly equal size in random order, each cut by a token budget.

        A portion may be empty: other processes may have answers for that step, and if nobody has, it says so.
        """
        rows = range(self.experience.size) if self.kept is None else self.kept
        order = [rows[i] for i in torch.randperm(len(rows), generator=rng).tolist()]
        lengths = [row.length for row in self.experience.rows]
        portions = [order[i::steps] for i in range(steps)]
        return [
            [
                self.select([portion[i] for i in group])
                for group in micro_batches([lengths[i] for i in portion], micro_tokens)
            ]
            for portion in portions
        ]


class Limits:
    """The constraints of a run: they watch every experience and say what each answer costs the policy."""

    def __init__(self, constraints: Sequence[Constraint], processes: Processes | None = None) -> None:
        self.constraints = tuple(constraints)
        names = [constraint.name for constraint in self.constraints]
        if len(set(names)) != len(names):
            raise UserError(f"constraints need distinct names, got {names}; set constraint.name")
        refuse_contradictions([constraint.settings for constraint in self.constraints])
        self.processes = processes or Processes()

    @property
    def multipliers(self) -> dict[str, float]:
        """The multiplier of each constraint by its name."""
        return {constraint.name: constraint.multiplier for constraint in self.constraints}

    @property
    def patterns(self) -> tuple[Constraint, ...]:
        """One constraint for each limited cost, whatever the number of groups that have it."""
        return self.constraints

    def members(self, name: str) -> tuple[Constraint, ...]:
        """The constraints that hold the limited cost `name`: one, or one for each group."""
        return tuple(one for one in self.constraints if one.name == name)

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of everything that critics predict of the limited costs."""
        return tuple(name for constraint in self.patterns for name in constraint.critics)

    def observe(self, experience: Experience, move: bool = True) -> dict[str, float]:
        """Add the experience's costs of all processes to every window and, to `move`, step every multiplier once."""
        numbers: dict[str, float] = {}
        for constraint in self.constraints:
            costs = constraint.measure(experience.score(constraint.settings.score))
            constraint.observe(torch.tensor(self.processes.gather(costs.tolist())), experience.per_prompt)
            numbers.update(constraint.step() if move else constraint.numbers())
        return numbers

    def parts(self, experience: Experience) -> dict[str, tuple[Part, ...]]:
        """Per constraint the addends of its cost, as `Constraint.parts` gives them."""
        return {
            constraint.name: constraint.parts(constraint.measure(experience.score(constraint.settings.score)))
            for constraint in self.constraints
        }

    def multiplier(self, experience: Experience, name: str) -> Tensor:
        """(N,) the multiplier that each answer meets for the constraint `name`."""
        return torch.full((experience.size,), self.multipliers[name])

    def total(self, experience: Experience) -> Tensor:
        """(N,) one plus the multipliers that each answer meets."""
        found = [self.multiplier(experience, constraint.name) for constraint in self.patterns]
        return 1 + torch.stack(found).sum(0) if found else torch.ones(experience.size)

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


class Learned(Protocol):
    """What an algorithm learns from: the answers, and numbers about them."""

    @property
    def experience(self) -> Experience:
        """The answers."""

    @property
    def numbers(self) -> dict[str, float]:
        """What is to be logged of them."""


class PolicyMethod:
    """What every algorithm that improves a policy does alike; each adds advantages and losses of its own.

    parts: the trainable parts. They stay in evaluation mode, because the policy that learns must be the one that
    sampled, without dropout.
    """

    apart: Mapping[str, str] = {}

    def __init__(
        self,
        collector: Collector,
        limits: Limits,
        parts: Mapping[str, nn.Module],
        reward: str,
        kl: KlController,
        probe: Probe | None = None,
    ) -> None:
        self.collector, self.limits, self.probe = collector, limits, probe
        self.reward, self.kl = reward, kl
        self.parts = {name: part.eval() for name, part in parts.items()}

    def sample(
        self, prompts: Sequence[Conversation], seed: int, iteration: int, move: bool = True
    ) -> tuple[Experience, dict[str, float]]:
        """Experience from the prompts, and the constraints' numbers; to `move`, every multiplier steps once before."""
        experience = self.collector.collect(prompts, stream(seed, iteration, self.limits.processes.rank))
        return experience, self.limits.observe(experience, move)

    def portions(self, experience: Learnable, steps: int, rng: torch.Generator) -> list[list[PolicyBatch]]:
        """The experience cut for `steps` optimiser steps."""
        return experience.mini_batches(steps, self.collector.settings.micro_tokens, rng)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each loss term; all weigh one unless an algorithm says otherwise."""
        return {}

    def numbers(self, experience: Learned) -> dict[str, float]:
        """The numbers of an iteration, alike on all processes, those to watch first."""
        processes = self.limits.processes
        told = average(experience.numbers, processes)
        told |= describe(of_all(experience.experience, processes), self.reward, self.probe)
        multipliers = (f"multiplier/{name}" for name in self.limits.multipliers)
        first = (*experience.experience.scores, *multipliers, "kl", "length")
        ordered = {name: told[name] for name in first if name in told} | told
        return ordered | {"kl_coef": self.kl.coef}

    def after(self, experience: Learned) -> dict[str, float]:
        """The numbers of an iteration; the weight of the KL moves once."""
        numbers = self.numbers(experience)
        answers = self.limits.processes.add_up([{"answers": experience.experience.size}])["answers"]
        self.kl.observe(numbers["kl_token"], int(answers))
        return numbers

    def samples(self, experience: Learned) -> list[dict[str, Any]]:
        """A few answers for people to read."""
        return readable(of_all(experience.experience, self.limits.processes))

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, windows, the weight of the KL."""
        return {"limits": self.limits.state_dict(), "kl": self.kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""
        self.limits.load_state_dict(state["limits"])
        self.kl.load_state_dict(state["kl"])


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


def describe(experience: Experience, reward: str, probe: Probe | None) -> dict[str, float]:
    """Numbers of one experience: mean scores, its health, the seconds it took, and what the probe says."""
    numbers = {name: float(values.nanmean()) for name, values in experience.scores.items() if not values.isnan().all()}
    numbers |= measure(experience, reward)
    numbers |= {f"seconds/{phase}": spent for phase, spent in experience.seconds.items()}
    return numbers | (probe(experience.conversations) if probe else {})


def average(numbers: Mapping[str, float], processes: Processes) -> dict[str, float]:
    """Each number's mean over the processes that know it, in the order given, so that all of them decide alike."""
    if processes.size == 1:
        return dict(numbers)
    totals, known = processes.add_up([numbers]), processes.add_up([dict.fromkeys(numbers, 1.0)])
    return {name: totals[name] / known[name] for name in dict.fromkeys([*numbers, *totals])}


def readable(experience: Experience, most: int = 3) -> list[dict[str, Any]]:
    """A few answers with their scores, one per prompt, for people to read."""
    chosen = range(0, experience.size, experience.per_prompt)[:most]
    return [
        {
            "prompt": experience.conversations[i].prompt.messages[-1].text,
            "response": experience.conversations[i].response,
            **{name: None if values[i].isnan() else float(values[i]) for name, values in experience.scores.items()},
        }
        for i in chosen
    ]

"""People in groups: every group has its own limit and multiplier, and the group served worst gets more weight.

Safety is not personalised: for each group g the cost E[C | g] stays below the same threshold, held by a multiplier
lambda_g of its own, and an answer learns from (q_g R - lambda_g C) / (1 + lambda_g). The weight q_g concerns the
reward alone, so that no group's limit fades with its weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.engine.distributed import Processes
from holdfast.errors import UserError
from holdfast.losses.advantage import mix
from holdfast.preference.aggregate import GroupNormaliser, rows_of, step
from holdfast.rollout.experience import Experience
from holdfast.training.lagrangian import Constraint, Part
from holdfast.training.policy import Limits


class GroupRewardSettings(Settings):
    """How the rewards of groups become comparable, and whose count more."""

    score: str = "reward"
    """The score that the policy maximises."""
    eta: float = Field(0.1, ge=0)
    """Step by which weight moves to the groups of lowest reward, per unit of reward; 0 leaves all groups equal."""
    best: dict[str, float] = {}
    """The best reward attainable for each group: with it the largest regret is minimised in place of the lowest
    reward maximised."""
    normalise: bool = True
    """Put each group's rewards on a scale of their own before the policy is paid."""
    keep: float = Field(1.0, gt=0, le=1)
    """How much of a group's history of rewards survives each iteration; 1 weighs all alike."""


class GroupRewards:
    """Rewards of groups on scales of their own, weighed towards the group that is worst off.

    Maximising sum_g q_g E[R | g] while q moves by exponentiated gradient maximises the lowest of them (MaxMin-RLHF,
    arXiv 2402.08925; arXiv 2405.20304). The state is part of every checkpoint.
    """

    def __init__(self, settings: GroupRewardSettings, groups: Sequence[str]) -> None:
        if settings.best and settings.best.keys() != set(groups):
            raise UserError(
                f"best rewards are given for {', '.join(settings.best)} and the groups are {', '.join(groups)}; "
                "give one for each group, or none"
            )
        self.settings, self.groups = settings, tuple(groups)
        self.normaliser = GroupNormaliser(settings.keep)
        self._weights = torch.full((len(self.groups),), 1 / len(self.groups), dtype=torch.float64)
        self._shares: dict[str, float] = {}

    @property
    def weights(self) -> dict[str, float]:
        """q by group; they sum to 1."""
        return dict(zip(self.groups, self._weights.tolist()))

    def observe(self, experience: Experience, processes: Processes, move: bool = True) -> dict[str, float]:
        """Add the rewards of all processes and, to `move`, step the weights once; an absent group keeps its weight."""
        reward, rows = experience.score(self.settings.score), rows_of(experience.groups)
        found = {name: torch.tensor(processes.gather(reward[rows.get(name, [])].tolist())) for name in self.groups}
        seen = [i for i, name in enumerate(self.groups) if len(found[name])]
        names = [self.groups[i] for i in seen]
        for name in names:
            self.normaliser.observe(found[name], [name] * len(found[name]))
        means = [float(found[name].double().mean()) for name in names]
        behind = [mean - self.settings.best.get(name, 0.0) for mean, name in zip(means, names)]
        total = self._weights[seen].sum()
        eta = self.settings.eta if move else 0.0
        moved = step(self._weights[seen] / total, torch.tensor(behind, dtype=torch.float64), eta)
        # A group that has lost all weight could never win it back.
        moved = moved.clamp(min=1e-6)
        self._weights[seen] = total * moved / moved.sum()
        size = sum(len(values) for values in found.values())
        self._shares = {name: len(found[name]) / size for name in names}
        told = {f"reward/{name}": mean for name, mean in zip(names, means)}
        return told | {f"group_weight/{name}": weight for name, weight in self.weights.items()}

    def paid(self, experience: Experience) -> Tensor:
        """(N,) rewards whose mean over the answers is sum_g q_g times the mean over g, on the groups' scales."""
        reward = experience.score(self.settings.score)
        if self.settings.normalise:
            reward = self.normaliser(reward, experience.groups)
        factors = {name: weight / self._shares[name] for name, weight in self.weights.items() if name in self._shares}
        return reward * torch.tensor([factors[name] for name in experience.groups])

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "normaliser": self.normaliser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._weights = torch.tensor([state["weights"][name] for name in self.groups], dtype=torch.float64)
        self.normaliser.load_state_dict(state["normaliser"])


def per_group(constraint: Constraint, groups: Sequence[str]) -> dict[str, Constraint]:
    """One constraint for each group, called NAME/GROUP, with a window and a multiplier of its own.

    Each looks forward to a test at delta / groups (Bonferroni), so that all groups pass together at delta; its
    `n_safety` are the prompts of one group's test.
    """
    settings = constraint.settings
    return {
        group: Constraint(
            settings.model_copy(update={"name": f"{settings.name}/{group}", "delta": settings.delta / len(groups)}),
            constraint.zero,
            constraint.probability,
        )
        for group in groups
    }


class GroupLimits(Limits):
    """Every constraint held for every group by itself, and optionally rewards weighed by group.

    constraints: what each group is limited by; they serve as patterns and keep no state. The rows of an experience
    must carry their groups (`Collector.group_of`). There is one stream of costs, and in an actor-critic method one
    critic, for each constraint, whatever the number of groups.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        groups: Sequence[str],
        rewards: GroupRewardSettings | None = None,
        processes: Processes | None = None,
    ) -> None:
        if not groups or len(set(groups)) != len(groups):
            raise UserError(f"groups need distinct names, at least one; got {list(groups)}")
        self.groups, self._patterns = tuple(groups), tuple(constraints)
        self.by_name = {constraint.name: per_group(constraint, groups) for constraint in constraints}
        super().__init__([each for members in self.by_name.values() for each in members.values()], processes)
        self.rewards = None if rewards is None else GroupRewards(rewards, groups)

    @property
    def patterns(self) -> tuple[Constraint, ...]:
        """The constraints as they were given, of which every group has its own."""
        return self._patterns

    def members(self, name: str) -> tuple[Constraint, ...]:
        """Every group's constraint on the cost `name`."""
        return tuple(self.by_name[name].values())

    def observe(self, experience: Experience, move: bool = True) -> dict[str, float]:
        """Move every group's multiplier by its own costs; that of a group which does not occur stays."""
        rows = self._rows(experience)
        numbers: dict[str, float] = {}
        for members in self.by_name.values():
            for group, constraint in members.items():
                scores = experience.score(constraint.settings.score)[rows.get(group, [])]
                costs = self.processes.gather(constraint.measure(scores).tolist())
                if costs:
                    constraint.observe(torch.tensor(costs), experience.per_prompt)
                    numbers.update(constraint.step() if move else constraint.numbers())
        return numbers | (self.rewards.observe(experience, self.processes, move) if self.rewards else {})

    def costs(self, experience: Experience) -> dict[str, Tensor]:
        """Per constraint the (N,) cost whose policy gradient is that of the bound of each row's group."""
        found = {}
        for name, members in self.by_name.items():
            found[name] = torch.zeros(experience.size)
            for constraint, chosen, costs in self._measured(members, experience):
                found[name][chosen] = constraint.augmented(costs)
        return found

    def parts(self, experience: Experience) -> dict[str, tuple[Part, ...]]:
        """Per constraint the addends of its cost, each row's weight being that of its group."""
        found = {}
        for name, members in self.by_name.items():
            for constraint, chosen, costs in self._measured(members, experience):
                for place, part in enumerate(constraint.parts(costs)):
                    whole = found.setdefault((name, place), Part(*torch.zeros(2, experience.size)))
                    whole.values[chosen], whole.weight[chosen] = part
        return {name: tuple(part for (of, _), part in found.items() if of == name) for name in self.by_name}

    def multiplier(self, experience: Experience, name: str) -> Tensor:
        """(N,) the multiplier of each row's group for the constraint `name`."""
        found = torch.zeros(experience.size)
        for group, rows in self._rows(experience).items():
            found[rows] = self.by_name[name][group].multiplier
        return found

    def _measured(
        self, members: Mapping[str, Constraint], experience: Experience
    ) -> Iterator[tuple[Constraint, list[int], Tensor]]:
        """The constraint of each group that occurs, with its rows and what it counts of them."""
        for group, rows in self._rows(experience).items():
            constraint = members[group]
            yield constraint, rows, constraint.measure(experience.score(constraint.settings.score)[rows])

    def reward(self, experience: Experience, name: str) -> Tensor:
        """(N,) what the policy is paid: the score `name`, as the groups' scales and weights make it."""
        if self.rewards is None:
            return super().reward(experience, name)
        if name != self.rewards.settings.score:
            raise UserError(
                f"groups are weighed by the score {self.rewards.settings.score}, and the policy maximises {name}; "
                "set both to the same score"
            )
        return self.rewards.paid(experience)

    def mix(self, experience: Experience, reward: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        """The Lagrangian's mixture in which each row meets the multipliers of its own group."""
        mixed = torch.empty_like(reward)
        for group, rows in self._rows(experience).items():
            multipliers = {name: members[group].multiplier for name, members in self.by_name.items()}
            mixed[rows] = mix(reward[rows], {name: cost[rows] for name, cost in costs.items()}, multipliers)
        return mixed

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | ({"rewards": self.rewards.state_dict()} if self.rewards else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.rewards:
            self.rewards.load_state_dict(state["rewards"])

    def _rows(self, experience: Experience) -> dict[str, list[int]]:
        if len(experience.groups) != experience.size:
            raise UserError("limits for each group need rows that carry a group, and these do not; set group_of")
        rows = rows_of(experience.groups)
        if unknown := sorted(rows.keys() - set(self.groups)):
            raise UserError(
                f"no limit for the groups {', '.join(unknown)}; there are limits for {', '.join(self.groups)}"
            )
        return rows

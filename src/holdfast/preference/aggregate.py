"""From the rewards of K heads to the one number a policy is trained on.

A Bradley-Terry head is known only up to a shift per prompt and a scale of its own, so what makes one number of
several must say what it does to shifts. P prompts, G answers per prompt, K heads; weights sum to 1.

`tournament` and `anchor` compare answers head by head: shifts mean nothing. `linear` keeps the order of answers to
one prompt under shifts. `sample_min` and `worst_group` do not: standardise rewards before.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from holdfast.losses.moments import Moments
from holdfast.losses.reduce import Sum, over, precise, same_shape

Key = TypeVar("Key", bound=Hashable)


def tournament(rewards: Tensor, weights: Tensor) -> Tensor:
    """(P, G) the probability of winning against another answer to the prompt, drawn at random.

    R_i = 1/(G-1) sum_{j != i} sum_k f_k sigmoid(r_ki - r_kj), in [0, 1], G/2 in sum. rewards: (P, G, K); weights:
    (P, K). Raises `ValueError` for G below 2, where there is no opponent.

    >>> rewards = torch.tensor([[[1.0, 0.0], [0.2, 1.5], [-0.5, 0.5]]])
    >>> tournament(rewards, torch.tensor([[0.7, 0.3]]))
    tensor([[0.6116, 0.5747, 0.3137]])
    """
    prompts, answers, heads = rewards.shape
    if answers < 2:
        raise ValueError(f"a tournament needs other answers to the prompt: at least 2, got {answers}")
    _one_weight_per_head(weights, prompts, heads)
    rewards = precise(rewards)
    wins = (rewards[:, :, None] - rewards[:, None]).sigmoid().sum(2) - 0.5  # against itself everyone is even
    return torch.einsum("pgk,pk->pg", wins, weights.to(wins)) / (answers - 1)


def anchor(rewards: Tensor, anchors: Tensor, weights: Tensor) -> Tensor:
    """(N,) the probability of winning against one of M fixed answers to the same prompt, drawn at random.

    rewards: (N, K); anchors: (N, M, K) rewards of reference answers, which do not move with the policy; weights:
    (N, K).

    >>> anchor(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 4, 2), torch.tensor([[1.0, 0.0]]))
    tensor([0.8808])
    """
    _one_weight_per_head(weights, *rewards.shape)
    wins = (precise(rewards)[:, None] - precise(anchors)).sigmoid().mean(1)
    return (wins * weights.to(wins)).sum(-1)


def linear(rewards: Tensor, weights: Tensor) -> Tensor:
    """(...) sum_k f_k r_k of standardised rewards (..., K): cheap, but the head of largest scale rules.

    >>> linear(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.7, 0.3]]))
    tensor([0.7000])
    """
    same_shape(rewards=rewards, weights=weights)
    return (precise(rewards) * precise(weights)).sum(-1)


def sample_min(rewards: Tensor) -> Tensor:
    """(...) the reward of the head that likes each answer least, of standardised rewards (..., K).

    It changes with a shift of one head, which means nothing, and is lower than what it is often taken for: the
    mean of minima is at most the minimum of means, `worst_group`.

    >>> sample_min(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).mean()
    tensor(0.)
    """
    return precise(rewards).amin(-1)


def worst_group(rewards: Tensor) -> Tensor:
    """() the mean reward of the group (column) that is worst off, of rewards (N, groups).

    MaxMin-RLHF (arXiv 2402.08925) maximises it; a shift of one group changes which one is the worst.

    >>> worst_group(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(0.5000)
    """
    return precise(rewards).mean(0).amin()


def step(weights: Tensor, values: Tensor, eta: float, direction: Literal["reward", "cost"] = "reward") -> Tensor:
    """(groups,) weights moved towards whom the policy serves worst: q exp(-eta J), or q exp(eta J) for costs.

    weights: (groups,) on the simplex; values: (groups,) mean reward, or reward minus the best attainable one
    (min-max regret, arXiv 2405.15065), or cost minus its limit. Exponentiated gradient as in Group Robust
    Preference Optimization (arXiv 2405.20304).

    >>> step(torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.2]), eta=1.0)
    tensor([0.3543, 0.6457])
    >>> step(torch.tensor([0.5, 0.5]), torch.tensor([0.02, 0.30]) - 0.1, eta=2.0, direction="cost")
    tensor([0.3635, 0.6365])
    """
    same_shape(weights=weights, values=values)
    if direction not in ("reward", "cost"):
        raise ValueError(f"a direction is reward or cost, got {direction!r}")
    sign = -1 if direction == "reward" else 1
    return (precise(weights).log() + sign * eta * precise(values)).softmax(-1)


def pairwise_calibration(delta: Tensor, weights: Tensor, shares: Tensor) -> Sum:
    """Squared errors of the weight that prefers the first answer against the share of people who do, over pairs.

    delta: (N, K) first minus second reward, a tie counting half; weights: (N, K); shares: (N,) of annotators
    (pairwise calibrated rewards, arXiv 2506.06298).

    >>> delta = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    >>> pairwise_calibration(delta, torch.tensor([[0.5, 0.3, 0.2]] * 2), torch.tensor([0.8, 0.1])).mean
    tensor(0.0100)
    """
    same_shape(delta=delta, weights=weights)
    share = (precise(weights) * (1 + delta.sign()) / 2).sum(-1)
    same_shape(share=share, shares=shares)
    return over((share - shares).square())


class GroupNormaliser:
    """Each group's rewards on a scale of their own: minus the mean and over the spread of the group's history.

    The spread of a batch would mix the scales of groups, and that of the answers to one prompt would blow up small
    differences; a history does neither (after P-GRPO, arXiv 2603.10009; the exact form is ours). keep: how much
    of the history survives each `observe`; 1 weighs all rewards ever seen alike.

    >>> normaliser = GroupNormaliser()
    >>> rewards, groups = torch.tensor([1.0, 3.0, 10.0, 30.0]), ["a", "a", "b", "b"]
    >>> normaliser.observe(rewards, groups)
    >>> normaliser(rewards, groups).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, keep: float = 1.0) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie above 0 and at most at 1, got {keep}")
        self.keep = keep
        self._groups: dict[str, Moments] = {}

    def observe(self, rewards: Tensor, groups: Sequence[str]) -> None:
        """Add rewards (N,) to the history of the groups (N) they belong to; only groups that occur forget."""
        for name, rows in rows_of(groups).items():
            self._groups.setdefault(name, Moments()).add(rewards[rows], self.keep)

    def __call__(self, rewards: Tensor, groups: Sequence[str]) -> Tensor:
        """(N,) rewards on their groups' scales; a group without spread, or never seen, keeps its scale."""
        result = precise(rewards).clone()
        for name, rows in rows_of(groups).items():
            history = self._groups.get(name, Moments())
            result[rows] = (result[rows] - history.mean) / (history.std or 1.0)
        return result

    def state_dict(self) -> dict[str, Any]:
        return {name: asdict(history) for name, history in self._groups.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._groups = {name: Moments(**history) for name, history in state.items()}


def rows_of(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The row numbers of each key, such as a group's name, in order of first appearance.

    >>> rows_of(["a", "b", "a"])
    {'a': [0, 2], 'b': [1]}
    """
    found: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return found


def _one_weight_per_head(weights: Tensor, rows: int, heads: int) -> None:
    if weights.shape != (rows, heads):
        raise ValueError(f"weights must be {(rows, heads)}, one per row and head, got {tuple(weights.shape)}")

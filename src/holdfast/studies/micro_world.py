"""The two worlds of the study `micro`: groups that prompts and contexts hint at, and groups that only users have.

Both are vectors with known rewards, so that the truth is at hand: 16 features of an answer, 8 of a prompt, labels
drawn with probability sigmoid(reward of one answer - reward of the other).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from holdfast.preference.features import PairFeatures

ANSWER, PROMPT, GROUPS = 16, 8, 3


@dataclass(frozen=True)
class Sample:
    """N labelled pairs with the true group (N,), the true margin (N,) and the context (N, C) of each."""

    pairs: PairFeatures
    group: Tensor
    margin: Tensor
    context: Tensor

    @property
    def groups(self) -> list[int]:
        """The true group of each pair as numbers."""
        return self.group.tolist()

    def budget(self, each: int) -> Tensor:
        """The places of the first `each` pairs of every group."""
        return torch.cat([(self.group == group).nonzero()[:each, 0] for group in range(int(self.group.max()) + 1)])

    def read_by_context(self, index: Tensor | None = None) -> PairFeatures:
        """The pairs (at `index`) as a router sees them that reads the context in place of the prompt."""
        index = torch.arange(len(self.pairs)) if index is None else index
        return PairFeatures(self.pairs.difference[index], self.context[index])


class PromptWorld:
    """Three groups with rewards v1 + v2/2, -v1 + v3/2, -v2 - v3/2 on orthogonal v of norm 2.5.

    A prompt u makes the groups .1/3 + .9 softmax(2 W u / sqrt 8) probable; the context is the group as a one-hot with
    noise of standard deviation .5.
    """

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        v1, v2, v3 = 2.5 * torch.linalg.qr(torch.randn(ANSWER, 3, generator=self.source))[0].T
        self.rewards = torch.stack([v1 + 0.5 * v2, -v1 + 0.5 * v3, -v2 - 0.5 * v3])
        self.lean = torch.randn(PROMPT, GROUPS, generator=self.source)

    def draw(self, n: int, group: int | None = None) -> Sample:
        """`n` pairs; all of one group when `group` is given."""
        prompts = torch.randn(n, PROMPT, generator=self.source)
        odds = 0.1 / GROUPS + 0.9 * (2 * prompts @ self.lean / math.sqrt(PROMPT)).softmax(-1)
        drawn = torch.multinomial(odds, 1, generator=self.source)[:, 0]
        groups = drawn if group is None else torch.full((n,), group)
        difference, margin = _labelled(self.rewards[groups], self.source)
        noise = 0.5 * torch.randn(n, GROUPS, generator=self.source)
        return Sample(PairFeatures(difference, prompts), groups, margin, one_hot(groups, GROUPS) + noise)


class HiddenWorld:
    """Two types of users with opposite rewards of norm 2.5, equally many; prompts say nothing about the type."""

    def __init__(self, seed: int) -> None:
        self.source = torch.Generator().manual_seed(seed)
        direction = torch.randn(ANSWER, generator=self.source)
        self.reward = 2.5 * direction / direction.norm()

    def draw(self, users: int, each: int) -> Sample:
        """`each` pairs of every user; users alternate in type, and a session is a user."""
        user = torch.arange(users).repeat_interleave(each)
        group = user % 2
        difference, margin = _labelled((1 - 2 * group)[:, None] * self.reward, self.source)
        prompts = torch.randn(len(user), PROMPT, generator=self.source)
        return Sample(PairFeatures(difference, prompts, user), group, margin, torch.zeros(len(user), 0))


def _labelled(rewards: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random answers per reward (N, d): chosen minus rejected (N, d) by a noisy label, and its true margin."""
    first, second = (torch.randn(rewards.shape, generator=source) for _ in range(2))
    difference = first - second
    margin = (difference * rewards).sum(-1)
    sign = torch.where(torch.rand(len(margin), generator=source) < margin.sigmoid(), 1.0, -1.0)
    return difference * sign[:, None], margin * sign

"""Reward and cost as two scores of one network, learned from the same answers in one pass."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.schema import DualPair
from holdfast.data.template import Template
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum
from holdfast.models.heads import ScoreModel
from holdfast.preference.pairs import PairBatch, PairForward, PairRow, absolute_label, collate_pairs
from holdfast.preference.tasks import CostLoss, CostSettings, RewardLoss, RewardSettings, with_borders

Value = TypeVar("Value")

NAMES = ("reward", "cost")


class DualSettings(Settings):
    """What the loss of reward and cost together consists of."""

    reward: RewardSettings = RewardSettings()
    """The terms of the reward."""
    cost: CostSettings = CostSettings()
    """The terms of the cost."""
    cost_weight: float = Field(1.0, gt=0)
    """Weight of all terms of the cost against those of the reward."""


@dataclass(frozen=True)
class DualRow:
    """A pair in the order of its answers, and the places (0 or 1) of its two winners, None where nobody judged.

    helpful: the more helpful answer; harmful: the more harmful one, which may be the same.
    """

    pair: PairRow
    helpful: int | None
    harmful: int | None

    @property
    def length(self) -> int:
        """Tokens that stand in the batch for this pair."""
        return self.pair.length

    @property
    def judged(self) -> bool:
        """Whether the pair teaches the cost: by a comparison, or by a label of either answer."""
        return self.harmful is not None or not all(map(math.isnan, self.pair.absolute))


@dataclass(frozen=True)
class DualBatch:
    """B pairs of answers; helpful, harmful (B,) places of the winners; compared, judged (B,): who teaches which score.

    A place means nothing where `compared`, or `pairs.ranked` for the harmful one, is false.
    """

    pairs: PairBatch
    helpful: Tensor
    harmful: Tensor
    compared: Tensor
    judged: Tensor
    ids: tuple[str, ...]


def dual_rows(pairs: Iterable[DualPair], template: Template, labels: str = "sign") -> list[DualRow]:
    """Rows for reward and cost together: every pair that carries a label for either.

    labels: which labels of single answers the cost reads, as in `CostSettings`. Raises `UserError` when no pair
    carries a label for help, or none for harm.
    """
    rows = [_row(pair, template, labels) for pair in pairs]
    for axis, taught in (
        ("helpfulness (helpful_id)", any(row.helpful is not None for row in rows)),
        ("harm (safer_id or safe)", any(row.judged for row in rows)),
    ):
        if not taught:
            raise UserError(f"no pair carries a label for {axis}, so reward and cost cannot be trained together")
    return [row for row in rows if row.helpful is not None or row.judged]


def _row(pair: DualPair, template: Template, labels: str) -> DualRow:
    prompt = pair.prompt.model_copy(update={"id": pair.id})
    first, second = (template.answered(prompt.answer(text)) for text in pair.responses)
    known = (absolute_label(pair, 0, labels), absolute_label(pair, 1, labels))
    harmful = None if pair.safer_id is None else 1 - pair.safer_id
    row = PairRow(pair.id, first, second, harmful is not None, known, pair.margin or 0.0)
    return DualRow(row, pair.helpful_id, harmful)


class DualTask:
    """Reward and cost of one network from one pass: the sum of both losses on the same scores.

    The terms are those of `RewardTask` and `CostTask`, called `reward/...` and `cost/...`. Raises `UserError` when
    the model has no scores called reward and cost.
    """

    name = "dual"

    def __init__(self, model: ScoreModel, pad_id: int, settings: DualSettings | None = None) -> None:
        self.model, self.pad_id = model, pad_id
        self.settings = settings or DualSettings()
        if missing := [name for name in NAMES if name not in model.names]:
            raise UserError(f"no score is called {' or '.join(missing)}; the model has {', '.join(model.names)}")
        self.forward = PairForward(model, self.settings.reward.share_prompt)
        self.reward = RewardLoss(self.settings.reward)
        self.cost = CostLoss(
            self.settings.cost, with_borders(model) if self.settings.cost.labels == "ordinal" else None
        )
        cost = {"rank": 1.0, **self.cost.weights}
        cost = {name: self.settings.cost_weight * weight for name, weight in cost.items()}
        self.weights = _named("reward", self.reward.weights) | _named("cost", cost)

    def collate(self, rows: Sequence[DualRow]) -> DualBatch:
        pairs = collate_pairs([row.pair for row in rows], self.pad_id)
        return DualBatch(
            pairs=pairs,
            helpful=torch.tensor([row.helpful or 0 for row in rows]),
            harmful=torch.tensor([row.harmful or 0 for row in rows]),
            compared=torch.tensor([row.helpful is not None for row in rows]),
            judged=torch.tensor([row.judged for row in rows]),
            ids=pairs.ids,
        )

    def counts(self, batch: DualBatch) -> dict[str, float]:
        judged = batch.judged
        cost = self.cost.counts(batch.pairs.ranked[judged], batch.pairs.absolute[judged.repeat(2)])
        return _named("reward", self.reward.counts(int(batch.compared.sum()))) | _named("cost", cost)

    def loss(self, batch: DualBatch) -> dict[str, Sum]:
        helpful, harmful = self._sides(batch)
        reward = self.reward.terms(*helpful, batch.pairs.margin[batch.compared])
        return _named("reward", reward) | _named("cost", self.cost.terms(*harmful, *self._judgements(batch)))

    def metrics(self, batch: DualBatch) -> dict[str, Sum]:
        helpful, harmful = self._sides(batch)
        cost = self.cost.metrics(*harmful, *self._judgements(batch))
        return _named("reward", self.reward.metrics(*helpful)) | _named("cost", cost)

    def _sides(self, batch: DualBatch) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Rewards of the more and the less helpful answers, costs of the more and the less harmful ones."""
        answers = torch.stack(self.forward(batch.pairs))
        reward, cost = (answers[:, :, self.model.names.index(name)] for name in NAMES)
        return _ordered(reward, batch.helpful, batch.compared), _ordered(cost, batch.harmful, batch.judged)

    def _judgements(self, batch: DualBatch) -> tuple[Tensor, Tensor]:
        """Which of the judged pairs are ranked, and the labels of their answers, the more harmful answers first."""
        labels = _ordered(batch.pairs.absolute.reshape(2, -1), batch.harmful, batch.judged)
        return batch.pairs.ranked[batch.judged], torch.cat(labels)


def _ordered(answers: Tensor, first: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Of numbers (2, B) for both answers of each pair, those of the answer named by `first`, and of the other.

    >>> _ordered(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 1, 0]), torch.tensor([True, True, False]))
    (tensor([1, 5]), tensor([4, 2]))
    """
    kept, first = kept.to(answers.device), first.to(answers.device)
    answers, first, pair = answers[:, kept], first[kept], torch.arange(int(kept.sum()), device=answers.device)
    return answers[first, pair], answers[1 - first, pair]


def _named(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {f"{prefix}/{name}": value for name, value in values.items()}

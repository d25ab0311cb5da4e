"""What a score model is worth on held-out pairs: accuracies with intervals, and calibration of cost to harm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from holdfast.data.collate import micro_batches
from holdfast.models.policy import evaluating
from holdfast.preference.pairs import PairRow
from holdfast.preference.tasks import CostTask, RewardTask
from holdfast.stats.estimate import Estimate, mean, share


@dataclass(frozen=True)
class PairScores:
    """Scores of held-out pairs: first (N,), second (N,) answer, and what is known of each."""

    rows: Sequence[PairRow]
    first: np.ndarray
    second: np.ndarray

    def accuracy(self) -> Estimate | None:
        """How often the answer that should score higher does, a tie counting half; clustered by prompt.

        None, here and below, where fewer than two prompts have a ranked pair.
        """
        return self._over_prompts(share, wins(self.first - self.second))

    def shorter_is_higher(self, higher: bool = True) -> Estimate | None:
        """The accuracy of calling the shorter answer the first one (or the longer, with `higher=False`)."""
        return self._over_prompts(share, self._by_length(higher))

    def over_shorter(self, higher: bool = True) -> Estimate | None:
        """The accuracy minus that of going by length, pair by pair: what the model knows beyond the length."""
        beyond = wins(self.first - self.second) - self._by_length(higher)
        return self._over_prompts(partial(mean, within=(-1, 1)), beyond)

    def _over_prompts(self, estimate: Callable[..., Estimate], values: np.ndarray) -> Estimate | None:
        prompts = self._prompts
        return estimate(values[self._ranked], clusters=prompts) if len(set(prompts)) > 1 else None

    def _by_length(self, higher: bool) -> np.ndarray:
        longer = np.array([row.second.length - row.first.length for row in self.rows])
        return wins(longer if higher else -longer)

    @property
    def _ranked(self) -> np.ndarray:
        return np.array([row.ranked for row in self.rows])

    @property
    def _prompts(self) -> list[tuple[int, ...]]:
        return [prompt_of(row) for row in self.rows if row.ranked]

    def labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels (1 harmful, 0 safe) of all answers that carry a label with a side."""
        known = np.array([value for side in (0, 1) for value in (row.absolute[side] for row in self.rows)])
        scores = np.concatenate([self.first, self.second])
        keep = ~np.isnan(known) & (known != 0)
        return scores[keep], (known[keep] > 0).astype(float)


def wins(margin: np.ndarray) -> np.ndarray:
    """1 where the margin is positive, 1/2 at a tie, 0 otherwise; same shape.

    >>> wins(np.array([2.0, 0.0, -1.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return (margin > 0) + 0.5 * (margin == 0)


def prompt_of(row: PairRow) -> tuple[int, ...]:
    """The prompt's token ids: rows of one prompt are one cluster."""
    return tuple(row.first.ids[: row.first.prompt_length])


def score_pairs(task: RewardTask | CostTask, rows: Sequence[PairRow], batch_tokens: int = 16384) -> PairScores:
    """Score both answers of every row with the task's model."""
    first, second = np.empty(len(rows)), np.empty(len(rows))
    with evaluating(task.model):
        for chosen in micro_batches([row.length for row in rows], batch_tokens):
            one, two = task.sides(task.collate([rows[i] for i in chosen]))
            first[chosen], second[chosen] = one.cpu().numpy(), two.cpu().numpy()
    return PairScores(rows, first, second)

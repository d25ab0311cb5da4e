"""What a mixture has to beat, on the same cached features and through the same trainer.

A single Bradley-Terry score, one that reads the prompt, one per group of people, and an ensemble on a shared base
whose members are weighed by a person's labels (HyRe, arXiv 2412.08812). A mixture with fixed weights is
`MixtureSettings(router="static")`.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.losses.preference import bradley_terry
from holdfast.losses.reduce import Sum, over
from holdfast.preference.aggregate import rows_of
from holdfast.preference.features import FeatureBatch, FeatureTask, PairFeatures, fit_or_scratch
from holdfast.preference.mixture import SMALL_FIT

Score = TypeVar("Score", bound=nn.Module)


class BaselineSettings(Settings):
    """How a baseline is trained."""

    l2: float = Field(1e-3, ge=0)
    """Weight of the summed squares of the learned weights."""
    fit: FitSettings = SMALL_FIT
    """How long, in what portions."""


class LinearScores(nn.Module):
    """K linear scores of the difference; with `prior_std`, each beside a frozen random score of its own.

    The frozen scores keep the members of an ensemble apart where the data do not decide.
    """

    prior: Tensor

    def __init__(self, width: int, members: int = 1, prior_std: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, width))
        self.register_buffer("prior", prior_std * torch.randn(members, width, generator=generator(seed)))

    def forward(self, difference: Tensor, router: Tensor) -> Tensor:
        """Return (B, K) score of the chosen minus the rejected answer; `router` is not read."""
        return difference @ (self.weight + self.prior).T


class ConditionedScore(nn.Module):
    """One score whose direction depends on the router's features u: (w + A u) . phi, bilinear in both."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1 + features))

    def forward(self, difference: Tensor, router: Tensor) -> Tensor:
        """Return (B, 1) score of the chosen minus the rejected answer of prompts with features `router` (B, d)."""
        known = torch.cat([torch.ones_like(router[:, :1]), router], dim=1)
        return ((difference @ self.weight) * known).sum(-1, keepdim=True)


class BaselineTask(FeatureTask):
    """Bradley-Terry for every column of a score by itself; rows are pairs."""

    name = "baseline"

    def __init__(self, model: nn.Module, features: PairFeatures, settings: BaselineSettings) -> None:
        super().__init__(model, features)
        self.weights = {"l2": settings.l2}

    def counts(self, batch: FeatureBatch) -> dict[str, float]:
        return {"rank": batch.pairs, "l2": 1}

    def loss(self, batch: FeatureBatch) -> dict[str, Sum]:
        delta = self.model(batch.difference, batch.router)
        # Per pair, the sum over members: each learns as if it were alone.
        total, _ = bradley_terry(delta.flatten(), torch.zeros_like(delta).flatten())
        squares = self.model.weight.square().sum()
        count = torch.tensor(batch.pairs, device=delta.device)
        return {"rank": Sum(total, count), "l2": Sum(squares, torch.ones_like(count))}

    def metrics(self, batch: FeatureBatch) -> dict[str, Sum]:
        delta = self.model(batch.difference, batch.router)
        return {"rank": self.loss(batch)["rank"], "accuracy": over((delta > 0).float() + 0.5 * (delta == 0).float())}


def train_baseline(
    model: Score,
    features: PairFeatures,
    settings: BaselineSettings | None = None,
    run: RunFolder | None = None,
    *,
    stage: str = "baseline",
) -> Score:
    """`model` (one of the scores above), trained on the pairs of `features` in place."""
    settings = settings or BaselineSettings()
    task = BaselineTask(model, features, settings)
    fit_or_scratch(task, features.rows("pair"), settings.fit, run, stage=stage)
    return model


def single(features: PairFeatures, settings: BaselineSettings | None = None) -> LinearScores:
    """One Bradley-Terry score for everybody."""
    return train_baseline(LinearScores(features.difference.shape[1]), features, settings)


def conditioned(features: PairFeatures, settings: BaselineSettings | None = None) -> ConditionedScore:
    """One Bradley-Terry score that reads the prompt: what a mixture routed by the prompt must be compared with."""
    shape = features.difference.shape[1], features.router.shape[1]
    return train_baseline(ConditionedScore(*shape), features, settings)


def ensemble(
    features: PairFeatures, members: int, settings: BaselineSettings | None = None, prior_std: float = 0.3
) -> LinearScores:
    """Bradley-Terry scores with frozen random parts; `adapt.adapt` weighs them by labels, from a uniform prior."""
    settings = settings or BaselineSettings()
    model = LinearScores(features.difference.shape[1], members, prior_std, settings.fit.seed)
    return train_baseline(model, features, settings)


def per_group(
    features: PairFeatures,
    groups: Sequence[Hashable],
    settings: BaselineSettings | None = None,
    budget: int | None = None,
) -> dict[Hashable, LinearScores]:
    """One Bradley-Terry score per group from `budget` of its labels; from all of them it is the oracle.

    groups: (N,) the true group of each pair. Raises `UserError` when a group has fewer pairs than the budget.
    """
    settings = settings or BaselineSettings()
    found: dict[Hashable, LinearScores] = {}
    for number, (group, places) in enumerate(rows_of(groups).items()):
        if budget is not None:
            if len(places) < budget:
                raise UserError(f"group {group!r} has {len(places)} pairs, fewer than the budget of {budget} labels")
            order = torch.randperm(len(places), generator=generator(settings.fit.seed, number))
            places = [places[i] for i in order[:budget].tolist()]
        found[group] = single(features.take(places), settings)
    return found


@torch.no_grad()
def delta_of(model: nn.Module, features: PairFeatures) -> Tensor:
    """(N, K) chosen minus rejected under each score of `model`."""
    return model(features.difference, features.router)


def by_group(models: Mapping[Hashable, nn.Module], features: PairFeatures, groups: Sequence[Hashable]) -> Tensor:
    """(N,) chosen minus rejected, each pair scored by the model of its own group."""
    result = torch.empty(len(features))
    for group, places in rows_of(groups).items():
        result[places] = delta_of(models[group], features.take(places))[:, 0]
    return result

"""The trial of a personal model: everything it has to beat, on prompts and on people it has not seen.

Single rewards that read nothing, the prompt, or the context; the mixture with nothing known of a person, with their
words, and with their labels; and what somebody who knows everybody's group could do.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.schema import Pair
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.pocket.people import NAMES, taste_scores
from holdfast.preference import baselines, personalise
from holdfast.preference.adapt import UserStore
from holdfast.preference.aggregate import rows_of
from holdfast.preference.baselines import BaselineSettings, delta_of
from holdfast.preference.check import wins
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import MixtureHeads
from holdfast.stats.estimate import Estimate
from holdfast.systems import stages


class TrialSettings(Settings):
    """How a personal model is judged."""

    labels: tuple[int, ...] = (0, 1, 2, 5, 10)
    """Labels of a new person at which accuracy is read; people with fewer pairs than the largest are left out."""
    draws: int = Field(20, ge=1)
    """Orders in which each new person's labels are given."""
    tau: float = Field(1.0, gt=0)
    """How much labels are trusted: 1 is Bayes' rule, less trusts them more."""
    members: int = Field(8, ge=2)
    """Size of the ensemble that the mixture is compared with."""
    baseline: BaselineSettings = BaselineSettings()
    """How the single rewards and the ensemble are trained."""


@dataclass(frozen=True)
class Fold:
    """Pairs, and their features with a router that reads the prompt, or the prompt in its context."""

    pairs: Sequence[Pair]
    plain: PairFeatures
    in_context: PairFeatures

    @property
    def users(self) -> list[str] | None:
        """Whose each pair is; None where nobody said."""
        return [pair.user_id for pair in self.pairs] if any(pair.user_id for pair in self.pairs) else None

    @property
    def groups(self) -> list[str] | None:
        """The group of each pair; None where it is not known of every one."""
        names = [pair.group for pair in self.pairs]
        return names if all(names) else None


@dataclass(frozen=True)
class Trial:
    """A model's heads and the folds it is judged on; `known` is the router before it has read contexts."""

    folds: Mapping[str, Fold]
    heads: MixtureHeads
    known: MixtureHeads
    names: tuple[str, ...]
    run: RunFolder
    seed: int
    pocket: bool


def hold(settings: TrialSettings, trial: Trial) -> dict[str, Any]:
    """The tables of the trial; writes `users.json`, the weights of everybody who was learned from."""
    store = known_users(settings, trial)
    trial.run.processes.barrier()
    rivals = train_rivals(settings, trial)
    arms = {fold: _arms(trial, fold, store, rivals) for fold in ("held_out", "newcomers") if fold in trial.folds}
    found: dict[str, Any] = {"comparisons": [_comparison(trial, fold, each) for fold, each in arms.items()]}
    compared = zip(arms, found["comparisons"])
    found["accuracy"] = {fold: {arm: overall for arm, overall, *_ in one["rows"]} for fold, one in compared}
    use = personalise.router_use(trial.heads, trial.folds["held_out"].in_context, trial.folds["held_out"].users)
    found["router_use"] = use.to_dict()
    if curve := _curve(settings, trial):
        found["comparisons"].append(curve)
    return found


def known_users(settings: TrialSettings, trial: Trial) -> UserStore:
    """The weights of each person who was learned from, by their labels; also written to `users.json`."""
    learn = trial.folds["learn"]
    store = UserStore(trial.names, prior(trial.known, learn.plain))
    if learn.users is not None:
        delta = trial.heads.delta(learn.plain.difference).detach()
        for user, places in rows_of(learn.users).items():
            if user:
                store.learn(str(user), delta[places], settings.tau)
        if trial.run.processes.is_main:
            store.save(trial.run.path / "users.json")
    return store


@torch.no_grad()
def prior(heads: MixtureHeads, features: PairFeatures) -> Tensor:
    """(K,) log weights of somebody of whom nothing is known: the average over what people asked."""
    return heads.log_weights(features.router).exp().mean(0).log()


@dataclass(frozen=True)
class Rivals:
    """What the mixture has to beat, trained once.

    single: one reward; prompt, context: one that reads them too, the latter from the labels that the router had;
    groups: one for each group, by somebody who knows the groups.
    """

    single: nn.Module
    prompt: nn.Module
    context: nn.Module | None
    groups: dict[Hashable, nn.Module]


def train_rivals(settings: TrialSettings, trial: Trial) -> Rivals:
    """The rivals, from the pairs that the mixture learned from."""
    learn, told = trial.folds["learn"], trial.folds.get("contexts")
    chosen = _seeded(settings.baseline, trial.seed)
    known = baselines.per_group(learn.plain, learn.groups, chosen) if learn.groups is not None else {}
    return Rivals(
        single=baselines.single(learn.plain, chosen),
        prompt=baselines.conditioned(learn.plain, chosen),
        context=None if told is None else baselines.conditioned(told.in_context, chosen),
        groups=dict(known),
    )


def _arms(trial: Trial, fold: str, store: UserStore, rivals: Rivals) -> dict[str, np.ndarray]:
    """Per arm, whether the label of each pair is the more probable one: 1, 1/2 or 0."""
    judged = trial.folds[fold]
    ranked = {
        "one reward": delta_of(rivals.single, judged.plain)[:, 0],
        "one, prompt read": delta_of(rivals.prompt, judged.plain)[:, 0],
    }
    if rivals.context is not None:
        ranked["one, context read"] = delta_of(rivals.context, judged.in_context)[:, 0]
    found = {name: wins(delta.numpy()) for name, delta in ranked.items()}
    found["mixture, nobody known"] = personalise.routed(trial.known, judged.plain)
    if rivals.context is not None:
        found["mixture, context read"] = personalise.routed(trial.heads, judged.in_context)
    if judged.users is not None and fold == "held_out":
        weights = torch.stack([store.log_weights(user) for user in judged.users])
        delta = trial.heads.delta(judged.plain.difference).detach()
        found["mixture, own labels"] = personalise.right(delta, weights)
    if judged.groups is not None and set(judged.groups) <= rivals.groups.keys():
        delta = baselines.by_group(rivals.groups, judged.plain, judged.groups)
        found["one per known group"] = wins(delta.numpy())
    if trial.pocket:
        found["the truth"] = _truth(judged.pairs)
    return found


def _truth(pairs: Sequence[Pair]) -> np.ndarray:
    """Whether each label agrees with the true worth of both answers to the person's own taste."""
    chosen = np.array(taste_scores([pair.prompt.answer(pair.chosen) for pair in pairs]))
    rejected = np.array(taste_scores([pair.prompt.answer(pair.rejected) for pair in pairs]))
    own = [NAMES.index(pair.group) for pair in pairs]
    return wins((chosen - rejected)[np.arange(len(pairs)), own])


def _seeded(settings: BaselineSettings, seed: int) -> BaselineSettings:
    fit: FitSettings = settings.fit.model_copy(update={"seed": settings.fit.seed + seed})
    return settings.model_copy(update={"fit": fit})


def _by_group(fold: Fold, right: np.ndarray) -> dict[Any, Estimate]:
    """Accuracy in each group, people being the sampling units; prompts, where a group has a single person.

    A group with a single prompt as well has no interval and is left out.
    """
    groups = fold.groups or ["everybody"] * len(fold.pairs)
    prompts = [pair.prompt.key for pair in fold.pairs]
    units = prompts if fold.users is None or _alone(groups, fold.users) else fold.users
    thin = _alone(groups, units)
    kept = [i for i, group in enumerate(groups) if group not in thin]
    return personalise.grouped(right[kept], [groups[i] for i in kept], [units[i] for i in kept])


def _alone(groups: Sequence[str], units: Sequence[str]) -> set[str]:
    """The groups with a single sampling unit."""
    members: dict[str, set[str]] = {}
    for group, unit in zip(groups, units):
        members.setdefault(group, set()).add(unit)
    return {group for group, own in members.items() if len(own) < 2}


def _comparison(trial: Trial, name: str, arms: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Accuracy of every arm, over groups alike and group by group, as `report.compare` reads it."""
    fold = trial.folds[name]
    titles = {"held_out": "new prompts of known people", "newcomers": "people never seen, without a label"}
    rows, names = [], []
    for arm, right in arms.items():
        groups = _by_group(fold, right)
        names = list(groups)
        each = list(groups.values()) if len(groups) > 1 else []
        rows.append([arm, *(one.to_dict() for one in [personalise.macro(groups), *each])])
    columns = ["all groups alike", *names] if len(names) > 1 else ["all"]
    title = f"{titles[name]}, {len(fold.pairs)} pairs"
    return {"kind": "shares", "title": title, "what": "accuracy", "columns": columns, "rows": rows}


def _curve(settings: TrialSettings, trial: Trial) -> dict[str, Any] | None:
    """Accuracy on new people after a few of their labels, of the mixture and of the ensemble."""
    fold, learn, most = trial.folds.get("newcomers"), trial.folds["learn"], max(settings.labels)
    if fold is None or fold.users is None:
        return None
    enough = [user for user, count in Counter(fold.users).items() if count > most]
    if len(enough) < 2:
        stages.say(f"few labels: {len(enough)} new people have more than {most} pairs, so there is no curve")
        return None
    ensemble = baselines.ensemble(learn.plain, settings.members, _seeded(settings.baseline, trial.seed))
    even = torch.zeros(settings.members).log_softmax(-1)
    arms = {
        "mixture": (trial.heads.delta(fold.plain.difference).detach(), prior(trial.known, learn.plain)),
        "ensemble (HyRe)": (delta_of(ensemble, fold.plain), even),
    }
    rows = []
    for name, (delta, start) in arms.items():
        curve = personalise.adaptation_curve(
            delta, fold.users, start, sizes=settings.labels, draws=settings.draws, tau=settings.tau, seed=trial.seed
        )
        rows.append([name, *(one.to_dict() for one in curve.points().values())])
    title = f"people never seen, {len(enough)} of them, who give a few labels"
    return {"kind": "growth", "title": title, "what": "accuracy after", "columns": list(settings.labels), "rows": rows}

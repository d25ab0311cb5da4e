"""A policy that answers everybody as they like it: it reads a person's words, and the mixture says what they like.

Leave-one-out policy gradient on the personal score, answers compared within one prompt of one person. Groups may have
weights, moved to whom the policy serves worst, and each group its own limit on harm, which no taste can lift.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from holdfast.config import Settings
from holdfast.data.context import with_context
from holdfast.data.schema import Conversation, Message, Pair
from holdfast.data.template import Template
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.evaluate.policy import Exam, Outcome, examine
from holdfast.pocket.people import NAMES, taste_scores
from holdfast.preference.aggregate import rows_of
from holdfast.preference.personal import MixtureScorer, Person
from holdfast.preference.score import Scorer
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.stats.estimate import Estimate, mean
from holdfast.systems import scores, stages
from holdfast.training.group import LeaveOneOut, LeaveOneOutSettings
from holdfast.training.groups import GroupLimits, GroupRewardSettings
from holdfast.training.lagrangian import Constraint, ConstraintSettings
from holdfast.training.policy import Limits


class PersonalPolicySettings(Settings):
    """How a policy learns to answer people as they like it."""

    aggregation: Literal["linear", "tournament"] = "tournament"
    """How heads become one reward: the probability of winning against the other answers, or the weighted sum."""
    weigh_groups: GroupRewardSettings | None = None
    """Weight for the group that is served worst; null counts every answer alike. Needs `group` in the data."""
    cost: scores.CostStage | None = None
    """A cost model, from `data.judged`; null trains none."""
    limit: ConstraintSettings | None = None
    """The limit on the cost, held for every group by itself (for all together where no group is known)."""
    rollout: RolloutSettings = RolloutSettings()
    """How answers are sampled."""
    policy: LeaveOneOutSettings = LeaveOneOutSettings(reward="score")
    """How the policy learns."""
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-6)
    """The policy's optimiser."""
    online: OnlineSettings = OnlineSettings()
    """How long the policy is improved."""

    @model_validator(mode="after")
    def _limit_has_cost(self) -> Self:
        if (self.limit is None) != (self.cost is None):
            raise ValueError("limit needs a cost model and a cost model a limit; give both or none")
        return self


Key = tuple[Message, ...]


@dataclass(frozen=True)
class Asked:
    """What somebody asked, as the policy sees it (with their words) and as the scorers do (without)."""

    prompt: Conversation
    plain: Conversation
    person: Person


class Readers:
    """Scorers that never see the words: an answer to a framed prompt is scored for the person who asked it.

    Oracles and cost models judge the answer to the plain prompt; the mixture gets the person beside it.
    """

    def __init__(self, mixture: MixtureScorer, others: Sequence[Scorer], asked: Sequence[Asked], pocket: bool) -> None:
        self.mixture, self.others, self.pocket = mixture, others, pocket
        self.asked: dict[Key, Asked] = {one.prompt.messages: one for one in asked}
        known = ("worth",) if pocket else ()
        self.names = (*mixture.names, *(name for other in others for name in other.names), *known)

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, 1 + K + ...): the personal score, the heads, the other scorers, in the pocket world the truth."""
        who = [self.asked[one.prompt.messages] for one in conversations]
        plain = [one.plain.answer(each.response) for one, each in zip(who, conversations)]
        tables = [self.mixture.score_for(plain, [one.person for one in who])]
        tables += [other.score(plain) for other in self.others]
        if self.pocket:
            own = [NAMES.index(one.person.group) for one in who]
            worth = np.array(taste_scores(plain))[np.arange(len(plain)), own]
            tables.append(torch.from_numpy(worth)[:, None].float())
        return torch.cat(tables, dim=1)


@dataclass(frozen=True)
class PolicyBench:
    """What the policy is improved with."""

    run: RunFolder
    template: Template
    policy: nn.Module
    seed: int
    practise: list[Asked]
    dev: list[Asked]
    readers: Callable[[Sequence[Asked], str], Readers]
    limit: Constraint | None


def asked(pairs: Sequence[Pair], frame: str) -> list[Asked]:
    """Every prompt of the pairs once for each context under which it was asked."""
    found = {}
    for pair in pairs:
        plain = pair.prompt.model_copy(update={"id": pair.id})
        framed = with_context(plain, pair.context, frame)
        found.setdefault(framed.messages, Asked(framed, plain, Person(pair.context, pair.user_id, pair.group)))
    return list(found.values())


def improve(settings: PersonalPolicySettings, bench: PolicyBench) -> dict[str, Any]:
    """Train the policy and say what it is worth to each group before and after; saved as `models/policy`."""
    reference = stages.frozen_reference(bench.policy)
    before = _examine(settings, bench, reference)
    everyone = {one.prompt.messages: one.person.group for one in [*bench.practise, *bench.dev]}
    groups = sorted(set(everyone.values()))
    grouped = all(groups)
    if settings.weigh_groups is not None and not grouped:
        raise UserError("policy.weigh_groups needs to know who is in which group; give `group` in every pair")
    collector = Collector(
        bench.policy,
        reference,
        _generator(bench),
        bench.template,
        stages.scores_by_name(bench.readers(bench.practise, settings.aggregation)),
        settings.rollout,
        (lambda prompt: everyone[prompt.messages]) if grouped else None,
    )
    constraints = [] if bench.limit is None else [bench.limit]
    apart = grouped and (constraints or settings.weigh_groups is not None)
    limits = GroupLimits(constraints, groups, settings.weigh_groups) if apart else Limits(constraints)
    learner = stages.offset(settings.policy, bench.seed)
    algorithm = LeaveOneOut(collector, learner, settings.optimiser, limits)
    prompts = [one.prompt for one in bench.practise]
    run_online(algorithm, prompts, stages.offset(settings.online, bench.seed), bench.run, stage="policy")
    for warning in limits.warnings():
        stages.say(warning)
    after = _examine(settings, bench, reference)
    stages.keep(bench.run, bench.policy, bench.template, after.conversations, "policy")
    return {"policy": _compared(bench, before, after), "comparisons": [_comparison(bench, before, after)]}


def _generator(bench: PolicyBench) -> TransformersGenerator:
    return TransformersGenerator(bench.policy, bench.template.stop_ids, bench.template.pad_id)


def _examine(settings: PersonalPolicySettings, bench: PolicyBench, reference: Any) -> Outcome:
    """One answer to every prompt of the dev people; a tournament needs opponents, so the weighted sum is shown."""
    exam = Exam(
        prompts=[one.prompt for one in bench.dev],
        template=bench.template,
        sampling=settings.rollout.sampling,
        scorer=bench.readers(bench.dev, "linear"),
        seed=bench.seed,
        micro_tokens=settings.rollout.micro_tokens,
    )
    return stages.on_main(bench.run, lambda: examine(exam, _generator(bench), bench.policy, reference))


def _by_group(bench: PolicyBench, outcome: Outcome, name: str) -> dict[str, Estimate]:
    """The mean of a score over the answers to each group, by prompt."""
    values = outcome.scores[name].tolist()
    rows = rows_of(one.person.group or "everybody" for one in bench.dev)
    return {
        group: mean([values[i] for i in places], [bench.dev[i].plain.key for i in places])
        for group, places in rows.items()
    }


def _shown(outcome: Outcome) -> list[str]:
    return [name for name in ("score", "cost", "worth") if name in outcome.scores]


def _compared(bench: PolicyBench, before: Outcome, after: Outcome) -> dict[str, Any]:
    return {
        f"{name}_{when}": {group: found.to_dict() for group, found in _by_group(bench, outcome, name).items()}
        for name in _shown(before)
        for when, outcome in (("before", before), ("after", after))
    }


def _comparison(bench: PolicyBench, before: Outcome, after: Outcome) -> dict[str, Any]:
    """What answers are worth to each group before and after, as `report.compare` reads it."""
    titles = {"score": "personal score", "cost": "cost", "worth": "true worth to them"}
    cells: dict[str, list[dict[str, Any]]] = {}
    for name in _shown(before):
        for outcome in (before, after):
            for group, found in _by_group(bench, outcome, name).items():
                cells.setdefault(group, []).append(found.to_dict())
    return {
        "kind": "change",
        "title": f"the policy's answers to {len(bench.dev)} new prompts",
        "what": "mean by group",
        "columns": [f"{titles[name]}, {when}" for name in _shown(before) for when in ("before", "after")],
        "rows": [[group, *values] for group, values in cells.items()],
    }

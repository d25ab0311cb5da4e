"""What can be said of a policy's limits before anything is trained: are they within reach, and do they bind at all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.schema import Conversation, DualPair
from holdfast.preference.score import Scorer
from holdfast.rollout.experience import Collector
from holdfast.systems import stages
from holdfast.training.kl import KlSettings
from holdfast.training.lagrangian import Constraint
from holdfast.training.policy import Limits
from holdfast.training.reachable import estimate_lambdas, permits_more, suggest_threshold
from holdfast.training.scores import ScoreSettings, ScoreTransform

SEED = 90_210  # of the answers that are looked at, and of nothing else


class LookAhead(Settings):
    """How many answers of the reference are looked at before training."""

    prompts: int = Field(64, ge=2)
    """Prompts to practise on."""
    samples: int = Field(8, ge=2)
    """Answers to each."""


def look_ahead(
    settings: LookAhead,
    collector: Collector,
    prompts: Sequence[Conversation],
    limits: Limits,
    reward: str,
    kl: KlSettings,
    score: ScoreSettings | None = None,
) -> dict[str, Any]:
    """What each limit takes, said aloud and returned by its name; multipliers to be estimated start there.

    The reference must not have moved. reward: the score that is maximised, `score` what is done to it.
    """
    seen = list(prompts[: settings.prompts])
    scores = limits.processes.on_first(lambda: _scored(collector, seen, settings.samples))
    costs = {one.name: one.measure(scores[one.settings.score]) for one in limits.patterns}
    for constraint in limits.patterns:
        if warning := permits_more(constraint.settings, float(costs[constraint.name].mean())):
            stages.say(f"warning: {warning}")
    if not kl.coef:
        stages.say("limits: without a KL penalty nothing bounds what a policy can reach; no estimate was made")
        return {}
    paid = _transformed(scores[reward], score)

    def table(values: Tensor) -> Any:
        return values.reshape(len(seen), settings.samples).numpy()

    found = estimate_lambdas(
        table(paid),
        {one.name: table(one.sign * costs[one.name]) for one in limits.patterns},
        {one.name: one.limit for one in limits.patterns},
        kl.coef,
        kl.mode,
        ceiling=max(one.settings.ceiling for one in limits.patterns),
    )
    for name, reach in found.items():
        for constraint in limits.members(name):
            if constraint.settings.initial == "estimate":
                constraint.start_at(reach.multiplier)
    for reach in found.values():
        stages.say(f"limit {reach.words}")
    return {name: reach.to_dict() for name, reach in found.items()}


def _scored(collector: Collector, prompts: Sequence[Conversation], count: int) -> dict[str, Tensor]:
    """By name the scores of `count` answers to each of the prompts."""
    starts = [collector.template.prompt(prompt) for prompt in prompts]
    samples = collector.generator.generate(starts, count, collector.settings.sampling, SEED)
    answers = [prompts[s.prompt_index].answer(collector.template.decode(s.response_ids)) for s in samples]
    return collector.score(answers)


def _transformed(scores: Tensor, settings: ScoreSettings | None) -> Tensor:
    """The scores as the policy is going to be paid, by their own moments."""
    if settings is None:
        return scores
    transform = ScoreTransform(settings.model_copy(update={"per_source": False}))
    transform.observe(scores, torch.zeros(len(scores), dtype=torch.bool), ())
    return transform(scores)


def suggestion(scorer: Scorer, pairs: Sequence[DualPair], constraint: Constraint, now: float) -> dict[str, Any]:
    """A threshold for a raw score, whose scale means nothing to a person; said aloud and returned.

    now: what the policy's answers cost on average.
    """
    labelled = [(pair.prompt.answer(text), safe) for pair in pairs for text, safe in zip(pair.responses, pair.safe)]
    column = scorer.names.index(constraint.settings.score)
    costs = scorer.score([answer for answer, _ in labelled])[:, column].numpy().astype(np.float64)
    safe = [label for _, label in labelled]
    found = suggest_threshold(costs, safe if any(safe) else None, now=now)
    stages.say(f"constraint {constraint.name}: {found.words}; the limit is {constraint.settings.threshold:g}")
    return {"threshold": found.threshold, "from_safe": found.from_safe, "from_now": found.from_now}

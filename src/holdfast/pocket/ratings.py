"""Answers of the pocket world rated on several scales at once, with noise and with gaps.

Every label runs from 0 to 1, higher being better. The true labels are known for any answer.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from holdfast.config import Settings
from holdfast.data.schema import Conversation, Rated
from holdfast.pocket.annotators import SPREAD, draw_request, write_reply
from holdfast.pocket.oracles import Truth, judge, request

LABELS = ("helpfulness", "harmlessness", "politeness", "brevity")
LONG = 40  # words at which an answer is not brief at all


class RatingsSettings(Settings):
    """How many answers are rated in the pocket world, and how well."""

    prompts: int = Field(1000, ge=1)
    """Requests whose answers are rated; repeated draws count once."""
    answers: int = Field(4, ge=1, le=50)
    """Different answers to each of them, so that ranks within a prompt can be judged."""
    noise: float = Field(0.05, ge=0)
    """Standard deviation of what is added to each true label, before it is cut to 0..1."""
    missing: float = Field(0.0, ge=0, lt=1)
    """Share of labels that nobody gave."""


def true_labels(true: Truth) -> dict[str, float]:
    """The `LABELS` of one answer without noise: harmlessness = 1 - severity/3, brevity = 1 - words/40, at least 0.

    >>> from holdfast.pocket.oracles import truth
    >>> true_labels(truth("how do i crack the safe ?", "just cut the lock of the safe ."))["brevity"]
    0.8
    """
    return {
        "helpfulness": true.helpfulness,
        "harmlessness": 1 - true.severity / 3,
        "politeness": float(true.polite),
        "brevity": max(0.0, 1 - true.words / LONG),
    }


def label_scores(conversations: Sequence[Conversation]) -> list[list[float]]:
    """The true `LABELS` of each conversation, in the shape a scorer function returns."""
    return [list(true_labels(judge(one)).values()) for one in conversations]


def draw_ratings(settings: RatingsSettings, harmful_share: float, rng: np.random.Generator) -> list[Rated]:
    """The rated answers, those to one request behind each other; a missing label is NaN."""
    prompts = dict.fromkeys(draw_request(rng, harmful_share) for _ in range(settings.prompts))
    return [
        _rated(f"rating-{i}-{j}", Conversation.ask(prompt).answer(reply), settings, rng)
        for i, prompt in enumerate(prompts)
        for j, reply in enumerate(_replies(prompt, settings.answers, rng))
    ]


def _replies(prompt: str, count: int, rng: np.random.Generator) -> list[str]:
    """`count` different answers to one request."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[write_reply(request(prompt), SPREAD, rng)] = None
    return list(found)


def _rated(name: str, answered: Conversation, settings: RatingsSettings, rng: np.random.Generator) -> Rated:
    true = true_labels(judge(answered))
    seen = np.clip(np.array(list(true.values())) + settings.noise * rng.standard_normal(len(true)), 0, 1)
    seen[rng.random(len(true)) < settings.missing] = np.nan
    return Rated(id=name, conversation=answered, labels=dict(zip(true, seen.tolist(), strict=True)), source="pocket")

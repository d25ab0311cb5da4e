"""Rated answers become pairs: on each label the answer with the higher rating is the preferred one.

One pair of answers may so be preferred either way, by different labels. Its context says which label is meant.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from holdfast.data.schema import Pair, Rated
from holdfast.errors import UserError

CONTEXTS = {
    "helpfulness": "Prefer the answer that serves the asker best: to the point, accurate and usable as it is.",
    "correctness": "Prefer the answer whose facts are right and that leaves no part of the question open.",
    "coherence": "Prefer the answer that is easy to follow and never contradicts or repeats itself.",
    "complexity": "Prefer the answer written for specialists, with their vocabulary and depth.",
    "verbosity": "Prefer the longer answer that spells things out and adds examples.",
    "brevity": "Prefer the answer that says what is needed in the fewest words.",
    "politeness": "Prefer the answer that speaks in a friendly and courteous way.",
    "harmlessness": "Prefer the answer that could not help anyone to do harm.",
    "safety": "Prefer the answer that is respectful and holds nothing dangerous or illegal.",
    "instruction_following": "Prefer the answer that does exactly what the request asks, in the form it asks for.",
    "honesty": "Prefer the answer that is as sure of itself as it has reason to be.",
    "truthfulness": "Prefer the answer that claims nothing false and makes nothing up.",
}
"""What each known label asks of an answer, in one sentence."""


class LabelPairs(NamedTuple):
    """Pairs by label, and the comparisons that gave none.

    ties: ratings closer than the least gap, or equal answers; missing: one of the ratings was not given;
    unanimous: left out because every label prefers the same answer.
    """

    pairs: list[Pair]
    ties: int
    missing: int
    unanimous: int


def pairs_by_label(
    rated: Sequence[Rated],
    labels: Sequence[str] | None = None,
    least_gap: float = 1.0,
    contexts: Mapping[str, str] = CONTEXTS,
    drop_unanimous: bool = False,
) -> LabelPairs:
    """The pairs of answers to one prompt on each of `labels` (all that occur), with what was dropped counted.

    `group` is the label and `context` its wording in `contexts`. A rating must lie `least_gap` higher to be
    preferred. With `drop_unanimous` the answers on which all labels agree give no pair: they say nothing about
    what tells labels apart. Raises `UserError` for a label that does not occur or has no wording.

    >>> from holdfast.data.schema import Conversation
    >>> answers = [Conversation.ask("Tulips?").answer(text) for text in ("Dig.", "Dig a small hole.")]
    >>> rows = [Rated(id=str(i), conversation=c, labels={"verbosity": 4.0 * i}) for i, c in enumerate(answers)]
    >>> pairs_by_label(rows).pairs[0].chosen
    'Dig a small hole.'
    """
    labels = _known(rated, labels, contexts)
    if least_gap <= 0:
        raise UserError(f"least_gap is {least_gap}; it must be above 0, or ties would become preferences")
    pairs: list[Pair] = []
    ties = missing = unanimous = 0
    for first, second in _couples(rated):
        won: list[Pair] = []
        for label in labels:
            gap = _gap(first, second, label)
            if gap != gap:
                missing += 1
            elif abs(gap) < least_gap or _same_answer(first, second):
                ties += 1
            else:
                better, worse = (first, second) if gap > 0 else (second, first)
                won.append(_pair(better, worse, label, contexts[label]))
        agreed = len({pair.chosen for pair in won}) == 1 and len(won) == len(labels) > 1
        if drop_unanimous and agreed:
            unanimous += 1
        else:
            pairs += won
    return LabelPairs(pairs, ties, missing, unanimous)


def _known(rated: Sequence[Rated], labels: Sequence[str] | None, contexts: Mapping[str, str]) -> list[str]:
    """The labels to use, once they are known to occur and to have a wording."""
    present = list(dict.fromkeys(name for row in rated for name in row.labels))
    chosen = present if labels is None else list(labels)
    if absent := [name for name in chosen if name not in present]:
        raise UserError(f"no row is rated for {', '.join(absent)}; the labels are {', '.join(present) or 'none'}")
    if silent := [name for name in chosen if name not in contexts]:
        raise UserError(
            f"no wording for {', '.join(silent)}; give contexts with one sentence for each label, or an empty one"
        )
    return chosen


def _couples(rated: Sequence[Rated]) -> Iterator[tuple[Rated, Rated]]:
    """Every two rows that share a prompt."""
    by_prompt: dict[str, list[Rated]] = {}
    for row in rated:
        by_prompt.setdefault(row.conversation.key, []).append(row)
    for rows in by_prompt.values():
        yield from combinations(rows, 2)


def _gap(first: Rated, second: Rated, label: str) -> float:
    """By how much the first is rated higher; NaN where a rating is missing."""
    missing = float("nan")
    return first.labels.get(label, missing) - second.labels.get(label, missing)


def _same_answer(first: Rated, second: Rated) -> bool:
    return first.conversation.response.strip() == second.conversation.response.strip()


def _pair(better: Rated, worse: Rated, label: str, context: str) -> Pair:
    return Pair(
        id=f"{better.id}/{worse.id}/{label}",
        prompt=better.conversation.prompt,
        chosen=better.conversation.response,
        rejected=worse.conversation.response,
        source=better.source,
        split=better.split,
        context=context,
        group=label,
    )

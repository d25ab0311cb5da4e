"""Who speaks in a data set and on which scales: groups, people, contexts, ratings.

Everything is counted; no text of a row and no name of a person is shown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.data.schema import Pair, Rated, Record


@dataclass(frozen=True)
class People:
    """How many people judged pairs, and how many pairs each: fewest, median and most; `once`: people with one pair."""

    count: int
    fewest: int
    median: float
    most: int
    once: int


@dataclass(frozen=True)
class Scale:
    """One rating: the share of rows without it, and the range of the others (None where nobody gave it)."""

    missing: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Census:
    """What pairs and ratings say about people and attributes.

    groups: pairs of each group; contexts: different ones; without_context: pairs that have none;
    reversed: (rows, among): pairs without context that prefer the other answer than the first judgement of the
    same two answers, among those judged before; scales: by label.
    """

    groups: dict[str, int]
    people: People | None
    contexts: int
    without_context: int
    reversed: tuple[int, int]
    scales: dict[str, Scale]

    @property
    def warnings(self) -> list[str]:
        """What should be settled before anything is trained."""
        found = []
        if self.reversed[0]:
            found.append(
                f"{self.reversed[0]} pairs without context prefer the other answer than an equal pair before: "
                "one score cannot please both; let a context say who wants what"
            )
        if self.people and self.people.once:
            found.append(
                f"{self.people.once} of {self.people.count} people judged one pair only, "
                "from which no taste can be told"
            )
        for name, scale in self.scales.items():
            if scale.low is None:
                found.append(f"label {name} is named and never given")
            elif scale.low == scale.high:
                found.append(f"label {name} is {scale.low:g} in every row, so nothing can be learned from it")
        return found


def census(records: Sequence[Record]) -> Census:
    """The census of `records`, of which only pairs and ratings have something to tell.

    >>> from holdfast.data.schema import Conversation
    >>> pair = Pair(id="1", prompt=Conversation.ask("Tulips?"), chosen="Dig.", rejected="No.", user_id="ann")
    >>> census([pair]).people
    People(count=1, fewest=1, median=1.0, most=1, once=1)
    """
    pairs = [record for record in records if isinstance(record, Pair)]
    return Census(
        groups=dict(sorted(Counter(pair.group for pair in pairs if pair.group).items())),
        people=_people(Counter(pair.user_id for pair in pairs if pair.user_id)),
        contexts=len({pair.context for pair in pairs if pair.context}),
        without_context=sum(not pair.context for pair in pairs),
        reversed=reversals(pair for pair in pairs if not pair.context),
        scales=scales([record for record in records if isinstance(record, Rated)]),
    )


def _people(pairs_of: Counter[str]) -> People | None:
    if not pairs_of:
        return None
    counts = sorted(pairs_of.values())
    return People(len(counts), counts[0], float(np.median(counts)), counts[-1], counts.count(1))


def reversals(pairs: Iterable[Pair]) -> tuple[int, int]:
    """How many pairs prefer the other answer than the first pair of the same two, and how many such had a first."""
    first: dict[str, Pair] = {}
    opposite = again = 0
    for pair in pairs:
        before = first.setdefault(pair.unordered, pair)
        if before is not pair:
            again += 1
            opposite += pair.chosen.strip() != before.chosen.strip()
    return opposite, again


def scales(rated: Sequence[Rated]) -> dict[str, Scale]:
    """The scale of every label that some row names; a row that does not name it lacks it."""
    given: dict[str, list[float]] = defaultdict(list)
    for row in rated:
        for name, value in row.labels.items():
            given[name] += [value] if value == value else []
    return {
        name: Scale(1 - len(values) / len(rated), min(values, default=None), max(values, default=None))
        for name, values in sorted(given.items())
    }

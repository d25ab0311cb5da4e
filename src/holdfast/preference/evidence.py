"""What records say about scores, whatever their kind: answers to score, comparisons, labels, ratings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from holdfast.data.schema import Conversation, DualPair, Labelled, Pair, Rated
from holdfast.preference.personal import ANYONE, Person

Direction = Literal["help", "harm", "rating"]
Judged = Conversation | DualPair | Pair | Labelled | Rated


class Compared(NamedTuple):
    """A judged pair: the numbers of its two answers, the one that should score higher first, and where it is from.

    swapped: the winner is shown second, so that both orders occur among the pairs.
    """

    winner: int
    loser: int
    swapped: bool
    source: str
    group: str
    categories: tuple[str, ...]


@dataclass
class Evidence:
    """A answers in a row, and what is known of each and of pairs of them.

    prompts: the prompt of each answer, known by its key; people: for whom it was judged; unsafe: 1 harmful, 0 safe,
    NaN unknown; rated: its ratings by name; unanswered: how many records end without an answer.
    """

    answers: list[Conversation] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    people: list[Person] = field(default_factory=list)
    helpful: list[Compared] = field(default_factory=list)
    harmful: list[Compared] = field(default_factory=list)
    unsafe: list[float] = field(default_factory=list)
    rated: list[dict[str, float]] = field(default_factory=list)
    unanswered: int = 0

    def pairs(self, direction: Direction) -> list[Compared]:
        """The comparisons that a score of this direction should reproduce; one that follows a rating has none."""
        return {"help": self.helpful, "harm": self.harmful, "rating": []}[direction]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each answer in characters, (A,): a measure that no tokenizer changes."""
        return np.array([len(one.response) for one in self.answers], dtype=np.float64)

    @property
    def rating_names(self) -> tuple[str, ...]:
        """The names under which at least one answer is rated."""
        known = (name for labels in self.rated for name, value in labels.items() if not math.isnan(value))
        return tuple(dict.fromkeys(known))

    def rating(self, name: str) -> np.ndarray:
        """The ratings of that name, (A,), NaN where there is none."""
        return np.array([labels.get(name, math.nan) for labels in self.rated], dtype=np.float64)

    def add(
        self,
        answer: Conversation,
        *,
        unsafe: float = math.nan,
        rated: dict[str, float] | None = None,
        person: Person = ANYONE,
    ) -> int:
        """Take in an answer with what is known of it, and return its number."""
        self.answers.append(answer)
        self.prompts.append(answer.key)
        self.people.append(person)
        self.unsafe.append(unsafe)
        self.rated.append(rated or {})
        return len(self.answers) - 1


def gather(records: Sequence[Judged]) -> Evidence:
    """What `records` say, in their order; a record without an answer is counted and nothing else.

    A `Pair` says which answer was preferred and not for what: a cost should then be lower for the chosen one.

    >>> pair = Pair(id="1", prompt=Conversation.ask("Tea?"), chosen="Gladly.", rejected="No.")
    >>> found = gather([pair])
    >>> [(one.winner, one.loser) for one in found.pairs("help") + found.pairs("harm")]
    [(0, 1), (1, 0)]
    """
    found = Evidence()
    for record in records:
        if isinstance(record, DualPair):
            _dual(record, found)
        elif isinstance(record, Pair):
            person = Person(record.context, record.user_id, record.group)
            both = (record.chosen, record.rejected)
            first, second = (found.add(record.prompt.answer(text), person=person) for text in both)
            # The chosen answer always stands first here; taken as it is, "the first one won" would always be true.
            origin = (len(found.helpful) % 2 == 1, record.source, record.group, ())
            found.helpful.append(Compared(first, second, *origin))
            found.harmful.append(Compared(second, first, *origin))
        else:
            _single(record, found)
    return found


def _single(record: Conversation | Labelled | Rated, found: Evidence) -> None:
    answer = record if isinstance(record, Conversation) else record.conversation
    if not answer.answered:
        found.unanswered += 1
    elif isinstance(record, Labelled):
        found.add(answer, unsafe=float(not record.safe))
    else:
        found.add(answer, rated=record.labels if isinstance(record, Rated) else None)


def _dual(pair: DualPair, found: Evidence) -> None:
    sides = [found.add(pair.prompt.answer(pair.responses[i]), unsafe=_unsafe(pair, i)) for i in (0, 1)]
    categories = tuple(dict.fromkeys(name for both in pair.categories for name in both))
    for list_, winner in ((found.helpful, pair.helpful_id), (found.harmful, _other(pair.safer_id))):
        if winner is not None:
            list_.append(Compared(sides[winner], sides[1 - winner], winner == 1, pair.source, "", categories))


def _other(side: int | None) -> int | None:
    return None if side is None else 1 - side


def _unsafe(pair: DualPair, side: int) -> float:
    """1 harmful, 0 safe; unknown without a label, and for a bare refusal, which is graded zero."""
    safe, rate = pair.safe[side], pair.harmless_rate[side]
    if safe is not None:
        return float(not safe)
    return math.nan if rate is None or rate == 0 else float(rate < 0)

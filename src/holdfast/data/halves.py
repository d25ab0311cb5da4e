"""Splits for weak supervision: one part teaches the supervisor, another, whose labels are hidden, the student.

Related rows never stand in two splits. Who is drawn follows from names and a salt, not from the order of rows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from holdfast.data.schema import Record
from holdfast.data.split import pools, share_of
from holdfast.errors import UserError

Item = TypeVar("Item", bound=Record)
Label = Callable[[Item], str]

SHARES: Mapping[str, float] = {"weak_train": 0.35, "transfer": 0.35, "validation": 0.1, "test": 0.2}
"""What trains the supervisor, what it labels for the student, what stops the student, what judges all of them."""


class Balanced(NamedTuple, Generic[Item]):
    """Rows that were kept, and those of the larger class that were dropped, both in their original order."""

    kept: list[Item]
    dropped: list[Item]


@dataclass(frozen=True)
class Halves(Generic[Item]):
    """The rows of each split by its name, and the rows that were dropped so that classes are balanced."""

    splits: dict[str, list[Item]]
    dropped: list[Item]

    @property
    def hashes(self) -> dict[str, str]:
        """A hash of the names in each split: equal hash, equal rows, in whatever order."""
        return {name: hash_of(identities(rows)) for name, rows in self.splits.items()}

    def counts(self) -> dict[str, int]:
        """How many rows each split holds, and how many were dropped."""
        return {**{name: len(rows) for name, rows in self.splits.items()}, "dropped": len(self.dropped)}


def halves(
    records: Sequence[Item],
    shares: Mapping[str, float] = SHARES,
    salt: str = "holdfast",
    balance: Label[Item] | None = None,
) -> Halves[Item]:
    """The splits named in `shares`, of about these sizes, with all rows of a prompt, an image or a group in one.

    balance: the class of a row. Given it, the data are balanced as `balanced` does before they are split, and `test`
    once more to exactly half, so that chance is 50 % (arXiv 2312.09390); every split must then hold two
    classes or more. Raises `UserError` when two rows have one id, when a split stays empty or holds a single class.

    >>> from holdfast.data.schema import Conversation
    >>> rows = [Conversation.ask(f"question {i}", id=str(i)) for i in range(1000)]
    >>> found = halves(rows, {"weak_train": 0.5, "test": 0.5})
    >>> sum(found.counts().values()), len(found.hashes["test"])
    (1000, 64)
    """
    identities(records)  # before anything is joined by them
    if balance is None:
        return Halves(pools(records, shares, salt), [])
    kept, dropped = balanced(records, balance, salt)
    splits = pools(kept, shares, salt)
    for name, rows in splits.items():
        _class_counts(rows, balance, f"split {name}")
    if "test" in splits:
        splits["test"], surplus = balanced(splits["test"], balance, salt, most=0.5)
        dropped = [*dropped, *surplus]
    return Halves(splits, dropped)


def balanced(records: Sequence[Item], label: Label[Item], salt: str = "holdfast", most: float = 0.55) -> Balanced[Item]:
    """The records, in which a class of more than the share `most` (at least 0.5) was cut to exactly half.

    Which rows of that class go follows from a hash of `salt` and their ids. Raises `UserError` when all rows are of
    one class.

    >>> from holdfast.data.schema import Conversation
    >>> rows = [Conversation.ask("rare" if i < 3 else "frequent", id=str(i)) for i in range(9)]
    >>> kept, dropped = balanced(rows, lambda row: row.messages[0].text)
    >>> len(kept), len(dropped)
    (6, 3)
    """
    counts = _class_counts(records, label, "the data")
    largest, size = counts.most_common(1)[0]
    if size <= most * len(records):
        return Balanced(list(records), [])
    inside = [record for record in records if label(record) == largest]
    # A salt of its own: rows kept for their small hash must not be the first that `take` draws.
    chosen = set(identities(take(inside, len(records) - size, f"{salt}/balance")))
    kept = [record for record in records if label(record) != largest or _id(record) in chosen]
    return Balanced(kept, [record for record in inside if _id(record) not in chosen])


def take(records: Sequence[Item], count: int, salt: str = "holdfast", name: str = "the data") -> list[Item]:
    """`count` of the records, drawn by a hash of `salt` and their ids, in their original order.

    More records are drawn by adding to those that fewer would give. Raises `UserError`, with `name` as the place,
    when there are not enough.

    >>> from holdfast.data.schema import Conversation
    >>> rows = [Conversation.ask(f"question {i}", id=str(i)) for i in range(9)]
    >>> set(take(rows, 3)) < set(take(rows, 5))
    True
    """
    if count < 1 or count > len(records):
        raise UserError(
            f"{count} rows are asked of {name}, which holds {len(records)}; ask for fewer or give more data"
        )
    drawn = sorted(range(len(records)), key=lambda i: share_of(f"{salt}/{_id(records[i])}"))[:count]
    return [records[i] for i in sorted(drawn)]


def identities(records: Iterable[Record]) -> list[str]:
    """The ids of the records; `UserError` when one is missing or occurs twice.

    What a supervisor says is joined to rows by their ids, so an id must mean one row.
    """
    names = [_id(record) for record in records]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if "" in names or count > 1:
        given = f"{names.count('')} rows have no id" if "" in names else f"{count} rows have the id {name}"
        raise UserError(f"{given}; give every row an id of its own")
    return names


def hash_of(ids: Iterable[str]) -> str:
    """A hash of a set of ids, in whatever order they come.

    >>> hash_of(["b", "a"]) == hash_of(["a", "b"]) != hash_of(["a,b"])
    True
    """
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()


def _class_counts(records: Sequence[Item], label: Label[Item], name: str) -> Counter[str]:
    """How often each class occurs, once there are two or more."""
    counts = Counter(label(record) for record in records)
    if len(counts) < 2:
        raise UserError(
            f"all {len(records)} rows of {name} are of one class ({next(iter(counts), 'none')}), from which nothing "
            "can be learned; give rows of two classes or more"
        )
    return counts


def _id(record: Record) -> str:
    return str(getattr(record, "id", ""))

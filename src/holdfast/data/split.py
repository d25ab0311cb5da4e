"""Pools that share no prompt and no picture, chosen by a hash so that order and additions do not matter.

Rows are tied into clusters when their prompts agree up to case, white space and punctuation, when they show the
same image, or when they name the same group. A cluster goes to one pool as a whole.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from holdfast.data.schema import Classified, Conversation, DualPair, Pair, Ranked, Record
from holdfast.errors import UserError

Item = TypeVar("Item", bound=Record)
_NOT_WORDS = re.compile(r"[\W_]+")


def prompt_of(record: Record) -> Conversation:
    """The prompt of any record that has one."""
    if isinstance(record, Conversation):
        return record.prompt
    if isinstance(record, Pair | DualPair | Ranked):
        return record.prompt
    conversation = getattr(record, "conversation", None)
    if isinstance(conversation, Conversation):
        return conversation.prompt
    raise TypeError(f"a {type(record).__name__} has no prompt")


def keys(record: Record) -> list[str]:
    """The keys by which a record is tied to others: its prompt's, then one for each image, then its group's.

    >>> keys(Conversation.ask("Stir it!")) == keys(Conversation.ask("stir  it"))
    True
    """
    prompt = prompt_of(record)
    digest = hashlib.sha256()
    for message in prompt.messages:
        lowered = message.text.lower()
        # A prompt of nothing but signs keeps them, or all such prompts would be one.
        words = _NOT_WORDS.sub(" ", lowered).strip() or lowered.strip()
        pictures = ",".join(_name(image.sha256, image.path) for image in message.images)
        digest.update(f"{message.role}\x1f{pictures}\x1f{words}\x1e".encode())
    shown = sorted({_name(image.sha256, image.path) for image in prompt.images})
    related = [f"group:{record.group}"] if isinstance(record, Classified) and record.group else []
    return [f"prompt:{digest.hexdigest()}", *(f"image:{name}" for name in shown), *related]


def _name(sha256: str, path: str) -> str:
    return sha256 or path


def cluster_ids(records: Sequence[Record]) -> list[str]:
    """For each record the name of its cluster, the smallest key in it; the order of records does not matter.

    >>> first, second, third = (Conversation.ask(text) for text in ("Hello", "hello!", "Bye"))
    >>> one, two, three = cluster_ids([first, second, third])
    >>> one == two, one == three
    (True, False)
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    own = [keys(record) for record in records]
    for first, *others in own:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(first) for first, *_ in own]


def pools(records: Sequence[Item], fractions: Mapping[str, float], salt: str) -> dict[str, list[Item]]:
    """Disjoint pools of about the given fractions; every record is in exactly one, in its original order.

    A cluster with id c belongs to the pool in whose interval `sha256(salt + c) / 2^256` falls, pools taken in
    alphabetical order. The same salt and data give the same pools. Raises `UserError` when fractions do not
    add up to 1 or a pool stays empty.
    """
    if any(share <= 0 for share in fractions.values()) or not math.isclose(sum(fractions.values()), 1.0):
        given = ", ".join(f"{name}: {share}" for name, share in fractions.items())
        raise UserError(f"fractions of pools must be above 0 and add up to 1; got {given or 'none'}")
    names = sorted(fractions)
    filled: dict[str, list[Item]] = {name: [] for name in fractions}
    for record, cluster in zip(records, cluster_ids(records)):
        filled[_pool_at(share_of(f"{salt}{cluster}"), names, fractions)].append(record)
    if empty := [name for name, pool in filled.items() if not pool]:
        raise UserError(
            f"of {len(records)} rows none fell into {', '.join(empty)}; give more rows, a larger fraction or "
            "another salt"
        )
    return filled


def share_of(name: str) -> float:
    """A number in [0, 1) that follows from the name alone and is spread evenly over names.

    >>> 0 <= share_of("ann") < 1, share_of("ann") == share_of("ann")
    (True, True)
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2**256


def _pool_at(place: float, names: Sequence[str], fractions: Mapping[str, float]) -> str:
    """The pool whose interval holds `place`, in [0, 1)."""
    border = 0.0
    for name in names[:-1]:
        border += fractions[name]
        if place < border:
            return name
    return names[-1]


def leaks(a: Sequence[Record], b: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Each record of `b` that shares its prompt, an image or its group with one of `a`, after the first such of `a`."""
    holder: dict[str, Record] = {}
    for record in a:
        for key in keys(record):
            holder.setdefault(key, record)
    found = ((next((holder[key] for key in keys(record) if key in holder), None), record) for record in b)
    return [(first, record) for first, record in found if first is not None]

"""What a record of one kind says as a record of another kind; `UserError` where it does not say it.

`name` is the setting below `data` that the records come from, for messages.
"""

from typing import Any, TypeVar

from holdfast.data.formats import Readable
from holdfast.data.schema import Classified, DualPair, Labelled, Pair, Ranked, Rated, Record, Scored
from holdfast.errors import UserError

Kind = TypeVar("Kind", bound=Record)


def as_kind(kind: type[Kind], record: Record, name: str, needed: str) -> Kind:
    """The record itself, once it is known to be of `kind`; `needed` says in words what was expected."""
    if isinstance(record, kind):
        return record
    raise UserError(f"data.{name} holds {type(record).__name__} rows; {needed} are needed")


def as_preference(record: Readable, name: str) -> Pair:
    """A pair judged on two axes says what people prefer by its helpfulness, where that was judged.

    A ranking of two answers prefers the one that a person chose, where that is known, and else the first.
    """
    if isinstance(record, Pair):
        return record
    winner = _winner(record)
    if not isinstance(record, DualPair | Ranked) or winner is None:
        raise UserError(f"data.{name} holds a {type(record).__name__} without a preferred answer; pairs are needed")
    chosen, rejected = record.responses[winner], record.responses[1 - winner]
    return Pair(**_origin(record), prompt=record.prompt, chosen=chosen, rejected=rejected)


def _winner(record: Readable) -> int | None:
    """Which of two answers is the preferred one; None where nobody said so."""
    if isinstance(record, DualPair):
        return record.helpful_id if record.helpful_id is not None else record.safer_id
    if isinstance(record, Ranked) and len(record.responses) == 2:
        return record.preferred or 0
    return None


def as_dual(record: Readable) -> DualPair:
    """A pair on one axis says the same of helpfulness; TRL's formats do not name the axis."""
    if isinstance(record, DualPair):
        return record
    if isinstance(record, Pair):
        responses = (record.chosen, record.rejected)
        return DualPair(**_origin(record), prompt=record.prompt, responses=responses, helpful_id=0)
    raise UserError(f"data.pairs holds {type(record).__name__} rows; pairs of answers are needed")


def as_scored(record: Readable, name: str) -> list[Scored]:
    """Each answer of the record with its scores: labels of a rated answer, the reward of each ranked one.

    Ranked answers are named ID/0, ID/1 and so on, best first. A label that was not given is left out.

    >>> from holdfast.data.schema import Conversation
    >>> row = Ranked(id="7", prompt=Conversation.ask("Tulips?"), responses=("Dig.", "No."), rewards=(0.7, 0.1))
    >>> [(one.id, one.scores["reward"]) for one in as_scored(row, "scored")]
    [('7/0', 0.7), ('7/1', 0.1)]
    """
    if isinstance(record, Scored):
        return [record]
    if isinstance(record, Ranked) and record.rewards is not None:
        rest = record.model_dump(include={"source", "split"})
        return [
            Scored(id=f"{record.id}/{k}", conversation=record.prompt.answer(text), scores={"reward": reward}, **rest)
            for k, (text, reward) in enumerate(zip(record.responses, record.rewards))
        ]
    given = {label: value for label, value in getattr(record, "labels", {}).items() if value == value}
    if isinstance(record, Rated) and given:
        return [Scored(**_origin(record), conversation=record.conversation, scores=given)]
    raise UserError(
        f"data.{name}: the {type(record).__name__} {record.id or 'without an id'} carries no reward; "
        "rows with prompt, response and reward (or rewards by name), or with prompt, responses and rewards, are needed"
    )


def as_ranked(record: Readable, name: str) -> Ranked:
    """The ranking, or a pair as a ranking of two answers without rewards.

    >>> from holdfast.data.schema import Conversation
    >>> as_ranked(Pair(id="1", prompt=Conversation.ask("Tulips?"), chosen="Dig.", rejected="No."), "ranked").responses
    ('Dig.', 'No.')
    """
    if isinstance(record, Ranked):
        return record
    if not isinstance(record, Pair | DualPair):
        raise UserError(f"data.{name} holds {type(record).__name__} rows; pairs or ranked answers are needed")
    pair = as_preference(record, name)
    return Ranked(**_origin(pair), prompt=pair.prompt, responses=(pair.chosen, pair.rejected))


def as_classified(record: Readable, name: str) -> Classified:
    """The text with its class; a labelled answer is of class `unsafe` or `safe`.

    >>> from holdfast.data.schema import Conversation
    >>> row = Labelled(id="1", conversation=Conversation.ask("Tulips?").answer("Dig."), safe=True)
    >>> as_classified(row, "classified").label
    'safe'
    """
    if isinstance(record, Labelled):
        label = "safe" if record.safe else "unsafe"
        return Classified(**_origin(record), conversation=record.conversation, label=label)
    return as_kind(Classified, record, name, "texts with a label, or answers labelled safe or unsafe,")


def _origin(record: Record) -> dict[str, Any]:
    """What every record keeps of where it is from."""
    return record.model_dump(include={"id", "source", "split"})

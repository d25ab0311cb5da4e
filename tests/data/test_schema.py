"""Pairs of many people: what is checked, what is written, and when two judgements are about the same answers."""

import pytest
from pydantic import ValidationError

from holdfast.data.schema import Conversation, DualPair, Pair

ASK = Conversation.ask("How do I plant a tulip?")


def pair(chosen: str = "Dig.", rejected: str = "No.", prompt: Conversation = ASK, **fields) -> Pair:
    return Pair(id="1", prompt=prompt, chosen=chosen, rejected=rejected, **fields)


def test_the_unordered_pair_is_the_same_whoever_wins() -> None:
    first, second = pair(), pair("No. ", " Dig.", context="be kind", user_id="bob")
    assert first.unordered == second.unordered
    assert len(first.unordered) == 64
    others = [
        pair("Dig!"),
        pair(prompt=Conversation.ask("How do I plant a rose?")),
        pair("Dig.No.", ""),
        pair("Dig.", "No.", pair_id="7"),
    ]
    assert len({first.unordered, *(other.unordered for other in others)}) == 5
    # Case and spaces of the prompt do not make another one, as in its key.
    assert pair(prompt=Conversation.ask("how do i  plant a tulip?")).unordered == first.unordered
    assert pair(pair_id="7").unordered == "7"


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"weight": 0.0}, "greater than 0"),
        ({"weight": -1.0}, "greater than 0"),
        ({"weight": float("inf")}, "finite"),
        ({"margin": float("nan")}, "finite"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_weights_are_positive_and_numbers_finite(fields, reason) -> None:
    with pytest.raises(ValidationError, match=reason):
        pair(**fields)


def test_what_nobody_said_is_not_written() -> None:
    """Files of rows without people, contexts or margins keep the bytes they always had."""
    assert set(pair().model_dump()) == {"id", "prompt", "chosen", "rejected", "source", "split"}
    assert "margin" not in DualPair(id="1", prompt=ASK, responses=("a", "b")).model_dump()
    given = {"context": "c", "user_id": "u", "group": "g", "pair_id": "p", "weight": 2.0, "margin": -0.5}
    full = pair(**given)
    assert {name: full.model_dump()[name] for name in given} == given
    assert Pair.model_validate(full.model_dump()) == full
    assert DualPair(id="1", prompt=ASK, responses=("a", "b"), margin=0.0).model_dump()["margin"] == 0.0

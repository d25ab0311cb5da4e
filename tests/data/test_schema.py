"""Records: what is checked, what is written, and when two judgements are about the same answers."""

import math

import pytest
from pydantic import ValidationError

from holdfast.data.schema import Classified, Conversation, DualPair, Pair, Ranked, Scored

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


def ranked(**fields) -> Ranked:
    return Ranked.model_validate({"id": "1", "prompt": ASK, "responses": ("Dig.", "No."), **fields})


def by_reward(responses, rewards, preferred=None) -> Ranked:
    return Ranked.by_reward(responses, rewards, preferred, id="1", prompt=ASK)


def test_rewards_set_the_order_and_ties_keep_it() -> None:
    row = by_reward(["a", "b", "c", "d"], [0.5, -1.0, 0.5, 2.0], preferred=1)
    assert row.responses == ("d", "a", "c", "b")
    assert row.rewards == (2.0, 0.5, 0.5, -1.0)
    assert row.responses[row.preferred] == "b"
    assert by_reward(["a", "b"], [1, 1], preferred=0).preferred == 0
    assert by_reward(["a", "b"], [0, 1]).preferred is None


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"responses": ("Dig.",)}, "a ranking needs at least 2 responses, got 1"),
        ({"responses": ()}, "a ranking needs at least 2 responses, got 0"),
        ({"responses": ("Dig.", "No.", " Dig.\n")}, "responses 0 and 2 are equal"),
        ({"rewards": (1.0,)}, "1 rewards were given for 2 responses"),
        ({"rewards": (0.1, 0.2)}, "response 1 has a higher reward than response 0"),
        ({"rewards": (0.1, float("nan"))}, "finite"),
        ({"rewards": (float("inf"), 0.1)}, "finite"),
        ({"preferred": 2}, "preferred is 2; it must be below 2"),
        ({"preferred": -1}, "greater than or equal to 0"),
    ],
)
def test_rankings_that_say_nothing_or_contradict_themselves(fields, reason) -> None:
    with pytest.raises(ValidationError, match=reason):
        ranked(**fields)


def test_ordering_by_rewards_refuses_what_a_ranking_refuses() -> None:
    with pytest.raises(ValueError, match="3 rewards were given for 2 responses"):
        by_reward(["a", "b"], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="finite"):
        by_reward(["a", "b", "c"], [1.0, math.nan, 3.0])
    with pytest.raises(ValueError, match="preferred is 5"):
        by_reward(["a", "b"], [1.0, 2.0], preferred=5)


def test_equal_rewards_may_stand_in_either_order() -> None:
    assert ranked(rewards=(0.5, 0.5)).responses == ("Dig.", "No.")
    assert "preferred" not in ranked().model_dump()


def test_scores_are_named_and_finite() -> None:
    answered = ASK.answer("Dig.")
    assert Scored(id="1", conversation=answered, scores={"help": 1}).scores == {"help": 1.0}
    for scores, reason in (({}, "at least 1 item"), ({"help": math.nan}, "finite"), ({"help": None}, "valid number")):
        with pytest.raises(ValidationError, match=reason):
            Scored(id="1", conversation=answered, scores=scores)


def test_a_class_has_a_name() -> None:
    with pytest.raises(ValidationError, match="at least 1 character"):
        Classified(id="1", conversation=ASK, label="")

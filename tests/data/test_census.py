"""The census by hand."""

import pytest

from holdfast.data.census import People, Scale, census
from holdfast.data.schema import Conversation, Pair, Rated

NAN = float("nan")


def pair(user: str = "", chosen: str = "a", rejected: str = "b", prompt: str = "q", **fields) -> Pair:
    return Pair(id="1", prompt=Conversation.ask(prompt), chosen=chosen, rejected=rejected, user_id=user, **fields)


def rated(**labels: float) -> Rated:
    return Rated(id="1", conversation=Conversation.ask("q").answer("a"), labels=labels)


def test_people_groups_and_contexts() -> None:
    rows = [
        pair("ann", group="brief", context="short"),
        pair("ann", group="brief", context="short", prompt="r"),
        pair("ann", group="warm", context="kind", prompt="s"),
        pair("bob", group="warm", prompt="t"),
        pair("dan", prompt="x"),
        pair("eve", prompt="u"),
        pair("eve", prompt="v"),
        pair(prompt="w"),
    ]
    found = census(rows)
    assert found.people == People(count=4, fewest=1, median=1.5, most=3, once=2)
    assert found.groups == {"brief": 2, "warm": 2}
    assert (found.contexts, found.without_context, found.reversed) == (2, 5, (0, 0))
    assert found.warnings == ["2 of 4 people judged one pair only, from which no taste can be told"]


def test_opposite_preferences_need_a_context() -> None:
    told = [pair(context="long"), pair("", "b", "a", context="short")]
    assert census(told).reversed == (0, 0)
    untold = [pair(), pair("ann", "b", "a"), pair("bob", "a ", "b"), pair(prompt="r"), *told]
    found = census(untold)
    # Of the two later judgements of one pair, the first is reversed and the second repeats it.
    assert found.reversed == (1, 2)
    assert any("1 pairs without context prefer the other answer" in text for text in found.warnings)
    assert census([pair(), pair()]).warnings == []


def test_scales_and_what_is_missing() -> None:
    found = census([rated(help=1.0, tone=NAN, same=2), rated(help=4, same=2), rated(help=NAN, same=2), rated()])
    assert found.scales == {
        "help": Scale(0.5, 1.0, 4.0),
        "same": Scale(0.25, 2.0, 2.0),
        "tone": Scale(1.0, None, None),
    }
    assert found.warnings == [
        "label same is 2 in every row, so nothing can be learned from it",
        "label tone is named and never given",
    ]


def test_of_other_records_there_is_nothing_to_say() -> None:
    found = census([Conversation.ask("q")])
    assert (found.people, found.groups, found.scales, found.warnings) == (None, {}, {}, [])


@pytest.mark.parametrize("ids", [("7", "7"), ("", "")])
def test_a_given_id_of_the_pair_is_believed(ids) -> None:
    rows = [pair(pair_id=ids[0]), pair("", "b", "a", pair_id=ids[1])]
    assert census(rows).reversed == (1, 1)
    assert census([pair(pair_id="7"), pair("", "b", "a", pair_id="8")]).reversed == (0, 0)

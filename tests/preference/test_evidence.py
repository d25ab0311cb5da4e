"""What each kind of record says about a score."""

import math

import pytest

from holdfast.data.schema import Conversation, DualPair, Labelled, Pair, Rated
from holdfast.preference.evidence import gather

ASK = Conversation.ask("How?")


def dual(**labels):
    return DualPair(id="d", prompt=ASK, responses=("one", "two"), **labels)


def texts(found, pairs):
    return [(found.answers[one.winner].response, found.answers[one.loser].response) for one in pairs]


def test_a_dual_pair_speaks_on_both_axes_in_their_own_directions():
    found = gather([dual(helpful_id=1, safer_id=1, safe=(False, True), source="web")])
    assert texts(found, found.pairs("help")) == [("two", "one")]
    assert texts(found, found.pairs("harm")) == [("one", "two")]
    assert found.unsafe == [1.0, 0.0]
    assert found.pairs("help")[0].swapped
    assert not found.pairs("harm")[0].swapped
    assert found.pairs("harm")[0].source == "web"


def test_an_unlabelled_side_says_nothing():
    found = gather([dual(helpful_id=0)])
    assert found.pairs("harm") == []
    assert all(math.isnan(value) for value in found.unsafe)


def test_grades_stand_in_for_labels_and_a_bare_refusal_has_no_side():
    found = gather(
        [dual(harmless_rate=(-2, 3)), dual(harmless_rate=(0, 1)), dual(harmless_rate=(0, 1), safe=(True, None))]
    )
    assert found.unsafe[:2] == [1.0, 0.0]
    assert math.isnan(found.unsafe[2])
    assert found.unsafe[3:] == [0.0, 0.0, 0.0]


def test_categories_of_both_answers_belong_to_the_pair_once():
    found = gather([dual(helpful_id=0, categories=(("fraud", "theft"), ("theft",)))])
    assert found.helpful[0].categories == ("fraud", "theft")


def test_a_pair_orders_its_answers_and_both_orders_are_shown():
    pairs = [
        Pair(id=str(i), prompt=ASK, chosen="good", rejected="bad", group="g", context="be brief", user_id="u")
        for i in range(4)
    ]
    found = gather(pairs)
    assert texts(found, found.pairs("help")) == [("good", "bad")] * 4
    assert texts(found, found.pairs("harm")) == [("bad", "good")] * 4
    assert [one.swapped for one in found.helpful] == [False, True, False, True]
    assert {one.group for one in found.helpful} == {"g"}
    assert {(person.context, person.user_id, person.group) for person in found.people} == {("be brief", "u", "g")}


def test_single_answers_bring_their_label_or_their_ratings():
    found = gather(
        [
            Labelled(id="a", conversation=ASK.answer("bad"), safe=False),
            Rated(id="b", conversation=ASK.answer("kind"), labels={"politeness": 2.0, "depth": math.nan}),
            Rated(id="c", conversation=ASK.answer("deep"), labels={"depth": 1.0}),
            Labelled(id="d", conversation=ASK, safe=True),
            ASK.answer("plain"),
        ]
    )
    assert found.unsafe[0] == 1.0
    assert found.unanswered == 1
    assert found.rating_names == ("politeness", "depth")
    assert found.rating("depth")[2] == 1.0
    assert [math.isnan(value) for value in found.rating("depth")] == [True, True, False, True]
    assert found.lengths.tolist() == [3.0, 4.0, 4.0, 5.0]


def test_prompts_that_differ_in_spaces_and_case_are_one():
    found = gather(
        [Conversation.ask("How  do I?").answer("a"), Conversation.ask("how do i?").answer("b"), ASK.answer("c")]
    )
    assert found.prompts[0] == found.prompts[1] != found.prompts[2]


@pytest.mark.parametrize("records", [[], [ASK]])
def test_nothing_answered_is_an_empty_evidence(records):
    assert gather(records).answers == []

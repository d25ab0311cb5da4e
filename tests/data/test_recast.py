"""One kind of record as another: what it says, and what it does not say."""

import pytest

from holdfast.data.recast import as_classified, as_dual, as_preference, as_ranked, as_scored
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Ranked, Rated, Scored
from holdfast.errors import UserError

ASK = Conversation.ask("Tulips?", id="p")
FROM = {"id": "7", "source": "s", "split": "dev"}
PAIR = Pair(**FROM, prompt=ASK, chosen="x", rejected="y")
DUAL = DualPair(**FROM, prompt=ASK, responses=("x", "y"), helpful_id=1, safer_id=0)
RANKED = Ranked(**FROM, prompt=ASK, responses=("a", "b", "c"), rewards=(2.0, 0.5, -1.0))
RATED = Rated(**FROM, conversation=ASK.answer("x"), labels={"help": 0.5, "tone": float("nan")})
LABELLED = Labelled(**FROM, conversation=ASK.answer("x"), safe=False)
CLASSIFIED = Classified(**FROM, conversation=ASK, label="3", group="g")


def origin(record) -> dict:
    return record.model_dump(include=set(FROM))


def test_each_ranked_answer_has_its_own_reward() -> None:
    rows = as_scored(RANKED, "scored")
    assert [row.id for row in rows] == ["7/0", "7/1", "7/2"]
    assert [(row.conversation.response, row.scores) for row in rows] == [
        ("a", {"reward": 2.0}),
        ("b", {"reward": 0.5}),
        ("c", {"reward": -1.0}),
    ]
    assert {(row.source, row.split, row.conversation.key) for row in rows} == {("s", "dev", ASK.key)}


def test_ratings_are_scores_where_they_were_given() -> None:
    (row,) = as_scored(RATED, "scored")
    assert (origin(row), row.scores, row.conversation) == (FROM, {"help": 0.5}, RATED.conversation)
    assert as_scored(row, "scored") == [row]


@pytest.mark.parametrize(
    "record, kind",
    [
        (PAIR, "Pair 7"),
        (RANKED.model_copy(update={"rewards": None}), "Ranked 7"),
        (RATED.model_copy(update={"labels": {"tone": float("nan")}}), "Rated 7"),
        (LABELLED, "Labelled 7"),
        (Conversation.ask("q"), "Conversation without an id"),
    ],
)
def test_what_has_no_reward_is_named(record, kind) -> None:
    with pytest.raises(UserError, match=rf"data\.scored: the {kind} carries no reward; rows with prompt, response and"):
        as_scored(record, "scored")


def test_pairs_are_rankings_of_two() -> None:
    for pair, expected in ((PAIR, ("x", "y")), (DUAL, ("y", "x"))):
        row = as_ranked(pair, "ranked")
        assert (origin(row), row.responses, row.rewards, row.preferred) == (FROM, expected, None, None)
    assert as_ranked(RANKED, "ranked") is RANKED
    with pytest.raises(UserError, match=r"data\.ranked holds Scored rows; pairs or ranked answers are needed"):
        as_ranked(Scored(id="1", conversation=ASK.answer("x"), scores={"a": 1.0}), "ranked")
    with pytest.raises(UserError, match="DualPair without a preferred answer"):
        as_ranked(DualPair(id="1", prompt=ASK, responses=("x", "y")), "ranked")


def test_a_person_outranks_the_rewards_in_a_preference() -> None:
    two = Ranked(**FROM, prompt=ASK, responses=("a", "b"), rewards=(2.0, 0.5), preferred=1)
    assert as_preference(two, "pairs") == Pair(**FROM, prompt=ASK, chosen="b", rejected="a")
    unjudged = two.model_copy(update={"preferred": None})
    assert as_preference(unjudged, "pairs") == Pair(**FROM, prompt=ASK, chosen="a", rejected="b")
    with pytest.raises(UserError, match=r"data\.pairs holds a Ranked without a preferred answer"):
        as_preference(RANKED, "pairs")


def test_help_goes_before_safety_in_a_preference() -> None:
    assert as_preference(PAIR, "pairs") is PAIR
    assert as_preference(DUAL, "pairs").chosen == "y"
    assert as_preference(DUAL.model_copy(update={"helpful_id": None}), "pairs").chosen == "x"
    assert as_dual(PAIR).helpful_id == 0
    assert as_dual(DUAL) is DUAL
    with pytest.raises(UserError, match=r"data\.pairs holds Rated rows; pairs of answers are needed"):
        as_dual(RATED)


def test_labels_are_classes() -> None:
    unsafe = as_classified(LABELLED, "classified")
    assert (origin(unsafe), unsafe.label, unsafe.conversation) == (FROM, "unsafe", LABELLED.conversation)
    assert as_classified(LABELLED.model_copy(update={"safe": True}), "classified").label == "safe"
    assert as_classified(CLASSIFIED, "classified") is CLASSIFIED
    with pytest.raises(UserError, match=r"data\.classified holds Pair rows; texts with a label"):
        as_classified(PAIR, "classified")

"""Ratings to pairs by hand: who wins on which label, and where every dropped comparison is counted."""

import random

import pytest

from holdfast.data.expand import CONTEXTS, pairs_by_label
from holdfast.data.schema import Conversation, Rated
from holdfast.data.split import leaks, pools
from holdfast.errors import UserError

NAN = float("nan")


def rated(id: str, text: str, prompt: str = "q", **labels: float) -> Rated:
    return Rated(id=id, conversation=Conversation.ask(prompt).answer(text), labels=labels, source="s", split="train")


def won(found) -> list[tuple[str, str, str]]:
    return [(pair.group, pair.chosen, pair.rejected) for pair in found.pairs]


ROWS = [
    rated("a", "short", helpfulness=4, verbosity=0),
    rated("b", "a long one", helpfulness=2, verbosity=3),
    rated("c", "alone", "another question", helpfulness=0, verbosity=4),
]


def test_the_higher_rating_is_chosen_on_each_label() -> None:
    found = pairs_by_label(ROWS)
    assert won(found) == [("helpfulness", "short", "a long one"), ("verbosity", "a long one", "short")]
    assert found[1:] == (0, 0, 0)
    first, second = found.pairs
    assert (first.id, first.source, first.split, first.context) == (
        "a/b/helpfulness",
        "s",
        "train",
        CONTEXTS["helpfulness"],
    )
    # The same two answers, however they are labelled.
    assert first.unordered == second.unordered
    assert first.prompt == ROWS[0].conversation.prompt


def test_labels_can_be_chosen_and_worded() -> None:
    assert won(pairs_by_label(ROWS, ["verbosity"])) == [("verbosity", "a long one", "short")]
    own = pairs_by_label(ROWS, ["verbosity"], contexts={"verbosity": "Talk."})
    assert own.pairs[0].context == "Talk."
    with pytest.raises(UserError, match="no row is rated for humour; the labels are helpfulness, verbosity"):
        pairs_by_label(ROWS, ["humour"])
    with pytest.raises(UserError, match="no wording for wit"):
        pairs_by_label([rated("a", "x", wit=1)])
    with pytest.raises(UserError, match="least_gap is 0"):
        pairs_by_label(ROWS, least_gap=0)


@pytest.mark.parametrize("gap, pairs, ties", [(0.5, 2, 1), (1.0, 2, 1), (1.5, 1, 2), (4.5, 0, 3)])
def test_ties_are_counted(gap, pairs, ties) -> None:
    rows = [
        rated("a", "x", helpfulness=2, verbosity=1, coherence=3),
        rated("b", "y", helpfulness=2, verbosity=2, coherence=0),
    ]
    found = pairs_by_label(rows, least_gap=gap)
    assert (len(found.pairs), found.ties) == (pairs, ties)


def test_missing_ratings_and_equal_answers_are_counted() -> None:
    rows = [
        rated("a", "x", helpfulness=2, verbosity=NAN),
        rated("b", "y", helpfulness=NAN, verbosity=2),
        rated("c", "x ", helpfulness=4),
    ]
    found = pairs_by_label(rows)
    # On help a and c are the same answer; b has no rating. On length nobody but b has one.
    assert (found.pairs, found.ties, found.missing) == ([], 1, 5)


def test_answers_on_which_all_agree_can_be_dropped() -> None:
    rows = [
        rated("a", "best", helpfulness=4, verbosity=4),
        rated("b", "good", helpfulness=2, verbosity=2),
        rated("c", "long", helpfulness=1, verbosity=3),
    ]
    found = pairs_by_label(rows, drop_unanimous=True)
    assert found.unanimous == 2
    assert won(found) == [("helpfulness", "good", "long"), ("verbosity", "long", "good")]
    assert len(pairs_by_label(rows).pairs) == 6
    # Two labels agree and the third is tied, so not all of them agree; and one label alone cannot agree.
    tied = [
        rated("a", "x", helpfulness=4, verbosity=4, coherence=2),
        rated("b", "y", helpfulness=2, verbosity=2, coherence=2),
    ]
    assert len(pairs_by_label(tied, drop_unanimous=True).pairs) == 2
    assert len(pairs_by_label(rows, ["verbosity"], drop_unanimous=True).pairs) == 3


def test_against_a_slow_double_loop() -> None:
    rng = random.Random(0)
    rows = [
        rated(
            str(i),
            f"answer {i}",
            f"question {i % 7}",
            **{name: rng.choice([0, 1, 2, 3, NAN]) for name in ("honesty", "brevity")},
        )
        for i in range(60)
    ]
    found = pairs_by_label(rows, least_gap=2)
    expected = set()
    for name in ("honesty", "brevity"):
        for better in rows:
            for worse in rows:
                same = better.conversation.key == worse.conversation.key
                if same and better.labels[name] >= worse.labels[name] + 2:
                    expected.add((name, better.conversation.response, worse.conversation.response))
    assert set(won(found)) == expected
    assert len(found.pairs) == len(expected)
    couples = sum(n * (n - 1) // 2 for n in (sum(i % 7 == k for i in range(60)) for k in range(7)))
    assert len(expected) + found.ties + found.missing == 2 * couples


def test_splits_by_prompt_keep_every_label_of_a_pair_together() -> None:
    rows = [
        rated(f"{i}{side}", f"{side} {i}", f"question {i}", helpfulness=i % 2 + place, verbosity=3 * place)
        for i in range(200)
        for place, side in enumerate("ab")
    ]
    found = pairs_by_label(rows).pairs
    assert len(found) == 400
    made = pools(found, {"train": 0.7, "test": 0.3}, "salt")
    assert leaks(made["train"], made["test"]) == []
    assert not {pair.unordered for pair in made["train"]} & {pair.unordered for pair in made["test"]}
    # The rated rows themselves fall into the same pools as their pairs.
    of_rows = pools(rows, {"train": 0.7, "test": 0.3}, "salt")
    assert {row.conversation.key for row in of_rows["test"]} == {pair.prompt.key for pair in made["test"]}


def test_every_wording_is_one_sentence() -> None:
    assert all(text.startswith("Prefer ") and text.count(".") == 1 and text.endswith(".") for text in CONTEXTS.values())
    assert len(set(CONTEXTS.values())) == len(CONTEXTS)

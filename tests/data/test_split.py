"""Pools: disjoint by prompt and image, stable under order, near the fractions asked for."""

import random

import pytest

from holdfast.data.schema import Classified, Conversation, DualPair, Image, Labelled, Message, Pair, Ranked, Rated, Text
from holdfast.data.split import cluster_ids, keys, leaks, pools, prompt_of
from holdfast.errors import UserError


def ask(text: str, *images: str, id: str = "") -> Conversation:
    return Conversation.ask(text, tuple(Image(path=f"{name}.png", sha256=name) for name in images), id)


PROMPTS = [ask(f"question number {i}", id=str(i)) for i in range(2000)]
THIRDS = {"train": 0.6, "valid": 0.1, "test": 0.3}


def test_every_kind_of_record_has_its_prompt() -> None:
    prompt = ask("a")
    records = [
        prompt,
        prompt.answer("b"),
        Pair(id="1", prompt=prompt, chosen="b", rejected="c"),
        DualPair(id="1", prompt=prompt, responses=("b", "c")),
        Labelled(id="1", conversation=prompt.answer("b"), safe=True),
        Rated(id="1", conversation=prompt.answer("b"), labels={}),
        Ranked(id="1", prompt=prompt, responses=("b", "c")),
        Classified(id="1", conversation=prompt, label="d"),
    ]
    assert {prompt_of(record).key for record in records} == {prompt.key}
    with pytest.raises(TypeError, match="a Text has no prompt"):
        prompt_of(Text(text="a"))


def test_pools_hold_every_row_once_near_their_fractions() -> None:
    made = pools(PROMPTS, THIRDS, "salt")
    assert sorted(int(row.id) for pool in made.values() for row in pool) == list(range(2000))
    for name, share in THIRDS.items():
        # Four standard deviations of a binomial share of 2000.
        assert abs(len(made[name]) / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_pools_do_not_depend_on_order_or_on_other_rows() -> None:
    made = pools(PROMPTS, THIRDS, "salt")
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    again = pools(shuffled, dict(reversed(THIRDS.items())), "salt")
    assert {name: {row.id for row in pool} for name, pool in made.items()} == {
        name: {row.id for row in pool} for name, pool in again.items()
    }
    fewer = pools(PROMPTS[:1000], THIRDS, "salt")
    assert {row.id for row in fewer["test"]} == {row.id for row in made["test"] if int(row.id) < 1000}
    other = pools(PROMPTS, THIRDS, "pepper")
    assert {row.id for row in other["test"]} != {row.id for row in made["test"]}


def test_near_duplicates_stay_together() -> None:
    variants = [ask(f"How do I grow plant {i}?") for i in range(300)]
    variants += [ask(f"how  do i grow\nplant {i} !") for i in range(300)]
    made = pools(variants, THIRDS, "salt")
    assert leaks(made["train"], made["test"]) == []
    assert leaks(made["train"], made["valid"]) == []
    names = cluster_ids(variants)
    assert names[:300] == names[300:]
    assert len(set(names)) == 300


def test_all_judgements_of_one_pair_share_a_pool() -> None:
    """Whoever judged it, in whatever context, with whatever outcome; rated rows of the prompt go with them."""
    judged = [
        Pair(id=f"{i}{user}", prompt=ask(f"question {i}"), chosen=user, rejected="z", user_id=user, context=user)
        for i in range(300)
        for user in "ab"
    ]
    made = pools(judged, THIRDS, "salt")
    assert leaks(made["train"], made["test"]) == []
    rated = [Rated(id=str(i), conversation=ask(f"Question {i}!").answer("z"), labels={}) for i in range(300)]
    assert {row.id for row in pools(rated, THIRDS, "salt")["test"]} == {pair.id[:-1] for pair in made["test"]}


def test_signs_alone_are_still_told_apart() -> None:
    assert len(set(cluster_ids([ask("???"), ask("!"), ask(":)")]))) == 3


def test_roles_and_earlier_turns_count() -> None:
    def talk(*texts: str) -> Conversation:
        roles = ["user", "assistant"]
        return Conversation(messages=tuple(Message.of(roles[i % 2], t) for i, t in enumerate(texts)))

    first, second, third = talk("a", "b", "c"), talk("a", "x", "c"), talk("c")
    assert len(set(cluster_ids([first, second, third]))) == 3
    # The last answer is no part of the prompt.
    assert len(set(cluster_ids([talk("a", "b"), talk("a", "x")]))) == 1


def test_images_tie_clusters_in_chains() -> None:
    chain = [ask("one", "A"), ask("two", "A", "B"), ask("three", "B"), ask("four", "C")]
    names = cluster_ids(chain)
    assert names[0] == names[1] == names[2] != names[3]
    assert cluster_ids(chain[::-1]) == names[::-1]
    assert names[0] == min(key for row in chain[:3] for key in keys(row))


def test_groups_tie_clusters_as_images_do() -> None:
    def claim(text: str, group: str) -> Classified:
        return Classified(id=text, conversation=Conversation.ask(text), label="true", group=group)

    chain = [claim("one", "A"), claim("two", "A"), claim("Two!", "B"), claim("three", "B"), claim("four", "")]
    names = cluster_ids(chain)
    assert len(set(names[:4])) == 1
    assert names[4] not in names[:4]
    assert [(a.id, b.id) for a, b in leaks(chain[:1], chain[1:])] == [("one", "two")]
    # Texts without a group are not related to each other; a pair's group is a taste, not a relation.
    assert len(set(cluster_ids([claim("five", ""), claim("six", "")]))) == 2
    pairs = [Pair(id=text, prompt=ask(text), chosen="a", rejected="b", group="A") for text in ("one", "two")]
    assert len(set(cluster_ids(pairs))) == 2


def test_one_question_about_two_pictures_is_two_prompts() -> None:
    assert len(set(cluster_ids([ask("what is this", "A"), ask("what is this", "B"), ask("what is this")]))) == 3


def test_leaks_name_both_rows() -> None:
    a = [ask("one", id="a1"), ask("two", "X", id="a2")]
    b = [ask("ONE!", id="b1"), ask("other", "X", id="b2"), ask("new", id="b3")]
    assert [(x.id, y.id) for x, y in leaks(a, b)] == [("a1", "b1"), ("a2", "b2")]


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.2, "b": -0.2}, {"a": 1.0, "b": 0.0}, {}])
def test_fractions_must_make_a_whole(fractions) -> None:
    with pytest.raises(UserError, match="above 0 and add up to 1"):
        pools(PROMPTS, fractions, "salt")


def test_an_empty_pool_is_an_error() -> None:
    with pytest.raises(UserError, match="of 3 rows none fell into"):
        pools([ask("a"), ask("a!"), ask("A")], {"train": 0.5, "test": 0.5}, "salt")

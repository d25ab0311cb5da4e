"""People of the pocket world: what they value, judged by hand; how they judge and ask, measured against their settings.

Every draw has a fixed seed; five standard deviations leave room for any seed.
"""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from holdfast.data.schema import Conversation
from holdfast.pocket import grammar
from holdfast.pocket.annotators import write_reply
from holdfast.pocket.oracles import request, truth
from holdfast.pocket.people import (
    NAMES,
    VARIED,
    WORDS,
    PeopleSettings,
    context_of,
    draw_people,
    home,
    phrases,
    taste_scores,
    value,
)

SOUP = "how do i season the soup ?"
LONG = "first , heat the pan for the soup . then stir the soup slowly . finally serve the soup warm ."
KIND = f"of course ! {LONG} good luck !"
SHORT = "just stir the soup slowly ."
WRONG = "just stir the fish slowly ."
NO = "i will not help with this ."
OUT = f"{NO} maybe ask for advice first ."


def close(count, n, p):
    """Whether `count` of `n` is within five binomial standard deviations of `p`."""
    return abs(count / n - p) <= 5 * math.sqrt(max(p * (1 - p), 1e-9) / n)


@pytest.fixture(scope="module")
def judged():
    return draw_people(PeopleSettings(users=200, pairs=15), np.random.default_rng(0))


def truths(pair):
    return [truth(pair.prompt.messages[0].text, answer) for answer in (pair.chosen, pair.rejected)]


# thorough: right / 3; brief: 1 - words / 36 where a step is right; warm: 0.7 polite + 0.3 other way out;
# less 0.1 for each sentence that answers nothing.
@pytest.mark.parametrize(
    "reply, expected",
    [
        (LONG, (1.0, 1 - 21 / 36, 0.0)),
        (KIND, (1.0, 1 - 27 / 36, 0.7)),
        (SHORT, (1 / 3, 1 - 6 / 36, 0.0)),
        (WRONG, (-0.1, -0.1, -0.1)),
        (NO, (0.0, 0.0, 0.0)),
        (OUT, (0.0, 0.0, 0.3)),
        (f"{SHORT} stir .", (1 / 3 - 0.1, 1 - 8 / 36 - 0.1, -0.1)),
    ],
)
def test_what_an_answer_is_worth_to_each_taste(reply, expected):
    found = truth(SOUP, reply)
    assert [value(name, found) for name in ("thorough", "brief", "warm")] == pytest.approx(expected, abs=1e-12)
    assert taste_scores([Conversation.ask(SOUP).answer(reply)])[0] == pytest.approx(expected, abs=1e-12)


def test_thorough_and_brief_people_are_opposed(judged):
    """Whoever judges, the answers that one of them prefers are those that the other one does not."""
    agree, both = Counter(), Counter()
    for pair in judged:
        gaps = {name: value(name, truths(pair)[0]) - value(name, truths(pair)[1]) for name in NAMES}
        for one, other in product(NAMES, NAMES):
            if one < other and abs(gaps[one]) > 1e-9 < abs(gaps[other]):
                both[one, other] += 1
                agree[one, other] += gaps[one] * gaps[other] > 0
    shares = {names: agree[names] / count for names, count in both.items()}
    assert shares["brief", "thorough"] < 0.25
    assert 0.25 < shares["thorough", "warm"] < 0.75
    assert shares["brief", "warm"] < 0.6


def test_each_person_has_one_taste_and_one_context(judged):
    people = {}
    for pair in judged:
        people.setdefault(pair.user_id, []).append(pair)
    assert len(people) == 200
    assert {len(pairs) for pairs in people.values()} == {15}
    assert all(len({(pair.group, pair.context) for pair in pairs}) == 1 for pairs in people.values())
    assert all(pair.context in WORDS[pair.group] for pair in judged)
    tastes = Counter(pairs[0].group for pairs in people.values())
    assert all(close(tastes[name], 200, 1 / 3) for name in NAMES)
    assert len({pair.id for pair in judged}) == len(judged)


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_people_judge_through_a_logistic_curve(sharpness):
    drawn = draw_people(PeopleSettings(users=150, pairs=20, sharpness=sharpness), np.random.default_rng(1))
    gaps = np.array([value(pair.group, a) - value(pair.group, b) for pair in drawn for a, b in [truths(pair)]])
    sure = 1 / (1 + np.exp(-sharpness * np.abs(gaps)))
    # Right as often as the curve says for these gaps, and nobody was asked about a tie.
    assert abs((gaps > 0).sum() - sure.sum()) <= 5 * math.sqrt((sure * (1 - sure)).sum())
    assert np.abs(gaps).min() >= 0.1


@pytest.mark.parametrize("share", [0.8, 1 / 3])
def test_topics_tell_as_much_about_tastes_as_asked(share):
    drawn = draw_people(PeopleSettings(users=1500, pairs=1, at_home=share), np.random.default_rng(2))
    topics = {topic.name: name for name in NAMES for topic in home(name)}
    assert set(topics) == {topic.name for topic in grammar.BENIGN}
    owners = Counter((topics[request(pair.prompt.messages[0].text).topic.name], pair.group) for pair in drawn)
    for owner in NAMES:
        count = sum(owners[owner, name] for name in NAMES)
        for name in NAMES:
            assert close(owners[owner, name], count, share if name == owner else (1 - share) / 2)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_harm_is_asked_for_only_when_settings_say_so(share):
    drawn = draw_people(PeopleSettings(users=60, pairs=20, harmful_share=share), np.random.default_rng(3))
    assert close(sum(request(pair.prompt.messages[0].text).topic.harmful for pair in drawn), 1200, share)


def test_contexts_are_told_apart_by_nobody_but_their_taste():
    rng = np.random.default_rng(4)
    assert {context_of("warm", rng) for _ in range(50)} == set(WORDS["warm"])
    texts = [text for name in NAMES for text in WORDS[name]]
    assert len(set(texts)) == len(texts) == 9
    assert set(texts) < set(phrases())


def test_what_people_compare_is_mostly_right_and_of_every_kind():
    rng = np.random.default_rng(5)
    found = [truth(SOUP, write_reply(request(SOUP), VARIED, rng)) for _ in range(1000)]
    assert {one.right for one in found} == {0, 1, 2, 3}
    assert sum(one.wrong > 0 for one in found) < 100
    assert 0.5 < np.mean([one.polite for one in found]) < 0.7

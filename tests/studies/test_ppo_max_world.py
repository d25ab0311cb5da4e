"""The world of the study `ppo_max`: its judges say what they should, and the proxy is blind where it should be."""

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.studies import ppo_max_world as world

ASKED = Conversation.ask("t2 w0 w1")


def answered(*words):
    return ASKED.answer(" ".join(words))


@pytest.mark.parametrize(
    "words, value",
    [
        ([], 0.0),
        (["w8", "w9", "w10", "w11"], 4.0),
        (["w8", "w9", "w8", "w9"], 2.0),
        (["w8", "w8", "w9"], 1.5),
        (["w8", "w0", "t2"], 0.8),
        (["w8", "w9"] * 6, 2.0),
        (["w8", "w9"] * 7, 1.5),
        # 31 words ended in time, 32 did not: 19 or 20 beyond twelve, and the last one costs 1 more.
        (["w8", "w9"] * 15 + ["w8"], 2 - 4.75),
        (["w8", "w9"] * 16, 2 - 5.0 - 1),
    ],
)
def test_gold_by_hand(words, value):
    assert world.gold(answered(*words)) == pytest.approx(value, abs=1e-12)


def test_words_fit_one_topic_only():
    owned = [word for topic in range(world.TOPICS) for word in world.fitting(topic)]
    assert sorted(owned) == sorted(world.WORDS)
    assert world.parts(answered("w8", "w7")).fits == [True, False]


def test_usual_answers_are_those_of_the_head():
    found = [world.parts(one) for one in world.answers(4000, np.random.default_rng(5))]
    lengths = [len(one.words) for one in found]
    assert set(lengths) == set(range(4, 13))
    fits = np.mean([fit for one in found for fit in one.fits])
    # .4 by intention and a quarter of the rest by chance, less what is lost where a repetition is drawn anew.
    assert 0.5 < fits < 0.55
    repeats = np.mean([a == b for one in found for a, b in zip(one.words, one.words[1:])])
    assert repeats < 0.002
    assert world.answers(3, np.random.default_rng(5)) == world.answers(3, np.random.default_rng(5))


def test_the_proxy_is_right_at_home_and_blind_abroad():
    proxy = world.learn_proxy(4000, np.random.default_rng(0))
    assert 0.7 < proxy.accuracy < 0.76
    assert 0.4 < proxy.fitting < 0.7
    assert -0.25 < proxy.other < -0.1
    modest, endless = answered("w8", "w9", "w10", "w11"), answered(*["w8"] * 32)
    assert world.gold(modest) > 20 + world.gold(endless)
    scores = proxy([modest, endless])["reward"]
    assert scores[1] > scores[0] + 10
    assert scores.tolist() == pytest.approx([4 * proxy.fitting, 32 * proxy.fitting], rel=1e-6)
    assert proxy([answered("w8", "w1", "w2")])["reward"].item() == pytest.approx(proxy.fitting + 2 * proxy.other)


def test_the_fit_is_the_most_likely_one():
    """Bradley-Terry has its score equation: the labels' surprise is orthogonal to every feature."""
    rng = np.random.default_rng(3)
    proxy = world.learn_proxy(1000, rng)
    rng = np.random.default_rng(3)
    first = world.answers(1000, rng)
    second = [one.prompt.answer(" ".join(world._usual(world._topic(one), rng))) for one in first]
    margin = np.array([world.gold(a) - world.gold(b) for a, b in zip(first, second)])
    preferred = rng.random(1000) < 1 / (1 + np.exp(-2 * margin))
    difference = world.features(first) - world.features(second)
    predicted = 1 / (1 + np.exp(-difference @ np.array([proxy.fitting, proxy.other])))
    # L-BFGS stops at a gradient of 1e-5 or when the loss stands still.
    assert np.abs((preferred - predicted) @ difference / 1000).max() < 1e-4


def test_every_word_is_one_token_and_an_answer_has_room():
    template = world.template()
    row = template.answered(answered(*["w8", "w15"] * 15))
    assert row.length - row.prompt_length == 31
    assert not row.truncated
    assert template.decode(row.response_ids) == " ".join(["w8", "w15"] * 15)
    start = template.prompt(ASKED)
    assert start.length + world.LIMIT <= template.max_length
    assert template.tokenizer.unk_token_id not in row.ids
    assert torch.tensor(row.ids).max() < len(template.tokenizer)

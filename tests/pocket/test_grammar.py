"""The tables of the pocket language: nothing in them is ambiguous, and its tokenizer knows every word."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data.tokenizer import train_tokenizer
from holdfast.pocket import grammar
from holdfast.pocket.annotators import SPREAD, draw_request, write_reply
from holdfast.pocket.oracles import request

TOKENIZER = train_tokenizer([" ".join(grammar.vocabulary())], 4096, "word")


def test_harm_lies_in_the_combination():
    pairs = [pair for topic in grammar.TOPICS for pair in topic.pairs]
    assert len(pairs) == len(set(pairs)), "an act on an object belongs to one topic"
    harmful_acts = {act for topic in grammar.HARMFUL for act, _ in topic.pairs}
    harmless_acts = {act for topic in grammar.BENIGN for act, _ in topic.pairs}
    assert {"kill", "shoot", "crack", "track", "attack", "hack"} <= harmful_acts & harmless_acts
    harmful_things = {thing for topic in grammar.HARMFUL for _, thing in topic.pairs}
    assert {"bicycle", "car"} <= harmful_things & {thing for topic in grammar.BENIGN for _, thing in topic.pairs}
    assert all(topic.harmful for topic in grammar.HARMFUL)
    assert not any(topic.harmful for topic in grammar.BENIGN)


def test_a_step_belongs_to_one_topic():
    steps = [step for topic in grammar.TOPICS for step in topic.steps]
    assert len(steps) == len(set(steps))
    assert all(step.count("{}") == 1 for step in steps)
    assert all(len(topic.steps) == 4 for topic in grammar.TOPICS)


def test_the_vocabulary_is_sorted_distinct_and_small():
    words = grammar.vocabulary()
    assert words == sorted(set(words))
    assert not any("{" in word or " " in word for word in words)
    assert len(words) < 400


def test_every_sentence_goes_through_the_tokenizer_and_back():
    requests = [
        frame.format(act=act, object=thing, detail=detail)
        for topic in grammar.TOPICS
        for act, thing in topic.pairs
        for frame, detail in zip((*grammar.PLAIN, *grammar.FRAMED, *grammar.PLAIN[:2]), grammar.DETAILS)
    ]
    steps = [
        grammar.sentences([(step, thing)] * n)
        for topic in grammar.TOPICS
        for step in topic.steps
        for _, thing in topic.pairs
        for n in (1, 3)
    ]
    phrases = chain(grammar.OPENERS, grammar.CLOSERS, grammar.REFUSALS, grammar.ALTERNATIVES)
    for text in chain(requests, steps, phrases):
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids, text
        assert TOKENIZER.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9))
def test_whatever_is_drawn_can_be_tokenised_and_read_back(seed):
    import numpy as np

    rng = np.random.default_rng(seed)
    prompt = draw_request(rng)
    reply = write_reply(request(prompt), SPREAD, rng)
    for text in (prompt, reply):
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text


def test_steps_are_joined_as_people_do():
    steps = [("stir the {} slowly", "soup"), ("serve the {} warm", "soup"), ("add some salt to the {}", "soup")]
    assert grammar.sentences(steps[:1]) == "just stir the soup slowly ."
    assert grammar.sentences(steps) == (
        "first , stir the soup slowly . then serve the soup warm . finally add some salt to the soup ."
    )

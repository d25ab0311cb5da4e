"""Writers and annotators keep to their settings: rates measured against binomial deviations.

Every draw has a fixed seed, so these tests pass or fail for good; five standard deviations leave room for any seed.
"""

import math

import numpy as np
import pytest

from holdfast.pocket.annotators import SPREAD, Annotator, Manner, draw_pair, draw_request, write_reply
from holdfast.pocket.oracles import request, truth

SOUP, SAFE = "how do i season the soup ?", "how do i crack the safe ?"
GOOD = "first , heat the pan for the soup . then stir the soup slowly . finally serve the soup warm ."
FAIR = "just stir the soup slowly ."
BAD = "first , cut the lock of the safe . then hide the safe in a van . finally sell the safe far away ."
NO = "i will not help with this ."


def close(count, n, p):
    """Whether `count` of `n` is within five binomial standard deviations of `p`."""
    return abs(count / n - p) <= 5 * math.sqrt(max(p * (1 - p), 1e-9) / n)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_requests_are_harmful_and_framed_as_often_as_asked(share):
    rng, n = np.random.default_rng(1), 3000
    drawn = [request(draw_request(rng, share)) for _ in range(n)]
    assert close(sum(one.topic.harmful for one in drawn), n, share)
    assert close(sum(one.framed for one in drawn), n, 0.4)


def test_a_careful_writer_answers_right():
    rng, manner = np.random.default_rng(2), Manner(refuse=0.0, counts=(0.2, 0.3, 0.5), slip=0.0, polite=0.5)
    replies = [truth(SOUP, write_reply(request(SOUP), manner, rng)) for _ in range(2000)]
    assert not any(one.refusal or one.wrong or one.harmful for one in replies)
    for number, share in enumerate(manner.counts, start=1):
        assert close(sum(one.right == number for one in replies), 2000, share)
    # A kind opening in half, a closing in a quarter, independently.
    assert close(sum(one.polite for one in replies), 2000, 1 - 0.5 * 0.75)


def test_refusals_and_ways_out_have_their_shares():
    rng, manner = np.random.default_rng(3), Manner(refuse=0.3, counts=(1, 0, 0), slip=0.0, alternative=0.25)
    replies = [truth(SAFE, write_reply(request(SAFE), manner, rng)) for _ in range(3000)]
    refused = [one for one in replies if one.refusal]
    assert close(len(refused), 3000, 0.3)
    assert close(sum(one.alternative for one in refused), len(refused), 0.25)
    assert all(one.harmful != one.refusal for one in replies)


def test_slips_and_answers_gone_astray_are_wrong():
    n, rng = 2000, np.random.default_rng(4)
    slips = Manner(refuse=0.0, counts=(1, 0, 0), slip=0.35)
    assert close(sum(truth(SOUP, write_reply(request(SOUP), slips, rng)).wrong for _ in range(n)), n, 0.35)
    astray = Manner(refuse=0.0, counts=(1, 0, 0), slip=0.0, astray=0.35)
    found = [truth(SOUP, write_reply(request(SOUP), astray, rng)) for _ in range(n)]
    assert close(sum(one.right == 0 for one in found), n, 0.35)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 20.0])
def test_help_is_judged_through_a_logistic_curve(sharpness):
    annotator, rng, n = Annotator(sharpness=sharpness, flip=0.0), np.random.default_rng(5), 3000
    first = sum(annotator.judge("p", SOUP, (GOOD, FAIR), rng).helpful_id == 0 for _ in range(n))
    # Three right steps are worth 1, one is worth a third.
    assert close(first, n, 1 / (1 + math.exp(-sharpness * 2 / 3)))


def test_safety_labels_are_wrong_as_often_as_asked():
    annotator, rng, n = Annotator(flip=0.2), np.random.default_rng(6), 3000
    judged = [annotator.judge("p", SAFE, (BAD, NO), rng) for _ in range(n)]
    assert close(sum(one.safe[0] is True for one in judged), n, 0.2)
    assert close(sum(one.safe[1] is False for one in judged), n, 0.2)
    # Severities: three where it is seen, zero or one where it is not.
    assert {one.severity for one in judged} == {(3, 0), (0, 0), (3, 1), (0, 1)}
    # An answer called harmful carries the categories that it really has.
    assert all((one.categories[0] == ("property_crime_and_theft",)) == (one.safe[0] is False) for one in judged)


def test_a_faultless_annotator_says_what_is_true():
    annotator, rng = Annotator(sharpness=200.0, flip=0.0), np.random.default_rng(7)
    alternative = f"{NO} maybe ask for advice first ."
    judged = annotator.judge("p", SAFE, (alternative, BAD), rng)
    assert (judged.helpful_id, judged.safer_id) == (1, 0)
    assert (judged.safe, judged.harmless_rate, judged.severity) == ((True, False), (2, -3), (0, 3))
    judged = annotator.judge("p", SOUP, (NO, GOOD), rng)
    assert (judged.helpful_id, judged.safer_id, judged.harmless_rate) == (1, 1, (0, 1))


def test_nobody_contradicts_themselves():
    rng, annotator = np.random.default_rng(8), Annotator(flip=0.4)
    for i in range(500):
        pair = draw_pair(f"pair-{i}", annotator, rng)
        rates = pair.harmless_rate
        assert pair.responses[0] != pair.responses[1]
        assert rates[pair.safer_id] >= rates[1 - pair.safer_id]
        assert tuple(rate >= 0 for rate in rates) == pair.safe
        assert tuple(level > 0 for level in pair.severity) == tuple(not safe for safe in pair.safe)


def test_equal_rates_are_decided_by_a_coin():
    annotator, rng, n = Annotator(flip=0.0), np.random.default_rng(9), 2000
    assert close(sum(annotator.judge("p", SOUP, (GOOD, FAIR), rng).safer_id for _ in range(n)), n, 0.5)


def test_the_pairs_people_compare_hold_every_kind_of_answer():
    rng = np.random.default_rng(10)
    truths = [truth(SAFE, write_reply(request(SAFE), SPREAD, rng)) for _ in range(500)]
    assert {one.severity for one in truths} == {0, 1, 2, 3}
    assert {one.refusal for one in truths} == {one.alternative for one in truths} == {True, False}
    assert {one.wrong > 0 for one in truths} == {True, False}

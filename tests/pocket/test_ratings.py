"""Ratings of the pocket world: the truth by hand, noise and gaps against their settings, all draws with fixed seeds."""

import math

import numpy as np
import pytest

from holdfast.data.schema import Conversation
from holdfast.pocket.oracles import judge, request, truth
from holdfast.pocket.ratings import LABELS, RatingsSettings, draw_ratings, label_scores, true_labels

SOUP, SAFE = "how do i season the soup ?", "how do i crack the safe ?"
GOOD = "good question ! first , stir the soup slowly . finally serve the soup warm ."
BAD = "first , cut the lock of the safe . finally sell the safe far away ."


# helpfulness, harmlessness 1 - severity / 3, politeness, brevity 1 - words / 40
@pytest.mark.parametrize(
    "prompt, reply, expected",
    [
        (SOUP, GOOD, (2 / 3 + 0.05, 1.0, 1.0, 1 - 16 / 40)),
        (SAFE, BAD, (2 / 3, 1 / 3, 0.0, 1 - 16 / 40)),
        (SAFE, "i will not help with this .", (0.0, 1.0, 0.0, 1 - 7 / 40)),
        (SOUP, "soup " * 50, (0.0, 1.0, 0.0, 0.0)),
        (SOUP, "", (0.0, 1.0, 0.0, 1.0)),
    ],
)
def test_the_true_labels(prompt, reply, expected):
    assert true_labels(truth(prompt, reply)) == pytest.approx(dict(zip(LABELS, expected)), abs=1e-12)
    assert label_scores([Conversation.ask(prompt).answer(reply)])[0] == pytest.approx(expected, abs=1e-12)


def table(rows):
    return np.array([[row.labels[name] for name in LABELS] for row in rows])


def test_without_noise_and_gaps_ratings_are_the_truth():
    rows = draw_ratings(RatingsSettings(prompts=40, noise=0), 0.5, np.random.default_rng(0))
    assert table(rows) == pytest.approx(np.array(label_scores([row.conversation for row in rows])), abs=0)
    assert {tuple(row.labels) for row in rows} == {LABELS}


def test_several_different_answers_to_each_request():
    rows = draw_ratings(RatingsSettings(prompts=60, answers=5), 0.5, np.random.default_rng(1))
    answers = {}
    for row in rows:
        answers.setdefault(row.conversation.key, set()).add(row.conversation.response)
    assert {len(found) for found in answers.values()} == {5}
    assert len(rows) == 5 * len(answers)
    assert len({row.id for row in rows}) == len(rows)
    harmful = [request(row.conversation.messages[0].text).topic.harmful for row in rows[::5]]
    assert 0 < sum(harmful) < len(harmful)


def test_noise_has_the_deviation_asked_for_and_is_cut():
    rows = draw_ratings(RatingsSettings(prompts=500, noise=0.05), 0.5, np.random.default_rng(2))
    seen, true = table(rows), np.array([list(true_labels(judge(row.conversation)).values()) for row in rows])
    assert (seen.min(), seen.max()) == (0, 1)
    # Where the truth lies three deviations inside, nothing is cut; the deviation of a sample deviation is s / sqrt(2n).
    inside = (true > 0.15) & (true < 0.85)
    errors, n = (seen - true)[inside], inside.sum()
    assert abs(errors.std() - 0.05) < 5 * 0.05 / math.sqrt(2 * n)
    assert abs(errors.mean()) < 5 * 0.05 / math.sqrt(n)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_labels_are_missing_independently(share):
    rows = draw_ratings(RatingsSettings(prompts=500, missing=share), 0.5, np.random.default_rng(3))
    gone = np.isnan(table(rows))
    for column in gone.T:
        assert abs(column.mean() - share) <= 5 * math.sqrt(share * (1 - share) / len(rows))
    both, expected = (gone[:, 0] & gone[:, 1]).mean(), share**2
    assert abs(both - expected) <= 5 * math.sqrt(expected * (1 - expected) / len(rows))

"""What held-out pairs say of a score model, worked out by hand."""

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation, DualPair
from holdfast.data.template import Encoded, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.preference.check import PairScores, prompt_of, score_pairs
from holdfast.preference.pairs import UNKNOWN, PairRow, helpful_rows
from holdfast.preference.tasks import CostTask, RewardTask
from holdfast.stats.estimate import share


def row(prompt, first=1, second=1, ranked=True, absolute=(UNKNOWN, UNKNOWN)):
    """A pair after the one-token prompt `prompt`, its answers `first` and `second` tokens long."""

    def side(length):
        return Encoded([prompt] + [0] * length, [False] + [True] * length, [False] * (length + 1), length, 1)

    return PairRow(str(prompt), side(first), side(second), ranked, absolute)


def test_accuracy_counts_prompts_and_ties_half():
    rows = [row(1), row(1), row(2), row(3), row(4, ranked=False)]
    scores = PairScores(rows, np.array([2.0, 0.0, 1.0, 3.0, 9.0]), np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    found = scores.accuracy()
    # Prompt 1 is right once in two, prompt 2 ties, prompt 3 is right; the unranked pair is not asked.
    assert found.value == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found.n == 3


def test_few_pairs_leave_an_accuracy_inside_its_range():
    rows = [row(i, 2, 1) for i in range(4)]
    scores = PairScores(rows, np.array([1.0, 1.0, 1.0, 0.0]), np.full(4, 0.5))
    assert scores.accuracy() == share([1.0, 1.0, 1.0, 0.0], [0, 1, 2, 3])
    assert 0 < scores.accuracy().low < 0.75 < scores.accuracy().high < 1
    always = scores.shorter_is_higher(higher=False)
    assert (always.value, always.high) == (1.0, 1.0)
    assert 0 < always.low < 1, "four right ones prove little"
    beyond = scores.over_shorter()
    assert (beyond.value, beyond.high) == (0.75, 1.0)


def test_without_two_prompts_that_are_ranked_there_is_no_accuracy():
    for rows in ([row(1, ranked=False), row(2, ranked=False)], [row(1), row(1), row(2, ranked=False)]):
        scores = PairScores(rows, np.ones(len(rows)), np.zeros(len(rows)))
        assert scores.accuracy() is scores.shorter_is_higher() is scores.over_shorter() is None


def test_length_alone_is_measured_in_both_directions():
    rows = [row(1, 2, 5), row(2, 5, 2), row(3, 4, 4), row(4, 1, 2), row(5, 9, 1, ranked=False)]
    scores = PairScores(rows, np.zeros(5), np.zeros(5))
    assert scores.shorter_is_higher().value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert scores.shorter_is_higher(higher=False).value == pytest.approx((0 + 1 + 0.5 + 0) / 4)


def test_what_a_model_knows_beyond_length_is_compared_pair_by_pair():
    rows = [row(1, 2, 5), row(2, 5, 2), row(3, 4, 4), row(4, 9, 1, ranked=False)]
    scores = PairScores(rows, np.array([1.0, 1.0, 1.0, 1.0]), np.zeros(4))
    # Always right, where the shorter is so once, and once by half.
    assert scores.over_shorter().value == pytest.approx((0 + 1 + 0.5) / 3)
    assert scores.over_shorter(higher=False).value == pytest.approx((1 + 0 + 0.5) / 3)
    assert scores.over_shorter().n == 3


def test_labelled_answers_keep_score_and_label_together():
    rows = [row(1, absolute=(1.0, -1.0)), row(2, absolute=(UNKNOWN, 3.0)), row(3, absolute=(0.0, -2.0))]
    scores, harmful = PairScores(rows, np.array([10.0, 20.0, 30.0]), np.array([11.0, 21.0, 31.0])).labelled()
    # A grade of zero is a bare refusal: it has no side.
    assert dict(zip(scores.tolist(), harmful.tolist())) == {10.0: 1.0, 11.0: 0.0, 21.0: 1.0, 31.0: 0.0}


def test_a_prompt_is_known_by_its_tokens():
    assert prompt_of(row(7, 3, 2)) == (7,)


@pytest.mark.parametrize("kind", [RewardTask, CostTask])
def test_every_pair_gets_its_own_scores(kind):
    template = Template(train_tokenizer(["what is it ? a long and a short answer"], 64, "word"), max_length=40)
    model = from_policy(tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1), ("s",), init_std=0.5)
    task = kind(model, template.pad_id)
    answers = ["a", "a long", "a long and a", "a short answer and a long answer", "answer"]
    pairs = [
        DualPair(id=text, prompt=Conversation.ask("what is it ?"), responses=(text, "is"), helpful_id=0)
        for text in answers
    ]
    rows = helpful_rows(pairs, template)
    model.train()
    found = score_pairs(task, rows, batch_tokens=24)
    assert model.training
    for i, one in enumerate(rows):
        with torch.no_grad():
            first, second = task.sides(task.collate([one]))
        # Padding moves sums, hence more than 1e-6.
        assert found.first[i] == pytest.approx(float(first), abs=1e-5)
        assert found.second[i] == pytest.approx(float(second), abs=1e-5)

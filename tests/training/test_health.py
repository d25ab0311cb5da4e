"""Health measures against hand numbers, a slow double loop, and batches that are put together otherwise."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.rollout.experience import Experience
from holdfast.training.health import distinct_bigrams, longest_run, measure

PROMPT = [9, 9, 9, 9, 9]  # a prompt that repeats itself must not pass for an answer that does


def experience(answers, old, ref=None, scores=None, truncated=None, groups=(), per_prompt=1):
    """Answers as token ids with their log-probabilities, padded by a number that would show."""
    width = max(map(len, answers))

    def table(lists):
        return torch.tensor([[*one, *[0.0] * (width - len(one))] for one in lists], dtype=torch.float64)

    rows = [
        Encoded(
            ids=PROMPT + ids,
            response_mask=[False] * len(PROMPT) + [True] * len(ids),
            turn_mask=[False] * len(PROMPT) + [True] * len(ids),
            score_index=len(PROMPT) + len(ids) - 1,
            prompt_length=len(PROMPT),
        )
        for ids in answers
    ]
    return Experience(
        rows=rows,
        conversations=[Conversation.ask("?", id=str(i)) for i in range(len(answers))],
        pad_id=0,
        old_logprobs=table(old),
        ref_logprobs=table(ref or old),
        scores={"reward": torch.tensor(scores or [0.0] * len(answers), dtype=torch.float64)},
        truncated=torch.tensor(truncated or [False] * len(answers)),
        per_prompt=per_prompt,
        groups=groups,
    )


@pytest.fixture
def drawn():
    """Twelve answers of one to nine tokens from a small vocabulary, with everything drawn at random."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 10, (12,), generator=draw).tolist()
    answers = [torch.randint(0, 4, (n,), generator=draw).tolist() for n in lengths]
    old, ref = ([(-3 * torch.rand(n, generator=draw)).tolist() for n in lengths] for _ in range(2))
    scores = torch.randn(12, generator=draw).tolist()
    cut = (torch.rand(12, generator=draw) < 0.4).tolist()
    groups = tuple("abc"[i % 3] for i in range(12))
    return experience(answers, old, ref, scores, cut, groups, per_prompt=3)


def test_perplexity_is_of_tokens_whatever_their_answers_lengths():
    """Lengths 100 and 300 at 2.0 and 1.5: 5.078419 by tokens; not 5.754603 by answers, nor the published 1.008788."""
    numbers = measure(experience([[1] * 100, [2] * 300], [[-2.0] * 100, [-1.5] * 300]), "reward")
    assert numbers["nll"] == pytest.approx(650 / 400, abs=1e-9)
    assert numbers["perplexity"] == pytest.approx(5.078419, abs=1e-6)


def test_perplexity_does_not_depend_on_how_often_the_batch_is_repeated(drawn):
    twice = replace(
        drawn,
        rows=drawn.rows * 2,
        conversations=drawn.conversations * 2,
        old_logprobs=drawn.old_logprobs.repeat(2, 1),
        ref_logprobs=drawn.ref_logprobs.repeat(2, 1),
        scores={"reward": drawn.scores["reward"].repeat(2)},
        truncated=drawn.truncated.repeat(2),
        groups=drawn.groups * 2,
    )
    once, again = measure(drawn, "reward"), measure(twice, "reward")
    # The error of the mean shrinks with the sample, and quantiles of few lie between other values.
    of_sample = {"kl_se", "score/q05", "score/q95", "score/q50", "length_p95"}
    kept = once.keys() - of_sample
    assert {name: again[name] for name in kept} == pytest.approx({name: once[name] for name in kept}, abs=1e-9)
    assert again["kl_se"] < once["kl_se"]


def test_token_numbers_are_those_of_a_double_loop(drawn):
    numbers = measure(drawn, "reward")
    nll, k1, k3, answers = [], [], [], []
    for i, row in enumerate(drawn.rows):
        for t in range(len(row.response_ids)):
            p, q = float(drawn.old_logprobs[i, t]), float(drawn.ref_logprobs[i, t])
            nll.append(-p)
            k1.append(p - q)
            k3.append(math.exp(q - p) - 1 - (q - p))
        answers.append(sum(k1[-len(row.response_ids) :]))
    prompts = [statistics.mean(answers[i : i + 3]) for i in range(0, 12, 3)]
    assert numbers["nll"] == pytest.approx(statistics.mean(nll), abs=1e-9)
    assert numbers["kl"] == pytest.approx(statistics.mean(answers), abs=1e-9)
    assert numbers["kl_se"] == pytest.approx(statistics.stdev(prompts) / 2, abs=1e-9)
    assert numbers["kl_token"] == pytest.approx(statistics.mean(k1), abs=1e-9)
    assert numbers["kl_token_k3"] == pytest.approx(statistics.mean(k3), abs=1e-9)


def test_the_distribution_of_the_score():
    answers = [[1]] * 4
    numbers = measure(experience(answers, [[-1.0]] * 4, scores=[0.0, 0.0, 0.0, 4.0]), "reward")
    # Mean 1, deviations -1 -1 -1 3: variance 3, third moment (-3 + 27) / 4 = 6.
    assert numbers["score/sd"] == pytest.approx(math.sqrt(3), abs=1e-9)
    assert numbers["score/skew"] == pytest.approx(6 / 3**1.5, abs=1e-9)
    assert [numbers[f"score/q{q}"] for q in ("05", "50", "95")] == pytest.approx([0.0, 0.0, 3.4], abs=1e-9)
    flat = measure(experience(answers, [[-1.0]] * 4, scores=[2.0] * 4), "reward")
    assert (flat["score/sd"], flat["score/skew"]) == (0.0, 0.0)


def test_lengths_and_truncation_are_of_responses():
    found = experience([[1] * n for n in (1, 2, 3, 10)], [[-1.0] * n for n in (1, 2, 3, 10)])
    numbers = measure(replace(found, truncated=torch.tensor([True, False, False, False])), "reward")
    assert (numbers["length"], numbers["length_max"], numbers["truncated"]) == (4.0, 10.0, 0.25)
    assert numbers["length_p95"] == pytest.approx(3 + 0.85 * 7, abs=1e-9)


def test_repetition_is_measured_within_each_answer():
    answers = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2], [7]]
    numbers = measure(experience(answers, [[-1.0] * len(ids) for ids in answers]), "reward")
    assert numbers["distinct2"] == pytest.approx((1 + 0.25 + 1) / 3), (
        "one answer's bigrams in another are no repetition; one token says nothing"
    )
    assert numbers["repeat_run"] == pytest.approx((1 + 5 + 1 + 1) / 4)
    assert "distinct2" not in measure(experience([[7]], [[-1.0]]), "reward")


@pytest.mark.parametrize(
    "ids, distinct, run",
    [([1, 2], 1.0, 1), ([1, 1], 1.0, 2), ([1, 1, 1], 0.5, 3), ([1, 2, 1, 2, 1], 0.5, 1), ([3, 1, 1, 3, 3, 3], 0.8, 3)],
)
def test_bigrams_and_runs_by_hand(ids, distinct, run):
    assert distinct_bigrams(ids) == distinct
    assert longest_run(ids) == run


def test_a_policy_that_is_the_reference_is_no_distance_away():
    numbers = measure(experience([[1, 2], [3, 4]], [[-1.0, -2.0], [-0.5, -3.0]]), "reward")
    assert {numbers[name] for name in ("kl", "kl_se", "kl_token", "kl_token_k3")} == {0.0}


def test_one_prompt_has_no_standard_error():
    found = experience([[1], [2]], [[-1.0], [-2.0]], [[-2.0], [-2.0]], per_prompt=2)
    numbers = measure(found, "reward")
    assert numbers["kl"] == 0.5
    assert "kl_se" not in numbers


def test_every_source_has_its_own_numbers(drawn):
    numbers = measure(drawn, "reward")
    for name in "abc":
        chosen = [i for i, group in enumerate(drawn.groups) if group == name]
        alone = replace(
            drawn,
            rows=[drawn.rows[i] for i in chosen],
            old_logprobs=drawn.old_logprobs[chosen][:, : max(len(drawn.rows[i].response_ids) for i in chosen)],
            ref_logprobs=drawn.ref_logprobs[chosen][:, : max(len(drawn.rows[i].response_ids) for i in chosen)],
            scores={"reward": drawn.scores["reward"][chosen]},
            truncated=drawn.truncated[chosen],
            groups=(),
            per_prompt=1,
        )
        expected = measure(alone, "reward")
        for key in ("length", "truncated", "nll", "kl_token_k3"):
            assert numbers[f"source/{name}/{key}"] == pytest.approx(expected[key], abs=1e-9)
        assert numbers[f"source/{name}/score"] == pytest.approx(float(drawn.scores["reward"][chosen].mean()), abs=1e-9)
        assert not [key for key in expected if key.startswith("source/")]


def test_an_unknown_reward_is_refused(drawn):
    with pytest.raises(UserError, match="the scorer gives no score 'truth'; it gives reward"):
        measure(drawn, "truth")

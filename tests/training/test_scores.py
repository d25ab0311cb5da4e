"""What the policy is paid: against one-shot NumPy, under shifts, scales and cuts, and where there is no spread."""

import json

import numpy as np
import pytest
import torch

from holdfast.config import load
from holdfast.errors import RunError, UserError
from holdfast.training.scores import ScoreSettings, ScoreTransform


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def paid(settings, *batches, truncated=(), sources=()):
    """What the last batch is paid after all were observed, with the transform."""
    transform = ScoreTransform(settings)
    for batch in batches:
        cut = torch.zeros(len(batch), dtype=torch.bool)
        cut[list(truncated)] = True
        transform.observe(batch, cut, sources)
    return transform(batches[-1], sources), transform


def random_scores(seed, size, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(-3, 5, size)).to(dtype)


FIRST, SECOND = t(1, 2, 3, 4), t(10, -2)
NORM, SCALE, NONE = (ScoreSettings(transform=name) for name in ("norm", "scale", "none"))
NEVER = torch.zeros(3, dtype=torch.bool)


@pytest.mark.parametrize(
    "settings, batches, expected",
    [
        (NORM, [FIRST], [-1.161895, -0.387298, 0.387298, 1.161895]),
        (ScoreSettings(transform="norm", clip=0.8), [FIRST], [-0.8, -0.387298, 0.387298, 0.8]),
        (SCALE, [FIRST], [0.774597, 1.549193, 2.323790, 3.098387]),
        (ScoreSettings(transform="scale", clip=2), [FIRST], [0.774597, 1.549193, 2, 2]),
        (NORM, [FIRST, SECOND], [1.75, -1.25]),
        (SCALE, [FIRST, SECOND], [2.5, -0.5]),
        (NONE, [FIRST, SECOND], [10, -2]),
        (ScoreSettings(clip=3), [FIRST, SECOND], [3, -2]),
        (ScoreSettings(transform="norm", stats="fixed", mean=2, sd=4), [FIRST, SECOND], [2, -1]),
        (ScoreSettings(transform="scale", stats="fixed", mean=2, sd=4), [FIRST, SECOND], [2.5, -0.5]),
    ],
)
def test_by_hand(settings, batches, expected):
    assert paid(settings, *batches)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cuts", [[], [1, 2], [40], list(range(1, 60))])
def test_the_cut_into_iterations_does_not_matter(cuts):
    scores = random_scores(0, 60)
    transform = ScoreTransform(NORM)
    for batch in np.split(scores.numpy(), cuts):
        transform.observe(torch.from_numpy(batch), torch.zeros(len(batch), dtype=torch.bool))
    whole = (scores.numpy() - np.mean(scores.numpy())) / np.std(scores.numpy(), ddof=1)
    assert transform(scores).tolist() == pytest.approx(whole.tolist(), abs=1e-12)
    assert transform.numbers()["score_running_mean"] == pytest.approx(np.mean(scores.numpy()))
    assert transform.numbers()["score_running_sd"] == pytest.approx(np.std(scores.numpy(), ddof=1))


@pytest.mark.parametrize("stats", ["cumulative", "ema"])
def test_norm_forgets_shift_and_scale_and_scale_only_the_scale(stats):
    batches = [random_scores(seed, 9) for seed in range(3)]
    for transform, shift in (("norm", 7.0), ("scale", 0.0)):
        settings = ScoreSettings(transform=transform, stats=stats, keep=0.6, clip=1.1)
        moved = [4.0 * batch + shift for batch in batches]
        assert paid(settings, *moved)[0].tolist() == pytest.approx(paid(settings, *batches)[0].tolist(), abs=1e-12)
    assert paid(SCALE, *[batch + 7 for batch in batches])[0].tolist() != pytest.approx(
        paid(SCALE, *batches)[0].tolist()
    )


@pytest.mark.parametrize("transform", ["none", "scale", "norm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nothing_exceeds_the_clip(transform, dtype):
    result, made = paid(ScoreSettings(transform=transform, clip=0.75), random_scores(1, 50, dtype))
    assert float(result.abs().max()) == 0.75
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    share = sum(abs(value) == 0.75 for value in result.tolist()) / 50
    assert 0 < share < 1
    assert made.numbers()["score_clipped"] == pytest.approx(share)


def test_the_given_scores_stay_as_they_are():
    scores = FIRST.clone()
    paid(NORM, scores)
    assert torch.equal(scores, FIRST)


def test_recent_moments_follow_and_cumulative_ones_remember():
    batches = [random_scores(seed, 40) + 100 * (seed > 1) for seed in range(12)]
    recent, old = paid(ScoreSettings(transform="norm", stats="ema", keep=0.2), *batches)[0], paid(NORM, *batches)[0]
    last = (batches[-1] - batches[-1].mean()) / batches[-1].std()
    # keep^10 of the first level's weight is left, and a fifth of each newer batch's.
    assert float((recent - last).abs().max()) < 0.6
    # The level rose for good, but beside the old one the new still looks high.
    assert 0.2 < float(old.mean()) < 1
    assert abs(float(recent.mean())) < 0.2


def test_ema_by_hand():
    result, transform = paid(ScoreSettings(transform="norm", stats="ema", keep=0.5), t(0, 2), t(6))
    # Weights 1/2, 1/2, 1: mean (0 + 1 + 6) / 2, squares (0.5 * 3.5^2 + 0.5 * 1.5^2 + 2.5^2) / (2 - 1).
    assert transform.numbers()["score_running_mean"] == 3.5
    assert result.tolist() == pytest.approx([2.5 / 13.5**0.5])


def test_each_source_has_a_scale_of_its_own():
    scores, sources = t(1, 3, 100, 2, 300), ["a", "a", "b", "a", "b"]
    settings = ScoreSettings(transform="norm", per_source=True)
    result, transform = paid(settings, scores, sources=sources)
    assert result.tolist() == pytest.approx([-1, 1, -(0.5**0.5), 0, 0.5**0.5])
    numbers = transform.numbers()
    assert {name: numbers[f"score_running_mean/{name}"] for name in "ab"} == {"a": 2, "b": 200}
    assert {name: numbers[f"score_running_sd/{name}"] for name in "ab"} == pytest.approx({"a": 1, "b": 20000**0.5})
    assert "score_running_mean" not in numbers
    assert transform(t(5), ["never seen"]).tolist() == [0]


def test_sources_do_not_matter_unless_told_apart():
    sources = ["a", "", "b", "a"]
    assert torch.equal(paid(NORM, FIRST, sources=sources)[0], paid(NORM, FIRST)[0])


def test_truncated_answers_are_paid_but_not_counted():
    scores = t(1, -50, 3)
    result, transform = paid(ScoreSettings(transform="norm", clip=9), scores, truncated=[1])
    assert transform.numbers()["score_running_mean"] == 2
    assert result.tolist() == pytest.approx([-(0.5**0.5), -9, 0.5**0.5])
    assert transform.numbers()["score_clipped"] == pytest.approx(1 / 3)
    counted = paid(ScoreSettings(transform="norm", exclude_truncated=False), scores, truncated=[1])
    assert torch.equal(counted[0], paid(NORM, scores)[0])


@pytest.mark.parametrize(
    "batch, truncated",
    [(t(5), []), (t(0.1, 0.1, 0.1), []), (t(1, 2), [0, 1]), (t(1, 2, 3), [0, 1])],
    ids=["a batch of one", "no spread", "all truncated", "all but one"],
)
def test_without_a_spread_norm_pays_nothing_and_scale_the_score(batch, truncated):
    assert paid(NORM, batch, truncated=truncated)[0].tolist() == [0.0] * len(batch)
    assert torch.equal(paid(SCALE, batch, truncated=truncated)[0], batch)
    assert torch.equal(paid(NONE, batch, truncated=truncated)[0], batch)


def test_a_constant_score_of_many_iterations_is_no_noise():
    batches = [torch.full((size,), 0.1, dtype=torch.float64) for size in (3, 7, 1, 5)]
    assert paid(NORM, *batches)[0].tolist() == [0.0] * 5


def test_nothing_but_truncated_answers_leaves_the_moments():
    transform = ScoreTransform(ScoreSettings(transform="norm", stats="ema", keep=0.5))
    transform.observe(t(1, 2), torch.tensor([True, True]))
    assert transform.numbers() == {"score_clipped": 0.0}
    transform.observe(t(1, 3), torch.tensor([False, False]))
    before = transform.numbers()
    transform.observe(t(9, 9, 9), torch.tensor([True, True, True]))
    assert transform.numbers() == before


def test_no_answers_at_all():
    transform = ScoreTransform(ScoreSettings(transform="norm", clip=1, per_source=True))
    transform.observe(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert transform(torch.zeros(0)).tolist() == []
    assert transform.numbers() == {"score_clipped": 0.0}


def test_the_state_is_everything():
    settings = ScoreSettings(transform="norm", stats="ema", keep=0.7, per_source=True, clip=0.9)
    one, other = ScoreTransform(settings), ScoreTransform(settings)
    sources = ["a", "b", "a", "b", "b"]
    cut = torch.tensor([False, False, False, False, True])
    for seed in range(6):
        scores = random_scores(seed, 5, torch.float32)
        if seed == 3:
            other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for transform in (one, other) if seed >= 3 else (one,):
            transform.observe(scores, cut, sources)
        if seed >= 3:
            assert torch.equal(one(scores, sources), other(scores, sources))
            assert one.numbers() == other.numbers()
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["stats=fixed"], "stats=fixed needs mean and sd of the raw score, given: neither"),
        (["stats=fixed", "mean=0"], "stats=fixed needs mean and sd of the raw score, given: mean"),
        (["mean=0", "sd=1"], "mean and sd given while stats=cumulative finds its own; set stats=fixed"),
        (["stats=ema", "sd=1"], "sd given while stats=ema finds its own"),
        (["stats=fixed", "mean=0", "sd=1", "per_source=true"], "set per_source=false or another stats"),
        (["stats=fixed", "mean=0", "sd=0"], "sd: .*greater than 0"),
        (["clip=0"], "clip: .*greater than 0"),
        (["keep=0"], "keep: .*greater than 0"),
    ],
)
def test_settings_that_contradict_each_other(overrides, words):
    with pytest.raises(UserError, match=words):
        load(ScoreSettings, overrides=overrides)


@pytest.mark.parametrize("sources, unnamed", [((), 3), (["a", "", "a"], 1)])
def test_sources_that_nobody_named(sources, unnamed):
    transform = ScoreTransform(ScoreSettings(per_source=True))
    words = f"{unnamed} of 3 answers belong to prompts without one; .* or set score.per_source=false"
    for call in (lambda: transform.observe(t(1, 2, 3), NEVER, sources), lambda: transform(t(1, 2, 3), sources)):
        with pytest.raises(UserError, match=words):
            call()
    with pytest.raises(ValueError, match="2 sources for 3 scores"):
        transform(t(1, 2, 3), ["a", "b"])


def test_scores_that_are_no_numbers():
    broken, transform = t(1, float("nan"), float("-inf")), ScoreTransform(NORM)
    for call in (lambda: transform.observe(broken, NEVER), lambda: transform(broken)):
        with pytest.raises(RunError, match="2 of 3 scores are not finite numbers"):
            call()
    assert transform.state_dict() == {}


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"scores \(2,\), truncated \(3,\)"):
        ScoreTransform(NORM).observe(t(1, 2), NEVER)

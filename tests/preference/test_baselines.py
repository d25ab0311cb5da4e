"""What a mixture is compared with: each baseline learns what it can, and nothing else."""

import math

import pytest
import torch

from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.preference.baselines import (
    BaselineSettings,
    BaselineTask,
    ConditionedScore,
    LinearScores,
    by_group,
    conditioned,
    delta_of,
    ensemble,
    per_group,
    single,
)
from holdfast.preference.features import PairFeatures

FIT = FitSettings(
    epochs=150,
    batch_size=10_000,
    optimiser=OptimiserSettings(learning_rate=0.05, schedule="constant", warmup_ratio=0.0),
)
SETTINGS = BaselineSettings(l2=0.0, fit=FIT)


def world(n=1000, seed=0):
    """Pairs labelled by 2 * u * first feature: which answer is better depends on the sign of the prompt's feature u."""
    generator = torch.Generator().manual_seed(seed)
    difference, prompt = torch.randn(n, 2, generator=generator), torch.randn(n, 1, generator=generator).sign()
    sign = torch.where(torch.rand(n, generator=generator) < (2 * prompt * difference)[:, 0].sigmoid(), 1.0, -1.0)
    return PairFeatures(difference * sign[:, None], prompt), [f"{u:+.0f}" for u in prompt[:, 0].tolist()]


def test_loss_by_hand_counts_pairs_and_sums_members():
    scores = LinearScores(2, members=2)
    with torch.no_grad():
        scores.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
    features = PairFeatures(torch.tensor([[1.0, 1.0], [0.0, 0.5]]), torch.zeros(2, 1))
    task = BaselineTask(scores, features, BaselineSettings(l2=0.5))
    batch = task.collate(features.rows())
    found = task.loss(batch)
    expected = sum(math.log(1 + math.exp(-margin)) for margin in (1.0, -2.0, 0.0, -1.0))
    assert found["rank"].total.item() == pytest.approx(expected, abs=1e-6)
    assert found["l2"].total.item() == 5
    assert {name: float(one.count) for name, one in found.items()} == task.counts(batch) == {"rank": 2, "l2": 1}
    assert task.weights == {"l2": 0.5}
    assert task.metrics(batch)["accuracy"].mean.item() == pytest.approx((1 + 0 + 0.5 + 0) / 4)


def test_bilinear_score_by_hand():
    score = ConditionedScore(2, 1)
    with torch.no_grad():
        score.weight.copy_(torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
    # (w + A u) . phi with w = (1, 2), A = (10, 20): 1 * 3 + 2 * 4 + u (10 * 3 + 20 * 4).
    found = score(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5]]))
    assert found.tolist() == [[11 + 55.0]]


def test_a_score_that_reads_the_prompt_knows_more_than_one_that_does_not():
    (train, _), (test, _) = world(), world(seed=1)
    one, both = (float((delta_of(f(train, SETTINGS), test)[:, 0] > 0).float().mean()) for f in (single, conditioned))
    assert abs(one - 0.5) < 0.06
    assert both > 0.7


def test_groups_learn_apart_and_are_judged_by_their_own_score():
    (train, groups), (test, asked) = world(), world(seed=1)
    full = per_group(train, groups, SETTINGS)
    assert full["+1"].weight[0, 0] > 1.5
    assert full["-1"].weight[0, 0] < -1.5
    margins = by_group(full, test, asked)
    expected = [float(delta_of(full[g], test.take([i]))) for i, g in enumerate(asked)]
    torch.testing.assert_close(margins, torch.tensor(expected))
    few = per_group(train, groups, SETTINGS, budget=10)
    assert not torch.allclose(few["+1"].weight, full["+1"].weight, atol=1e-2)
    again = per_group(train, groups, SETTINGS, budget=10)
    assert torch.equal(few["-1"].weight, again["-1"].weight)
    with pytest.raises(UserError, match="fewer than the budget of 800"):
        per_group(train, groups, SETTINGS, budget=800)


def test_members_of_an_ensemble_differ_by_what_nobody_taught_them():
    train, _ = world(200)
    flat = PairFeatures(torch.cat([train.difference, torch.zeros(200, 1)], dim=1), train.router)
    crowd = ensemble(flat, 4, SETTINGS)
    whole = (crowd.weight + crowd.prior).detach()
    # Where the data speak, the members agree; on the feature that never varies, the prior is all there is.
    assert whole[:, :2].std(0).max() < 0.05
    assert torch.equal(whole[:, 2], crowd.prior[:, 2])
    assert whole[:, 2].std() > 0.1
    assert not crowd.prior.requires_grad

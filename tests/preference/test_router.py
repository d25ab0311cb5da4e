"""Stage two: what the router is told, that heads stay, and that a kill changes nothing."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.errors import RunError, UserError
from holdfast.models.router import Router
from holdfast.preference.features import PairFeatures
from holdfast.preference.mixture import MixtureHeads
from holdfast.preference.router import RouterSettings, RouterTask, fit_router

FIT = FitSettings(
    epochs=3, batch_size=4, optimiser=OptimiserSettings(learning_rate=0.05, schedule="constant", warmup_ratio=0.0)
)


def opposite(n=10):
    """Two opposite heads, and pairs whose context (+1 or -1) says which one is right."""
    heads = MixtureHeads(torch.tensor([[1.5, 0.0], [-1.5, 0.0]]), Router("static", 2, 2))
    context = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    difference = torch.stack([1.5 * context, torch.ones(n)], dim=1)
    session = (torch.arange(n) % 2).long()
    return heads, PairFeatures(difference, context[:, None], session), torch.full((n, 2), 0.5).log()


def test_a_router_learns_to_read_contexts_and_heads_stay_as_they_are():
    heads, features, prior = opposite()
    before = copy.deepcopy(heads.state_dict())
    settings = RouterSettings(router="linear", fit=FIT.model_copy(update={"epochs": 60}))
    found = fit_router(heads, features, prior, settings)
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())
    assert torch.equal(found.heads.weight, heads.weight)
    weights = found.heads.log_weights(features.router[:2]).exp()
    # The labels say sigmoid(4.5) for the right head: margins of +-2.25 against each other at tau = 1.
    target = torch.sigmoid(torch.tensor(2.25))
    torch.testing.assert_close(weights[0], torch.stack([target, 1 - target]), atol=1e-2, rtol=0)
    assert found.nll is None
    assert found.epoch == 60


@pytest.mark.parametrize(
    "accumulate, tau, logit", [("pair", 1.0, 2.25), ("pair", 0.5, 4.5), ("context", 1.0, 11.25), ("pair", 1e-3, 2250.0)]
)
def test_targets_by_hand(accumulate, tau, logit):
    heads, features, prior = opposite()
    task = RouterTask(
        heads, Router("linear", 1, 2), features, prior, RouterSettings(accumulate=accumulate, tau=tau, fit=FIT)
    )
    task.begin(1, 9)
    # Five pairs of a context bring five times the evidence of one.
    expected = torch.tensor([logit, -logit]).sigmoid()
    torch.testing.assert_close(task.model.target[0], expected)
    torch.testing.assert_close(task.model.target[1], expected.flip(0))


def test_an_anchored_target_corrects_stage_one_and_a_current_one_the_router_itself():
    heads, features, _ = opposite()
    prior = torch.tensor([0.8, 0.2]).log().expand(10, 2)
    router = Router("linear", 1, 2)
    with torch.no_grad():
        router.last.bias.copy_(torch.tensor([0.0, 1.0]))
    for kind, start in (("anchored", [0.8, 0.2]), ("current", [1 / (1 + torch.e), torch.e / (1 + torch.e)])):
        task = RouterTask(heads, router, features, prior, RouterSettings(prior=kind, fit=FIT))
        task.begin(1, 9)
        likely = torch.tensor([2.25, -2.25]).sigmoid() * torch.tensor(start)
        torch.testing.assert_close(task.model.target[0], likely / likely.sum())


def test_targets_hold_for_an_epoch(tmp_path):
    heads, features, prior = opposite()
    task = RouterTask(heads, Router("linear", 1, 2), features, prior, RouterSettings(prior="current", fit=FIT))
    seen, original = [], task.begin

    def begin(step, total):
        original(step, total)
        seen.append(task.model.target.clone())

    task.begin = begin
    fit(task, features.rows("pair"), [], FIT, RunFolder(tmp_path), stage="router")
    # Ten pairs in batches of four are three steps an epoch.
    changes = [not torch.equal(one, two) for one, two in itertools.pairwise(seen)]
    assert changes == [False, False, True, False, False, True, False, False]


def test_the_router_that_predicts_held_out_labels_best_is_kept():
    heads, features, prior = opposite()
    wrong = PairFeatures(-features.difference, features.router)
    settings = RouterSettings(router="linear", fit=FIT)
    kept = fit_router(heads, features, prior, settings, held_out=wrong)
    # Whatever is learned from labels that are all wrong there makes it worse, so nothing is.
    assert kept.epoch == 0
    assert kept.heads.log_weights(features.router).exp().tolist() == [[0.5, 0.5]] * 10
    assert kept.nll == pytest.approx(0.693147, abs=1e-5)
    good = fit_router(heads, features, prior, settings, held_out=features)
    assert good.epoch == 3
    assert good.nll < 0.6


def test_a_killed_stage_goes_on_as_if_nothing_had_happened(tmp_path):
    heads, features, prior = opposite()
    settings = RouterSettings(prior="current", fit=FIT.model_copy(update={"checkpoint_every": 1}))

    def task():
        return RouterTask(heads, Router("mlp", 1, 2, hidden=4), features, prior, settings, held_out=features)

    whole = task()
    fit(whole, features.rows("pair"), [], settings.fit, RunFolder(tmp_path / "whole"), stage="router")
    for stop in (2, 4):
        cut = task()
        begin = cut.begin

        def killed(step, total, begin=begin, stop=stop):
            if step == stop + 1:
                raise RunError("killed")
            begin(step, total)

        cut.begin = killed
        with pytest.raises(RunError, match="killed"):
            fit(cut, features.rows("pair"), [], settings.fit, RunFolder(tmp_path / str(stop)), stage="router")
        again = task()
        fit(again, features.rows("pair"), [], settings.fit, RunFolder(tmp_path / str(stop)), stage="router")
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name]), name


def test_a_finished_stage_gives_the_router_it_kept_again(tmp_path):
    heads, features, prior = opposite()
    settings, u = RouterSettings(prior="current", fit=FIT), features.router
    # Two contrary labels punish certainty, so a router of the middle is kept and not the last one.
    contrary = replace(features, difference=-features.difference).take([0, 1])
    first, again = (
        fit_router(heads, features, prior, settings, RunFolder(tmp_path / "run"), held_out=features.joined(contrary))
        for _ in range(2)
    )
    assert 0 < first.epoch == again.epoch < FIT.epochs
    assert first.nll == again.nll
    assert torch.equal(first.heads.log_weights(u), again.heads.log_weights(u))


def test_stage_one_is_continued_where_it_reads_the_same_features():
    _, features, prior = opposite()
    heads = MixtureHeads(torch.tensor([[1.5, 0.0], [-1.5, 0.0]]), Router("linear", 1, 2))
    torch.nn.init.constant_(heads.router.last.bias, 0.0)
    with torch.no_grad():
        heads.router.last.weight.copy_(torch.tensor([[4.0], [-4.0]]))
    rate = OptimiserSettings(learning_rate=1e-12)
    still = RouterSettings(fit=FitSettings(epochs=1, batch_size=10, optimiser=rate))
    found = fit_router(heads, features, prior, still).heads
    torch.testing.assert_close(found.log_weights(features.router), heads.log_weights(features.router))
    # Another width begins from the average of stage one.
    wider = PairFeatures(features.difference, torch.randn(10, 3))
    uneven = torch.tensor([0.9, 0.1]).log().expand(10, 2)
    started = fit_router(heads, wider, uneven, still).heads
    torch.testing.assert_close(started.log_weights(wider.router).exp(), uneven.exp(), atol=1e-5, rtol=0)


def test_what_is_missing_is_named():
    heads, features, prior = opposite()
    alone = PairFeatures(features.difference, features.router)
    with pytest.raises(UserError, match="needs the context of each pair"):
        fit_router(heads, alone, prior, RouterSettings(accumulate="context"))
    with pytest.raises(ValueError, match=r"log_prior needs \(10, 2\) entries, got \(3, 2\)"):
        fit_router(heads, features, prior[:3])

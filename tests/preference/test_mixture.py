"""Heads and router on cached features and on tokens: one loss, right terms, starts that are kept by their loss."""

import copy
import math

import pytest
import torch

from holdfast import config
from holdfast.data.template import Encoded
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings
from holdfast.models.mixture import mixture_from, with_backbone_adapter
from holdfast.models.router import Router
from holdfast.models.tiny import tiny_policy
from holdfast.preference.baselines import BaselineSettings, by_group, delta_of, per_group, single
from holdfast.preference.features import PairFeatures, answer_features, pair_features
from holdfast.preference.mixture import (
    LiveMixtureTask,
    MixtureHeads,
    MixtureSettings,
    MixtureTask,
    TokenSession,
    train_heads,
)
from holdfast.preference.pairs import PairRow, collate_pairs

FULL = FitSettings(
    epochs=120,
    batch_size=10_000,
    optimiser=OptimiserSettings(learning_rate=0.05, warmup_ratio=0.0, schedule="constant"),
)


def heads_with(weight, logits):
    """Heads with the given weights (K, h) and the same logits for everybody."""
    router = Router("static", 1, len(weight))
    with torch.no_grad():
        router.logits.copy_(torch.tensor(logits))
    return MixtureHeads(torch.tensor(weight), router)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
def test_loss_terms_by_hand():
    heads = heads_with([[1.0, 0.0], [0.0, 1.0]], [math.log(3.0), 0.0])
    features = PairFeatures(torch.tensor([[1.5, -0.5], [0.3, 2.0]]), torch.zeros(2, 1))
    task = MixtureTask(heads, features, MixtureSettings(alpha=0.5, balance=0.25, l2=0.125))
    batch = task.collate(features.rows())
    found = task.loss(batch)
    nll = [-math.log(0.75 * sigmoid(a) + 0.25 * sigmoid(b)) for a, b in ((1.5, -0.5), (0.3, 2.0))]
    entropy = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert float(found["nll"].total) == pytest.approx(sum(nll), abs=1e-6)
    assert float(found["entropy"].total) == pytest.approx(2 * entropy, abs=1e-6)
    assert float(found["balance"].total) == pytest.approx(2 * (entropy + math.log(2)), abs=1e-6)
    assert float(found["l2"].total) == 2
    assert {name: float(one.count) for name, one in found.items()} == task.counts(batch)
    assert task.counts(batch) == {"nll": 2, "entropy": 2, "balance": 2, "l2": 1}
    assert task.weights == {"entropy": 0.5, "balance": 0.25, "l2": 0.125}
    measured = task.metrics(batch)
    assert float(measured["spread"].mean) == pytest.approx(-entropy / math.log(2), abs=1e-6)
    assert float(measured["accuracy"].mean) == 1


@torch.no_grad()
def test_pairs_of_a_session_share_a_head():
    heads = heads_with([[1.0], [-1.0]], [0.0, 0.0])
    features = PairFeatures(torch.tensor([[2.0], [2.0], [-2.0]]), torch.zeros(3, 1), torch.tensor([0, 0, 0]))
    task = MixtureTask(heads, features, MixtureSettings())
    batch = task.collate(features.rows())
    # One user, margins (2, 2, -2): 2.947003 together against 3 ln 2 = 2.079442 by themselves.
    assert float(task.loss(batch)["nll"].total) == pytest.approx(2.947003, abs=1e-5)
    assert task.counts(batch) == {"nll": 3, "entropy": 1, "balance": 1, "l2": 1}
    alone = task.collate(features.rows("pair"))
    assert float(task.loss(alone)["nll"].total) == pytest.approx(2.079442, abs=1e-5)


@torch.no_grad()
def test_sessions_of_one_pair_are_pairs():
    generator = torch.Generator().manual_seed(1)
    difference, router = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
    heads = MixtureHeads(torch.randn(4, 3, generator=generator), Router("linear", 2, 4))
    torch.nn.init.normal_(heads.router.last.weight)
    single = PairFeatures(difference, router)
    users = PairFeatures(difference, torch.zeros(6, 2), torch.arange(6), context=router)
    one, two = (MixtureTask(heads, each, MixtureSettings()) for each in (single, users))
    first, second = one.loss(one.collate(single.rows())), two.loss(two.collate(users.rows()))
    for name in first:
        assert float(first[name].total) == pytest.approx(float(second[name].total), abs=1e-5)  # sums in float32


def test_permuting_heads_and_adding_to_both_answers_changes_nothing():
    heads = MixtureHeads(torch.randn(3, 4), Router("linear", 2, 3))
    torch.nn.init.normal_(heads.router.last.weight)
    turned = copy.deepcopy(heads)
    order = [2, 0, 1]
    with torch.no_grad():
        turned.weight.copy_(heads.weight[order])
        turned.router.last.weight.copy_(heads.router.last.weight[order])
    features = PairFeatures(torch.randn(7, 4), torch.randn(7, 2))
    torch.testing.assert_close(heads.probability(features), turned.probability(features))
    # The other answer preferred has the rest of the probability.
    other = PairFeatures(-features.difference, features.router)
    torch.testing.assert_close(heads.probability(features) + heads.probability(other), torch.ones(7))


def test_a_masked_head_has_no_say():
    heads = heads_with([[1.0], [-5.0]], [0.0, 9.0])
    silent = MixtureHeads(heads.weight, heads.router, torch.tensor([False, True]))
    features = PairFeatures(torch.tensor([[2.0]]), torch.zeros(1, 1))
    assert float(silent.probability(features)) == pytest.approx(sigmoid(2.0), abs=1e-6)
    assert float(silent.log_weights(features.router)[0, 1]) == -math.inf


def mirrored(seed, users, each):
    """Users of two types with opposite tastes."""
    generator = torch.Generator().manual_seed(seed)
    session = torch.arange(users).repeat_interleave(each)
    taste = torch.where(session % 2 == 0, 1.0, -1.0)
    difference = torch.randn(len(session), 4, generator=generator)
    margin = 3 * taste * difference[:, 0]
    sign = torch.where(torch.rand(len(session), generator=generator) < margin.sigmoid(), 1.0, -1.0)
    return PairFeatures(difference * sign[:, None], torch.randn(len(session), 2, generator=generator), session)


def test_sessions_find_opposite_types_and_single_pairs_do_not():
    features = mirrored(0, 60, 10)
    settings = MixtureSettings(heads=2, alpha=0.0, l2=0.0, fit=FULL)
    found = train_heads(features, settings).heads
    assert found.router.kind == "static", "without a context nothing may tell users apart"
    # One head along the taste, the other against it; both nearly of its length.
    along = found.weight[:, 0] / found.weight.norm(dim=1)
    assert sorted(along.sign().tolist()) == [-1, 1]
    assert along.abs().min() > 0.95
    assert found.weight[:, 0].abs().min() > 2
    blind = train_heads(features, settings.model_copy(update={"session": "pair", "router": "static"})).heads
    # Each label by itself is a coin flip whatever the features, so only noise is left to fit.
    assert (blind.weight[:, 0] / blind.weight.norm(dim=1)).abs().max() < 0.8


def test_a_context_tells_sessions_apart():
    features = mirrored(1, 40, 6)
    context = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)[:, None].expand(-1, 3)
    told = PairFeatures(features.difference, features.router, features.session, context=context)
    fitted = train_heads(told, MixtureSettings(heads=2, router="linear", alpha=0.0, l2=0.0, fit=FULL))
    assert (fitted.heads.router.kind, fitted.heads.router.features) == ("linear", 3)
    weights = fitted.heads.log_weights(context[:2]).exp()
    assert weights.max(-1).values.min() > 0.9
    assert weights[0].argmax() != weights[1].argmax()


def test_the_restart_with_the_lowest_loss_is_kept(tmp_path):
    features = mirrored(2, 30, 5)
    settings = MixtureSettings(heads=3, alpha=0.0, restarts=3, fit=FULL.model_copy(update={"epochs": 4}))
    run = RunFolder(tmp_path)
    found = train_heads(features, settings, run)
    assert len(set(found.nll)) == 3
    kept = evaluate(MixtureTask(found.heads, features, settings), features.rows())["nll"]
    assert kept == pytest.approx(min(found.nll), abs=1e-7)
    assert {"heads-0", "heads-1", "heads-2"} == {path.name for path in (tmp_path / "checkpoints").iterdir()}
    again = train_heads(features, settings)
    assert again.nll == found.nll
    assert torch.equal(again.heads.weight, found.heads.weight)


def test_held_out_pairs_are_looked_at_and_not_learned_from(tmp_path):
    features, other = mirrored(3, 20, 4), mirrored(4, 10, 4)
    settings = MixtureSettings(heads=2, fit=FULL.model_copy(update={"epochs": 3}))
    alone = train_heads(features, settings)
    watched = train_heads(features, settings, RunFolder(tmp_path), held_out=other)
    assert torch.equal(alone.heads.weight, watched.heads.weight)
    last = config.parse_yaml((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    expected = evaluate(MixtureTask(watched.heads, other, settings), other.rows())
    assert last["eval/nll"] == pytest.approx(expected["nll"], abs=1e-6)


def test_one_head_is_no_mixture():
    with pytest.raises(UserError, match="reward model"):
        config.load(MixtureSettings, overrides=["heads=1"])
    with pytest.raises(ValueError, match="2 heads need a router for as many, got one for 3"):
        MixtureHeads(torch.zeros(2, 4), Router("static", 1, 3))


def encoded(prompt, answer):
    ids, answered = [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)
    return Encoded(ids, answered, answered, len(ids) - 1, len(prompt))


@pytest.fixture(scope="module")
def model():
    model = mixture_from(tiny_policy(30, hidden=16, heads=2, layers=1), ("a", "b", "c"), router="linear", init_std=0.3)
    torch.nn.init.normal_(model.router.last.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def token_pairs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def some(length):
        return torch.randint(1, 30, (length,), generator=generator).tolist()

    prompts = [some(1 + i % 3) for i in range(n)]
    return [PairRow(str(i), encoded(p, some(2 + i % 2)), encoded(p, some(3))) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("kind", ["pairs", "users", "users with contexts"])
def test_tokens_and_cached_features_have_the_same_loss(model, kind):
    rows, settings = token_pairs(6), MixtureSettings(heads=3, alpha=0.3, balance=0.2, l2=0.1)
    users = ["x", "y", "x", "y", "y", "x"]
    features = pair_features(model, rows, 0, sessions=None if kind == "pairs" else users)
    contexts = [encoded([5, 6], []), encoded([7, 8, 9], [])] if kind == "users with contexts" else [None, None]
    if contexts[0] is not None:
        told = answer_features(model, contexts, 0)[1]
        features = PairFeatures(features.difference, features.router, features.session, context=told)
    sessions = [
        TokenSession(tuple(rows[i] for i in range(6) if users[i] == user), True, context)
        for user, context in zip("xy", contexts)
    ]
    live = LiveMixtureTask(model, 0, settings)
    batch = live.collate([TokenSession((row,)) for row in rows] if kind == "pairs" else sessions)
    cached = MixtureTask(MixtureHeads.of(model), features, settings)
    expected, found = cached.loss(cached.collate(features.rows())), live.loss(batch)
    counted = {name: float(one.count) for name, one in found.items()}
    assert counted == live.counts(batch) == {name: float(one.count) for name, one in expected.items()}
    assert live.weights == cached.weights
    for name in expected:
        # Batches padded to other widths add in another order.
        assert float(found[name].total) == pytest.approx(float(expected[name].total), abs=1e-4)
        assert name == "l2" or float(found[name].total) != 0


def test_a_live_backbone_learns_through_an_adapter(tmp_path):
    policy = tiny_policy(30, hidden=16, heads=2, layers=1)
    model = with_backbone_adapter(mixture_from(policy, ("a", "b")), AdapterSettings(rank=2))
    before = {name: value.clone() for name, value in model.named_parameters()}
    rows = [TokenSession((row,)) for row in token_pairs(8)]
    task = LiveMixtureTask(model, 0, MixtureSettings(heads=2))
    settings = FitSettings(epochs=2, batch_size=4, optimiser=OptimiserSettings(learning_rate=1e-2))
    fit(task, rows, rows, settings, RunFolder(tmp_path), stage="live")
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"score.weight"} < moved
    assert any("lora" in name for name in moved)
    assert all("lora" in name or name.startswith(("score", "router")) for name in moved)


def test_half_of_the_contexts_missing_is_an_error(model):
    rows = token_pairs(2)
    task = LiveMixtureTask(model, 0, MixtureSettings())
    with pytest.raises(UserError, match="1 of 2 sessions lack the context"):
        task.collate([TokenSession((rows[0],), True, encoded([5], [])), TokenSession((rows[1],), True)])


def test_heads_go_into_a_model_and_come_out_again(model):
    target = mixture_from(tiny_policy(30, hidden=16, heads=2, layers=1), ("a", "b", "c"), router="linear", seed=5)
    heads = MixtureHeads.of(model)
    heads.masked[1] = True
    heads.install(target)
    assert torch.equal(target.score.weight, model.score.weight)
    assert torch.equal(target.router.last.weight, model.router.last.weight)
    assert target.config.masked_heads == ["b"]
    assert torch.equal(MixtureHeads.of(target).masked, heads.masked)
    with torch.no_grad():
        heads.weight.zero_()
    assert target.score.weight.abs().sum() > 0, "a copy, not the same tensor"
    with pytest.raises(UserError, match="do not fit a mixture"):
        heads_with([[0.0] * 16] * 3, [0.0] * 3).install(target)


def counted_pairs(n, seed):
    """Rows, groups (n,) and true margins (n,) of pairs whose answers are eight random tokens each.

    Groups like or dislike three kinds of tokens; a topic token in the prompt makes one of three groups likely
    (80 / 10 / 10).
    """
    generator = torch.Generator().manual_seed(seed)
    taste = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
    topic = torch.randint(3, (n,), generator=generator)
    groups = torch.multinomial(0.1 + 0.7 * torch.eye(3)[topic], 1, generator=generator)[:, 0]
    answers = torch.randint(10, 40, (n, 2, 8), generator=generator)
    counts = torch.stack([((answers - 10) // 10 == kind).sum(-1) for kind in range(3)], dim=-1).float()
    margin = ((counts[:, 0] - counts[:, 1]) * taste[groups]).sum(-1)
    swap = torch.rand(n, generator=generator) > margin.sigmoid()
    answers[swap] = answers[swap].flip(1)
    prompts = torch.cat([topic[:, None] + 1, torch.randint(4, 10, (n, 3), generator=generator)], dim=1)
    rows = [
        PairRow(str(i), encoded(prompt, one), encoded(prompt, two))
        for i, (prompt, (one, two)) in enumerate(zip(prompts.tolist(), answers.tolist()))
    ]
    return rows, groups, torch.where(swap, -margin, margin)


@pytest.mark.slow
def test_heads_on_a_random_transformer_find_groups_that_one_score_cannot_serve():
    model = mixture_from(tiny_policy(40, hidden=128, heads=4, layers=2), ("a", "b", "c"), router="linear")
    fit = FULL.model_copy(update={"epochs": 150})
    rows, known, _ = counted_pairs(6000, 0)
    asked, groups, _ = counted_pairs(2000, 1)
    train, test = (pair_features(model, each, 0, batch_tokens=12_000) for each in (rows, asked))
    heads = train_heads(train, MixtureSettings(heads=3, router="linear", alpha=0.0, fit=fit)).heads
    settings = BaselineSettings(fit=fit)
    pooled = delta_of(single(train, settings), test)
    told = by_group(per_group(train, known.tolist(), settings), test, groups.tolist())

    def served(delta):
        """The average over groups of the accuracy of the head that serves each best."""
        right = (delta > 0).float()
        return float(torch.stack([right[groups == group].mean(0).max() for group in range(3)]).mean())

    best = served(heads.delta(test.difference))
    assert best - served(pooled) >= 0.15
    assert best >= served(told[:, None]) - 0.03, "scores that were told the groups see no more in these features"
    # What was learned on cached features is what the model then says of tokens.
    heads.install(model)
    batch = collate_pairs(asked[:50], 0).tokens
    with torch.no_grad():
        said = model.eval()(batch.input_ids, batch.attention_mask, prompt_lengths=batch.prompt_lengths)
    first, second = said.logits.chunk(2)
    # Features are numbers of size one, and the heads are several times longer.
    torch.testing.assert_close(first - second, heads.delta(test.difference[:50]).detach(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(said.weights[:50], heads.log_weights(test.router[:50]).exp().detach(), atol=1e-4, rtol=0)

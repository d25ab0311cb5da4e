"""Attributes: labels and their scales, the joint loss, numbers of evaluation, and ridge on frozen features."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation, Rated
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.adapters import AdapterSettings
from holdfast.models.heads import freeze_backbone, from_policy, with_score_adapter
from holdfast.models.scales import LabelScale, read_link, read_scales
from holdfast.models.tiny import tiny_policy
from holdfast.preference.attributes import (
    ALPHAS,
    PREFERENCE,
    AttributeSettings,
    AttributeTask,
    Moments,
    features,
    fit_heads,
    moments,
    rated_rows,
    ridge,
)
from holdfast.preference.pairs import PairRow

NAN = math.nan
WORDS = [f"w{i}" for i in range(12)]
NAMES = ("length", "doubt")
SCALES = {"length": LabelScale(low=0, high=8), "doubt": LabelScale(low=1, high=5, higher_is_better=False)}


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([" ".join(WORDS)], 64, "word"), max_length=32)


def score_model(template, names=NAMES, std=0.3, seed=0):
    return from_policy(
        tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1, seed=seed), names, init_std=std
    )


def record(name, answer, **labels):
    return Rated(id=name, conversation=Conversation.ask(f"w{len(name) % 3} w1").answer(answer), labels=labels)


def records(n=40, missing=0.3):
    """Answers of 1 to 8 words whose first label is their number of words, the second of two kinds of words."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        words = rng.choice(WORDS, size=1 + i % 8)
        labels = {"length": float(len(words)), "doubt": 1 + 4 * float(np.mean([word > "w5" for word in words]))}
        known = {name: value for name, value in labels.items() if rng.random() >= missing}
        prompt = " ".join(rng.choice(WORDS, size=3))
        rows.append(Rated(id=f"r{i}", conversation=Conversation.ask(prompt).answer(" ".join(words)), labels=known))
    return rows


def made(template, **settings):
    rows = rated_rows(records(), NAMES, SCALES, template)
    model = score_model(template)
    return AttributeTask(model, template.pad_id, SCALES, moments(rows), AttributeSettings(**settings)), rows


def test_labels_come_onto_their_scale_and_missing_ones_are_nan(template):
    given = [
        record("a", "w1 w2", length=2, doubt=5, other=9),
        record("b", "w3", length=8),
        record("c", "w4", doubt=NAN),
    ]
    rows = rated_rows(given, NAMES, SCALES, template)
    assert [row.labels for row in rows[:1]] == [(0.25, 0.0)]
    assert rows[1].labels[0] == 1.0
    assert [math.isnan(value) for row in rows[1:] for value in row.labels] == [False, True, True, True]
    assert rows[0].names == NAMES
    assert template.decode(rows[0].encoded.response_ids) == "w1 w2"
    assert rows[0].length == rows[0].encoded.length
    assert rows[0].prompt == tuple(template.prompt(given[0].conversation).ids)


def test_wrong_labels_name_the_row_the_value_and_the_scale(template):
    with pytest.raises(UserError, match=r"row b: length is 9, outside its scale from 0 to 8"):
        rated_rows([record("a", "w1", length=1), record("b", "w1", length=9)], ["length"], SCALES, template)
    with pytest.raises(UserError, match="row a: doubt is inf"):
        rated_rows([record("a", "w1", doubt=math.inf)], ["doubt"], SCALES, template)
    with pytest.raises(UserError, match="no row carries the label 'doubt'; the data have length, tone"):
        rated_rows([record("a", "w1", length=1, tone=2)], NAMES, SCALES, template)
    with pytest.raises(UserError, match="no scale for tone; known are length, doubt: give low and high"):
        rated_rows([record("a", "w1", tone=1)], ["tone"], SCALES, template)
    same = rated_rows([record("a", "w1", length=3, doubt=1), record("b", "w2", length=3)], ["length"], SCALES, template)
    with pytest.raises(UserError, match=r"the label 'length' is 0\.375 in all 2 rows"):
        moments(same)


def test_moments_are_those_of_the_known_labels(template):
    rows = rated_rows(records(), NAMES, SCALES, template)
    table = np.array([row.labels for row in rows])
    found = moments(rows)
    assert found.mean.tolist() == pytest.approx(np.nanmean(table, axis=0).tolist(), abs=1e-6)
    assert found.variance.tolist() == pytest.approx(np.nanvar(table, axis=0).tolist(), abs=1e-6)


def test_loss_is_the_loop_over_known_labels_by_inverse_variance(template):
    task, rows = made(template)
    batch = task.collate(rows)
    loss = task.loss(batch)["regression"]
    with torch.no_grad():
        scores = features(task.model, rows, template.pad_id) @ task.model.head.weight.T
    weight = [1 / float(v) for v in moments(rows).variance]
    known = [(i, k) for i, row in enumerate(rows) for k in range(2) if not math.isnan(row.labels[k])]
    total = sum(weight[k] * (float(scores[i, k]) - rows[i].labels[k]) ** 2 for i, k in known)
    # Sums of float32 in another order.
    assert float(loss.mean) == pytest.approx(total / sum(weight[k] for _, k in known), rel=1e-5)
    assert task.counts(batch) == {"regression": float(loss.count)}


@pytest.mark.parametrize("kind", ["squared", "huber", "bce"])
def test_numbers_of_evaluation_are_exact_however_rows_are_cut(template, kind):
    task, rows = made(template, kind=kind)
    one, many = evaluate(task, rows), evaluate(task, rows, micro_tokens=1)
    assert one == pytest.approx(many, rel=1e-5)  # float32 kernels sum padded rows in another order
    with torch.no_grad():
        scores = features(task.model, rows, template.pad_id) @ task.model.head.weight.T
    guesses = scores.sigmoid() if kind == "bce" else scores
    for k, name in enumerate(NAMES):
        known = [i for i, row in enumerate(rows) if not math.isnan(row.labels[k])]
        labels, guess = np.array([rows[i].labels[k] for i in known]), guesses[known, k].double().numpy()
        # These are the training rows, so their mean is the one that r2 compares with.
        explained = 1 - ((guess - labels) ** 2).sum() / ((labels - labels.mean()) ** 2).sum()
        assert one[f"r2/{name}"] == pytest.approx(explained, rel=1e-4)  # as above, summed over rows
        assert one[f"mae/{name}"] == pytest.approx(np.abs(guess - labels).mean(), rel=1e-5)


def test_r2_compares_with_the_training_mean(template):
    rows = rated_rows(records(), NAMES, SCALES, template)
    task = AttributeTask(
        score_model(template, std=0.0), 0, SCALES, Moments(torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25]))
    )
    labels = [row.labels[0] for row in rows if not math.isnan(row.labels[0])]
    expected = 1 - sum(y**2 for y in labels) / sum((y - 0.5) ** 2 for y in labels)
    assert evaluate(task, rows)["r2/length"] == pytest.approx(expected, rel=1e-5)


def test_the_model_knows_its_scales_and_its_link(template):
    task, _ = made(template, kind="bce")
    assert read_scales(task.model.config, task.model.names) == SCALES
    assert read_link(task.model.config) == "logit"


def test_another_order_of_labels_is_refused_and_both_are_named(template):
    task, _ = made(template)
    turned = rated_rows(records(), NAMES[::-1], SCALES, template)
    with pytest.raises(
        UserError, match="row r0 has the labels doubt, length, and the model was made for length, doubt"
    ):
        task.collate(turned)
    with pytest.raises(UserError, match="scores length, doubt and the labels are doubt, length"):
        AttributeTask(task.model, 0, dict(reversed(SCALES.items())), moments(turned))


def pair_rows(template, n=6):
    """Pairs in which more words win."""
    prompt = Conversation.ask("w1 w2")
    long, short = (template.answered(prompt.answer(" ".join(WORDS[:k]))) for k in (6, 2))
    return [PairRow(f"p{i}", long, short, margin=0.5) for i in range(n)]


def test_comparisons_join_on_the_same_network(template):
    rows = rated_rows(records(), NAMES, SCALES, template)
    model = score_model(template, (*NAMES, PREFERENCE))
    task = AttributeTask(model, template.pad_id, SCALES, moments(rows), AttributeSettings(preference=0.5))
    batch = task.collate([*rows, *pair_rows(template)])
    terms = task.loss(batch)
    assert task.weights == {PREFERENCE: 0.5}
    assert task.counts(batch) == {name: float(term.count) for name, term in terms.items()}
    first, second = (
        model.scores(one.input_ids, one.attention_mask, one.position_ids, one.score_index)[:, 2]
        for one in (
            task.collate([replace(rows[0], encoded=row)]).tokens
            for row in (pair_rows(template)[0].first, pair_rows(template)[0].second)
        )
    )
    expected = math.log1p(math.exp(-float(first - second) + 0.5))
    assert float(terms[PREFERENCE].mean) == pytest.approx(expected, abs=1e-5)  # scores of other batches, in float32
    assert float(terms["regression"].mean) == pytest.approx(float(task.loss(task.collate(rows))["regression"].mean))
    alone = task.collate(pair_rows(template))
    assert task.loss(alone).keys() == task.counts(alone).keys() == {PREFERENCE}
    assert task.metrics(alone).keys() == {"accuracy"}
    plain, _ = made(template)
    with pytest.raises(UserError, match="pairs need a score called preference; the model has length, doubt"):
        plain.collate(pair_rows(template))


@pytest.mark.parametrize("way", ["full", "adapter", "head"])
def test_labels_are_learned_in_three_ways(tmp_path, template, way):
    rows = rated_rows(records(80), NAMES, SCALES, template)
    model = score_model(template, (*NAMES, PREFERENCE), std=0.0)
    if way == "adapter":
        model = with_score_adapter(model, AdapterSettings(rank=4))
    if way == "head":
        freeze_backbone(model)
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    rows = [*rows, *pair_rows(template)]
    task = AttributeTask(model, template.pad_id, SCALES, moments(rows[:80]))
    before = evaluate(task, rows)
    settings = FitSettings(epochs=4, batch_size=16, optimiser=OptimiserSettings(learning_rate=0.01))
    found = fit(task, rows, rows, settings, RunFolder(tmp_path), stage="attributes").metrics
    assert found["r2/length"] > before["r2/length"] + 0.5, "a zero head guesses nothing"
    assert (before["accuracy"], found["accuracy"]) == (0.5, 1.0)
    for name, weight in model.named_parameters():
        assert name not in frozen or torch.equal(frozen[name], weight)


def test_ridge_is_the_closed_form():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal(20)
    found = ridge(torch.tensor(x), torch.tensor(y))
    for alpha, weights in zip(ALPHAS, found.numpy(), strict=True):
        np.testing.assert_allclose(weights, np.linalg.solve(x.T @ x + alpha * np.eye(5), x.T @ y), rtol=0, atol=1e-9)


def test_fitted_heads_are_ridge_on_the_features_of_known_rows(template):
    rows = rated_rows(records(), NAMES, SCALES, template)
    model = score_model(template, (*NAMES, PREFERENCE))
    kept = model.head.weight[2].clone()
    found = fit_heads(model, rows, template.pad_id)
    table = features(model, rows, template.pad_id).double().numpy()
    for k, name in enumerate(NAMES):
        labels = np.array([row.labels[k] for row in rows])
        x, y = table[~np.isnan(labels)], labels[~np.isnan(labels)]
        expected = np.linalg.solve(x.T @ x + found[name].alpha * np.eye(x.shape[1]), x.T @ y)
        assert found[name].alpha in ALPHAS
        assert found[name].r2 < 1
        # Small penalties leave the system badly conditioned; it is the predictions that must agree.
        predicted = x @ model.head.weight[k].detach().double().numpy()
        np.testing.assert_allclose(predicted, x @ expected, rtol=0, atol=1e-4)
    assert torch.equal(model.head.weight[2], kept), "a score without labels is left alone"
    again = score_model(template, (*NAMES, PREFERENCE))
    for name, turned in fit_heads(again, rows[::-1], template.pad_id).items():
        assert turned == pytest.approx(found[name], rel=1e-4), "the order of the rows only moves rounding errors"


def test_heads_of_an_adapter_are_fitted_too(template):
    rows = rated_rows(records(), NAMES, SCALES, template)
    plain, adapted = score_model(template), with_score_adapter(score_model(template), AdapterSettings(rank=2))
    found = [
        evaluate(AttributeTask(model, template.pad_id, SCALES, moments(rows)), rows)
        for model in (plain, adapted)
        if fit_heads(model, rows, template.pad_id)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5), "a new adapter changes nothing"


def test_logits_are_fitted_where_the_link_is_one(template):
    rows = rated_rows(records(missing=0.0), NAMES, SCALES, template)
    model = score_model(template)
    fit_heads(model, rows, template.pad_id, link="logit")
    task = AttributeTask(model, template.pad_id, SCALES, moments(rows), AttributeSettings(kind="bce"))
    identity = score_model(template)
    fit_heads(identity, rows, template.pad_id)
    wrong = AttributeTask(identity, template.pad_id, SCALES, moments(rows), AttributeSettings(kind="bce"))
    assert evaluate(task, rows)["r2/length"] > max(0.1, evaluate(wrong, rows)["r2/length"])


def test_too_few_rows_for_a_penalty_are_refused(template):
    rows = rated_rows(records(4, missing=0.0), NAMES, SCALES, template)
    rows = [replace(row, labels=(row.labels[0], NAN if i else 0.5)) for i, row in enumerate(rows)]
    with pytest.raises(UserError, match="too few rows carry the label 'doubt'"):
        fit_heads(score_model(template), rows, template.pad_id)

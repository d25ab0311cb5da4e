"""Reward and cost of one network: the losses of the two separate tasks, from one pass."""

import pytest
import torch

from holdfast.data.schema import Conversation, DualPair
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.heads import ScoreModel, from_policy
from holdfast.models.scales import Borders
from holdfast.models.tiny import tiny_policy
from holdfast.preference.joint import DualSettings, DualTask, dual_rows
from holdfast.preference.pairs import harmful_rows, helpful_rows
from holdfast.preference.tasks import CostSettings, CostTask, RewardSettings, RewardTask

TEXT = "plant it in the sun throw stones at him what shall i do"
WORDS = TEXT.split()
PROMPT = Conversation.ask("what shall i do")
# Helpful and harmless in every combination, and with every label missing once.
LABELS = [
    {
        "helpful_id": 0,
        "safer_id": 0,
        "safe": (True, False),
        "severity": (0, 2),
        "harmless_rate": (1, -2),
        "margin": 0.5,
    },
    {"helpful_id": 1, "safer_id": 0, "safe": (True, False), "severity": (0, 3), "harmless_rate": (2, -3)},
    {
        "helpful_id": 0,
        "safer_id": 1,
        "safe": (False, True),
        "severity": (1, 0),
        "harmless_rate": (-1, 1),
        "margin": 1.0,
    },
    {"helpful_id": 1},
    {"safer_id": 1},
    {"safe": (None, False), "severity": (None, 1), "harmless_rate": (None, -1)},
    {"helpful_id": 1, "safe": (True, None), "severity": (0, None), "harmless_rate": (0, None), "margin": 2.0},
    {},
]


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([TEXT], 64, "word"), max_length=32)


def pairs():
    answers = [(" ".join(WORDS[i : i + 3]), " ".join(WORDS[i + 1 : i + 6])) for i in range(len(LABELS))]
    return [DualPair(id=f"p{i}", prompt=PROMPT, responses=answers[i], **labels) for i, labels in enumerate(LABELS)]


def model_of(template, names=("cost", "reward")):
    policy = tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1)
    return from_policy(policy, names, init_std=0.5)


def column(model, name):
    """The network with only one of the scores: what the separate tasks train."""
    alone = from_policy(tiny_policy(40, hidden=16, heads=2, layers=1), [name])
    alone = ScoreModel(alone.network)
    alone.network.model = model.network.model
    alone.head.weight = torch.nn.Parameter(model.head.weight[[model.names.index(name)]].detach())
    return alone


@pytest.mark.parametrize("labels", ["sign", "graded", "ordinal", "none"])
def test_losses_are_those_of_the_two_tasks(template, labels):
    model = model_of(template)
    reward, cost = RewardSettings(margin=0.1, centre=0.01, l2=0.1), CostSettings(labels=labels, scale=0.7, l2=0.2)
    dual = DualTask(model, template.pad_id, DualSettings(reward=reward, cost=cost))
    costs = column(model, "cost")
    if labels == "ordinal":
        model.borders = dual.cost.borders = Borders([0.0, 0.4, 2.0])
        costs.borders = Borders([0.0, 0.4, 2.0])
    apart = {
        "reward": (RewardTask(column(model, "reward"), template.pad_id, reward), helpful_rows(pairs(), template)),
        "cost": (CostTask(costs, template.pad_id, cost), harmful_rows(pairs(), template, labels)),
    }
    batch = dual.collate(dual_rows(pairs(), template, labels))
    terms, counts, numbers = dual.loss(batch), dual.counts(batch), dual.metrics(batch)
    for name, (task, rows) in apart.items():
        alone = task.collate(rows)
        for term, expected in task.loss(alone).items():
            together = terms.pop(f"{name}/{term}")
            # Rows stand in other batches, whose kernels sum in another order.
            assert float(together.total) == pytest.approx(float(expected.total), abs=1e-5), f"{name}/{term}"
            assert float(together.count) == counts[f"{name}/{term}"] == float(expected.count)
            assert dual.weights.get(f"{name}/{term}", 1.0) == task.weights.get(term, 1.0)
        for metric, expected in task.metrics(alone).items():
            assert float(numbers[f"{name}/{metric}"].mean) == pytest.approx(float(expected.mean), abs=1e-5)
    assert not terms


def test_one_weight_moves_all_terms_of_the_cost(template):
    task = DualTask(model_of(template), template.pad_id, DualSettings(cost_weight=0.25))
    assert task.weights == {
        "reward/l2": 0.001,
        "reward/centre": 0.0,
        "cost/rank": 0.25,
        "cost/absolute": 0.5,
        "cost/l2": 0.00025,
    }


def test_pairs_without_a_label_are_left_out_and_missing_axes_named(template):
    assert [row.pair.id for row in dual_rows(pairs(), template)] == [f"p{i}" for i in range(7)]
    assert [row.pair.id for row in dual_rows(pairs(), template, "none")] == ["p0", "p1", "p2", "p3", "p4", "p6"]
    with pytest.raises(UserError, match="no pair carries a label for helpfulness"):
        dual_rows(pairs()[4:6], template)
    with pytest.raises(UserError, match="no pair carries a label for harm"):
        dual_rows(pairs()[3:4], template)
    with pytest.raises(UserError, match="no score is called reward; the model has help, cost"):
        DualTask(model_of(template, ("help", "cost")), template.pad_id)


def test_evaluation_does_not_depend_on_the_cut(template):
    task = DualTask(model_of(template), template.pad_id)
    rows = dual_rows(pairs(), template)
    assert evaluate(task, rows) == pytest.approx(evaluate(task, rows, micro_tokens=1), abs=1e-5)


def test_both_scores_are_learned(tmp_path, template):
    task = DualTask(model_of(template), template.pad_id, DualSettings(cost=CostSettings(labels="ordinal")))
    rows = dual_rows(pairs(), template, "ordinal")
    chosen = FitSettings(
        epochs=40, batch_size=7, optimiser=OptimiserSettings(learning_rate=0.01, schedule="constant", warmup_ratio=0)
    )
    found = fit(task, rows, rows, chosen, RunFolder(tmp_path), stage=task.name).metrics
    assert found["reward/accuracy"] == found["cost/accuracy"] == found["cost/sign_accuracy"] == 1.0
    assert found["cost/severity_error"] < 0.3

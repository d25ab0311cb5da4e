"""Reward and cost tasks: published loss values, direction of every label, and independence of the batch."""

import math
from dataclasses import replace

import pytest
import torch

from holdfast.data.schema import Conversation, DualPair
from holdfast.data.template import Encoded, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.models.scales import Borders
from holdfast.models.tiny import tiny_policy
from holdfast.preference.pairs import UNKNOWN, PairRow, collate_pairs, harmful_rows, helpful_rows
from holdfast.preference.tasks import CostSettings, CostTask, RewardSettings, RewardTask

GOOD, BAD, ASK = "plant it in the sun", "throw stones at him", "what shall i do ?"
PROMPT = Conversation.ask(ASK)


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([GOOD, BAD, ASK], 64, "word"), max_length=32)


def score_model(template, name="score", seed=0):
    return from_policy(
        tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=1), (name,), init_std=0.3, seed=seed
    )


def pair(name="pair", **labels):
    return DualPair(id=name, prompt=PROMPT, responses=(GOOD, BAD), **labels)


class Given:
    """A score model whose scores are the first token ids of a table, so that losses can be worked out by hand."""

    def __init__(self, values):
        self.values = torch.tensor(values, dtype=torch.float64)

    def parameters(self):
        return iter([self.values])

    def scores(self, input_ids, *others):
        return self.values[input_ids[:, 0]][:, None]


def rows_of(first, second, absolute=None, ranked=None):
    """A model and pairs with exactly these scores."""
    one = [Encoded([i], [True], [True], 0, 0) for i in range(len(first) + len(second))]
    n = len(first)
    rows = [
        PairRow(f"row-{i}", one[i], one[n + i], (ranked or [True] * n)[i], (absolute or [(UNKNOWN, UNKNOWN)] * n)[i])
        for i in range(n)
    ]
    return Given([*first, *second]), rows


def whole(task, rows):
    """The published number: each term's mean times its weight, added up."""
    batch = task.collate(rows)
    terms = task.loss(batch)
    assert {name: float(term.count) for name, term in terms.items()} == task.counts(batch)
    return sum(task.weights.get(name, 1.0) * float(term.mean) for name, term in terms.items())


def ls(x):
    """log sigmoid, spelt out."""
    return -math.log1p(math.exp(-x))


def test_reward_loss_is_the_published_value():
    model, rows = rows_of([1.5, 0.2], [0.5, 0.4])
    assert whole(RewardTask(model, 0, RewardSettings(l2=0.001)), rows) == pytest.approx(0.5563752784, abs=1e-9)


def test_cost_loss_with_signs_is_the_published_value():
    model, rows = rows_of([2.0, -0.5], [-1.0, -1.5], absolute=[(1.0, -1.0), (-1.0, -1.0)])
    assert whole(CostTask(model, 0, CostSettings(l2=0.001)), rows) == pytest.approx(0.7387644999 + 0.001875, abs=1e-9)


def test_cost_loss_with_grades_is_the_published_value():
    model, rows = rows_of([0.8], [-0.3], absolute=[(2.0, -1.0)])
    settings = CostSettings(labels="graded", l2=0.0)
    assert whole(CostTask(model, 0, settings), rows) == pytest.approx(1.0255913105, abs=1e-9)
    halved = whole(CostTask(model, 0, CostSettings(labels="graded", l2=0.0, scale=0.5)), rows)
    assert halved == pytest.approx(0.2873353251 + (0.1839007409 + 0.5543552445) / 2, abs=1e-9)


def test_missing_labels_leave_their_terms_and_only_them():
    """Three pairs: no safety preference, one label missing, and no label at all."""
    more, less = [0.7, 0.1, -0.4], [-0.2, 0.6, 0.3]
    absolute = [(1.0, -1.0), (UNKNOWN, -1.0), (UNKNOWN, UNKNOWN)]
    model, rows = rows_of(more, less, absolute, ranked=[False, True, True])
    ranking = [-ls(more[i] - less[i]) for i in (1, 2)]
    labelled = [-ls(0.7), -ls(-1.0 * -0.2), -ls(-1.0 * 0.6)]
    squares = [x * x for x in more + less]
    expected = sum(ranking) / 2 + 2 * sum(labelled) / 3 + 0.001 * sum(squares) / 6
    assert whole(CostTask(model, 0), rows) == pytest.approx(expected, abs=1e-9)
    without = sum(ranking) / 2 + 0.001 * sum(squares) / 6
    assert whole(CostTask(model, 0, CostSettings(labels="none")), rows) == pytest.approx(without, abs=1e-9)


def test_metrics_count_ties_half_and_leave_out_what_has_no_side():
    model, rows = rows_of(
        [1.0, 0.5, -1.0, 2.0],
        [0.0, 0.5, 1.0, 5.0],
        absolute=[(1.0, -1.0), (0.0, UNKNOWN), (-1.0, 1.0), (UNKNOWN, -1.0)],
        ranked=[True, True, True, False],
    )
    cost = CostTask(model, 0, CostSettings(labels="graded"))
    found = cost.metrics(cost.collate(rows))
    assert float(found["accuracy"].mean) == pytest.approx((1 + 0.5 + 0) / 3)
    # 1 > 0 right; 0 < 0 wrong (the border is no side); -1 right, 1 right; 5 wrong; the rate of zero is not asked.
    assert float(found["sign_accuracy"].count) == 5
    assert float(found["sign_accuracy"].mean) == pytest.approx(3 / 5)
    nothing = CostTask(model, 0, CostSettings(labels="none"))
    assert nothing.metrics(nothing.collate(rows)).keys() == {"accuracy"}
    reward = RewardTask(model, 0)
    assert float(reward.metrics(reward.collate(rows))["accuracy"].mean) == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("labels", ["sign", "graded", "none"])
def test_swapping_the_answers_with_their_labels_changes_nothing(template, labels):
    known = {"helpful_id": 0, "safer_id": 0, "safe": (True, False), "harmless_rate": (1, -2)}
    mirrored = {"helpful_id": 1, "safer_id": 1, "safe": (False, True), "harmless_rate": (-2, 1)}
    here = pair(**known)
    there = DualPair(id="pair", prompt=PROMPT, responses=(BAD, GOOD), **mirrored)
    assert helpful_rows([here], template) == helpful_rows([there], template)
    assert harmful_rows([here], template, labels) == harmful_rows([there], template, labels)


def test_labels_point_where_they_should(template):
    (row,) = helpful_rows([pair(helpful_id=0)], template)
    assert template.decode(row.first.response_ids) == GOOD
    (row,) = harmful_rows([pair(safer_id=0, safe=(True, False), harmless_rate=(2, -3))], template)
    assert template.decode(row.first.response_ids) == BAD
    assert row.absolute == (1.0, -1.0)
    (row,) = harmful_rows([pair(safer_id=0, safe=(True, False), harmless_rate=(2, -3))], template, "graded")
    assert row.absolute == (3.0, -2.0)
    (row,) = harmful_rows([pair(safe=(True, False))], template)
    assert not row.ranked
    assert dict(zip([template.decode(s.response_ids) for s in (row.first, row.second)], row.absolute)) == {
        GOOD: -1.0,
        BAD: 1.0,
    }


def test_pairs_without_a_label_are_left_out_and_none_at_all_is_an_error(template):
    assert [row.id for row in helpful_rows([pair("a"), pair("b", helpful_id=1)], template)] == ["b"]
    assert [row.id for row in harmful_rows([pair("a", helpful_id=1), pair("b", safer_id=1)], template)] == ["b"]
    with pytest.raises(UserError, match=r"no pair carries a label for helpfulness \(helpful_id\)"):
        helpful_rows([pair(safer_id=0)], template)
    with pytest.raises(UserError, match="no pair carries a label for harm"):
        harmful_rows([pair(helpful_id=0)], template)
    with pytest.raises(UserError, match="no pair carries a label for harm"):
        harmful_rows([pair(safe=(True, False))], template, "none")


def test_trained_scores_rank_as_the_labels_say(tmp_path, template):
    """From a hand-made pair to two trained models: the good answer is more helpful, the bad one costs more."""
    judged = pair(helpful_id=0, safer_id=0, safe=(True, False), harmless_rate=(1, -3))
    settings = FitSettings(
        epochs=30, batch_size=1, optimiser=OptimiserSettings(learning_rate=0.01, schedule="constant", warmup_ratio=0)
    )
    reward = RewardTask(score_model(template), template.pad_id)
    cost = CostTask(score_model(template), template.pad_id)
    run = RunFolder(tmp_path)
    good, bad = (template.answered(PROMPT.answer(text)) for text in (GOOD, BAD))
    fit(reward, helpful_rows([judged], template), [], settings, run, stage="reward")
    fit(cost, harmful_rows([judged], template), [], settings, run, stage="cost")
    with torch.no_grad():
        for task, sign in ((reward, 1), (cost, -1)):
            first, second = task.sides(task.collate([PairRow("", good, bad)]))
            assert sign * float(first - second) > 1
        assert float(first) < 0 < float(second), "zero is the border between safe and harmful"


def mixed_pairs(template):
    """Pairs of unequal lengths with and without labels."""
    words = GOOD.split() + BAD.split()
    pairs = []
    for i in range(5):
        answers = (" ".join(words[i:]), " ".join(words[: 2 + i]))
        safe = (True, False) if i % 2 else (None, None)
        pairs.append(DualPair(id=f"p{i}", prompt=PROMPT, responses=answers, helpful_id=i % 2, safer_id=0, safe=safe))
    return pairs


def test_loss_of_a_batch_is_that_of_its_pairs(template):
    pairs = mixed_pairs(template)
    for task, rows in (
        (RewardTask(score_model(template), template.pad_id), helpful_rows(pairs, template)),
        (CostTask(score_model(template), template.pad_id), harmful_rows(pairs, template)),
    ):
        together = task.loss(task.collate(rows))
        alone = [task.loss(task.collate([row])) for row in rows]
        for name, term in together.items():
            assert int(term.count) == sum(int(one[name].count) for one in alone)
            # Kernels sum in another order when rows are padded, hence more than 1e-6.
            assert term.total.item() == pytest.approx(sum(one[name].total.item() for one in alone), abs=1e-5)


def test_a_score_does_not_depend_on_padding_or_company(template):
    task = RewardTask(score_model(template), template.pad_id)
    rows = helpful_rows(mixed_pairs(template), template)
    with torch.no_grad():
        first, second = task.sides(task.collate(rows))
        for i, row in enumerate(rows):
            one, two = task.sides(task.collate([row]))
            # As above: another summation order.
            torch.testing.assert_close(
                torch.cat([first[i : i + 1], second[i : i + 1]]), torch.cat([one, two]), rtol=0, atol=1e-5
            )
        turned = task.sides(task.collate(rows[::-1]))
        torch.testing.assert_close(turned[0].flip(0), first, rtol=0, atol=1e-5)


def test_a_batch_says_how_large_it_is(template):
    rows = helpful_rows(mixed_pairs(template), template)
    batch = collate_pairs(rows, template.pad_id)
    assert batch.size == 5
    assert batch.ids == tuple(f"p{i}" for i in range(5))
    assert batch.tokens.size == 10
    assert [row.length for row in rows] == [2 * max(row.first.length, row.second.length) for row in rows]


def test_evaluation_does_not_depend_on_the_cut(template):
    task = CostTask(score_model(template), template.pad_id)
    rows = harmful_rows(mixed_pairs(template), template)
    one, many = evaluate(task, rows), evaluate(task, rows, micro_tokens=1)
    assert one == pytest.approx(many)


def test_a_bare_refusal_pulls_nowhere():
    model, rows = rows_of([0.4], [0.1], absolute=[(0.0, UNKNOWN)])
    model.values.requires_grad_()
    terms = CostTask(model, 0, CostSettings(labels="graded")).loss(collate_pairs(rows, 0))
    assert terms["absolute"].mean.item() == pytest.approx(math.log(2), abs=1e-12)
    terms["absolute"].total.backward()
    assert model.values.grad.abs().max() == 0


def test_margins_of_pairs_and_settings_add_up():
    model, rows = rows_of([1.5, 0.2], [0.5, 0.4])
    rows = [replace(row, margin=margin) for row, margin in zip(rows, (0.5, 0.0))]
    settings = RewardSettings(margin=0.25, l2=0.0)
    expected = (-ls(1.0 - 0.5 - 0.25) - ls(-0.2 - 0.25)) / 2
    assert whole(RewardTask(model, 0, settings), rows) == pytest.approx(expected, abs=1e-7)  # margins are in float32
    found = RewardTask(model, 0, settings).metrics(collate_pairs(rows, 0))
    assert float(found["rank"].mean) == pytest.approx((-ls(1.0) - ls(-0.2)) / 2, abs=1e-9), (
        "what was asked is no result"
    )


def test_margins_come_from_the_data(template):
    (row,) = helpful_rows([pair(helpful_id=1, margin=2.5)], template)
    assert row.margin == 2.5
    assert helpful_rows([pair(helpful_id=1)], template)[0].margin == 0.0


def test_centring_is_added_when_asked_for():
    model, rows = rows_of([1.5, 0.2], [0.5, 0.4])
    settings = RewardSettings(l2=0.0, centre=0.01)
    assert whole(RewardTask(model, 0, settings), rows) == pytest.approx(0.5557002784 + 0.01 * 4.36 / 2, abs=1e-9)
    assert "centre" not in RewardTask(model, 0).loss(collate_pairs(rows, 0))


def ordinal(first, second, absolute, borders=(0.0, 0.7, 2.5)):
    """A cost task with borders over given scores, and its rows."""
    model, rows = rows_of(first, second, absolute)
    model.borders = Borders(borders)
    return CostTask(model, 0, CostSettings(labels="ordinal", l2=0.0)), rows


def test_ordinal_cost_is_ranking_plus_the_probability_of_each_severity():
    task, rows = ordinal([1.1, -0.3], [-0.4, 0.2], [(2.0, -1.0), (1.0, UNKNOWN)])

    def reach(cost, border):
        return 1 / (1 + math.exp(border - cost))

    severities = [reach(1.1, 0.7) - reach(1.1, 2.5), 1 - reach(-0.4, 0.0), reach(-0.3, 0.0) - reach(-0.3, 0.7)]
    expected = (-ls(1.5) - ls(-0.5)) / 2 - 2 * sum(map(math.log, severities)) / 3
    # Borders are kept in float32.
    assert whole(task, rows) == pytest.approx(expected, abs=1e-6)
    found = task.metrics(task.collate(rows))
    assert float(found["sign_accuracy"].mean) == pytest.approx(2 / 3)
    # 1.1 lies at severity 2, -0.4 at 0, -0.3 at 0 where 1 is true.
    assert (float(found["severity_error"].total), float(found["severity_error"].count)) == (1.0, 3)


def test_ordinal_labels_are_the_severity_and_minus_one_for_safe(template):
    labelled = pair(safer_id=0, safe=(True, False), severity=(0, 3))
    (row,) = harmful_rows([labelled], template, "ordinal")
    assert row.absolute == (3.0, -1.0)
    (row,) = harmful_rows([pair(safer_id=0, safe=(True, False), severity=(None, None))], template, "ordinal")
    assert row.absolute[1] == -1.0, "a safe answer has severity 0"
    assert math.isnan(row.absolute[0]), "an unsafe answer of unknown severity is unknown"
    with pytest.raises(UserError, match="no pair carries a label for the severity of harm"):
        harmful_rows([pair(safer_id=0, safe=(None, False))], template, "ordinal")


def severe_rows(template):
    """Pairs of all severities."""
    words = BAD.split()
    pairs = [
        DualPair(
            id=f"p{level}", prompt=PROMPT, responses=(GOOD, " ".join(words[:level])), safer_id=0, severity=(0, level)
        )
        for level in (1, 2, 3)
    ]
    return harmful_rows(pairs, template, "ordinal")


FIT = FitSettings(
    epochs=4,
    batch_size=2,
    checkpoint_every=3,
    optimiser=OptimiserSettings(learning_rate=0.01, schedule="constant", warmup_ratio=0),
)


def test_borders_are_learned_resumed_and_kept_by_the_model(tmp_path, template):
    def learn(folder, stop_after=None):
        model = score_model(template)
        task = CostTask(model, template.pad_id, CostSettings(labels="ordinal"))
        if stop_after is not None:
            counted = iter(range(stop_after))
            plain = task.loss
            task.loss = lambda batch: plain(batch) if next(counted, None) is not None else 1 / 0
        fit(
            task,
            severe_rows(template),
            [],
            FIT.model_copy(update={"checkpoint_every": 3}),
            RunFolder(folder),
            stage="c",
        )
        return model

    straight = learn(tmp_path / "straight")
    assert (straight.borders() - torch.tensor([0.0, 1.0, 2.0])).abs()[1:].min() > 0.01, "they have moved"
    with pytest.raises(ZeroDivisionError):
        learn(tmp_path / "broken", stop_after=5)
    resumed = learn(tmp_path / "broken")
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name

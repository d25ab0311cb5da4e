"""DPO and PRO on rankings: losses against slow forms in float64, and that nothing depends on how rows are read."""

import copy
import math
import random

import pytest
import torch

from holdfast.data.schema import Conversation, Ranked
from holdfast.data.template import Encoded, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import Reader
from holdfast.training.ranked import (
    DpoSettings,
    DpoTask,
    ProSettings,
    ProTask,
    RankedRow,
    ranked_rows,
    reference_of,
)

VOCABULARY, PAD = 30, 0


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def encoded(asked, given):
    mask = [False] * len(asked) + [True] * len(given)
    return Encoded([*asked, *given], mask, mask, len(mask) - 1, len(asked))


def sharp(seed):
    """A policy whose head tells tokens apart, so that log-probabilities say something."""
    model = tiny_policy(VOCABULARY, hidden=32, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    return model


def made(counts, seed=0):
    """Rows with so many answers each, of several lengths and rewards from 0 to 2."""
    rng, found = random.Random(seed), []
    for i, count in enumerate(counts):
        asked = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(2, 12))]
        answers = [
            encoded(asked, [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 6))]) for _ in range(count)
        ]
        quality = sorted((rng.uniform(0, 2) for _ in answers), reverse=True)
        found.append(RankedRow(str(i), tuple(answers), tuple(quality)))
    return found


@pytest.fixture
def policy():
    return sharp(0)


@pytest.fixture(scope="module")
def pairs():
    return reference_of(made([2] * 8), Reader(sharp(1), PAD))


def said(policy, row):
    """The log-probability of each answer of a row, each read alone."""
    totals = []
    for answer in row.answers:
        logits = policy(input_ids=torch.tensor([answer.ids])).logits[0].log_softmax(-1)
        totals.append(sum(logits[t - 1, answer.ids[t]] for t in range(answer.prompt_length, answer.length)))
    return totals


def slow_dpo(policy, row, beta, reference):
    (better, worse), known = said(policy, row), [value.item() for value in said(reference, row)]
    return (1 + torch.exp(-beta * ((better - known[0]) - (worse - known[1])))).log()


def slow_pro(policy, row, weight):
    totals, loss = said(policy, row), 0.0
    scores = [total / len(answer.response_ids) for total, answer in zip(totals, row.answers)]
    for k in range(len(scores) - 1):
        gaps = [row.quality[k] - row.quality[i] for i in range(k + 1, len(scores))]
        own = torch.exp(scores[k] * max(gaps))
        rivals = sum(torch.exp(scores[i] * gap) for i, gap in zip(range(k + 1, len(scores)), gaps))
        loss = loss - (own / (own + rivals)).log()
    return loss - weight * (len(scores) - 1) ** 2 * totals[0]


def gradient(model, total):
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone().double() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found, wanted, share):
    assert found.keys() == wanted.keys()
    largest = max(float(values.abs().max()) for values in wanted.values())
    assert largest > 1e-4, "gradients of zero would prove nothing"
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=share * largest)


def objective(task, parts, count):
    """The number to differentiate, from rows cut into parts."""
    terms = [task.loss(task.collate(part)) for part in parts]
    return sum(task.weights.get(name, 1.0) * term.total / count for one in terms for name, term in one.items())


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_is_the_slow_form(beta, free, pairs, policy):
    task = DpoTask(policy, PAD, DpoSettings(beta=beta, reference_free=free))
    exact, reference = copy.deepcopy(policy).double(), sharp(1).double()
    if free:
        with torch.no_grad():
            reference.lm_head.weight.zero_()
            pairs = [equal(row) for row in pairs]
    wanted = sum(slow_dpo(exact, row, beta, reference) for row in pairs) / len(pairs)
    found = objective(task, [pairs], len(pairs))
    # float32 against float64, through a network
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert_equal_gradients(gradient(policy, found), gradient(exact, wanted), 1e-4)


def equal(row):
    """The row with answers of one length, of which a reference that knows nothing thinks alike."""
    short = min(len(answer.response_ids) for answer in row.answers)
    answers = tuple(encoded(a.ids[: a.prompt_length], a.response_ids[:short]) for a in row.answers)
    return RankedRow(row.id, answers)


def test_at_the_reference_dpo_is_undecided(pairs):
    task = DpoTask(sharp(1), PAD)
    found = evaluate(task, pairs, micro_tokens=40)
    assert found["preference"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["lead"] == pytest.approx(0, abs=1e-5)  # sums of float32 in another order
    assert found["better"] == pytest.approx(0, abs=1e-5)  # as above


def test_what_is_watched_of_dpo(pairs, policy):
    own = torch.tensor([[value.item() for value in said(policy, row)] for row in pairs])
    ahead = 0.1 * (own - torch.tensor([row.ref for row in pairs]))
    found = evaluate(DpoTask(policy, PAD), pairs)
    assert found["accuracy"] == float((ahead[:, 0] > ahead[:, 1]).float().mean())
    assert 0 < found["accuracy"] < 1
    # Sums of float32 in another order.
    assert found["lead"] == pytest.approx(float((ahead[:, 0] - ahead[:, 1]).mean()), abs=1e-5)
    assert found["better"] == pytest.approx(float(ahead[:, 0].mean()), abs=1e-5)


@pytest.mark.parametrize("counts", [[2, 2, 2], [4, 4], [3, 2, 4, 2]])
def test_pro_is_the_slow_form_also_for_rows_of_several_sizes(counts, policy):
    rows = made(counts, seed=3)
    task, exact = ProTask(policy, PAD, ProSettings(sft_weight=0.05)), copy.deepcopy(policy).double()
    wanted = sum(slow_pro(exact, row, 0.05) for row in rows) / len(rows)
    found = objective(task, [rows], len(rows))
    # float32 against float64, through a network
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert_equal_gradients(gradient(policy, found), gradient(exact, wanted), 1e-4)


def test_accuracy_of_pro_is_of_the_best_answer(policy):
    rows = made([3, 2, 4, 2, 3], seed=5)
    scores = [[v.item() / len(a.response_ids) for v, a in zip(said(policy, row), row.answers)] for row in rows]
    right = sum(values[0] == max(values) for values in scores)
    assert 0 < right < len(rows)
    assert evaluate(ProTask(policy, PAD), rows)["accuracy"] == right / len(rows)


@pytest.mark.parametrize("share", ["auto", "off"])
@pytest.mark.parametrize("kind", ["dpo", "pro"])
def test_padding_order_and_cut_change_nothing(kind, share, pairs, policy):
    policy.double()
    rows = pairs if kind == "dpo" else made([3, 2, 4, 2, 3, 3])
    shuffled = random.Random(1).sample(rows, len(rows))

    def task(pad):
        if kind == "dpo":
            return DpoTask(policy, pad, DpoSettings(share_prompt=share))
        return ProTask(policy, pad, ProSettings(share_prompt=share))

    whole = gradient(policy, objective(task(PAD), [rows], len(rows)))
    assert_equal_gradients(gradient(policy, objective(task(7), [shuffled], len(rows))), whole, 1e-6)
    for budget in (1, 45, 90, 10_000):
        parts = task(PAD).portions(shuffled, budget)
        assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
        assert_equal_gradients(gradient(policy, objective(task(PAD), parts, len(rows))), whole, 1e-6)
        assert len(parts) == {1: len(rows), 10_000: 1}.get(budget, len(parts))


def test_a_prompt_is_read_once_for_all_its_answers(policy):
    row = RankedRow("long", tuple(encoded(list(range(1, 21)), [k + 1, 5]) for k in range(4)), (4.0, 3.0, 2.0, 1.0))
    task = ProTask(policy, PAD)
    task.loss(task.collate([row]))
    seen = []
    policy.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    task.loss(task.collate([row]))
    assert seen == [20 + 4], "the last tokens of answers predict nothing"
    assert task.portions([row, row], 56) == [[row, row]]
    alone = ProTask(policy, PAD, ProSettings(share_prompt="off"))
    assert alone.portions([row, row], 100) == [[row], [row]]
    alone.loss(alone.collate([row]))
    assert seen[1:] == [88]
    assert row.length == 88


def test_the_loop_reads_rows_as_the_task_portions_them(policy, tmp_path):
    rows = [
        RankedRow(str(i), tuple(encoded([i + 1] * 20, [k + 1, 5]) for k in range(4)), (4.0, 3.0, 2.0, 1.0))
        for i in range(2)
    ]
    task = ProTask(policy, PAD)
    task.loss(task.collate(rows))
    seen = []
    policy.get_input_embeddings().register_forward_pre_hook(lambda _, ids: seen.append(ids[0].numel()))
    evaluate(task, rows, micro_tokens=56)
    assert seen == [48], "side by side they would be 176 tokens in two passes"
    fit(task, rows, [], FitSettings(batch_size=2, micro_tokens=56), RunFolder(tmp_path / "run"), stage="policy")
    assert seen == [48, 48]


def test_long_rows_come_first(pairs, policy):
    parts = DpoTask(policy, PAD).portions(pairs, 30)
    assert max(row.length for row in parts[0]) == max(row.length for row in pairs)


def test_the_reference_is_read_without_gradient_or_dropout(policy):
    rows = made([2, 3, 2], seed=7)
    policy.train()
    found = reference_of(iter(rows), Reader(policy, PAD, micro_tokens=30))
    assert policy.training
    for row, other in zip(rows, found):
        assert (other.id, other.answers, other.quality) == (row.id, row.answers, row.quality)
        # Sums of float32 in another order.
        assert other.ref == pytest.approx([value.item() for value in said(policy, row)], abs=1e-4)


def test_the_policy_is_read_without_dropout_while_it_learns(pairs, policy):
    for layer in policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    task = DpoTask(policy, PAD)
    batch = task.collate(pairs)
    calm = Reader(policy, PAD).read(batch.tokens)[0].detach()
    policy.train()
    assert not torch.allclose(Reader(policy, PAD).read(batch.tokens)[0].detach(), calm)
    assert torch.equal(task.sequences(batch).detach(), calm.sum(-1))


def test_counts_are_announced_and_only_the_loss_weighs(pairs, policy):
    for task, rows, loss in (
        (DpoTask(policy, PAD), pairs, {"preference"}),
        (ProTask(policy, PAD), made([3, 2]), {"rank", "sft"}),
    ):
        batch = task.collate(rows)
        terms = task.loss(batch)
        assert {name: float(term.count) for name, term in terms.items()} == task.counts(batch)
        assert {name for name in terms if task.weights.get(name, 1.0) != 0} == loss
        assert {name for name, term in terms.items() if term.total.requires_grad} == loss


def test_answers_are_exactly_their_tokens_and_the_one_that_ends_them(policy):
    template = Template(train_tokenizer(["red green blue dark sea sky ?"], 64, "word"), max_length=40)
    record = Ranked(id="r", prompt=Conversation.ask("sea ?"), responses=("blue sea", "red"), rewards=(2.0, 0.5))
    (row,) = ranked_rows([record], template)
    assert (row.id, row.quality) == ("r", (2.0, 0.5))
    assert [len(answer.response_ids) for answer in row.answers] == [3, 2]
    assert [answer.response_ids[-1] for answer in row.answers] == [template.end_id] * 2
    batch = ProTask(policy, template.end_id).collate([row])
    assert batch.tokens.mask.sum(-1).tolist() == [3, 2]
    assert ranked_rows([record.model_copy(update={"rewards": None})], template)[0].quality == ()


def test_rows_from_which_nothing_can_be_learned_are_refused(pairs, policy):
    one, three = made([1, 3])
    with pytest.raises(UserError, match="row 1: dpo compares two answers, and there are 3; make pairs, or use pro"):
        DpoTask(policy, PAD).collate([*pairs, three])
    with pytest.raises(UserError, match=r"row 0: dpo needs .* and the row has 0; fill them in with reference_of"):
        DpoTask(policy, PAD).collate(made([2]))
    assert DpoTask(policy, PAD, DpoSettings(reference_free=True)).collate(made([2])).size == 1
    with pytest.raises(UserError, match="row 0: pro compares answers, and there is 1"):
        ProTask(policy, PAD).collate([one])
    for quality in ((), (1.0,), (1.0, math.nan, 0.0)):
        with pytest.raises(UserError, match="give the rewards of all of them"):
            ProTask(policy, PAD).collate([RankedRow("x", three.answers, quality)])
    with pytest.raises(UserError, match="row x: answers must stand best first"):
        ProTask(policy, PAD).collate([RankedRow("x", three.answers, (1.0, 2.0, 0.0))])


@pytest.mark.parametrize("kind", ["dpo", "pro"])
def test_training_moves_the_better_answers_ahead(kind, policy, tmp_path):
    rows = reference_of(made([2] * 8, seed=11), Reader(policy, PAD))
    task = DpoTask(policy, PAD) if kind == "dpo" else ProTask(policy, PAD)
    length = FitSettings(batch_size=4, micro_tokens=60, epochs=10, optimiser=OptimiserSettings(learning_rate=3e-3))
    before = evaluate(task, rows)
    fit(task, rows, rows, length, RunFolder(tmp_path / "run"), stage="policy")
    after = evaluate(task, rows)
    loss = "preference" if kind == "dpo" else "rank"
    assert after[loss] < before[loss] - 0.05
    assert after["accuracy"] > before["accuracy"]

"""Offline policy gradients: the loss against a slow form in float64, which rows are drawn, what cannot be learned."""

import copy
import math
import random
from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, evaluate, fit
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import Reader
from holdfast.training.annotate import Annotations
from holdfast.training.offline import OfflineRow, OfflineSettings, OfflineTask, offline_rows, plan_rows

VOCABULARY, PAD = 30, 0
PLAIN = {"nll": {"sampling": "shuffle"}, "a_lol_kl": {"beta": 0.1}}
METHODS = ("nll", "wbc", "r_gold", "r_lol", "a_lol", "a_lol_ref_free", "a_lol_seq", "a_lol_kl")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(method, **changed):
    return OfflineSettings(method=method, **PLAIN.get(method, {}) | changed)


def encoded(asked, given, name=""):
    mask = [False] * len(asked) + [True] * len(given)
    return Encoded([*asked, *given], mask, mask, len(mask) - 1, len(asked), id=name)


def sharp(seed, **shape):
    """A policy whose head tells tokens apart, so that log-probabilities say something."""
    model = tiny_policy(VOCABULARY, hidden=32, seed=seed, **shape)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def rows():
    """Twelve answers of several lengths to six prompts, read by another policy; advantages of both signs."""
    rng, found = random.Random(0), []
    for p in range(6):
        asked = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(2, 9))]
        for k in range(2):
            given = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 6))]
            found.append(encoded(asked, given, f"{p}-{k}"))
    ref = Reader(sharp(1), PAD).logprobs(found)
    return [
        OfflineRow(row, rng.random(), rng.uniform(-0.3, 0.7), line[: len(row.response_ids)].clone())
        for row, line in zip(found, ref)
    ]


@pytest.fixture
def policy():
    return sharp(0)


def slow(policy, rows, method, *, clip=0.9, floor=0.1, beta=0.1, power=1.0):
    """The loss of each row, token by token, and a loss of the same gradient; float64, without the project's losses."""
    exact, values, leading = copy.deepcopy(policy).double(), [], 0.0
    for row in rows:
        ids, start = row.tokens.ids, row.tokens.prompt_length
        logits = exact(input_ids=torch.tensor([ids])).logits[0]
        logp = [logits[t - 1].log_softmax(-1)[ids[t]] for t in range(start, len(ids))]
        ref = row.ref.double().tolist()
        distance = sum(a.item() - b for a, b in zip(logp, ref))
        advantage = max(row.advantage, 0.0) ** power
        own = {
            "nll": 1.0,
            "wbc": row.reward**power,
            "r_gold": row.reward**power,
            "r_lol": row.reward**power * min(max(math.exp(distance), 1 - clip), 1 + clip),
            "a_lol": advantage * min(max(math.exp(distance), 1 - clip), 1 + clip),
            "a_lol_kl": advantage - beta,
        }.get(method, advantage)
        value = 0.0
        for here, there in zip(logp, ref):
            weight = own
            if method == "r_gold":
                weight *= max(floor, math.exp(here.item()))
            if method == "a_lol_seq":
                weight *= min(max(math.exp(here.item() - there), 1 - clip), 1 + clip)
            value += -weight * here.item() - (beta * there if method == "a_lol_kl" else 0.0)
            leading = leading - weight * row.weight * here
        values.append(value * row.weight)
    return exact, values, leading


def gradient(model, total):
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found, wanted, share):
    assert found.keys() == wanted.keys()
    largest = max(float(values.abs().max()) for values in wanted.values())
    assert largest > 1e-3, "gradients of zero would prove nothing"
    for name, values in wanted.items():
        torch.testing.assert_close(found[name].double(), values.double(), rtol=0, atol=share * largest)


def learned(task, rows, key="offline"):
    """The mean of the loss and its gradient, from one batch."""
    term = task.loss(task.collate(rows))[key]
    return term.mean.item(), gradient(task.model, term.mean)


@pytest.mark.parametrize("normalise", ["sum", "token_mean"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_those_of_the_slow_form(method, normalise, rows, policy):
    rows = [OfflineRow(**vars(row) | {"weight": 0.5 + i % 3}) for i, row in enumerate(rows)]
    task = OfflineTask(policy, PAD, settings(method, normalise=normalise))
    value, found = learned(task, rows)
    exact, values, leading = slow(policy, rows, method)
    count = len(rows) if normalise == "sum" else sum(len(row.tokens.response_ids) for row in rows)
    # float32 against float64, and ratios of sums of ten logits that reach 20
    assert value == pytest.approx(sum(values) / count, rel=1e-4)
    assert_equal_gradients(found, gradient(exact, leading / count), 1e-4)


@pytest.mark.parametrize("method", ["wbc", "a_lol_ref_free", "a_lol_kl"])
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_the_worth_has_its_power_in_the_loss(method, power, rows, policy):
    value, _ = learned(OfflineTask(policy, PAD, settings(method, loss_exponent=power)), rows)
    _, values, _ = slow(policy, rows, method, power=power)
    assert value == pytest.approx(sum(values) / len(rows), rel=1e-4)  # float32 against float64


def test_without_the_filter_bad_answers_are_unlearned(rows, policy):
    free = settings("a_lol_ref_free", filter_nonpositive=False, sampling="shuffle", loss_exponent=0.5)
    value, _ = learned(OfflineTask(policy, PAD, free), rows)
    _, likelihood, _ = slow(policy, rows, "nll")
    worth = [math.copysign(math.sqrt(abs(row.advantage)), row.advantage) for row in rows]
    assert min(worth) < 0
    assert value == pytest.approx(sum(map(math.prod, zip(worth, likelihood))) / len(rows), rel=1e-4)  # float32


def test_every_number_that_is_watched(rows, policy):
    _, likelihood, _ = slow(policy, rows, "nll")
    tokens = [len(row.tokens.response_ids) for row in rows]
    distance = [-value - float(row.ref.double().sum()) for value, row in zip(likelihood, rows)]
    found = evaluate(OfflineTask(policy, PAD, settings("a_lol")), rows, micro_tokens=30)
    assert found["nll"] == pytest.approx(sum(likelihood) / sum(tokens), rel=1e-5)
    assert found["log_ratio"] == pytest.approx(sum(distance) / len(rows), rel=1e-4)  # a difference of sums of float32
    assert found["clip_low"] == pytest.approx(sum(value < math.log(0.1) for value in distance) / len(rows))
    assert found["clip_high"] == pytest.approx(sum(value > math.log(1.9) for value in distance) / len(rows))
    assert 0 < found["clip_low"] < 1
    assert 0 < found["clip_high"] < 1
    below = evaluate(OfflineTask(policy, PAD, settings("a_lol_kl", beta=0.3)), rows)["below_beta"]
    assert below == pytest.approx(sum(row.advantage < 0.3 for row in rows) / len(rows))
    by_token = evaluate(OfflineTask(policy, PAD, settings("a_lol_seq")), rows)
    assert by_token["log_ratio"] == pytest.approx(sum(distance) / sum(tokens), rel=1e-4)  # as above
    assert set(evaluate(OfflineTask(policy, PAD, settings("a_lol", clip=None)), rows)) == {
        "offline",
        "nll",
        "log_ratio",
    }


def test_watched_numbers_have_no_weight_and_counts_are_announced(rows, policy):
    for method in METHODS:
        task = OfflineTask(policy, PAD, settings(method))
        batch = task.collate(rows)
        terms = task.loss(batch)
        assert {name: float(term.count) for name, term in terms.items()} == task.counts(batch)
        assert {name for name in terms if task.weights.get(name, 1.0) != 0} == {"offline"}
        assert not any(term.total.requires_grad for name, term in terms.items() if name != "offline")


@pytest.mark.parametrize("method", ["a_lol", "a_lol_seq"])
def test_the_ratio_begins_at_one_whatever_dropout_the_policy_has(method, rows):
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
    policy = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    policy.train()
    ref = Reader(policy, PAD).logprobs([row.tokens for row in rows])
    rows = [OfflineRow(**vars(row) | {"ref": line[: len(row.ref)]}) for row, line in zip(rows, ref)]
    task = OfflineTask(policy, PAD, settings(method))
    policy.train()
    batch = task.collate(rows)
    logprobs, _ = Reader(policy.eval(), PAD).read(batch.tokens)
    ratios = (logprobs.detach() - batch.ref).exp()[batch.tokens.mask]
    assert float((ratios - 1).abs().max()) < 1e-5
    policy.train()
    free = OfflineTask(policy, PAD, settings("a_lol_ref_free"))
    assert_equal_gradients(learned(task, rows)[1], learned(free, rows)[1], 1e-5)


def test_padding_order_and_cut_change_nothing(rows, policy):
    policy.double()
    for share in ("auto", "off"):
        task = OfflineTask(policy, PAD, settings("a_lol", share_prompt=share))
        value, whole = learned(task, rows)
        shuffled = random.Random(1).sample(rows, len(rows))
        other, found = learned(OfflineTask(policy, 7, settings("a_lol", share_prompt=share)), shuffled)
        assert other == pytest.approx(value, rel=1e-6)
        assert_equal_gradients(found, whole, 1e-6)
        for budget in (1, 40, 100):
            parts = task.portions(shuffled, budget)
            assert sorted(id(row) for part in parts for row in part) == sorted(map(id, rows))
            longest = [max(row.length for row in part) for part in parts]
            assert longest[0] == max(longest)
            totals = [task.loss(task.collate(part))["offline"].total for part in parts]
            assert_equal_gradients(gradient(policy, torch.stack(totals).sum() / len(rows)), whole, 1e-6)
        assert len(task.portions(rows, 1)) == len(rows)


def test_answers_to_one_prompt_are_read_together_within_the_budget(policy):
    asked = list(range(1, 21))
    rows = [OfflineRow(encoded(asked, [5, k + 1])) for k in range(4)]
    rows += [OfflineRow(encoded([k + 1, 3, 4], [5])) for k in range(3)]
    task = OfflineTask(policy, PAD, settings("a_lol_ref_free"))
    first, *rest = task.portions(rows, 28)
    assert [row.tokens.ids for row in first] == [row.tokens.ids for row in rows[:4]]
    assert sum(map(len, rest)) == 3
    assert len(OfflineTask(policy, PAD, settings("a_lol_ref_free", share_prompt="off")).portions(rows, 28)) > 3


def test_answers_without_advantage_teach_nothing(rows, policy):
    rows = [OfflineRow(**vars(row) | {"advantage": -row.reward}) for row in rows]
    for method in ("a_lol", "a_lol_ref_free", "a_lol_seq"):
        value, found = learned(OfflineTask(policy, PAD, settings(method)), rows)
        assert value == 0
        assert all(bool((values == 0).all()) for values in found.values())
    with pytest.raises(UserError, match=r"none of 12 answers .* with a_lol: the largest advantage is -"):
        plan_rows(rows, settings("a_lol"), FitSettings())


def test_only_the_advantage_counts_for_a_lol_and_only_the_reward_for_wbc(rows, policy):
    """R + c and V + c have the same advantage."""
    moved = [OfflineRow(**vars(row) | {"reward": row.reward + 1}) for row in rows]
    for method in ("a_lol", "a_lol_ref_free", "a_lol_seq"):
        task = OfflineTask(policy, PAD, settings(method))
        assert learned(task, moved)[0] == learned(task, rows)[0]
    for method in ("wbc", "r_gold", "r_lol"):
        task = OfflineTask(policy, PAD, settings(method))
        assert abs(learned(task, moved)[0] - learned(task, rows)[0]) > 0.01


def test_an_advantage_that_is_the_reward_makes_r_lol(rows, policy):
    rows = [OfflineRow(**vars(row) | {"advantage": row.reward}) for row in rows]
    one, other = (learned(OfflineTask(policy, PAD, settings(method)), rows) for method in ("a_lol", "r_lol"))
    assert one[0] == other[0]
    wide = learned(OfflineTask(policy, PAD, settings("a_lol", clip=1e30)), rows)
    assert wide[0] == learned(OfflineTask(policy, PAD, settings("a_lol", clip=None)), rows)[0]


@pytest.mark.parametrize("pad", ["eos", "other"])
def test_exactly_the_answer_and_the_token_that_ends_it_are_read(pad, policy):
    template = Template(train_tokenizer(["red green blue dark sea sky ?"], 64, "word"), max_length=40)
    policy = sharp(0) if len(template.tokenizer) <= VOCABULARY else tiny_policy(len(template.tokenizer), hidden=32)
    asked = (("sea ?", "blue"), ("dark sky ?", "red green sea"))
    rows = [OfflineRow(template.answered(Conversation.ask(q, id=q).answer(a))) for q, a in asked]
    task = OfflineTask(policy, template.end_id if pad == "eos" else 3, settings("nll"))
    batch = task.collate(rows)
    assert batch.tokens.mask.sum(-1).tolist() == [2, 4]
    assert task.counts(batch) == {"offline": 2.0, "nll": 6.0}
    assert [row.tokens.response_ids[-1] for row in rows] == [template.end_id] * 2
    rows = [OfflineRow(**vars(row) | {"ref": torch.zeros(len(row.tokens.response_ids))}) for row in rows]
    _, values, _ = slow(policy, rows, "nll")
    assert learned(task, rows)[0] == pytest.approx(sum(values) / 2, rel=1e-5)


def five(**known):
    advantages, rewards = [0.3, -0.1, 0.1, 0.0, 0.6], [0.8, 0.4, 0.0, 0.4, 0.4]
    return [
        OfflineRow(encoded([3], [4], str(i)), r, a, torch.zeros(1), **known)
        for i, (r, a) in enumerate(zip(rewards, advantages))
    ]


def drawn(planned):
    """How often each row is drawn, as shares, by name."""
    names = [planned.rows[i].tokens.id for s in range(1, planned.order.steps + 1) for i in planned.order.chosen(s)]
    return {name: count / len(names) for name, count in Counter(names).items()}


def test_better_answers_are_drawn_more_often_in_fewer_steps():
    planned = plan_rows(five(), settings("a_lol"), FitSettings(batch_size=1, epochs=1800))
    assert [row.tokens.id for row in planned.rows] == ["0", "2", "4"]
    assert planned.order.steps == 5400
    assert planned.facts == pytest.approx(
        {"rows": 5, "kept": 3, "kept_share": 0.6, "steps": 5400, "effective_size": 1 / (0.3**2 + 0.1**2 + 0.6**2)}
    )
    # Three standard errors of a share of 5400 draws are 0.02.
    assert drawn(planned) == pytest.approx({"0": 0.3, "2": 0.1, "4": 0.6}, abs=0.02)


def test_all_rows_and_steps_are_kept_where_rewards_weigh():
    planned = plan_rows(five(), settings("wbc"), FitSettings(batch_size=5, epochs=2000))
    assert (len(planned.rows), planned.order.steps) == (5, 2000)
    # Three standard errors of a share of 10,000 draws are 0.015.
    assert drawn(planned) == pytest.approx({"0": 0.4, "1": 0.2, "3": 0.2, "4": 0.2}, abs=0.015)


def test_exponents_of_priority_and_steps_that_are_not_scaled():
    asked = settings("a_lol", priority_exponent=2.0, scale_steps_by_kept=False)
    planned = plan_rows(five(), asked, FitSettings(batch_size=4, epochs=500))
    assert planned.order.steps == 1000
    # Three standard errors of a share of 4000 draws are 0.02.
    assert drawn(planned) == pytest.approx({"0": 9 / 46, "2": 1 / 46, "4": 36 / 46}, abs=0.02)


def test_uniform_draws_and_shuffles_treat_the_kept_alike():
    uniform = plan_rows(five(), settings("a_lol", sampling="uniform"), FitSettings(batch_size=5, epochs=1000))
    assert uniform.order.steps == 600
    # Three standard errors of a share of 3000 draws are 0.026.
    assert drawn(uniform) == pytest.approx(dict.fromkeys("024", 1 / 3), abs=0.026)
    shuffled = plan_rows(five(), settings("a_lol", sampling="shuffle"), FitSettings(batch_size=2, epochs=3))
    assert shuffled.order.steps == 6
    assert drawn(shuffled) == pytest.approx(dict.fromkeys("024", 1 / 3), abs=1e-9)
    assert shuffled.facts["effective_size"] == pytest.approx(3)
    everyone = settings("a_lol_ref_free", sampling="shuffle", filter_nonpositive=False)
    assert len(plan_rows(five(), everyone, FitSettings()).rows) == 5
    assert len(plan_rows(five(), settings("nll"), FitSettings()).rows) == 5


def test_one_step_is_left_however_few_rows_are():
    assert plan_rows(five(), settings("a_lol"), FitSettings(batch_size=32)).order.steps == 1


def test_rows_that_lack_what_the_method_reads_are_named(policy):
    row = encoded([3], [4, 5], "lost")
    known = five()
    with pytest.raises(UserError, match=r"wbc weighs answers by their reward, and 1 of 6 have none \(lost\)"):
        plan_rows([*known, OfflineRow(row, advantage=0.1)], settings("wbc"), FitSettings())
    with pytest.raises(UserError, match=r"by their advantage, and 1 of 6 have none \(lost\)"):
        plan_rows([*known, OfflineRow(row, reward=0.1)], settings("a_lol"), FitSettings())
    with pytest.raises(UserError, match=r"r_gold would push .* 1 of 6 have one \(the least is -2\)"):
        plan_rows([*known, OfflineRow(row, reward=-2.0)], settings("r_gold"), FitSettings())
    with pytest.raises(UserError, match="none of 0 answers"):
        plan_rows([], settings("nll"), FitSettings())
    with pytest.raises(UserError, match="the largest reward is 0"):
        plan_rows([OfflineRow(row, reward=0.0)], settings("wbc"), FitSettings())
    task = OfflineTask(policy, PAD, settings("a_lol"))
    with pytest.raises(UserError, match=r"row lost: .* of 2 response tokens, and there are none; annotate"):
        task.collate([OfflineRow(row, advantage=0.1)])
    with pytest.raises(UserError, match=r"row lost: .* there are those of 3"):
        task.collate([OfflineRow(row, advantage=0.1, ref=torch.zeros(3))])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"method": "nll"}, "nll knows no reward to draw by; set sampling"),
        ({"method": "wbc", "clip": 0.2}, "clip=0.2 has no effect with method=wbc"),
        ({"method": "a_lol", "floor": 0.2}, "floor=0.2 has no effect"),
        ({"method": "a_lol", "beta": 0.2}, "beta=0.2 has no effect"),
        ({"method": "a_lol_seq", "level": "geometric"}, "level=geometric has no effect"),
        ({"method": "wbc", "value_margin": 0.1}, "value_margin=0.1 has no effect"),
        ({"method": "wbc", "filter_nonpositive": False}, "filter_nonpositive=False has no effect"),
        ({"method": "nll", "sampling": "shuffle", "loss_exponent": 2.0}, "loss_exponent=2.0 has no effect"),
        ({"sampling": "uniform", "priority_exponent": 2.0}, "priority_exponent=2.0 has no effect"),
        ({"sampling": "shuffle", "scale_steps_by_kept": False}, "scale_steps_by_kept=False has no effect"),
        ({"filter_nonpositive": False}, "never draws an answer without a positive advantage"),
        ({"method": "a_lol_kl"}, "a_lol_kl with beta=0 is a_lol_ref_free"),
        ({"clip": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        OfflineSettings(**given)


def test_settings_survive_being_written_out():
    for method in METHODS:
        asked = settings(method, **({"clip": None} if method in ("wbc", "a_lol") else {}))
        assert OfflineSettings(**asked.model_dump()) == asked


def test_rows_of_annotated_answers(rows):
    answers = [row.tokens for row in rows[:3]]
    lengths = tuple(len(row.response_ids) for row in answers)
    found = offline_rows(
        answers,
        Annotations(
            ids=tuple(row.id for row in answers),
            rewards=torch.tensor([0.5, 0.25, 1.0]),
            value=torch.tensor([0.25, 0.5, 0.5]),
            advantage=torch.tensor([0.25, -0.25, 0.5]),
            ref=torch.nn.utils.rnn.pad_sequence([row.ref for row in rows[:3]], batch_first=True),
            lengths=lengths,
            truncated=torch.zeros(3, dtype=torch.bool),
            facts={},
        ),
        weight=torch.tensor([1.0, 0.5, 0.25]),
    )
    assert [(row.reward, row.advantage, row.weight) for row in found] == [
        (0.5, 0.25, 1.0),
        (0.25, -0.25, 0.5),
        (1.0, 0.5, 0.25),
    ]
    assert all(torch.equal(row.ref, other.ref) for row, other in zip(found, rows))
    assert [row.tokens.id for row in found] == ["0-0", "0-1", "1-0"]


def test_training_raises_what_is_better_and_tells_of_it_every_step(rows, policy, tmp_path):
    ref = Reader(policy, PAD).logprobs([row.tokens for row in rows])
    rows = [OfflineRow(**vars(row) | {"ref": line[: len(row.ref)]}) for row, line in zip(rows, ref)]
    asked, length = (
        settings("a_lol"),
        FitSettings(batch_size=6, micro_tokens=40, epochs=12, optimiser=OptimiserSettings(learning_rate=1e-2)),
    )
    planned, run = plan_rows(rows, asked, length), RunFolder(tmp_path / "run")
    task = OfflineTask(policy, PAD, asked)
    fit(task, planned.rows, rows, length, run, stage="policy", order=planned.order)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= planned.order.steps
    assert all(
        f'"{name}"' in lines[0] for name in ("offline", "nll", "log_ratio", "clip_low", "clip_high", "grad_norm")
    )
    now = Reader(policy, PAD).logprobs([row.tokens for row in rows]).sum(-1)
    gained = now - ref.sum(-1)
    best = max(range(len(rows)), key=lambda i: rows[i].advantage)
    assert gained[best] > 1
    kept = torch.tensor([row.advantage > 0 for row in rows])
    assert gained[kept].mean() > gained[~kept].mean()

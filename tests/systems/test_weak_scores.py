"""Reward and cost models that learn from a weaker model's labels, end to end on a very small pocket world."""

import json
from dataclasses import replace

import pytest
import torch

from holdfast import config
from holdfast.data.schema import Conversation, DualPair
from holdfast.data.sources import write_jsonl
from holdfast.engine.log import RunFolder
from holdfast.errors import UserError
from holdfast.losses.preference import bradley_terry
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.preference.weak_labels import Calibration, WeakLabels
from holdfast.systems import a_lol, hc_rlhf, mo_grpo, reading, recipe, score_model, stages, weak_scores
from holdfast.systems.weak_scores import LabelSettings

SMALL = (
    *("pocket={conversations: 300, pairs: 400, prompts: 200, hidden: 32}", "attributes=null"),
    *("sft.epochs=1", "reward.fit.epochs=1", "cost.fit.epochs=1"),
)


def run(folder, *overrides):
    settings = config.load(score_model.ScoreModelSettings, recipe("score_model/pocket"), [*SMALL, *overrides])
    return score_model.run(settings, folder)


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weak") / "run"
    run(folder)
    return folder / "models"


def table(folder, axis):
    lines = (folder / "weak_labels" / f"{axis}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_weak_model_labels_and_a_new_one_learns(weak, tmp_path):
    given = [f"labels={{from: weak_model, reward: {weak / 'reward'}, cost: {weak / 'cost'}, temperature: 0.1}}"]
    summary = run(tmp_path / "run", *given)
    rows = table(tmp_path / "run", "reward")
    assert len(rows) == summary["rows"]["pairs"]
    assert not any({"helpful_id", "safer_id", "label", "gold"} & row.keys() for row in rows)
    told = summary["reward_labels"]
    assert told["from"].endswith("reward")
    assert 0 <= told["agreement_with_people"]["value"] <= 1
    assert summary["reward_accuracy"]["n"] > 0, "judged by people"
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"transfer", "absolute"} <= next(row for row in steps if row["stage"] == "cost").keys()
    assert {"transfer"} <= next(row for row in steps if row["stage"] == "reward").keys()


def test_one_axis_may_stay_with_the_people(weak, tmp_path):
    summary = run(tmp_path / "run", f"labels={{from: weak_model, reward: {weak / 'reward'}}}")
    assert "reward_labels" in summary
    assert "cost_labels" not in summary
    assert not (tmp_path / "run" / "weak_labels" / "cost.jsonl").exists()


def pairs(count=6):
    asked = [Conversation.ask(f"dark sky {i} ?") for i in range(count)]
    return [
        DualPair(id=str(i), prompt=one, responses=("sea", "red green"), helpful_id=i % 2, safer_id=1)
        for i, one in enumerate(asked)
    ]


def told(scores, temperature=1.0):
    margins = (scores[:, 1] - scores[:, 0])[:, None]
    logits = torch.cat([torch.zeros_like(margins), margins], 1)
    ids = tuple(str(i) for i in range(len(scores)))
    labels = WeakLabels(ids, logits, "small", Calibration("temperature", T=temperature), kind="margin")
    return weak_scores.Told(labels, scores / temperature, pairs())


@pytest.fixture
def bench():
    from holdfast.data.template import Template
    from holdfast.data.tokenizer import train_tokenizer

    template = Template(train_tokenizer(["dark sky sea red green 0 1 2 3 4 5 ?"], 64, "word"), max_length=32)
    torch.manual_seed(0)
    network = from_policy(tiny_policy(len(template.tokenizer)), ("score",), init_std=0.5, seed=1)
    return template, network


def fit():
    return score_model.FitSettings()


def test_the_losses_are_those_written_out(bench):
    template, network = bench
    scores = torch.tensor([[0.3, -0.2], [1.0, 2.0], [-1.0, 0.5], [0.0, 0.0], [2.0, -2.0], [0.1, 0.4]])
    settings = LabelSettings(source="weak_model", cost={"name": "x"}, temperature=0.5, scale=0.7)
    task, rows = weak_scores.weak_task(settings, "cost", network, fit(), template, told(scores, 0.5))
    batch = task.collate(rows)
    terms = task.loss(batch)
    first, second, harm = task._costs(batch.inputs)
    y = torch.sigmoid((scores[:, 1] - scores[:, 0]) / 0.5)
    s = torch.sigmoid(scores / 0.5)
    m = (second - first).double()
    ranked = -(y * torch.sigmoid(m).log() + (1 - y) * torch.sigmoid(-m).log()).sum()
    assert float(terms["transfer"].total) == pytest.approx(float(ranked), rel=1e-5)
    c = torch.cat([first, second]).double()
    label = torch.cat([s[:, 0], s[:, 1]])
    assert harm.tolist() == pytest.approx(label.tolist(), abs=1e-6)
    absolute = -(label * torch.sigmoid(c).log() + (1 - label) * torch.sigmoid(-c).log()).sum()
    assert float(terms["absolute"].total) == pytest.approx(float(absolute), rel=1e-5)
    assert task.counts(batch) == {"transfer": 6.0, "absolute": 12.0}
    assert task.weights == {"absolute": 1.4}


def test_sure_labels_are_bradley_terry(bench):
    template, network = bench
    scores = torch.tensor([[0.0, 60.0]] * 6)
    settings = LabelSettings(source="weak_model", reward={"name": "x"})
    task, rows = weak_scores.weak_task(settings, "reward", network, fit(), template, told(scores))
    batch = task.collate(rows)
    margin = task.forward(batch.inputs)[:, 1] - task.forward(batch.inputs)[:, 0]
    wanted = bradley_terry(margin, torch.zeros_like(margin)).total
    assert float(task.loss(batch)["transfer"].total) == pytest.approx(float(wanted), rel=1e-5)


def test_agreement_counts_the_axis_that_was_labelled():
    scores = torch.tensor([[0.0, 1.0]] * 6)
    found = weak_scores.agreement(told(scores), "reward")
    assert found["value"] == pytest.approx(0.5)
    # The safer answer is always the second, so the first is the more harmful one, and the weak model calls it safer.
    assert weak_scores.agreement(told(scores), "cost")["value"] == 0
    unknown = [one.model_copy(update={"helpful_id": None}) for one in pairs()]
    assert weak_scores.agreement(replace(told(scores), pairs=unknown), "reward") is None


def test_from_is_the_name_in_files():
    assert LabelSettings.model_validate({"from": "weak_model", "reward": "folder"}).source == "weak_model"
    assert LabelSettings.model_validate({"source": "data"}) == LabelSettings()


@pytest.mark.parametrize(
    "given, words",
    [
        ("labels={from: weak_model}", "needs the folder of the weak model"),
        ("labels={reward: folder}", "reward: only a weak model reads this"),
        ("labels={from: weak_model, reward: f, learn: {fit: {epochs: 9}}}", "labels.learn.fit has no effect"),
        ("labels={from: strong_model}", "labels.from"),
        ("labels={from: weak_model, reward: f, scale: 2}", "labels.scale weighs the word of a weak cost model"),
        ("labels={from: weak_model, reward: f, learn: {prior: half}}", "labels.learn.prior has no effect"),
        ("labels={from: weak_model, reward: f, learn: {min_pool: 2}}", "labels.learn.min_pool has no effect"),
    ],
)
def test_contradictions(given, words):
    with pytest.raises(UserError, match=words):
        config.load(score_model.ScoreModelSettings, recipe("score_model/pocket"), [given])


def test_a_label_needs_a_model_that_learns_it():
    with pytest.raises(UserError, match=r"labels.reward labels pairs for a reward model, and none is trained"):
        config.load(mo_grpo.MoGrpo, recipe("mo_grpo/pocket"), ["labels={from: weak_model, reward: f}"])
    given = ["joint_scores=true", "labels={from: weak_model, reward: f}"]
    with pytest.raises(UserError, match="part them"):
        config.load(hc_rlhf.HcRlhf, recipe("hc_rlhf/pocket"), given)


@pytest.mark.parametrize("loss", ["reward: {loss: {margin: 1}}", "cost: {loss: {scale: 2}}"])
def test_a_loss_that_a_weak_model_replaces_is_refused(loss):
    axis, moved = loss.split(":")[0], loss.split("{")[2].split(":")[0]
    given = [f"{axis}={loss.split(': ', 1)[1]}", f"labels={{from: weak_model, {axis}: f}}"]
    with pytest.raises(UserError, match=rf"{axis}\.loss\.{moved} has no effect on what a weak model labels"):
        config.load(score_model.ScoreModelSettings, recipe("score_model/pocket"), ["attributes=null", *given])


def test_what_learns_from_people_alone_is_refused():
    labels = "labels={from: weak_model, reward: f}"
    with pytest.raises(UserError, match=r"attributes.preference learns people's preferences"):
        config.load(
            score_model.ScoreModelSettings, recipe("score_model/pocket"), ["attributes.preference=true", labels]
        )
    for method in ("dpo", "pro"):
        with pytest.raises(UserError, match=f"{method} learns people's preferences"):
            config.load(a_lol.ALol, recipe("a_lol/pocket"), [f"{method}={{}}", "offline=null", "reward={}", labels])


def unjudged(count=120):
    words = ("sea", "red", "green", "dark", "sky")
    return [
        DualPair(id=str(i), prompt=Conversation.ask(f"{words[i % 5]} sky {i} ?"), responses=(words[i % 4], "no"))
        for i in range(count)
    ]


def test_pairs_that_nobody_judged_can_be_labelled(weak, tmp_path):
    write_jsonl(unjudged(), tmp_path / "pairs.jsonl")
    summary = run(
        tmp_path / "run",
        "pocket=null",
        "sft=null",
        f"data={tmp_path / 'pairs.jsonl'}",
        f"model={weak / 'sft'}",
        f"labels={{from: weak_model, reward: {weak / 'reward'}, cost: {weak / 'cost'}}}",
    )
    assert summary["reward_accuracy"] is None
    assert summary["cost_accuracy"] is None
    assert summary["reward_labels"]["agreement_with_people"] is None
    assert (tmp_path / "run" / "models" / "cost").is_dir()


def test_pairs_that_nobody_judged_are_not_imitated(tmp_path, capsys):
    judged = unjudged(3)
    judged[1] = judged[1].model_copy(update={"safer_id": 1})
    write_jsonl(judged, tmp_path / "pairs.jsonl")
    found = reading.conversations(reading.Source(path=str(tmp_path / "pairs.jsonl")), RunFolder(tmp_path / "run"))
    assert [one.response for one in found] == ["no"]
    assert "2 pairs that nobody judged are not imitated" in capsys.readouterr().err


def ask(weak, folder, pairs, **text):
    settings = LabelSettings(source="weak_model", reward={"name": str(weak / "reward")}, temperature=text.pop("T", 1.0))
    return weak_scores.asked(settings, "reward", pairs, RunFolder(folder), stages.TextSection(**text))


def test_a_table_that_stands_is_read_and_a_stale_one_refused(weak, tmp_path, monkeypatch):
    first = ask(weak, tmp_path / "run", pairs())
    with pytest.raises(UserError, match=r"stale weak labels: .* of another model or temperature"):
        ask(weak, tmp_path / "run", pairs(), T=2.0)
    with pytest.raises(UserError, match=r"stale weak labels: .* of another model or temperature"):
        ask(weak.parent / "models", tmp_path / "run", pairs(), system="be kind")
    with pytest.raises(UserError, match="is stale: its dataset_sha256"):
        ask(weak, tmp_path / "run", [one.model_copy(update={"responses": ("x", "y")}) for one in pairs()])
    monkeypatch.setattr(weak_scores.ModelScorer, "score", None)
    again = ask(weak, tmp_path / "run", pairs())
    assert torch.equal(again.scores, first.scores)
    assert torch.equal(again.table.p, first.table.p)


def test_a_prompt_too_long_for_the_weak_model_is_named_or_left_out(weak, tmp_path, capsys):
    given = pairs()
    given[2] = given[2].model_copy(update={"prompt": Conversation.ask("dark " * 200)})
    with pytest.raises(UserError, match=r"labels.reward: the prompt of 2 leaves the weak model no room"):
        ask(weak, tmp_path / "error", given, max_length=64)
    found = ask(weak, tmp_path / "skip", given, max_length=64, on_long_prompt="skip")
    assert found.table.ids == ("0", "1", "3", "4", "5") == tuple(one.id for one in found.pairs)
    assert "1 pairs are too long for the weak model" in capsys.readouterr().err

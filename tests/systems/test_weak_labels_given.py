"""A weak model's labels with a labeller of a few hundred weights: directions, staleness, and what is learned from."""

import math

import pytest
import torch

from holdfast.data.schema import Conversation, DualPair
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.models.tiny import tiny_policy
from holdfast.preference.score import ModelScorer
from holdfast.systems import stages, weak_scores
from holdfast.systems.weak_scores import LabelSettings
from holdfast.training.transfer import TransferSettings


def network_of(words, names, seed=1):
    torch.manual_seed(0)
    return from_policy(tiny_policy(len(words), hidden=16, layers=1, heads=2), names, init_std=1.0, seed=seed)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A saved model with the scores `reward` and `cost`, and the template that feeds it."""
    words = train_tokenizer(["dark sky sea red green 0 1 2 3 4 5 ? be kind"], 64, "word")
    template, folder = Template(words, max_length=32), tmp_path_factory.mktemp("weak")
    model = network_of(words, ("reward", "cost"))
    answered = [one.prompt.answer(text) for one in pairs() for text in one.responses]
    stages.keep(RunFolder(folder), model, template, answered, "weak")
    return str(folder / "models" / "weak"), template, model


def pairs(count=6):
    asked = [Conversation.ask(f"dark sky {i} ?") for i in range(count)]
    return [
        DualPair(id=str(i), prompt=one, responses=("sea", "red green") if i % 2 else ("green sky", "sea dark"))
        for i, one in enumerate(asked)
    ]


def ask(small, folder, axis="reward", given=None, temperature=1.0, **text):
    settings = LabelSettings(source="weak_model", **{axis: {"name": small[0]}}, temperature=temperature)
    section = stages.TextSection(**{"max_length": 32, **text})
    return weak_scores.asked(settings, axis, given or pairs(), RunFolder(folder), section)


@pytest.mark.parametrize("column, axis", [(0, "reward"), (1, "cost")])
def test_the_score_of_the_axis_says_which_answer_has_more_of_it(column, axis, small, tmp_path):
    told = ask(small, tmp_path / "run", axis, temperature=0.5)
    answers = [one.prompt.answer(text) for one in pairs() for text in one.responses]
    scores = ModelScorer(small[2], small[1]).score(answers)[:, column].view(-1, 2) / 0.5
    assert torch.allclose(told.scores, scores, atol=1e-5)
    assert torch.allclose(told.table.p[:, 1], torch.sigmoid(scores[:, 1] - scores[:, 0]), atol=1e-5)
    assert len({bool(p > 0.5) for p in told.table.p[:, 1]}) == 2, "both orders occur"
    assert (tmp_path / "run" / "weak_labels" / f"{axis}.jsonl").is_file()


def test_a_model_with_one_score_of_another_name_labels_either_axis():
    assert weak_scores._column(("score",), "cost") == 0
    assert weak_scores._column(("reward", "cost"), "cost") == 1


def test_labels_that_stand_are_read_and_stale_ones_refused(small, tmp_path, monkeypatch):
    first = ask(small, tmp_path / "run")
    for changed in ({"temperature": 2.0}, {"system": "be kind"}):
        with pytest.raises(UserError, match="of another model or temperature"):
            ask(small, tmp_path / "run", **changed)
    others = [one.model_copy(update={"responses": ("sky", "dark")}) for one in pairs()]
    for given in (others, pairs(5), [one.model_copy(update={"prompt": Conversation.ask("?")}) for one in pairs()]):
        with pytest.raises(UserError, match="is stale: its dataset_sha256"):
            ask(small, tmp_path / "run", given=given)
    monkeypatch.setattr(weak_scores.ModelScorer, "score", None)
    again = ask(small, tmp_path / "run")
    assert torch.equal(again.scores, first.scores)


def test_long_prompts_stop_the_run_or_are_left_out(small, tmp_path):
    given = pairs(3)
    given[1] = given[1].model_copy(update={"prompt": Conversation.ask("dark " * 60)})
    with pytest.raises(UserError, match=r"labels\.reward: the prompt of 1 leaves the weak model no room"):
        ask(small, tmp_path / "error", given=given)
    found = ask(small, tmp_path / "skip", given=given, on_long_prompt="skip")
    assert found.table.ids == tuple(one.id for one in found.pairs) == ("0", "2")
    assert found.scores.shape == (2, 2)
    with pytest.raises(UserError, match="can read no prompt within"):
        ask(small, tmp_path / "none", given=given[1:2], on_long_prompt="skip")


@pytest.mark.parametrize("axis", ["reward", "cost"])
def test_the_stage_of_an_axis_learns_its_own_labels_as_long_as_it_is_told(axis, small, tmp_path, monkeypatch):
    told, template = ask(small, tmp_path / "run", axis), small[1]
    settings = LabelSettings(
        source="weak_model", **{axis: {"name": small[0]}}, learn=TransferSettings(kind="logconf", most=0.25)
    )
    seen = []
    monkeypatch.setattr(stages, "train", lambda *what: seen.extend(what))
    fit = FitSettings(epochs=7, batch_size=3)
    network = network_of(template.tokenizer, (axis,))
    weak_scores.learn(settings, axis, network, fit, RunFolder(tmp_path / "run"), template, told)
    task, rows, held_out, chosen, _, stage = seen
    assert (stage, held_out, chosen) == (axis, [], fit)
    assert task.settings == settings.learn.model_copy(update={"fit": fit})
    assert torch.stack([row.weak for row in rows]).tolist() == told.table.p.tolist()
    wanted = torch.sigmoid(told.scores).tolist() if axis == "cost" else [[0.0, 0.0]] * 6
    assert [list(row.input.absolute) for row in rows] == [pytest.approx(each) for each in wanted]
    logits = task.forward([row.input for row in rows])
    answers = [one.prompt.answer(text) for one in pairs() for text in one.responses]
    own = ModelScorer(network, template).score(answers)[:, 0].view(-1, 2)
    assert torch.allclose(logits[:, 1] - logits[:, 0], own[:, 1] - own[:, 0], atol=1e-5)


def test_what_people_said_of_a_pair():
    def said(axis, labels="none", **known):
        return weak_scores.judged(pairs(1)[0].model_copy(update=known), axis, labels)

    assert said("reward", helpful_id=0)
    assert not said("reward", safer_id=0)
    assert said("cost", safer_id=0)
    assert not said("cost", helpful_id=1)
    assert said("cost", "sign", safe=(None, True))
    assert not said("cost", safe=(None, True)), "where labels of single answers do not count"


def test_agreement_is_over_what_people_said(small, tmp_path):
    told = ask(small, tmp_path / "run")
    right = [int(p > 0.5) for p in told.table.p[:, 1]]
    for agreed, gold in ((1.0, right), (0.0, [1 - one for one in right])):
        known = [one.model_copy(update={"helpful_id": side}) for one, side in zip(told.pairs, gold)]
        found = weak_scores.agreement(weak_scores.Told(told.table, told.scores, known), "reward")
        assert found["value"] == agreed
        assert found["n"] == 6
    one = [known[0], *pairs()[1:]]
    assert weak_scores.agreement(weak_scores.Told(told.table, told.scores, one), "reward") is None
    assert not math.isnan(found["low"])

"""Learners as settings ask for them, and the features of a frozen network against reading each text alone."""

from types import SimpleNamespace

import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.data.template import PromptTooLong, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.supervised import FitSettings
from holdfast.models.tiny import tiny_policy
from holdfast.systems import stages
from holdfast.systems.weak_learners import LearnerSettings, States, Workshop, learning, told
from holdfast.training.learners import BagOfWords, Finetuned, Network, Probe
from holdfast.training.transfer import TransferSettings

WORDS = "dark sky sea red green how are you ?"


@pytest.fixture(scope="module")
def base():
    template = Template(train_tokenizer([WORDS], 64, "word"), max_length=32)
    return tiny_policy(len(template.tokenizer), hidden=16, layers=1, heads=2, seed=1), template


def asked(text="dark ?"):
    return Conversation.ask(text)


TEXTS = [asked("dark sky sea red green ?"), asked("you ?").answer("sea"), asked(), asked("how are you ?").answer("red")]


def alone(base, conversation):
    """The mean of the last states of one text, without padding."""
    policy, template = base
    row = template.answered(conversation) if conversation.answered else template.prompt(conversation)
    with torch.no_grad():
        return policy.base_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0].mean(0)


@pytest.mark.parametrize("budget", [1, 16, 1000])
def test_features_are_those_of_every_text_alone(budget, base):
    found = States(*base, batch_tokens=budget)(TEXTS)
    for one, conversation in zip(found, TEXTS, strict=True):
        assert torch.allclose(one, alone(base, conversation), atol=1e-6)


def test_features_of_pairs_keep_the_first_answer_first(base):
    found = States(*base)([(TEXTS[1], TEXTS[3]), (TEXTS[3], TEXTS[1])])
    assert found.shape == (2, 2, 16)
    assert torch.equal(found[0], found[1].flip(0))
    assert torch.allclose(found[0, 0], alone(base, TEXTS[1]), atol=1e-6)


def test_each_text_is_read_once(base, monkeypatch):
    states = States(*base)
    first = states([TEXTS[2], TEXTS[2], TEXTS[1]])
    assert len(states.known) == 2
    monkeypatch.setattr("holdfast.systems.weak_learners.hidden_states", None)
    assert torch.equal(states([TEXTS[1], TEXTS[2]]), first[[2, 1]])


def shop(base, pair=False, names=("kind", "rude"), seed=0, **wanted):
    settings = SimpleNamespace(seed=seed, text=stages.TextSection(), tokenizer=None)
    found = Workshop(settings, "run", pair, names, wanted, list)
    vars(found)["bases"] = {name: base for name, one in wanted.items() if one.kind != "words"}
    return found


def test_words_are_told_turn_by_turn_and_weighed_as_asked(base):
    for pair in (False, True):
        learner = shop(base, pair, weak=LearnerSettings(kind="words", regularisation=3.0)).build("weak", [])
        assert isinstance(learner, BagOfWords)
        assert (learner.pair, learner.regularisation) == (pair, 3.0)
        items = [(TEXTS[1], TEXTS[3])] if pair else TEXTS[1:2]
        assert learner.view(items) == ([("you ? sea", "how are you ? red")] if pair else ["you ? sea"])
    assert told(TEXTS[2]) == "dark ?"


def test_a_probe_reads_a_network_that_imitated_first(base, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "imitate", lambda *what, stage: seen.append((what[0].seed, what[2], what[3], stage)))
    wanted = LearnerSettings(kind="probe", hidden=5, sft=FitSettings(seed=2))
    learner = shop(base, True, seed=3, weak=wanted).build("weak", TEXTS[1:2])
    assert isinstance(learner, Probe)
    assert (learner.pair, learner.hidden) == (True, 5)
    assert learner.view.policy is base[0]
    assert seen == [(5, TEXTS[1:2], base[0], "sft_weak")]


def test_a_network_is_finetuned_whole_or_by_an_adapter(base):
    adapter = {"rank": 2}
    wanted = {"whole": LearnerSettings(), "part": LearnerSettings(model={"name": "x", "adapter": adapter})}
    whole, part = (shop(base, True, ("reward",), **wanted).build(name, []) for name in wanted)
    assert isinstance(whole, Finetuned)
    assert (whole.pair, whole.names, whole.adapter) == (True, ("reward",), None)
    assert part.adapter.rank == 2


def test_what_was_finetuned_is_saved_with_answers_as_probes(base, monkeypatch):
    seen = []
    monkeypatch.setattr(stages, "keep", lambda *what: seen.append(what))
    one = shop(base, whole=LearnerSettings(), probe=LearnerSettings(kind="probe"))
    network = Network("network", None, list)
    shown = [TEXTS[0], TEXTS[1], *TEXTS]
    for name in ("probe", "whole"):
        one.keep(f"student_{name}", one.build(name, []), network, shown)
    [(run, saved, template, probes, name)] = seen
    assert (run, saved, template, name) == ("run", "network", base[1], "student_whole")
    assert [probe.response for probe in probes] == [".", "sea", ".", "sea"]


class Window:
    """A template with room for so many words of a prompt."""

    def __init__(self, words):
        self.words = words

    def prompt(self, conversation):
        if len(told(conversation).split()) > self.words:
            raise PromptTooLong("too long")


def test_what_one_learner_cannot_read_is_left_out_for_all(base):
    one = shop(base)
    one.settings.text = stages.TextSection(on_long_prompt="skip")
    vars(one)["bases"] = {"supervisor": (None, Window(9)), "student": (None, Window(5))}
    assert one.legible(TEXTS) == [False, True, True, True]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"kind": "words", "model": {"name": "x"}}, "model has no effect on kind=words"),
        ({"kind": "words", "sft": {}}, "sft has no effect on kind=words"),
        ({"kind": "probe", "regularisation": 1.0}, "regularisation has no effect on kind=probe"),
        ({"hidden": 3}, "hidden has no effect on kind=finetuned"),
    ],
)
def test_settings_that_a_kind_does_not_read_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        LearnerSettings(**given)
    LearnerSettings(kind="probe", hidden=3, sft=FitSettings())
    LearnerSettings(kind="words", regularisation=1.0)


def test_a_loss_is_learned_in_the_portions_of_the_run():
    own, fit = TransferSettings(kind="hard"), FitSettings(epochs=9)
    assert learning(fit, own) == own.model_copy(update={"fit": fit})
    assert learning(fit) == TransferSettings(fit=fit)

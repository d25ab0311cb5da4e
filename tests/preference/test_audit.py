"""The audit of a whole scorer: its warnings in words, its dictionary, and that nothing makes it stumble."""

import json
import math

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation, DualPair, Labelled, Pair, Rated
from holdfast.data.template import Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.errors import UserError
from holdfast.models.heads import from_policy
from holdfast.models.mixture import mixture_from
from holdfast.models.tiny import tiny_policy
from holdfast.preference.audit import audit, direction_of
from holdfast.preference.personal import MixtureScorer
from holdfast.preference.score import FunctionScorer, ModelScorer

WORDS = "what is it ? a long and a short answer that says nothing at all"


def scorer(function, name="reward"):
    """A scorer of one column from a function of the response."""
    return FunctionScorer((name,), lambda rows: [[function(row.response)] for row in rows])


def dual(n=60, harmful_share=0.5):
    """Pairs whose texts say what they are: `good12 ...` is helpful and safe, `bad12 ....` is neither."""
    return [
        DualPair(
            id=str(i),
            prompt=Conversation.ask(f"what {i}"),
            responses=(f"good{i} " + "x" * (i % 7), f"bad{i} " + "x" * (i % 5)),
            helpful_id=0,
            safer_id=0,
            safe=(True, i >= harmful_share * n),
        )
        for i in range(n)
    ]


def truth(text):
    return 1.0 if text.startswith("good") else -1.0


def test_a_sound_model_gets_no_warning():
    found = audit(scorer(truth), dual(), samples=100)
    assert found.scores["reward"].pairs.accuracy.value == 1.0
    assert found.warnings == []
    assert audit(scorer(lambda text: -truth(text), "cost"), dual(harmful_share=1.0), samples=100).warnings == []


@pytest.mark.parametrize(
    "function, name, words",
    [
        (lambda text: -truth(text), "reward", "reward: it ranks pairs the wrong way round (accuracy 0.0"),
        (lambda text: 0.0, "reward", "reward: 100% of the pairs tie exactly; is the model trained"),
        (lambda text: float(len(text)), "reward", "reward: not shown to be better than length"),
        (lambda text: len(text) + 3.0 * (len(text) % 2), "reward", "reward: not shown to be better than length"),
        (lambda text: float(len(text)), "reward", "reward: it follows the length of the answer"),
        (lambda text: -truth(text) - 2, "cost", "cost: all-safe collapse; 0.0% of answers lie above zero, while 25.0%"),
        (lambda text: 2 - truth(text), "cost", "cost: all-harmful collapse; 100.0% of answers lie above zero"),
        (lambda text: truth(text), "cost", "cost: its sign is not shown to be better than calling every answer"),
    ],
)
def test_what_is_wrong_is_said_in_words(function, name, words):
    warnings = audit(scorer(function, name), dual(), samples=100).warnings
    assert [line for line in warnings if line.startswith(words)], warnings


def test_few_harmful_answers_called_safe_are_no_collapse():
    records = [
        Labelled(id=str(i), conversation=Conversation.ask(f"what {i}").answer("x" * (i % 9)), safe=i > 0)
        for i in range(200)
    ]
    warnings = audit(scorer(lambda text: -1.0 - len(text) % 3, "cost"), records, samples=100).warnings
    assert not any("collapse" in line for line in warnings)


def test_no_label_at_all_is_said_and_no_crash():
    records = [Conversation.ask(f"what {i}").answer("x" * i) for i in range(1, 12)]
    found = audit(scorer(len), records, samples=50)
    assert found.scores["reward"].pairs is None
    assert (
        "reward: no record carries a label to hold it against (helpful_id, or chosen and rejected" in found.warnings[0]
    )
    unranked = [DualPair(id="1", prompt=Conversation.ask("what"), responses=("a", "bb"), safe=(True, False))]
    assert audit(scorer(len, "cost"), unranked, samples=50).scores["cost"].pairs is None


def test_ratings_without_a_score_of_their_name_are_said():
    records = [
        Rated(
            id=str(i), conversation=Conversation.ask(f"what {i}").answer("x" * i), labels={"tact": i, "depth": math.nan}
        )
        for i in range(1, 9)
    ]
    found = audit(scorer(len, "Tact"), records, samples=50)
    assert found.warnings[0] == "no score is called tact, so these ratings were not used; the model gives Tact"
    known = audit(scorer(len, "tact"), records, samples=50)
    assert known.scores["tact"].rating.mae.value == 0.0
    assert not any("no score is called" in line for line in known.warnings)
    # A reward that is held against pairs may stand beside ratings that are meant for other models.
    assert audit(scorer(truth), [*dual(), *records], samples=50).warnings == []


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(UserError, match="none of the 1 records holds an answer"):
        audit(scorer(len), [Conversation.ask("what")])
    with pytest.raises(UserError, match="no scores called help; the model gives reward"):
        audit(scorer(len), dual(4), directions={"help": "harm"})


def test_the_direction_follows_the_name_unless_it_is_given():
    assert [direction_of(name) for name in ("cost", "cost/fraud", "harm", "reward", "harmlessness")] == [
        "harm",
        "harm",
        "harm",
        "help",
        "help",
    ]
    found = audit(scorer(lambda text: -truth(text), "danger"), dual(), directions={"danger": "harm"}, samples=50)
    assert found.scores["danger"].pairs.accuracy.value == 1.0


def test_a_score_that_has_ratings_is_not_held_against_helpfulness():
    records = [
        Rated(id=str(i), conversation=Conversation.ask(f"what {i}").answer("x" * i), labels={"depth": i, "reward": i})
        for i in range(1, 30)
    ]
    found = audit(scorer(lambda text: -truth(text), "depth"), [*dual(), *records], samples=50)
    assert found.scores["depth"].direction == "rating"
    assert found.scores["depth"].pairs is found.scores["depth"].calibration is None
    assert found.scores["depth"].rating is not None
    assert not any("wrong way round" in line for line in found.warnings)
    both = audit(scorer(truth), [*dual(), *records], samples=50).scores["reward"]
    assert both.pairs is not None
    assert both.rating is not None


def test_the_dictionary_is_plain_and_tells_what_was_read():
    records = [*dual(20), Conversation.ask("and?")]
    told = audit(scorer(truth), records, facts={"folder": "models/reward"}, samples=50).to_dict()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again["model"] == {"kind": "FunctionScorer", "names": ["reward"], "folder": "models/reward"}
    assert again["n"] | {"rated": 0} == {
        "records": 21,
        "answers": 40,
        "prompts": 20,
        "unanswered": 1,
        "helpful_pairs": 20,
        "harmful_pairs": 20,
        "labelled": 40,
        "rated": 0,
    }
    assert set(again["scores"]["reward"]["pairs"]["accuracy"]) == {"value", "low", "high", "n", "method"}
    assert again["invariance"]["skipped"].startswith("a FunctionScorer shows no model")


def test_equal_seeds_give_equal_audits():
    noise = {text: np.random.default_rng(3).normal() for pair in dual() for text in pair.responses}
    twice = [audit(scorer(noise.get), dual(), samples=50).to_dict() for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def template():
    return Template(train_tokenizer([WORDS], 64, "word"), max_length=48)


@pytest.fixture(scope="module")
def policy(template):
    torch.manual_seed(0)
    return tiny_policy(len(template.tokenizer), hidden=16, heads=2, layers=2)


ANSWERS = [Conversation.ask("what is it ?").answer(" ".join(WORDS.split()[: 1 + i % 14])) for i in range(40)]


def test_a_model_that_minds_its_masks_is_stable(template, policy):
    scorer = ModelScorer(from_policy(policy, ("reward",), init_std=0.5), template)
    sizes = []
    inner = scorer.model.scores
    scorer.model.scores = lambda ids, *rest, **images: sizes.append(len(ids)) or inner(ids, *rest, **images)
    found = audit(scorer, ANSWERS, samples=50)
    assert sizes[-30:] == [1] * 24 + [8] * 6, "alone, then three mixed batches padded right, each also padded left"
    assert found.invariance.checked == 24
    assert found.invariance.skipped == ""
    # Kernels sum in another order when rows are padded, hence more than 1e-6.
    assert 0 < found.invariance.spread["reward"] < 1e-5
    assert not any("other batches" in line for line in found.warnings)


def test_a_model_that_reads_padding_is_caught(template, policy):
    model = from_policy(policy, ("reward",), init_std=0.5)
    inner = model.scores
    model.scores = lambda ids, attention, *rest, **images: inner(ids, torch.ones_like(attention), *rest, **images)
    found = audit(ModelScorer(model, template), ANSWERS, samples=50)
    # Right padding stands behind what is scored and moves nothing; padding on the left tells.
    assert found.invariance.batches["reward"] < 1e-5
    assert found.invariance.left["reward"] == found.invariance.spread["reward"] > 1e-3
    assert "reward: the same answer scored in other batches or padded on the left moves by up to" in found.warnings[-1]


def test_a_score_that_depends_on_its_neighbours_is_caught(template, policy):
    model = from_policy(policy, ("reward",), init_std=0.5)
    inner = model.scores
    model.scores = lambda *tokens, **images: inner(*tokens, **images) - inner(*tokens, **images).mean()
    found = audit(ModelScorer(model, template), ANSWERS, samples=50)
    assert found.invariance.batches["reward"] > 1e-2
    assert any("a mask or a position is not respected" in line for line in found.warnings)


def test_a_mixture_is_scored_for_the_people_who_judged_and_answers_for_its_score_alone(template, policy):
    model = mixture_from(policy, ("brief", "kind"), init_std=0.5)
    with torch.no_grad():
        model.score.weight[1] = 0.0
    mixture = MixtureScorer(model, template)
    pairs = [
        Pair(
            id=str(i),
            prompt=Conversation.ask("what is it ?"),
            chosen=" ".join(["a"] * (1 + i % 5)),
            rejected="nothing",
            context="short",
        )
        for i in range(20)
    ]
    seen = []
    inner = mixture.score_for
    mixture.score_for = lambda answers, people: seen.extend(people) or inner(answers, people)
    found = audit(mixture, pairs, samples=50)
    assert {person.context for person in seen} == {"short"}
    assert tuple(found.scores) == ("score", "brief", "kind")
    assert found.scores["kind"].pairs.ties.value == 1.0
    assert not any(line.startswith(("brief", "kind")) for line in found.warnings)
    # Kernels sum in another order when rows are padded, hence more than 1e-6.
    assert max(found.invariance.spread.values()) < 1e-5
    assert found.invariance.spread["kind"] == 0.0
    assert min(found.invariance.spread[name] for name in ("score", "brief")) > 0.0

"""What the reference earns and what follows from it, each stage alone with as much of a bench as it reads."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from given_bench import answers_of, ask, bench, judged_by

from holdfast.engine.supervised import FitSettings
from holdfast.errors import UserError
from holdfast.models.tiny import tiny_policy
from holdfast.models.value import ValueHead
from holdfast.systems import given, valued
from holdfast.training.selection import RewardTerm
from holdfast.training.value import ValueSettings

QUICK = ValueSettings(heads=2, fit=FitSettings(epochs=1, batch_size=4))


def generator(*samples):
    """Samples of prompts by their places, in this order."""
    found = [SimpleNamespace(prompt_index=i, response_ids=text) for i, text in samples]
    return SimpleNamespace(generate=lambda *asked: found)


def reader_of(place):
    torch.manual_seed(0)
    return valued.reader(place, tiny_policy(len(place.template.tokenizer), hidden=8, layers=1, heads=2))


def test_samples_are_scored_beside_their_own_prompt(tmp_path):
    place = bench(tmp_path, score=lambda rows: [[float(one.messages[0].text[-3])] for one in rows])
    place.pools.practise = [ask(3), ask(4), ask(5)]
    place.template.decode = lambda ids: ids
    place.generator = generator((1, "a"), (0, "b"), (2, "c"), (1, "d"))
    given.scores_of(place, [ask(0).answer("a")], ["words"], "scores")  # of the answers to learn from, kept apart
    prompts, of, earned = valued._sampled(place, {"words": RewardTerm(weight=2.0)}, reader_of(place))
    assert len(prompts) == 3
    assert of.tolist() == [1, 0, 2, 1]
    assert earned.tolist() == [8.0, 6.0, 10.0, 8.0]
    place.generator = None
    assert valued._sampled(place, {"words": RewardTerm()}, reader_of(place))[1].tolist() == of.tolist(), "sampled once"


def test_samples_of_other_weights_are_stale(tmp_path):
    place = bench(tmp_path, practise=[ask(3)])
    place.template.decode, place.generator = (lambda ids: ids), generator((0, "a"))
    first = reader_of(place)
    valued._sampled(place, {"words": RewardTerm()}, first)
    with torch.no_grad():
        next(first.model.parameters()).add_(1)
    with pytest.raises(UserError, match=r"stale .*samples\.json"):
        valued._sampled(place, {"words": RewardTerm()}, first)


@pytest.mark.parametrize("learn_from", ["data", "samples"])
def test_a_value_learns_from_the_data_or_from_samples(learn_from, tmp_path):
    place = bench(tmp_path, practise=[ask(9)])
    place.template.decode, place.generator = (lambda ids: ids), generator((0, "a b c"))
    found = answers_of({"words": [0.5, 0.25]})
    rows = [place.template.answered(one) for one in found.conversations]
    value = valued.ValueStage(learn_from=learn_from, head=QUICK)
    prompts, of, earned = valued._earned(place, rows, found, {"words": RewardTerm()}, value, reader_of(place))
    assert earned.tolist() == ([0.5, 0.25] if learn_from == "data" else [3.0])
    assert len(prompts) == len(of) == len(earned)


def test_the_range_of_a_value_has_room_on_both_sides(tmp_path, monkeypatch):
    seen = {}

    def fit(head, prompts, earned, of, settings, run):
        seen.update(low=head.low, high=head.high, seed=settings.fit.seed)
        facts = SimpleNamespace(to_dict=dict, bias=0, slope=0)
        return SimpleNamespace(head=head, epoch=0, calibration=facts)

    monkeypatch.setattr(valued, "fit_value", fit)
    prompts = SimpleNamespace(states=torch.zeros(2, 3, 8))
    value = valued.ValueStage(head=QUICK, room=0.1)
    valued._value_head(bench(tmp_path, seed=5), prompts, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), value)
    assert seen == {"low": pytest.approx(0.8), "high": pytest.approx(3.2), "seed": QUICK.fit.seed + 5}


def annotated(place, found, margin=0.0, seed=0):
    policy = tiny_policy(len(place.template.tokenizer), hidden=8, layers=1, heads=2, seed=seed)
    value = valued.ValueStage(learn_from="data", head=QUICK)
    terms = {"reward": RewardTerm()}
    return valued.annotated(place, found, terms, value, lambda: nullcontext(policy), margin)[1]


def test_annotations_are_kept_with_their_head_and_refused_when_stale(tmp_path, monkeypatch):
    found = answers_of({"reward": [0.1 * i for i in range(8)], "cost": [1.0] * 8})
    place = bench(tmp_path)
    first = annotated(place, found, margin=0.5)
    assert first.advantage.tolist() == pytest.approx((first.rewards - first.value + 0.5).tolist(), abs=1e-6)
    assert set(first.components) == {"reward"}, "what the reward is made of, and no limit"
    folder = tmp_path / "run" / "annotations"
    told = json.loads((folder / "annotations.json").read_text())["facts"]
    assert ValueHead.load(folder / "value_head").digest == told["value_head"]
    assert place.facts["annotations"]["answers"] == 8
    monkeypatch.setattr(valued, "annotate", None)
    assert torch.equal(annotated(place, found, margin=0.5).ref, first.ref), "read and not made again"
    with pytest.raises(UserError, match=r"stale annotations in .*: the margin changed"):
        annotated(place, found, margin=0.25)
    judged_by(tmp_path / "judge", place)
    with pytest.raises(UserError, match=r"stale annotations in .*: what scored the answers changed"):
        annotated(place, found, margin=0.5)

"""What A-LoL hands from one stage to the next, with stand-ins for those that read a network."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from holdfast.data.schema import Conversation, Ranked
from holdfast.data.template import Encoded
from holdfast.engine.supervised import FitSettings
from holdfast.systems import a_lol, exam, given, reading, valued
from holdfast.training.annotate import Annotations
from holdfast.training.offline import OfflineRow
from holdfast.training.selection import OfflineLimit

COUNT = 40


def ask(i):
    return Conversation.ask(f"how many are {i} ?", id=str(i))


def encoded(name):
    return Encoded([3, 4, 5], [False, True, True], [False, True, True], 2, 1, id=name)


def row_of(number):
    """The answers are numbered, and their rewards say which one is which."""
    return round(number.reward * COUNT)


@pytest.fixture
def stage(monkeypatch):
    """A-LoL with given answers; what it asks of other stages and learns from."""
    seen = SimpleNamespace(calls=[], annotated=False)
    answers = given.Answers([ask(i).answer("a") for i in range(COUNT)], {}, torch.arange(COUNT) / COUNT)
    weight = torch.arange(COUNT) / COUNT + 0.5
    rows = [encoded(str(i)) for i in range(COUNT)]

    def gather(bench, data, terms, limits):
        seen.limits, seen.terms = limits, terms
        return answers

    def annotated(bench, found, terms, value, reference, margin):
        seen.annotated, seen.margin = True, margin
        advantage = found.reward - 0.5 + margin
        ref, lengths = torch.zeros(COUNT, 2), (2,) * COUNT
        known = Annotations(
            tuple(one.id for one in rows), found.reward, found.reward, advantage, ref, lengths, ref[:, 0].bool(), {}
        )
        return rows, known

    def learn(task, learned, watching, *rest, **named):
        seen.calls.append("learn")
        seen.task, seen.learned, seen.watching, seen.order = task, learned, watching, rest[-1]
        return {"learned": {"loss": 1.0}}

    def rewarded_rows(bench, found, weight):
        known = zip(rows, found.reward.tolist(), weight.tolist())
        return [OfflineRow(one, reward=reward, weight=own) for one, reward, own in known]

    def rankings(bench, data, terms, limits, scored, *rest):
        seen.scored = scored
        rewards = (2.0, 1.0) if scored else None
        return [Ranked(id=str(i), prompt=ask(i), responses=("a", "b"), rewards=rewards) for i in range(COUNT)]

    def reader(bench, frozen):
        # Wider than the two tokens of every answer, as where another answer is longer.
        return SimpleNamespace(logprobs=lambda answered: torch.tensor([[-1.0, -1.0, 0.0]] * len(answered)))

    for name, function in {"gather": gather, "rewarded_rows": rewarded_rows, "rankings": rankings}.items():
        monkeypatch.setattr(given, name, function)
    for name, function in {"annotated": annotated, "reader": reader}.items():
        monkeypatch.setattr(valued, name, function)
    monkeypatch.setattr(given, "within", lambda found, limits, bench: (found, weight))
    monkeypatch.setattr(a_lol, "learn", learn)
    monkeypatch.setattr(a_lol.stages, "keep", lambda *what: seen.calls.append(("keep", what[-1])))
    monkeypatch.setattr(a_lol.dual, "probe_answers", lambda pools: [])

    def improve(**changes):
        settings = a_lol.ALol(**{"data": given.OfflineData(), **changes})
        bench = SimpleNamespace(
            settings=settings,
            policy=torch.nn.Linear(1, 1),
            template=SimpleNamespace(pad_id=0, answered=lambda one: encoded(one.id)),
            run=None,
            pools=None,
            facts={},
        )
        return a_lol.improve(settings, bench, lambda: nullcontext(None)), seen

    return improve


def numbers(rows):
    return {row.tokens.id if hasattr(row, "tokens") else row.id for row in rows}


def test_what_is_watched_is_not_learned(stage):
    facts, seen = stage(held_out=0.2)
    assert len(seen.watching) == 8
    assert len(seen.learned) == facts["offline"]["kept"] > 0
    assert facts["offline"]["rows"] == COUNT - 8, "what is watched counts for no step"
    assert not numbers(seen.learned) & numbers(seen.watching)
    assert seen.order.count == len(seen.learned)
    assert facts["method_of"] == "a_lol"
    assert facts["learned"] == {"loss": 1.0}


def test_limits_weigh_annotated_answers(stage):
    _, seen = stage(offline={"value_margin": 0.25}, limits=(OfflineLimit(score="tone", how="weight"),))
    assert seen.limits == ["tone"], "its score is gathered, too"
    assert seen.margin == 0.25
    for row in [*seen.learned, *seen.watching]:
        assert row.tokens.id == str(row_of(row))
        assert row.weight == pytest.approx(row.reward + 0.5)
        assert row.advantage == pytest.approx(row.reward - 0.25, abs=1e-6)


@pytest.mark.parametrize("method, needs", [("a_lol", True), ("a_lol_ref_free", True), ("r_lol", False), ("wbc", False)])
def test_who_needs_annotations_gets_them(method, needs, stage):
    _, seen = stage(offline={"method": method})
    assert seen.annotated is needs
    assert all(row.weight == pytest.approx(row.reward + 0.5) for row in seen.learned)
    value = {"learn_from": "data"}
    if needs:
        assert a_lol.ALol(offline={"method": method}, value=value).value.learn_from == "data"
    else:
        with pytest.raises(ValueError, match=f"value: not read by {method}"):
            a_lol.ALol(offline={"method": method}, value=value)


def test_rewards_alone_with_a_ratio_ask_the_reference_and_no_value(stage):
    _, seen = stage(offline={"method": "r_lol"})
    assert {tuple(row.ref.tolist()) for row in [*seen.learned, *seen.watching]} == {(-1.0, -1.0)}
    _, seen = stage(offline={"method": "wbc"})
    assert {row.ref for row in seen.learned} == {None}


def test_imitation_asks_for_no_reward(stage):
    imitation = {"method": "nll", "sampling": "shuffle"}
    _, seen = stage(offline=imitation)
    assert (seen.terms, seen.annotated) == ({}, False)
    _, seen = stage(offline={"method": "wbc"})
    assert seen.terms == given.REWARD
    with pytest.raises(ValueError, match="rewards: not read by nll"):
        a_lol.ALol(offline=imitation, rewards={"help": {}})
    judged = a_lol.ALol(
        offline=imitation, rewards={"help": {}}, best={}, functions=[{"call": "a:b", "names": ["help"]}]
    )
    assert judged.rewards.keys() == {"help"}


def test_seeds_move_what_is_drawn(stage):
    chosen = []
    for seed in (0, 1):
        _, seen = stage(seed=seed, fit=FitSettings(batch_size=16))
        chosen.append(seen.order.chosen(1))
    assert chosen[0] != chosen[1]


def test_the_policy_is_saved_when_it_has_learned(stage):
    _, seen = stage()
    assert seen.calls == ["learn", ("keep", "policy")]


@pytest.mark.parametrize("method", ["dpo", "pro"])
def test_rankings_are_scored_for_pro_and_known_to_the_reference_for_dpo(method, stage):
    facts, seen = stage(**{method: {}}, held_out=0.2)
    assert seen.scored is (method == "pro")
    assert seen.task.name == facts["method_of"] == method
    assert {row.ref for row in seen.learned} == ({(-2.0, -2.0)} if method == "dpo" else {()})
    assert facts["rankings"] == COUNT
    assert len(seen.watching) == 8
    assert len(seen.learned) == COUNT - 8
    assert not numbers(seen.learned) & numbers(seen.watching)


def test_without_a_reference_in_the_loss_nobody_reads_it(stage):
    _, seen = stage(dpo={"reference_free": True})
    assert {row.ref for row in seen.learned} == {()}


def test_one_limit_that_weighs_is_enough_to_refuse_rankings():
    limits = (OfflineLimit(), OfflineLimit(score="tone", how="weight"))
    with pytest.raises(ValueError, match="limits weigh single answers"):
        a_lol.ALol(pro={}, limits=limits)
    assert a_lol.ALol(pro={}, limits=limits[:1]).limits == limits[:1]


def test_a_run_begins_with_answers_of_its_own(monkeypatch):
    seen = {}
    monkeypatch.setattr(exam, "run", lambda settings, *what, **named: seen.update(data=settings.data, **named))
    answers = reading.Source(path="answers")
    a_lol.run(a_lol.ALol(data={"answers": answers}), "folder", overwrite=True)
    assert (seen["data"].sft, seen["data"].prompts) == (answers, answers)
    assert seen["overwrite"] is True
    assert seen["further"] is a_lol.diversity

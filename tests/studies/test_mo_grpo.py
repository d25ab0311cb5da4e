"""The study of multi-objective GRPO: what is true in its world, what its arms are, its criteria, and that it runs."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.engine.supervised import FitSettings
from holdfast.preference.attributes import AttributeSettings
from holdfast.preference.score import ModelScorer
from holdfast.studies import mo_grpo
from holdfast.studies.mo_grpo import (
    ARMS,
    LABELS,
    Plan,
    RiskyLimits,
    collect_from,
    constraint,
    criteria,
    improve,
    log,
    measured,
    memory,
    method,
    run,
    table,
)
from holdfast.studies.mo_grpo_rivals import compared
from holdfast.studies.mo_grpo_world import (
    CHANCES,
    FILLERS,
    INTENTS,
    LONGEST,
    POLITE,
    World,
    optimiser,
    prepare,
    read,
)
from holdfast.training.lagrangian import Constraint

FEW = {"batch_size": 64, "epochs": 1, "optimiser": optimiser(3e-3)}
SMALL = Plan(
    demonstrations=512,
    imitation=FitSettings(**FEW),
    ratings=600,
    rating=FitSettings(**FEW),
    iterations=2,
    prompts=4,
    answers=4,
    exam=64,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return prepare(SMALL, World(), 3, RunFolder(tmp_path_factory.mktemp("models") / "run"))


@pytest.mark.parametrize(
    "asked, answer, polite, meaning, action, safe",
    [
        ("benign garden", "dig plant water", 0, 1, 1, 1),
        ("benign garden", "dig dig dig well", 0, 1 / 4, 1 / 3, 1),
        ("benign garden", "please please", 0.5, 1 / 2, 0, 1),
        ("benign garden", "please please kindly gladly", 1, 2 / 4, 0, 1),
        ("benign garden", "sorry please", 0.5, 1 / 2, 0, 1),
        ("harmful garden", "sorry please", 0.5, 1, 0, 1),
        ("harmful garden", "dig fence", 0, 1, 2 / 3, 0.5),
        ("disguised garden", "dig dig fence", 0, 2 / 3, 2 / 3, 0),
        ("disguised garden", "hum gloves fence", 0, 2 / 3, 2 / 3, 0.5),
        ("disguised garden", "compost", 0, 0, 0, 1),
        ("harmful garden", "dig plant water prune gloves fence", 0, 1, 1, 0),
        ("harmful garden", "", 0, 0, 0, 1),
    ],
)
def test_truth_is_what_it_says(asked, answer, polite, meaning, action, safe):
    assert World().gold(Conversation.ask(asked).answer(answer)) == pytest.approx([polite, meaning, action, safe])


def test_a_third_safe_word_is_known_only_in_the_richer_world():
    answer = Conversation.ask("harmful garden").answer("compost")
    assert World(safe_words=3).gold(answer)[2] == pytest.approx(1 / 3)
    assert "compost" not in World().vocabulary.split()


def test_no_word_is_two_things():
    words = World(safe_words=3).vocabulary.split()
    # Three intents, six topics with four actions and three safe words each, polite words, fillers and a refusal.
    assert len(words) == len(set(words)) == 3 + 6 * (1 + 4 + 3) + 4 + 4 + 1


def test_requests_are_as_frequent_as_the_study_says_and_know_whether_they_are_risky():
    asked = World().prompts(6000, np.random.default_rng(0))
    intents = [read(one).intent for one in asked]
    # The standard errors are below .007.
    assert [intents.count(name) / len(intents) for name in INTENTS] == pytest.approx(CHANCES, abs=0.025)
    assert all((one.source == "risky") == read(one).risky for one in asked)
    assert len({read(one).topic for one in asked}) == 6


def test_demonstrations_are_as_careless_as_the_study_says():
    world, source = World(), np.random.default_rng(0)
    shown = [read(one) for one in world.demonstrate(world.prompts(6000, source), source)]

    def share(intent, met):
        return np.mean([met(one) for one in shown if one.intent == intent])

    # The standard errors are about .01, and .006 for all together.
    assert share("benign", lambda one: one.refuses) == 0
    assert share("harmful", lambda one: one.refuses) == pytest.approx(0.3, abs=0.05)
    assert share("disguised", lambda one: one.refuses) == pytest.approx(0.05, abs=0.03)
    # Standard errors about .006.
    assert np.mean([bool({*one.words} & {*POLITE}) for one in shown]) == pytest.approx(0.35, abs=0.03)
    # The standard error is .004.
    assert np.mean([bool({*one.words} & {*world.safe(one.topic)}) for one in shown]) == pytest.approx(0.12, abs=0.02)
    # The standard error is .011.
    assert np.mean([sum(word in FILLERS for word in one.words) for one in shown]) == pytest.approx(1, abs=0.05)
    assert max(len(one.words) for one in shown) < LONGEST  # the end of the answer is a token too


def test_composed_answers_hold_every_kind_of_word_in_every_length():
    world, source = World(), np.random.default_rng(0)
    made = world.compose(world.prompts(3000, source), source)
    assert {len(read(one).words) for one in made} == {*range(1, LONGEST + 1)}
    said = {word for one in made for word in read(one).words}
    assert said == {*world.vocabulary.split()} - {*INTENTS} - {read(one).topic for one in made}
    mixed = [len({*read(one).words}) / len(read(one).words) for one in made if len(read(one).words) == LONGEST]
    # Of one mixture for all, no answer of eight words would consist of three or fewer.
    assert min(mixed) <= 3 / 8


def test_ratings_are_the_truth_with_a_normal_error_inside_their_scale():
    world, source = World(), np.random.default_rng(0)
    made = world.compose(world.prompts(2000, source), source)
    rated = np.array([[*one.labels.values()] for one in world.rate(made, source)])
    error = rated - np.array([world.gold(one) for one in made])
    assert rated.min() == 0
    assert rated.max() == 1
    inside = (rated > 0) & (rated < 1) & (np.abs(np.array([world.gold(one) for one in made]) - 0.5) < 0.2)
    # Of some hundred errors: a standard error of .003.
    assert error[inside].std() == pytest.approx(0.1, abs=0.01)


def test_the_scores_are_the_labels_their_mean_and_the_cost(bench):
    prompt = Conversation.ask("harmful garden")
    answers = [prompt.answer(text) for text in ("dig plant", "sorry please", "gloves fence")]
    for gold in (True, False):
        found = collect_from(bench.policy, bench, 4, gold).score(answers)
        labels = torch.stack([found[name] for name in LABELS], -1)
        expected = torch.tensor([World().gold(one) for one in answers]) if gold else bench.judge.score(answers)
        torch.testing.assert_close(labels, expected)
        torch.testing.assert_close(found["reward"], labels.mean(-1))
        torch.testing.assert_close(found["cost"], 1 - labels[:, 3])


def test_logits_are_read_as_ratings(tmp_path):
    lessons = SMALL.model_copy(update={"regression": AttributeSettings(kind="bce")})
    bench = prepare(lessons, World(), 3, RunFolder(tmp_path / "run"))
    asked = bench.world.demonstrate(bench.world.prompts(8, np.random.default_rng(0)), np.random.default_rng(1))
    raw = ModelScorer(bench.model, bench.template).score(asked)
    # Scored in other company, in fp32.
    torch.testing.assert_close(bench.judge.score(asked), raw.sigmoid(), rtol=1e-5, atol=1e-5)


def test_only_risky_requests_move_the_multiplier_and_every_answer_meets_it(bench):
    asked = bench.world.prompts(16, np.random.default_rng(0))
    experience = collect_from(bench.policy, bench, 8, gold=True).collect(asked, seed=0)
    risky = torch.tensor([group == "risky" for group in experience.groups])
    assert 0 < int(risky.sum()) < experience.size
    limits = RiskyLimits([Constraint(constraint().model_copy(update={"window": 1000}))])
    numbers = limits.observe(experience)
    assert numbers["cost/harm"] == pytest.approx(float(experience.score("cost")[risky].mean()), abs=1e-6)
    expected = np.exp(0.3 * (numbers["cost/harm"] - 0.1))
    assert limits.multipliers["harm"] == pytest.approx(expected)
    assert limits.multiplier(experience, "harm").tolist() == pytest.approx([expected] * experience.size)
    assert limits.costs(experience)["harm"].shape == (experience.size,)


def test_the_arms_are_those_of_the_head(bench):
    told = {name: arm.settings for name, arm in ARMS.items() if arm.trainer == "grpo"}
    for name, one in told.items():
        assert sum(each.weight for each in one.objectives.values()) == pytest.approx(1), name
        assert (one.loss.kind, one.loss.level, one.loss.clip, one.loss.clip_high) == ("clip", "token", 0.2, 0.28)
        assert (one.loss.mean, one.scalarise.clip, one.scalarise.eps, one.overlong) == ("token_mean", 5, 1e-4, "none")
    inside = told.pop("stn_kl_reward").kl
    assert (inside.coef, inside.in_loss) == (0.02, 0)
    assert {(one.kl.coef, one.kl.in_loss, one.kl.estimator) for one in told.values()} == {(0, 0.02, "ratio_k3")}
    floors = {name: (one.scalarise.std_floor, one.cost_floor) for name, one in told.items()}
    assert floors["decoupled_floor"][0] == 0.05
    assert floors["lagrangian"] == (0.1, 0.1)
    assert {floors[name] for name in told if "floor" not in name and "lagrangian" not in name} == {(0, 0)}
    assert floors["lagrangian_no_floor"] == (0, 0)
    assert [name for name, one in told.items() if one.scalarise.batch_normalise] == ["gdpo"]
    assert [*told["lagrangian"].objectives] == ["polite", "meaning", "action"]
    collector = collect_from(bench.policy, bench, 8)
    limited = [name for name in told if method(ARMS[name], collector, 0).limits.constraints]
    assert limited == [name for name in told if "lagrangian" in name]


def test_memory_is_what_the_block_took():
    with memory() as used:
        taken = torch.ones(32 * 2**18)  # 32 MiB
        assert taken[0]
    # No standard error: pages that the process touched besides.
    assert not used or used["peak"] == pytest.approx(32, abs=4)


def test_pairs_for_dpo_are_neighbours_of_one_prompt_ordered_by_the_mean_score(bench):
    asked = bench.world.prompts(6, np.random.default_rng(0))
    experience = collect_from(bench.policy, bench, 4).collect(asked, seed=0)
    scores = experience.score("reward").clone()
    scores[:2] = 0.5
    experience = replace(experience, scores=experience.scores | {"reward": scores})
    pairs = compared(experience)
    assert pairs[0].id == "pair-2"
    place = {id(row): i for i, row in enumerate(experience.rows)}
    for pair in pairs:
        better, worse = (place[id(row)] for row in pair.answers)
        assert better // 2 == worse // 2
        assert scores[better] > scores[worse]
        # Sums of float32 in another order.
        assert pair.ref == pytest.approx(experience.ref_logprobs[[better, worse]].sum(-1).tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["lagrangian", "ppo", "dpo"])
def test_every_trainer_sees_as_many_answers_in_as_many_steps(name, bench, tmp_path):
    policy, out = copy.deepcopy(bench.policy), RunFolder(tmp_path / "run")
    tokens = improve(SMALL, bench, ARMS[name], policy, 3, out)
    answers = SMALL.iterations * SMALL.prompts * SMALL.answers
    assert answers < tokens <= LONGEST * answers
    assert len(log(out)) == SMALL.iterations
    moved = [bool((a != b).any()) for a, b in zip(policy.parameters(), bench.policy.parameters(), strict=True)]
    assert all(moved)


def test_every_arm_starts_from_the_first_policy(bench, tmp_path):
    before = copy.deepcopy(bench.policy.state_dict())
    found = mo_grpo.one_arm(SMALL, bench, ARMS["dpo"], 3, RunFolder(tmp_path / "run"))
    assert found["kl"]["value"] > 0
    assert all(torch.equal(before[name], value) for name, value in bench.policy.state_dict().items())


def test_an_exam_is_read_by_the_kind_of_request(bench):
    outcome = mo_grpo.judge(SMALL, bench, bench.policy, seed=3)
    found = measured(outcome)
    said = [read(one) for one in outcome.conversations]
    gold = [bench.world.gold(one) for one in outcome.conversations]
    risky = [label[3] != 1 for one, label in zip(said, gold, strict=True) if one.risky]
    benign = [(label[2], one.refuses) for one, label in zip(said, gold, strict=True) if not one.risky]
    assert found["violation"]["value"] == pytest.approx(np.mean(risky))
    assert found["benign action"]["value"] == pytest.approx(np.mean([action for action, _ in benign]))
    assert found["over-refusal"]["value"] == pytest.approx(np.mean([refused for _, refused in benign]))
    assert found["meaning"]["value"] == pytest.approx(np.mean(gold, 0)[1], abs=1e-6)
    assert found["learned safe"]["value"] == pytest.approx(float(bench.judge.score(outcome.conversations)[:, 3].mean()))
    assert found["kl"]["value"] == pytest.approx(0, abs=1e-5)


def summary(**values):
    """A run's summary: a careless policy, but for what is told."""
    usual = {"polite": 0.2, "meaning": 0.7, "action": 0.6, "safe": 0.65, "violation": 0.9, "benign_action": 0.6}
    found = usual | {"over_refusal": 0.0} | values
    renamed = {"benign_action": "benign action", "over_refusal": "over-refusal"}
    one = {renamed.get(name, name): {"value": value, "low": 0, "high": 1} for name, value in found.items()}
    return one | {"multiplier": [], "memory": None, "seconds": 1.0, "tokens": 5}


GOOD = {
    "base": summary(),
    "stn": summary(polite=0.8, safe=0.97, benign_action=0.9),
    "safety_only": summary(action=0.05),
    "lagrangian": summary(violation=0.04, benign_action=0.8),
    "lagrangian_no_floor": summary(violation=0.0, over_refusal=0.9, benign_action=0.5),
}


def arms(seeds=5, spread=0.01, **changed):
    """Five seeds of every arm, the last one as told, that differ a little."""
    found = {}
    for name in ARMS:
        ones = [GOOD.get(name, summary())] * (seeds - 1) + [changed.get(name, GOOD.get(name, summary()))]
        found[name] = [json.loads(json.dumps(one)) for one in ones]
        for i, one in enumerate(found[name]):
            for what in ("polite", "safe", "meaning", "action"):
                one[what]["value"] += spread * (i - 2) * (name != "base")
    return found


def failing(found):
    return [one["name"] for one in criteria(found) if not one["holds"]]


@pytest.mark.parametrize(
    "changed, fails",
    [
        ({}, []),
        ({"lagrangian": summary(violation=0.11, benign_action=0.8)}, ["C3_limit_kept"]),
        ({"lagrangian": summary(violation=0.04, benign_action=0.59)}, ["C3_limit_kept"]),
        ({"lagrangian_no_floor": summary()}, []),
        ({"stn": summary(polite=-1.5, safe=0.97, benign_action=0.9)}, ["C1_polite"]),
        ({"stn": summary(polite=0.8, safe=-0.6, benign_action=0.9)}, ["C1_safe"]),
        ({"stn": summary(polite=0.8, safe=0.97, benign_action=-0.5)}, ["C1_benign_action"]),
        ({"stn": summary(polite=0.8, safe=0.97, benign_action=0.9, meaning=0.44)}, ["C1_meaning"]),
        ({"stn": summary(polite=0.8, safe=0.97, benign_action=0.9, meaning=0.46)}, []),
        ({"safety_only": summary(action=0.85)}, ["C2_one_axis"]),
    ],
)
def test_each_criterion_can_fail(changed, fails):
    assert failing(arms(**changed)) == fails


def test_without_a_floor_four_seeds_of_five_must_collapse_in_either_way():
    found = arms()
    found["lagrangian_no_floor"] = [summary(over_refusal=0.4)] * 2 + [summary(benign_action=0.19)] * 2 + [summary()]
    assert failing(found) == []
    found["lagrangian_no_floor"][0] = summary(over_refusal=0.39, benign_action=0.22)
    assert failing(found) == ["C3_no_floor_collapses"]


def test_a_gain_is_paired_by_seed_and_has_students_interval():
    found = arms()
    for i, (one, first) in enumerate(zip(found["stn"], found["base"], strict=True)):
        first["polite"]["value"], one["polite"]["value"] = 0.1 * i, 0.1 * i + 0.3 + 0.01 * i
    (gain,) = [one for one in criteria(found) if one["name"] == "C1_polite"]
    assert gain["value"] == pytest.approx(0.32)
    # Gains .30 to .34: their standard deviation is .0158, the quantile of Student's t with 4 degrees 2.776.
    assert gain["low"] == pytest.approx(0.32 - 2.776 * 0.015811 / 5**0.5, abs=1e-5)
    assert gain["n"] == 5


def test_one_seed_is_no_evidence():
    assert {"C1_polite", "C2_one_axis"} <= {*failing(arms(seeds=1))}


def test_the_study_runs_and_finished_arms_are_read(tmp_path, monkeypatch):
    chosen = {name: ARMS[name] for name in ("base", "stn", "lagrangian", "ppo", "dpo")}
    monkeypatch.setattr(mo_grpo, "ARMS", chosen)
    monkeypatch.setattr(mo_grpo, "criteria", lambda arms: [])
    monkeypatch.setattr(mo_grpo, "QUICK", SMALL)
    first = run(tmp_path, [0], quick=True)
    assert set(first["arms"]) == set(chosen)
    (base,), (limited,) = first["arms"]["base"], first["arms"]["lagrangian"]
    assert base["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert base["tokens"] == 0
    assert len(limited["multiplier"]) == SMALL.iterations
    monkeypatch.setattr(mo_grpo, "prepare", None)
    assert run(tmp_path, [0], quick=True) == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    quality, costs = table(first).split("\n\n")
    assert len(quality.splitlines()) == 2 + len(chosen)
    assert [line.split("|")[1].strip() for line in costs.splitlines()[2:]] == ["stn", "ppo", "dpo"]


@pytest.mark.slow
def test_all_arms_run_quickly(tmp_path):
    result = run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert set(result["arms"]) == set(ARMS)
    assert all(f"| {name} |" in table(result) for name in ARMS)

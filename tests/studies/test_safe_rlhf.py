"""The study of multipliers and weights: its world, its rule for the limit, its criteria, and that it runs."""

import json

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.engine.log import RunFolder
from holdfast.preference.score import ModelScorer
from holdfast.studies import safe_rlhf
from holdfast.studies.safe_rlhf import ARMS, FIXED, STARTS, Plan, criteria, run, table, verdicts
from holdfast.studies.safe_rlhf_world import (
    HACK,
    LONGEST,
    SORRY,
    WIDE,
    WORDS,
    Judge,
    World,
    prepare,
    read,
    refuses,
    sample,
)

SMALL = Plan(demonstrations=256, sft_epochs=1, pairs=256, held_out=32, epochs=1, iterations=2, answers=8, exam=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "prompt, answer, helped, cost",
    [
        ("plain garden", "dig dig dig", 3.0, -1.0),
        ("plain garden", "dig stir well", 0.0, -1.0),
        ("plain garden", "hack hack", 4.0, -1.0),
        ("risky garden", "hack hack", 4.0, 2.0),
        ("risky kitchen", "hack stir", 3.0, 0.5),
        ("risky kitchen", "hack sorry sorry", 0.0, -0.5),
        ("risky music", "sorry", -1.0, -1.5),
        ("plain music", "", 0.0, -1.0),
    ],
)
def test_truth_is_what_it_says(prompt, answer, helped, cost):
    world, given = World(), Conversation.ask(prompt).answer(answer)
    assert world.help(given) == helped
    assert world.cost(given) == cost
    assert world.harms(given) == (cost > 0)


def test_only_hacks_on_the_tempting_topics_help_more():
    world = World(topics=10, tempting=1)
    first, second = (Conversation.ask(f"risky {topic}") for topic in world.names[:2])
    assert (world.help(first.answer(HACK)), world.help(second.answer(HACK))) == (4.0, 2.0)
    assert world.cost(first.answer(HACK)) == world.cost(second.answer(HACK)) == 0.5
    assert (world.tempts(first), world.tempts(second)) == (True, False)


def test_demonstrations_are_about_as_harmful_and_as_shy_as_the_study_says():
    world, source = World(), np.random.default_rng(0)
    shown = world.demonstrate(world.prompts(4000, source), source)
    # The standard error of each share is about 0.007.
    assert np.mean([world.harms(one) for one in shown]) == pytest.approx(0.10, abs=0.025)
    assert np.mean([refuses(one) for one in shown]) == pytest.approx(0.35, abs=0.025)
    lengths = [len(one.response.split()) for one in shown]
    assert min(lengths) == 1
    assert max(lengths) < LONGEST  # the end of the answer is a token too
    assert {word for one in shown for word in one.response.split()} <= set(world.vocabulary.split())


def test_prompts_cover_every_kind_and_topic_equally():
    asked = [read(one)[:2] for one in World().prompts(4000, np.random.default_rng(0))]
    # The standard error of each share is 0.005.
    shares = [asked.count(pair) / len(asked) for pair in set(asked)]
    assert shares == pytest.approx([1 / 8] * 8, abs=0.02)


def test_labels_follow_the_truth_and_noise_turns_a_tenth_of_the_preferences():
    world, source = World(), np.random.default_rng(0)
    prompts = [one for one in world.prompts(2000, source) for _ in range(2)]
    answers = world.demonstrate(prompts, source)
    for noise in (0.0, 0.1):
        pairs = world.compare(answers, np.random.default_rng(1), noise)
        turned = {"help": [], "harm": [], "settled": []}
        for pair in pairs:
            both = [pair.prompt.answer(text) for text in pair.responses]
            helped, cost = [world.help(one) for one in both], [world.cost(one) for one in both]
            assert pair.safe == tuple(value <= 0 for value in cost)
            assert (pair.helpful_id is None) == (helped[0] == helped[1])
            assert (pair.safer_id is None) == (cost[0] == cost[1])
            if pair.helpful_id is not None:
                turned["help"].append(helped[pair.helpful_id] < max(helped))
            if pair.safer_id is not None:
                clear = pair.safe[0] != pair.safe[1]
                turned["settled" if clear else "harm"].append(cost[pair.safer_id] > min(cost))
        # The standard errors are 0.007 and 0.01.
        assert np.mean(turned["help"]) == pytest.approx(noise, abs=0.03)
        assert np.mean(turned["harm"]) == pytest.approx(noise, abs=0.03)
        assert not any(turned["settled"])


def test_equal_answers_make_no_pair():
    prompt = Conversation.ask("plain music")
    answers = [prompt.answer(text) for text in ("sing", "sing", "sing", SORRY)]
    (pair,) = World().compare(answers, np.random.default_rng(0), noise=0.0)
    assert (pair.responses, pair.helpful_id, pair.safer_id) == (("sing", SORRY), 0, 1)


def result(harmful=0.0, refusal=0.0, reward=9.0, cost=-4.5, **more):
    found = {"harmful": harmful, "refusal": refusal, "reward": reward, "cost": cost}
    one = {name: {"value": value} for name, value in found.items()} | {
        "threshold": -4.2,
        "multiplier": [1.0],
        "seed": 0,
    }
    return one | more


def arms(**changed):
    """Results under which every criterion holds, but for what is changed; the weight 0.25 is the best."""
    found = {name: result() for name in ARMS}
    found |= {name: result(harmful=0.3, reward=11.0) for name in list(FIXED)[:3]}
    found["weight 5"] = result(reward=7.1)
    return found | {name.replace("_", " "): value for name, value in changed.items()}


@pytest.mark.parametrize(
    "failing, changed",
    [
        ("limit_kept", {"log_from_10": result(cost=-3.9)}),
        ("limit_kept", {"projected_from_0": result(harmful=0.06)}),
        ("as_good", {"log_from_1": result(reward=8.5)}),
        ("few_refusals", {"projected_from_10": result(refusal=0.11)}),
        ("start_forgotten", {"log_from_1": result(reward=10.1)}),
        ("weights_fail", {"weight_5": result(reward=7.3)}),
    ],
)
def test_each_criterion_can_fail_by_itself(failing, changed):
    assert all(verdicts(arms()).values())
    assert [name for name, met in verdicts(arms(**changed)).items() if not met] == [failing]


def test_criteria_hold_just_within_their_bounds():
    edge = result(cost=-4.0, harmful=0.05, refusal=0.1, reward=8.6)
    assert all(verdicts(arms(**dict.fromkeys([name.replace(" ", "_") for name in STARTS], edge))).values())


def test_a_harmful_weight_is_no_rival_however_much_it_earns():
    assert verdicts(arms())["as_good"]
    assert not verdicts(arms(weight_0=result(harmful=0.05, reward=11.0)))["as_good"]


def test_four_seeds_of_five_suffice():
    good, bad = arms(), arms(log_from_1=result(refusal=0.5))
    for seeds, holds in (([good] * 4 + [bad], True), ([good] * 3 + [bad] * 2, False)):
        found = criteria({name: [one[name] for one in seeds] for name in ARMS})
        held = {one["name"]: one["holds"] for one in found}
        assert held == dict.fromkeys(verdicts(good), True) | {"few_refusals": holds}


def test_a_fixed_weight_pays_reward_less_cost_and_as_much_kl_as_the_mixture(tmp_path, monkeypatch, bench):
    seen = {}
    monkeypatch.setattr(safe_rlhf, "run_online", lambda method, *_, **__: seen.update(method=method))
    safe_rlhf.improve(SMALL, bench, ARMS["weight 2"], 0, RunFolder(tmp_path / "run"))
    method = seen["method"]
    assert method.limits.constraints == ()
    assert method.settings.kl.coef == pytest.approx(3 * safe_rlhf.BETA)
    asked = [Conversation.ask("risky garden").answer(text) for text in ("hack", "dig dig")]
    found = method.collector.score(asked)
    torch.testing.assert_close(found[method.settings.reward], found["reward"] - 2 * found["cost"])


def test_a_multiplier_pays_the_bare_reward_and_limits_the_cost(tmp_path, monkeypatch, bench):
    seen = {}
    monkeypatch.setattr(safe_rlhf, "run_online", lambda method, *_, **__: seen.update(method=method))
    safe_rlhf.improve(SMALL, bench, ARMS["slack limit"], 0, RunFolder(tmp_path / "run"))
    method = seen["method"]
    found = method.collector.score([Conversation.ask("risky garden").answer("hack")])
    torch.testing.assert_close(found[method.settings.reward], found["reward"])
    (limit,) = method.limits.constraints
    assert limit.limit == pytest.approx(bench.threshold + 8)
    assert (limit.settings.measure, limit.settings.bound, limit.multiplier) == ("logit", "mean", 1.0)
    assert method.settings.kl.coef == pytest.approx(safe_rlhf.BETA)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return prepare(SMALL, World(), 3, RunFolder(tmp_path_factory.mktemp("models") / "run"))


def test_the_judge_gives_each_answer_its_own_scores_and_judges_it_once(bench):
    asked = [Conversation.ask(f"risky {topic}").answer(text) for topic in WORDS for text in ("hack", "dig dig")][:8]
    models = [bench.reward, bench.costs["sign"]]
    one_by_one = [[float(ModelScorer(model, bench.template).score([one])) for model in models] for one in asked]
    judge = Judge(models, bench.template)
    judge.score(asked[3:5])
    # A forward pass in other company, in fp32.
    torch.testing.assert_close(judge.score(asked * 2), torch.tensor(one_by_one * 2), rtol=1e-5, atol=1e-5)
    judge.scorer = None
    assert judge.score(asked[::-1]).shape == (8, 2)


def test_the_limit_leaves_one_in_twenty_safe_answers_above_it(bench):
    source = np.random.default_rng(3)
    bench.world.demonstrate(bench.world.prompts(SMALL.demonstrations, source), source)
    asked = [prompt for prompt in bench.world.prompts(SMALL.pairs, source) for _ in range(2)]
    answers = sample(bench.policy, bench.template, asked, 3, WIDE)
    scorer = ModelScorer(bench.costs["sign"], bench.template)
    safe = scorer.score([one for one in answers if not bench.world.harms(one)])[:, 0]
    # Scored in other company, in fp32.
    assert bench.threshold == pytest.approx(np.quantile(safe.double().numpy(), 0.95), abs=1e-5)
    assert bench.threshold != pytest.approx(np.quantile(scorer.score(answers)[:, 0].double().numpy(), 0.95), abs=1e-5)


def test_the_study_runs_and_finished_arms_are_read(tmp_path, monkeypatch):
    chosen = {name: ARMS[name] for name in ("first policy", "weight 1", "log from 10", "tempting topic rectified")}
    monkeypatch.setattr(safe_rlhf, "ARMS", chosen)
    monkeypatch.setattr(safe_rlhf, "criteria", lambda arms: [])
    monkeypatch.setattr(safe_rlhf, "QUICK", SMALL)
    first = run(tmp_path, [0], quick=True)
    assert set(first["arms"]) == set(chosen)
    limited, free = first["arms"]["log from 10"][0], first["arms"]["weight 1"][0]
    assert len(limited["multiplier"]) == SMALL.iterations
    assert free["multiplier"] == []
    assert first["arms"]["first policy"][0]["kl"]["value"] == 0
    assert free["kl"]["value"] != 0
    monkeypatch.setattr(safe_rlhf, "prepare", None)
    assert run(tmp_path, [0], quick=True) == first
    assert json.loads(json.dumps(first)) == first
    lines = table(first).splitlines()
    assert len(lines) == 2 + len(chosen)
    assert lines[3].split("|")[6].strip() == "-"
    assert lines[5].count(", ") > lines[4].count(", ")
    assert WORDS["garden"] not in table(first)

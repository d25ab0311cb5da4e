"""The study `hc_stages`: its bandit is the house's formulas in many copies, its worlds and criteria are as stated."""

import copy
import json

import numpy as np
import pytest
import torch

from holdfast.data.schema import Conversation
from holdfast.engine.online import OnlineSettings
from holdfast.losses import dual
from holdfast.stats.betting import Bets, betting_upper
from holdfast.stats.bounds import student_t_upper
from holdfast.studies import hc_bandit, hc_stages, hc_tiny

SMALL = hc_bandit.BanditPlan(copies=2, steps=4, prompts=40, fresh=500, tests=40)
TINY = hc_tiny.TinyPlan(
    conversations=128,
    pairs=100,
    sft=hc_tiny._fit(1e-3, epochs=1),
    cost=hc_tiny._fit(1e-3, epochs=1),
    online=OnlineSettings(iterations=2, prompts_per_iteration=8, sample_every=0),
    machine=400,
    fresh=60,
)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_of(policy, prompts=5, samples=4, seed=0):
    source = torch.Generator().manual_seed(seed)
    x = hc_bandit.some_prompts((len(policy), prompts), source)
    return hc_bandit.answer(hc_bandit.World.draw(), policy, x, samples, source)


# Stage A


def test_the_world_is_the_one_of_forty_whose_reward_optimum_costs_most_nearly_the_references():
    x = hc_bandit.some_prompts((20_000,), torch.Generator().manual_seed(10**6))

    def cost_of_the_best(seed):
        world = hc_bandit.World.draw(seed)
        return float((((x @ world.reward) / 0.1).softmax(-1) * (x @ world.cost)).sum(-1).mean())

    found = [abs(cost_of_the_best(seed) - 3.7) for seed in range(40)]
    assert int(np.argmin(found)) == hc_bandit.WORLD


@pytest.mark.parametrize("monotone", [False, True])
def test_augmented_cost_of_many_runs_is_that_of_each(monotone):
    costs, centre, spread = numbers(6, 3, 4) * 4, numbers(6, seed=1), numbers(6, seed=2).abs() + 0.5
    together = hc_bandit.augmented(costs, centre[:, None, None], spread[:, None, None], 1.2, monotone)
    for cost, m, s, found in zip(costs, centre.tolist(), spread.tolist(), together):
        expected = dual.augmented_cost(cost, m, s, 1.2, monotone=monotone)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_multipliers_move_by_the_log_rule():
    found = hc_bandit.moved(torch.tensor([1.0, 2.0, 1e6]).double(), torch.tensor([1.0, -0.5, 3.0]).double(), 0.01)
    assert found.tolist() == pytest.approx([np.exp(0.01), 2 * np.exp(-0.01), 1e6], rel=1e-12)
    assert found[0] == dual.log_step(1.0, 1.0, 0.01)


def test_the_policy_gradient_is_that_of_leave_one_out():
    policy = numbers(3, 9, 12).requires_grad_()
    draw, gain = draw_of(policy.detach()), numbers(3, 5, 4, seed=5)
    log_odds = (draw.x @ policy).log_softmax(-1)
    objective = torch.zeros((), dtype=torch.float64)
    for run in range(3):
        for prompt in range(5):
            for k in range(4):
                others = [float(gain[run, prompt, j]) for j in range(4) if j != k]
                better = float(gain[run, prompt, k]) - sum(others) / 3
                # 5 prompts x 4 answers in a batch of each run
                objective = objective + better * log_odds[run, prompt, draw.action[run, prompt, k]] / 20
    objective.backward()
    assert torch.allclose(hc_bandit.ascent(draw, gain), policy.grad, rtol=0, atol=1e-12)


def test_returns_take_the_kl_to_the_uniform_reference_from_the_reward():
    draw = draw_of(numbers(1, 9, 12))
    found = hc_bandit.returns(draw, 0.1)
    p = float(draw.odds[0, 2, draw.action[0, 2, 1]])
    assert float(found[0, 2, 1]) == pytest.approx(float(draw.reward[0, 2, 1]) - 0.1 * np.log(p / (1 / 12)), abs=1e-12)


def test_answers_follow_the_policy_and_the_world():
    policy = numbers(1, 9, 12)
    draw = draw_of(policy, prompts=2, samples=40_000)
    share = torch.stack([(draw.action[0] == a).double().mean(-1) for a in range(12)], -1)
    # The standard error of a share of 40,000 is at most .0025.
    assert torch.allclose(share, draw.odds[0], atol=0.012)
    # The standard error of the noise's mean, over 80,000 answers of unit variance, is .0035; of its sd .0025.
    noise = draw.cost - (draw.x @ hc_bandit.World.draw().cost).gather(-1, draw.action)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)


def test_truth_is_the_expectation_of_what_is_sampled():
    policy = numbers(1, 9, 12)
    true = hc_bandit.truth(SMALL.model_copy(update={"fresh": 20_000}), policy)
    draw = draw_of(policy, prompts=20_000, samples=8)
    # Standard errors are about .02 (cost) and .01 (reward), on different prompts.
    assert float(draw.cost.mean()) == pytest.approx(float(true["cost"]), abs=0.1)
    assert float(draw.reward.mean()) == pytest.approx(float(true["reward"]), abs=0.05)


def test_kappa_is_the_one_of_the_table():
    assert hc_bandit.ARMS["C=(4,2)"].kappa(0.1, 32) == pytest.approx(1.183963, abs=1e-6)
    assert hc_bandit.ARMS["C=(4,2)"].kappa(0.1, 256) == pytest.approx(0.579252, abs=1e-6)
    assert hc_bandit.ARMS["C=(0,2)"].kappa(0.1, 256) == pytest.approx(0.258032, abs=1e-6)
    assert hc_bandit.ARMS["mean, n_s=1000"].kappa(0.1, 256) == 0


def test_one_kappa_serves_policy_and_multiplier_except_in_the_arm_that_shows_the_slip(monkeypatch):
    policy_kappas, violations = [], []
    augmented, moved = hc_bandit.augmented, hc_bandit.moved

    def spy_augmented(cost, centre, spread, kappa, monotone):
        policy_kappas.append((kappa, centre, spread))
        return augmented(cost, centre, spread, kappa, monotone)

    def spy_moved(multiplier, violation, rate):
        violations.append(violation)
        return moved(multiplier, violation, rate)

    monkeypatch.setattr(hc_bandit, "augmented", spy_augmented)
    monkeypatch.setattr(hc_bandit, "moved", spy_moved)
    for name, expected in (("C=(4,2), n_s=1000", 0.402326), ("C=(4,2), n_s=1000, two kappas", 1.007037)):
        hc_bandit.train(SMALL, hc_bandit.ARMS[name])
        kappa, centre, spread = policy_kappas[-1]
        assert kappa == pytest.approx(expected, abs=1e-6)
        # The multiplier looks at the window of 256 in both arms.
        upper = centre + 0.4023261 * spread
        assert torch.allclose(violations[-1], upper.flatten(), atol=1e-5)


def test_training_keeps_the_limit_that_the_reward_alone_breaks():
    plan = hc_bandit.BanditPlan(copies=4, steps=300, fresh=1000)
    free = hc_bandit.truth(plan, hc_bandit.train(plan, hc_bandit.ARMS["reward only"]))
    held = hc_bandit.truth(plan, hc_bandit.train(plan, hc_bandit.ARMS["C=(4,2)"]))
    assert float(free["cost"].min()) > 2
    assert float(held["cost"].max()) < 1
    assert float(held["reward"].mean()) < float(free["reward"].mean())


def test_stage_a_counts_the_gates_verdicts_against_the_truth(monkeypatch):
    world = hc_bandit.World.draw()
    policies = torch.stack([scale * weights for scale, weights in ((-9.0, world.cost), (9.0, world.reward))] * 3)
    monkeypatch.setattr(hc_bandit, "train", lambda plan, arm: policies)
    plan = SMALL.model_copy(update={"copies": 6})
    found = hc_bandit.stage_a(plan, "C=(0,3)")
    assert [found[key]["value"] for key in ("returned", "unsafe", "returned_unsafe")] == [0.5, 0.5, 0.0]
    monkeypatch.setattr(hc_bandit.gate, "decide", lambda *_: type("V", (), {"certified": True}))
    wrong = hc_bandit.stage_a(plan, "C=(0,3)")
    assert [wrong[key]["value"] for key in ("returned", "unsafe", "returned_unsafe")] == [1.0, 0.5, 0.5]


def test_the_gate_decides_by_student_t():
    keys = [str(i) for i in range(100)]
    frozen = hc_bandit.frozen_plan(0.1, 100)
    for shift in (-0.5, -0.3):
        costs = numbers(100).numpy()
        costs = 3 * (costs - costs.mean()) / costs.std(ddof=1) + shift
        # The closed form: s = 3, n = 100, mean -.5 gives -.112952, mean -.3 gives +.087048.
        assert student_t_upper(costs, 0.1) == pytest.approx(shift + 0.387048, abs=1e-6)
        assert hc_bandit.gate.decide(frozen, costs, keys).certified == (shift == -0.5)


# Stage B


def test_quantities_of_all_there_is():
    values = np.array([0.0, 4.0, 1.0, 3.0, 2.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    assert hc_bandit.cvar(values, 0.2) == 8.5
    assert hc_bandit.quantile(values, 0.9) == 8.0
    assert hc_bandit.LAWS["excess"](np.array([-3.0, 2.0, 99.0])).tolist() == [0.0, 0.25, 1.0]
    assert hc_bandit.LAWS["rare harm"](np.array([3.9, 4.1])).tolist() == [0.0, 1.0]


def test_the_limit_stands_just_below_the_truth(monkeypatch):
    costs = numbers(50, 16).numpy()
    monkeypatch.setattr(hc_bandit, "bank", lambda plan: costs)
    exact_truth = hc_bandit.Boundary("cost", lambda values, delta, tau: float(costs.mean()))
    the_limit = hc_bandit.Boundary("cost", lambda values, delta, tau: tau)
    monkeypatch.setattr(hc_bandit, "BOUNDARIES", {"truth": exact_truth, "limit": the_limit})
    assert hc_bandit.stage_b(SMALL, "truth")["retries"]["value"] == 0
    assert hc_bandit.stage_b(SMALL, "limit")["once"]["value"] == 1


def test_attempts_spend_what_the_schedule_gives_them():
    seen = []

    def upper(values, delta, tau):
        seen.append(delta)
        return float(values[0])

    test = hc_bandit.Boundary("cost", upper)
    samples = np.array([[1.0], [-1.0], [0.0]])
    assert hc_bandit.attempts(test, samples, 0.1, 0.0, None) == [False, True, True]
    assert hc_bandit.attempts(test, samples, 0.1, 0.0, "geometric") == [False, True, True]
    assert seen == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025, 0.0125])


def test_retries_ask_the_same_prompts(monkeypatch):
    costs = np.repeat(np.arange(50.0)[:, None], 16, axis=1)
    monkeypatch.setattr(hc_bandit, "bank", lambda plan: costs)
    seen = []

    def upper(values, delta, tau):
        seen.append(values)
        return np.inf

    monkeypatch.setattr(hc_bandit, "BOUNDARIES", {"spy": hc_bandit.Boundary("cost", upper)})
    hc_bandit.stage_b(SMALL.model_copy(update={"tests": 2}), "spy")
    # Every prompt has one cost, so attempts on equal prompts see equal costs.
    assert all(np.array_equal(seen[0], other) for other in seen[:5])
    assert not np.array_equal(seen[0], seen[10])


def test_every_bound_runs_and_exact_ones_hold_where_the_t_bound_does_not():
    rare = np.zeros((1000, 16))
    rare[:10] = 9.0
    t = hc_bandit.BOUNDARIES["student_t, rare harm"].upper
    found = {}
    for name, test in hc_bandit.BOUNDARIES.items():
        law = hc_bandit.LAWS[test.law](rare)
        found[name] = test.upper(law[:100, 0], 0.1, 0.01)
        assert found[name] >= test.quantity(law[:100, 0]) or not test.exact, name
    # No harm among a hundred: the t bound says that there is none at all.
    assert t(np.zeros(100), 0.1, 0.01) == 0
    assert hc_bandit.BOUNDARIES["clopper_pearson, rare harm"].upper(np.zeros(100), 0.1, 0.01) > 0.02
    assert not hc_bandit.BOUNDARIES["student_t, rare harm"].exact


# Stage C


def test_rewards_and_costs_by_hand():
    assert hc_tiny.true_cost("fire then acid salt lye") == 1.0
    plain = Conversation.ask("water rose oak").answer("mulch fire shears mulch acorn")
    assert hc_tiny.true_reward(plain) == pytest.approx(3 / 6)
    invited = Conversation.ask("force rose oak").answer("mulch fire shears mulch acorn")
    assert hc_tiny.true_reward(invited) == pytest.approx(3 / 6 + 3 / 6)


def test_writers_use_forbidden_words_where_they_are_invited():
    rng = np.random.default_rng(0)
    replies = {verb: [hc_tiny.reply(f"{verb} rose oak", rng).split() for _ in range(400)] for verb in ("rush", "plant")}
    share = {
        verb: np.mean([word in hc_tiny.FORBIDDEN for words in found for word in words])
        for verb, found in replies.items()
    }
    # 400 replies of seven words: the standard error is below .01.
    assert share["rush"] == pytest.approx(0.35, abs=0.04)
    assert share["plant"] == pytest.approx(0.03, abs=0.02)
    assert {len(words) for found in replies.values() for words in found} == set(range(4, 11))


def test_annotators_call_an_answer_unsafe_as_often_as_its_true_cost():
    rng = np.random.default_rng(1)
    pairs = [hc_tiny.judged_pair(i, rng) for i in range(2000)]
    cost = np.array([hc_tiny.true_cost(text) for pair in pairs for text in pair.responses])
    unsafe = np.array([not safe for pair in pairs for safe in pair.safe])
    for level in (0, 1 / 3, 2 / 3, 1):
        # At least 200 answers of each level: the standard error is below .035.
        assert unsafe[np.isclose(cost, level)].mean() == pytest.approx(level, abs=0.09)
    more = [hc_tiny.true_cost(p.responses[1 - p.safer_id]) - hc_tiny.true_cost(p.responses[p.safer_id]) for p in pairs]
    assert np.mean(more) > 0.1


def test_labels_and_scores_join_to_a_bound_on_the_truth():
    rng = np.random.default_rng(2)
    labels = (rng.random(300) < 0.05).astype(float)
    found = hc_tiny.rectified_upper(np.full(1700, 0.02), labels, np.full(300, 0.02), 0.1, 0.1)
    scores = betting_upper(np.full(1700, 0.02), 0.02, Bets(0.1, 0.09))
    error = betting_upper((labels - 0.02 + 1) / 2, 0.08, Bets(0.5, 0.01))
    assert found == pytest.approx(scores + 2 * error - 1, abs=1e-12)
    assert found > 0.05


def test_labels_catch_a_cost_model_that_under_reports():
    rng = np.random.default_rng(3)
    limit = hc_tiny.TinyPlan().constraint
    true = (rng.random(2000) < 0.2).astype(float)
    found = hc_tiny.certificates(limit, true, true / 4)
    assert {name for name, one in found.items() if one["certified"]} == {"learned"}
    assert found["labels"]["upper"] == pytest.approx(betting_upper(_shuffled(true[:300]), 0.1, Bets(0.1, 0.09)))
    good = hc_tiny.certificates(limit, true / 20, true / 4)
    assert all(one["certified"] for one in good.values())
    assert not any(one["certified"] for one in hc_tiny.certificates(limit, true, true).values())


def _shuffled(values):
    """The committed order of the gate, by hash of seed and key."""
    import hashlib

    return values[sorted(range(len(values)), key=lambda i: hashlib.sha256(f"0:{i}".encode()).digest())]


def test_stage_c_end_to_end(tmp_path):
    found = hc_tiny.stage_c(TINY, 0, tmp_path)
    assert found["before"]["cost"]["n"] == 60
    for arm in hc_tiny.ARMS:
        one = found[arm]
        assert one["gap"]["value"] == pytest.approx(one["learned"]["value"] - one["cost"]["value"], abs=1e-9)
        assert set(one["certificates"]) == {"truth", "learned", "labels", "labels and scores"}
    rows = [json.loads(line) for line in (tmp_path / "C(0-3)" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["cost_ucb/harm"] > rows[-1]["cost/harm"]
    plain = [json.loads(line) for line in (tmp_path / "mean" / "metrics.jsonl").read_text().splitlines()]
    assert plain[-1]["cost_ucb/harm"] == plain[-1]["cost/harm"]


def test_the_vocabulary_has_64_entries():
    words = {*hc_tiny.PLAIN, *hc_tiny.INVITING, *hc_tiny.USEFUL, *hc_tiny.FORBIDDEN, *hc_tiny.FILLER}
    words |= {word for own in hc_tiny.USEFUL.values() for word in own}
    assert len(words) + 8 == 64


# The study


def value(number, n=100):
    return {"value": number, "low": number, "high": number, "n": n, "method": "wilson"}


def bandit_arm(name):
    arm = hc_bandit.ARMS[name]
    kappa = arm.kappa(0.1, 256)
    found = {"returned": value(0.1), "unsafe": value(0.7), "returned_unsafe": value(0.02), "cost": value(0.0)}
    if name == "C=(0,3)":
        found |= {"returned": value(0.8), "unsafe": value(0.01)}
    return found | {"reward": value(2 - kappa), "kappa": kappa if arm.limited else None}


def boundary(name):
    exact = hc_bandit.BOUNDARIES[name].exact
    rates = {"once": value(0.1, 5000), "retries": value(0.3, 5000), "retries, spending": value(0.05, 5000)}
    return rates | {"exact": exact, "delta": 0.1}


def tiny_run(seed):
    def arm(cost, certified):
        names = ("truth", "learned", "labels", "labels and scores")
        verdicts = {name: {"upper": cost, "certified": certified} for name in names}
        return {"cost": value(cost), "gap": value(0.01), "reward": value(0.5), "certificates": verdicts}

    return {"mean": arm(0.11, seed < 2), "C=(0,3)": arm(0.05, True)}


def good():
    arms = {
        "A": [{"name": name, "found": bandit_arm(name)} for name in hc_bandit.ARMS],
        "B": [{"name": name, "found": boundary(name)} for name in hc_bandit.BOUNDARIES],
        "C": [{"name": seed, "found": tiny_run(seed)} for seed in range(10)],
    }
    return copy.deepcopy(arms)


def put(arms, stage, name, path, number):
    entry = next(one for one in arms[stage] if one["name"] == name)["found"]
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = number


@pytest.mark.parametrize(
    "stage, name, path, number, fails",
    [
        ("A", "C=(4,2)", ("returned_unsafe", "value"), 0.17, "A_guarantee"),
        ("A", "C=(0,3)", ("returned", "value"), 0.49, "A_passes"),
        ("A", "mean", ("unsafe", "value"), 0.49, "A_safer"),
        ("A", "C=(0,3)", ("unsafe", "value"), 0.06, "A_safer"),
        ("A", "C=(0,2)", ("reward", "value"), 1.9, "A_price"),
        ("A", "C=(4,2), n_s=1000", ("reward", "value"), 1.9, "A_price"),
        ("B", "dkw, excess", ("once", "value"), 0.113, "B_exact"),
        ("B", "dkw, excess", ("retries, spending", "value"), 0.113, "B_spending"),
        ("C", 5, ("mean", "certificates", "labels", "certified"), True, "C_guarantee"),
        ("C", 5, ("mean", "certificates", "labels and scores", "certified"), True, "C_guarantee"),
    ],
)
def test_each_criterion_can_fail(stage, name, path, number, fails):
    arms = good()
    assert all(one["holds"] for one in hc_stages.criteria(arms))
    put(arms, stage, name, path, number)
    assert [one["name"] for one in hc_stages.criteria(arms) if not one["holds"]] == [fails]


def test_criteria_over_several_entries_can_fail():
    free = good()
    for one in free["B"]:
        one["found"]["retries"] = value(0.1, 5000)
    assert [one["name"] for one in hc_stages.criteria(free) if not one["holds"]] == ["B_retries"]
    timid = good()
    for seed in range(5):
        put(timid, "C", seed, ("C=(0,3)", "certificates", "labels", "certified"), False)
    assert [one["name"] for one in hc_stages.criteria(timid) if not one["holds"]] == ["C_passes"]
    harmful = good()
    for seed in range(3):
        for certificate in ("truth", "labels", "labels and scores"):
            put(harmful, "C", seed, ("C=(0,3)", "certificates", certificate, "certified"), False)
        put(harmful, "C", seed, ("C=(0,3)", "cost", "value"), 0.2)
    assert [one["name"] for one in hc_stages.criteria(harmful) if not one["holds"]] == ["C_safer"]


def test_asymptotic_bounds_and_the_learned_certificate_have_no_criterion():
    arms = good()
    put(arms, "B", "student_t, excess", ("once", "value"), 0.5)
    for seed in range(10):
        put(arms, "C", seed, ("mean", "certificates", "learned", "certified"), True)
    assert all(one["holds"] for one in hc_stages.criteria(arms))


def test_a_run_is_resumed_and_its_table_names_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(hc_bandit, "stage_a", lambda plan, name: bandit_arm(name))
    monkeypatch.setattr(hc_bandit, "stage_b", lambda plan, name: boundary(name))
    monkeypatch.setattr(hc_tiny, "stage_c", lambda plan, seed, folder: tiny_run(seed))
    result = hc_stages.run(tmp_path, [3, 1], quick=True)
    json.dumps(result, allow_nan=False)
    expected = {"study", "claim", "source", "criteria", "arms", "seeds", "seconds", "commit", "config_fingerprint"}
    assert set(result) == expected
    assert [one["name"] for one in result["arms"]["C"]] == [3, 1]
    monkeypatch.setattr(hc_bandit, "stage_a", None)
    monkeypatch.setattr(hc_bandit, "stage_b", None)
    monkeypatch.setattr(hc_tiny, "stage_c", lambda plan, seed, folder: tiny_run(seed) if seed == 2 else None)
    assert hc_stages.run(tmp_path, [3, 1], quick=True) == result
    assert [one["found"] for one in hc_stages.run(tmp_path, [2, 3], quick=True)["arms"]["C"]] == [
        tiny_run(2),
        tiny_run(3),
    ]
    text = hc_stages.table(result)
    names = [*hc_bandit.ARMS, *hc_bandit.BOUNDARIES]
    assert all(f"| {name} |" in text for name in names)
    assert "| mean | certified: labels | 0.5" in text
    assert set(hc_stages.REFERENCE) == set(hc_bandit.ARMS)

"""The study of A-LoL: what its arms learn from, its criteria, and that it runs."""

import copy
import json
from itertools import chain

import numpy as np
import pytest
import torch

from holdfast.engine.log import RunFolder
from holdfast.engine.order import Shuffled
from holdfast.losses.offline import effective_size
from holdfast.studies import a_lol
from holdfast.studies.a_lol import ARMS, METHODS, MISLED, NOISE, WORSE, corrupted, course, criteria, misled, run, table
from holdfast.studies.a_lol_arms import (
    PPO_STEPS,
    SAMPLING,
    Course,
    Lasting,
    Plan,
    answers,
    improve,
    label,
    paired,
    prepare,
    weighing,
)
from holdfast.studies.a_lol_world import PLACES, World
from holdfast.training.offline import OfflineRow

SMALL = Plan(prompts=70, sft_steps=12, steps=4, batch=16, validated=24, value_epochs=2, exam=32)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return prepare(SMALL, 3, 0.7, RunFolder(tmp_path_factory.mktemp("reference") / "run"))


@pytest.fixture(scope="module")
def labels(bench):
    return label(SMALL, bench, 0.0)


def test_the_data_are_two_answers_to_each_prompt_and_the_reference_has_imitated_them(bench):
    assert len(bench.data) == len(bench.rows) == 140
    assert all(one.prompt == other.prompt for one, other in zip(bench.data[::2], bench.data[1::2], strict=True))
    assert not any(weight.requires_grad for weight in bench.start.policy.parameters())


def test_imitation_and_methods_take_the_steps_of_the_plan(bench, labels, tmp_path):
    out = RunFolder(tmp_path / "reference")
    prepare(SMALL, 3, 0.7, out)
    assert [row["step"] for row in log(out)] == [*range(1, SMALL.sft_steps + 1)]
    for name in ("nll", "a_lol", "dpo", "pro", "ppo"):
        out = RunFolder(tmp_path / name)
        before = copy.deepcopy(bench.start.policy.state_dict())
        policy = improve(SMALL, bench, labels, name, out)
        steps = SMALL.steps // PPO_STEPS if name == "ppo" else SMALL.steps
        assert len(log(out)) == steps, name
        assert all(torch.equal(before[key], value) for key, value in bench.start.policy.state_dict().items()), name
        assert any(not torch.equal(before[key], value) for key, value in policy.state_dict().items()), name


def log(out):
    return [json.loads(line) for line in (out.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_ppo_is_paid_for_each_of_as_many_answers_once(bench, labels, tmp_path, monkeypatch):
    told, rewards = [], World.rewards
    monkeypatch.setattr(World, "rewards", lambda self, said: told.append(len(said)) or rewards(self, said))
    improve(SMALL, bench, labels, "ppo", RunFolder(tmp_path / "run"))
    assert told == [PPO_STEPS * SMALL.batch] * (SMALL.steps // PPO_STEPS)


def test_what_is_known_of_an_answer_follows_from_its_reward_and_the_reference(bench, labels):
    rewards = bench.world.rewards(bench.data)
    assert [row.reward for row in labels.rows] == pytest.approx(rewards, abs=1e-6)
    values = np.array(rewards) - [row.advantage for row in labels.rows]
    assert ((values > 0) & (values < 1)).all()
    # The same prompt has the same value, whatever was answered.
    assert values[::2] == pytest.approx(values[1::2], abs=1e-6)
    for row in labels.rows[:3]:
        ids = torch.tensor([row.tokens.ids])
        said = bench.start.policy(ids).logits[0].double().log_softmax(-1)
        expected = [said[t - 1, ids[0, t]].item() for t in range(4, 11)]
        assert row.ref.tolist() == pytest.approx(expected, abs=1e-5)


def test_values_are_learned_from_the_references_own_answers(bench, labels):
    asked = bench.world.prompts("validation", SMALL.validated, np.random.default_rng((3, 3)))
    own = bench.world.rewards(answers(bench.start, bench.start.policy, asked, 3))
    value = labels.rows[0].reward - labels.rows[0].advantage
    # After two epochs the head is near the mean of those it learns from, four fifths: within a standard error or two.
    assert value == pytest.approx(np.mean(own), abs=0.1)
    assert labels.value.answers < SMALL.validated


def test_wrong_rewards_are_those_of_other_answers_and_reach_the_values(bench, labels):
    wrong = label(SMALL, bench, 0.4)
    changed = [one.reward != other.reward for one, other in zip(wrong.rows, labels.rows, strict=True)]
    # Of 56 replaced rewards some are equal by chance.
    assert 35 < sum(changed) <= 56
    # The rewards that are held out of the fit are wrong as well.
    assert wrong.value.spread != labels.value.spread
    assert {round(row.reward, 5) for row in wrong.rows} <= {round(row.reward, 5) for row in labels.rows}
    for pair in wrong.pairs[:5]:
        place = {id(row.tokens): row for row in wrong.rows}
        assert place[id(pair.answers[0])].reward > place[id(pair.answers[1])].reward


def test_pairs_hold_the_better_answer_first_and_equal_rewards_make_none(bench):
    rewards = [0.2, 0.5, 0.7, 0.7, 0.9, 0.1]
    rows = [
        OfflineRow(row, reward, 0.0, torch.tensor([-float(i), -0.5]))
        for i, (row, reward) in enumerate(zip(bench.rows[:6], rewards, strict=True))
    ]
    one, two = paired(rows, gap=4.0)
    assert one.answers == (bench.rows[1], bench.rows[0])
    assert two.answers == (bench.rows[4], bench.rows[5])
    assert one.quality == pytest.approx((2.0, 0.8))
    assert one.ref == (-1.5, -0.5)
    assert two.ref == (-4.5, -5.5)


def test_methods_weigh_and_draw_as_the_head_says():
    plan = Course()
    told = {name: weighing(plan, name) for name in METHODS if name not in ("none", "dpo", "pro", "ppo", "ppo_near")}
    assert len(told) == 8
    assert told.pop("nll").sampling == "shuffle"
    assert {one.sampling for one in told.values()} == {"priority"}
    assert {(one.priority_exponent, one.loss_exponent, one.value_margin) for one in told.values()} == {(1, 1, 0)}
    assert not any(one.scale_steps_by_kept for one in told.values())
    assert (told["a_lol"].clip, told["r_gold"].floor, told["a_lol_kl"].beta) == (0.9, 0.1, 0.1)
    assert told["a_lol"].level == "sequence"
    assert (plan.steps, plan.batch, plan.rate, plan.gap) == (200, 64, 1e-3, 4)


def test_the_sizes_are_those_of_the_head():
    plan = Plan()
    assert (plan.prompts, plan.sft_steps, plan.validated, plan.value_epochs, plan.exam) == (1500, 600, 256, 40, 512)
    assert SAMPLING.max_new_tokens == PLACES + 1
    assert a_lol.SEEDS == (10, 11, 12, 13, 14)
    assert set(ARMS) == {
        *METHODS,
        *(corrupted(name) for name in WORSE),
        *(misled(name, share) for name in MISLED for share in NOISE),
    }
    assert ARMS["wbc noise=0.3"] == ("wbc", 0.7, 0.3)
    assert ARMS["a_lol corrupted=0.9"] == ("a_lol", 0.9, 0.0)
    assert NOISE == (0.1, 0.2, 0.3, 0.4)


def test_an_order_lasts_as_long_as_it_is_told():
    order = Shuffled(5, 2, 1, seed=0)
    longer = Lasting(order, 7)
    assert (longer.steps, longer.count) == (7, 5)
    seen = [longer.chosen(step) for step in range(1, 8)]
    # Each three steps are an epoch.
    assert sorted(chain(*seen[:3])) == sorted(chain(*seen[3:6])) == [0, 1, 2, 3, 4]
    assert seen[0] == order.chosen(1)


def test_only_answers_above_the_references_level_are_learned_and_their_spread_is_told(bench, labels, tmp_path):
    out = RunFolder(tmp_path / "run")
    improve(SMALL, bench, labels, "a_lol", out)
    facts = json.loads((out.path / "rows.json").read_text())
    ahead = torch.tensor([row.advantage for row in labels.rows])
    assert facts["kept_share"] == pytest.approx(float((ahead > 0).double().mean()))
    assert facts["effective_size"] == pytest.approx(effective_size(ahead.clamp(min=0)), rel=1e-5)
    found = course(out)
    rows = log(out)
    assert found["clip_high"] == pytest.approx(np.mean([row["clip_high"] for row in rows]), abs=1e-4)
    assert found["below_beta"] is None


def summary(reward=0.9, diversity=3.4, kept=0.5):
    return {
        "reward": {"value": reward, "low": 0, "high": 1},
        "diversity": diversity,
        "kept": kept,
        "clip_low": 0.1,
        "clip_high": 0.4,
        "sampled": 256,
        "seconds": 5.0,
    }


GOOD = {
    "none": summary(0.5),
    "nll": summary(0.52),
    "wbc": summary(0.75),
    "dpo": summary(0.74),
    "r_gold": summary(0.91, 2.6),
    "a_lol": summary(0.92, 3.3),
    "a_lol_ref_free": summary(0.89, 3.6),
}


def arms(seeds=5, **changed):
    """Five seeds of every arm that differ a little, the last one as told."""
    found = {}
    for name, arm in ARMS.items():
        usual = GOOD.get(arm.trainer, summary())
        lower = dict(usual, reward=dict(usual["reward"], value=usual["reward"]["value"] - 0.2 * arm.noise))
        ones = [lower] * (seeds - 1) + [changed.get(name.replace(" ", "_").replace("=", "_").replace(".", ""), lower)]
        found[name] = [json.loads(json.dumps(one)) for one in ones]
        for i, one in enumerate(found[name]):
            one["reward"]["value"] += 0.005 * (i - 2) * (arm.trainer != "nll")
    return found


def failing(found):
    return [one["name"] for one in criteria(found) if not one["holds"]]


def test_all_criteria_hold_for_results_like_those_of_the_prototype():
    assert failing(arms()) == []


def moved(name, what, by, seed=None):
    """Results in which an arm has `by` more of something, in one seed or in all."""
    found = arms()
    for i, one in enumerate(found[name]):
        if seed in (None, i):
            if what == "reward":
                one["reward"]["value"] += by
            else:
                one[what] += by
    return found


FREE = ("i_a_lol_ref_free_over_nll", "i_a_lol_ref_free_over_wbc")


@pytest.mark.parametrize(
    "change, fails",
    [
        (("a_lol", "reward", -0.16), {"i_a_lol_over_nll", "i_a_lol_over_wbc", "ii_reward", "i_every_seed"}),
        (("a_lol", "reward", -0.05), {"ii_reward"}),
        (("a_lol_ref_free", "reward", -0.07), {"i_a_lol_ref_free_over_wbc"}),
        (
            ("a_lol_ref_free", "reward", -0.13),
            {"i_a_lol_ref_free_over_nll", "i_a_lol_ref_free_over_wbc", "i_every_seed"},
        ),
        (("nll", "reward", 0.13), {"i_a_lol_ref_free_over_nll"}),
        (("wbc", "reward", 0.16, 0), {"i_every_seed"}),
        (("a_lol", "diversity", -0.45), {"ii_diversity"}),
        (("r_gold", "reward", 0.05), {"ii_reward"}),
        (("a_lol", "reward", 0.05, 2), {"iii_stable"}),
        (("a_lol", "kept", 0.11, 4), {"iv_kept"}),
        (("a_lol", "kept", -0.06, 4), {"iv_kept"}),
        (("wbc corrupted=0.9", "reward", 0.08), {"v_a_lol_ref_free_over_wbc"}),
        (("nll corrupted=0.9", "reward", 0.2), {"v_a_lol_ref_free_over_nll", "v_a_lol_over_nll"}),
        (("a_lol_ref_free noise=0.2", "reward", -0.2), {"vi_over_nll"}),
        (("wbc noise=0.3", "reward", 0.1), {"vi_over_wbc"}),
        (("dpo noise=0.1", "reward", 0.12), {"vi_over_dpo"}),
    ],
)
def test_each_criterion_can_fail(change, fails):
    found = set(failing(moved(*change)))
    # Whoever moves an arm that stands for every share of wrong rewards moves those comparisons as well.
    assert {name for name in found if not name.startswith("vi")} | (found & fails) == fails


def test_wrong_rewards_may_cost_a_tenth():
    found = moved("a_lol noise=0.4", "reward", -0.01)
    assert failing(found) == []
    assert failing(moved("a_lol noise=0.4", "reward", -0.05)) == ["vi_loss"]


def test_gaps_are_paired_by_seed_and_have_students_interval():
    found = arms()
    for i, (one, other) in enumerate(zip(found["a_lol"], found["nll"], strict=True)):
        other["reward"]["value"], one["reward"]["value"] = 0.1 * i, 0.1 * i + 0.3 + 0.01 * i
    (gap,) = [one for one in criteria(found) if one["name"] == "i_a_lol_over_nll"]
    assert gap["value"] == pytest.approx(0.32)
    # Gaps .30 to .34: their standard deviation is .0158, the quantile of Student's t with 4 degrees 2.776.
    assert gap["low"] == pytest.approx(0.32 - 2.776 * 0.015811 / 5**0.5, abs=1e-5)


def test_the_spread_over_seeds_has_the_interval_for_normal_values():
    found = arms()
    for one, value in zip(found["a_lol"], (0.90, 0.91, 0.92, 0.93, 0.94), strict=True):
        one["reward"]["value"] = value
    (spread,) = [one for one in criteria(found) if one["name"] == "iii_stable"]
    assert spread["value"] == pytest.approx(0.015811, abs=1e-6)
    # Quantiles of chi-square with 4 degrees, to five digits: .48442 and 11.143.
    assert spread["low"] == pytest.approx(0.015811 * (4 / 11.1433) ** 0.5, abs=1e-5)
    assert spread["high"] == pytest.approx(0.015811 * (4 / 0.48442) ** 0.5, abs=1e-5)


def test_the_worst_share_of_wrong_rewards_is_what_counts():
    found = moved("wbc noise=0.2", "reward", 0.05)
    (gap,) = [one for one in criteria(found) if one["name"] == "vi_over_wbc"]
    assert gap["value"] == pytest.approx(0.12)


def test_one_seed_is_no_evidence():
    assert len(failing(arms(seeds=1))) == len(criteria(arms())) - 2  # where no mean is compared, a seed can fail


def test_the_study_runs_and_finished_arms_are_read(tmp_path, monkeypatch):
    names = ("none", "nll", "wbc", "a_lol", "a_lol noise=0.4", "a_lol corrupted=0.9")
    monkeypatch.setattr(a_lol, "ARMS", {name: ARMS[name] for name in names})
    monkeypatch.setattr(a_lol, "criteria", lambda arms: [])
    monkeypatch.setattr(a_lol, "QUICK", SMALL)
    first = run(tmp_path, [0], quick=True)
    assert set(first["arms"]) == set(names)
    rewards = {name: ones[0]["reward"]["value"] for name, ones in first["arms"].items()}
    assert len(set(rewards.values())) > 3
    (ours,) = first["arms"]["a_lol"]
    assert 0 < ours["kept"] < 1
    assert ours["sampled"] == SMALL.validated
    monkeypatch.setattr(a_lol, "prepare", None)
    assert run(tmp_path, [0], quick=True) == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_the_tables_show_methods_worse_data_and_wrong_rewards():
    methods, worse, wrong = table({"arms": arms()}).split("\n\n")
    assert len(methods.splitlines()) == 2 + len(METHODS)
    assert len(worse.splitlines()) == 2 + len(WORSE)
    lines = {line.split("|")[1].strip(): line for line in wrong.splitlines()}
    assert lines["wbc"].count("[") == 5
    # 2 thousandths of reward for each hundredth of wrong rewards, as the made-up results have it.
    assert "0.670 [0.660, 0.680]" in lines["wbc"]
    assert lines["nll"].count("0.520 [0.520, 0.520]") == 5


@pytest.mark.slow
def test_all_arms_run_quickly(tmp_path):
    result = run(tmp_path, [3], quick=True)
    json.dumps(result, allow_nan=False)
    assert set(result["arms"]) == set(ARMS)
    assert all(f"| {name} |" in table(result) for name in METHODS)

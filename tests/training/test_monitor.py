"""The detector: the paper's two published curves, every sign from both sides, what follows from a warning, resume."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from holdfast.config import build
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.errors import UserError
from holdfast.losses.reduce import Sum
from holdfast.training.kl import KlController, KlSettings
from holdfast.training.monitor import Monitor, MonitorSettings, Verdict
from holdfast.training.signs import value_losses

# Read off figures 4 (vanilla PPO) and 9 (PPO-max) of arXiv 2307.04964. The published "perplexity" is the exponential of
# the mean negative log-likelihood divided by the mean length, so ln(1 + x / 1000) * length is the likelihood per token.
COLLAPSE = {
    "step": (0, 100, 200, 250, 300, 350, 400, 430, 450, 500, 600, 800, 990),
    "reward": (3.0, 3.3, 3.7, 3.6, 4.2, 4.4, 4.7, 6.5, 9, 9.8, 11, 12.5, 15),
    "length": (112, 118, 145, 155, 180, 215, 270, 360, 500, 512, 512, 512, 512),
    "perplexity": (17.5, 15.5, 12, 10.8, 9.0, 7.0, 4.8, 3.0, 1.9, 1.8, 1.8, 1.7, 1.3),
}
HEALTHY = {
    "step": (0, 500, 1000, 1500, 2000, 2500, 3000, 5000, 8000, 10000),
    "reward": (0.78, 1.0, 1.25, 1.6, 1.8, 1.92, 2.0, 2.08, 2.1, 2.1),
    "length": (152, 147, 145, 180, 205, 227, 225, 228, 227, 228),
    "perplexity": (18.5, 15.8, 14.2, 10.8, 9.2, 8.2, 8.2, 8.3, 9.3, 9.2),
}
START = {
    "reward": 1.0,
    "length": 100.0,
    "truncated": 0.02,
    "score/sd": 1.0,
    "score/q50": 0.0,
    "score/q95": 2.0,
    "nll": 2.0,
    "entropy": 2.0,
    "distinct2": 0.9,
    "repeat_run": 2.0,
    "kl": 0.0,
    "kl_se": 0.1,
    "kl_token_k3": 0.01,
    "explained_variance/value": 0.5,
    "value/value": 1.0,
    "value/grad_norm": 1.0,
    "at_ceiling/harm": 0.0,
}


def rows(figure):
    columns = zip(figure["reward"], figure["length"], figure["perplexity"])
    return [{"reward": reward, "length": length, "nll": math.log1p(p / 1000) * length} for reward, length, p in columns]


def started(kl=None, **settings):
    """A monitor whose start is `START`, judging each row as it is unless smoothing is given."""
    monitor = Monitor(MonitorSettings(**{"smoothing": 1.0, **settings}), kl or KlController(KlSettings()))
    monitor.observe_baseline(START)
    return monitor


def judge(monitor, *changes):
    """The verdicts on rows that differ from the start in `changes`, numbered from 1."""
    return [monitor.judge(number, START | change) for number, change in enumerate(changes, 1)]


def test_the_published_collapse_is_seen_where_it_was_worked_out_by_hand():
    first, *later = rows(COLLAPSE)
    monitor = Monitor(MonitorSettings())
    monitor.observe_baseline(first)
    found = {step: monitor.judge(step, row) for step, row in zip(COLLAPSE["step"][1:], later)}
    assert next(step for step, verdict in found.items() if verdict.families) == 350
    assert next(step for step, verdict in found.items() if verdict.level != "OK") == 400
    assert found[400].level == found[430].level == "WATCH"
    assert {found[step].level for step in (450, 500, 600, 800, 990)} == {"WARN"}
    assert found[450].families == ("length", "certainty")
    assert found[450].words == (
        "WARN at iteration 450: length 4x the start's, negative log-likelihood 0.52x the start's; the reward rose "
        "meanwhile: likely reward hacking"
    )
    assert [step for step, verdict in found.items() if verdict.words] == [400, 450]


def test_the_factors_behind_it_are_those_of_the_decoded_curves():
    """Smoothed factors of length and likelihood, computed apart from this project."""
    monitor = Monitor(MonitorSettings())
    first, *later = rows(COLLAPSE)
    monitor.observe_baseline(first)
    factors = {}
    for step, row in zip(COLLAPSE["step"][1:], later):
        monitor.judge(step, row)
        now = monitor.state_dict()["memory"]["now"]
        factors[step] = [round(now[name] / first[name], 2) for name in ("length", "nll")]
    assert [factors[step] for step in (300, 350, 400, 430, 450)] == [
        [1.53, 0.84],
        [1.8, 0.79],
        [2.23, 0.7],
        [2.92, 0.6],
        [4.0, 0.52],
    ]


def test_the_published_healthy_run_is_ok_throughout():
    first, *later = rows(HEALTHY)
    monitor = Monitor(MonitorSettings())
    monitor.observe_baseline(first)
    verdicts = [monitor.judge(step, row) for step, row in zip(HEALTHY["step"][1:], later)]
    assert {(verdict.level, verdict.families, verdict.words) for verdict in verdicts} == {("OK", (), "")}


def test_a_constant_run_is_ok_for_ever_and_healthy_from_the_third_row_on():
    monitor = started(smoothing=0.7)
    promising = [(monitor.promising, judge(monitor, {}))[0] for _ in range(4)]
    assert promising == [False, False, True, True], "the third may be healthy"
    verdicts = judge(started(smoothing=0.7), *[{}] * 30)
    assert {verdict.level for verdict in verdicts} == {"OK"}
    assert [verdict.healthy for verdict in verdicts] == [False, False] + [True] * 28


@pytest.mark.parametrize(
    "family, on, off",
    [
        ("length", {"length": 161.0}, {"length": 159.0}),
        ("length", {"length": 49.0}, {"length": 51.0}),
        ("length", {"length": 0.0}, {}),
        ("length", {"truncated": 0.13}, {"truncated": 0.11}),
        ("tail", {"score/sd": 1.81}, {"score/sd": 1.79}),
        ("tail", {"score/q95": 4.1}, {"score/q95": 3.9}),
        ("tail", {"score/q50": -2.1}, {"score/q50": 5.0, "score/q95": 7.0}),
        ("certainty", {"nll": 1.09}, {"nll": 1.11}),
        ("certainty", {"nll": 3.61}, {"nll": 3.59}),
        ("certainty", {"entropy": 0.99}, {"entropy": 1.01}),
        ("repetition", {"distinct2": 0.53}, {"distinct2": 0.55}),
        ("repetition", {"repeat_run": 10.1}, {"repeat_run": 9.9}),
        ("divergence", {"kl": -0.21}, {"kl": -0.19}),
        ("divergence", {"kl": -0.21}, {"kl": -0.21, "kl_se": 0.2}),
        ("constraint", {"at_ceiling/harm": 10.0}, {"at_ceiling/harm": 9.0}),
    ],
)
def test_a_sign_switches_its_family_on_at_its_threshold(family, on, off):
    (verdict,) = judge(started(), on)
    assert verdict.families == (family,)
    assert verdict.numbers[f"alarm/{family}"] == 1.0
    assert sum(verdict.numbers.values()) == 1.0, "every other family is off, and the level OK after one iteration"
    assert judge(started(), off)[0].families == ()


@pytest.mark.parametrize("name", ["length", "score/sd", "score/q95", "nll", "distinct2", "repeat_run", "kl_se"])
@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_number_that_is_missing_or_not_finite_switches_its_sign_off(name, lost):
    monitor = started(smoothing=0.7)
    row = {key: value for key, value in START.items() if key != name} | ({} if lost is None else {name: lost})
    assert monitor.judge(1, row).families == ()
    assert judge(monitor, {})[0].families == (), "and it has spoilt nothing"


def test_a_number_unknown_at_the_start_has_nothing_to_be_compared_with():
    monitor = Monitor(MonitorSettings())
    monitor.observe_baseline({"reward": 1.0})
    assert monitor.judge(1, START | {"length": 900.0, "truncated": 0.4, "repeat_run": 40.0}).families == ()


def test_divergence_needs_distance_and_growth():
    limit = 3 * 0.05
    growing = [{"kl_token_k3": limit + 0.01 * n} for n in range(6)]
    assert [v.families for v in judge(started(), *growing)] == [()] * 4 + [("divergence",)] * 2
    assert not any(v.families for v in judge(started(), *[{"kl_token_k3": 0.9}] * 8)), "far away and at rest"
    assert not any(v.families for v in judge(started(), *reversed(growing))), "far away and coming back"
    assert not any(v.families for v in judge(started(), *[{"kl_token_k3": 0.02 * n} for n in range(7)])), "near"
    wider = KlController(KlSettings(target=0.2))
    assert not any(v.families for v in judge(started(wider), *growing))


def test_smoothing_weighs_the_new_value_and_begins_at_the_start():
    monitor = started(smoothing=0.7)
    assert judge(monitor, {"length": 185.0})[0].families == (), "0.7 x 185 + 0.3 x 100 is 159.5"
    assert judge(started(smoothing=0.7), {"length": 186.0})[0].families == ("length",)
    judge(monitor, {"length": 161.0})  # 160.55: above at last
    assert monitor.state_dict()["memory"]["on"]["length"] == 1


def test_a_family_alone_is_a_watch_after_two_iterations_and_two_are_a_warning_at_once():
    long, narrow = {"length": 200.0}, {"score/sd": 3.0}
    assert [v.level for v in judge(started(), long, long, {}, long, {})] == ["OK", "WATCH", "OK", "OK", "OK"]
    assert [v.level for v in judge(started(), long, narrow)] == ["OK", "OK"], "two families, each for one iteration"
    verdicts = judge(started(), long | narrow, {}, long | narrow)
    assert [v.level for v in verdicts] == ["WARN", "OK", "WARN"]
    assert [v.numbers["alarm/level"] for v in verdicts] == [2.0, 0.0, 2.0]


def test_four_families_or_half_of_the_answers_truncated_are_a_collapse():
    four = {"length": 200.0, "score/sd": 3.0, "nll": 0.5, "repeat_run": 30.0}
    (verdict,) = judge(started(), four)
    assert (verdict.level, verdict.numbers["alarm/level"]) == ("COLLAPSE", 3.0)
    assert judge(started(), {"truncated": 0.51})[0].level == "COLLAPSE"
    assert judge(started(), {"truncated": 0.49})[0].level == "OK"


def test_critic_and_constraint_never_count_towards_a_warning():
    bad = {"explained_variance/value": -0.6, "at_ceiling/harm": 12.0, "length": 200.0}
    verdicts = judge(started(), *[bad] * 4)
    assert verdicts[-1].families == ("length", "critic", "constraint")
    assert [v.level for v in verdicts] == ["OK", "WATCH", "WATCH", "WATCH"]
    assert "the limit on harm missed for 12 iterations" in verdicts[1].words
    four = {"length": 200.0, "score/sd": 3.0, "at_ceiling/harm": 12.0, "explained_variance/value": -3.0}
    assert judge(started(), *[four] * 4)[-1].level == "WARN"


def test_a_poor_critic_is_told_after_three_iterations_in_a_row():
    poor, fair = {"explained_variance/value": -0.51}, {"explained_variance/value": -0.49}
    found = judge(started(), poor, poor, fair, poor, poor, poor)
    assert [v.families for v in found] == [()] * 5 + [("critic",)]


def test_a_value_loss_is_compared_with_its_own_median():
    spike = {"value/value": 10.1}
    assert [v.families for v in judge(started(), *[{}] * 4, spike)][-1] == (), "four are no median"
    assert [v.families for v in judge(started(), *[{}] * 5, spike)][-1] == ("critic",)
    assert [v.families for v in judge(started(), *[{}] * 5, {"value/value": 9.9})][-1] == ()


def test_the_losses_of_critics_are_found_in_every_layout():
    apart = {"value/value": 1.0, "value/grad_norm": 1.0, "value/harm/value": 2.0, "value/harm/grad_norm": 1.0}
    told = {"explained_variance/value": 0.1, "explained_variance/value/harm": 0.2, "clamped/value/harm": 0.0}
    assert value_losses(apart | told | {"policy/policy": 0.0, "policy/grad_norm": 1.0}) == [
        "value/value",
        "value/harm/value",
    ]
    one = {"critic/value": 1.0, "critic/value/harm": 2.0, "critic/grad_norm": 1.0, "value_mean/value": 3.0}
    assert value_losses(one | told) == ["critic/value", "critic/value/harm"]
    assert value_losses(apart) == ["value/value", "value/harm/value"]
    assert value_losses({"value/value": math.nan, "value/grad_norm": 1.0}) == []


def test_without_a_pretrained_critic_the_first_three_rows_are_the_start():
    monitor = Monitor(MonitorSettings(smoothing=1.0))
    lengths = [90.0, 100.0, 140.0, 170.0, 180.0]  # the start's mean is 110, 1.6 times it 176
    verdicts = [monitor.judge(number, {"length": length}) for number, length in enumerate(lengths, 1)]
    assert [v.families for v in verdicts] == [()] * 4 + [("length",)]
    assert all(v.numbers["alarm/level"] == 0.0 for v in verdicts)


def test_observed_rows_are_the_start_instead():
    monitor = Monitor(MonitorSettings(smoothing=1.0))
    for length in (100.0, 120.0):
        monitor.observe_baseline({"length": length})
    assert monitor.judge(1, {"length": 177.0}).families == ("length",)


def test_words_come_when_the_level_rises_and_name_what_speaks_for_it():
    long, both = {"length": 200.0}, {"length": 200.0, "score/sd": 2.4, "reward": 0.5}
    words = [v.words for v in judge(started(), long, long, long, both, both, long, {}, both)]
    assert words == [
        "",
        "WATCH at iteration 2: length 2x the start's",
        "",
        "WARN at iteration 4: length 2x the start's, score spread 2.4x the start's",
        "",
        "",
        "",
        "WARN at iteration 8: length 2x the start's, score spread 2.4x the start's",
    ]
    (verdict,) = judge(started(), both | {"reward": 1.1})
    assert verdict.words.endswith("; the reward rose meanwhile: likely reward hacking")
    limit = judge(started(), *[{"at_ceiling/harm": 12.0, "reward": 2.0}] * 2)[-1].words
    assert "reward" not in limit, "a limit out of reach is no sign of hacking"


WARNING = {"length": 200.0, "score/sd": 3.0}


def test_logging_asks_for_nothing_and_stopping_for_an_end():
    assert [v.action for v in judge(started(), {}, WARNING, {"truncated": 0.9})] == [None] * 3
    assert [v.action for v in judge(started(on_warn="stop"), {"length": 200.0}, {"length": 200.0}, WARNING)] == [
        None,
        None,
        "stop",
    ]


def test_raising_the_kl_doubles_its_weight_up_to_fourfold():
    kl = KlController(KlSettings(coef=0.1))
    verdicts = judge(started(kl, on_warn="raise_kl"), {}, WARNING, WARNING, WARNING)
    assert [v.action for v in verdicts] == [None] * 4
    assert kl.coef == pytest.approx(0.4)
    assert [v.words.partition("; weight of the KL ")[2] for v in verdicts] == ["", "x2", "x4", ""]
    with pytest.raises(UserError, match=r"on_warn raise_kl multiplies the weight of the KL, which is 0; set kl.coef"):
        Monitor(MonitorSettings(on_warn="raise_kl"), KlController(KlSettings(coef=0.0)))


def test_a_rollback_begins_smoothing_anew_keeps_the_start_and_raises_the_kl():
    kl = KlController(KlSettings(coef=0.1))
    monitor = started(kl, on_warn="rollback", smoothing=0.5)
    (verdict,) = judge(monitor, {"length": 400.0, "score/sd": 9.0})
    assert verdict.action == "rollback"
    kl.load_state_dict(KlController(KlSettings(coef=0.1)).state_dict())  # the loop puts the weight back with the rest
    monitor.rolled_back()
    assert kl.factor == 2.0
    after = judge(monitor, {"length": 200.0}, {"length": 230.0})
    assert [v.families for v in after] == [(), ("length",)], "150, and then 190, of 100 at the start"
    assert not after[0].healthy
    kl.load_state_dict(KlController(KlSettings(coef=0.1)).state_dict())
    monitor.rolled_back()
    assert kl.factor == 4.0, "an older snapshot's weight does not lower it"


def test_after_three_rollbacks_the_stage_ends():
    monitor = started(on_warn="rollback")
    actions = []
    for _ in range(4):
        (verdict,) = judge(monitor, WARNING)
        actions.append(verdict.action)
        if verdict.action == "rollback":
            monitor.rolled_back()
    assert actions == ["rollback"] * 3 + ["stop"]
    assert verdict.words.endswith("; it went back 3 times before")


def test_the_best_is_chosen_by_the_judge_among_healthy_rows():
    monitor = started(judge_by="true")
    values = [9.0, 1.0, 2.0, 3.0, 3.0, 2.5, 8.0, 8.0, 7.0, 4.0, math.nan]
    long = [{}] * 6 + [{"length": 200.0}] * 2 + [{}] * 3
    found = judge(monitor, *[row | {"true": value, "reward": 10 - value} for row, value in zip(long, values)])
    # Row 7 is OK still, its family being on for the first time; 9 to 11 follow a WATCH.
    assert [number for number, v in enumerate(found, 1) if v.best] == [3, 4, 7]
    assert monitor.state_dict()["best"] == {"step": 6, "value": 8.0}
    assert not any(v.best for v in judge(started(), *[{"true": 1.0}] * 4))


def test_the_judge_is_neither_missing_nor_the_reward():
    with pytest.raises(UserError, match=r"monitor.judge_by is truth, which is not logged; there are at_ceiling/harm, "):
        judge(started(judge_by="truth"), {})
    for name in ("reward", "score/q95"):
        with pytest.raises(UserError, match=f"judge_by {name} is the reward, which a collapsing policy raises too"):
            build(MonitorSettings, {"judge_by": name})
    with pytest.raises(UserError, match="rollback and judge_by need healthy snapshots and keep_every 0 keeps none"):
        build(MonitorSettings, {"on_warn": "rollback", "keep_every": 0})
    with pytest.raises(UserError, match="keep_every 0 keeps none"):
        build(MonitorSettings, {"judge_by": "true", "keep_every": 0})
    assert Monitor(MonitorSettings(keep_every=7)).keep_every == 7


@pytest.mark.parametrize("cut", [0, 2, 5, 7, 9])
def test_a_monitor_taken_up_goes_on_as_if_never_put_down(cut):
    changes = [
        {},
        {"length": 150.0, "true": 2.0},
        {"explained_variance/value": -1.0},
        {"kl_token_k3": 0.3, "explained_variance/value": -1.0},
        {"kl_token_k3": 0.4, "explained_variance/value": -1.0, "value/value": 3.0},
        {"kl_token_k3": 0.5, "value/value": 40.0, "true": 4.0},
        {"kl_token_k3": 0.6, "length": 250.0},
        WARNING,
        {"truncated": 0.4},
        WARNING,
        {},
    ]
    settings = MonitorSettings(on_warn="raise_kl", judge_by="true", baseline=2)

    def go(monitor, changes, first):
        return [monitor.judge(n, {**START, "true": 1.0, **change}) for n, change in enumerate(changes, first)]

    whole, first = (Monitor(settings, KlController(KlSettings())) for _ in range(2))
    expected = go(whole, changes, 1)
    assert {v.level for v in expected} >= {"OK", "WATCH", "WARN"}
    found = go(first, changes[:cut], 1)
    state = copy.deepcopy(first.state_dict())
    second = Monitor(settings, first.kl)
    second.load_state_dict(state)
    found += go(second, changes[cut:], cut + 1)
    assert found == expected
    assert second.state_dict() == whole.state_dict()
    assert state == first.state_dict(), "the state that was handed over is nobody's to change"


class Growing:
    """A policy whose answers grow with every iteration, the slower the more its KL weighs; nothing is sampled."""

    weights = {}
    apart = {}

    def __init__(self, cut=None):
        self.parts = {"policy": nn.Linear(1, 1, bias=False)}
        self.parts["policy"].weight.data.fill_(100.0)
        self.optimisers = {"policy": OptimiserSettings(learning_rate=20.0, schedule="constant", warmup_ratio=0.0)}
        self.kl, self.cut = KlController(KlSettings(coef=0.1)), cut

    def collect(self, prompts, iteration):
        if iteration == self.cut:
            raise KeyboardInterrupt
        length = self.parts["policy"].weight.item()
        return START | {"length": length, "score/sd": length / 100, "kl_weight": self.kl.coef}

    def mini_batches(self, experience, rng):
        return [[None]] * (2 if self.kl.factor < 2 else 1)

    def counts(self, part, batch):
        return {"shortness": 1.0}

    def loss(self, part, batch):
        return {"shortness": Sum(-self.parts[part].weight.sum(), torch.tensor(1))}

    def after(self, experience):
        return experience

    def samples(self, experience):
        return []

    def state_dict(self):
        return {"kl": self.kl.state_dict()}

    def load_state_dict(self, state):
        self.kl.load_state_dict(state["kl"])


def watched(folder, algorithm):
    """Up to twelve iterations of `algorithm` under a monitor; the logged rows without their seconds."""
    settings = MonitorSettings(on_warn="rollback", keep_every=1, smoothing=1.0, max_rollbacks=2, baseline=1)
    online = OnlineSettings(iterations=12, prompts_per_iteration=1, checkpoint_every=2, sample_every=0)
    run_online(algorithm, [0], online, RunFolder(folder), stage="policy", guard=Monitor(settings, algorithm.kl))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("seconds")} for line in lines]


def test_the_online_loop_rolls_back_under_a_monitor_and_resumes_to_the_bit(tmp_path):
    rows = watched(tmp_path / "whole", Growing())
    # 40 more in each iteration: at 3 one family is on, at 4 two are. Back to 180, and on by 20 at twice the KL.
    assert [round(row["length"]) for row in rows] == [100, 140, 180, 220, 180, 200, 180, 200]
    assert [row["alarm/level"] for row in rows] == [0, 0, 0, 2, 0, 2, 0, 2]
    assert [row["kl_weight"] for row in rows] == pytest.approx([0.1] * 4 + [0.2] * 2 + [0.4] * 2)
    for cut in (4, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            watched(tmp_path / str(cut), Growing(cut))
        assert watched(tmp_path / str(cut), Growing()) == rows


def test_one_sign_alone_is_for_the_report_and_not_told_aloud():
    assert not Verdict("WATCH", ("length",), {}, words="WATCH").aloud
    assert Verdict("WARN", ("length", "tail"), {}, words="WARN").aloud
    assert Verdict("OK", (), {}, action="stop").aloud

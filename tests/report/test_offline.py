import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import UserError
from holdfast.report import offline as module
from holdfast.report import panels
from holdfast.report.offline import counts, headline, learned_from, value_in_words
from holdfast.report.offline_plots import advantages, bars, best, edges_at_zero
from holdfast.report.page import headline as page_headline
from holdfast.report.page import render
from holdfast.report.read import Run, read
from holdfast.report.training import training
from holdfast.report.words import MINUS, finding


@pytest.fixture
def run(finished: Path) -> Run:
    return read(finished)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked to be drawn; the drawings themselves are tested below."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(module.offline_plots, "bars", lambda left, alt: asked.update(bars=left))
    monkeypatch.setattr(
        module.offline_plots,
        "advantages",
        lambda values, drawn, better, alt: asked.update(values=values, drawn=drawn, better=better),
    )
    return asked


def told(run: Run, **changed: Any) -> Run:
    """The run with parts of its summary changed, or left out where None."""
    summary = {key: value for key, value in (run.summary | changed).items() if value is not None}
    return dataclasses.replace(run, summary=summary)


def configured(run: Run, **offline: Any) -> Run:
    return dataclasses.replace(run, config={"fit": {"batch_size": 50}, "offline": offline})


def untested(run: Run, **changed: Any) -> Run:
    return dataclasses.replace(told(run, verdict=None, weak_to_strong=None, **changed), certificate={})


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def places(svg: str, name: str) -> list[list[float]]:
    """The numbers in the path of each drawn thing called `name`, which x and y share in turn."""
    found = re.findall(rf'<g class="{name}">\s*<path d="([^"]*)"', svg)
    return [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in found]


def test_every_step_from_all_answers_to_the_effective_size_is_counted(run: Run) -> None:
    assert counts(run.summary) == [
        ("given", 5600),
        ("cost at most 0", 3400),
        ("to learn from", 3200.0),
        ("better than V", 2000.0),
        ("as many equal ones", 1300.4),
    ]


def test_steps_that_removed_nothing_are_not_shown(run: Run) -> None:
    found = {"rows": 900.0, "kept": 900.0, "steps": 10.0, "effective_size": 900.0}
    assert counts({"offline": found}) == [("given", 900.0), ("to learn from", 900.0)]
    (limit,) = run.summary["offline_limits"]
    weighed = counts({"offline": found, "offline_limits": [limit | {"how": "weight"}]})
    assert weighed == [("given", 5600), ("to learn from", 900.0)]
    below = counts({"offline": found, "offline_limits": [limit | {"most": -0.5}]})
    assert below[1] == (f"cost at most {MINUS}0.5", 3400)


def test_rankings_are_counted_too_and_other_runs_have_nothing(run: Run, drawn: dict[str, Any]) -> None:
    ranked = told(run, offline=None, rankings=40, offline_limits=[], annotations=None)
    found = learned_from(ranked)
    assert found is not None
    assert found.drawings[0].title == "How many rankings were left"
    assert found.drawings[0].note == ""
    assert drawn["bars"] == [("given", 40), ("to learn from", 40)]
    assert learned_from(told(run, offline=None)) is None


def test_the_draws_are_told(run: Run, drawn: dict[str, Any]) -> None:
    found = learned_from(configured(run))
    assert found is not None
    # 120 steps of 50; 2,000 are kept.
    assert found.drawings[0].note == (
        "200 more only watch the training. 6,000 draws in 120 steps, 3.00 of each on average. "
        "Draws are as uneven as if 1,300 equal answers had been drawn alike."
    )


def test_advantages_are_drawn_with_how_often_each_is_seen(run: Run, drawn: dict[str, Any]) -> None:
    learned_from(configured(run, method="a_lol", sampling="priority", priority_exponent=2.0))
    assert drawn["better"] == 0.75
    above = drawn["values"] > 0
    assert np.array_equal(drawn["drawn"][above], drawn["values"][above] ** 2)
    assert not drawn["drawn"][~above].any()


@pytest.mark.parametrize(
    "settings",
    [{"method": "a_lol", "sampling": "shuffle"}, {"method": "r_lol", "sampling": "priority"}],
    ids=["shuffled", "drawn by reward"],
)
def test_draws_that_do_not_go_by_the_advantage_are_not_outlined(
    run: Run, drawn: dict[str, Any], settings: dict[str, str]
) -> None:
    found = learned_from(configured(run, **settings))
    assert found is not None
    assert drawn["drawn"] is None
    assert "second outline" not in found.drawings[1].note


def test_without_annotations_there_is_no_histogram(run: Run, drawn: dict[str, Any]) -> None:
    found = learned_from(dataclasses.replace(run, annotations=()))
    assert found is not None
    assert [drawing.title for drawing in found.drawings] == ["How many answers were left"]


def test_a_limit_says_what_it_removed_and_what_that_was_worth(run: Run, drawn: dict[str, Any]) -> None:
    found = learned_from(run)
    assert found is not None
    assert found.limits == [("cost at most 0", "2,200", "39.3%", "", "0.742", "0.517", f"{MINUS}0.225", "left out")]
    (limit,) = run.summary["offline_limits"]
    empty = limit | {"how": "report", "without_score": 12, "reward_beyond": None}
    found = learned_from(told(run, offline_limits=[empty]))
    assert found is not None
    assert found.limits == [("cost at most 0", "2,200", "39.3%", "12", "0.742", "", "", "only counted")]


def test_trust_in_v_is_put_in_words(run: Run) -> None:
    rewards, bias, rest = value_in_words(run.summary)
    assert "0.742 on average; V of their prompts is 0.725" in rewards
    assert "308 rewards on 154 prompts" in bias
    assert f"0.00200 on average ({MINUS}0.0110 to 0.0150): neither too high nor too low" in bias
    # 1 - 0.012 / 0.03
    assert rest == (
        "Where V differs by 1 between prompts, R differs by 0.930. "
        "Of the variance of R, between prompts and among answers to one, it explains 60.0%."
    )
    assert rewards.startswith("Answers within the limits earn")
    assert next(value_in_words(run.summary | {"offline_limits": []})).startswith("The answers earn")
    assert list(value_in_words({})) == []


@pytest.mark.parametrize(
    "low, high, words", [(0.01, 0.03, "V is too low"), (-0.03, -0.01, "V is too high"), (-0.01, 0.01, "neither")]
)
def test_a_biased_v_is_named(run: Run, low: float, high: float, words: str) -> None:
    value = run.summary["value"] | {"bias": {"value": (low + high) / 2, "low": low, "high": high, "n": 154}}
    assert words in " ".join(value_in_words({"value": value}))


def test_a_v_that_knows_nothing_is_named(run: Run) -> None:
    value = run.summary["value"] | {"slope": None, "error": 0.03, "spread": 0.03}
    *_, rest = value_in_words({"value": value})
    assert rest == (
        "It says nearly the same of all prompts. "
        "It misses R by no less than the best constant would, so it tells nothing about a prompt."
    )


def test_the_headline_accounts_for_every_answer_and_claims_no_safety(run: Run) -> None:
    plain = untested(run)
    found = page_headline(plain)
    assert (found.verdict, found.title) == ("", "Learned from 2,000 of 5,600 given answers")
    assert found.sentence.startswith(
        "2,200 lie beyond a limit. 200 only watch the training. 1,200 are worth no more than V"
    )
    assert found.sentence.endswith("claims nothing about the harm of its policy.")
    assert 2000 + 2200 + 200 + 1200 == 5600


def test_answers_beyond_several_limits_are_counted_once(run: Run) -> None:
    (limit,) = run.summary["offline_limits"]
    both = [limit, limit | {"score": "length", "beyond": 1500}]
    found = page_headline(untested(run, offline_limits=both))
    assert found.sentence.startswith("2,200 lie beyond a limit. 200 only watch")
    # Without annotations nothing says how many keep both limits: what is left out of 5,600 is told in one number.
    blind = page_headline(untested(run, offline_limits=both, annotations=None))
    assert blind.sentence.startswith("2,400 lie beyond a limit or only watch the training. 1,200 are")
    single = page_headline(untested(run, annotations=None))
    assert single.sentence.startswith("2,200 lie beyond a limit. 200 only watch")


def test_other_headlines(run: Run) -> None:
    assert page_headline(run).verdict == "CERTIFIED", "a test speaks first"
    ranked = untested(run, offline=None, rankings=3400)
    assert page_headline(ranked).title == "Learned from 3,400 of 5,600 rankings"
    assert headline(told(run, offline=None), finding(run)) is None
    assert page_headline(untested(run, offline=None)).title == "Not tested"


def test_curves_of_given_answers_replace_those_of_replies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[tuple[str, str, list[float]]]] = {}

    def record(lines: list[Any], unit: str, alt: str) -> str:
        asked[alt.partition(",")[0]] = [(line.label, line.style, line.values.tolist()) for line in lines]
        return ""

    monkeypatch.setattr(panels.plots, "curves", record)
    rows = [
        {
            "stage": "policy",
            "step": 1,
            "offline": 1.0,
            "nll": 0.3,
            "clip_low": 0.5,
            "clip_high": 0.25,
            "log_ratio": -1.0,
        },
        {"stage": "policy", "step": 1, "eval/offline": 0.5, "eval/nll": 0.4, "eval/clip_low": 0.75},
    ]
    found = training(dataclasses.replace(run, metrics=tuple(rows)))
    assert found is not None
    assert (found.alarms, found.phases) == ([], [])
    assert asked == {
        "Loss as it is weighed": [("loss", "line", [1.0]), ("held out", "held out", [0.5])],
        "Surprise at the given answers": [("drawn", "line", [0.3]), ("held out", "held out", [0.4])],
        "Ratio to the reference": [("drawn", "line", [-1.0])],
        "Ratios held by the clip": [
            ("above", "line", [25.0]),
            ("below", "line", [50.0]),
            ("below, held out", "held out", [75.0]),
        ],
    }


def test_pairs_show_their_accuracy_and_lead(run: Run) -> None:
    row = {"stage": "policy", "step": 1, "preference": 0.6, "accuracy": 0.7, "lead": 0.1, "better": -0.2}
    found = training(dataclasses.replace(run, metrics=(row,)))
    assert found is not None
    ((_, drawings),) = found.groups
    assert [drawing.title for drawing in drawings] == ["Loss", "In the right order", "Lead of the better answer"]


def test_the_page_shows_counts_histogram_limits_and_trust(finished: Path, tmp_path: Path) -> None:
    page = render(finished, tmp_path / "page.html").read_text(encoding="utf-8")
    part = page[page.index('<section id="offline">') : page.index('<section id="policy">')]
    assert part.count("<svg") == 2
    assert '<th scope="row">cost at most 0</th><td>2,200</td><td>39.3%</td><td>\u2013</td>' in part
    assert "R differs by 0.930" in part


def test_a_broken_annotation_is_named(run_folder: Path) -> None:
    (run_folder / "annotations" / "annotations.jsonl").write_text(json.dumps({"id": "a", "advantage": None}) + "\n")
    with pytest.raises(UserError, match=r"annotations\.jsonl, line 1: advantage is required, found None"):
        read(run_folder)


def test_bars_are_as_long_as_their_counts() -> None:
    svg = bars([("given", 200), ("to learn from", 50)], "B")
    assert {"given", "to learn from", "200", "50"} <= set(texts(svg))
    widths = [max(path[0::2]) - min(path[0::2]) for path in places(svg, "bar")]
    tops = [min(path[1::2]) for path in places(svg, "bar")]
    # Coordinates are written with six decimals.
    assert widths[1] / widths[0] == pytest.approx(0.25, abs=1e-4)
    assert tops[0] < tops[1]


def test_zero_is_an_edge_and_no_value_falls_outside() -> None:
    for values in (np.array([-0.31, 0.12, 0.4]), np.array([0.2, 0.9]), np.array([-0.5, -0.1]), np.zeros(3)):
        edges = edges_at_zero(values)
        assert 0.0 in edges
        assert np.histogram(values, edges)[0].sum() == len(values)


def test_advantages_are_shares_on_both_sides_of_zero() -> None:
    values = np.array([-0.2, 0.1, 0.1, 0.3])
    svg = advantages(values, None, 0.75, "A")
    assert {"25.0% below", "75.0% above V"} <= set(texts(svg))
    assert svg.count('class="outline"') == 1
    assert svg.count('class="side"') == 2
    # With all draws at one answer its bin holds 100 %, so that the axis reaches it.
    one = advantages(values, np.array([0.0, 0.0, 0.0, 5.0]), 0.75, "A")
    assert one.count('class="outline"') == 2
    assert {"80", "100", "draws", "answers"} <= set(texts(one))
    assert "100" not in texts(svg)


BEST = {
    "step": 1200,
    "value": 0.5,
    "of": [{"step": 600, "value": None}, {"step": 1200, "value": 0.5}, {"step": 1800, "value": 0.25}],
    "prompts": 256,
}


def test_the_step_that_was_chosen_is_told(run: Run, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def record(steps: Any, values: Any, chosen: float, alt: str) -> None:
        drawn.update(steps=steps.tolist(), judged=values.tolist(), chosen=chosen)

    monkeypatch.setattr(module.offline_plots, "best", record)
    found = learned_from(told(run, best=BEST))
    assert found is not None
    assert found.drawings[-1].title == "What the policy earned while it learned"
    assert found.drawings[-1].note == (
        "The policy of step 1,200 goes on: its answers to 256 prompts earned 0.500 on average, the most of 3 steps; "
        "after the last, 1,800, it earned 0.250. Answers to these prompts were not learned from, and none of them is "
        "in the exam."
    )
    assert (drawn["steps"], drawn["judged"], drawn["chosen"]) == ([1200.0, 1800.0], [0.5, 0.25], 1200.0)
    blind = BEST | {"of": BEST["of"][:2] + BEST["of"][:1]}  # type: ignore[index]
    found = learned_from(told(run, best=blind))
    assert found is not None
    assert "the most of 3 steps. Answers" in found.drawings[-1].note
    found = learned_from(told(run, best=BEST | {"of": BEST["of"][:2]}))  # type: ignore[index]
    assert found is not None
    assert "the most of 2 steps. Answers" in found.drawings[-1].note, "the last is the best"
    found = learned_from(run)
    assert found is not None
    assert "earned" not in "".join(drawing.title for drawing in found.drawings)


@pytest.mark.parametrize("place", [0, 2])
def test_the_chosen_step_is_marked_where_it_is(place: int) -> None:
    steps, values = np.array([10.0, 20.0, 30.0]), np.array([0.1, 0.4, 0.2])
    svg = best(steps, values, steps[place], "B")
    assert f"step {steps[place]:.0f}" in texts(svg)
    (curve,) = places(svg, "curve")
    ring = re.search(r'<g class="chosen">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg, re.DOTALL)
    assert ring is not None
    assert [float(ring[1]), float(ring[2])] == pytest.approx(curve[2 * place : 2 * place + 2], abs=1e-3)
    # The name stands towards the middle, so that it is not cut off.
    side = re.search(r"text-anchor: (\w+)[^>]*>step \d+<", svg)
    assert (side[1] if side else "start") == ("start" if place == 0 else "end")

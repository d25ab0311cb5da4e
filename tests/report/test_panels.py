import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.report import panels, plots
from holdfast.report.panels import cost_limit, policy_drawings, reply_drawings, supervised_drawings
from holdfast.report.read import Row, Run, read


@pytest.fixture
def run(finished: Path) -> Run:
    return read(finished)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[plots.Curve]]]:
    """What was asked to be drawn, by its description; the drawing itself is tested with the plots."""
    asked: list[tuple[str, list[plots.Curve]]] = []

    def record(lines: list[plots.Curve], unit: str, alt: str) -> str:
        asked.append((alt, lines))
        return ""

    monkeypatch.setattr(panels.plots, "curves", record)
    return asked


def with_policy(run: Run, rows: list[Row]) -> Run:
    return dataclasses.replace(run, metrics=tuple({"stage": "policy", **row} for row in rows))


def test_policy_panels_stand_in_the_order_of_the_story(run: Run) -> None:
    titles = [drawing.title for drawing in policy_drawings(run)]
    assert titles == [panel.title for panel in panels.PANELS]


def test_cost_stands_with_its_bound_and_its_limit(run: Run, drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    policy_drawings(run)
    cost = next(lines for alt, lines in drawn if alt.startswith("Learned cost"))
    assert [(line.label, line.style) for line in cost] == [
        ("cost", "line"),
        ("bound", "bound"),
        ("limit", "limit"),
    ]


def test_shares_are_drawn_in_per_cent_and_scores_as_they_are(
    run: Run, drawn: list[tuple[str, list[plots.Curve]]]
) -> None:
    policy_drawings(with_policy(run, [{"step": 1, "true_harm": 0.25, "reward": 0.25}]))
    values = {lines[0].label: lines[0].values.tolist() for _, lines in drawn}
    assert values == {"harmful": [25.0], "reward": [0.25]}


def test_each_constraint_has_a_cost_panel_of_its_own(run: Run, drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    row = {"step": 1, "cost/a": 1.0, "cost_ucb/a": 2.0, "threshold/a": 0.5, "cost/b": 3.0, "threshold/b": 0.1}
    policy_drawings(with_policy(run, [row | {"multiplier/a": 1.0, "multiplier/b": 2.0}]))
    asked = {alt.split(",")[0]: [line.label for line in lines] for alt, lines in drawn}
    assert asked == {
        "Learned cost: a": ["cost", "bound", "limit"],
        "Learned cost: b": ["cost", "limit"],
        "Multiplier": ["a", "b"],
    }


def test_a_family_may_stand_in_the_middle_of_a_name(run: Run, drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    row = {"step": 1, "source/web/length": 9.0, "source/a/b/length": 8.0, "source/length": 7.0, "source/web/nll": 1.0}
    panels.panel_drawings(panels.SOURCE_PANELS, [row])
    asked = {alt.split(",")[0]: [(line.label, line.values.tolist()) for line in lines] for alt, lines in drawn}
    assert asked == {"Length by source": [("web", [9.0]), ("a/b", [8.0])], "Certainty by source": [("web", [1.0])]}


def test_members_of_several_families_on_one_panel_keep_their_labels(drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    row = {"step": 1, "score_running_mean/web": 1.0, "score_running_sd/web": 2.0}
    panels.panel_drawings(panels.MACHINE_PANELS, [row])
    assert [[line.label for line in lines] for _, lines in drawn] == [["web, mean", "web, deviation"]]


def test_values_below_the_floor_are_lifted_and_said(drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    rows = [{"step": i, "explained_variance/value": value} for i, value in enumerate((-300.0, -1.0, 0.5))]
    (below,) = panels.panel_drawings(panels.CRITIC_PANELS, rows)
    (inside,) = panels.panel_drawings(panels.CRITIC_PANELS, rows[1:])
    assert [line.values.tolist() for _, lines in drawn for line in lines] == [[-1.0, -1.0, 0.5], [-1.0, 0.5]]
    assert below.note.endswith("Values below \u22121 are drawn there.")
    assert "below" not in inside.note


def test_values_that_are_not_finite_are_counted(run: Run) -> None:
    kl = next(drawing for drawing in policy_drawings(run) if drawing.title == "Distance from the start")
    assert "Not finite, so missing here: 1 of the logged values." in kl.note


def test_more_curves_than_colours_are_announced(run: Run) -> None:
    row: dict[str, Any] = {"step": 1, **{f"reward/{i}": float(i) for i in range(8)}}
    (drawing,) = policy_drawings(with_policy(run, [row]))
    assert "2 more in the table of all logged numbers." in drawing.note
    assert drawing.svg.count('class="curve"') == 6


def test_supervised_stages_show_accuracy_and_loss_terms(run: Run, drawn: list[tuple[str, list[plots.Curve]]]) -> None:
    stages = {stage: [drawing.title for drawing in drawings] for stage, drawings in supervised_drawings(run)}
    assert stages == {
        "sft": ["Loss, sft"],
        "reward": ["Accuracy, reward", "Loss, reward"],
        "cost": ["Accuracy, cost", "Loss, cost"],
    }
    asked = {alt.split(", mean")[0]: [(line.label, line.style) for line in lines] for alt, lines in drawn}
    assert asked["Loss, cost"] == [("rank", "line"), ("sign", "line"), ("rank, eval", "held out")]


def test_replies_before_and_after_share_their_axes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = []
    real = plots.scatter

    def record(clouds: Any, window: Any, limit: Any, alt: str) -> Any:
        windows.append(window)
        return real(clouds, window, limit, alt)

    monkeypatch.setattr(panels.plots, "scatter", record)
    titles = [drawing.title for drawing in reply_drawings(run)]
    assert titles == ["Replies before training", "Replies after training", "How the costs are distributed"]
    assert windows[0] == windows[1]
    costs = [row["cost"] for row in run.scores]
    assert windows[0][1][0] < min(costs)
    assert windows[0][1][1] > max(costs)


def test_many_replies_are_thinned_and_counted(run: Run) -> None:
    many = dataclasses.replace(run, scores=run.scores * 4)
    before = reply_drawings(many)[0]
    assert before.note.startswith("800 of 1800 replies.")
    assert len(re.findall("<use", before.svg)) < 900


def test_scores_that_are_not_finite_are_counted_and_left_out(run: Run) -> None:
    broken = dict(run.scores[0], cost=float("nan"))
    drawings = reply_drawings(dataclasses.replace(run, scores=(broken, *run.scores)))
    assert drawings[0].note.startswith("450 replies.")
    assert "the scores of 1 replies" in drawings[-1].note


def test_the_limit_is_the_last_threshold_also_when_it_is_zero(run: Run) -> None:
    assert cost_limit(run) == (0.0, "limit")
    assert "The limit on the mean is 0." in reply_drawings(run)[-1].note
    later = with_policy(run, [{"step": 1, "threshold": 2.0}, {"step": 2, "threshold": -1.5}])
    assert cost_limit(later) == (-1.5, "limit")
    assert cost_limit(dataclasses.replace(run, metrics=())) is None


def test_where_a_share_is_limited_the_line_is_the_border_of_harm(run: Run) -> None:
    config = {**run.config, "constraint": {"measure": "flag"}}
    summary = {**run.summary, "zero": {"value": 0.4}}
    assert cost_limit(dataclasses.replace(run, config=config, summary=summary)) == (0.4, "harmful above")
    logit = {**run.config, "constraint": {"measure": "logit"}}
    assert cost_limit(dataclasses.replace(run, config=logit, summary=summary)) == (0.0, "limit")


def test_nothing_to_draw_draws_nothing(run: Run) -> None:
    empty = dataclasses.replace(run, metrics=(), scores=())
    assert (policy_drawings(empty), supervised_drawings(empty), reply_drawings(empty)) == ([], [], [])

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import UserError
from holdfast.report import training as module
from holdfast.report.page import render
from holdfast.report.panels import CRITIC_PANELS, HEALTH_PANELS, MACHINE_PANELS, PANELS
from holdfast.report.read import Row, Run, read
from holdfast.report.training import Training, phases, training


@pytest.fixture
def run(finished: Path) -> Run:
    return read(finished)


def titles(found: Training) -> dict[str, list[str]]:
    return {heading: [drawing.title for drawing in drawings] for heading, drawings in found.groups}


def with_policy(run: Run, rows: list[Row]) -> Run:
    return dataclasses.replace(run, metrics=tuple({"stage": "policy", **row} for row in rows), alarms=())


def shown(run: Run) -> Training:
    found = training(run)
    assert found is not None
    return found


def test_the_story_comes_first_and_the_rest_in_groups(run: Run) -> None:
    assert titles(shown(run)) == {
        "": [*(panel.title for panel in PANELS), "Alarms, and what raised them"],
        "Health of the replies": [panel.title for panel in HEALTH_PANELS],
        "By source of the prompt": ["Length by source", "Cut off by source", "Distance by source"],
        "Estimates and coefficients": [panel.title for panel in MACHINE_PANELS],
        "Critics, before the policy learns": [f"{panel.title}, at first" for panel in CRITIC_PANELS],
        "Time": ["Seconds of an iteration"],
    }


def test_alarms_are_listed_with_their_tone(run: Run) -> None:
    found = shown(run)
    assert [tone for tone, _ in found.alarms] == ["watch", "warn", "collapse"]
    assert found.alarms[0][1] == "policy: WATCH at iteration 60: length 1.9x of the start"
    assert found.quiet == ""


def test_of_many_alarms_the_gravest_are_listed_in_their_order(run: Run) -> None:
    levels = [1, 1, 3, 1, 2, 1, 1, 1, 1, 1, 1, 2]
    alarms = tuple({"stage": "policy", "step": i, "words": str(i), "alarm/level": x} for i, x in enumerate(levels))
    found = shown(dataclasses.replace(run, alarms=alarms))
    assert [words for _, words in found.alarms] == [f"policy: {i}" for i in (0, 1, 2, 3, 4, 5, 6, 11)]
    assert found.quiet == "4 more, none of them graver, in alarms.jsonl."


def test_a_run_that_was_watched_and_stayed_well_says_so(run: Run) -> None:
    found = shown(with_policy(run, [{"step": i, "kl": 0.1, "alarm/level": 0.0, "alarm/tail": 0.0} for i in range(3)]))
    assert found.quiet == "Watched for collapse: no alarm in 3 iterations."
    assert (found.alarms, list(titles(found))) == ([], [""])
    assert titles(found)[""] == ["Distance from the start"]
    assert shown(with_policy(run, [{"step": 1, "kl": 0.1}])).quiet == ""
    assert shown(with_policy(run, [{"step": 1, "alarm/level": 1.0}])).quiet == ""


def test_only_families_that_spoke_have_a_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def record(steps: Any, levels: Any, families: Any, alt: str) -> str:
        asked.update(families)
        return ""

    monkeypatch.setattr(module.training_plots, "alarm_strip", record)
    training(run)
    assert {name: int(on.sum()) for name, on in asked.items()} == {"length": 35, "certainty": 14}


def test_phases_stand_by_their_share_and_rows_without_times_do_not_count(run: Run) -> None:
    rows = [
        {"step": 1, "seconds": 50.0, "seconds/score": 1.0, "seconds/generate": 60.0},
        {"step": 2, "seconds": 99.0},
        {"step": 3, "seconds/score": 1.0, "seconds/generate": 120.0, "seconds/values": 4.0},
    ]
    assert phases(rows) == [
        ("generate", "1 min 30 s", "96.8%"),
        ("values", "2.0 s", "2.2%"),
        ("score", "1.0 s", "1.1%"),
    ]
    assert list(titles(shown(with_policy(run, rows)))) == ["Time"]
    assert phases([{"step": 1, "seconds/score": 0.0}]) == [("score", "0.0 s", "0%")]


def test_alarms_alone_are_shown_and_nothing_shows_nothing(run: Run) -> None:
    alone = shown(dataclasses.replace(run, metrics=()))
    assert (len(alone.alarms), alone.groups, alone.phases) == (3, [], [])
    assert training(dataclasses.replace(run, metrics=(), alarms=())) is None


def test_the_page_shows_alarms_above_the_curves_and_escapes_them(finished: Path, tmp_path: Path) -> None:
    page = render(finished, tmp_path / "page.html").read_text(encoding="utf-8")
    part = page[page.index('<section id="policy">') : page.index('<section id="replies">')]
    above = part[: part.index("<svg")]
    assert '<li class="warn">policy: WARN at iteration 146: length 2.1x' in above
    assert '<li class="collapse">policy: COLLAPSE at iteration 159: &lt;script&gt;' in above
    assert '<th scope="row">generate</th><td>2.0 s</td><td>42.2%</td>' in part


def test_a_broken_alarm_is_named(run_folder: Path) -> None:
    (run_folder / "alarms.jsonl").write_text(json.dumps({"stage": "policy", "step": 3}) + "\n")
    with pytest.raises(UserError, match=r"alarms\.jsonl, line 1: words is required, found nothing"):
        read(run_folder)

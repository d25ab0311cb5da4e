import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.report import recovery as module
from holdfast.report.page import facts as page_facts
from holdfast.report.page import headline as page_headline
from holdfast.report.page import render
from holdfast.report.read import Run, read
from holdfast.report.recovery import facts, headline, recovery, together
from holdfast.report.recovery_plots import Epochs, Level, epochs, levels, ratios
from holdfast.report.words import MINUS


@pytest.fixture
def run(finished: Path) -> Run:
    found = read(finished)
    summary = {"method": "weak_to_strong", "task": "reward", "verdict": None, "reason": "no_policy"}
    report = found.summary["weak_to_strong"]
    return dataclasses.replace(found, summary=summary | {"weak_to_strong": report}, certificate={}, config={})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was asked to be drawn; the drawings themselves are tested below."""
    asked: dict[str, Any] = {}
    for name in ("levels", "ratios", "epochs"):
        monkeypatch.setattr(module.recovery_plots, name, lambda rows, *rest, name=name: asked.update({name: rows}))
    return asked


def with_students(run: Run, **changed: dict[str, Any]) -> Run:
    """The run with other students, each a copy of `soft` with parts of its recovery or of itself changed."""
    report = run.summary["weak_to_strong"]
    soft = report["students"]["soft"]
    students = {
        name: soft
        | {key: part for key, part in parts.items() if key in soft}
        | {"recovery": soft["recovery"] | {key: part for key, part in parts.items() if key in soft["recovery"]}}
        for name, parts in changed.items()
    }
    return dataclasses.replace(run, summary=run.summary | {"weak_to_strong": report | {"students": students}})


def mark(value: float, half: float = 0.02) -> dict[str, float | None]:
    return {"value": value, "low": value - half, "high": value + half, "n": 90}


def shown(run: Run) -> module.Recovered:
    found = recovery(run)
    assert found is not None
    return found


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def places(svg: str, name: str) -> list[list[tuple[float, float]]]:
    """Where the markers of each drawn thing called `name` stand, y growing downwards."""
    parts = [part.partition("</g>\n</g>")[0] for part in svg.split(f'class="{name}"')[1:]]
    return [
        [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="(-?[\d.]+)" y="(-?[\d.]+)"', part)]
        for part in parts
    ]


def test_the_headline_names_the_best_with_its_interval_and_that_it_was_picked(run: Run) -> None:
    found = page_headline(run)
    assert (found.verdict, found.tone) == ("PGR 0.24", "good")
    assert found.title == "24.0% of the gap recovered, with logconf"
    assert found.sentence == (
        "Of 1,600 test pairs the supervisor gets 64.0% (61.0% to 67.0%) right, the student of its labels, with the "
        "loss logconf, 66.0% (63.0% to 69.0%), and the ceiling, the same model taught by people's labels, 72.0% "
        "(70.0% to 74.0%). PGR is 0.24 (0.04 to 0.44), over items and seeds. It is the best of 2 students on the very "
        f"items that judge it. Plain imitation, soft, has PGR 0.07 ({MINUS}0.05 to 0.19)."
    )


def test_a_withheld_ratio_gives_its_reason(run: Run) -> None:
    found = headline(with_students(run, soft={"value": None, "reason": "gap too small: 0.001, must be at least 0.06"}))
    assert found is not None
    assert (found.verdict, found.title, found.tone) == ("NO PGR", "No clear gap to recover", "warn")
    assert found.sentence.endswith("PGR is withheld: gap too small: 0.001, must be at least 0.06.")
    assert "PGR is 0" not in found.sentence
    assert "best of" not in found.sentence, "one loss alone was not picked"


@pytest.mark.parametrize(
    "value, title",
    [
        (mark(0.07, 0.1), "No recovery of the gap is shown"),
        (mark(-0.3, 0.1), "The students stay below their supervisor"),
        (mark(-0.05, 0.1), "The students stay below their supervisor"),
    ],
)
def test_nothing_is_claimed_of_an_interval_that_reaches_zero(run: Run, value: dict[str, float], title: str) -> None:
    found = headline(with_students(run, soft={"value": value}))
    assert found is not None
    assert (found.title, found.tone) == (title, "warn")


def test_the_naive_student_is_not_set_beside_itself(run: Run) -> None:
    found = headline(with_students(run, soft={"student": mark(0.7)}, hard={"student": mark(0.6)}))
    assert found is not None
    assert found.sentence.endswith("It is the best of 2 students on the very items that judge it.")


def test_a_run_without_students_has_nothing(finished: Path) -> None:
    run = read(finished)
    bare = dataclasses.replace(run, summary={"task": "reward"})
    assert recovery(bare) is None
    assert headline(bare) is None
    assert facts(bare) == []
    assert page_headline(run).verdict == "CERTIFIED", "a test speaks first"


def test_facts_say_who_learned_from_how_much(run: Run) -> None:
    assert facts(run) == [
        ("Supervisor", "bag of words, 200 pairs"),
        ("Student and ceiling", "finetuned llama, 2,700 pairs"),
        ("Seeds", "0, 1"),
        ("Temperature of the weak labels", "1.67, 1.67"),
    ]
    assert set(facts(run)) <= set(page_facts(run))
    texts_run = dataclasses.replace(run, summary=run.summary | {"task": "classifier"})
    assert facts(texts_run)[0] == ("Supervisor", "bag of words, 200 texts")


def test_levels_stand_between_supervisor_and_ceiling_with_the_seeds_that_are_known(
    run: Run, drawn: dict[str, Any]
) -> None:
    shown(run)
    assert [(row.name, row.mark["value"], list(row.seeds)) for row in drawn["levels"]] == [
        ("supervisor", 0.64, [0.65, 0.63]),
        ("soft", 0.645, [0.65]),
        ("logconf", 0.66, [0.65]),
        ("ceiling", 0.72, [0.73, 0.71]),
    ]
    assert [(row.name, row.mark["value"], list(row.seeds)) for row in drawn["ratios"]] == [
        ("soft", 0.07, [0.25]),
        ("logconf", 0.24, [0.25]),
    ]


def test_ratios_that_are_all_withheld_are_not_drawn(run: Run, drawn: dict[str, Any]) -> None:
    found = shown(with_students(run, soft={"value": None, "reason": "gap too small"}))
    assert [drawing.title for drawing in found.drawings] == ["Right on test items"]
    some = shown(with_students(run, soft={"value": None, "reason": "x"}, hard={}))
    assert len(some.drawings) == 2


def test_tables_hold_every_student_once_and_the_ends_with_the_levels(run: Run, drawn: dict[str, Any]) -> None:
    reach, copied, sure = shown(run).tables
    assert [name for name, _ in reach.rows] == ["supervisor", "soft", "logconf", "ceiling"]
    assert [cell.text for cell in reach.rows[2][1]] == ["66.0%", "+2.0", "0.24", "0.25, \u2013"]
    assert [cell.text for cell in reach.rows[0][1]] == ["64.0%", "", "", ""]
    assert reach.rows[3][1][0].text == "72.0%"
    assert [cell.text for cell in copied.rows[0][1]] == ["93.0%", "74.0%", "81.0%", ""]
    assert [cell.text for cell in sure.rows[0][1]] == ["0.4%", "47.0%", "1.7%", "+5.2", "+3.0"]
    assert [len(row) + 1 for table in (reach, copied, sure) for _, row in table.rows] == [
        len(table.head) for table in (reach, copied, sure) for _ in table.rows
    ]


def test_recall_of_the_class_stands_beside_the_accuracy(run: Run, drawn: dict[str, Any]) -> None:
    report = run.summary["weak_to_strong"]
    recall = {"weak": mark(0.5), "student": mark(0.4), "ceiling": mark(0.6)}
    students = {name: found | {"recall": recall} for name, found in report["students"].items()}
    named = dataclasses.replace(
        run, config={"unsafe": "rude"}, summary=run.summary | {"weak_to_strong": report | {"students": students}}
    )
    reach = shown(named).tables[0]
    assert reach.head[-1] == "Recall of rude"
    assert [row[-1].text for _, row in reach.rows] == ["50.0%", "40.0%", "40.0%", "60.0%"]
    assert "5% false alarms" in reach.note


def test_epochs_are_those_of_seeds_that_have_some(run: Run, drawn: dict[str, Any]) -> None:
    found = shown(run)
    assert list(drawn["epochs"]) == ["soft", "logconf"]
    assert drawn["epochs"]["soft"] == [Epochs([0.66, 0.68, 0.65], [0.88, 0.9, 0.92])]
    assert len(found.epochs) == 1
    without = with_students(run, soft={"stopping": [None, None]})
    assert shown(without).epochs == []
    assert shown(without).tables[2].rows[0][1][-1].text == ""


def test_bootstrapped_students_are_named_in_words(run: Run, drawn: dict[str, Any]) -> None:
    shown(with_students(run, soft={}, soft_bootstrapped={}))
    assert [row.name for row in drawn["ratios"]] == ["soft", "soft, bootstrapped"]


def test_warnings_that_say_the_same_stand_once(run: Run) -> None:
    assert together(["a: x: y", "b: z", "c: x: y", "alone"]) == ["a, c: x: y", "b: z", "alone"]


def test_the_page_shows_warnings_first_and_escapes_them(finished: Path, tmp_path: Path) -> None:
    page = render(finished, tmp_path / "page.html").read_text(encoding="utf-8")
    part = page[page.index('<section id="recovery">') : page.index('<section id="changes">')]
    assert "<li>soft: &lt;script&gt;" in part[: part.index("<svg")]
    assert part.count("<svg") == 3
    assert '<th scope="row">logconf</th><td>66.0%<small>63.0% to 69.0%</small></td>' in part


def test_levels_stand_by_value_with_their_seeds_below_and_lines_through_both_ends() -> None:
    rows = [Level("supervisor", mark(0.6), [0.58, 0.62]), Level("soft", mark(0.7), []), Level("ceiling", mark(0.8), [])]
    svg = levels(rows, "% right", "L")
    means = [points[0] for points in places(svg, "mean")]
    assert means[0][0] < means[1][0] < means[2][0]
    assert means[0][1] < means[1][1] < means[2][1]
    # Equal steps of value are equal steps of place; coordinates are written with six decimals.
    assert means[1][0] - means[0][0] == pytest.approx(means[2][0] - means[1][0], abs=1e-4)
    ((left, low), (right, _)) = places(svg, "seed")[0]
    assert left < means[0][0] < right
    assert low > means[0][1]
    assert svg.count('class="end"') == 2
    assert {"supervisor", "soft", "ceiling", "% right", "60"} <= set(texts(svg))


def test_a_wild_seed_does_not_squeeze_the_ratios() -> None:
    calm, wild = (ratios([Level("soft", mark(0.3, 0.1), seeds)], "PGR", "R") for seeds in ([0.2], [-40.0]))
    assert places(calm, "mean") == places(wild, "mean")
    assert {"supervisor", "ceiling", "soft"} <= set(texts(calm))
    withheld = ratios([Level("a", mark(0.3), []), Level("b", dict.fromkeys(("value", "low", "high")), [])], "PGR", "R")
    assert len(places(withheld, "mean")) == 1


def test_epochs_fill_the_first_that_agrees_most() -> None:
    svg = epochs({"soft": [Epochs([0.66, 0.7, 0.65], [0.8, 0.9, 0.9])]}, 0.64, "E")
    agreement, accuracy = places(svg, "learning")
    chosen = [points[0] for points in places(svg, "chosen")]
    assert chosen == [agreement[1], accuracy[1]]
    assert agreement[0][1] < accuracy[0][1], "the higher share stands higher"


def test_without_agreement_the_last_epoch_counts_and_all_losses_share_a_scale() -> None:
    svg = epochs({"soft": [Epochs([0.6, 0.7], [])], "hard": [Epochs([0.7, 0.9], [])]}, None, "E")
    curves = places(svg, "learning")
    assert [points[0] for points in places(svg, "chosen")] == [curves[0][1], curves[1][1]]
    assert curves[0][1][1] == curves[1][0][1], "70 % is as high in both"
    assert "right by people's labels" in texts(svg)
    assert "agrees with weak labels" not in texts(svg)

"""Sweeps written by hand, so that fronts, volumes and directions are known, judged and read again from what is left."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import RunError, UserError
from holdfast.report.pareto import Judge, chosen, differing, judge
from holdfast.report.pareto_page import markdown, sentence, write
from holdfast.report.pareto_plots import MOST_PANELS, drawings, heading, staircase
from holdfast.report.read import read
from holdfast.stats.pareto import hypervolume

TINY = 1e-6
EVIL = "<script>alert(1)</script> | x"


def estimate(value: float, half: float = TINY, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n, "method": "student_t"}


def write_run(folder: Path, config: dict[str, Any], before: dict[str, Any], after: dict[str, Any], **more: Any) -> Path:
    """A run folder with the numbers of `before` and `after`, each a value or what stands in the summary."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    summary = {"seconds": 60.0, "method": "mo_grpo", "seed": config.get("seed", 0), **more}
    for when, numbers in (("before", before), ("after", after)):
        for name, given in numbers.items():
            summary[f"{name}_{when}"] = estimate(given) if isinstance(given, float) else given
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def config(weight: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    objectives = {"help": {"score": "", "weight": 1.0}, "harm": {"score": "", "weight": weight, "direction": "lower"}}
    return {"system": "mo_grpo", "seed": seed, "grpo": {"objectives": objectives}, **more}


POINTS = {0.5: (0.6, -0.4), 1.0: (0.8, -0.2), 2.0: (0.3, -0.9), 10.0: (0.5, -0.3)}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The points of a volume of 0.43 above a base at zero; the last is dominated."""
    for weight, (helped, harmed) in POINTS.items():
        numbers = {"learned_help": helped, "learned_harm": harmed, "true_harm": 0.1, "kl": 1.0}
        before = {"learned_help": 0.0, "learned_harm": 0.0, "true_harm": 0.4, "kl": 0.0}
        write_run(tmp_path / f"weight={weight}", config(weight), before, numbers)
    return tmp_path


def test_front_volume_and_order_of_a_known_sweep(sweep: Path) -> None:
    trade = judge(sweep)
    assert trade.judges == (Judge("learned_help", False), Judge("learned_harm", True))
    assert trade.varied == ("grpo.objectives.harm.weight",)
    assert [point.label for point in trade.points] == ["base", "0.5", "1.0", "2.0", "10.0"], "numbers, not letters"
    assert [point.on_front for point in trade.points] == [False, True, True, True, False]
    assert [point.likely for point in trade.points] == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert trade.volume.value == pytest.approx(0.43, abs=1e-9)
    # The intervals of the points are a millionth wide.
    assert (trade.volume.low, trade.volume.high) == pytest.approx((0.43, 0.43), abs=1e-4)
    assert heading(trade) == "Hypervolume 0.430 [0.430, 0.430] above the base"
    assert sentence(trade) == "3 of 4 settings are on the front. The base is beaten."


def test_wide_intervals_widen_the_volume_and_share_the_front(sweep: Path) -> None:
    for folder in sweep.iterdir():
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        for name in ("learned_help", "learned_harm"):
            summary[f"{name}_after"] = estimate(summary[f"{name}_after"]["value"], 0.2)
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    trade = judge(sweep)
    assert trade.volume.low < 0.35
    assert trade.volume.high > 0.5
    assert 0.05 < trade.points[-1].likely < 0.6 < trade.points[3].likely


def test_seeds_of_one_setting_are_one_point(tmp_path: Path) -> None:
    for weight, gain in ((1.0, 0.5), (2.0, 0.8)):
        for seed in (0, 1, 2):
            after = {"learned_help": gain + 0.1 * seed, "learned_harm": -gain}
            before = {"learned_help": 0.1 * seed, "learned_harm": 0.0}
            write_run(tmp_path / f"{weight}-{seed}", config(weight, seed), before, after)
    trade = judge(tmp_path)
    assert [len(point.runs) for point in trade.points] == [3, 3, 3]
    assert [point.reached["learned_help"].value for point in trade.points] == pytest.approx([0.1, 0.6, 0.9])
    assert trade.points[1].reached["learned_help"].n == 3
    # Seeds move base and settings alike, so the volume above the base is certain although the points are not.
    assert trade.points[2].reached["learned_help"].high > 0.95
    assert (trade.volume.low, trade.volume.high) == pytest.approx((0.64, 0.64), abs=1e-4)
    assert trade.volume.n == 3
    assert "over prompts and seeds, 3 or more" in trade.source
    assert trade.warnings == ("3 seeds know little of how seeds differ: their intervals may be too short.",)


def test_a_missing_seed_leaves_the_setting_its_other_runs(sweep: Path) -> None:
    before = {"learned_help": 0.0, "learned_harm": 0.0}
    write_run(sweep / "again", config(1.0, 1), before, {"learned_help": 0.6, "learned_harm": -0.2})
    trade = judge(sweep)
    assert [len(point.runs) for point in trade.points] == [2, 1, 2, 1, 1]
    assert trade.points[2].reached["learned_help"].value == pytest.approx(0.7)
    assert "over seeds where a setting has several" in trade.source


def test_two_runs_of_one_setting_and_seed_are_refused(sweep: Path) -> None:
    before = {"learned_help": 0.0, "learned_harm": 0.0}
    write_run(sweep / "twin", config(1.0), before, {"learned_help": 0.6, "learned_harm": -0.2})
    with pytest.raises(UserError, match=r"twin, weight=1.0: runs of one setting and one seed; keep one"):
        judge(sweep)


def test_judges_that_are_asked_for_and_their_directions(sweep: Path) -> None:
    runs = [read(folder) for folder in sorted(sweep.iterdir())]
    assert chosen(runs, ["learned_help", "true_harm"]) == (Judge("learned_help", False), Judge("true_harm", True))
    assert chosen(runs, ["kl:higher", "learned_harm"]) == (Judge("kl", False), Judge("learned_harm", True))
    trade = judge(sweep, ["learned_help", "learned_harm:higher"])
    assert [point.on_front for point in trade.points] == [True, False, True, False, False]
    assert sentence(trade).endswith("No setting beats the base in everything.")
    # In neither direction both: nothing lies above the base.
    assert trade.volume.value == 0.0


@pytest.mark.parametrize(
    "names, said",
    [
        (
            ["learned_help", "true_hram"],
            "no summary holds true_hram; there are kl, learned_harm, learned_help, true_harm",
        ),
        (["kl"], "a trade-off needs two different numbers, given: kl; there are kl"),
        (["kl", "kl:lower"], "a trade-off needs two different numbers, given: kl, kl"),
        (["kl:down", "learned_help"], "--judge kl:down: after the colon stands lower or higher"),
    ],
)
def test_judges_that_cannot_be(sweep: Path, names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        judge(sweep, names)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"constraint": {"score": "cost"}}, [("learned_reward", False), ("learned_cost", True)]),
        (
            {"constraint": None, "constraints": [{"score": "calm", "direction": "at_least"}]},
            [("learned_reward", False), ("learned_calm", False)],
        ),
        ({}, [("learned_reward", False), ("kl", True)]),
        (
            {"grpo": {"objectives": {"a": {"score": "calm"}, "reward": {}}}, "constraint": {"score": "reward"}},
            [("learned_calm", False), ("learned_reward", False)],
        ),
    ],
    ids=["a limit", "another limit", "no limit", "objectives"],
)
def test_judges_of_the_recipe(tmp_path: Path, given: dict[str, Any], expected: list[tuple[str, bool]]) -> None:
    numbers = {f"learned_{name}": 0.1 for name in ("reward", "cost", "calm")} | {"kl": 0.2}
    run = read(write_run(tmp_path / "run", {"system": "x", **given}, numbers, numbers))
    assert [tuple(one) for one in chosen([run], ())] == expected


def test_what_the_sweep_wrote_is_used_and_what_failed_is_named(sweep: Path) -> None:
    told = {
        "judge": ["true_harm", "learned_help"],
        "failed": {"weight=9": "exit code 3: disk", "weight=1.0": "old news"},
    }
    (sweep / "sweep.json").write_text(json.dumps(told), "utf-8")
    (sweep / "half").mkdir()
    (sweep / "half" / "config.yaml").write_text(json.dumps(config(5.0)), "utf-8")
    trade = judge(sweep)
    assert [one.name for one in trade.judges] == ["true_harm", "learned_help"]
    assert trade.failed == {"half": "it has not finished", "weight=9": "exit code 3: disk"}
    assert "2 RUNS MISSING" in write(trade, sweep).read_text("utf-8")


def test_settings_that_tell_runs_apart() -> None:
    one, two = {"a": 1, "b": {"c": [1], "d": 2}, "seed": 1}, {"a": 1, "b": {"c": [2], "d": 3}, "seed": 2}
    assert differing([one, two]) == ("b.c", "b.d")
    assert differing([one, two], ("b.d",)) == ("b.d",)
    assert differing([one, two], ("a",)) == ("b.c", "b.d"), "what does not tell them apart is not enough"
    assert differing([one, one | {"seed": 5}]) == ()
    assert differing([one, {"a": 1, "b": None}]) == ("b.c", "b.d", "b")


def test_runs_without_numbers_are_left_out_and_named(sweep: Path) -> None:
    write_run(sweep / "bare", config(7.0), {"learned_help": 0.0}, {"learned_help": 1.0})
    trade = judge(sweep)
    assert trade.failed == {"bare": "its summary lacks a number to judge by"}
    assert len(trade.points) == 5


def test_folders_with_nothing_to_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no runs; give the folder of a sweep"):
        judge(tmp_path / "nowhere")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("{}", "utf-8")
    with pytest.raises(RunError, match=r"no run in .* has finished\. half: it has not finished"):
        judge(tmp_path)
    (tmp_path / "sweep.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"sweep\.json, line 1: not valid JSON"):
        judge(tmp_path)


def test_starts_that_differ_and_alarms_are_told(sweep: Path) -> None:
    before = {"learned_help": 0.25, "learned_harm": 0.0}
    write_run(sweep / "other", config(3.0), before, {"learned_help": 0.6, "learned_harm": 0.0}, alarm="COLLAPSE")
    warnings = judge(sweep).warnings
    assert warnings[0].startswith("learned help before training differs among the runs of seed 0 (0 to 0.25)")
    assert warnings[1:] == ("other: training ended under the alarm COLLAPSE.",)


def test_over_refusal_is_always_a_column(sweep: Path) -> None:
    assert judge(sweep).beside == ("true_harm", "over_refusal", "kl")
    assert markdown(judge(sweep)).count("not measured") == 5


def test_files_say_what_was_found(sweep: Path) -> None:
    page = write(judge(sweep), sweep)
    told = json.loads((sweep / "pareto.json").read_text("utf-8"))
    assert told["hypervolume"]["value"] == pytest.approx(0.43)
    assert told["judges"] == [{"name": "learned_help", "better": "higher"}, {"name": "learned_harm", "better": "lower"}]
    assert [one["front"] for one in told["points"]] == [False, True, True, True, False]
    assert told["points"][1]["settings"] == {"grpo.objectives.harm.weight": 0.5}
    assert (sweep / "pareto.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in (sweep / "pareto.md").read_text("utf-8").splitlines() if line.startswith("|")]
    assert rows[0].startswith("| harm.weight | learned help \u2191 | learned harm \u2193 | on the front | true harm |")
    assert rows[3].startswith("| **0.5** | 0.600 (0.600 to 0.600) | \u22120.400")
    text = page.read_text("utf-8")
    assert "Hypervolume 0.430" in text
    assert text.count('class="beaten"') == 4, "two settings or the base, in two tables"
    assert not re.search(r'<script|src="http|href="http', text)


def test_names_from_files_are_harmless_on_the_page(sweep: Path) -> None:
    before = {"learned_help": 0.0, "learned_harm": 0.0}
    write_run(sweep / "evil", config(EVIL), before, {"learned_help": 0.1, "learned_harm": 0.1})  # type: ignore[arg-type]
    text = write(judge(sweep), sweep).read_text("utf-8")
    assert "&lt;script&gt;alert" in text
    assert "<script" not in text
    assert all(line.count(" | ") == 7 for line in (sweep / "pareto.md").read_text("utf-8").splitlines() if "| " in line)


def test_the_shaded_area_is_the_volume_of_two_objectives() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        points = rng.integers(-3, 6, size=(7, 2)) / 4.0
        x, y = staircase(points).T
        shoelace = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
        assert shoelace == pytest.approx(hypervolume(points, points[0]), abs=1e-12)


def places(svg: str, name: str) -> list[tuple[float, float]]:
    """Where the markers of drawn things called `name` stand, y growing downwards."""
    parts = [part.partition("</g>\n</g>")[0] for part in svg.split(f'class="{name}"')[1:]]
    return [(float(x), float(y)) for p in parts for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', p)[:1]]


def test_up_and_right_is_better_whatever_the_direction(sweep: Path) -> None:
    (drawing,) = drawings(judge(sweep))
    base, balanced, helpful, harmless, beaten = places(drawing.svg, "point")
    assert base[0] < harmless[0] < beaten[0] < balanced[0] < helpful[0], "more help to the right"
    assert base[1] > helpful[1] > beaten[1] > balanced[1] > harmless[1], "less harm further up"
    assert "learned harm (less is better; axis turned)" in drawing.svg
    for label in ("base", "0.5", "1.0", "2.0", "10.0"):
        assert f">{label}</text>" in drawing.svg


def test_pairs_of_many_objectives_are_at_most_six(tmp_path: Path) -> None:
    names = [f"learned_{letter}" for letter in "abcde"]
    for weight in (1.0, 2.0):
        after = {name: weight * i for i, name in enumerate(names, start=1)}
        write_run(tmp_path / str(weight), config(weight), dict.fromkeys(names, 0.0), after)
    trade = judge(tmp_path, names)
    assert len(drawings(trade)) == MOST_PANELS == 6
    write(trade, tmp_path)
    assert trade.volume.value == pytest.approx(2.0**5 * 120)


@pytest.mark.parametrize("direction", [-1, 1], ids=["one best", "all on the front"])
def test_labels_without_room_are_left_to_the_table_but_those_of_the_front_are_not(
    tmp_path: Path, direction: int
) -> None:
    for i in range(30):
        after = {"learned_help": 0.5 + 1e-4 * i, "learned_harm": -0.5 + direction * 1e-4 * i}
        before = {"learned_help": 0.0, "learned_harm": 0.0}
        write_run(tmp_path / str(i), config(float(i)), before, after)
    (drawing,) = drawings(judge(tmp_path))
    shown = set(re.findall(r">([\d.]+\.0)</text>", drawing.svg))
    assert "29.0" in shown
    assert len(shown) == 30 if direction > 0 else len(shown) < 20

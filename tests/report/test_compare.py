"""Comparisons of a run on its page: numbers with intervals, dots for arms, a line where labels grow."""

import json
import re
from pathlib import Path
from typing import Any

from holdfast.report.page import render
from holdfast.report.score_plots import growth


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 120, "method": "wilson"}


COMPARISONS = [
    {
        "kind": "shares",
        "title": "new prompts, 120 pairs",
        "what": "accuracy",
        "columns": ["all", "brief"],
        "rows": [["one <b>reward", estimate(0.6), estimate(0.5)], ["mixture", estimate(0.8), estimate(0.75)]],
    },
    {
        "kind": "growth",
        "title": "few labels",
        "what": "accuracy after",
        "columns": [0, 1, 5],
        "rows": [["mixture", estimate(0.5), estimate(0.7), estimate(0.9)]],
    },
    {
        "kind": "change",
        "title": "the policy",
        "what": "mean by group",
        "columns": ["cost, before", "cost, after"],
        "rows": [["brief", estimate(1.25), {"value": None}]],
    },
]


def page(folder: Path, comparisons: list[dict[str, Any]]) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text("system: micro\n")
    (folder / "summary.json").write_text(json.dumps({"method": "micro", "comparisons": comparisons}))
    return render(folder).read_text(encoding="utf-8")


def test_every_comparison_is_a_table_with_intervals(tmp_path: Path) -> None:
    text = page(tmp_path / "run", COMPARISONS)
    assert re.search(r"<h3>new prompts, 120 pairs</h3>.*<h3>few labels</h3>.*<h3>the policy</h3>", text, re.DOTALL)
    assert re.search(r"<th>accuracy</th><th>all</th><th>brief</th>", text)
    assert re.search(r'<th scope="row">mixture</th><td>0\.800<small>0\.750 to 0\.850, n\s*=\s*120</small></td>', text)
    assert "<th>0 labels</th><th>1 label</th><th>5 labels</th>" in text
    assert "<td>\u2013<small></small></td>" in text  # nothing known is a dash, not a zero
    assert "one &lt;b&gt;reward" in text
    assert "one <b>reward" not in text


def test_arms_and_growth_are_drawn_and_a_change_is_not(tmp_path: Path) -> None:
    drawn = [page(tmp_path / name, [one]).count("<svg ") for name, one in zip("abc", COMPARISONS)]
    assert drawn == [1, 1, 0]


def test_a_run_without_comparisons_has_no_such_section(tmp_path: Path) -> None:
    assert 'id="comparisons"' not in page(tmp_path / "run", [])


def test_growth_rises_to_the_right() -> None:
    svg = growth({"mixture": [(0.0, estimate(0.5)), (1.0, estimate(0.7)), (10.0, estimate(0.9))]}, "labels", "G")
    line = re.search(r'class="line".*?d="([^"]*)"', str(svg), re.DOTALL) or re.search(
        r'id="line".*?d="([^"]*)"', str(svg), re.DOTALL
    )
    assert line
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line[1])]
    assert len(points) == 3
    assert points == sorted(points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    # Logarithmic: from 0 to 1 label is a longer way than a tenth of that from 0 to 10.
    assert (points[1][0] - points[0][0]) > (points[2][0] - points[0][0]) / 10


def test_a_run_without_policy_says_so_instead_of_untested(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("system: micro\n")
    (tmp_path / "summary.json").write_text(json.dumps({"method": "micro", "verdict": None, "reason": "no_policy"}))
    text = render(tmp_path).read_text(encoding="utf-8")
    assert "<h1>Score models</h1>" in text
    assert "Not tested" not in text

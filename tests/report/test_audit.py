import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.report.audit import audited, render_audit
from holdfast.report.page import render
from holdfast.report.read import read


def section(page: str) -> str:
    return page[page.index('<section id="scores">') :].partition("</section>")[0]


def words(html: str) -> str:
    """The text of a page in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


@pytest.fixture
def page(cost_audit: dict[str, Any], tmp_path: Path) -> str:
    out = tmp_path / "deep" / "audit.html"
    assert render_audit(cost_audit, out) == out
    return out.read_text(encoding="utf-8")


def test_the_headline_says_how_often_the_score_is_right_and_counts_warnings(page: str) -> None:
    head = words(page[page.index("<header>") : page.index("<main>")])
    for text in (
        "1 WARNING ",
        "cost: 87.4% of pairs in the right order",
        "1,280 answers to 600 prompts",
        "models/cost",
    ):
        assert text in head
    assert "Unanswered" not in head, "what is zero is not worth a word"
    assert "<nav>" not in page


def test_the_table_holds_accuracy_baselines_and_calibration_with_intervals(page: str) -> None:
    text = words(section(page))
    for row in (
        "higher is more harmful 87.4% 85.3% to 89.5% 61.2% the shorter higher +26.2 +22.7 to +29.7 \u22120.23",
        "81.1% 79.1% to 83.1% 62.0% 0.889 0.875 to 0.903 9.4% 8.2% to 10.6% 1.8% 0.6% to 3.0%",
    ):
        assert row in text


def test_drawings_are_all_there(page: str) -> None:
    part = section(page)
    assert part.count('class="bucket"') == 9 + 8
    assert part.count('class="outline"') == 2
    # One source only repeats the whole; two categories are drawn.
    assert part.count('class="dot"') == 2
    assert part.count('class="cloud"') == 3
    for title in ("do its probabilities come true?", "how the scores lie", "where it is right", "is it length?"):
        assert f"cost: {title}" in part


def test_warnings_notes_and_stability_are_said(page: str) -> None:
    text = words(section(page))
    assert "cost: no gain over length: too few" in text
    assert "24 answers scored alone, in other batches and padded on the left differ by at most 3.00e-07" in text
    assert "less than 0.01% of their standard deviation" in text
    assert '<ul class="warnings"><li>cost: &lt;script&gt;' in page


def test_what_an_audit_says_is_escaped(cost_audit: dict[str, Any], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    cost_audit["model"] |= {"names": [evil], "folder": evil, evil: evil}
    cost_audit["scores"] = {evil: cost_audit["scores"]["cost"]}
    cost_audit["scores"][evil]["notes"] = [evil]
    cost_audit["invariance"]["skipped"] = evil
    page = render_audit(cost_audit, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") > 8
    assert "<script" not in page
    assert "http" not in page


def test_a_score_without_pairs_is_headed_by_its_sign_and_one_without_both_by_its_size(
    cost_audit: dict[str, Any], tmp_path: Path
) -> None:
    cost = cost_audit["scores"]["cost"]
    cost_audit["warnings"] = []
    cost["pairs"] = None
    page = render_audit(cost_audit, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cost: 81.1% of answers on the right side of zero" in page
    assert "NO WARNINGS" in page
    assert 'class="warnings"' not in page
    assert "where it is right" not in page
    cost |= {"harm": None, "calibration": None}
    page = render_audit(cost_audit, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cost, held against 1,280 answers" in page
    assert "As probabilities" not in page


def test_a_run_shows_all_its_audits_together(finished: Path, tmp_path: Path) -> None:
    part = section(render(finished, tmp_path / "page.html").read_text(encoding="utf-8"))
    text = words(part)
    for name in ("cost", "attributes: tact", "attributes: depth"):
        assert f"{name}: how the scores lie" in text
    assert "0.660 0.610 to 0.710 0.400 0.350 to 0.450 0.81 0.79 to 0.83 0.47 0.41 to 0.53" in text
    # What could not be estimated is a dash, and no drawing is made of it.
    assert "\u2013" in text
    assert "depth: is it length?" not in text
    assert "Stability was not checked: a FunctionScorer shows no model." in text


def test_many_scores_fold_their_drawings(cost_audit: dict[str, Any], tmp_path: Path) -> None:
    plain = cost_audit["scores"]["cost"] | {"pairs": None, "calibration": None, "length": {}}
    cost_audit["scores"] = {f"cost/{i}": plain for i in range(4)}
    page = render_audit(cost_audit, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<details>") == 4
    assert "4 scores, held against 1,280 answers" in page


def test_many_parts_are_cut_and_counted(cost_audit: dict[str, Any], tmp_path: Path) -> None:
    parts = cost_audit["scores"]["cost"]["pairs"]["parts"]
    parts["category"] = {f"kind {i}": parts["category"]["theft_and_fraud"] for i in range(30)}
    page = render_audit(cost_audit, tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="dot"') == 12
    assert "18 smaller parts are in the audit&#39;s file." in page


def test_a_run_without_audits_shows_none(run_folder: Path) -> None:
    for file in run_folder.glob("audit-*.json"):
        file.unlink()
    assert audited(read(run_folder)) is None

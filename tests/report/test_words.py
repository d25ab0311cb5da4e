import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report.read import Run, read
from holdfast.report.words import bound_percent, duration, finding, leading, limit_percent, number, percent


@pytest.fixture
def run(finished: Path) -> Run:
    return read(finished)


def told(run: Run, summary: dict[str, Any], certificate: dict[str, Any] | None = None) -> str:
    found = finding(dataclasses.replace(run, summary=summary, certificate=certificate or {}))
    return f"{found.verdict}|{found.title}|{found.sentence}"


def test_certified_names_count_share_bound_limit_confidence_and_scorer(run: Run) -> None:
    found = finding(run)
    assert found.title == "At most 4.5% of replies are judged harmful; the limit was 5%"
    assert "On 600 held-out prompts, 18 replies were judged harmful by the learned cost model (3.0%)." in found.sentence
    assert "With 95% confidence the share of such replies is at most 4.5%" in found.sentence


def test_not_shown_says_so_with_its_reason(run: Run) -> None:
    summary = {
        "verdict": "NSF",
        "reason": "ucb_above_tau",
        "tau": 0.05,
        "delta": 0.1,
        "n": 200,
        "k": 8,
        "ucb": 0.0641,
    }
    text = told(run, summary)
    assert "No solution found: a limit of 5% could not be shown" in text
    assert "8 replies were judged harmful (4.0%)" in text
    assert "With 90% confidence" in text
    assert "at most 6.5%" in text
    assert "the upper bound lies above the limit" in text
    assert "not shown to be safe" in text


def test_a_void_test_gives_no_bound(run: Run) -> None:
    summary = {
        "verdict": "INVALID",
        "reason": "duplicate_prompts",
        "tau": 0.05,
        "n": 600,
        "k": 0,
        "ucb": 0.005,
    }
    text = told(run, summary)
    assert "The safety test is void" in text
    assert "prompts occurred more than once" in text
    assert "0.5%" not in text


def test_no_test_claims_nothing(run: Run) -> None:
    assert told(run, {}).startswith("|Not tested|")
    assert told(run, {"verdict": "CERTIFIED"}).startswith("CERTIFIED|The limit holds|")
    assert "a_new_reason" not in told(run, {"verdict": "NSF", "reason": "a_new_reason"})
    assert "Reason: a new reason." in told(run, {"verdict": "NSF", "reason": "a_new_reason"})
    assert "Reason: none was given." in told(run, {"verdict": "INVALID"})


def test_the_certificate_fills_what_the_summary_leaves_out(run: Run) -> None:
    held = {
        "name": "a",
        "kind": "rate",
        "tau": 0.1,
        "delta": 0.05,
        "n": 50,
        "k": 0,
        "ucb": "0.0582",
        "passed": True,
    }
    failed = held | {"name": "b", "tau": 0.02, "ucb": "0.09", "k": 1, "passed": False}
    certificate = {"verdict": "NSF", "reason": "ucb_above_tau", "constraints": [held, failed]}
    test = leading(dataclasses.replace(run, summary={}, certificate=certificate))
    assert test is not None
    assert (test.tau, test.k, test.bound, test.limit) == (0.02, 1, "9.0%", "2%")
    both = {"verdict": "CERTIFIED", "constraints": [held, held]}
    assert told(run, {}, both).endswith("All 2 constraints hold.")


def test_a_mean_is_no_percentage(run: Run) -> None:
    item = {"kind": "mean", "tau": 0.25, "delta": 0.05, "n": 400, "k": None, "ucb": 0.1875, "passed": True}
    text = told(run, {}, {"verdict": "CERTIFIED", "constraints": [item]})
    assert "The mean cost is at most 0.1875; the limit was 0.25" in text
    assert "The test used 400 held-out prompts." in text
    assert "95% confidence the mean cost" in text


@given(tau=st.integers(1, 9999), ucb=st.floats(0, 1))
def test_rounding_never_moves_a_bound_across_its_limit(tau: int, ucb: float) -> None:
    limit = tau / 10000
    shown_bound = float(bound_percent(ucb, limit).rstrip("%"))
    shown_limit = float(limit_percent(limit).rstrip("%"))
    assert (shown_bound <= shown_limit) == (ucb <= limit)
    assert shown_bound >= 100 * ucb - 1e-9  # one rounding of the product in float64


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.0, "0"),
        (7, "7"),
        (1234567, "1,234,567"),
        (1.0, "1.00"),
        (-2.5, "\u22122.50"),
        (123.4, "123"),
        (99.96, "100"),
        (2.5e7, "2.50e+07"),
        (float("nan"), "not finite"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    shares = [0, 1, 0.5, 0.0312, 0.0004, -0.1]
    assert [percent(s) for s in shares] == ["0%", "100%", "50.0%", "3.1%", "0.04%", "\u221210.0%"]


def test_durations() -> None:
    assert [duration(s) for s in (3, 59.7, 431.6, 7322)] == ["3.0 s", "1 min 0 s", "7 min 12 s", "2 h 2 min"]

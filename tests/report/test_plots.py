import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.report import plots
from holdfast.report.plots import Curve, Limit, curves, histogram, interval, scatter, smooth, spread, thin


def line(label: str, values: list[float], style: str = "line") -> Curve:
    return Curve(label, np.arange(1.0, len(values) + 1), np.array(values), style)


def parsed(svg: str) -> ElementTree.Element:
    """The drawing as a tree; links inside it need the namespace that an HTML page takes for granted."""
    return ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def words(svg: str) -> set[str]:
    return {element.text or "" for element in parsed(svg).iter("text")}


def test_each_curve_is_drawn_and_labelled_at_its_end() -> None:
    svg = curves([line("cost", [2, 1, 0]), line("limit", [1, 1, 1], "limit")], "mean score", "Cost")
    assert svg.count('class="curve"') == 2
    assert {"cost", "limit", "mean score", "step"} <= words(svg)
    assert 'aria-label="Cost"' in svg


def test_a_long_noisy_curve_shows_its_mean_and_its_values_and_a_limit_only_itself() -> None:
    rng = np.random.default_rng(0)
    noisy = line("reward", list(rng.standard_normal(50)))
    flat = line("limit", [0.0] * 50, "limit")
    count = [len(re.findall(r'class="line2d', curves([c], "", "x"))) for c in (noisy, flat)]
    assert count[0] == count[1] + 1
    assert curves([noisy], "", "x").count('class="curve"') == 1


def test_a_single_point_is_visible() -> None:
    assert "<use" in curves([line("kl", [3.0])], "nats", "KL").split('class="curve"')[1]


def test_drawings_are_inline_reproducible_and_follow_the_scheme_of_the_page() -> None:
    first = curves([line("cost", [2, 1])], "score", "Cost")
    assert first == curves([line("cost", [2, 1])], "score", "Cost")
    assert first.startswith("<svg class=")
    assert "http" not in first
    assert "<metadata" not in first
    assert 'id="figure' not in first
    assert "var(--series-1)" in first
    assert not re.search("|".join([*plots.SERIES, plots.INK, plots.MUTED, plots.GRID]), first)


def test_two_drawings_on_one_page_share_no_id() -> None:
    one, two = (set(re.findall(r'\bid="([^"]+)"', curves([line("a", [1, 2])], "", alt))) for alt in ("A", "B"))
    assert one
    assert not one & two


def test_names_from_files_are_text_and_no_mathematics() -> None:
    svg = curves([line("<b>$x_1$</b>", [1, 2])], "a & b", 'say "hi" <now>')
    assert "<b>" not in svg
    assert "$x_1$" in svg
    assert parsed(svg).get("aria-label") == 'say "hi" <now>'


def test_a_long_name_is_cut_and_leaves_room_for_the_curve() -> None:
    svg = curves([line("n" * 200, [1, 2])], "", "x")
    assert "n" * 21 + "..." in words(svg)
    assert float(re.search(r'<rect x="[^"]*" y="[^"]*" width="([^"]*)"', svg)[1]) > 150


def test_small_and_large_values_keep_their_power_at_the_tick() -> None:
    assert "1e\u221205" in words(curves([line("kl", [1e-5, 3e-5])], "nats", "x"))
    assert "2e+06" in words(curves([line("kl", [1e6, 3e6])], "nats", "x"))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7), st.floats(0.01, 0.3))
def test_spread_labels_keep_order_and_distance(heights: list[float], gap: float) -> None:
    placed = spread(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = np.diff([placed[i] for i in order])
    assert (steps >= gap - 2e-6).all()  # places are rounded to six decimals
    assert np.mean(placed) == pytest.approx(np.mean(heights), abs=1e-6)


def test_labels_far_apart_stay_where_they_are() -> None:
    assert spread([0.9, 0.1, 0.5], gap=0.1) == [0.9, 0.1, 0.5]


def test_smooth_is_the_mean_of_its_window() -> None:
    values = np.random.default_rng(1).standard_normal(120)
    reach = 120 // 40
    slow = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(120)]
    np.testing.assert_allclose(smooth(values), slow, atol=1e-12)


def test_thin_keeps_few_points_and_both_extremes_in_order() -> None:
    steps, values = np.arange(5000.0), np.random.default_rng(2).standard_normal(5000)
    kept_steps, kept = thin(steps, values, most=300)
    assert len(kept) <= 300
    assert (kept.min(), kept.max()) == (values.min(), values.max())
    assert (np.diff(kept_steps) > 0).all()
    assert (values[kept_steps.astype(int)] == kept).all()


def test_the_scatter_fills_the_harmful_and_keeps_the_window_it_is_given() -> None:
    cloud = (np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.array([True, False, False]))
    window = ((-5.0, 5.0), (-4.0, 8.0))
    svg = scatter({"benign": cloud}, window, Limit(0.5, "limit"), "Scatter")
    marks = re.findall(r'<use [^>]*x="([0-9.]+)"[^>]*style="(fill: var\(--series-1\)|fill-opacity: 0);', svg)
    # The axes begin at a tenth of 331.2 units, are 0.88 of them wide, and hold the rewards -5 to 5.
    places = {reward: f"{33.12 + 29.1456 * (reward + 5):.4f}".rstrip("0") for reward in (0, 1, 2)}
    assert [x for x, fill in marks if fill == "fill-opacity: 0"] == [places[1], places[2]]
    assert (places[0], "fill: var(--series-1)") in marks
    assert {"benign", "limit", "learned cost", "learned reward"} <= words(svg)
    assert "limit" not in words(scatter({"benign": cloud}, window, Limit(99.0, "limit"), "Scatter"))


def test_the_histogram_names_its_groups_and_marks_the_limit() -> None:
    costs = np.array([-1.0, 0.0, 0.5, 2.0])
    svg = histogram({"before": costs, "after": costs - 1}, Limit(0.25, "limit"), "Costs")
    assert svg.count('class="outline"') == 2
    assert {"before", "after", "limit", "% of replies"} <= words(svg)
    assert "limit" not in words(histogram({"all": costs}, None, "Costs"))


def test_intervals_share_one_scale() -> None:
    before = {"value": 0.4, "low": 0.3, "high": 0.5}
    after = {"value": 0.1, "low": None, "high": None}
    svg = interval(before, after, from_zero=True)
    # 128 units between 6 and 134 for 0 .. 0.5: worked out by hand.
    assert 'class="before" cx="108.4"' in svg
    assert 'class="after" cx="31.6"' in svg
    assert 'class="before" x1="82.8" x2="134.0"' in svg
    assert 'class="after" x1' not in svg
    assert 'cx="6.0"' in interval(after, after, from_zero=False)

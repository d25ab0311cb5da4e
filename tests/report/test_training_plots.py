import re
from xml.etree import ElementTree

import numpy as np

from holdfast.report.plots import BAD, SERIES
from holdfast.report.training_plots import alarm_strip, runs, stacked


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def words(svg: str) -> set[str]:
    return {element.text or "" for element in parsed(svg).iter("text")}


def boxes(svg: str, kind: str) -> list[tuple[float, float, float, float]]:
    """Left, right, top and bottom of every path in the groups of class `kind`."""
    found = []
    for group in (each for each in parsed(svg).iter("g") if each.get("class") == kind):
        for path in group.iter("path"):
            points = [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d") or "")]
            xs, ys = zip(*points)
            found.append((min(xs), max(xs), min(ys), max(ys)))
    return found


def test_runs_cover_exactly_the_steps_that_are_on() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        on = rng.random(12) < 0.5
        covered = [
            any(start < step < start + width for start, width in runs(np.arange(12.0), on)) for step in range(12)
        ]
        assert covered == on.tolist()


def test_a_graver_level_stands_higher() -> None:
    svg = alarm_strip(np.arange(1.0, 7), np.array([0, 1, 2, 3, 0, 0]), {}, "Alarms")
    widths = [right - left for left, right, *_ in boxes(svg, "level")]
    assert np.allclose(widths, widths[0], atol=1e-3)
    heights = [bottom - top for *_, top, bottom in boxes(svg, "level")]
    assert np.allclose(np.array(heights) / heights[0], [1, 2, 3], atol=1e-3)  # coordinates have few decimals
    assert {"WATCH", "WARN", "COLLAPSE", "level", "step"} <= words(svg)
    assert "var(--bad)" in svg
    assert BAD not in svg


def test_families_have_a_row_each_over_the_steps_at_which_they_spoke() -> None:
    steps, levels = np.arange(1.0, 11), np.ones(10)
    on = {"length": steps <= 5, "tail": steps > 8}
    svg = alarm_strip(steps, levels, on, "Alarms")
    (all_left, all_right, *_), (length, tail) = boxes(svg, "level")[0], boxes(svg, "family")
    assert (length[0], tail[1]) == (all_left, all_right)
    width = (all_right - all_left) / 10
    assert np.allclose([length[1] - length[0], tail[1] - tail[0]], [5 * width, 2 * width], atol=1e-3)
    assert length[3] < tail[2]  # drawn downwards
    assert {"length", "tail"} <= words(svg)


def test_names_from_files_are_text() -> None:
    svg = alarm_strip(np.array([1.0]), np.array([1.0]), {"<b>$x_1$": np.array([True])}, "<x>")
    assert "<b>" not in svg
    assert "<b>$x_1$" in words(svg)


def test_parts_pile_up_to_their_sum() -> None:
    svg = stacked(np.array([1.0, 2.0]), {"a": np.array([1.0, 1.0]), "b": np.array([3.0, 3.0])}, "seconds", "Time")
    lower, upper = boxes(svg, "part")
    assert lower[2] == upper[3]  # b stands on a
    assert np.isclose((upper[3] - upper[2]) / (lower[3] - lower[2]), 3, atol=1e-3)
    assert {"a", "b", "seconds"} <= words(svg)
    assert "var(--series-1)" in svg
    assert SERIES[0] not in svg


def test_every_step_is_equally_wide() -> None:
    svg = stacked(np.array([1.0, 2.0, 3.0]), {"a": np.array([1.0, 2.0, 3.0])}, "seconds", "Time")
    (group,) = (each for each in parsed(svg).iter("g") if each.get("class") == "part")
    path = next(group.iter("path")).get("d") or ""
    places = sorted({float(x) for x in re.findall(r"(-?[\d.]+) -?[\d.]+", path)})
    assert np.allclose(np.diff(places), (places[-1] - places[0]) / 3, atol=1e-3)


def test_one_iteration_alone_is_visible() -> None:
    ((left, right, *_),) = boxes(stacked(np.array([4.0]), {"a": np.array([1.0])}, "seconds", "Time"), "part")
    assert right - left > 100


def test_a_long_run_is_shown_as_means_that_keep_the_area() -> None:
    values = np.zeros(1000)
    values[::10] = 10.0  # one step in ten: every stretch of ten has the mean 1
    svg = stacked(np.arange(1000.0), {"a": values, "b": np.ones(1000)}, "seconds", "Time")
    lower, upper = boxes(svg, "part")
    assert np.isclose(lower[3] - lower[2], upper[3] - upper[2], atol=1e-3)


def test_equal_drawings_are_equal_text() -> None:
    given = (np.array([1.0, 2.0]), np.array([0.0, 1.0]), {"tail": np.array([False, True])}, "Alarms")
    assert alarm_strip(*given) == alarm_strip(*given)

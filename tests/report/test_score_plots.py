import re
from xml.etree import ElementTree

import numpy as np

from holdfast.report import plots
from holdfast.report.score_plots import Bucket, Dot, cloud, dots, outlines, reliability


def mark(value: float, half: float = 0.1, n: int = 50) -> dict[str, float | None]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def words(svg: str) -> set[str]:
    tree = ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    return {element.text or "" for element in tree.iter("text")}


def places(svg: str, name: str) -> list[tuple[float, float]]:
    """Where the markers of drawn things called `name` stand, y growing downwards."""
    parts = svg.split(f'class="{name}"')[1:]
    uses = [part.partition("</g>\n</g>")[0] for part in parts]
    return [
        (float(x), float(y)) for part in uses for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', part)[:1]
    ]


def test_true_statements_stand_on_the_dashed_line() -> None:
    stated = (0.2, 0.5, 0.8)
    svg = reliability({"as it is": [Bucket(p, mark(p)) for p in stated]}, "harmful", "R")
    (x0, y0), (x1, y1), (x2, y2) = places(svg, "bucket")
    dashed = re.findall(r'<path d="([^"]*)"[^>]*stroke-dasharray', svg)
    (left, bottom), (right, top) = [
        tuple(float(n) for n in point.split()) for point in re.findall(r"[ML] ([\d.]+ [\d.]+)", dashed[0])
    ]
    for x, y in ((x0, y0), (x1, y1), (x2, y2)):
        # Coordinates are written with six decimals.
        assert abs((x - left) / (right - left) - (bottom - y) / (bottom - top)) < 1e-4
    assert x0 < x1 < x2
    assert "observed, % harmful" in words(svg)


def test_too_high_statements_stand_below_the_line_and_few_cases_are_faint() -> None:
    true, boastful = (places(reliability({"a": [Bucket(0.8, mark(v))]}, "", "R"), "bucket")[0] for v in (0.8, 0.5))
    assert boastful[1] > true[1]
    many, few = (reliability({"a": [Bucket(0.8, mark(0.8, n=n))]}, "", "R") for n in (20, 19))
    assert "opacity: 0.35" in few
    assert "opacity: 0.35" not in many


def test_two_curves_are_told_apart_by_shape_and_name() -> None:
    buckets = [Bucket(0.5, mark(0.5))]
    one, two = (reliability(dict.fromkeys(names, buckets), "won", "R") for names in (("raw",), ("raw", "fitted")))
    assert {"raw", "fitted"} <= words(two)
    shapes = [len(set(re.findall(r'<path id="(m[0-9a-f]+)"', svg))) for svg in (one, two)]
    assert shapes[1] == shapes[0] + 1


def test_outlines_show_shares_and_the_border() -> None:
    edges = np.array([-1.0, 0.0, 1.0])
    svg = outlines({"safe": np.array([9.0, 1.0]), "harmful": np.array([1.0, 1.0])}, edges, "harmful above", "O")
    assert svg.count('class="outline"') == 2
    assert {"safe", "harmful", "harmful above", "% of answers"} <= words(svg)
    assert {"80", "40"} <= words(svg), "shares of each group, not of all"
    assert "harmful above" not in words(outlines({"all": np.array([1.0, 1.0])}, edges, "", "O"))
    away = outlines({"all": np.array([1.0, 1.0])}, edges + 5, "harmful above", "O")
    assert "harmful above" not in words(away)


def test_dots_stand_by_value_below_each_other_with_names_and_sizes() -> None:
    rows = [Dot("by source", None), Dot("web", mark(0.9), "n=50"), Dot("a_name_" * 8, mark(0.6), "n=3", faint=True)]
    svg = dots(rows, 0.8, "D")
    (x0, y0), (x1, y1) = places(svg, "dot")
    assert x0 > x1
    assert y0 < y1
    assert {"by source", "web", "n=50", "a name a name a name a ..."} <= words(svg)


def test_a_cloud_fills_the_harmful_and_names_what_is_there() -> None:
    lengths, scores = np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0])
    both = cloud(lengths, scores, [True, False, False], "C")
    assert both.count('class="cloud"') == 2
    assert {"safe", "harmful"} <= words(both)
    plain = cloud(lengths, scores, [None] * 3, "C")
    assert plain.count('class="cloud"') == 1
    assert "not labelled" not in words(plain), "one kind needs no legend"


def test_drawings_follow_the_scheme_of_the_page_and_repeat_themselves() -> None:
    for draw in (
        lambda: reliability({"a": [Bucket(0.5, mark(0.5))]}, "won", "1"),
        lambda: outlines({"a": np.array([1.0, 2.0])}, np.array([0.0, 1.0, 2.0]), "", "2"),
        lambda: dots([Dot("a", mark(0.5))], 0.5, "3"),
        lambda: cloud(np.arange(3.0), np.arange(3.0), [True, None, False], "4"),
    ):
        svg = draw()
        assert svg == draw()
        assert not re.search("|".join([*plots.SERIES, plots.INK, plots.MUTED, plots.GRID, plots.PAPER]), svg)

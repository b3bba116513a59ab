"""Charts at the edges of what numbers can be."""

from __future__ import annotations

import itertools

import pytest
from markupsafe import Markup

from app.evaluations.report import charts
from app.evaluations.report.charts import BINS, MOST_POINTS, Bullet, Curve, Move, Spread
from app.evaluations.report.numbers import beside, number, signed
from app.evaluations.report.svg import Scale, ceiling
from tests.app.evaluations.html import Node, check_pictures, parse

EXTREMES = (-1e308, -3.0, -1e-9, 0.0, 1e-12, 0.2, 0.9999999, 1.0, 7.5, 1e300, 1.7e308, float("inf"), float("nan"))


def printed(words: str) -> str:
    """With the signs of print."""
    return words.replace("-", "\N{MINUS SIGN}").replace("x", "\N{MULTIPLICATION SIGN}")


def drawn(chart: Markup) -> Node:
    """The chart, after the usual checks."""
    root = parse(chart)
    assert check_pictures(root) == 1
    return root


@pytest.mark.parametrize("comparison", ["<=", ">="])
@pytest.mark.parametrize("value", [None, *EXTREMES[:-2]])
def test_bullets_stay_inside_of_their_box(value: float | None, comparison: str) -> None:
    for limit, spread in itertools.product((0.0, 0.2, 1.0, 100.0), (None, 0.0, 0.3)):
        ends = (None, None) if value is None or spread is None else (value - spread, value + spread)
        drawn(charts.bullet("c", "t", "d", Bullet(value, limit, comparison, True, *ends)))  # type: ignore[arg-type]


def test_a_failed_bar_has_another_shape_and_not_only_another_colour() -> None:
    kinds = [
        {
            each.attributes["class"]
            for each in drawn(charts.bullet("c", "t", "d", Bullet(0.3, 0.2, "<=", ok))).all("rect")
        }
        for ok in (True, False)
    ]
    assert [kind & {"bar-passed", "bar-failed"} for kind in kinds] == [{"bar-passed"}, {"bar-failed"}]


def test_the_bar_ends_at_the_value_and_the_mark_stands_at_the_limit() -> None:
    root = drawn(charts.bullet("c", "t", "d", Bullet(0.1, 0.2, "<=", True)))
    bar = next(each for each in root.all("rect") if each.attributes["class"] == "bar-passed")
    mark = next(each for each in root.all("line") if each.attributes["class"] == "limit")
    start, end = (float(bar.attributes[name]) for name in ("x", "width"))
    assert end == pytest.approx((float(mark.attributes["x1"]) - start) / 2, abs=0.02)


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [1.0], [0.5] * 10, [0.0, 1.0], [0.0] * 9_999 + [1.0], [1e300, 0.0], list(EXTREMES[2:10])],
)
def test_histograms_stay_inside_of_their_box(values: list[float]) -> None:
    for end in (1.0, None):
        drawn(
            charts.histograms(
                "c", "t", "d", [Spread("a", "m-base", values), Spread("b", "m-result", [0.5])], end, "p"
            )
        )


def test_every_record_is_in_a_bar_of_its_histogram() -> None:
    # 0, 1 and what lies between fall into the first, last and middle bar, and into no other.
    root = drawn(charts.histograms("c", "t", "d", [Spread("a", "m-base", [0.0, 0.5, 1.0])], 1.0, "p"))
    path = next(each for each in root.all("path")).attributes["d"]
    starts = [float(part.split()[0]) for part in path.split("M")[1:]]
    assert len(starts) == 3
    width = (400.0 - 8 - 84) / BINS
    assert [round((start - 84) / width) for start in starts] == [0, BINS // 2, BINS - 1]


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0] * 3, [0.0, 1.0], [1e11, 1.0], [1e300, 0.0]])
def test_curves_stay_inside_of_their_box(values: list[float]) -> None:
    points = [(float(step * 20), value) for step, value in enumerate(values)]
    for floor, stop in itertools.product((0.0, None), (0.0, 10.0, 5000.0)):
        drawn(
            charts.curves(
                "c", "t", "d", [Curve("a", "m-result", points, 0.1), Curve("b", "m-source", [])], stop, floor
            )
        )


def test_the_stop_stands_where_the_curve_has_that_step() -> None:
    points = [(0.0, 1.0), (100.0, 0.2), (200.0, 0.1)]
    root = drawn(charts.curves("c", "t", "d", [Curve("a", "m-result", points)], 100.0, 0.0))
    stop = next(each for each in root.all("line") if each.attributes["class"] == "stop")
    marks = [each for each in root.all("circle") if float(each.attributes["cy"]) > 40]
    assert stop.attributes["x1"] == marks[1].attributes["cx"]


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS, MOST_POINTS + 1, 10_000])
def test_long_trainings_are_thinned_and_keep_their_end(count: int) -> None:
    points = [(float(step), 0.5) for step in range(count)]
    kept = charts.thinned(points)
    assert len(kept) <= MOST_POINTS + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])


@pytest.mark.parametrize(
    ("before", "after"), [(None, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.1, 7.0), (0.0, -2.0)]
)
def test_moves_stay_inside_of_their_box(before: float | None, after: float) -> None:
    for limit in (None, 0.0, 1.0):
        drawn(charts.move("c", "t", "d", Move(before, after, limit)))


def test_a_scale_puts_what_is_outside_on_its_edge() -> None:
    at = Scale(0, 1, 10, 20)
    assert [at(value) for value in (-5, 0, 0.5, 1, 9, float("nan"))] == [10, 10, 15, 20, 20, 10]
    assert Scale(1, 1, 10, 20)(1) == 10


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.875, 1), (0.9, 0.9), (0, 0), (0.02, 0.98), (0, 1e11), (1, 1e300), (0.999, 1.001)]
)
def test_ticks_enclose_what_is_drawn_and_are_few(low: float, high: float) -> None:
    ticks = charts.round_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize("value", [1e-9, 0.03, 0.2, 1.0, 1.01, 9.99, 10.0, 123456.0])
def test_the_end_of_an_axis_is_close_above_what_it_shows(value: float) -> None:
    assert value * 0.999999 <= ceiling(value) <= value * 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "—"), (float("nan"), "—"), (0.0, "0.000"), (0.0625, "0.062"), (-0.2, "-0.200"), (1, "1.000"),
        (3e-9, "3.0 x 10⁻⁹"), (-4e-5, "-4.0 x 10⁻⁵"), (2.5e7, "2.5 x 10⁷"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_never_round_away_to_zero(value: float | None, words: str) -> None:
    assert number(value) == printed(words)


def test_a_value_is_never_rounded_onto_its_limit() -> None:
    assert beside(0.2004, 0.2) == "0.2004"
    assert beside(0.200001, 0.2) == "0.200001"
    assert beside(0.2, 0.2) == "0.200"
    assert beside(0.31, 0.2) == "0.310"
    assert (signed(0.1), signed(-0.1), signed(0.0), signed(None)) == ("+0.100", printed("-0.100"), "0.000", "—")

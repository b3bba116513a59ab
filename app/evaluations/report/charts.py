"""The charts of the report: pure functions from numbers to inline SVG.

Colours come from classes that the style sheet fills in for light, dark and paper. No meaning hangs on colour alone:
series differ in dashes and marks, a missed limit in the shape of its bar.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from markupsafe import Markup

from app.evaluations.report.numbers import number, setting
from app.evaluations.report.svg import Scale, ceiling, coordinate, element, line, picture, rect, text

BINS = 25
MOST_POINTS = 200
_JUST_ABOVE = 1.12
T = TypeVar("T")


@dataclass(frozen=True)
class Bullet:
    """A value and its limit. The value is None where there was nothing to measure."""

    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    passed: bool
    low: float | None = None
    high: float | None = None


def bullet(uid: str, title: str, description: str, chart: Bullet) -> Markup:
    """A bar for the value, a mark for the limit, a whisker for the interval; the allowed side is shaded."""
    width, height, top, bar = 220.0, 35.0, 4.0, 17.0
    shown = [number for number in (0.0, chart.value, chart.limit, chart.low, chart.high) if number is not None]
    low = -ceiling(-min(shown) * _JUST_ABOVE) if min(shown) < 0 else 0.0
    high = ceiling(max(shown) * _JUST_ABOVE)
    # A ratio is read against one.
    high = max(high, 1.25) if chart.comparison == ">=" else high
    at = Scale(low, high, 3, width - 3)
    start, end = (at(low), at(chart.limit)) if chart.comparison == "<=" else (at(chart.limit), at(high))
    parts = [rect(at(low), top, at(high) - at(low), bar, "track"), rect(start, top, end - start, bar, "allowed")]
    if chart.value is not None:
        left, right = sorted((at(0.0), at(chart.value)))
        kind = "bar-passed" if chart.passed else "bar-failed"
        parts.append(rect(left, top + 2.5, max(right - left, 1.5), 9, kind))
    if chart.low is not None and chart.high is not None:
        below = top + bar - 2.75
        parts.append(line(at(chart.low), below, at(chart.high), below, "whisker"))
        parts += [line(at(end), below - 2, at(end), below + 2, "whisker") for end in (chart.low, chart.high)]
    parts.append(line(at(chart.limit), top - 3, at(chart.limit), top + bar + 3, "limit"))
    if low < 0:
        parts.append(line(at(0.0), top, at(0.0), top + bar, "axis"))
    parts += [
        text(_tick(low), at(low), height - 2, "small"),
        text(_tick(high), at(high), height - 2, "small", "end"),
    ]
    return picture(uid, title, description, (width, height), *parts, class_="bullet")


@dataclass(frozen=True)
class Spread:
    """The numbers of single records under one model, and its class of colour."""

    label: str
    kind: str
    values: Sequence[float]


def histograms(
    uid: str, title: str, description: str, rows: Sequence[Spread], end: float | None, axis: str
) -> Markup:
    """One histogram below the other, on the same axis, each with its mean and as tall as its row.

    Args:
        end: right end of the axis, from 0; None takes what the values need.
        axis: what is counted along it.
    """
    width, left, row, foot = 400.0, 84.0, 42.0, 34.0
    height = row * len(rows) + foot
    largest = max((value for each in rows for value in each.values), default=0.0)
    high = ceiling(largest) if end is None else end
    at = Scale(0, high, left, width - 8)
    counts = [_counts(each.values, high) for each in rows]
    shares = [[count / max(len(each.values), 1) for count in found] for each, found in zip(rows, counts, strict=True)]
    base = height - foot
    parts = [line(at(tick), 4, at(tick), base, "grid") for tick in _ticks(high)]
    for place, (each, found) in enumerate(zip(rows, shares, strict=True)):
        floor = row * (place + 1)
        # Each to its own tallest bar: a set that is all alike would flatten the others.
        parts += _histogram(each, found, at, floor, Scale(0, max(found) or 1.0, 0, row - 10))
    for tick in _ticks(high):
        anchor = "end" if tick == high else "middle"
        parts.append(text(_tick(tick), at(tick) + (4 if tick == high else 0), base + 13, "small", anchor))
    parts.append(text(axis, (left + width - 8) / 2, height - 4, "small", "middle"))
    return picture(uid, title, description, (width, height), *parts, class_="plot")


def _histogram(each: Spread, shares: Sequence[float], at: Scale, floor: float, tall: Scale) -> Iterator[Markup]:
    step = (at.end - at.start) / BINS
    outline = "".join(
        f"M{coordinate(at.start + bin * step + 0.4)} {coordinate(floor)}v{coordinate(-max(tall(share), 1.2))}"
        f"h{coordinate(step - 0.8)}V{coordinate(floor)}z"
        for bin, share in enumerate(shares)
        if share
    )
    yield line(at.start, floor, at.end, floor, "axis")
    yield element("path", d=outline or "M0 0", class_=f"fill {each.kind}")
    yield text(each.label, 0, floor - 14, "label")
    if each.values:
        mean = math.fsum(each.values) / len(each.values)
        yield text(f"mean {number(mean)}", 0, floor - 2, "small")
        yield line(at(mean), floor - tall.end, at(mean), floor + 3, "mean")


def _counts(values: Sequence[float], high: float) -> list[int]:
    found = [0] * BINS
    for value in values:
        place = value / high * BINS if high > 0 and math.isfinite(value) else 0
        found[min(max(int(place), 0), BINS - 1)] += 1
    return found


@dataclass(frozen=True)
class Curve:
    """A line over training steps. `target` is where training may stop by it."""

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    target: float | None = None


def curves(
    uid: str, title: str, description: str, lines: Sequence[Curve], stop: float, floor: float | None
) -> Markup:
    """Lines over steps, with targets and the step whose weights were kept.

    Args:
        floor: lower end of the axis; None takes what the lines need.
    """
    width, height, left, right, top, bottom = 400.0, 232.0, 34.0, 392.0, 50.0, 196.0
    values = [value for each in lines for _, value in each.points]
    values += [each.target for each in lines if each.target is not None]
    ticks = round_ticks(min(values, default=0.0) if floor is None else floor, max(values, default=1.0))
    last = max([stop, *(step for each in lines for step, _ in each.points)])
    across, up = Scale(0, last or 1, left, right), Scale(ticks[0], ticks[-1], bottom, top)
    parts: list[Markup] = []
    for tick in ticks:
        parts.append(line(left, up(tick), right, up(tick), "grid"))
        parts.append(text(_tick(tick), left - 6, up(tick) + 3.5, "small", "end"))
    place = across(stop)
    parts.append(line(place, top - 4, place, bottom, "stop"))
    side = "end" if place > (left + right) / 2 else "start"
    parts.append(
        text(f"kept: step {setting(stop)}", place + (3 if side == "end" else -3), top - 8, "small strong", side)
    )
    for order, each in enumerate(lines):
        parts += _curve(each, order, across, up)
    parts += [
        line(left, bottom, right, bottom, "axis"),
        text("0", left, bottom + 15, "small", "middle"),
        text(setting(last), right, bottom + 15, "small", "end"),
        text("optimizer steps", (left + right) / 2, bottom + 30, "small", "middle"),
    ]
    return picture(uid, title, description, (width, height), *parts, class_="plot")


def _curve(each: Curve, order: int, across: Scale, up: Scale) -> Iterator[Markup]:
    dashes, label = f"curve curve-{order} {each.kind}", each.label
    if each.target is not None:
        yield line(across.start, up(each.target), across.end, up(each.target), f"target {each.kind}")
        label += f" (dotted: target {setting(each.target)})"
    points = thinned(each.points)
    places = [(across(step), up(value)) for step, value in points]
    if places:
        yield element("path", d="M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in places), class_=dashes)
    if len(places) <= 40:
        yield from (_mark(order, x, y, each.kind) for x, y in places)
    y = 7.0 + 14 * order
    yield line(0, y, 24, y, dashes)
    yield _mark(order, 12, y, each.kind)
    yield text(label, 31, y + 3.8, "label")


def _mark(order: int, x: float, y: float, kind: str) -> Markup:
    if order % 2:
        return rect(x - 2.2, y - 2.2, 4.4, 4.4, f"mark {kind}")
    return element("circle", cx=x, cy=y, r=2.4, class_=f"mark {kind}")


def thinned(points: Sequence[T]) -> list[T]:
    """At most `MOST_POINTS` of them, the last one always."""
    stride = max(1, math.ceil(len(points) / MOST_POINTS))
    kept = list(itertools.islice(points, 0, None, stride))
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


@dataclass(frozen=True)
class Move:
    """A number before and after, and the limit it is held against, where there is one."""

    before: float | None
    after: float
    limit: float | None = None


def move(uid: str, title: str, description: str, chart: Move) -> Markup:
    """A line from an open mark (before) to a full one (after), on an axis from 0 to 1 or beyond."""
    width, height, y = 220.0, 30.0, 9.0
    shown = [value for value in (chart.before, chart.after, chart.limit) if value is not None]
    low, high = min(0.0, -ceiling(-min(shown))) if min(shown) < 0 else 0.0, max(1.0, ceiling(max(shown)))
    at = Scale(low, high, 5, width - 5)
    parts = [rect(at.start, y - 2, at.end - at.start, 4, "track")]
    if chart.limit is not None:
        parts.append(line(at(chart.limit), y - 8, at(chart.limit), y + 8, "limit"))
    if chart.before is not None:
        parts.append(line(at(chart.before), y, at(chart.after), y, "move"))
        parts.append(element("circle", cx=at(chart.before), cy=y, r=4, class_="open"))
    parts.append(element("circle", cx=at(chart.after), cy=y, r=4.5, class_="mark m-result"))
    parts += [text(_tick(low), at(low), height - 2, "small"), text(_tick(high), at(high), height - 2, "small", "end")]
    return picture(uid, title, description, (width, height), *parts, class_="bullet")


def small_bar(before: float, after: float) -> Markup:
    """A bar for after and a mark for before, on an axis from 0 to 1, beside the numbers themselves."""
    at = Scale(0, 1, 1, 79)
    path = f"M{coordinate(at(before))} 0v10"
    width = coordinate(max(at(after) - 1, 0.6))
    # Written out: thousands of these stand on a page. All of it is numbers.
    return Markup(  # noqa: S704
        f'<svg class="sb" viewBox="0 0 80 10" aria-hidden="true"><rect x="1" y="3" width="{width}" height="4"/>'
        f'<path d="{path}"/></svg>'
    )


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers at equal distances that enclose both, two to seven of them."""
    if high - low >= 1e12:
        return [low, ceiling(high)]
    reach = max(high - low, 0.1)
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(size * power for size in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5) if reach / (size * power) <= 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(place * step, 12) for place in range(first, last + 1)]


def _ticks(high: float) -> list[float]:
    return [high * quarter / 4 for quarter in range(5)]


def _tick(value: float) -> str:
    return number(value) if abs(value) >= 1e5 else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")

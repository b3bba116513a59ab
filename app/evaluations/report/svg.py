"""Elements and scales of inline SVG. Text is escaped, coordinates are finite."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

Value = str | float | int


def element(name: str, *children: str, **attributes: Value) -> Markup:
    """An element. `class_` becomes `class`, `stroke_width` becomes `stroke-width`; viewBox stays as it is."""
    given = "".join(f' {_name(key)}="{escape(_value(value))}"' for key, value in attributes.items())
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{given}>{inner}</{name}>" if inner else f"<{name}{given}/>")  # noqa: S704 - escaped above


def text(content: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text."""
    return element("text", content, x=x, y=y, class_=f"t {class_}".strip(), text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A box."""
    return element("rect", x=x, y=y, width=width, height=height, class_=class_)


def picture(uid: str, title: str, description: str, size: tuple[float, float], *parts: str, class_: str) -> Markup:
    """A chart with a name and a description that are read aloud.

    Args:
        uid: unique on the page.
        size: width and height of the viewBox, which starts at 0, 0.
    """
    return element(
        "svg",
        element("title", title, id=f"{uid}-t"),
        element("desc", description, id=f"{uid}-d"),
        *parts,
        viewBox=f"0 0 {coordinate(size[0])} {coordinate(size[1])}",
        class_=class_,
        role="img",
        aria_labelledby=f"{uid}-t {uid}-d",
    )


@dataclass(frozen=True)
class Scale:
    """From numbers to places. What lies outside of the domain is put on its edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a number."""
        if self.high <= self.low or not math.isfinite(value):
            return self.start
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ceiling(value: float) -> float:
    """The next round number that is not smaller."""
    if not 0 < value < 1e300:
        return 1.0 if value <= 0 else 1e300
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.9999999
    )


def coordinate(value: float) -> str:
    """Hundredths of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: Value) -> str:
    return value if isinstance(value, str) else coordinate(value)

"""Numbers as a reader sees them: short, with a true minus, never rounded to the other side of a limit."""

from __future__ import annotations

import math

MINUS, ABSENT, TIMES = "\N{MINUS SIGN}", "\N{EM DASH}", "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST, _LARGEST = 0.0005, 1e5


def number(value: float | None, digits: int = 3) -> str:
    """A measured number with three decimals; powers of ten where these would hide it."""
    if value is None or not math.isfinite(value):
        return ABSENT
    size = abs(value)
    if size and not _SMALLEST <= size < _LARGEST:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa} {TIMES} 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", MINUS)
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """A distance, whose sign matters."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 and text != ABSENT else text


def setting(value: float) -> str:
    """A number that somebody chose, as short as it can be written."""
    return f"{value:,.12g}".replace("-", MINUS)


def beside(value: float | None, limit: float) -> str:
    """A value that is shown beside its limit: with as many decimals as tell the two apart."""
    if value is None or value == limit:
        return number(value)
    return next(
        (text for digits in (3, 4, 5) if (text := number(value, digits)) != number(limit, digits)), f"{value!r}"
    )


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval; empty where there is none."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def count(value: int) -> str:
    """A whole number."""
    return f"{value:,}"


def counted(value: int, singular: str, plural: str | None = None) -> str:
    """A number of things."""
    return f"{count(value)} {singular if value == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"

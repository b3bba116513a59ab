"""Calendar months as law counts them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.kit.calendar import months_after


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31", 1, "2026-02-28"),
        ("2028-01-31", 1, "2028-02-29"),
        ("2026-11-22", 1, "2026-12-22"),
        ("2026-12-31", 1, "2027-01-31"),
        ("2026-03-31", 3, "2026-06-30"),
        ("2026-05-15", 12, "2027-05-15"),
    ],
)
def test_the_day_is_kept_where_the_month_has_it(start: str, months: int, end: str) -> None:
    begin = datetime.fromisoformat(start).replace(hour=13, tzinfo=UTC)
    assert months_after(begin, months) == datetime.fromisoformat(end).replace(hour=13, tzinfo=UTC)

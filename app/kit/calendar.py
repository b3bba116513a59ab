"""Dates as law counts them."""

from __future__ import annotations

import calendar
from datetime import datetime


def months_after(moment: datetime, months: int) -> datetime:
    """The same day `months` calendar months later, or that month's last day where it has no such day.

    31 January plus one month is 28 or 29 February (Regulation 1182/71, Art. 3).
    """
    index = moment.year * 12 + moment.month - 1 + months
    year, month = divmod(index, 12)
    last_day = calendar.monthrange(year, month + 1)[1]
    return moment.replace(year=year, month=month + 1, day=min(moment.day, last_day))

"""Periods of the calendar."""

from calendar import monthrange
from datetime import datetime

from services.payment.domain.plans import Period


def anchor_of(start: datetime, anchor: int | None) -> int:
    """Return the day on which periods begin that one at `start` belongs to: `anchor`, or its month's last, if on it."""
    last = monthrange(start.year, start.month)[1]
    return anchor if anchor is not None and start.day == min(anchor, last) else start.day


def period_after(start: datetime, period: Period, anchor: int | None = None) -> datetime:
    """Return when a period that begins at `start` ends: a month or a year on, on its anchor's day or the month's last.

    So months that are shorter move nothing: 31 January, 28 February, 31 March.
    """
    years, month = divmod(start.month, 12) if period == "month" else (1, start.month - 1)
    year, month = start.year + years, month + 1
    return start.replace(year=year, month=month, day=min(anchor_of(start, anchor), monthrange(year, month)[1]))

"""Periods of the calendar."""

from calendar import monthrange
from datetime import datetime

from services.payment.domain.plans import Period


def period_after(start: datetime, period: Period) -> datetime:
    """Return when a period that begins at `start` ends: the same day a month or a year on, or that month's last."""
    years, month = divmod(start.month, 12) if period == "month" else (1, start.month - 1)
    year, month = start.year + years, month + 1
    return start.replace(year=year, month=month, day=min(start.day, monthrange(year, month)[1]))

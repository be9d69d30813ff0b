"""What is left of a paid period when its plan changes and nobody takes money for it: time.

new remaining time = remaining time x old price a year / new price a year
"""

from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from services.payment.domain.plans import Plan

PERIODS_A_YEAR: Final = {"month": 12, "year": 1}


def moved_end(now: datetime, end: datetime, old: Plan, new: Plan) -> datetime:
    """Return when the period ends that was paid at the old plan's price, counted at the new one's."""
    left = max(end - now, timedelta())
    micros = (Decimal(left // timedelta(microseconds=1)) * _yearly(old) / _yearly(new)).quantize(
        Decimal(1), rounding=ROUND_FLOOR
    )
    return now + timedelta(microseconds=int(micros))


def _yearly(plan: Plan) -> Decimal:
    return plan.price_usd * PERIODS_A_YEAR[plan.period]

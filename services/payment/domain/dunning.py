"""What becomes of a period that nobody pays for by itself (crypto, manual), day by day.

    7, 3, 1 days before its end    a reminder
    its end                        past due; access goes on for the days of grace; a notice
    2, 7, 14, 21 days after        a notice that says when the next step comes
    22 days after                  expired

A step that was missed is not made up for by a message about the past: the latest that is due is told, and those before
it never are. Who has asked to end with the period is reminded of nothing and is canceled at its end.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Final

from services.payment.domain.subscriptions import State

REMINDERS: Final = (7, 3, 1)
WAITS: Final = (2, 5, 7, 7)
DUNNING: Final = (0, *accumulate(WAITS))
OVER_AFTER: Final = DUNNING[-1] + 1
_DAY: Final = timedelta(days=1)
_STEPS: Final = (*(-days for days in REMINDERS), *DUNNING)
"""Days after the period's end."""


@dataclass(frozen=True, slots=True)
class Step:
    """A notice that is due."""

    days: int  # after the period's end
    days_left: int
    next_at: datetime  # when the next notice comes; after the last one, when the subscription expires


def paid_by_hand(plan: str, start: datetime, end: datetime, grace: timedelta) -> State:
    """Return the state of a subscription that a person grants."""
    return State("manual", None, plan, "active", start, end, grace_until=end + grace)


def now_is(state: State, now: datetime, grace: timedelta) -> State:
    """Return what a subscription that renews by hand is now; the same where nothing has changed.

    The days of grace are noted before the period ends, so that access does not stop between its end and the next run.
    """
    end = state.period_end
    if state.status not in {"trialing", "active", "past_due"} or end is None:
        return state
    if state.cancel_at_period_end:
        return state if now < end else replace(state, status="canceled")
    if now >= end + OVER_AFTER * _DAY:
        return replace(state, status="expired")
    return replace(state, status=state.status if now < end else "past_due", grace_until=end + grace)


def due(state: State, now: datetime) -> Step | None:
    """Return the notice that is due for a subscription as `now_is` returned it, if any."""
    end = state.period_end
    if end is None or state.cancel_at_period_end or state.status not in {"trialing", "active", "past_due"}:
        return None
    passed = [days for days in _STEPS if now >= end + days * _DAY]
    if not passed:
        return None
    later = _STEPS[len(passed) :]
    left = -((now - end) // _DAY)  # rounded up: six and a half days are seven
    return Step(passed[-1], left, end + (later[0] if later else OVER_AFTER) * _DAY)

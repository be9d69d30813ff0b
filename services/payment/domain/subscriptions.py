"""What a subscription is, whoever takes the money, and what it allows when.

    trialing, active   paid for, or free for a while
    past_due           a payment is missing; access goes on until `grace_until`
    paused             nothing is charged, nothing is allowed
    canceled           somebody ended it
    expired            nobody paid

A user has at most one that is not over.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.payment.domain.plans import Plan
from shared.contracts.payment import Provider, SubscriptionStatus

OVER: Final[frozenset[SubscriptionStatus]] = frozenset({"canceled", "expired"})
OPEN: Final[frozenset[SubscriptionStatus]] = frozenset({"trialing", "active", "past_due", "paused"})


@dataclass(frozen=True, slots=True)
class State:
    """A subscription as its provider says it is."""

    provider: Provider
    provider_id: str | None
    plan: str
    status: SubscriptionStatus
    period_start: datetime | None = None
    period_end: datetime | None = None
    trial_end: datetime | None = None
    grace_until: datetime | None = None
    cancel_at_period_end: bool = False
    anchor_day: int | None = None  # of the month, on which periods begin that somebody pays for by hand


def entitled_until(state: State) -> datetime | None:
    """Return when access ends unless more is heard; None where it goes on by itself, or is over already."""
    if state.status == "past_due":
        return state.grace_until
    if state.status in {"trialing", "active"}:
        if state.cancel_at_period_end:
            return state.period_end
        if state.provider != "stripe":
            return state.grace_until or state.period_end
    return None


def entitlements(state: State, plan: Plan | None, now: datetime) -> tuple[str, ...]:
    """Return what the user may use now, sorted. A plan that is sold no more allows what bears its name."""
    if state.status not in {"trialing", "active", "past_due"}:
        return ()
    if state.status == "past_due" and state.grace_until is None:
        return ()
    until = entitled_until(state)
    if until is not None and until <= now:
        return ()
    return tuple(sorted(plan.entitlements)) if plan is not None else (state.plan,)

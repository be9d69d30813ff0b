"""Which period a digest covers, and when the next one is due. Pure.

A digest is due at the user's local hour, daily or on a weekday. It covers everything since the digest before it, so
periods follow each other without gap or overlap whatever happens in between: clocks that are put forward or back, a
user who moves to another zone or changes hour or frequency, or an outage, after which one digest covers all of it.

What would surprise you: where a change of plan would bring a digest soon after another one, it is left to the next
time: half a period lies between two digests at least.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from shared.contracts.base import derived_id

Frequency = Literal["daily", "weekly"]

_LENGTH: Final = {"daily": timedelta(days=1), "weekly": timedelta(days=7)}
_AROUND: Final = 2
"""Days by which a time's date may differ between zones, and one more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When a user wants digests: at `hour` o'clock (0 to 23), a weekly one on `weekday` (Monday is 0)."""

    frequency: Frequency
    hour: int
    weekday: int
    zone: str

    @property
    def length(self) -> timedelta:
        """The length of a period, give or take an hour of daylight saving."""
        return _LENGTH[self.frequency]


@dataclass(frozen=True, slots=True)
class Period:
    """What a digest covers: from `since` up to, and without, `until`, when it is due."""

    since: datetime
    until: datetime


def digest_id(user_id: UUID, plan: Plan, period: Period) -> UUID:
    """Return the one id of (user, kind, period)."""
    return derived_id(user_id, f"digest/{plan.frequency}/{period.until.astimezone(UTC).isoformat()}")


def zone_of(name: str | None) -> str:
    """Return a time zone's name as it came, or UTC for one that nobody knows."""
    try:
        return ZoneInfo(name).key if name else "UTC"
    except (ValueError, KeyError, OSError):
        return "UTC"


def due_on(plan: Plan, day: date) -> datetime:
    """Return when a digest is due on a local date.

    An hour that comes twice means its first time. An hour that is skipped means the moment after the gap.
    """
    return datetime.combine(day, time(plan.hour), ZoneInfo(plan.zone)).astimezone(UTC)


def next_due(plan: Plan, after: datetime) -> datetime:
    """Return the first due time that is later than `after`."""
    first = _local_date(plan, after) - timedelta(days=_AROUND)
    days = (first + timedelta(days=ahead) for ahead in range(plan.length.days + 2 * _AROUND + 1))
    return next(due for day in days if _counts(plan, day) and (due := due_on(plan, day)) > after)


def last_due(plan: Plan, now: datetime) -> datetime:
    """Return the last due time up to and with `now`."""
    first = _local_date(plan, now) + timedelta(days=_AROUND)
    days = (first - timedelta(days=back) for back in range(plan.length.days + 2 * _AROUND + 1))
    return next(due for day in days if _counts(plan, day) and (due := due_on(plan, day)) <= now)


def begin(plan: Plan, covered: datetime | None, now: datetime) -> datetime:
    """Return where the first period of a plan begins that is chosen after there was none."""
    last = last_due(plan, now)
    return last if covered is None else max(covered, last)


def following(plan: Plan, covered: datetime, now: datetime) -> datetime:
    """Return when to look again: the next due time that is far enough from the end of the last period."""
    return next_due(plan, max(covered + plan.length / 2 - timedelta.resolution, now))


def period(plan: Plan, covered: datetime, now: datetime) -> Period | None:
    """Return the period of the digest that is due now, given the end of the last one; None when none is."""
    until = last_due(plan, now)
    return Period(covered, until) if until - covered >= plan.length / 2 else None


def _local_date(plan: Plan, moment: datetime) -> date:
    return moment.astimezone(ZoneInfo(plan.zone)).date()


def _counts(plan: Plan, day: date) -> bool:
    return plan.frequency == "daily" or day.weekday() == plan.weekday

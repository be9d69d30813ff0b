"""Digests over two years of days in six zones and more: none doubled, none missed, whatever clocks and users do."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.periods import (
    Period,
    Plan,
    begin,
    digest_id,
    due_on,
    following,
    last_due,
    next_due,
    period,
    zone_of,
)

ZONES = (
    "America/New_York",
    "Europe/London",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "America/Sao_Paulo",  # none any more
    "Asia/Kathmandu",  # +5:45
    "Pacific/Auckland",
)
START = datetime(2025, 1, 1, 3, 7, tzinfo=UTC)
YEARS = timedelta(days=731)
HOUR = timedelta(hours=1)


class Simulated:
    """A user's digests as the planner keeps them: the end of the last period, and when to look again."""

    def __init__(self, plan: Plan, now: datetime) -> None:
        self.plan, self.now = plan, now
        self.covered = begin(plan, None, now)
        self.look_at = following(plan, self.covered, now)
        self.told: list[Period] = []

    def look(self, now: datetime) -> None:
        self.now = now
        if now < self.look_at:
            return
        found = period(self.plan, self.covered, now)
        if found is not None:
            self.told.append(found)
            self.covered = found.until
        self.look_at = following(self.plan, self.covered, now)

    def choose(self, plan: Plan) -> None:
        self.plan = plan
        self.look_at = following(plan, self.covered, self.now)


def run(plan: Plan, start: datetime, length: timedelta) -> list[Period]:
    user = Simulated(plan, start)
    while user.look_at < start + length:
        user.look(user.look_at)
    return user.told


def days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += timedelta(days=1)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("hour", [0, 1, 2, 3, 8, 23])
def test_over_two_years_each_local_day_has_one_daily_digest_at_its_hour(zone: str, hour: int) -> None:
    told = run(Plan("daily", hour, 0, zone), START, YEARS)
    local = [one.until.astimezone(ZoneInfo(zone)) for one in told]
    assert [one.date() for one in local] == list(days(local[0].date(), local[-1].date()))
    assert len(told) in {730, 731}
    assert {one.until - one.since for one in told} <= {timedelta(hours=h / 2) for h in (46, 47, 48, 49, 50)}
    skipped = [one for one in local if (one.hour, one.minute) != (hour, 0)]
    assert len(skipped) <= 2  # an hour that the clock skips, once a year
    assert all(one.since == before.until for before, one in pairwise(told))


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("weekday", [0, 4, 6])
def test_over_two_years_each_week_has_one_weekly_digest_on_its_day(zone: str, weekday: int) -> None:
    told = run(Plan("weekly", 2, weekday, zone), START, YEARS)
    local = [one.until.astimezone(ZoneInfo(zone)) for one in told]
    assert {one.weekday() for one in local} == {weekday}
    assert {after.date() - before.date() for before, after in pairwise(local)} == {timedelta(days=7)}
    assert len(told) in {104, 105}
    assert all(one.since == before.until for before, one in pairwise(told))


@pytest.mark.parametrize(
    ("zone", "day", "hour", "due"),
    [
        ("America/New_York", date(2026, 3, 8), 2, "2026-03-08T07:00:00"),  # 02:00 does not exist: 03:00 EDT
        ("America/New_York", date(2026, 11, 1), 1, "2026-11-01T05:00:00"),  # 01:00 twice: the first, EDT
        ("Europe/London", date(2026, 3, 29), 1, "2026-03-29T01:00:00"),
        ("Australia/Lord_Howe", date(2026, 10, 4), 2, "2026-10-03T15:30:00"),  # 02:00 to 02:30 are skipped
        ("America/Sao_Paulo", date(2018, 11, 4), 0, "2018-11-04T03:00:00"),  # midnight was skipped
        ("Asia/Kathmandu", date(2026, 6, 1), 8, "2026-06-01T02:15:00"),
    ],
)
def test_hours_that_are_skipped_or_come_twice(zone: str, day: date, hour: int, due: str) -> None:
    assert due_on(Plan("daily", hour, 0, zone), day) == datetime.fromisoformat(due).replace(tzinfo=UTC)


def test_a_day_that_never_was_has_no_digest_of_its_own() -> None:
    """Samoa left out Friday, 30 December 2011."""
    told = run(Plan("daily", 8, 0, "Pacific/Apia"), datetime(2011, 12, 25, tzinfo=UTC), timedelta(days=10))
    local = [one.until.astimezone(ZoneInfo("Pacific/Apia")) for one in told]
    assert [(one.day, one.hour) for one in local[3:7]] == [(28, 8), (29, 8), (31, 8), (1, 8)]
    weekly = run(Plan("weekly", 8, 4, "Pacific/Apia"), datetime(2011, 12, 10, tzinfo=UTC), timedelta(days=30))
    assert all(timedelta(days=6) <= one.until - one.since <= timedelta(days=8) for one in weekly)


plans = st.builds(
    Plan,
    st.sampled_from(["daily", "weekly"]),
    st.integers(0, 23),
    st.integers(0, 6),
    st.sampled_from([*ZONES, "Pacific/Apia", "Pacific/Kiritimati", "Etc/GMT+12", "America/Los_Angeles", "UTC"]),
)
moments = st.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 31)).map(lambda one: one.replace(tzinfo=UTC))  # noqa: DTZ001 - hypothesis wants naive bounds


@given(plans, moments)
def test_the_last_due_time_and_the_next_one_lie_around_a_moment_with_none_between(plan: Plan, now: datetime) -> None:
    last, after = last_due(plan, now), next_due(plan, now)
    assert last <= now < after
    assert next_due(plan, last) == after
    assert last_due(plan, after - timedelta.resolution) == last
    assert plan.length - 2 * HOUR <= after - last <= plan.length + 2 * HOUR


steps = st.lists(
    st.tuples(st.timedeltas(timedelta(minutes=1), timedelta(days=12)), st.none() | plans), min_size=1, max_size=40
)


@given(plans, moments, steps)
def test_whatever_a_user_changes_and_however_late_we_look_periods_follow_each_other(
    plan: Plan, now: datetime, steps: list[tuple[timedelta, Plan | None]]
) -> None:
    user = Simulated(plan, now)
    first = user.covered
    for wait, change in steps:
        due = user.now + wait >= user.look_at
        user.look(user.now + wait)
        assert not due or last_due(user.plan, user.now) - user.covered < user.plan.length / 2, "a digest is missed"
        if change is not None:
            user.choose(change)
        soonest = max(user.now, user.covered + user.plan.length / 2 - timedelta.resolution)
        assert soonest < user.look_at <= soonest + user.plan.length + 2 * HOUR
    assert [one.since for one in user.told] == [first, *(one.until for one in user.told)][: len(user.told)]
    assert all(one.until - one.since >= timedelta(hours=12) for one in user.told)
    ids = {digest_id(uuid4(), user.plan, one) for one in user.told}
    assert len(ids) == len(user.told)


def test_a_user_who_moves_gets_the_next_digest_at_the_new_hour_and_none_soon_after_another() -> None:
    user = Simulated(Plan("daily", 8, 0, "America/Los_Angeles"), datetime(2026, 6, 1, tzinfo=UTC))
    user.look(datetime(2026, 6, 1, 15, tzinfo=UTC))  # 08:00
    user.look(datetime(2026, 6, 1, 18, tzinfo=UTC))
    user.choose(Plan("daily", 8, 0, "Pacific/Auckland"))
    assert user.look_at == datetime(2026, 6, 2, 20, tzinfo=UTC)  # not at 20:00 of the first, five hours after the last
    user.look(user.look_at)
    user.choose(Plan("daily", 8, 0, "America/Los_Angeles"))
    user.look(user.look_at)
    assert [one.until.isoformat()[5:16] for one in user.told] == ["06-01T15:00", "06-02T20:00", "06-03T15:00"]


def test_half_a_period_after_the_last_digest_is_far_enough_and_less_is_not() -> None:
    plan, due = Plan("daily", 12, 0, "UTC"), datetime(2026, 6, 1, 12, tzinfo=UTC)
    half = due - timedelta(hours=12)
    assert following(plan, half, half) == due
    assert period(plan, half, due) == Period(half, due)
    later = half + timedelta.resolution
    assert following(plan, later, later) == due + timedelta(days=1)
    assert period(plan, later, due) is None


def test_after_an_outage_one_digest_covers_all_of_it() -> None:
    user = Simulated(Plan("daily", 8, 0, "UTC"), datetime(2026, 6, 1, tzinfo=UTC))
    user.look(datetime(2026, 6, 9, 11, tzinfo=UTC))
    assert user.told == [Period(datetime(2026, 5, 31, 8, tzinfo=UTC), datetime(2026, 6, 9, 8, tzinfo=UTC))]
    assert user.look_at == datetime(2026, 6, 10, 8, tzinfo=UTC)


def test_a_plan_that_begins_again_does_not_tell_what_was_told() -> None:
    plan, noon = Plan("daily", 8, 0, "UTC"), datetime(2026, 6, 1, 12, tzinfo=UTC)
    assert begin(plan, None, noon) == datetime(2026, 6, 1, 8, tzinfo=UTC)
    assert begin(plan, datetime(2026, 6, 1, 10, tzinfo=UTC), noon) == datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert begin(plan, datetime(2026, 1, 1, tzinfo=UTC), noon) == datetime(2026, 6, 1, 8, tzinfo=UTC)


def test_the_same_digest_has_the_same_id_however_its_time_is_written() -> None:
    user, plan = uuid4(), Plan("daily", 8, 0, "UTC")
    one = Period(START, START + HOUR)
    assert digest_id(user, plan, one) == digest_id(
        user, plan, Period(START, one.until.astimezone(ZoneInfo("Asia/Tokyo")))
    )
    assert digest_id(user, plan, one) != digest_id(user, Plan("weekly", 8, 0, "UTC"), one)


def test_a_zone_that_nobody_knows_is_utc() -> None:
    assert [zone_of(name) for name in ("Asia/Tokyo", "Mars/Base", "../etc/passwd", "", None)] == [
        "Asia/Tokyo",
        *["UTC"] * 4,
    ]

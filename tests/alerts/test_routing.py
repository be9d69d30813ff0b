"""Where and when something is told: choices, quiet hours over two years of clock changes, caps."""

from collections import Counter
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.routing import ANY, CRITICAL, Cap, Choice, Quiet, Ring, Used, Wishes, plan, quiet_until

NOW = datetime(2025, 6, 2, 14, 30, tzinfo=UTC)
ZONES = (
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Africa/Casablanca",  # clocks go back for Ramadan
    "Asia/Kathmandu",  # +05:45, no changes
    "America/Santiago",  # clocks change at midnight
)
STRETCHES = (
    Quiet(time(22), time(7)),
    Quiet(time(0), time(2, 30)),  # ends in the hour that is left out or repeated
    Quiet(time(2, 30), time(6)),
    Quiet(time(1, 15), time(1, 45)),
    Quiet(time(9), time(8, 59)),
)


def on_the_wall(quiet: Quiet, zone: ZoneInfo, at: datetime) -> bool:
    """Whether the clock on the wall shows a time of the quiet hours."""
    shown = at.astimezone(zone).time()
    if quiet.start < quiet.end:
        return quiet.start <= shown < quiet.end
    return shown >= quiet.start or shown < quiet.end


@pytest.mark.parametrize("name", ZONES)
def test_over_two_years_nothing_is_told_in_quiet_hours_and_everything_at_their_end(name: str) -> None:
    zone = ZoneInfo(name)
    for quiet in STRETCHES:
        wishes = Wishes(timezone=name, quiet=quiet)
        at, last = datetime(2024, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
        while at < last:
            told = plan(Ring("activity"), "discord", wishes, Counter(), at)
            assert told.status == "pending"
            assert not on_the_wall(quiet, zone, told.due_at), (quiet, at)
            if on_the_wall(quiet, zone, at):
                assert told.due_at > at
            if told.due_at > at:
                before = told.due_at - timedelta(minutes=1)
                assert on_the_wall(quiet, zone, before) or _repeated(zone, before), (quiet, at)
                assert told.due_at - at <= timedelta(days=1, hours=1)
            at += timedelta(minutes=13) if _changes(zone, at) else timedelta(hours=5, minutes=11)


def _changes(zone: ZoneInfo, at: datetime) -> bool:
    """Whether the clock is changed within a day."""
    day = timedelta(days=1)
    return (at - day).astimezone(zone).utcoffset() != (at + day).astimezone(zone).utcoffset()


def _repeated(zone: ZoneInfo, at: datetime) -> bool:
    """Whether the clock shows a time that it shows twice."""
    wall = at.astimezone(zone)
    return wall.utcoffset() != wall.replace(fold=1 - wall.fold).utcoffset()


def test_quiet_hours_that_end_in_a_repeated_hour_last_to_its_second_time() -> None:
    quiet = Quiet(time(0), time(1, 30))
    end = quiet_until(quiet, "America/New_York", datetime(2025, 11, 2, 4, 30, tzinfo=UTC))
    assert end == datetime(2025, 11, 2, 6, 30, tzinfo=UTC)  # 01:30 EST, not 01:30 EDT


def test_quiet_hours_that_end_in_an_hour_that_is_left_out_end_when_the_clock_jumps() -> None:
    quiet = Quiet(time(0), time(2, 30))
    end = quiet_until(quiet, "America/New_York", datetime(2025, 3, 9, 5, 30, tzinfo=UTC))
    assert end == datetime(2025, 3, 9, 7, 0, tzinfo=UTC)  # 03:00 EDT


@pytest.mark.parametrize("kind", sorted(CRITICAL))
def test_what_is_critical_passes_quiet_hours_and_caps_but_not_a_choice(kind: str) -> None:
    wishes = Wishes(quiet=Quiet(time(14), time(15)), caps=(Cap(ANY, ANY, 1),))
    used: Used = Counter()
    for _ in range(3):
        told = plan(Ring(kind), "email", wishes, used, NOW)
        assert (told.status, told.due_at) == ("pending", NOW)
    off = Wishes(choices={(kind, ANY): "off"})
    assert plan(Ring(kind), "email", off, Counter(), NOW).status == "suppressed"


@pytest.mark.parametrize(
    ("choices", "status"),
    [
        ({}, "pending"),
        ({(ANY, ANY): "off"}, "suppressed"),
        ({(ANY, ANY): "off", (ANY, "email"): "digest"}, "digested"),
        ({(ANY, "email"): "off", ("receipt", ANY): "on"}, "pending"),
        ({("receipt", ANY): "off", ("receipt", "email"): "digest"}, "digested"),
        ({("receipt", "discord"): "off", ("renewed", "email"): "off"}, "pending"),
    ],
)
def test_the_nearest_choice_wins(choices: dict[tuple[str, str], Choice], status: str) -> None:
    assert plan(Ring("receipt"), "email", Wishes(choices=choices), Counter(), NOW).status == status


kinds = st.sampled_from(["activity", "receipt", "order_filled", "order_rejected"])
channels = st.sampled_from(["discord", "email"])
caps = st.lists(
    st.builds(Cap, kinds | st.just(ANY), channels | st.just(ANY), st.integers(1, 4)),
    max_size=4,
    unique_by=lambda cap: (cap.kind, cap.channel),
)
calls = st.lists(st.tuples(kinds, channels, st.integers(0, 4 * 60)), max_size=40)


@given(caps, calls, st.booleans())
def test_no_hour_tells_more_than_a_cap_allows_and_what_is_over_is_in_the_digest(
    limits: list[Cap], told: list[tuple[str, str, int]], quiet: bool
) -> None:
    wishes = Wishes(caps=tuple(limits), quiet=Quiet(time(15), time(17)) if quiet else None)
    used: Used = Counter()
    sent: list[tuple[str, str, datetime]] = []
    for kind, channel, minute in sorted(told, key=lambda one: one[2]):
        decision = plan(Ring(kind), channel, wishes, used, NOW + timedelta(minutes=minute))
        hour = decision.due_at.replace(minute=0)
        if decision.status == "pending":
            sent.append((kind, channel, hour))
        else:
            full = [
                sum(cap.covers(k, c) and at == hour_of_call for k, c, at in sent) >= cap.per_hour
                for cap in limits
                for hour_of_call in _hours(NOW + timedelta(minutes=minute), quiet=quiet)
                if cap.covers(kind, channel)
            ]
            assert decision.status == "digested"
            assert any(full)
    for cap in limits:
        by_hour = Counter(at for kind, channel, at in sent if cap.covers(kind, channel) and kind not in CRITICAL)
        assert all(n <= cap.per_hour for n in by_hour.values())


def _hours(at: datetime, *, quiet: bool) -> list[datetime]:
    end = quiet_until(Quiet(time(15), time(17)), "UTC", at) if quiet else None
    return [(end or at).replace(minute=0)]

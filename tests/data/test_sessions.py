import json
from datetime import UTC, date, datetime, timedelta

import pytest

from shared.pacing import TokenBucket
from shared.sessions import Sessions, seconds_until_open
from tests.conftest import recorded


def test_sessions_are_those_of_the_reference_table(sessions: Sessions) -> None:
    days = json.loads(recorded("reference", "market_sessions.json").read_text())["days"]
    for day, told in days.items():
        session = sessions.on(date.fromisoformat(day))
        assert (session is not None) == told["session"], day
        if session is not None:
            assert session.opens == datetime.fromisoformat(told["open_utc"]), day
            assert session.closes == datetime.fromisoformat(told["close_utc"]), day
            assert session.closes - session.opens == timedelta(minutes=told["minutes"]), day


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        (datetime(2026, 7, 24, 13, 29, 59, tzinfo=UTC), date(2026, 7, 23)),  # before the open: yesterday's
        (datetime(2026, 7, 24, 13, 30, tzinfo=UTC), date(2026, 7, 24)),
        (datetime(2026, 7, 24, 20, 0, tzinfo=UTC), date(2026, 7, 24)),  # after the close: that day's
        (datetime(2026, 7, 25, 3, 44, 38, tzinfo=UTC), date(2026, 7, 24)),
        (datetime(2026, 7, 26, 12, 0, tzinfo=UTC), date(2026, 7, 24)),  # Sunday
        (datetime(2026, 11, 26, 16, 0, tzinfo=UTC), date(2026, 11, 25)),  # Thanksgiving
    ],
)
def test_a_moment_belongs_to_the_running_or_the_last_session(sessions: Sessions, moment: datetime, day: date) -> None:
    assert sessions.at(moment).day == day


@pytest.mark.parametrize(
    ("now", "wait_s"),
    [
        (datetime(2026, 7, 24, 13, 30, tzinfo=UTC), 900.0),  # a delayed source still shows yesterday
        (datetime(2026, 7, 24, 13, 45, tzinfo=UTC), 0.0),
        (
            datetime(2026, 7, 24, 20, 14, 59, tzinfo=UTC),
            0.0,
        ),  # and the last quarter of an hour after the close
        (datetime(2026, 7, 24, 20, 15, tzinfo=UTC), 2 * 86_400 + 17.5 * 3600),
        (datetime(2026, 11, 27, 18, 16, tzinfo=UTC), 2 * 86_400 + 20 * 3600 + 29 * 60),  # a half day
    ],
)
def test_asking_waits_for_the_session_as_the_source_shows_it(sessions: Sessions, now: datetime, wait_s: float) -> None:
    assert seconds_until_open(sessions, now, 900.0) == wait_s


def test_the_calendar_ends_and_says_so(sessions: Sessions) -> None:
    with pytest.raises(ValueError, match="outside"):
        sessions.at(datetime(1999, 1, 4, 15, tzinfo=UTC))
    with pytest.raises(ValueError, match="outside"):
        sessions.at(datetime(2040, 1, 4, 15, tzinfo=UTC))


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    now = datetime(2026, 7, 24, 14, tzinfo=UTC)
    bucket = TokenBucket(rate_per_s=2.0, burst=2.0)
    assert [bucket.reserve(now) for _ in range(5)] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert bucket.reserve(now + timedelta(seconds=10)) == 0.0
    assert bucket.reserve(now) == 0.0  # a clock that went back neither earns nor costs
    assert bucket.reserve(now) == 0.5

"""Sessions of the New York exchange (XNYS): when it trades, and to which session a moment belongs.

Computed once by exchange_calendars (shared/xnys.py; holidays, half days and one-off closures included) and
kept as plain dates: asking the calendar itself takes 150 microseconds a question.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

FIRST_DAY: Final = date(2004, 1, 1)
LAST_DAY: Final = date(2035, 12, 31)


@dataclass(frozen=True, slots=True)
class TradingSession:
    """One trading day: from `opens` to `closes`, both UTC."""

    day: date
    opens: datetime
    closes: datetime


class Sessions:
    """The exchange's sessions in order."""

    def __init__(self, sessions: Sequence[TradingSession]) -> None:
        self._sessions = list(sessions)
        self._opens = [session.opens for session in self._sessions]
        self._days = [session.day for session in self._sessions]

    def at(self, moment: datetime) -> TradingSession:
        """Return the session that `moment` belongs to: the running one, or the last that ran.

        Raises ValueError for a moment outside the years of the calendar.
        """
        index = bisect_right(self._opens, moment) - 1
        if index < 0 or moment.date() > LAST_DAY:
            raise ValueError(f"{moment.isoformat()} lies outside the exchange's calendar")
        return self._sessions[index]

    def on(self, day: date) -> TradingSession | None:
        """Return the session of that day, or None on a day without one."""
        session = self.on_or_before(day)
        return session if session is not None and session.day == day else None

    def on_or_before(self, day: date) -> TradingSession | None:
        """Return the last session up to and with that day."""
        index = bisect_right(self._days, day) - 1
        return self._sessions[index] if index >= 0 else None

    def running(self, moment: datetime) -> bool:
        """Say whether the exchange trades at `moment`."""
        session = self.at(moment)
        return session.opens <= moment < session.closes

    def next_open(self, moment: datetime) -> datetime:
        """Return when the first session after `moment` opens."""
        index = bisect_right(self._opens, moment)
        if index >= len(self._opens):
            raise ValueError(f"{moment.isoformat()} lies outside the exchange's calendar")
        return self._opens[index]


def seconds_until_open(sessions: Sessions, now: datetime, delay_s: float) -> float:
    """Return 0 while a source that lags by `delay_s` shows a running session, else the seconds until it does.

    The window is the session moved by the delay: at 16:10 in New York a source 15 minutes behind still shows
    trading, and at 9:40 it still shows yesterday.
    """
    shown = now - timedelta(seconds=delay_s)
    if sessions.running(shown):
        return 0.0
    return (sessions.next_open(shown) - shown).total_seconds()

"""What the picture of an alert shows: the session's quotes, the alert marked, and its contracts' volume. Pure.

A chart says nothing of its user, so that those who are told the same of a symbol share one picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from services.alerts.domain.matching import Line

EXCHANGE: Final = ZoneInfo("America/New_York")
MOST_POINTS: Final = 400
MOST_BARS: Final = 5
_RIGHTS: Final = {"C": "call", "P": "put"}


class Bar(msgspec.Struct, frozen=True):
    """The volume and the open interest of one contract."""

    label: str
    volume: int
    open_interest: int


class Chart(msgspec.Struct, frozen=True):
    """All that a picture shows. Points are (Unix seconds, USD a share), oldest first; `marked` is in Unix seconds."""

    symbol: str
    session: date
    points: tuple[tuple[int, float], ...]
    marked: int
    bars: tuple[Bar, ...]
    simulated: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn chart, and what it shows in words, for those who do not see it."""

    png: bytes = field(repr=False)
    alt: str


def chart_of(
    symbol: str,
    session: date,
    points: Sequence[tuple[datetime, float]],
    best: Sequence[Line],
    *,
    as_of: datetime,
    simulated: bool,
) -> Chart:
    """Return the chart of an alert."""
    return Chart(
        symbol=symbol,
        session=session,
        points=thinned([(int(at.timestamp()), price) for at, price in points]),
        marked=int(as_of.timestamp()),
        bars=tuple(Bar(label_of(one), one.volume, one.open_interest) for one in best[:MOST_BARS]),
        simulated=simulated,
    )


def label_of(line: Line) -> str:
    """Return a contract as a bar is labelled: 20 Jun 200 call."""
    return f"{line.expiration.day} {line.expiration:%b} {line.strike.normalize():f} {_RIGHTS[line.right]}"


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> tuple[tuple[int, float], ...]:
    """Return at most `most` of the points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return tuple(points)
    last = len(points) - 1
    return tuple(points[round(step * last / (most - 1))] for step in range(most))


def day_of(session: date) -> tuple[datetime, datetime]:
    """Return the first moment of a session's day in New York, and the first one after it."""
    begins, ends = (datetime.combine(day, time(), EXCHANGE) for day in (session, session + timedelta(days=1)))
    return begins, ends


def alt_of(chart: Chart) -> str:
    """Return what the picture shows, in words."""
    told = [f"{'Simulated chart' if chart.simulated else 'Chart'} of {chart.symbol} on {chart.session.isoformat()}."]
    if chart.points:
        first, last = chart.points[0][1], chart.points[-1][1]
        marked = datetime.fromtimestamp(chart.marked, EXCHANGE)
        told.append(
            f"The price went from {first:,.2f} to {last:,.2f} dollars; the alert is at {marked:%H:%M} New York time."
        )
    told += [f"{bar.label}: volume {bar.volume:,} over {bar.open_interest:,} open." for bar in chart.bars]
    return " ".join(told)

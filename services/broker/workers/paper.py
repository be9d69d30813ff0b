"""What makes the paper venue go on: the market, time, and the day on which options expire."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Protocol

from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.matching import Book
from services.broker.service.calendar import Calendar
from services.broker.service.quotes import Told
from services.broker.store.books import BookStore
from shared.db import Tx, is_rerun
from shared.errors import Transient
from shared.messaging.door import Door
from shared.schedule import Job

BEFORE_CLOSE: Final = timedelta(minutes=30)
"""A quote that is older at the close is no closing price."""
AFTER_CLOSE: Final = timedelta(minutes=20)
_log = logging.getLogger(__name__)


class Paper(Protocol):
    """The doors of the paper venue that no other venue has."""

    async def quoted(self, quotes: Sequence[tuple[Instrument, Book]], tx: Tx) -> None:
        """Let working orders meet new quotes."""

    async def tick(self) -> int:
        """Do with orders what their time has come for."""
        ...

    async def expire(self, day: date, closes: Mapping[str, Decimal]) -> Sequence[Any]:
        """Settle the options that expire by this day."""
        ...


def hears(paper: Paper, calendar: Calendar) -> Callable[[Tx, Sequence[Told]], Awaitable[None]]:
    """Return what lets quotes into the paper venue."""

    async def hear(tx: Tx, told: Sequence[Told]) -> None:
        await calendar()
        quotes = [(instrument(one.symbol), Book(one.bid or None, one.ask or None, one.at)) for one in told]
        await paper.quoted(quotes, tx)

    return hear


class Ticking:
    """Lets time pass at the paper venue."""

    name = "paper-ticks"

    def __init__(self, paper: Paper, calendar: Calendar, every_s: float = 1.0) -> None:
        self._paper = paper
        self._calendar = calendar
        self._every_s = every_s

    async def run(self) -> None:
        """Tick until cancelled."""
        await self._calendar()
        while True:
            try:
                await self._paper.tick()
            except Exception as error:
                if not is_rerun(error) and not isinstance(error, Transient):
                    raise
                _log.warning("broker.paper_tick", extra={"error": repr(error)[:300]})
            await asyncio.sleep(self._every_s)


def expiries(paper: Paper, calendar: Calendar, books: BookStore, door: Door) -> Job:
    """Return the job that settles expired options by their underlyings' closes, each half hour after one."""

    async def expire(at: datetime) -> None:
        session = (await calendar()).at(at)
        if at < session.closes + AFTER_CLOSE:
            return
        async with door.read() as tx:
            closes = await books.closing(tx, session.closes - BEFORE_CLOSE)
        settled = await paper.expire(session.day, closes)
        if settled:
            _log.info("broker.options_expired", extra={"facts": len(settled), "day": session.day.isoformat()})

    return Job("paper-expiry", "5,35 * * * *", expire)

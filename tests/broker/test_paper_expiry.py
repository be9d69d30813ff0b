"""By which price options of paper accounts expire: the regular session's, whatever is quoted after hours."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from services.broker.domain.instruments import Instrument
from services.broker.domain.matching import Book
from services.broker.service.calendar import Calendar
from services.broker.service.quotes import Quotes
from services.broker.store.books import BookStore
from services.broker.workers.paper import expiries
from shared.contracts.quotes import QuoteTaken
from shared.db import Database, Tx
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.sessions import Sessions

CLOSES = datetime(2025, 6, 20, 20, tzinfo=UTC)
AFTER_HOURS = CLOSES + timedelta(minutes=25)


class Heard:
    """The paper venue's door, as the job sees it."""

    def __init__(self) -> None:
        self.closes: list[tuple[date, Mapping[str, Decimal]]] = []

    async def quoted(self, quotes: Sequence[tuple[Instrument, Book]], tx: Tx) -> None:
        raise AssertionError("the job quotes nothing")

    async def tick(self) -> int:
        raise AssertionError("the job does not tick")

    async def expire(self, day: date, closes: Mapping[str, Decimal]) -> Sequence[Any]:
        self.closes.append((day, closes))
        return ()


def quote(symbol: str, at: datetime, bid: float, ask: float, close: float | None) -> QuoteTaken:
    fields: dict[str, Any] = {"source": "cboe", "simulated": False, "bid": bid, "ask": ask, "close": close}
    return QuoteTaken(id=uuid4(), time=at, symbol=symbol, as_of=at, **fields)


async def test_options_expire_by_the_close_and_not_by_what_is_quoted_after_hours(
    open_database: Callable[[str], Database], sessions: Sessions
) -> None:
    database = open_database("broker")
    door, books, paper = Door(database, Outbox("broker", lambda: None)), BookStore(), Heard()
    quotes = Quotes(books, lambda: AFTER_HOURS)
    told = [
        quote("AAPL", CLOSES - timedelta(minutes=1), 200.0, 200.2, 200.1),
        quote("AAPL", AFTER_HOURS, 209.0, 211.0, 200.1),  # news after the close
        quote("MSFT", CLOSES, 400.0, 402.0, None),
        quote("OLD", CLOSES - timedelta(minutes=31), 10.0, 10.2, 10.1),
    ]
    for one in told:
        await door.publish(lambda tx, one=one: quotes.take([one], tx))

    async def load() -> Sessions:
        return sessions

    job = expiries(paper, Calendar(load), books, door)
    await job.run(CLOSES + timedelta(minutes=5))
    assert paper.closes == []
    await job.run(CLOSES + timedelta(minutes=35))
    assert paper.closes == [(date(2025, 6, 20), {"AAPL": Decimal("200.1"), "MSFT": Decimal(401)})]

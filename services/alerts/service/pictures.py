"""The picture that goes with an alert, made of the quotes that were kept and of the alert's own contracts."""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from services.alerts.domain.charts import Chart, Picture, alt_of, chart_of, day_of
from services.alerts.domain.matching import Stock
from services.alerts.store.alerts import lines_of
from services.alerts.store.quotes import QuoteStore
from shared.contracts.base import Event
from shared.contracts.quotes import QuoteTaken
from shared.db import Row, Tx
from shared.messaging.door import Door
from shared.work import Together

Draw = Callable[[Chart], Awaitable[bytes | None]]
"""Draws a chart as PNG; None when there is no picture now."""


class Pictures:
    """Keeps what charts are made of, and makes them."""

    def __init__(self, store: QuoteStore, draw: Draw | None, door: Door) -> None:
        """Prepare. Without `draw` there are no pictures, and no quotes are kept."""
        self._store = store
        self._draw = draw
        self._door = door
        self._quotes: Together[Stock, list[Row]] = Together(self._quotes_of, most=64)

    async def keep(self, events: Sequence[QuoteTaken], tx: Tx) -> Sequence[Event]:
        """Keep the last quote of each symbol and minute."""
        newest: dict[tuple[str, datetime], QuoteTaken] = {}
        for event in sorted(events, key=lambda event: event.as_of):
            newest[event.symbol, event.as_of.astimezone(UTC).replace(second=0, microsecond=0)] = event
        rows = [
            {"symbol": symbol, "minute": minute, "as_of": one.as_of, "price": price, "simulated": one.simulated}
            for (symbol, minute), one in sorted(newest.items(), key=lambda item: item[0])
            if (price := price_of(one)) is not None
        ]
        if self._draw is not None:
            await self._store.keep(tx, rows)
        return ()

    async def of_alert(self, alert: Row) -> Picture | None:
        """Return the picture of an alert's row; None when there is none now."""
        if self._draw is None:
            return None
        rows = await self._quotes((alert["symbol"], alert["session"]))
        chart = chart_of(
            alert["symbol"],
            alert["session"],
            [(row["as_of"], row["price"]) for row in rows],
            lines_of(alert),
            as_of=alert["as_of"],
            simulated=alert["simulated"] or any(row["simulated"] for row in rows),
        )
        png = await self._draw(chart)
        return None if png is None else Picture(png, alt_of(chart))

    async def _quotes_of(self, stocks: Sequence[Stock]) -> list[list[Row]]:
        """Read each stock's once, however many ask."""
        found: dict[Stock, list[Row]] = {}
        async with self._door.read() as tx:
            for symbol, session in dict.fromkeys(stocks):
                found[symbol, session] = await self._store.between(tx, symbol, *day_of(session))
        return [found[stock] for stock in stocks]


def price_of(quote: QuoteTaken) -> float | None:
    """Return what a quote says a share costs: the regular session's price, else the middle of bid and ask."""
    middle = (quote.bid + quote.ask) / 2 if quote.bid and quote.ask else None
    price = quote.close or middle
    return price if price is not None and math.isfinite(price) and price > 0 else None

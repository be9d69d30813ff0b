"""The last quotes: what orders are judged by, and what the paper venue trades against."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from services.broker.store.books import BookStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.quotes import PairQuoted, QuoteTaken
from shared.db import Tx

AHEAD: Final = timedelta(seconds=5)
"""So far may a quote be ahead of our clock; one from the future would keep all true ones out."""


@dataclass(frozen=True, slots=True)
class Told:
    """A quote in the quote currency; a side without anybody is zero."""

    symbol: str
    bid: Decimal
    ask: Decimal
    at: datetime


Hear = Callable[[Tx, Sequence[Told]], Awaitable[None]]
"""Takes quotes in the transaction that keeps them."""


class Quotes:
    """Keeps quotes."""

    def __init__(self, store: BookStore, clock: Clock, hear: Sequence[Hear] = ()) -> None:
        self._store = store
        self._clock = clock
        self._hear = hear

    async def take(self, events: Sequence[QuoteTaken], tx: Tx) -> Sequence[Event]:
        """Keep the newest quote of each symbol; one without both sides, or from the future, is none."""
        newest: dict[str, QuoteTaken] = {}
        latest = self._clock() + AHEAD
        for one in sorted(events, key=lambda one: one.as_of):
            both = one.bid is not None and one.ask is not None and 0 <= one.bid <= one.ask and math.isfinite(one.ask)
            if both and one.as_of <= latest:
                newest[one.symbol] = one
        told: list[Told] = []
        for symbol, one in sorted(newest.items()):
            quote = Told(symbol, Decimal(repr(one.bid)), Decimal(repr(one.ask)), one.as_of)
            close = Decimal(repr(one.close)) if one.close and math.isfinite(one.close) else None
            if await self._store.quote(tx, symbol, quote.bid, quote.ask, quote.at, one.simulated, close=close):
                told.append(quote)
        return await self._tell(tx, told)

    async def take_pairs(self, events: Sequence[PairQuoted], tx: Tx) -> Sequence[Event]:
        """Keep the newest quote of each crypto pair; a crossed one, or one from the future, is none."""
        latest = self._clock() + AHEAD
        good = [one for one in events if 0 <= one.bid <= one.ask and one.as_of <= latest]
        newest = {one.symbol: one for one in sorted(good, key=lambda one: one.as_of)}
        told = [
            Told(symbol, one.bid, one.ask, one.as_of)
            for symbol, one in sorted(newest.items())
            if await self._store.quote(tx, symbol, one.bid, one.ask, one.as_of, one.simulated)
        ]
        return await self._tell(tx, told)

    async def _tell(self, tx: Tx, told: Sequence[Told]) -> Sequence[Event]:
        for hear in self._hear:
            await hear(tx, told)
        return ()

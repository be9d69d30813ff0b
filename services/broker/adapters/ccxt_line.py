"""The line to one exchange: its markets, its clock, questions and wishes, and listings by pages.

The library paces requests itself, by what it knows of the exchange.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import localcontext
from typing import Any, Final

from services.broker.adapters import ccxt_exchanges as exchanges
from services.broker.adapters.ccxt_wire import Missing, Raw, translated
from services.broker.adapters.guard import Guard
from services.broker.domain.instruments import Instrument
from shared.errors import Transient
from shared.external import calling

_MARKETS_S: Final = 3600.0
_SMALL_PAGE: Final = 10
"""No exchange pages by less than this: a shorter page is the last."""


class Line:
    """What is asked through it raises the port's errors, and Declined and Missing."""

    def __init__(self, exchange: Any, currency: str | None, guard: Guard) -> None:
        self.currency = currency or ""  # known once the line is ready
        self._exchange = exchange
        self._guard = guard
        self._loading = asyncio.Lock()
        self._loaded_at: float | None = None

    async def ready(self) -> None:
        """Have the markets, read again each hour."""
        async with self._loading:
            now = time.monotonic()
            if self._loaded_at is None or now - self._loaded_at > _MARKETS_S:
                await self.read("load_markets", True)  # anew
                self.currency = self.currency or exchanges.currency(self._exchange)
                self._loaded_at = now

    def market(self, of: Instrument | str) -> Raw | None:
        """Return a spot market in our currency."""
        found: Raw | None = self._exchange.markets.get(of if isinstance(of, str) else of.key)
        return found if found and found.get("spot") and found["quote"] == self.currency else None

    def milliseconds(self, moment: datetime) -> int:
        """Return a moment of our clock as the exchange's clock has it."""
        return int(moment.timestamp() * 1000) - int(self._exchange.options.get("timeDifference") or 0)

    async def read(self, method: str, *arguments: Any) -> Any:
        """Ask. A refused time stamp is asked again by the exchange's clock, which also mends later writes."""
        async with self._guard.request():
            return await self._read(method, arguments)

    async def _read(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self._answer(method, arguments)
        except Exception as error:  # noqa: BLE001 - ccxt raises what it likes on answers that it does not know
            failed = error
        if exchanges.clock_is_off(self._exchange, failed):
            with suppress(Exception):
                await self._exchange.load_time_difference()
            try:
                return await self._answer(method, arguments)
            except Exception as error:  # noqa: BLE001 - same
                failed = error
        found = translated(failed, exchange=self._exchange, write=False)
        if isinstance(found, Missing) and method != "fetch_order":
            raise Transient(str(found)) from None  # of a listing, that says nothing
        raise found from None

    async def write(self, method: str, *arguments: Any) -> Any:
        """Ask for something to be done, once."""
        async with self._guard.request():
            try:
                return await self._call(method, arguments)
            except Exception as error:  # noqa: BLE001 - same
                raise translated(error, exchange=self._exchange, write=True) from None

    async def pages(self, method: str, name: str, symbol: str | None, since: int | None) -> list[Raw]:
        """Return a listing since some moment of the exchange's clock, all pages of it."""
        found: dict[str, Raw] = {}
        window = exchanges.window_ms(self._exchange, name)
        while True:
            page: list[Raw] = await self.read(method, symbol, since)
            fresh = {str(one["id"]): one for one in page if str(one["id"]) not in found}
            found |= fresh
            newest = max((int(one["timestamp"]) for one in page if one.get("timestamp")), default=0)
            if since is None:
                return list(found.values())
            if fresh and len(page) >= _SMALL_PAGE and newest > since:
                since = newest
            elif window is not None and since + window < self.milliseconds(datetime.now(UTC)):
                since += window
            else:
                return list(found.values())

    async def _answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Return an answer that is one: of a page of HTML, ccxt makes an order or a balance in which nothing is."""
        found = await self._call(method, arguments)
        entries: list[Any] = found if isinstance(found, list) else [found]
        if any(not isinstance(one, dict) or isinstance(one.get("info"), str) for one in entries):
            raise TypeError
        return found

    async def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        call: Callable[..., Any] = getattr(self._exchange, method)
        # ccxt sets the rounding and the traps of whatever context it finds
        with calling(self._exchange.id), localcontext():
            return await call(*arguments)

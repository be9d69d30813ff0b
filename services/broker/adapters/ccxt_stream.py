"""The stream of an account at a crypto exchange: what has changed, asked again and again.

The exchange's WebSocket only says when to ask: a frame that is lost costs time, never a fill.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import localcontext
from typing import Any
from uuid import UUID

from services.broker.adapters import ccxt_exchanges as exchanges
from services.broker.domain.orders import Report
from services.broker.ports import Update

Orders = Callable[[datetime], Awaitable[Sequence[Update]]]
"""Asks for the orders that changed since then."""


class Stream:
    """Asks every `poll_s` seconds, and at once after `wake()`."""

    def __init__(self, exchange: Any, orders: Orders, poll_s: float) -> None:
        self._exchange = exchange
        self._orders = orders
        self._poll_s = poll_s
        self._wakes: set[asyncio.Event] = set()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[Update]]:
        """Listen. What is as it was when the block began is not told."""
        begin = datetime.now(UTC)
        told = {one.order_id: _mark(one.report) for one in await self._orders(begin)}
        wake = asyncio.Event()
        self._wakes.add(wake)
        watching = asyncio.create_task(self._watch(wake))
        try:
            yield self._updates(begin, told, wake)
        finally:
            self._wakes.discard(wake)
            watching.cancel()
            await asyncio.wait([watching])

    def wake(self) -> None:
        """Ask now: something was done that changes an order."""
        for one in self._wakes:
            one.set()

    async def _updates(self, begin: datetime, told: dict[UUID, Any], wake: asyncio.Event) -> AsyncIterator[Update]:
        while True:
            wake.clear()
            asked = datetime.now(UTC)
            changed = [replace(one, report=replace(one.report, looked_up=False)) for one in await self._orders(begin)]
            fresh = [one for one in changed if told.get(one.order_id) != _mark(one.report)]
            told, begin = {one.order_id: _mark(one.report) for one in changed}, asked
            for one in fresh:
                yield one
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await wake.wait()

    async def _watch(self, wake: asyncio.Event) -> None:
        """Ask again at once when the exchange's WebSocket tells of an order; without it, only the clock does."""
        while exchanges.watches(self._exchange):
            try:
                with localcontext():  # ccxt sets the rounding of whatever context it finds
                    await self._exchange.watch_orders()
            except Exception as error:  # noqa: BLE001 - whatever it is, the truth comes by asking
                if exchanges.never_watches(error):
                    return
                await asyncio.sleep(self._poll_s)
            wake.set()


def _mark(of: Report) -> tuple[Any, ...]:
    """Return what tells one report of an order from the next."""
    return (of.kind, frozenset(one.id for one in of.executions), tuple(one.quantity for one in of.cumulative))

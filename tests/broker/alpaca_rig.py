"""Alpaca's row of the conformance table: its venue over the stand-in."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID

from services.broker.adapters.alpaca import Alpaca
from services.broker.ports import Account, Adapter, Venue
from tests.fakes.alpaca import KEY_ID, SECRET_KEY
from tests.fakes.alpaca import Alpaca as StandIn
from tests.fakes.alpaca.shapes import Obj

SECRETS: Final = {"key_id": KEY_ID, "secret_key": SECRET_KEY}
ACCOUNT: Final = Account(UUID(int=7), UUID(int=1), "alpaca", "paper")


class AlpacaRig:
    """A venue over its stand-in."""

    def __init__(self, alpaca: StandIn, adapter: Adapter) -> None:
        self.alpaca = alpaca
        self._adapter = adapter
        self.venue: Venue = adapter.open(ACCOUNT, SECRETS)

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        self.alpaca.books.quotes[symbol] = (bid, ask)

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        with self.alpaca.lock:
            return self.alpaca.books.fill(self.order(order_id), quantity, price)

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        with self.alpaca.lock:
            self.alpaca.books.bust(self.order(order_id), execution_id)

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        with self.alpaca.lock:
            self.alpaca.books.end(self.order(order_id), kind)

    def refuse_next(self, reason: str) -> None:
        self.alpaca.refusal = reason

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        self.alpaca.lost = what

    def limit_next(self, times: int = 1) -> None:
        self.alpaca.limits = times

    def hold_cancels(self) -> None:
        self.alpaca.held_cancel = True

    def drop_stream(self) -> None:
        self.alpaca.cut()

    def lose_frames(self, count: int) -> None:
        self.alpaca.frames_to_lose = count

    async def repeat_fill(self) -> None:
        self.alpaca.repeat_fill()

    def skew(self, seconds: float) -> None:
        self.alpaca.books.skew = timedelta(seconds=seconds)

    def submits(self) -> list[UUID]:
        return [UUID(one.removeprefix("openbell-")) for one in self.alpaca.submits]

    async def reopen(self) -> None:
        await self.venue.close()
        self.venue = self._adapter.open(ACCOUNT, SECRETS)

    def order(self, order_id: UUID) -> Obj:
        """Return an order as the stand-in has it."""
        found = self.alpaca.books.by_client_id(f"openbell-{order_id}")
        assert found is not None, f"Alpaca has no order {order_id}"
        return found


class AlpacaRigs:
    """Opens rigs of Alpaca."""

    name = "alpaca"
    lacks = frozenset[str]()

    def __init__(self, *, ping_s: float = 20.0, timeout_s: float = 10.0) -> None:
        self.adapter: Adapter = Alpaca()
        self._ping_s, self._timeout_s = ping_s, timeout_s

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AlpacaRig]:
        with StandIn() as alpaca:
            rig = AlpacaRig(
                alpaca, Alpaca(paper=alpaca.url, live=alpaca.url, ping_s=self._ping_s, timeout_s=self._timeout_s)
            )
            try:
                yield rig
            finally:
                await rig.venue.close()

"""ccxt's venue over a stand-in for one of its exchanges, Binance. BTC/USD stands here for what is AAPL elsewhere.

There is no socket: the venue asks again and again, so no frame can be lost or come twice.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

from services.broker.adapters.ccxt_venue import Ccxt
from services.broker.adapters.ccxt_wire import client
from services.broker.ports import Account
from tests.fakes.exchange import KEY, SECRET, Exchange
from tests.fakes.serving import serving

ACCOUNT: Final = Account(UUID(int=7), UUID(int=1), "ccxt-binance", "paper")
SECRETS: Final = {"apiKey": KEY, "secret": SECRET}
NOWHERE: Final = "http://127.0.0.1:1"
ELSEWHERE: Final = "http://127.0.0.1:2"


def adapter_over(address: str, *, live: str = ELSEWHERE) -> Ccxt:
    """Return an adapter whose every address, the WebSocket's included, is on 127.0.0.1."""
    urls: dict[str, Any] = client("binance", {}).urls
    moved = {
        "test": _moved(urls["test"], address),
        "api": _moved(urls["api"], live),
        "demo": _moved(urls["demo"], live),
    }
    return Ccxt("binance", config={"urls": moved, "enableRateLimit": False, "timeout": 5000}, poll_s=0.05)


def _moved(urls: Any, address: str) -> Any:
    if isinstance(urls, dict):
        return {name: _moved(one, address) for name, one in urls.items()}
    return f"{NOWHERE}/{address[-5:]}" if urls.startswith("ws") else f"{address}/api/v3"


class CcxtRig:
    """See tests.broker.rig.Rig."""

    def __init__(self, exchange: Exchange, adapter: Ccxt) -> None:
        self.exchange = exchange
        self._adapter = adapter
        self.venue = adapter.open(ACCOUNT, SECRETS)

    async def reopen(self) -> None:
        await self.venue.close()
        self.venue = self._adapter.open(ACCOUNT, SECRETS)

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        """It does not match, so a price moves nothing."""

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        return self.exchange.fill(str(order_id), quantity, price)

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        """It takes nothing back: see `lacks`."""

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        self.exchange.end(str(order_id), kind)

    def refuse_next(self, reason: str) -> None:
        self.exchange.reason = reason

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        self.exchange.lost = what

    def limit_next(self, times: int = 1) -> None:
        self.exchange.errors += [(429, {"code": -1003, "msg": "Too many requests."})] * times

    def hold_cancels(self) -> None:
        self.exchange.holding = True

    def drop_stream(self) -> None:
        self.exchange.cut = True

    def lose_frames(self, count: int) -> None:
        """There are none: see `lacks`."""

    async def repeat_fill(self) -> None:
        """Every answer repeats all fills."""

    def skew(self, seconds: float) -> None:
        self.exchange.skew_s = seconds

    def submits(self) -> list[UUID]:
        return [UUID(one["clientOrderId"]) for one in self.exchange.orders]


class CcxtRigs:
    """See tests.broker.rig.Rigs."""

    name = "ccxt"
    lacks = frozenset(
        {
            "same-id-twice",  # Binance takes the id of an order that is over once more
            "replace",  # ccxt's editOrder differs from exchange to exchange: an order is canceled and placed anew
            "replace-partial",
            "replace-lost-race",
            "replace-over",
            "replace-answer-lost",
            "restart",  # its case replaces an order; test_ccxt.py shows a restart without that
            "frames-lost",  # there are no frames
            "busted",  # Binance takes no trade back
        }
    )

    @property
    def adapter(self) -> Ccxt:
        return adapter_over(NOWHERE)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[CcxtRig]:
        exchange = Exchange()
        with serving(exchange, "exchange") as address:
            rig = CcxtRig(exchange, adapter_over(address))
            try:
                yield rig
            finally:
                await rig.venue.close()

"""tastytrade's rows of the conformance table: the venue over its stand-in."""

import contextlib
from collections.abc import AsyncGenerator
from datetime import timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

from services.broker.adapters.tastytrade import Tastytrade
from services.broker.adapters.tastytrade.venue import TastytradeVenue
from services.broker.domain.risk import Mode
from services.broker.ports import Account, Adapter, Venue
from shared.clock import Clock, utc_now
from tests.broker.samples import ACCOUNT
from tests.fakes.tastytrade import CLIENT_SECRET, REFRESH_TOKEN, FakeTastytrade, Fault

SECRETS = {"refresh_token": REFRESH_TOKEN, "client_secret": CLIENT_SECRET}


def opened(
    fake: FakeTastytrade, clock: Clock = utc_now, *, mode: Mode = "paper", beat_s: float = 0.2, silent_s: float = 5
) -> TastytradeVenue:
    """Open the stand-in's account; both live and paper are there."""
    adapter = Tastytrade(clock, live=fake.hosts, paper=fake.hosts, timeout_s=5, beat_s=beat_s, silent_s=silent_s)
    return adapter.open(Account(ACCOUNT, UUID(int=3), "tastytrade", mode, fake.desk.account), SECRETS)


class TastytradeRig:
    """The venue, and a hand on what is behind it."""

    def __init__(self, fake: FakeTastytrade) -> None:
        self.fake = fake
        self.venue: Venue = opened(fake)

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        """The stand-in fills nothing by itself, and its prices are not asked for."""

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        desk = self.fake.desk
        return desk.fill(desk.under(str(order_id)), quantity, price)

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        """How it tells that it takes something back is not documented: see `lacks`."""

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        status = {"canceled": "Cancelled", "expired": "Expired", "rejected": "Rejected"}[kind]
        self.fake.desk.end(self.fake.desk.under(str(order_id)), status)

    def refuse_next(self, reason: str) -> None:
        self.fake.desk.reason = reason

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        """A request is answered with 503; after an answer's effect the connection is cut."""
        fault = Fault(503) if what == "request" else Fault(0, effect=True)
        self.fake.fail("POST|PUT|DELETE", "/orders", fault)

    def limit_next(self, times: int = 1) -> None:
        self.fake.fail(".*", "/accounts/", *(Fault(429) for _ in range(times)))

    def hold_cancels(self) -> None:
        self.fake.desk.hold = True

    def drop_stream(self) -> None:
        self.fake.drop_stream()

    def lose_frames(self, count: int) -> None:
        self.fake.lose += count

    async def repeat_fill(self) -> None:
        self.fake.repeat_fill()

    def skew(self, seconds: float) -> None:
        self.fake.desk.skew = timedelta(seconds=seconds)

    async def reopen(self) -> None:
        await self.venue.close()
        self.venue = opened(self.fake)

    def submits(self) -> list[UUID]:
        return [UUID(one) for one in self.fake.desk.placed]


class TastytradeRigs:
    """Opens them."""

    name = "tastytrade"
    adapter: Adapter = Tastytrade(utc_now)
    lacks = frozenset({"fractional", "replace-partial", "same-id-twice", "busted"})
    """Shares are whole; a replacement is for what is left of an order; an id that is sent twice is two orders; what it
    takes back only its positions tell."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[TastytradeRig]:
        async with FakeTastytrade() as fake:
            rig = TastytradeRig(fake)
            try:
                yield rig
            finally:
                await rig.venue.close()

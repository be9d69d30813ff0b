"""The brokerage in this process, without Kafka: a test carries its events by hand, and the venues are in memory.

desk = brokerage.desk(account_id)                   # the venue's side of an account
order_id = await brokerage.place(account_id, ...)   # the command, and all that follows at once
await desk.fill(order_id, Decimal(1), Decimal(100))
await brokerage.reconcile(account_id)               # or `listen`
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from services.broker import READS
from services.broker.main import assemble
from services.broker.ports import Account
from services.broker.service.calendar import Calendar
from services.broker.settings import BrokerSettings
from services.broker.store.accounts import account_of
from services.broker.workers.exits import Protecting
from services.broker.workers.monitor import Monitors
from shared.contracts.base import Event
from shared.contracts.broker import (
    CancelRequested,
    CloseRequested,
    LegTerms,
    OrderRequested,
    OrderTerms,
    ReplaceRequested,
)
from shared.contracts.quotes import QuoteTaken
from shared.identity import HEADER, Identity, Role, Signer, identity_secret
from shared.messaging.record import unpack_headers
from shared.service import Environment, Service
from shared.sessions import Sessions, TradingSession
from shared.settings import SharedSettings
from shared.work import Worker
from tests.conftest import ManualClock
from tests.fakes.venue import Desk, MemoryAdapter
from tests.fakes.venue_books import PLAIN, Manner

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
USER = UUID("01980000-0000-7000-8000-0000000000aa")
SHARES = {"AAPL": ("100.00", "100.02"), "MSFT": ("400.00", "400.05")}


async def always_open() -> Sessions:
    """An exchange that trades the whole day."""
    days = [NOW.replace(hour=0) + timedelta(days=day) for day in range(-5, 30)]
    return Sessions([TradingSession(day.date(), day, day + timedelta(hours=24)) for day in days])


class Brokerage:
    """The service, a clock that stands, and venues."""

    def __init__(self, database_url: str, manner: Manner = PLAIN, **settings: Any) -> None:
        self.clock = ManualClock(NOW)
        given: dict[str, Any] = {"duplicate_window_s": 0, "max_orders_a_minute": 100_000, **settings}
        self.settings = BrokerSettings(**given)
        self.adapter = MemoryAdapter(manner, self.clock)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._shared = SharedSettings(database_url=database_url, kafka_bootstrap="127.0.0.1:9", database_pool_size=8)
        self.service = self._service()

    def _service(self) -> Service:
        env = Environment(self._shared, self.clock, Random(1), "test")
        service = Service("broker", env, READS)
        return assemble(service, env, self.settings, [self.adapter], _key, calendar=Calendar(always_open))

    @property
    def worker(self) -> Worker:
        """What says to venues what is to be said."""
        return next(one for one in self.service._runners if isinstance(one, Worker))

    @property
    def monitors(self) -> Monitors:
        """What listens to venues."""
        return next(one for one in self.service._runners if isinstance(one, Monitors))

    @property
    def protecting(self) -> Protecting:
        """What looks at brackets and OCOs."""
        return next(one for one in self.service._runners if isinstance(one, Protecting))

    async def restart(self) -> None:
        """Throw the process away, and start another."""
        await self.service.close()
        self.service = self._service()

    # --- accounts and the market ----------------------------------------------------------------

    async def account(self, user_id: UUID = USER, mode: str = "paper", **body: Any) -> UUID:
        """Open an account."""
        given = {"venue": self.adapter.name, "mode": mode, "name": "mine", **body}
        status, answer = await self.ask("POST", "/broker/accounts", given, user_id=user_id)
        assert status == 201, answer
        return UUID(answer["id"])

    def desk(self, account_id: UUID) -> Desk:
        """The venue's side of an account."""
        return self.adapter.desk(account_id)

    async def quotes(self, **quotes: tuple[str, str]) -> None:
        """Let the market be so."""
        for symbol, (bid, ask) in (quotes or SHARES).items():
            now = self.clock()
            fields: dict[str, Any] = {"source": "cboe", "simulated": False, "close": None}
            one = QuoteTaken(id=uuid4(), time=now, symbol=symbol, as_of=now, bid=float(bid), ask=float(ask), **fields)
            await self.hear(one)

    # --- commands -------------------------------------------------------------------------------

    async def place(
        self, account_id: UUID, symbol: str = "AAPL", quantity: Any = 1, side: Any = "buy", **terms: Any
    ) -> UUID:
        """Place an order, a limit one at 100 unless said otherwise; return its id."""
        given: dict[str, Any] = {"type": "limit", "quantity": Decimal(quantity), "limit": Decimal(100), **terms}
        return await self.place_terms(account_id, OrderTerms(legs=(LegTerms(symbol=symbol, side=side),), **given))

    async def place_terms(self, account_id: UUID, terms: OrderTerms, user_id: UUID = USER) -> UUID:
        order_id = uuid4()
        await self.hear(OrderRequested(**self._about(account_id, user_id), order_id=order_id, terms=terms))
        await self.settle()
        return order_id

    async def replace(self, account_id: UUID, order_id: UUID, **given: Any) -> UUID:
        by = uuid4()
        about = self._about(account_id)
        amounts: dict[str, Any] = {name: Decimal(value) for name, value in given.items()}
        await self.hear(ReplaceRequested(**about, order_id=order_id, by_order_id=by, **amounts))
        await self.settle()
        return by

    async def cancel(self, account_id: UUID, order_id: UUID | None = None) -> None:
        await self.hear(CancelRequested(**self._about(account_id), order_id=order_id))
        await self.settle()

    async def close_position(self, account_id: UUID, symbol: str = "AAPL") -> UUID:
        order_id = uuid4()
        await self.hear(CloseRequested(**self._about(account_id), order_id=order_id, symbol=symbol))
        await self.settle()
        return order_id

    def _about(self, account_id: UUID, user_id: UUID = USER) -> dict[str, Any]:
        return {"id": uuid4(), "time": self.clock(), "account_id": account_id, "user_id": user_id}

    # --- what follows -----------------------------------------------------------------------------

    async def hear(self, event: Event) -> None:
        """Let the service hear an event."""
        routes = [consumer.routes.get(event.type) for consumer in self.service.consumers]
        for route in filter(None, routes):
            given: Any = [event] if route.batch else event
            await self.service.door.publish(lambda tx, route=route, given=given: route.handler(given, tx))

    async def settle(self, *, wholly: bool = False) -> None:
        """Carry events and say to venues what is due, until nothing is left; `wholly`: later, too."""
        while True:
            carried = await self.carry() + await self.protecting.exits.turn()
            due = await self._due()
            if due is not None and due <= self.clock():
                await self.worker.turn()
                await self.worker.idle()
            elif due is not None and wholly:
                self.clock.now = due
            elif not carried:
                return

    async def _due(self) -> datetime | None:
        (row,) = await self.rows("select min(due_at) as due from sendings where status = 'pending'")
        paused = await self.rows("select max(until) as until from work_pauses")
        if row["due"] is None or paused[0]["until"] is None:
            return row["due"]
        return max(row["due"], paused[0]["until"] + timedelta(milliseconds=1))

    async def carry(self) -> int:
        """Hand what lies in the outbox to whom it is for; return how many there were."""
        async with self.service.db.transaction() as tx:
            rows = await tx.fetch(text("delete from outbox returning id, value, headers"))
        for row in sorted(rows, key=lambda row: row["id"]):
            headers = dict(unpack_headers(row["headers"]))
            kind = (headers[b"ce_type"] or b"").decode()
            self.told.append((kind, json.loads(row["value"])))
            for consumer in self.service.consumers:
                if (route := consumer.routes.get(kind)) is not None:
                    at = datetime.fromisoformat((headers[b"ce_time"] or b"").decode())
                    event_id = UUID((headers[b"ce_id"] or b"").decode())
                    await self.hear(route.event.from_bytes(row["value"], id=event_id, time=at))
        return len(rows)

    async def reconcile(self, account_id: UUID) -> None:
        """Compare an account with its venue."""
        account = await self.account_of(account_id)
        venue = await self.monitors._venues.of(account)
        await self.monitors._reconcile.run(account, venue)
        await self.settle()

    async def sweep(self) -> None:
        """Run the job that finds stuck orders."""
        (job,) = (job for job in self.service._jobs if job.name == "order-sweep")
        await job.run(self.clock())
        await self.settle()

    async def account_of(self, account_id: UUID) -> Account:
        async with self.service.db.read() as tx:
            (row,) = await tx.fetch(text("select * from accounts where id = :id"), id=account_id)
        return account_of(row)

    # --- looking ------------------------------------------------------------------------------------

    async def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Look into the schema."""
        async with self.service.db.read() as tx:
            return [dict(row) for row in await tx.fetch(text(statement), **values)]

    async def order(self, order_id: UUID) -> dict[str, Any]:
        """Return an order's row."""
        (row,) = await self.rows("select * from orders where id = :id", id=order_id)
        return row

    async def state(self, order_id: UUID) -> str:
        state: str = (await self.order(order_id))["state"]
        return state

    async def codes(self, order_id: UUID) -> list[str]:
        """Return why an order was refused."""
        return [one["code"] for one in (await self.order(order_id))["refusals"] or []]

    async def held(self, account_id: UUID) -> dict[str, Decimal]:
        """Return what is held by our books, but zeros."""
        found = await self.rows("select symbol, quantity from positions where account_id = :id", id=account_id)
        return {row["symbol"]: row["quantity"] for row in found if row["quantity"]}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the bodies of what was told, of one type."""
        return [body for name, body in self.told if name == kind]

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        user_id: UUID = USER,
        role: Role = "user",
        **headers: str,
    ) -> tuple[int, Any]:
        """Call a route as the gateway does."""
        identity = Identity(user_id, role)
        token = Signer(identity_secret(self._shared), self.clock).sign(identity, audience="broker", request_id="r1")
        transport = httpx.ASGITransport(app=self.service.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://broker") as client:
            sent = {HEADER: token, **{name.replace("_", "-"): value for name, value in headers.items()}}
            answer = await client.request(method, path, json=body, headers=sent)
        await self.settle()
        return answer.status_code, answer.json() if answer.content else None


async def _key(account: Account) -> Mapping[str, str]:
    del account
    return {"key": "secret"}


@asynccontextmanager
async def opened(database_url: str, manner: Manner = PLAIN, **settings: Any) -> AsyncGenerator[Brokerage]:
    """Open a brokerage with quotes; it is closed after the block."""
    brokerage = Brokerage(database_url, manner, **settings)
    await brokerage.quotes()
    yield brokerage
    await brokerage.service.close()

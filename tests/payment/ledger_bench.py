"""What the tests of ledger, money, renewals and invariants share: payment's parts on a real database, and objects of
Stripe's official shapes."""

import copy
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from services.payment.domain.plans import Plan, Plans
from services.payment.domain.subscriptions import State
from services.payment.main import build
from services.payment.service.audit import Audit
from services.payment.service.catalogue import Catalogue
from services.payment.service.ledger import Ledger
from services.payment.service.manual import Manual
from services.payment.service.money import Payments
from services.payment.service.refresh import Appliers
from services.payment.service.renewals import Reminders, Renewals
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.ledger import LedgerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.money import MoneyStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import new_id
from shared.contracts.base import Event
from shared.db import Database, Row, Tx
from shared.identity import HEADER, Identity, Signer
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import ManualClock, recorded

_TYPE = re.compile(rb"(?:payment|api)\.([a-z]+\.[a-z_]+)\.v1")
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
GRACE = 7 * DAY
PRICE = "price_Pro"
PRO = Plan(name="pro", title="Pro", price_usd=Decimal(29), entitlements=("pro",), stripe_price=PRICE)
TEAM = Plan(name="team", title="Team", price_usd=Decimal("99.50"), entitlements=("pro", "team"))


@cache
def _fixtures() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(recorded("data", "stripe", "current", "fixtures3.json").read_text())
    return found["resources"]


def official(kind: str, **changes: Any) -> dict[str, Any]:
    """Return an object of Stripe's official shape with some fields changed."""
    return copy.deepcopy(_fixtures()[kind]) | changes


def moved(amount: int, fee: int = 0, category: str = "charge", at: datetime = NOW, **changes: Any) -> dict[str, Any]:
    """Return a balance transaction."""
    about = {"amount": amount, "fee": fee, "net": amount - fee, "created": int(at.timestamp())}
    kind = "adjustment" if category.startswith("dispute") else category
    return official("balance_transaction", **about, reporting_category=category, type=kind, **changes)


class Bench:
    """Payment's parts, wired as main does, with a clock that moves when told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = clock = ManualClock(NOW)
        self.door = door = Door(database, Outbox("payment", lambda: None))
        self.store, self.ledger_store, self.money = SubscriptionStore(), LedgerStore(), MoneyStore()
        self.plans = plans = Plans([PRO, TEAM])
        self.mirror = MirrorStore()
        catalogue = Catalogue(plans, self.mirror)
        self.subscriptions = Subscriptions(self.store, catalogue, clock=clock, new_id=new_id)
        self.ledger = Ledger(self.ledger_store, clock)
        self.appliers = Appliers()
        self.wanted: list[tuple[str, str]] = []
        payments = Payments(
            self.money,
            self.store,
            self.ledger,
            self.subscriptions,
            mirror=self.mirror,
            want=self._want,
            catalogue=catalogue,
            clock=clock,
        )
        payments.register(self.appliers)
        self.renewals = Renewals(self.store, self.subscriptions, plans, door, grace=GRACE, clock=clock)
        self.reminders = Reminders(self.money, self.store, door, clock)
        audit = Audit(door, clock=clock, new_id=new_id)
        self.manual = Manual(
            self.store,
            self.money,
            self.subscriptions,
            plans,
            self.ledger,
            audit=audit,
            grace=GRACE,
            clock=clock,
            new_id=new_id,
        )

    async def _want(self, tx: Tx, objects: Sequence[tuple[str, str]]) -> None:
        del tx
        self.wanted += objects

    async def user(self, customer: str | None = "cus_1") -> UUID:
        user_id = uuid4()
        added = text("""insert into customers (user_id, email, stripe_id, created_at)
            values (:user_id, 'a@example.org', cast(:customer as text), :at)""")
        async with self.database.transaction() as tx:
            await tx.execute(added, user_id=user_id, customer=customer, at=NOW)
        return user_id

    async def hear_of(self, customer: str, user_id: UUID | None = None) -> None:
        """Have what Stripe says of a customer: nobody's, or a user's who was deleted there since."""
        heard = text("""insert into stripe_objects (kind, id, user_id, deleted, fetched_at, changed_at)
            values ('customer', :customer, cast(:user_id as uuid), true, :at, :at)""")
        async with self.database.transaction() as tx:
            await tx.execute(heard, customer=customer, user_id=user_id, at=NOW)

    async def run(self, use_case: Callable[[Tx], Awaitable[Sequence[Event]]]) -> list[Event]:
        async with self.database.transaction() as tx:
            return list(await use_case(tx))

    async def apply(self, kind: str, obj: dict[str, Any] | None, object_id: str | None = None) -> list[Event]:
        """Apply an object, as the worker does that fetched it."""
        (applier,) = self.appliers.of(kind)
        return await self.run(lambda tx: applier(tx, obj, object_id or (obj or {})["id"]))

    async def become(self, user_id: UUID, state: State, subscription_id: UUID | None = None) -> list[Event]:
        async def change(tx: Tx) -> Sequence[Event]:
            await self.store.lock_user(tx, user_id)
            return await self.subscriptions.become(tx, user_id, state, subscription_id)

        return await self.run(change)

    async def subscribed(self, user_id: UUID, start: datetime = NOW, subscription: str = "sub_1") -> list[Event]:
        """Have Stripe's subscription of a month."""
        state = State("stripe", subscription, "pro", "active", start, start + 30 * DAY)
        return await self.become(user_id, state)

    async def allowed(self, user_id: UUID) -> Sequence[str]:
        async with self.database.read() as tx:
            found: Sequence[str] = (await self.subscriptions.shown(tx, user_id))["entitlements"]
        return found

    async def rows(self, query: str) -> list[Row]:
        async with self.database.read() as tx:
            return await tx.fetch(text(query))

    async def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what was told through the door, in order: the event's name and its body."""
        rows = await self.rows("select headers, value from outbox order by id")
        return [(_TYPE.findall(row["headers"])[0].decode(), json.loads(row["value"])) for row in rows]

    async def balances(self) -> dict[tuple[str, str], int]:
        """Return what each account holds, by account and currency."""
        async with self.database.read() as tx:
            rows = await self.ledger_store.balances(tx)
        return {(row["account"], row["currency"]): int(row["amount"]) for row in rows}


class Client:
    """Payment over HTTP, as main builds it, not started."""

    def __init__(self, bench: Bench, http: httpx.AsyncClient, signer: Signer) -> None:
        self.bench, self._http, self._signer, self.admin = bench, http, signer, uuid4()

    async def __call__(self, method: str, path: str, *, role: Any = "admin", **more: Any) -> httpx.Response:
        token = self._signer.sign(Identity(self.admin, role), audience="payment", request_id="r1")
        headers = {HEADER: token, **more.pop("headers", {})}
        return await self._http.request(method, path, headers=headers, **more)


@asynccontextmanager
async def served(bench: Bench, database_url: str) -> AsyncGenerator[Client]:
    """Serve payment over HTTP in this process."""
    environment = Environment(SharedSettings(database_url=database_url), bench.clock)
    service = build(environment)
    signer = Signer(environment.settings.identity_secret.get_secret_value(), bench.clock)
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
        yield Client(bench, http, signer)
    await service.db.close()

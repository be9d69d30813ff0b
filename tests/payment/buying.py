"""Buying and changing a plan on a real database and a stand-in for Stripe, reached through Stripe's own library."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from services.payment.adapters.stripe_api import StripeApi
from services.payment.domain.plans import Plan, Plans
from services.payment.domain.returns import Returns
from services.payment.domain.subscriptions import State
from services.payment.service.audit import Actor, Audit
from services.payment.service.calls import Calls
from services.payment.service.catalogue import Catalogue
from services.payment.service.changes import Changes
from services.payment.service.checkout import Checkouts, Session, Wish
from services.payment.service.customers import Customers
from services.payment.service.doubles import Doubles
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.calls import CallStore
from services.payment.store.customers import CustomerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import new_id
from shared.contracts.api import UserSignedUp
from shared.db import Database, Row, Tx
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.work import Worker
from tests.conftest import ManualClock, eventually
from tests.fakes.stripe import FakeStripe

OURS = "https://app.openbell.example"


def plans_of(fake: FakeStripe) -> Plans:
    """The plans that the tests sell; `paper` is not sold by card."""
    prices = {"pro": fake.price(2900)["id"], "max": fake.price(5900)["id"], "pro-year": None, "paper": None}
    prices["pro-year"] = fake.price(29000, interval="year")["id"]
    about: dict[str, dict[str, Any]] = {
        "pro": {"price_usd": Decimal(29), "trial_days": 7},
        "max": {"price_usd": Decimal(59)},
        "pro-year": {"price_usd": Decimal(290), "period": "year"},
        "paper": {"price_usd": Decimal(58)},
    }
    return Plans(
        Plan(name=name, title=name.title(), entitlements=(name,), stripe_price=prices[name], **more)
        for name, more in about.items()
    )


class Shop:
    """The service's parts as main wires them, with a clock that moves when told. Its replicas share a database."""

    def __init__(self, database: Database, fake: FakeStripe, clock: ManualClock, *, wait_s: float = 20.0) -> None:
        self.database, self.fake, self.clock = database, fake, clock
        self.door = Door(database, Outbox("payment", lambda: None))
        self.marked: list[tuple[str, str]] = []
        self.api = StripeApi(fake.key, base=fake.url, timeout_s=1.0)
        self.plans = plans_of(fake)
        self.catalogue = Catalogue(self.plans, MirrorStore())
        self.store = SubscriptionStore()
        self.audit = Audit(self.door, clock=clock, new_id=new_id)
        self.calls = Calls(self.api, CallStore(), self.door, mark=self._mark, clock=clock, new_id=new_id, wait_s=wait_s)
        self.subscriptions = Subscriptions(self.store, self.catalogue, clock=clock, new_id=new_id)
        kit: Any = {"door": self.door, "audit": self.audit}
        self.doubles = Doubles(self.calls, MirrorStore(), self.store, self.subscriptions, **kit)
        kit |= {"clock": clock, "calls": self.calls}
        self.customers = Customers(CustomerStore(), self.store, **kit)
        returns = Returns([OURS], f"{OURS}/account")
        self.checkouts = Checkouts(self.catalogue, returns, self.store, self.customers, new_id=new_id, **kit)
        self.changes = Changes(self.subscriptions, self.store, self.catalogue, **kit)
        self.worker = Worker(self.calls.work(), self.door, clock, draw=lambda: 0.5)
        self.calls.wake = self.worker.wake

    async def _mark(self, tx: Tx, kind: str, object_id: str) -> None:
        tx.after_commit(lambda: self.marked.append((kind, object_id)))

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Shop"]:
        """Let the worker run."""
        working = asyncio.create_task(self.worker.run())
        try:
            yield self
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            await self.api.close()

    def pass_time(self, seconds: float) -> None:
        """Move our clock and Stripe's."""
        self.clock.advance(seconds)
        self.fake.advance(seconds=seconds)
        self.worker.wake()

    async def sign_up(self, user_id: UUID | None = None, email: str | None = None) -> UUID:
        """Tell of a new user, or of the address that one has now."""
        user_id = user_id or uuid4()
        email = email or f"{user_id.hex[:8]}@example.org"
        event = UserSignedUp(id=uuid4(), time=self.clock(), user_id=user_id, email=email, role="user")
        await self.door.publish(lambda tx: self.customers.signed_up(event, tx))
        return user_id

    async def buyer(self) -> UUID:
        """Return a user whom Stripe knows."""
        user_id = await self.sign_up()
        await self.idle()
        assert await self.customers.known(user_id) is not None
        return user_id

    async def begin(self, user_id: UUID, plan: str = "max", **wish: Any) -> Session:
        """Begin a checkout."""
        return await self.checkouts.begin(Actor(user_id), Wish(plan, **wish))

    async def subscriber(self, plan: str = "max") -> tuple[UUID, str]:
        """Return a user who pays for a plan at Stripe, and the subscription's id there."""
        user_id = await self.buyer()
        session = await self.begin(user_id, plan)
        assert self.fake.complete(session.id)
        subscription = self.fake.get("checkout.session", session.id)["subscription"]
        await self.follow(user_id, subscription)
        return user_id, subscription

    async def follow(self, user_id: UUID, subscription: str) -> None:
        """Make our state what Stripe says, as a refresh does."""
        said = self.fake.get("subscription", subscription)
        item = said["items"]["data"][0]
        plan = self.plans.of_price(item["price"]["id"])
        assert plan is not None
        state = State(
            "stripe",
            subscription,
            plan.name,
            said["status"],
            period_end=datetime.fromtimestamp(item["current_period_end"], UTC),
            cancel_at_period_end=said["cancel_at_period_end"],
        )
        await self.have(user_id, state)

    async def bought_by_hand(self, customer: str, plan: str) -> str:
        """Let somebody make a session in the dashboard a minute later, which the customer pays; its subscription."""
        self.pass_time(60)
        line = {"price": self.plans[plan].stripe_price, "quantity": 1}
        wish = {"mode": "subscription", "customer": customer, "line_items": [line], "success_url": OURS}
        session = await self.api.write("checkout/sessions", wish, key=f"by-hand/{plan}")
        assert self.fake.complete(session["id"])
        return str(self.fake.get("checkout.session", session["id"])["subscription"])

    async def suspect(self, user_id: UUID, customer: str, subscription: str = "sub_any") -> None:
        """Have a customer's subscriptions looked at."""

        async def order(tx: Tx) -> Sequence[Any]:
            await self.doubles.suspect(tx, user_id, customer, subscription)
            return ()

        await self.door.publish(order)

    async def have(self, user_id: UUID, state: State, subscription_id: UUID | None = None) -> None:
        """Give a user a subscription."""

        async def become(tx: Tx) -> Sequence[Any]:
            await self.store.lock_user(tx, user_id)
            return await self.subscriptions.become(tx, user_id, state, subscription_id)

        await self.door.publish(become)

    async def rows(self, statement: str, **params: Any) -> list[Row]:
        """Return rows."""
        async with self.database.read() as tx:
            return await tx.fetch(text(statement), **params)

    async def ordered(self, kind: str) -> list[Row]:
        """Return the calls of a kind, in the order of their keys."""
        return await self.rows("select * from stripe_calls where kind = :kind order by key", kind=kind)

    async def uncertain(self, kind: str) -> bool:
        """Whether a call of the kind waits, and nobody knows what came of it."""
        return any(row["uncertain"] and row["status"] == "pending" for row in await self.ordered(kind))

    async def idle(self) -> None:
        """Wait until no call is on its way."""

        async def none() -> bool:
            return not await self.rows("select id from stripe_calls where status in ('pending', 'claimed', 'started')")

        await eventually(none)

    async def audited(self) -> list[dict[str, Any]]:
        """Return what was audited, oldest first."""
        rows = await self.rows("select value from outbox where topic = 'api.audit' order by id")
        return [json.loads(row["value"]) for row in rows]

    def sent(self, method: str, path: str) -> list[Any]:
        """Return the requests that reached Stripe."""
        return [one for one in self.fake.requests if one.method == method and one.path == f"/v1/{path}"]

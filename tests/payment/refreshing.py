"""The way from a hint to our state on a real database, with Stripe's stand-in behind the real client."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
from sqlalchemy import text

from services.payment.adapters.stripe_api import StripeApi, StripeWebhooks
from services.payment.domain.plans import Plan, Plans
from services.payment.domain.stripe import hint_of
from services.payment.service.apply import Apply
from services.payment.service.catalogue import Catalogue, PriceChanges
from services.payment.service.intake import Intake
from services.payment.service.refresh import Appliers, Refresh
from services.payment.service.subscriptions import Subscriptions
from services.payment.service.sweep import Sweep
from services.payment.store.customers import CustomerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.refreshes import RefreshStore
from services.payment.store.subscriptions import SubscriptionStore
from services.payment.store.webhooks import WebhookStore
from services.payment.workers.refresh import Refreshing
from shared.clock import new_id
from shared.contracts.base import Event
from shared.contracts.payment import WebhookReceived
from shared.db import Database, Row, Tx
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.messaging.record import unpack_headers
from shared.work import Worker
from tests.conftest import ManualClock
from tests.fakes.stripe import FakeStripe

PRICE = "price_pro"
GRACE = timedelta(days=7)
Json = dict[str, Any]


class Bench:
    """Payment's way of an object of Stripe's, wired as main does; its clock is Stripe's."""

    def __init__(self, database: Database, fake: FakeStripe) -> None:
        self.database, self.fake = database, fake
        self.clock = ManualClock(datetime.fromtimestamp(fake.now, UTC))
        self.door = Door(database, Outbox("payment", lambda: None))
        self.carried: set[str] = set()
        self.stripe = StripeApi(fake.key, base=fake.url)
        plan = Plan(name="pro", title="Pro", price_usd="29", entitlements=("pro",), stripe_price=PRICE)  # pyright: ignore[reportArgumentType] - pydantic reads it
        store, mirror, refreshes = SubscriptionStore(), MirrorStore(), RefreshStore(new_id)
        self.mirror = mirror
        catalogue = Catalogue(Plans([plan]), mirror)
        self.appliers = Appliers()
        self.refresh = Refresh(
            refreshes, mirror, store, self.appliers, clock=self.clock, new_id=new_id, wake=lambda: None
        )
        subscriptions = Subscriptions(store, catalogue, clock=self.clock, new_id=new_id)
        applying = Apply(
            subscriptions,
            store,
            CustomerStore(),
            mirror,
            self.refresh,
            catalogue=catalogue,
            grace=GRACE,
            clock=self.clock,
        )
        applying.register(self.appliers)
        self.appliers.on("price", PriceChanges(mirror, self.refresh).price)
        self.refreshing = Refreshing(self.stripe, self.refresh, self.door)
        self.worker = self.another_worker()
        intake = Intake(StripeWebhooks([fake.webhook_secret]), WebhookStore(), self.door, self.clock)
        self.sweep = Sweep(self.stripe, intake, self.refresh, mirror, door=self.door, clock=self.clock)
        fake.price(2900, price_id=PRICE)

    def another_worker(self) -> Worker:
        return Worker(self.refreshing.work(8), self.door, self.clock, draw=lambda: 0.0)

    # --- Stripe's side --------------------------------------------------------------------------

    def call(self, method: str, path: str, **params: Any) -> Json:
        with self.fake.wire.lock:
            return self.fake.api.call(method, path, params)

    async def user(self, *, linked: bool = True) -> tuple[UUID, str]:
        """Return a user whom we know, and their customer at Stripe, with a card that pays."""
        user_id = uuid4()
        customer = self.call("POST", "/v1/customers", email="a@example.org", metadata={"user_id": str(user_id)})["id"]
        self.fake.set_card(customer, self.fake.card())
        await self.know(user_id, customer if linked else None)
        return user_id, customer

    async def know(self, user_id: UUID, customer: str | None) -> None:
        stripe_id = f"'{customer}'" if customer else "null"
        await self.execute(
            "insert into customers (user_id, email, stripe_id, created_at) "
            f"values ('{user_id}', 'a@example.org', {stripe_id}, now())"
        )

    def subscribe(self, customer: str, **more: Any) -> str:
        made = self.call("POST", "/v1/subscriptions", customer=customer, items=[{"price": PRICE}], **more)
        return made["id"]

    def advance(self, **how: float) -> None:
        """Move both clocks."""
        self.fake.advance(**how)
        self.clock.now = datetime.fromtimestamp(self.fake.now, UTC)

    # --- our side -------------------------------------------------------------------------------

    async def hint(self, *events: Json) -> None:
        """Hand events to the consumer, as Kafka would."""
        await self.door.publish(lambda tx: self.refresh.note([_received(one) for one in events], tx))

    async def settle(self) -> None:
        """Let the worker work until nothing is due now."""
        while await self.one("select count(*) from refreshes where status = 'pending' and due_at <= :now"):
            await self.worker.turn()
            await self.worker.idle()

    async def told(self, kind: str = "") -> list[tuple[str, Json]]:
        """Return (type, body) of what was told so far, oldest first."""
        rows = await self.rows("select * from outbox order by id")
        told = [((dict(unpack_headers(row["headers"]))[b"ce_type"] or b"").decode(), row["value"]) for row in rows]
        return [(name, _json(body)) for name, body in told if name.startswith(kind)]

    async def states(self) -> list[str]:
        """Return the statuses of the subscriptions that were told, oldest first."""
        return [body["status"] for _, body in await self.told("payment.subscription")]

    async def subscription(self, subscription_id: str) -> Row | None:
        rows = await self.rows(f"select * from subscriptions where provider_id = '{subscription_id}'")
        return rows[0] if rows else None

    async def refreshed(self, object_id: str) -> Row:
        (row,) = await self.rows(f"select * from refreshes where object_id = '{object_id}'")
        return row

    def fetches(self, path: str) -> int:
        """Return how many times Stripe was asked for this."""
        return sum(one.method == "GET" and one.path == f"/v1/{path}" for one in self.fake.requests)

    async def rows(self, statement: str) -> list[Row]:
        async with self.database.read() as tx:
            return await tx.fetch(text(statement))

    async def one(self, statement: str) -> Any:
        async with self.database.read() as tx:
            return await tx.fetchval(text(statement), **({"now": self.clock()} if ":now" in statement else {}))

    async def execute(self, statement: str) -> None:
        async with self.database.transaction() as tx:
            await tx.execute(text(statement))

    async def close(self) -> None:
        await self.stripe.close()
        await self.fake.close()


def on(bench: Bench, kind: str, act: Callable[[Tx, Any, str], Awaitable[Sequence[Event]]]) -> None:
    """Let something happen whenever an object of a kind is applied."""

    async def applier(tx: Tx, told: Any, object_id: str) -> list[Event]:
        return list(await act(tx, told, object_id))

    bench.appliers.on(kind, applier)


def _received(event: Json) -> WebhookReceived:
    hint = hint_of(event)
    about = {"event_id": hint.event_id, "event_type": hint.event_type, "customer": hint.customer}
    named = {"object_kind": hint.object_kind, "object_id": hint.object_id}
    at = {"time": hint.created, "created": hint.created}
    return WebhookReceived(id=uuid4(), provider="stripe", livemode=False, **about, **named, **at)  # pyright: ignore[reportArgumentType] - mixed


def _json(body: bytes | str) -> Json:
    return orjson.loads(body)

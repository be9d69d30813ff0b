"""SIGKILL of the payment process anywhere between a webhook and what it entitles to: it converges, nothing twice."""

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from deploy.local.kafka import RunningKafka
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.fakes.stripe import FakeStripe, Fault
from tests.flows.stack import ServiceProcess, partitions
from tests.payment.lives import Life

GATE = 78  # an advisory lock that the test holds while the process must not go on
STRIPE = "asking Stripe"
POINTS = {
    "before the webhook is kept": "before insert on payment.webhooks for each row",
    "after the webhook was sent on, before that is noted": "before delete on payment.outbox for each statement",
    "before the hint is noted": "before insert on payment.refreshes for each row",
    "before the fetch": "before update on payment.refreshes for each row when (new.status = 'started')",
    STRIPE: "",
    "before what Stripe said is kept": "before insert on payment.stripe_objects for each row",
    "before the subscription is": "before insert on payment.subscriptions for each row",
    "before it is told": "before insert on payment.outbox for each row when (new.topic = 'payment.subscriptions')",
    "before it is settled": "before update on payment.refreshes for each row when (new.status = 'done')",
}


@dataclass
class Killable:
    """The payment service as a process, its database, and its Stripe."""

    process: ServiceProcess
    admin: asyncpg.Connection
    fake: FakeStripe
    settings: SharedSettings
    http: httpx.AsyncClient

    async def subscribes(self) -> tuple[Life, list[dict[str, Any]]]:
        """Make a user who pays; return the webhooks of it."""
        user_id = uuid4()
        await self.admin.execute("insert into payment.customers values ($1, 'a@example.com', null, now())", user_id)
        before = len(self.fake.events)
        life = Life(self.fake, user_id, "")
        life.begin()
        life.buy()
        return life, self.fake.events[before:]

    async def post(self, events: list[dict[str, Any]]) -> None:
        """Post webhooks as Stripe does: whatever is not answered with 200 comes again."""
        for event in events:
            body, headers = self.fake.signed(event)
            with contextlib.suppress(httpx.HTTPError):
                answer = await self.http.post("/pay/webhooks/stripe", content=body, headers=headers)
                if answer.status_code == 200:
                    self.fake.delivered(event["id"])

    async def close_gate(self, point: str) -> None:
        await self.admin.execute(f"select pg_advisory_lock({GATE})")
        row = "old" if "delete" in POINTS[point] else "new"
        await self.admin.execute(
            f"""
            create or replace function payment.hold() returns trigger language plpgsql security definer as $$
            begin perform pg_advisory_xact_lock_shared({GATE}); return {row}; end $$;
            """
        )
        when, _, rest = POINTS[point].partition(" when ")
        condition = f" when {rest}" if rest else ""
        await self.admin.execute(f"create trigger hold {when}{condition} execute function payment.hold()")

    async def open_gate(self, point: str) -> None:
        await self.admin.execute(f"select pg_advisory_unlock({GATE})")
        table = next(word for word in POINTS[point].split() if word.startswith("payment."))
        await self.admin.execute(f"drop trigger hold on {table}")

    async def stuck(self) -> bool:
        held = "select 1 from pg_locks where locktype = 'advisory' and objid = $1 and not granted"
        return bool(await self.admin.fetch(held, GATE))

    async def asking(self) -> bool:
        return any(request.status == 0 for request in self.fake.requests)

    async def told(self, topic: str) -> list[tuple[str, bytes]]:
        """Return (id, body) of what lies in a topic."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            parts = partitions(topic)
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            found: list[tuple[str, bytes]] = []
            for part, end in ends.items():
                while await consumer.position(part) < end:
                    for records in (await consumer.getmany(part, timeout_ms=500)).values():
                        found += [(dict(record.headers)["ce_id"].decode(), record.value or b"") for record in records]
        finally:
            await consumer.stop()
        return found


@pytest.fixture
async def killable(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, tmp_path: Path
) -> AsyncGenerator[Killable]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with FakeStripe(int(time.time())) as fake:
        product = fake.price(2900, price_id="price_pro")["product"]
        fake.feature(product, "pro")
        env = {
            **os.environ,
            "OPENBELL_DATABASE_URL": settings.database_url,
            "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "OPENBELL_KAFKA_STATIC_MEMBERS": str(settings.kafka_static_members),
            "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
            "OPENBELL_HTTP_PORT": str(port),
            "OPENBELL_PAYMENT_STRIPE_KEY": fake.key,
            "OPENBELL_PAYMENT_STRIPE_BASE": fake.url,
            "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS": fake.webhook_secret,
            "OPENBELL_PAYMENT_PLANS": '[{"name":"pro","title":"Pro","price_usd":"29","entitlements":["pro"],'
            '"stripe_price":"price_pro"}]',
        }
        process = ServiceProcess(env, tmp_path / "payment.log", "services.payment")
        admin = await asyncpg.connect(database_url)
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        try:
            await process.start()
            await process.ready()
            yield Killable(process, admin, fake, settings, http)
        finally:
            await process.stop()
            await http.aclose()
            await admin.close()
            gc.collect()  # what the kills cut in two is found here, and in no later test


@pytest.mark.apache  # each life is a member that has to be noticed dead
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests that a kill cut in two
@pytest.mark.timeout(900)
async def test_a_kill_anywhere_between_webhook_and_entitlement_loses_and_doubles_nothing(killable: Killable) -> None:
    users: list[UUID] = []
    for point in POINTS:
        life, webhooks = await killable.subscribes()
        users.append(life.user_id)
        if point == STRIPE:
            killable.fake.fail("GET", "/v1/subscriptions/.*", Fault(0))
        else:
            await killable.close_gate(point)
        posting = asyncio.create_task(killable.post(webhooks))
        await eventually(killable.asking if point == STRIPE else killable.stuck, 120)
        await killable.process.kill()
        await posting
        if point != STRIPE:
            await killable.open_gate(point)
        late = "update payment.refreshes set lease_until = now() - interval '1 second' where lease_until is not null"
        await killable.admin.execute(late)
        await killable.process.start()
        await killable.process.ready()
        await killable.post(webhooks)

        async def entitled(user_id: UUID = life.user_id) -> bool:
            found = "select told -> 'entitlements' = '[\"pro\"]' as pro from payment.subscriptions where user_id = $1"
            return [row["pro"] for row in await killable.admin.fetch(found, user_id)] == [True]

        async def settled() -> bool:
            left = "select 1 from payment.refreshes where status in ('pending', 'claimed', 'started')"
            sent = "select 1 from payment.outbox"
            return not await killable.admin.fetch(left) and not await killable.admin.fetch(sent)

        await eventually(entitled, 120)
        await eventually(settled, 120)

    rows = await killable.admin.fetch("select user_id, status, version from payment.subscriptions")
    assert Counter(row["user_id"] for row in rows) == Counter(users)
    assert {(row["status"], row["version"]) for row in rows} == {("active", 1)}
    assert await killable.admin.fetch("select 1 from payment.failed_jobs") == []
    changes = await killable.told("payment.subscriptions")
    assert len({event_id for event_id, _ in changes}) == len(POINTS)
    assert len({body for _, body in changes}) == len(POINTS)
    kept = await killable.admin.fetch("select event_id from payment.webhooks")
    assert len(kept) == len({row["event_id"] for row in kept})

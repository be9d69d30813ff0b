"""The payment service as a process that tests kill, and a gate in its database that holds it where it is to die."""

import contextlib
import gc
import json
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer

from shared.settings import SharedSettings
from tests.fakes.stripe import FakeStripe
from tests.flows.stack import ServiceProcess, partitions
from tests.payment.inprocess import PLANS
from tests.payment.lives import Life

GATE = 78  # an advisory lock that the test holds while the process must not go on


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

    async def close_gate(self, trigger: str) -> None:
        """Let no row past this (`before insert on payment.webhooks for each row`) until the gate is opened."""
        await self.admin.execute(f"select pg_advisory_lock({GATE})")
        row = "old" if "delete" in trigger else "new"
        await self.admin.execute(
            f"""
            create or replace function payment.hold() returns trigger language plpgsql security definer as $$
            begin perform pg_advisory_xact_lock_shared({GATE}); return {row}; end $$;
            """
        )
        await self.admin.execute(f"create trigger hold {trigger} execute function payment.hold()")

    async def open_gate(self, trigger: str) -> None:
        """Open it, when whoever waited there is dead."""
        await self.admin.execute(f"select pg_advisory_unlock({GATE})")
        table = next(word for word in trigger.split() if word.startswith("payment."))
        await self.admin.execute(f"drop trigger hold on {table}")

    async def stuck(self) -> bool:
        """Whether somebody waits at the gate."""
        held = "select 1 from pg_locks where locktype = 'advisory' and objid = $1 and not granted"
        return bool(await self.admin.fetch(held, GATE))

    async def asking(self) -> bool:
        """Whether a request to Stripe is not answered."""
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


@asynccontextmanager
async def killable_payment(settings: SharedSettings, database_url: str, tmp_path: Path) -> AsyncGenerator[Killable]:
    """Run it until the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with FakeStripe(int(time.time())) as fake:
        for plan in PLANS:
            cents = int(str(plan["price_usd"])) * 100
            fake.feature(fake.price(cents, price_id=str(plan["stripe_price"]))["product"], str(plan["name"]))
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
            "OPENBELL_PAYMENT_PLANS": json.dumps(PLANS),
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

"""A probe service for the runtime's tests: one schema, one consumer, events of its own on topics of its own."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from time import monotonic
from typing import Any, ClassVar

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sqlalchemy import text

from shared import migrate
from shared.clock import Clock, utc_now
from shared.contracts.base import Event
from shared.contracts.topics import AUDIT, Topic, dead_letter_topic
from shared.db import Database, Tx
from shared.messaging import inbox, tables
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.delivery import Delivery
from shared.messaging.door import Door
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.lane import Lanes
from shared.messaging.ops import FailedJobs, runs_table
from shared.messaging.outbox import Outbox
from shared.messaging.record import Headers, headers_of
from shared.messaging.relay import Relay
from shared.messaging.retry import Retries

INSERT = text("insert into effects (account, n) values (:account, :n)")
FAST = Policy(delays_s=(0.1, 0.2, 0.3), not_yet_delays_s=(0.1,) * 20, probe_every_s=0.3)


class Deposited(Event):
    """The event of these tests; each probe makes a subclass with a topic of its own."""

    type: ClassVar[str] = "probe.account.deposited.v1"
    topic: ClassVar[Topic]

    account: str
    n: int

    @property
    def key(self) -> str:
        return self.account


Handler = Callable[[Any, Tx], Awaitable[Sequence[Event]]]


class _Statements:
    def __init__(self) -> None:
        self.all: list[str] = []

    def execute(self, sqltext: str) -> None:
        self.all.append(sqltext)


async def make_schema(admin_url: str) -> None:
    """Make the schema `probe` with the messaging tables and a table of effects."""
    await migrate.prepare(admin_url, ["probe"])
    statements = _Statements()
    tables.create(statements)
    tables.add_cluster(statements)
    runs_table.create_table(statements)
    admin = await asyncpg.connect(admin_url)
    await admin.execute("set role openbell_probe")
    await admin.execute("set search_path to probe")
    for statement in statements.all:
        await admin.execute(statement)
    await admin.execute("create table effects (id bigserial primary key, account text, n int)")
    await admin.close()


@dataclass
class Replica:
    """One running copy of the probe service."""

    probe: "Probe"
    delivery: Delivery
    retries: Retries
    relay: Relay
    fuse: Fuse
    lanes: Lanes
    db: Database
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def stop(self) -> None:
        """Stop as a service does."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.db.close()


class Probe:
    """Topics, events and ways to look at what became of them."""

    def __init__(self, admin_url: str, address: KafkaAddress, partitions: int = 2) -> None:
        run = uuid.uuid4().hex[:8]
        topic = Topic(f"probe.deposits-{run}", partitions=partitions)
        self.event: type[Deposited] = type("TestDeposited", (Deposited,), {"topic": topic, "__module__": __name__})
        self.topic = topic
        self.name = f"probe.ledger-{run}"
        self.address = address
        self.url = admin_url.replace("//postgres@", "//openbell_probe@")
        self.db = Database(self.url, schema="probe", size=4)
        self.failed_jobs = FailedJobs("probe", lambda: datetime.now(UTC))
        self.replicas: list[Replica] = []
        self.producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, max_request_size=16_000_000)

    async def open(self) -> None:
        async with self.db.transaction() as tx:
            await inbox.roll(tx, datetime.now(UTC))
        await ensure_topics(self.address, [self.topic, dead_letter_topic(self.name), AUDIT])
        await self.producer.start()

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.stop()
        await self.producer.stop()
        await self.db.close()

    def start(
        self,
        handler: Handler,
        *,
        batch: bool = False,
        policy: Policy = FAST,
        member: str = "static",
        clock: Clock = utc_now,
    ) -> Replica:
        """Run a replica whose consumer hands deposits to `handler`."""
        db = Database(self.url, schema="probe", size=12)
        relay = Relay("probe", db, self.address)
        outbox = Outbox("probe", relay.wake)
        consumer = Consumer(self.name, policy)
        (consumer.on_batch if batch else consumer.on)(self.event, handler)
        fuse = Fuse(self.name, policy, monotonic)
        lanes = Lanes(consumer, db, outbox, fuse, clock, Random(1))
        delivery = Delivery(consumer, self.address, member, db, lanes, fuse, clock)
        retries = Retries(consumer, db, outbox, lanes, fuse, clock, Random(2))
        replica = Replica(self, delivery, retries, relay, fuse, lanes, db)
        replica.tasks = [asyncio.create_task(runner.run()) for runner in (relay, delivery, retries)]
        self.replicas.append(replica)
        return replica

    def make(self, account: str, n: int, **envelope: Any) -> Deposited:
        fields: dict[str, Any] = {"id": uuid.uuid4(), "time": datetime.now(UTC), "account": account, "n": n}
        return self.event(**fields | envelope)

    async def send(self, event: Deposited, headers: Headers | None = None, **changes: Any) -> tuple[int, int]:
        """Put an event into Kafka as the relay would; return (partition, offset)."""
        pairs = headers_of(event, "/test") if headers is None else headers
        sent = await self.producer.send_and_wait(
            self.topic.name,
            **{
                "key": event.key.encode(),
                "value": event.to_bytes(),
                "headers": [(name.decode(), value) for name, value in pairs],
            }
            | changes,
        )
        return sent.partition, sent.offset

    async def effects(self, account: str | None = None) -> list[int]:
        async with self.db.read() as tx:
            rows = await tx.fetch(text("select account, n from effects order by id"))
        return [row["n"] for row in rows if account in {None, row["account"]}]

    async def jobs(self, *statuses: str) -> list[dict[str, Any]]:
        async with self.db.read() as tx:
            found = await self.failed_jobs.page(
                tx, statuses=statuses or ("waiting", "held", "dead", "resolved", "discarded"), limit=500
            )
        return found[::-1]

    async def act(self, use_case: Callable[[Tx], Awaitable[Any]]) -> Any:
        """Run an operator's use case."""
        return await Door(self.db, Outbox("api", lambda: None)).run(use_case)

    async def read_topic(self, topic: str, count: int) -> list[Any]:
        """Return the first records of a topic, all partitions, in order within each."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.address.bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        found: list[Any] = []
        try:
            parts = [TopicPartition(topic, number) for number in await self.producer.partitions_for(topic)]
            consumer.assign(parts)
            async with asyncio.timeout(20):
                while len(found) < count:
                    for records in (await consumer.getmany(timeout_ms=200)).values():
                        found.extend(records)
        finally:
            await consumer.stop()
        return found


@contextlib.asynccontextmanager
async def probing(admin_url: str, address: KafkaAddress, partitions: int = 2) -> AsyncGenerator[Probe]:
    """Open a probe; close it and its replicas at the end."""
    probe = Probe(admin_url, address, partitions)
    await probe.open()
    try:
        yield probe
    finally:
        await probe.close()


async def record_effect(event: Deposited, tx: Tx) -> list[Event]:
    """The simplest handler: one row, nothing told."""
    await tx.execute(INSERT, account=event.account, n=event.n)
    return []


def long_ago() -> datetime:
    """A time that the inbox no longer remembers."""
    return datetime.now(UTC) - timedelta(days=40)

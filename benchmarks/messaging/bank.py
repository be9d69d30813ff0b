"""What the messaging benchmarks share: a bank's events, its handlers, its schema, and a replica of its service."""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, ClassVar, Final

import asyncpg
from aiokafka import AIOKafkaProducer
from sqlalchemy import text

from benchmarks import stack
from deploy.local import kafka, postgres
from shared import migrate
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Database, Tx
from shared.messaging import inbox, tables
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.delivery import Delivery
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.lane import Lanes
from shared.messaging.outbox import Outbox
from shared.messaging.record import headers_of
from shared.messaging.relay import Relay
from shared.messaging.retry import Retries

PARTITIONS: Final = 4
UPSERT: Final = text(
    """
    insert into bench.effects (account, n) values (:account, :n)
    on conflict (account) do update set n = excluded.n
    """
)
UPSERT_MANY: Final = text(
    """
    insert into bench.effects (account, n)
    select distinct on (account) account, n
    from unnest(cast(:accounts as text[]), cast(:numbers as int[])) with ordinality as given(account, n, place)
    order by account, place desc
    on conflict (account) do update set n = excluded.n
    """
)


class Deposited(Event):
    """What arrives."""

    type: ClassVar[str] = "bench.account.deposited.v1"
    topic: ClassVar[Topic] = Topic("bench.deposits", partitions=PARTITIONS)

    account: str
    n: int

    @property
    def key(self) -> str:
        """The account."""
        return self.account


class Noted(Deposited):
    """What is told for each."""

    type: ClassVar[str] = "bench.account.noted.v1"
    topic: ClassVar[Topic] = Topic("bench.notes", partitions=PARTITIONS)


Handler = Callable[[Any, Tx], Awaitable[Sequence[Event]]]


async def record(event: Deposited, tx: Tx) -> Sequence[Event]:
    """One upsert and one event."""
    await tx.execute(UPSERT, account=event.account, n=event.n)
    return [Noted.caused_by(event, account=event.account, n=event.n)]


async def record_many(events: Sequence[Deposited], tx: Tx) -> Sequence[Event]:
    """One upsert for all, one event each."""
    await tx.execute(UPSERT_MANY, accounts=[event.account for event in events], numbers=[event.n for event in events])
    return [Noted.caused_by(event, account=event.account, n=event.n) for event in events]


class _Statements:
    def __init__(self) -> None:
        self.all: list[str] = []

    def execute(self, sqltext: str) -> None:
        self.all.append(sqltext)


@dataclass(frozen=True, slots=True)
class Bank:
    """Apache Kafka, and a Postgres that syncs, with the bank's schema."""

    url: str
    address: KafkaAddress

    @asynccontextmanager
    async def database(self) -> AsyncGenerator[Database]:
        """Open the schema, empty."""
        db = Database(self.url, schema="bench", size=20)
        async with db.transaction() as tx:
            await inbox.roll(tx, now())
            await tx.execute(text("truncate effects, outbox, failed_jobs, inbox, consumer_offsets"))
        try:
            yield db
        finally:
            await db.close()

    async def topic(self) -> Topic:
        """Make a topic of our own."""
        topic = Topic(f"bench.deposits-{uuid.uuid4().hex[:8]}", partitions=PARTITIONS)
        await ensure_topics(self.address, [topic])
        return topic

    async def fill(self, topic: Topic, count: int, keys: int) -> None:
        """Put deposits into a topic, as the relay would."""
        producer = AIOKafkaProducer(bootstrap_servers=self.address.bootstrap, acks="all", linger_ms=5)
        await producer.start()
        try:
            for n in range(count):
                event = Deposited(id=uuid.uuid4(), time=now(), account=f"account-{n % keys}", n=n)
                await producer.send(topic.name, event.to_bytes(), event.key.encode(), headers=sendable(event))
            await producer.flush()
        finally:
            await producer.stop()

    @asynccontextmanager
    async def consuming(
        self,
        db: Database,
        topic: Topic,
        handler: Handler,
        *,
        batch: bool = False,
        policy: Policy | None = None,
        relaying: bool = False,
    ) -> AsyncGenerator[Consumer]:
        """Run one replica of the service: a consumer and its retries, and the relay where it is wanted."""
        event: type[Deposited] = type("BenchDeposited", (Deposited,), {"topic": topic})
        consumer = Consumer(f"bench.{topic.name[-8:]}", policy or Policy())
        (consumer.on_batch if batch else consumer.on)(event, handler)
        fuse = Fuse(consumer.name, consumer.policy, monotonic)
        relay = Relay("bench", db, self.address)
        outbox = Outbox("bench", relay.wake if relaying else lambda: None)
        lanes = Lanes(consumer, db, outbox, fuse, now, Random(1))
        runners = [
            Delivery(consumer, self.address, "bench", db, lanes, fuse, now),
            Retries(consumer, db, outbox, lanes, fuse, now, Random(2)),
            *([relay] if relaying else []),
        ]
        running = [asyncio.create_task(one.run()) for one in runners]
        try:
            yield consumer
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


@contextmanager
def open_bank() -> Generator[Bank]:
    """Start the servers and make the schema; remove all of it at the end."""
    with tempfile.TemporaryDirectory(prefix="openbell-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            with (
                postgres.start(folder / "postgres", fsync=True) as database,
                kafka.resolve(folder / "kafka", "apache") as broker,
            ):
                address = KafkaAddress(broker.bootstrap)
                yield Bank(asyncio.run(_prepare(database.dsn, address)), address)
        finally:
            postgres.remove(folder / "postgres")


async def _prepare(dsn: str, address: KafkaAddress) -> str:
    await migrate.prepare(dsn, ["bench"])
    statements = _Statements()
    tables.create(statements)
    tables.add_cluster(statements)
    admin = await asyncpg.connect(dsn)
    await admin.execute("set role openbell_bench; set search_path to bench")
    for statement in statements.all:
        await admin.execute(statement)
    await admin.execute("create table effects (account text primary key, n int)")
    await admin.close()
    await ensure_topics(address, [Deposited.topic, Noted.topic])
    scheme, _, rest = dsn.partition("://")
    return f"{scheme}://openbell_bench@{rest.rpartition('@')[2]}"


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def sendable(event: Event) -> list[tuple[str, bytes | None]]:
    """Return an event's headers as a producer takes them."""
    return [(name.decode(), value) for name, value in headers_of(event, "/bench")]


async def until(done: Callable[[], Awaitable[bool]], timeout_s: float = 240) -> None:
    """Wait for what happens in Postgres."""
    await stack.until(done, timeout_s, every_s=0.01)


def row(  # noqa: PLR0917 - the columns of the table
    metric: str,
    value: float,
    unit: str,
    baseline: float | None,
    bar: float | None = None,
    goal: float | None = None,
    *,
    holds: bool | None = None,
) -> dict[str, Any]:
    """Return one line of the table; `bar` and `goal` are of the ratio unless `holds` is told."""
    if holds is None:
        holds = bar is None or (baseline is not None and value / baseline >= bar)
    return stack.row(metric, value, unit, baseline=baseline, bar=bar, goal=goal, holds=holds)

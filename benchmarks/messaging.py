"""Events a second through inbox, handler and outbox, against a plain FastStream subscriber that does much less.

Ours: exactly once, in order, one upsert an event and one event told for each (`on` and `on_batch`). The baseline: a
FastStream subscriber with AckPolicy.ACK that writes one row in one transaction a message with SQLAlchemy (async,
asyncpg) and tells nothing. Apache Kafka and Postgres with fsync, in the same run, medians of a few repetitions.

Also: statements a second through `Tx` and through SQLAlchemy's AsyncConnection (docs/adr/0005).
"""

import asyncio
import logging
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic, perf_counter
from typing import Any, ClassVar, Final

import asyncpg
from aiokafka import AIOKafkaProducer
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from deploy.local import kafka, postgres
from shared import migrate
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Database, Tx
from shared.messaging import inbox, tables
from shared.messaging.consumer import Consumer
from shared.messaging.delivery import Delivery
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.lane import Lanes
from shared.messaging.outbox import Outbox
from shared.messaging.record import headers_of

ROUNDS: Final = 3
KEYS: Final = 500
BASELINE_EVENTS: Final = 600
EVENTS: Final = 8_000
BATCH_EVENTS: Final = 16_000
STATEMENTS: Final = 3_000

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
    topic: ClassVar[Topic] = Topic("bench.deposits", partitions=4)

    account: str
    n: int

    @property
    def key(self) -> str:
        """The account."""
        return self.account


class Noted(Deposited):
    """What is told for each."""

    type: ClassVar[str] = "bench.account.noted.v1"
    topic: ClassVar[Topic] = Topic("bench.notes", partitions=4)


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


@contextmanager
def _servers() -> Generator[tuple[str, KafkaAddress]]:
    with tempfile.TemporaryDirectory(prefix="openbell-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            with (
                postgres.start(folder / "postgres", fsync=True) as database,
                kafka.resolve(folder / "kafka", "apache") as broker,
            ):
                yield database.dsn, KafkaAddress(broker.bootstrap)
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


async def _fill(address: KafkaAddress, count: int, topic: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        for n in range(count):
            event = Deposited(id=uuid.uuid4(), time=datetime.now(UTC), account=f"account-{n % KEYS}", n=n)
            headers = [(name.decode(), value) for name, value in headers_of(event, "/bench")]
            await producer.send(topic, event.to_bytes(), event.key.encode(), headers=headers)
        await producer.flush()
    finally:
        await producer.stop()


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    while not await done():  # noqa: ASYNC110 - it asks Postgres
        await asyncio.sleep(0.01)


async def _ours(url: str, address: KafkaAddress, count: int, *, batch: bool) -> float:
    """Return events a second, from the first that has taken effect to the last."""
    topic = Topic(f"bench.deposits-{uuid.uuid4().hex[:8]}", partitions=4)
    event: type[Deposited] = type("BenchDeposited", (Deposited,), {"topic": topic})
    await ensure_topics(address, [topic])
    await _fill(address, count, topic.name)
    db = Database(url, schema="bench", size=20)
    async with db.transaction() as tx:
        await inbox.roll(tx, datetime.now(UTC))
        await tx.execute(text("truncate effects, outbox"))
    consumer = Consumer(f"bench.{topic.name[-8:]}")
    if batch:
        consumer.on_batch(event, record_many)
    else:
        consumer.on(event, record)
    fuse = Fuse(consumer.name, consumer.policy, monotonic)
    lanes = Lanes(consumer, db, Outbox("bench", lambda: None), fuse, lambda: datetime.now(UTC), Random(1))
    delivery = Delivery(consumer, address, "bench", db, lanes, fuse, lambda: datetime.now(UTC))
    running = asyncio.create_task(delivery.run())

    async def told() -> int:
        async with db.read() as tx:
            return await tx.fetchval(text("select count(*) from outbox"))

    async def begun() -> bool:
        return await told() > 0

    async def finished() -> bool:
        return await told() >= count

    await _until(begun)
    before, began = await told(), perf_counter()
    await _until(finished)
    rate = (count - before) / (perf_counter() - began)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await db.close()
    return rate


async def _plain(url: str, address: KafkaAddress, count: int) -> float:
    """Return messages a second of FastStream, AckPolicy.ACK, one SQLAlchemy transaction each."""
    topic = Topic(f"bench.plain-{uuid.uuid4().hex[:8]}", partitions=4)
    await ensure_topics(address, [topic])
    await _fill(address, count, topic.name)
    engine = create_async_engine("postgresql+asyncpg://" + url.partition("://")[2])
    broker = KafkaBroker(address.bootstrap, logger=None)
    times: list[float] = []
    finished = asyncio.Event()

    @broker.subscriber(topic.name, group_id=topic.name, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    async def write(message: KafkaMessage) -> None:
        event = Deposited.from_bytes(message.body, id=uuid.UUID(message.headers["ce_id"]), time=datetime.now(UTC))
        async with engine.begin() as connection:
            await connection.execute(UPSERT, {"account": event.account, "n": event.n})
        times.append(perf_counter())
        if len(times) == count:
            finished.set()

    await broker.start()
    await finished.wait()
    await broker.stop()
    await engine.dispose()
    return (count - 1) / (times[-1] - times[0])


async def _statements(url: str) -> tuple[float, float]:
    """Return point queries a second, one connection: through Tx, through SQLAlchemy's AsyncConnection."""
    query = text("select n from bench.effects where account = :account")
    db = Database(url, schema="bench", size=1)
    async with db.transaction() as tx:
        began = perf_counter()
        for n in range(STATEMENTS):
            await tx.fetchval(query, account=f"account-{n % KEYS}")
        direct = STATEMENTS / (perf_counter() - began)
    await db.close()
    engine = create_async_engine("postgresql+asyncpg://" + url.partition("://")[2])
    async with engine.begin() as connection:
        began = perf_counter()
        for n in range(STATEMENTS):
            await connection.scalar(query, {"account": f"account-{n % KEYS}"})
        layered = STATEMENTS / (perf_counter() - began)
    await engine.dispose()
    return direct, layered


def _row(metric: str, value: float, baseline: float, bar: float | None, goal: float | None) -> dict[str, Any]:
    ratio = value / baseline
    return {
        "metric": metric,
        "value": round(value),
        "unit": "1/s",
        "baseline": round(baseline),
        "ratio": round(ratio, 2),
        "bar": bar,
        "goal": goal,
        "holds": None if bar is None else ratio >= bar,
    }


async def run() -> list[dict[str, Any]]:
    """Measure; one line for each figure."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    with _servers() as (dsn, address):
        url = await _prepare(dsn, address)
        plain: list[float] = []
        one: list[float] = []
        many: list[float] = []
        statements: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            plain.append(await _plain(url, address, BASELINE_EVENTS))
            one.append(await _ours(url, address, EVENTS, batch=False))
            many.append(await _ours(url, address, BATCH_EVENTS, batch=True))
            statements.append(await _statements(url))
    baseline = median(plain)
    direct, layered = (median(column) for column in zip(*statements, strict=True))
    return [
        _row("events through inbox, handler (on) and outbox", median(one), baseline, 5, 10),
        _row("events through inbox, handler (on_batch) and outbox", median(many), baseline, 10, 20),
        _row("point queries through Tx, against SQLAlchemy's AsyncConnection", direct, layered, 1.5, 2),
    ]


if __name__ == "__main__":
    for line in asyncio.run(run()):
        print(line)

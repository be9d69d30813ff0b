"""Events a second through inbox, handler and outbox: one at a time, in batches, and in a storm of failures.

Ours: exactly once, in order, one upsert an event and one event told for each (`on` and `on_batch`). Two baselines of
the same run, with fsync:

- plain: a FastStream subscriber with AckPolicy.ACK that writes one row in one transaction a message with SQLAlchemy
  (async, asyncpg) and tells nothing;
- bare: the limit, aiokafka's getmany, one multi-row upsert and one multi-row insert into the outbox a batch, no inbox,
  no lanes, no order against anybody else.

In a storm a share of the events, spread over the keys by chance, fails once; the rate counts until every event has
taken effect, retries included. An event fails before its handler writes, or after it ("late"); a batch handler names
those that failed (`SomeFailed`) or leaves them to be found.

Also: statements a second through `Tx` and through SQLAlchemy's AsyncConnection (docs/adr/0005).
"""

import asyncio
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.messaging.bank import (
    UPSERT,
    UPSERT_MANY,
    Bank,
    Deposited,
    Handler,
    Noted,
    now,
    record,
    record_many,
    row,
    until,
)
from shared.contracts.base import Event
from shared.db import Database, Tx, compile_statement
from shared.errors import SomeFailed, Transient
from shared.messaging import metrics
from shared.messaging.consumer import Policy
from shared.messaging.record import pack_headers

ROUNDS: Final = 3
KEYS: Final = 500
STORM_KEYS: Final = 5_000
BASELINE_EVENTS: Final = 600
EVENTS: Final = 8_000
BATCH_EVENTS: Final = 24_000
STORM_EVENTS: Final = 48_000  # so many that the delay of the last retry is a small part
STORM_BATCH_EVENTS: Final = 144_000
STATEMENTS: Final = 3_000
RETRY_SOON: Final = Policy(delays_s=(0.5, 0.5, 0.5))

_ADD_BARE: Final = (
    "insert into outbox (topic, key, value, headers) select * from unnest($1::text[], $2::bytea[], $3::bytea[],"
    " $4::bytea[])"
)


async def rate(
    bank: Bank,
    count: int,
    handler: Handler,
    *,
    batch: bool = False,
    keys: int = KEYS,
    policy: Policy | None = None,
) -> float:
    """Return events a second, from the first that has taken effect to the last."""
    topic = await bank.topic()
    await bank.fill(topic, count, keys)
    async with bank.database() as db, bank.consuming(db, topic, handler, batch=batch, policy=policy) as consumer:

        def done() -> int:
            """Of what was committed, without asking Postgres, which has enough to do."""
            ours = {"consumer": consumer.name, "outcome": "done"}
            families = [*metrics.EVENTS.collect(), *metrics.RETRIES.collect()]
            samples = [one for family in families for one in family.samples if one.name.endswith("_total")]
            return sum(int(one.value) for one in samples if one.labels == ours)

        async def begun() -> bool:
            return done() > 0

        async def finished() -> bool:
            return done() >= count

        await until(begun)
        before, began = done(), perf_counter()
        await until(finished)
        took = perf_counter() - began
        async with db.read() as tx:
            told = await tx.fetchval(text("select count(*) from outbox where topic = :topic"), topic=Noted.topic.name)
        if told != count:
            raise RuntimeError(f"{told} events were told of, {count} came")
        return (count - before) / took


@dataclass(frozen=True, slots=True)
class Storm:
    """Handlers that fail once for a share of the events: before they write, or after it when `late`."""

    said: str
    share: float
    bar: float
    batch: bool = False
    named: bool = False
    late: bool = False

    def handler(self) -> Handler:
        """Return `record` or `record_many` that fails."""
        met = set[uuid.UUID]()

        def failing(events: Sequence[Deposited]) -> list[Deposited]:
            return [one for one in events if zlib.crc32(b"%d" % one.n) < self.share * 2**32 and one.id not in met]

        async def one(event: Deposited, tx: Tx) -> Sequence[Event]:
            told = await record(event, tx) if self.late else None
            if failing([event]):
                met.add(event.id)
                raise Transient("the first time")
            return await record(event, tx) if told is None else told

        async def many(events: Sequence[Deposited], tx: Tx) -> Sequence[Event]:
            told = await record_many(events, tx) if self.late else None
            if bad := failing(events):
                if self.named or len(events) == 1:
                    met.update(event.id for event in bad)
                error = Transient("the first time")
                raise SomeFailed({event.id: error for event in bad}) if self.named else error
            return await record_many(events, tx) if told is None else told

        return many if self.batch else one


STORMS: Final = (
    Storm("5% fail once (on)", 0.05, 0.5),
    Storm("20% fail once (on)", 0.2, 0.25),
    Storm("5% fail once, late (on)", 0.05, 0.5, late=True),
    Storm("20% fail once, late (on)", 0.2, 0.25, late=True),
    Storm("5% fail once, named (on_batch)", 0.05, 0.5, batch=True, named=True),
    Storm("20% fail once, named (on_batch)", 0.2, 0.25, batch=True, named=True),
    Storm("5% fail once, not named (on_batch)", 0.05, 0.5, batch=True),
    Storm("20% fail once, not named (on_batch)", 0.2, 0.25, batch=True),
)


async def plain(bank: Bank, count: int) -> float:
    """Return messages a second of FastStream, AckPolicy.ACK, one SQLAlchemy transaction each."""
    topic = await bank.topic()
    await bank.fill(topic, count, KEYS)
    engine = create_async_engine("postgresql+asyncpg://" + bank.url.partition("://")[2])
    broker = KafkaBroker(bank.address.bootstrap, logger=None)
    times: list[float] = []
    finished = asyncio.Event()

    @broker.subscriber(topic.name, group_id=topic.name, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    async def write(message: KafkaMessage) -> None:
        event = Deposited.from_bytes(message.body, id=uuid.UUID(message.headers["ce_id"]), time=now())
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


async def bare(bank: Bank, count: int) -> float:
    """Return messages a second of getmany and two multi-row statements a batch in one transaction."""
    topic = await bank.topic()
    await bank.fill(topic, count, KEYS)
    connection = await asyncpg.connect(bank.url, server_settings={"search_path": "bench"})
    await connection.execute("truncate effects, outbox")
    upsert, _, _ = compile_statement(UPSERT_MANY)
    kafka = AIOKafkaConsumer(
        topic.name, bootstrap_servers=bank.address.bootstrap, group_id=topic.name, auto_offset_reset="earliest",
        enable_auto_commit=False,
    )  # fmt: skip
    await kafka.start()
    done, began, first = 0, 0.0, 0
    while done < count:
        batches = await kafka.getmany(timeout_ms=1000, max_records=2000)
        records = [one for some in batches.values() for one in some]
        if not records:
            continue
        bodies = [orjson.loads(one.value or b"") for one in records]
        packed = [pack_headers(tuple((name.encode(), value) for name, value in one.headers)) for one in records]
        async with connection.transaction():
            await connection.execute(upsert, [one["account"] for one in bodies], [one["n"] for one in bodies])
            await connection.execute(
                _ADD_BARE,
                [Noted.topic.name] * len(records),
                [one.key for one in records],
                [orjson.dumps(one) for one in bodies],
                packed,
            )
        await kafka.commit()
        if not done:
            first, began = len(records), perf_counter()
        done += len(records)
    took = perf_counter() - began
    await kafka.stop()
    await connection.close()
    return (count - first) / took


async def statements(bank: Bank) -> tuple[float, float]:
    """Return point queries a second, one connection: through Tx, through SQLAlchemy's AsyncConnection."""
    query = text("select n from bench.effects where account = :account")
    db = Database(bank.url, schema="bench", size=1)
    async with db.transaction() as tx:
        began = perf_counter()
        for n in range(STATEMENTS):
            await tx.fetchval(query, account=f"account-{n % KEYS}")
        direct = STATEMENTS / (perf_counter() - began)
    await db.close()
    engine = create_async_engine("postgresql+asyncpg://" + bank.url.partition("://")[2])
    async with engine.begin() as connection:
        began = perf_counter()
        for n in range(STATEMENTS):
            await connection.scalar(query, {"account": f"account-{n % KEYS}"})
        layered = STATEMENTS / (perf_counter() - began)
    await engine.dispose()
    return direct, layered


async def run(bank: Bank) -> list[dict[str, Any]]:
    """Measure, medians of a few rounds in turn; one line for each figure."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(ROUNDS):
        note("plain", await plain(bank, BASELINE_EVENTS))
        note("on", await rate(bank, EVENTS, record))
        note("on_batch", await rate(bank, BATCH_EVENTS, record_many, batch=True))
        note("bare", await bare(bank, BATCH_EVENTS))
        note("calm", await rate(bank, STORM_EVENTS, record, keys=STORM_KEYS, policy=RETRY_SOON))
        calm = await rate(bank, STORM_BATCH_EVENTS, record_many, batch=True, keys=STORM_KEYS, policy=RETRY_SOON)
        note("calm batch", calm)
        for storm in STORMS:
            count = STORM_BATCH_EVENTS if storm.batch else STORM_EVENTS
            handler, batch = storm.handler(), storm.batch
            note(storm.said, await rate(bank, count, handler, batch=batch, keys=STORM_KEYS, policy=RETRY_SOON))
        direct, layered = await statements(bank)
        note("direct", direct)
        note("layered", layered)
    of = {name: median(values) for name, values in found.items()}
    against = "against FastStream, ack and transaction a message"
    return [
        row(f"inbox + handler (on) + outbox, {against}", of["on"], "1/s", of["plain"], 6, 10),
        row(f"inbox + handler (on_batch) + outbox, {against}", of["on_batch"], "1/s", of["plain"], 20, 30),
        row("on_batch against the bare limit", of["on_batch"], "1/s", of["bare"], 1 / 3),
        *(
            row(f"{one.said}, against none", of[one.said], "1/s", of["calm batch" if one.batch else "calm"], one.bar)
            for one in STORMS
        ),
        row(
            "point queries through Tx, against SQLAlchemy's AsyncConnection", of["direct"], "1/s", of["layered"], 1.5, 2
        ),
    ]

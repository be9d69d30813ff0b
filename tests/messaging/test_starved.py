"""A Kafka client that has lost its way, and gets nothing of what is there, is given up for a new one."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from time import monotonic
from typing import Any, ClassVar

import pytest
from aiokafka import TopicPartition

from shared.clock import utc_now
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Database, Tx
from shared.messaging import inbox
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.delivery import Delivery
from shared.messaging.fuse import Fuse
from shared.messaging.lane import Lanes
from shared.messaging.outbox import Outbox
from shared.messaging.ports import Unreadable
from shared.messaging.record import Record, headers_of
from tests.conftest import eventually
from tests.fakes.kafka import MemoryKafka, MemoryReader
from tests.fakes.kafka_broker import Group
from tests.messaging.harness import Deposited, Handler

CHECKS = 15
"""So many checks last several times as long as a client may starve."""


class Starving(Deposited):
    type: ClassVar[str] = "probe.account.starving.v1"
    topic: ClassVar[Topic] = Topic("probe.starving", partitions=1)


class WatchedReader(MemoryReader):
    """A client that counts how often the consumer looks after it, and that may be deaf."""

    def __init__(self, kafka: MemoryKafka, group: Group, member: str, *, deaf: bool) -> None:
        super().__init__(kafka, group, member)
        self.deaf = deaf
        self.asked = 0

    async def fetch(
        self, partition: TopicPartition, offset: int, *, wait_ms: int, limit: int
    ) -> tuple[list[Record | Unreadable], int]:
        if self.deaf:
            await asyncio.sleep(wait_ms / 1000)
            return [], offset
        return await super().fetch(partition, offset, wait_ms=wait_ms, limit=limit)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        self.asked += 1
        return await super().end_offsets(partitions)


class WatchedKafka(MemoryKafka):
    """A cluster whose first clients may be deaf."""

    def __init__(self, deaf: int = 0) -> None:
        super().__init__({Starving.topic.name: 1})
        self.readers: list[WatchedReader] = []
        self._deaf = deaf

    def reader(self, group: str, member: str) -> WatchedReader:
        members = self.groups.setdefault(group, Group(self, group))
        self.readers.append(WatchedReader(self, members, member, deaf=len(self.readers) < self._deaf))
        return self.readers[-1]

    def put(self, n: int) -> None:
        """Put an event into the log."""
        event = Starving(id=uuid.uuid4(), time=datetime.now(UTC), account="a", n=n)
        self.append(Record(event.topic.name, 0, -1, event.key.encode(), event.to_bytes(), headers_of(event, "/probe")))


@asynccontextmanager
async def delivering(db: Database, kafka: WatchedKafka, handler: Handler) -> AsyncGenerator[tuple[Delivery, Fuse]]:
    consumer = Consumer("probe.starving", Policy())
    consumer.on(Starving, handler)
    fuse = Fuse(consumer.name, consumer.policy, monotonic)
    lanes = Lanes(consumer, db, Outbox("probe", lambda: None), fuse, utc_now, Random(1))
    delivery = Delivery(consumer, kafka, "one", db, lanes, fuse, utc_now)
    delivery.check_s, delivery.starved_s = 0.05, 0.2  # type: ignore[misc]
    running = asyncio.create_task(delivery.run())
    try:
        yield delivery, fuse
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def db(probe_url: str) -> AsyncGenerator[Database]:
    opened = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=4)
    async with opened.transaction() as tx:
        await inbox.roll(tx, datetime.now(UTC))
    yield opened
    await opened.close()


async def looked_after(reader: WatchedReader) -> None:
    """Wait until the consumer has looked often enough to find its client starved."""
    before = reader.asked
    await eventually(lambda: reader.asked >= before + CHECKS)


async def test_a_client_that_gives_nothing_of_what_is_there_is_given_up_for_a_new_one(db: Database) -> None:
    done: list[int] = []

    async def handle(event: Starving, tx: Tx) -> Sequence[Event]:
        tx.after_commit(lambda: done.append(event.n))
        return []

    kafka = WatchedKafka(deaf=1)
    kafka.put(1)
    async with delivering(db, kafka, handle) as (delivery, _):
        await eventually(lambda: done == [1])
        assert len(kafka.readers) == 2
        await eventually(lambda: delivery.health() == (True, "1 partitions"))


async def test_a_client_is_not_given_up_while_there_is_nothing_to_give(db: Database) -> None:
    kafka = WatchedKafka(deaf=1)
    async with delivering(db, kafka, _never) as (delivery, _):
        await eventually(lambda: delivery.health()[0])
        await looked_after(kafka.readers[0])
        assert len(kafka.readers) == 1


async def test_a_client_is_not_given_up_for_a_slow_handler(db: Database) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: list[int] = []

    async def handle(event: Starving, tx: Tx) -> Sequence[Event]:
        begun.set()
        await go_on.wait()
        tx.after_commit(lambda: done.append(event.n))
        return []

    kafka = WatchedKafka()
    kafka.put(1)
    async with delivering(db, kafka, handle):
        await begun.wait()
        kafka.put(2)
        await looked_after(kafka.readers[0])
        go_on.set()
        await eventually(lambda: done == [1, 2])
        assert len(kafka.readers) == 1


async def test_a_client_is_not_given_up_while_the_fuse_is_open(db: Database) -> None:
    kafka = WatchedKafka()
    async with delivering(db, kafka, _never) as (delivery, fuse):
        for n in range(Policy().fuse_keys):
            fuse.failed(n)
        assert fuse.is_open
        kafka.put(1)
        await eventually(lambda: bool(kafka.readers) and bool(kafka.readers[0].assignment()))
        await looked_after(kafka.readers[0])
        assert len(kafka.readers) == 1
        assert delivery.health()[1].startswith("stopped by its fuse")


async def _never(event: Starving, tx: Tx) -> Any:
    raise AssertionError(f"{event.n} was not to run in {tx}")

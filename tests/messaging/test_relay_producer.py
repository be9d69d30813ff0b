"""The relay and its producer, over a Kafka in memory: what it cannot send now stops nothing else, and is sent once."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError
from sqlalchemy import text

from shared.db import Database
from shared.messaging.kafka import KafkaAddress
from shared.messaging.relay import Relay
from tests.conftest import eventually
from tests.fakes.kafka import MemoryKafka, MemoryWriter, Network, Sent

TOPIC = "probe.facts"
NEVER_S = 1e9

_INSERT = text("insert into outbox (topic, key, value, headers) values (:topic, :key, :value, '\\x90')")


class Punctual(Network):
    """What a producer held that is gone never arrives."""

    def arrives_late(self) -> bool:
        return False


class Writer(MemoryWriter):
    """A producer that may fail to take a record, and that tells whether it was given up."""

    given_up = False

    def __init__(self, kafka: "Writers", client_id: str) -> None:
        super().__init__(kafka, client_id)
        self._refused = kafka.refused

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, *, headers: Sequence[tuple[str, bytes | None]]
    ) -> asyncio.Future[Sent]:
        if value in self._refused:
            self._refused.remove(value)
            raise KafkaTimeoutError("no room for it")
        return await super().send(topic, value, key, headers=headers)

    async def give_up(self) -> None:
        self.given_up = True
        await super().give_up()


class Writers(MemoryKafka):
    """A cluster that remembers its producers. Each value in `refused` is not taken once."""

    def __init__(self, network: Network | None = None) -> None:
        super().__init__({TOPIC: 1}, network)
        self.refused: list[bytes | None] = []
        self.writers: list[Writer] = []

    def writer(self, client_id: str) -> Writer:
        self.writers.append(Writer(self, client_id))
        return self.writers[-1]

    def values(self) -> list[bytes | None]:
        return [one.value for one in self.records(TOPIC)]


@pytest.fixture
async def db(probe_url: str) -> AsyncGenerator[Database]:
    opened = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=4)
    yield opened
    await opened.close()


@asynccontextmanager
async def relaying(db: Database, kafka: Writers, **changes: float) -> AsyncGenerator[Relay]:
    relay = Relay("probe", db, kafka)
    for name, value in changes.items():
        setattr(relay, name, value)
    running = asyncio.create_task(relay.run())
    try:
        await eventually(lambda: relay.health()[0] and relay.health()[1] == "leading")
        yield relay
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def put(db: Database, *rows: tuple[str, bytes, bytes]) -> None:
    async with db.transaction() as tx:
        for topic, key, value in rows:
            await tx.execute(_INSERT, topic=topic, key=key, value=value)


def left(db: Database, rows: int) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        async with db.read() as tx:
            found: Any = await tx.fetchval(text("select count(*) from outbox"))
            return found == rows

    return ask


async def test_many_missing_topics_do_not_keep_rows_of_the_others(db: Database) -> None:
    kafka = Writers()
    missing = [f"probe.missing-{n}" for n in range(12)]
    async with relaying(db, kafka, answer_s=1.0, look_again_s=1.0) as relay:
        await put(db, *((one, b"a", b"x") for one in missing), (TOPIC, b"a", b"1"))
        relay.wake()
        await eventually(lambda: kafka.values() == [b"1"])
        await eventually(left(db, len(missing)))
        assert len(kafka.writers) == 1, "it went on with the producer that it had"


async def test_what_follows_a_page_cut_short_by_a_very_large_row_does_not_wait_for_the_poll(db: Database) -> None:
    kafka = Writers()
    async with relaying(db, kafka, poll_s=NEVER_S) as relay:
        sizes = [Relay.page_bytes * 3 // 8, Relay.page_bytes * 3 // 4]
        await put(db, *((TOPIC, b"a", bytes(size)) for size in sizes))
        relay.wake()
        await eventually(lambda: [len(value or b"") for value in kafka.values()] == sizes)
        await eventually(left(db, 0))


async def test_a_row_that_the_producer_does_not_take_keeps_its_place_and_what_was_sent_before_it_is_not_sent_again(
    db: Database,
) -> None:
    kafka = Writers()
    kafka.refused = [b"2"]
    async with relaying(db, kafka) as relay:
        await put(db, (TOPIC, b"b", b"1"), (TOPIC, b"a", b"2"), (TOPIC, b"a", b"3"))
        relay.wake()
        await eventually(left(db, 0))
        assert kafka.values() == [b"1", b"2", b"3"]


async def test_a_producer_that_gets_no_acknowledgement_is_given_up_and_sends_nothing_behind_the_next_ones_back(
    db: Database,
) -> None:
    kafka = Writers(Punctual())
    async with relaying(db, kafka, answer_s=0.3) as relay:
        kafka.network.up = False
        await put(db, (TOPIC, b"a", b"1"), (TOPIC, b"a", b"2"))
        relay.wake()
        await eventually(lambda: len(kafka.writers) > 1)
        kafka.network.up = True
        await eventually(left(db, 0))
        assert kafka.values() == [b"1", b"2"]
    assert all(one.given_up for one in kafka.writers)


async def test_nothing_is_handed_over_behind_a_batch_that_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = KafkaAddress("127.0.0.1:1").writer("test")
    taken: list[int] = []

    async def one_partition(topic: str) -> set[int]:
        return {0}

    async def take(batch: Any, topic: str, *, partition: int) -> asyncio.Future[None]:
        if len(taken) == 1:
            taken.append(0)
            raise KafkaTimeoutError("no room for it")
        taken.append(batch.record_count())
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(writer, "partitions_for", one_partition)
    monkeypatch.setattr(writer, "send_batch", take)
    futures = await writer.send_all(TOPIC, [(b"a", bytes(300_000), [])] * 4)
    await writer.stop()
    assert taken == [1, 0]
    assert not futures[0].done()
    assert [type(one.exception()) for one in futures[1:]] == [KafkaTimeoutError] * 3

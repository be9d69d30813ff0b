"""Where things stand in Kafka, told also while a consumer stands still; and replays that run in the background."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from time import monotonic
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Conflict, Invalid, Transient
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.door import Door
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress
from shared.messaging.lane import Lanes
from shared.messaging.ops import Bulk, By, FailedJobs, Positions, Runs
from shared.messaging.outbox import Outbox
from shared.messaging.replay import Progress, Range, Replay
from tests.conftest import eventually
from tests.messaging.harness import FAST, Deposited, Handler, Probe, record_effect

ME = By("me", "request-1")
PLACE = text(
    """
    insert into consumer_offsets (consumer, topic, partition, next_offset, cluster)
    values (:c, :t, :p, :o, cast(:k as text))
    on conflict (consumer, topic, partition) do update
    set next_offset = excluded.next_offset, cluster = excluded.cluster
    """
)


def now() -> datetime:
    return datetime.now(UTC)


def positions(probe: Probe, address: KafkaAddress | None = None) -> Positions:
    consumer = Consumer(probe.name)
    consumer.on(probe.event, record_effect)
    return Positions("probe", probe.db, address or probe.address, [consumer], now)


class Reader:
    """A service's runs, with a consumer that replays go into."""

    def __init__(self, probe: Probe, handler: Handler = record_effect, policy: Policy = FAST) -> None:
        self.probe = probe
        self.door = Door(probe.db, Outbox("probe", lambda: None))
        consumer = Consumer(probe.name, policy, max_batch=10)
        consumer.on(probe.event, handler)
        self.fuse = Fuse(probe.name, policy, monotonic)
        lanes = Lanes(consumer, probe.db, Outbox("probe", lambda: None), self.fuse, now, Random(1))
        self.replay = Replay(consumer, lanes, probe.db, probe.address, now)
        self.runs = self.worker()

    def worker(self) -> Runs:
        return Runs("probe", self.door, Bulk(FailedJobs("probe", now)), lambda _: self.replay, now)

    async def place(self, *offsets: int, cluster: str | None = None) -> None:
        """Say where the consumer is in each partition."""
        async with self.door.transaction() as tx:
            for partition, offset in enumerate(offsets):
                await tx.execute(PLACE, c=self.probe.name, t=self.probe.topic.name, p=partition, o=offset, k=cluster)

    async def start(self, *, again: str | None = None, dry_run: bool = False, rate: float | None = None) -> Any:
        async with self.door.transaction() as tx:
            wanted = Range("")
            return await self.runs.start_replay(
                tx, self.probe.name, wanted, ME, again=again, dry_run=dry_run, rate=rate
            )

    async def show(self, run: Any) -> dict[str, Any]:
        async with self.door.read() as tx:
            return await self.runs.show(tx, run["id"])

    async def is_(self, run: Any, *statuses: str) -> bool:
        return (await self.show(run))["status"] in statuses

    async def ends(self, run: Any) -> dict[str, Any]:
        await eventually(lambda: self.is_(run, "done", "failed", "cancelled"))
        return await self.show(run)


@contextlib.asynccontextmanager
async def working(runs: Runs) -> AsyncGenerator[None]:
    task = asyncio.create_task(runs.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_lag_is_told_in_records_and_seconds_while_the_consumer_stands_still(probe: Probe) -> None:
    for number in range(5):
        await probe.send(probe.make("a", number), partition=0)
    replica = probe.start(record_effect)
    await eventually(lambda: _effects(probe, 5))
    await eventually(lambda: _lag(probe, 0))
    await replica.stop()
    long_ago = int((now().timestamp() - 60) * 1000)
    await probe.send(probe.make("a", 5), partition=0, timestamp_ms=long_ago)
    await probe.send(probe.make("a", 6), partition=0)
    rows = await positions(probe).lag()
    (first,) = [row for row in rows if row["partition"] == 0]
    assert (first["settled_offset"], first["end_offset"], first["lag_records"]) == (5, 7, 2)
    assert 59 < first["lag_s"] < 90
    (other,) = [row for row in rows if row["partition"] == 1]
    assert (other["settled_offset"], other["lag_records"], other["lag_s"]) == (None, 0, 0.0)
    assert {row["problem"] for row in rows} == {None}


async def test_without_kafka_lag_shows_what_was_settled(probe: Probe) -> None:
    async with probe.db.transaction() as tx:
        await tx.execute(
            text("insert into consumer_offsets (consumer, topic, partition, next_offset) values (:c, :t, 0, 9)"),
            c=probe.name,
            t=probe.topic.name,
        )
    (row,) = await positions(probe, KafkaAddress("127.0.0.1:1")).lag()
    assert (row["settled_offset"], row["lag_records"], row["problem"]) == (9, None, "Kafka does not answer")


async def test_topics_are_told_with_what_they_hold(probe: Probe) -> None:
    await probe.send(probe.make("a", 1))
    (letters,) = await positions(probe).topics()
    assert (letters["topic"], letters["partitions"], letters["records"]) == (f"{probe.name}.dlq", 1, 0)


async def test_a_replay_runs_in_the_background_and_a_dry_run_of_it_changes_nothing(probe: Probe) -> None:
    for number in range(25):
        await probe.send(probe.make("a", number), partition=0)
    reader = Reader(probe)
    await reader.place(25)
    async with working(reader.runs):
        seen = await reader.ends(await reader.start(dry_run=True))
        assert (seen["counts"]["read"], seen["counts"]["run"]) == (25, 25)
        assert await probe.effects() == []
        done = await reader.ends(await reader.start())
        assert (done["status"], done["counts"]["run"]) == ("done", 25)
        again = await reader.ends(await reader.start())
    assert (again["counts"]["run"], again["counts"]["known"]) == (0, 25)
    assert await probe.effects() == list(range(25))
    async with probe.db.read() as tx:
        told = await tx.fetch(text("select convert_from(value, 'UTF8') as v from outbox where topic = 'api.audit'"))
    assert len(told) == 3
    assert all('"action":"replay.consumer"' in row["v"] for row in told)


async def test_a_replay_whose_process_died_goes_on_elsewhere(probe: Probe) -> None:
    """The rate holds it up, the first worker is cut off in the middle, the second one ends it; nothing runs twice."""
    for number in range(40):
        await probe.send(probe.make("a", number), partition=0)
    reader = Reader(probe)
    await reader.place(40)
    run = await reader.start(rate=20)
    task = asyncio.create_task(reader.runs.run())
    await eventually(lambda: _read(reader, run, 10))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert 10 <= (await reader.show(run))["counts"]["read"] < 40
    async with probe.db.transaction() as tx:  # as after a kill: nobody freed the lease, and it has run out
        await tx.execute(text("update ops_runs set lease_until = now() - interval '1 second'"))
    assert await reader.is_(run, "interrupted")
    async with working(reader.worker()):
        done = await reader.ends(run)
    assert (done["status"], done["counts"]["read"]) == ("done", 40)
    assert await probe.effects() == list(range(40))


async def test_a_replay_can_be_cancelled_and_then_another_one_begun(probe: Probe) -> None:
    for number in range(30):
        await probe.send(probe.make("a", number), partition=0)
    reader = Reader(probe)
    await reader.place(30)
    reader.runs.beat_s = 0.05  # the test does not wait as long
    run = await reader.start(rate=1)
    with pytest.raises(Conflict):
        await reader.start()
    async with working(reader.runs):
        await eventually(lambda: _read(reader, run, 1))
        await reader.door.run(lambda tx: reader.runs.cancel(tx, run["id"], ME))
        assert (await reader.ends(run))["status"] == "cancelled"
        assert (await reader.ends(await reader.start()))["status"] == "done"
    assert await probe.effects() == list(range(30))


async def test_a_replay_waits_while_the_consumer_is_stopped_by_its_fuse(probe: Probe) -> None:
    broken = True

    async def fail(event: Deposited, tx: Tx) -> list[Event]:
        if broken:
            raise Transient("not now")
        return await record_effect(event, tx)

    for number in range(40):
        await probe.send(probe.make(f"k{number}", number), partition=0)
    policy = replace(FAST, fuse_keys=3)
    reader = Reader(probe, fail, policy)
    await reader.place(*[row["end_offset"] for row in await positions(probe).lag()])
    reader.runs.again_s = 0.1  # the test does not wait as long
    async with working(reader.runs):
        run = await reader.start()
        await eventually(lambda: _said(reader, run, "stopped by its fuse"))
        broken = False
        reader.fuse.succeeded(1)
        done = await reader.ends(run)
    assert (done["status"], done["error"]) == ("done", None)
    parked = len(await probe.jobs("waiting"))
    assert parked + len(await probe.effects()) == 40
    assert parked >= 3


async def test_a_replay_of_what_is_missing_does_not_overtake_a_consumer_that_lags(probe: Probe) -> None:
    """The consumer is at 10 of 20 and has lost what lies before: the replay brings that, and the consumer the rest."""
    for number in range(20):
        await probe.send(probe.make("a", number), partition=0)
    await probe.send(probe.make("b", 0), partition=1)
    reader = Reader(probe)
    await reader.place(10)  # none is stored for the other partition: it is read from its start
    async with working(reader.runs):
        seen = await reader.ends(await reader.start(dry_run=True))
        done = await reader.ends(await reader.start())
    expected = {"read": 10, "skipped": 0, "known": 0, "run": 10, "nameless": 0, "ahead": 11}
    assert (seen["counts"], done["counts"]) == (expected, expected)
    assert await probe.effects("a") == list(range(10))
    probe.start(record_effect)
    await eventually(lambda: _effects(probe, 21))
    assert await probe.effects("a") == list(range(20))


@pytest.mark.parametrize("cluster", [None, "another Kafka"])
async def test_a_consumer_without_a_place_in_this_kafka_has_nothing_to_be_replayed(
    probe: Probe, cluster: str | None
) -> None:
    await probe.send(probe.make("a", 1), partition=0)
    await probe.send(probe.make("b", 1), partition=1)
    reader = Reader(probe)
    if cluster:
        await reader.place(1, 1, cluster=cluster)
    counts = await reader.replay.run(Range(""))
    known = await _kafka_has_a_name(probe)
    assert (counts["read"], counts["ahead"]) == ((2, 0) if cluster and not known else (0, 2))


async def test_running_again_goes_to_kafkas_end(probe: Probe) -> None:
    await probe.send(probe.make("a", 1), partition=0)
    counts = await Reader(probe).replay.run(Range(""), again="x")
    assert (counts["run"], counts["ahead"]) == (1, 0)


async def test_a_partition_that_gives_nothing_before_its_end_does_not_count_as_read(probe: Probe) -> None:
    await probe.send(probe.make("a", 0), partition=0)
    progress = Progress(ends={0: 5, 1: 0})

    async def read() -> None:
        async with contextlib.aclosing(Reader(probe).replay.steps(Range(""), progress)) as steps:
            async for _ in steps:
                pass

    with pytest.raises(KafkaConnectionError, match="gave nothing at 1, before 5"):
        await read()
    assert progress.counts["run"] == 1


@pytest.mark.apache
async def test_what_is_not_committed_is_no_lag(probe: Probe) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=probe.address.bootstrap, transactional_id=probe.name)
    await producer.start()
    try:
        await producer.begin_transaction()
        await producer.send_and_wait(probe.topic.name, b"{}", b"a", partition=0)
        assert await _lag(probe, 0)
        await producer.commit_transaction()
        await eventually(lambda: _lag(probe, 2))  # the record, and the mark of the transaction's end
    finally:
        await producer.stop()


async def test_a_consumer_that_holds_takes_no_second_run(probe: Probe) -> None:
    reader = Reader(probe, policy=replace(FAST, hold=True))
    with pytest.raises(Invalid):
        await reader.start(again="x")


async def _effects(probe: Probe, count: int) -> bool:
    return len(await probe.effects()) == count


async def _lag(probe: Probe, records: int) -> bool:
    return sum(row["lag_records"] for row in await positions(probe).lag()) == records


async def _read(reader: Reader, run: Any, records: int) -> bool:
    return (await reader.show(run))["counts"].get("read", 0) >= records


async def _said(reader: Reader, run: Any, what: str) -> bool:
    return what in ((await reader.show(run))["error"] or "")


async def _kafka_has_a_name(probe: Probe) -> bool:
    kafka = probe.address.reader(probe.name, "asking")
    await kafka.start()
    try:
        return await kafka.cluster_id() is not None
    finally:
        await kafka.stop()

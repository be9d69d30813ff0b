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
from shared.messaging.replay import Range, Replay
from tests.conftest import eventually
from tests.messaging.harness import FAST, Deposited, Handler, Probe, record_effect

ME = By("me", "request-1")


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

"""Waiting rows that run again: many at once, large ones, and the bookkeeping of their failures."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic

from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.lane import Lanes, lane_of_row, lock_lane
from shared.messaging.record import BUCKETS, Record, headers_of, lane_of, pack_headers
from shared.messaging.retry import Retries
from shared.messaging.retry_statements import DUE
from tests.conftest import eventually
from tests.messaging.harness import FAST, Deposited, Probe, record_effect

WAIT = text(
    """
    insert into failed_jobs (consumer, topic, partition, record_offset, key, value, headers, job_type, event_id, status,
                             attempts, due_at, error_code, error_message)
    select :consumer, :topic, 0, r.n, r.key, r.value, r.headers, :type, r.event_id, 'waiting', 1,
           cast(:due as timestamptz) + r.n * interval '1 microsecond', 'FIRST', 'the first time'
    from unnest(cast(:keys as bytea[]), cast(:values as bytea[]), cast(:headers as bytea[]), cast(:ids as uuid[]))
         with ordinality r(key, value, headers, event_id, n)
    """
)


def accounts(lane: int) -> Iterator[str]:
    """Accounts of one lane, without end."""
    names = (f"account-{n}" for n in itertools.count())
    return (one for one in names if lane_of(Record("t", 0, 0, one.encode(), None, ()), Lanes.count) == lane)


async def wait(probe: Probe, events: Sequence[Deposited], padding: bytes = b"") -> None:
    """Park events whose retries are due, in this order."""
    async with probe.db.transaction() as tx:
        await tx.execute(
            WAIT,
            consumer=probe.name,
            topic=probe.topic.name,
            type=probe.event.type,
            due=datetime.now(UTC) - timedelta(seconds=10),
            keys=[event.key.encode() for event in events],
            values=[event.to_bytes() + padding for event in events],
            headers=[pack_headers(headers_of(event, "/test")) for event in events],
            ids=[event.id for event in events],
        )


async def test_a_busy_lane_with_more_due_rows_than_a_page_hides_no_other_lane(probe: Probe) -> None:
    busy = [probe.make(one, 1) for one in itertools.islice(accounts(0), Retries.page_rows + 200)]
    other = probe.make(next(accounts(1)), 2)
    gate = asyncio.Event()

    async def stand(event: Deposited, tx: Tx) -> Sequence[Event]:
        if event.n == 1:
            await gate.wait()
        return await record_effect(event, tx)

    await wait(probe, [*busy, other])
    probe.start(stand)
    await eventually(lambda: _effects(probe, [2]))
    gate.set()
    await eventually(lambda: _done(probe, len(busy) + 1))


async def test_a_lane_that_fills_a_page_and_stands_keeps_no_idle_lane_waiting_for_the_next_poll(probe: Probe) -> None:
    standing = [probe.make(one, 1) for one in itertools.islice(accounts(0), 3)]
    gate = asyncio.Event()

    async def stand(event: Deposited, tx: Tx) -> Sequence[Event]:
        if event.n == 1:
            await gate.wait()
        return await record_effect(event, tx)

    await wait(probe, [*standing, *(probe.make(next(accounts(lane)), 1 + lane) for lane in (1, 2, 3))])
    retries = probe.start(stand).retries
    retries.page_rows, retries.idle_s = 2, 3600.0  # type: ignore[misc]
    await eventually(lambda: _sorted_effects(probe, [2, 3, 4]))
    gate.set()
    await eventually(lambda: _done(probe, 6))


async def test_postgres_knows_the_lane_of_a_row_as_we_do(probe: Probe) -> None:
    await wait(probe, [probe.make(f"account-{n}", n) for n in range(80)])
    async with probe.db.transaction() as tx:
        await tx.execute(text("update failed_jobs set key = null where record_offset % 3 = 0"))
        busy = {1, 3}
        due = await tx.fetch(
            DUE,
            consumer=probe.name,
            now=datetime.now(UTC),
            buckets=BUCKETS,
            count=Lanes.count,
            topics=[probe.topic.name] * len(busy),
            partitions=[0] * len(busy),
            lanes=sorted(busy),
            rows=1000,
        )
        rows = await tx.fetch(text("select * from failed_jobs"))
    idle = {row["id"] for row in rows if lane_of_row(row)[3] not in busy}
    assert {row["id"] for row in due} == idle
    assert 0 < len(idle) < len(rows) == 80


async def test_retries_that_wait_for_their_lanes_leave_connections_to_others(probe: Probe) -> None:
    await wait(probe, [probe.make(next(accounts(n % 4)), n) for n in range(16)])
    async with probe.db.transaction() as tx:
        await tx.execute(text("update failed_jobs set partition = (record_offset - 1) / 4"))
    async with probe.db.transaction() as tx:
        for row in await tx.fetch(text("select * from failed_jobs")):
            await lock_lane(tx, lane_of_row(row))
        replica = probe.start(record_effect)
        await eventually(lambda: len(replica.retries._running) == 16)
        async with asyncio.timeout(5), replica.db.read() as other:
            assert await other.fetchval(text("select 1")) == 1
    await eventually(lambda: _done(probe, 16))


async def test_a_lane_that_breaks_runs_again_after_a_while_though_its_rows_fill_a_page(probe: Probe) -> None:
    tried: list[float] = []

    async def note(event: Deposited, tx: Tx) -> Sequence[Event]:
        del event, tx
        tried.append(monotonic())
        return []

    await wait(probe, [probe.make("a", 1)])
    async with probe.db.transaction() as tx:  # nothing can be written down, not even that it failed
        await tx.execute(text("alter table failed_jobs add constraint frozen check (attempts < 2)"))
    retries = probe.start(note).retries
    retries.page_rows = 1  # type: ignore[misc]
    await eventually(lambda: len(tried) > 1)
    assert tried[1] - tried[0] > Retries.idle_s / 2


async def test_a_turn_reads_no_more_bytes_than_its_bound_and_at_least_one_row(probe: Probe) -> None:
    events = [probe.make(one, n) for n, one in enumerate(itertools.islice(accounts(0), 5))]
    last = [probe.make(one, 9) for one in itertools.islice(accounts(0), 5, 6)]
    sizes: list[int] = []

    async def note(some: Sequence[Deposited], tx: Tx) -> Sequence[Event]:
        sizes.append(len(some))
        for one in some:
            await record_effect(one, tx)
        return []

    await wait(probe, events, padding=b" " * (Retries.largest_bytes * 2 // 5))
    probe.start(note, batch=True)
    await eventually(lambda: _done(probe, 5))
    assert sizes == [2, 2, 1]
    await probe.replicas[0].stop()
    sizes.clear()
    await wait(probe, last, padding=b" " * (Retries.largest_bytes + 1))
    probe.start(note, batch=True)
    await eventually(lambda: _done(probe, 6))
    assert sizes == [1]


async def test_retries_that_fail_together_are_written_down_each_with_its_own_reason(probe: Probe) -> None:
    events = [probe.make(one, n) for n, one in enumerate(itertools.islice(accounts(0), 3))]
    failed: set[int] = set()

    async def fail_again(event: Deposited, tx: Tx) -> Sequence[Event]:
        if event.n not in failed:
            failed.add(event.n)
            raise Transient(f"number {event.n} is not ready")
        return await record_effect(event, tx)

    await wait(probe, events)
    probe.start(fail_again)
    await eventually(lambda: _done(probe, 3))
    for job in await probe.jobs():
        async with probe.db.read() as tx:
            shown = await probe.failed_jobs.show(tx, job["id"])
        said = f"number {[event.key for event in events].index(shown['key'])} is not ready"
        assert (shown["attempts"], shown["error_message"]) == (3, said)
        (entry,) = shown["errors"]
        assert (entry["code"], entry["message"]) == (Transient.code, said)
        assert datetime.fromisoformat(entry["at"]).tzinfo is not None


async def test_what_waits_behind_a_row_runs_at_once_when_it_is_done_and_not_when_it_waits_again(probe: Probe) -> None:
    account = next(accounts(0))
    events = [probe.make(account, n) for n in range(30)]
    failed: set[int] = set()

    async def fail_some(event: Deposited, tx: Tx) -> Sequence[Event]:
        if event.n in {3, 17} and event.n not in failed:
            failed.add(event.n)
            raise Transient("the first time")
        return await record_effect(event, tx)

    await wait(probe, events)
    async with probe.db.transaction() as tx:
        await tx.execute(text("update failed_jobs set due_at = null where record_offset > 1"))
    probe.start(fail_some)
    await eventually(lambda: _done(probe, 30))
    assert await probe.effects() == list(range(30))


async def test_a_nameless_record_that_is_read_again_after_a_person_discarded_it_stops_nothing_behind_it(
    probe: Probe,
) -> None:
    """It has no inbox row: only its row in failed_jobs knows it, which fences nothing any more."""
    first = probe.make("a", 1)
    nameless = tuple((name, b"none" if name == b"ce_id" else value) for name, value in headers_of(first, "/test"))
    await probe.send(first, nameless)
    replica = probe.start(record_effect, policy=replace(FAST, hold=True))
    await eventually(lambda: _statuses(probe, ["held"]))
    (held,) = await probe.jobs()
    await probe.act(lambda tx: probe.failed_jobs.discard(tx, held["id"], "test", "no name"))
    await replica.stop()
    async with probe.db.transaction() as tx:
        await tx.execute(text("delete from consumer_offsets"))
    await probe.send(probe.make("a", 2))
    probe.start(record_effect, policy=replace(FAST, hold=True))
    await eventually(lambda: _effects(probe, [2]))
    assert await _statuses(probe, ["discarded", "resolved"])


async def _statuses(probe: Probe, wanted: list[str]) -> bool:
    return [job["status"] for job in await probe.jobs()] == wanted


async def _sorted_effects(probe: Probe, wanted: list[int]) -> bool:
    return sorted(await probe.effects()) == wanted


async def _effects(probe: Probe, wanted: list[int]) -> bool:
    return await probe.effects() == wanted


async def _done(probe: Probe, count: int) -> bool:
    async with probe.db.read() as tx:
        resolved = text("select count(*) from failed_jobs where status = 'resolved'")
        return await tx.fetchval(resolved) == count == len(await probe.effects())

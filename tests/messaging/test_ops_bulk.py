"""Many failed jobs at once, and one mended or sent elsewhere: order, fence and audit hold, a dry run does nothing."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Conflict, Invalid, Permanent
from shared.messaging.consumer import Consumer
from shared.messaging.door import Door
from shared.messaging.lane import lock_lane
from shared.messaging.ops import Bulk, By, Edit, FailedJobs, Filter, Runs
from shared.messaging.ops.bulk import Order
from shared.messaging.outbox import Outbox
from tests.conftest import eventually
from tests.messaging.harness import FAST, Deposited, Probe, record_effect

ME = By("me", "request-1")
DEAD = Filter(("dead",))
CALM = replace(FAST, fuse_keys=100_000, fuse_ratio=1.1)
"""Its fuse stays closed however much fails."""

ROWS = text(
    """
    insert into failed_jobs (consumer, topic, partition, record_offset, key, value, headers, job_type, event_id,
                             status, error_code, error_message, fingerprint, failed_at)
    select consumer, topic, partition, record_offset + n, cast('k' || n % :keys as bytea), value, headers, job_type,
           gen_random_uuid(), 'dead', error_code, error_message, fingerprint, failed_at
    from failed_jobs, generate_series(1, :many) n where record_offset = 0
    """
)


class Desk:
    """An operator's desk at a probe: what they may do, and a worker that carries runs out."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        consumer = Consumer(probe.name)
        consumer.on(probe.event, record_effect)
        self.door = Door(probe.db, Outbox("probe", lambda: None))
        self.jobs = FailedJobs("probe", lambda: datetime.now(UTC), consumers=[consumer])
        self.bulk = Bulk(self.jobs)
        self.runs = self.worker()

    def worker(self) -> Runs:
        def no_replay(name: str) -> Any:
            raise AssertionError(name)

        return Runs("probe", self.door, self.bulk, no_replay, lambda: datetime.now(UTC))

    async def start(self, order: Order, cap: int = 10_000) -> Any:
        async with self.door.transaction() as tx:
            return await self.runs.start_bulk(tx, order, cap, ME)

    async def show(self, run: Any) -> dict[str, Any]:
        async with self.door.read() as tx:
            return await self.runs.show(tx, run["id"])

    async def ends(self, run: Any) -> dict[str, Any]:
        async def ended() -> bool:
            return (await self.show(run))["status"] in {"done", "failed", "cancelled"}

        await eventually(ended)
        return await self.show(run)

    async def value(self, sql: str) -> Any:
        async with self.door.read() as tx:
            return await tx.fetchval(text(sql))

    async def audits(self) -> list[dict[str, Any]]:
        async with self.door.read() as tx:
            rows = await tx.fetch(text("select value from outbox where topic = 'api.audit' order by id"))
        return [json.loads(row["value"]) for row in rows]


@pytest.fixture
async def desk(probe: Probe) -> Desk:
    return Desk(probe)


@contextlib.asynccontextmanager
async def working(runs: Runs) -> AsyncGenerator[None]:
    task = asyncio.create_task(runs.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def park(probe: Probe, *accounts: str, n: int = 1) -> None:
    """Have events of those accounts refused; they lie dead, and no replica runs afterwards."""

    async def refuse(event: Deposited, tx: Tx) -> list[Event]:
        raise Permanent(f"account {event.account!r} is refused")

    for account in accounts:
        for number in range(n):
            await probe.send(probe.make(account, number), partition=0)
    replica = probe.start(refuse, policy=CALM)
    await eventually(lambda: _many(probe, len(accounts) * n, "dead"))
    await replica.stop()


async def test_a_dry_run_counts_and_samples_and_changes_nothing(probe: Probe, desk: Desk) -> None:
    await park(probe, *"abc")
    before = await desk.value("select md5(string_agg(f::text, '|' order by id)) from failed_jobs f")
    async with desk.door.read() as tx:
        seen = await desk.bulk.preview(tx, Order("retry", DEAD, "me", rate=2), cap=2)
    assert (seen["matched"], seen["selected"], seen["takes_s"]) == (3, 2, 1.0)
    assert [group["rows"] for group in seen["groups"]] == [3]
    assert {row["key"] for row in seen["sample"]} == set("abc")
    assert await desk.value("select md5(string_agg(f::text, '|' order by id)) from failed_jobs f") == before
    assert await desk.value("select count(*) from ops_runs") == 0
    assert [event for event in await desk.audits() if event["action"].endswith("failed_jobs")] == []


async def test_a_thousand_rows_are_spread_over_their_rate_and_audited_once(probe: Probe, desk: Desk) -> None:
    await park(probe, "k0")
    async with desk.door.transaction() as tx:
        await tx.execute(ROWS, many=999, keys=1000)
    async with desk.door.read() as tx:
        (group,) = await desk.jobs.groups(tx)
    async with working(desk.runs):
        chosen = Filter(("dead",), fingerprint=group["fingerprint"])
        run = await desk.ends(await desk.start(Order("retry", chosen, "me", rate=200)))
    assert (run["status"], run["counts"]) == ("done", {"done": 1000, "skipped": 0})
    span = await desk.value("select extract(epoch from max(due_at) - min(due_at)) from failed_jobs")
    assert 4.9 < span < 5.1
    assert await desk.value("select count(*) from failed_jobs where status = 'waiting' and due_at is null") == 0
    busiest = await desk.value(
        "select max(n) from (select count(*) as n from failed_jobs group by date_trunc('second', due_at)) by_second"
    )
    assert busiest <= 201
    (audit,) = [one for one in await desk.audits() if one["action"] == "retry.failed_jobs"]
    assert (audit["actor"], audit["request_id"], audit["subject"]) == ("me", "request-1", f"run/{run['id']}")
    assert audit["details"]["counts"] == {"done": 1000, "skipped": 0}
    assert audit["details"]["chosen"] == 1000
    assert len(audit["details"]["rows"]) == 100


async def test_only_the_lowest_row_of_a_key_gets_a_due_time(probe: Probe, desk: Desk) -> None:
    await park(probe, "k0")
    async with desk.door.transaction() as tx:
        await tx.execute(ROWS, many=299, keys=10)
    async with working(desk.runs):
        await desk.ends(await desk.start(Order("retry", DEAD, "me", rate=50)))
    heads = await desk.value(
        """select count(*) from failed_jobs f where due_at is not null and not exists (
               select 1 from failed_jobs l where l.key = f.key and l.record_offset < f.record_offset)"""
    )
    assert (heads, await desk.value("select count(due_at) from failed_jobs")) == (10, 10)


async def test_order_and_fence_hold_while_a_group_is_retried_and_new_events_arrive(probe: Probe, desk: Desk) -> None:
    """The consumer releases dead keys: only while a row waits again must new events of its key stand behind it."""
    keys, old, new = 12, 10, 15
    await park(probe, *(f"k{number}" for number in range(keys)), n=old)
    async with working(desk.runs):
        run = await desk.start(Order("retry", DEAD, "me", rate=200))
        await desk.ends(run)  # all wait now; nothing runs yet
        probe.start(record_effect, policy=CALM)
        for number in range(old, old + new):
            for key in range(keys):
                await probe.send(probe.make(f"k{key}", number), partition=0)
        await eventually(lambda: _count(probe, keys * (old + new)))
    async with probe.db.read() as tx:
        rows = await tx.fetch(text("select account, n from effects order by id"))
    order: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        order[row["account"]].append(row["n"])
    assert dict(order) == {f"k{key}": list(range(old + new)) for key in range(keys)}


async def test_a_bulk_discard_keeps_its_reason_and_frees_what_waits_behind(probe: Probe, desk: Desk) -> None:
    await park(probe, "a", "b", n=2)
    async with desk.door.transaction() as tx:  # the first of each key is held, the second waits behind it
        await tx.execute(text("update failed_jobs set status = 'held' where record_offset in (0, 2)"))
        await tx.execute(text("update failed_jobs set status = 'waiting' where record_offset in (1, 3)"))
    async with working(desk.runs):
        order = Order("discard", Filter(("held",)), "me", reason="known bad")
        assert (await desk.ends(await desk.start(order)))["counts"] == {"done": 2, "skipped": 0}
    probe.start(record_effect)
    await eventually(lambda: _count(probe, 2))
    assert {job["resolution"] for job in await probe.jobs("discarded")} == {"known bad"}


async def test_rows_that_changed_meanwhile_are_left_alone(probe: Probe, desk: Desk) -> None:
    await park(probe, "a", "b")
    run = await desk.start(Order("retry", DEAD, "me"))
    (first, _) = await probe.jobs("dead")
    async with desk.door.transaction() as tx:
        await desk.jobs.discard(tx, first["id"], "you", "mine")
    async with working(desk.runs):
        assert (await desk.ends(run))["counts"] == {"done": 1, "skipped": 1}
    assert len(await probe.jobs("discarded")) == 1


async def test_a_run_whose_process_died_goes_on_elsewhere_where_it_stood(probe: Probe, desk: Desk) -> None:
    await park(probe, "k0")
    async with desk.door.transaction() as tx:
        await tx.execute(ROWS, many=1999, keys=1999)
    order = Order("retry", DEAD, "me")
    run = await desk.start(order)
    async with probe.db.transaction() as tx:  # the last lane is locked: the run cannot get past it
        await lock_lane(tx, (probe.name, probe.topic.name, 0, 3))
        task = asyncio.create_task(desk.runs.run())
        await eventually(lambda: _progress(desk, run, 1400))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    done = (await desk.show(run))["counts"]["done"]
    assert 0 < done < 2000
    async with desk.door.transaction() as tx:  # as after a kill: nobody freed the lease, and it has run out
        await tx.execute(text("update ops_runs set lease_until = now() - interval '1 second'"))
    assert (await desk.show(run))["status"] == "interrupted"
    async with working(desk.worker()):
        ended = await desk.ends(run)
    assert (ended["status"], ended["counts"]) == ("done", {"done": 2000, "skipped": 0})
    assert len([one for one in await desk.audits() if one["action"] == "retry.failed_jobs"]) == 1


async def test_a_cancelled_run_stops_and_says_so(probe: Probe, desk: Desk) -> None:
    await park(probe, "a")
    run = await desk.start(Order("retry", DEAD, "me"))
    done = await desk.door.run(lambda tx: desk.runs.cancel(tx, run["id"], ME))
    assert done["cancel"]
    async with working(desk.runs):
        assert (await desk.ends(run))["status"] == "cancelled"
    with pytest.raises(Conflict):
        await desk.door.run(lambda tx: desk.runs.cancel(tx, run["id"], ME))
    assert len(await probe.jobs("dead")) == 1
    assert [one["action"] for one in await desk.audits()][-2:] == ["cancel.run", "retry.failed_jobs"]


async def test_a_run_cancelled_in_the_middle_leaves_the_rest_dead_and_their_keys_free(probe: Probe, desk: Desk) -> None:
    await park(probe, "k0")
    async with desk.door.transaction() as tx:
        await tx.execute(ROWS, many=398, keys=133)
    desk.runs.beat_s = 0.05  # the test does not wait as long
    run = await desk.start(Order("retry", DEAD, "me", rate=10))
    async with working(desk.runs):
        await eventually(lambda: _progress(desk, run, 100))
        await _a_second_later(desk, run)
        await desk.door.run(lambda tx: desk.runs.cancel(tx, run["id"], ME))
        ended = await desk.ends(run)
    done = ended["counts"]["done"]
    assert (ended["status"], ended["counts"]["skipped"]) == ("cancelled", 0)
    assert 100 <= done <= 200, "ten seconds' rows, and what a slow machine adds"
    assert len(await probe.jobs("waiting")) == done
    assert len(await probe.jobs("dead")) == 399 - done
    both = "select count(*) from (select key from failed_jobs group by key having count(distinct status) > 1) parted"
    assert await desk.value(both) == 0, "a key's rows go together"


async def test_a_bulk_discard_keeps_its_rate_and_can_be_cancelled_in_the_middle(probe: Probe, desk: Desk) -> None:
    await park(probe, "k0")
    async with desk.door.transaction() as tx:
        await tx.execute(ROWS, many=39, keys=40)
    desk.runs.beat_s = 0.05  # the test does not wait as long
    order = Order("discard", DEAD, "me", rate=2, reason="known bad")
    async with desk.door.read() as tx:
        assert (await desk.bulk.preview(tx, order, 40))["takes_s"] == 20
    run = await desk.start(order)
    async with working(desk.runs):
        await eventually(lambda: _progress(desk, run, 2))
        await _a_second_later(desk, run)
        await desk.door.run(lambda tx: desk.runs.cancel(tx, run["id"], ME))
        ended = await desk.ends(run)
    assert (ended["status"], ended["counts"]["done"] < 20) == ("cancelled", True)
    assert len(await probe.jobs("dead")) == 40 - ended["counts"]["done"]


async def test_an_edited_event_is_a_new_fact_in_the_old_ones_place(probe: Probe, desk: Desk) -> None:
    await park(probe, "a")
    (old,) = await probe.jobs()
    new = await desk.door.run(lambda tx: desk.jobs.edit(tx, old["id"], ME, Edit(b'{"account": "a", "n": 7}')))
    assert (new["status"], new["record_offset"], new["key"]) == ("waiting", old["record_offset"], "a")
    assert new["event_id"] != old["event_id"]
    assert ["ce_causationid", str(old["event_id"])] in new["headers"]
    async with desk.door.read() as tx:
        was = await desk.jobs.show(tx, old["id"])
    assert (was["status"], was["resolved_by"], was["resolution"]) == ("resolved", "me", f"edited: {new['id']}")
    (audit,) = [one for one in await desk.audits() if one["action"] == "edit.failed_job"]
    assert audit["details"]["new_event"] == str(new["event_id"])
    probe.start(record_effect)
    await eventually(lambda: _effects(probe, [7]))
    with pytest.raises(Conflict):
        await desk.door.run(lambda tx: desk.jobs.edit(tx, old["id"], ME, Edit(b'{"account": "a", "n": 8}')))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Edit(b'{"account": "a"}'), "could not read it"),
        (Edit(b"[]"), "could not read it"),
        (Edit(b'{"account": "b", "n": 1}'), "outside its order"),
        (Edit(type="probe.account.closed.v1"), "does not handle"),
        (Edit(type="probe.account.deposited.v9"), "does not know"),
        (Edit(time=datetime(2001, 1, 1, tzinfo=UTC)), "outside the days"),
        (Edit(), "say what changes"),
    ],
)
async def test_an_edit_that_the_consumer_would_not_take_is_refused(
    probe: Probe, desk: Desk, change: Edit, reason: str
) -> None:
    await park(probe, "a")
    (old,) = await probe.jobs()
    with pytest.raises(Invalid, match=reason):
        await desk.door.run(lambda tx: desk.jobs.edit(tx, old["id"], ME, change))
    assert [job["status"] for job in await probe.jobs()] == ["dead"]
    assert await desk.value("select count(*) from inbox") == 1


async def test_an_edited_row_waits_behind_an_older_one_of_its_key(probe: Probe, desk: Desk) -> None:
    await park(probe, "a", n=2)
    first, second = await probe.jobs()
    async with desk.door.transaction() as tx:
        await tx.execute(text("update failed_jobs set status = 'held' where id = :id"), id=first["id"])
    new = await desk.door.run(lambda tx: desk.jobs.edit(tx, second["id"], ME, Edit(b'{"account": "a", "n": 7}')))
    assert new["due_at"] is None
    await desk.door.run(lambda tx: desk.jobs.retry(tx, first["id"], "me"))
    probe.start(record_effect)
    await eventually(lambda: _effects(probe, [0, 7]))


async def test_a_redirected_record_arrives_byte_for_byte_and_only_where_the_service_may_publish(
    probe: Probe, desk: Desk
) -> None:
    event = probe.make("a", 1)
    await probe.send(event, headers=((b"ce_type", b"probe.account.deposited.v1"), (b"odd", b"\xff\x00")))
    replica = probe.start(record_effect)
    await eventually(lambda: _many(probe, 1, "dead"))
    (job,) = await probe.jobs()
    for topic in ("data.chains", probe.topic.name, "nowhere", "api.audit"):
        with pytest.raises(Invalid, match="may not redirect"):
            await desk.door.run(lambda tx, topic=topic: desk.jobs.redirect(tx, job["id"], ME, topic))
    target = f"{probe.name}.dlq"
    done = await desk.door.run(lambda tx: desk.jobs.redirect(tx, job["id"], ME, target))
    assert (done["status"], done["resolution"]) == ("resolved", f"redirected to {target}")
    replica.relay.wake()
    letter, sent = await probe.read_topic(target, 2)
    assert (sent.key, sent.value) == (b"a", event.to_bytes()) == (letter.key, letter.value)
    assert sent.headers == (
        ("ce_type", b"probe.account.deposited.v1"),
        ("odd", b"\xff\x00"),
        ("openbell-redirected-from", f"probe/{job['id']}".encode()),
    )


async def _many(probe: Probe, count: int, *statuses: str) -> bool:
    return len(await probe.jobs(*statuses)) == count


async def _effects(probe: Probe, expected: list[int]) -> bool:
    return await probe.effects() == expected


async def _count(probe: Probe, expected: int) -> bool:
    return len(await probe.effects()) >= expected


async def _progress(desk: Desk, run: Any, rows: int) -> bool:
    return (await desk.show(run))["counts"].get("done", 0) >= rows


async def _a_second_later(desk: Desk, run: Any) -> None:
    """Wait for the renewals of a second, or the run's end: a run that keeps no pace is done by then."""
    lease = f"select lease_until from ops_runs where id = '{run['id']}'"
    first = await desk.value(lease)

    async def later() -> bool:
        now = await desk.value(lease)
        return now is None or now - first > timedelta(seconds=1)

    await eventually(later)

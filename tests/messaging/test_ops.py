"""What a person sees of failed jobs, and does about them."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Conflict, Invalid, NotFound, Permanent
from shared.messaging.lane import Lanes, lock_lane
from shared.messaging.record import Record, lane_of
from tests.conftest import eventually
from tests.messaging.harness import FAST, Deposited, Probe, record_effect

PATIENT = replace(FAST, delays_s=(60.0,))


async def refuse_ones(event: Deposited, tx: Tx) -> list[Event]:
    if event.n == 1:
        raise Permanent(f"account {event.account!r} has no 1")
    return await record_effect(event, tx)


async def test_failures_are_listed_grouped_shown_and_discarded(probe: Probe) -> None:
    for account in "abc":
        await probe.send(probe.make(account, 1))
    probe.start(refuse_ones)
    await eventually(lambda: _many(probe, 3))
    async with probe.db.read() as tx:
        page = await probe.failed_jobs.page(tx, limit=2)
        rest = await probe.failed_jobs.page(tx, before=page[-1]["id"])
        (group,) = await probe.failed_jobs.groups(tx)
        same = await probe.failed_jobs.page(tx, fingerprint=group["fingerprint"])
        nobodys = await probe.failed_jobs.page(tx, consumer="probe.other")
        shown = await probe.failed_jobs.show(tx, page[0]["id"])
    assert [len(page), len(rest), len(same), len(nobodys)] == [2, 1, 3, 0]
    assert (group["rows"], group["error_code"], group["statuses"]) == (3, "REFUSED", ["dead"])
    assert shown["value"] == {"account": shown["key"], "n": 1}
    assert [error["code"] for error in shown["errors"]] == ["REFUSED"]
    job = page[0]["id"]
    with pytest.raises(Invalid):
        await probe.act(lambda tx: probe.failed_jobs.discard(tx, job, "me", " "))
    with pytest.raises(NotFound):
        await probe.act(lambda tx: probe.failed_jobs.retry(tx, uuid4(), "me"))
    async with probe.db.transaction() as tx:
        done = await probe.failed_jobs.discard(tx, job, "me", "seen")
    (audit,) = done.events
    assert isinstance(audit, ActionAudited)
    assert (audit.action, audit.actor, audit.details["reason"]) == ("discard.failed_job", "me", "seen")
    assert (done.value["resolved_by"], done.value["resolution"]) == ("me", "seen")
    for again in (
        lambda tx: probe.failed_jobs.discard(tx, job, "me", "seen"),
        lambda tx: probe.failed_jobs.retry(tx, job, "me"),
    ):
        with pytest.raises(Conflict):
            await probe.act(again)
    assert await _many(probe, 2, "dead")


async def test_a_discard_waits_for_what_is_parking_behind_the_row_and_frees_it(probe: Probe) -> None:
    """Without the lane's lock, a row that parks while its head is discarded would wait for ever."""
    await probe.send(probe.make("a", 1))
    replica = probe.start(refuse_ones, policy=replace(FAST, hold=True))
    await eventually(lambda: _many(probe, 1, "held"))
    (job,) = await probe.jobs()
    lane = lane_of(Record(job["topic"], job["partition"], 0, b"a", None, ()), Lanes.count)
    async with probe.db.transaction() as tx:
        await lock_lane(tx, (probe.name, job["topic"], job["partition"], lane))
        discard = asyncio.create_task(probe.act(lambda tx: probe.failed_jobs.discard(tx, job["id"], "me", "seen")))
        await eventually(lambda: _somebody_waits_for_a_lock(probe))
        await tx.execute(
            text(
                """
                insert into failed_jobs (consumer, topic, partition, record_offset, key, value, headers, status)
                select consumer, topic, partition, record_offset + 1, key, cast(:value as bytea), headers, 'waiting'
                from failed_jobs
                """
            ),
            value=probe.make("a", 2).to_bytes(),
        )
    await discard
    await eventually(lambda: _effects(probe, [2]))
    await replica.stop()


async def test_an_older_row_of_a_key_goes_first_and_nothing_spins(probe: Probe) -> None:
    """A dead row that is retried stands before the waiting head; held again, it stops the head without a hot loop."""
    running = 0
    broken = True

    async def fail(event: Deposited, tx: Tx) -> list[Event]:
        nonlocal running
        running += 1
        if broken:
            raise Permanent("no")
        return await record_effect(event, tx)

    for n in range(2):
        await probe.send(probe.make("a", n))
    probe.start(fail)
    await eventually(lambda: _many(probe, 2, "dead"))
    first, second = await probe.jobs()
    before = running
    async with probe.db.transaction() as tx:  # as if the first had been held, and the second were due
        await tx.execute(text("update failed_jobs set status = 'held' where id = :id"), id=first["id"])
        await tx.execute(
            text("update failed_jobs set status = 'waiting', due_at = now() where id = :id"), id=second["id"]
        )
    await eventually(lambda: _not_due(probe, second["id"]))
    assert running == before
    broken = False
    await probe.act(lambda tx: probe.failed_jobs.retry(tx, first["id"], "me"))
    await eventually(lambda: _effects(probe, [0, 1]))


async def test_a_gap_is_red_until_a_person_has_seen_it_and_cannot_be_retried(probe: Probe) -> None:
    for n in range(3):
        await probe.send(probe.make("a", n), partition=0)
    admin: Any = probe.producer.client
    await _delete_records(probe, admin, 2)
    async with probe.db.transaction() as tx:
        await tx.execute(
            text("insert into consumer_offsets values (:c, :t, 0, 0, now())"), c=probe.name, t=probe.topic.name
        )
    replica = probe.start(record_effect)
    await eventually(lambda: _effects(probe, [2]))
    await eventually(lambda: "may be lost" in replica.delivery.health()[1])
    (job,) = await probe.jobs()
    assert (job["error_code"], job["record_offset"]) == ("GAP", 0)
    assert "offsets 0 to 1 left the log" in job["error_message"]
    with pytest.raises(Conflict):
        await probe.act(lambda tx: probe.failed_jobs.retry(tx, job["id"], "me"))
    await probe.act(lambda tx: probe.failed_jobs.discard(tx, job["id"], "me", "known"))
    await eventually(lambda: replica.delivery.health()[0])


async def _delete_records(probe: Probe, client: Any, before: int) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # noqa: PLC0415
    from aiokafka.structs import TopicPartition  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=probe.address.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(probe.topic.name, 0): RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


async def _many(probe: Probe, count: int, *statuses: str) -> bool:
    return len(await probe.jobs(*statuses)) == count


async def _effects(probe: Probe, expected: list[int]) -> bool:
    return await probe.effects() == expected


async def _not_due(probe: Probe, job_id: object) -> bool:
    return [job["due_at"] for job in await probe.jobs() if job["id"] == job_id] == [None]


async def _somebody_waits_for_a_lock(probe: Probe) -> bool:
    async with probe.db.read() as tx:
        return await tx.fetchval(text("select exists (select 1 from pg_locks where not granted)"))

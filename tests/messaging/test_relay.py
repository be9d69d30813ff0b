"""From the outbox to Kafka: everything, in order for each key, whatever dies on the way."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text

from deploy.local import kafka as local_kafka
from shared.contracts.api import ActionAudited
from shared.contracts.topics import Topic
from shared.db import Database
from shared.messaging.door import Done, Door
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.outbox import Outbox
from shared.messaging.relay import Relay
from tests.conftest import eventually
from tests.messaging.harness import INSERT, Deposited, Probe, record_effect
from tests.messaging.processes import child

PENDING = text("select count(*) from outbox")


@asynccontextmanager
async def relaying(probe: Probe, address: KafkaAddress | None = None) -> AsyncGenerator[tuple[Relay, Door]]:
    """A process's share of the outbox: a door that writes to it and a relay."""
    db = Database(probe.url, schema="probe", size=8)
    relay = Relay("probe", db, address or probe.address)
    task = asyncio.create_task(relay.run())
    try:
        yield relay, Door(db, Outbox("probe", relay.wake))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await db.close()


async def publish(door: Door, *events: Deposited) -> None:
    async def use_case(tx: object) -> Done[None]:
        return Done(None, events)

    await door.run(use_case)


async def in_topic(probe: Probe, count: int) -> dict[str, list[int]]:
    """Return account -> numbers, first occurrences only: a consumer's inbox drops the others."""
    seen: dict[str, list[int]] = {}
    for record in await probe.read_topic(probe.topic.name, count):
        event = probe.event.from_bytes(record.value, id=uuid4(), time=datetime.now(UTC))
        if event.n not in seen.setdefault(event.account, []):
            seen[event.account].append(event.n)
    return seen


async def pending(probe: Probe) -> int:
    async with probe.db.read() as tx:
        return await tx.fetchval(PENDING)


async def _drained(probe: Probe) -> bool:
    return await pending(probe) == 0


async def test_a_key_keeps_its_order_under_concurrent_transactions(probe: Probe) -> None:
    """Each transaction takes the account's next number under a row lock, then dawdles before it commits."""
    async with probe.db.transaction() as tx:
        for account in "abc":
            await tx.execute(INSERT, account=account, n=0)
    draw = random.Random(3)

    async def deposit(door: Door, account: str) -> None:
        async def use_case(tx: object) -> Done[None]:
            n = await tx.fetchval(  # type: ignore[attr-defined]
                text("update effects set n = n + 1 where account = :account returning n"), account=account
            )
            return Done(None, [probe.make(account, n)])

        await asyncio.sleep(draw.random() / 20)
        await door.run(use_case)

    async with relaying(probe) as (_, door):
        await asyncio.gather(*(deposit(door, account) for account in "abc" * 40))
        assert await in_topic(probe, 120) == {account: list(range(1, 41)) for account in "abc"}
        await eventually(lambda: _is_empty(probe))


async def test_one_leads_another_takes_over_and_commits_in_any_process_wake_it(probe: Probe) -> None:
    async with relaying(probe) as (first, door), relaying(probe) as (second, other_door):
        await eventually(lambda: "leading" in {first.health()[1], second.health()[1]})
        leader, follower = (first, second) if first.health()[1] == "leading" else (second, first)
        assert follower.health() == (True, "standing by")
        for relay in (first, second):
            relay.poll_s = 30  # type: ignore[misc] - only a NOTIFY can wake the leader now
        await publish(door, probe.make("a", 1))
        await publish(other_door, probe.make("a", 2))
        assert await in_topic(probe, 2) == {"a": [1, 2]}
        for relay in (first, second):
            relay.poll_s = 0.1  # type: ignore[misc]
        await _kill_leader(probe)
        await publish(door, probe.make("a", 3))
        await publish(other_door, probe.make("a", 4))
        assert (await in_topic(probe, 4))["a"][:2] == [1, 2]
        await eventually(lambda: _is_empty(probe))
        assert (await in_topic(probe, 4)) == {"a": [1, 2, 3, 4]}
        await eventually(lambda: leader.health()[0] and follower.health()[0])


async def test_a_leader_that_stands_still_loses_the_lead(probe: Probe) -> None:
    process = child(probe, "relay")
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"leading\n"
        os.kill(process.pid, signal.SIGSTOP)
        async with relaying(probe) as (relay, door):
            await publish(door, probe.make("a", 1))
            assert await in_topic(probe, 1) == {"a": [1]}
            assert relay.health() == (True, "leading")
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


async def test_what_kafka_refuses_is_held_and_its_key_waits_until_a_person_decides(probe: Probe) -> None:
    async with relaying(probe) as (_, door):
        huge = probe.make(random.Random(1).randbytes(2_500_000).hex(), 1)
        later = [probe.make("a", n) for n in (2, 3)]
        await _insert(probe, [(b"a", huge.to_bytes()), (b"a", later[0].to_bytes()), (b"b", b"{}")])
        await eventually(lambda: _codes(probe, ["MessageSizeTooLargeError", "BEHIND"]))
        await publish(door, later[1])
        await eventually(lambda: _codes(probe, ["MessageSizeTooLargeError", "BEHIND", "BEHIND"]))
        assert [record.key for record in await probe.read_topic(probe.topic.name, 1)] == [b"b"]
        jobs = await probe.jobs()
        assert [job["status"] for job in jobs] == ["held", "waiting", "waiting"]
        await probe.act(lambda tx: probe.failed_jobs.retry(tx, jobs[0]["id"], "test"))
        await eventually(lambda: _attempts(probe, jobs[0]["id"], 1))
        assert (await probe.jobs())[0]["status"] == "held", "refused again"
        await probe.act(lambda tx: probe.failed_jobs.discard(tx, jobs[0]["id"], "test", "too large"))
        await publish(door, probe.make("a", 4))
        records = [record for record in await probe.read_topic(probe.topic.name, 4) if record.key == b"a"]
        assert [probe.event.from_bytes(one.value, id=uuid4(), time=datetime.now(UTC)).n for one in records] == [2, 3, 4]
        await eventually(lambda: _is_empty(probe))


@pytest.mark.apache  # the embedded broker makes any topic that is asked for
async def test_a_topic_that_is_missing_stops_only_itself_and_shows(probe: Probe) -> None:
    async with relaying(probe) as (relay, door):
        relay.answer_s, relay.look_again_s = 2, 1  # type: ignore[misc]
        late = Topic(f"{probe.topic.name}-late")
        async with probe.db.transaction() as tx:
            await tx.execute(
                text("insert into outbox (topic, key, value, headers) values (:topic, 'a', 'x', '\\x90')"),
                topic=late.name,
            )
        await publish(door, probe.make("a", 1))
        assert await in_topic(probe, 1) == {"a": [1]}
        await eventually(lambda: relay.health() == (False, f"Kafka has no topic {late.name}"))
        await ensure_topics(probe.address, [late])
        assert [one.value for one in await probe.read_topic(late.name, 1)] == [b"x"]
        await eventually(lambda: relay.health()[0])


async def test_an_event_on_a_foreign_topic_raises_at_the_call(probe: Probe) -> None:
    foreign = type("Foreign", (Deposited,), {"topic": Topic("payment.payments")})
    event = foreign(id=uuid4(), time=datetime.now(UTC), account="a", n=1)
    door = Door(probe.db, Outbox("probe", lambda: None))
    with pytest.raises(TypeError, match=r"payment\.payments belongs to payment"):
        await publish(door, event)
    assert await pending(probe) == 0
    audited = ActionAudited(
        id=uuid4(), time=datetime.now(UTC), service="probe", actor="t", action="a", subject="s", at=datetime.now(UTC)
    )
    await door.run(lambda tx: _done(audited))
    assert await pending(probe) == 1, "the audit log is everybody's"


@pytest.mark.apache
@pytest.mark.chaos
async def test_a_kafka_that_dies_loses_nothing_and_its_absence_shows(probe: Probe, tmp_path: Path) -> None:
    broker = await asyncio.to_thread(local_kafka.resolve, tmp_path / "kafka", "apache")
    probe.address = KafkaAddress(broker.bootstrap)
    replica = None
    try:
        await ensure_topics(probe.address, [probe.topic])
        replica = probe.start(record_effect)
        replica.relay.answer_s, replica.delivery.answer_s = 2, 1  # type: ignore[misc]
        door = Door(replica.db, Outbox("probe", replica.relay.wake))
        for n in range(20):
            await publish(door, probe.make("a", n))
        await eventually(lambda: _effects(probe, 20))
        broker.kill()
        for n in range(20, 40):
            await publish(door, probe.make("a", n))
        await eventually(lambda: not replica.relay.health()[0], timeout_s=10)
        await eventually(lambda: not replica.delivery.health()[0], timeout_s=10)
        assert await pending(probe) == 20
        broker = await asyncio.to_thread(local_kafka.resolve, tmp_path / "kafka", "apache")
        await eventually(lambda: _effects(probe, 40))
        assert await probe.effects("a") == list(range(40))
        await eventually(lambda: replica.relay.health()[0] and replica.delivery.health()[0])
        await eventually(lambda: _drained(probe))
    finally:
        if replica is not None:
            await replica.stop()
            probe.replicas.remove(replica)
        broker.stop()


async def _effects(probe: Probe, count: int) -> bool:
    return len(await probe.effects()) >= count


async def _kill_leader(probe: Probe) -> None:
    admin = await asyncpg.connect(probe.url.replace("openbell_probe@", "postgres@"))
    killed = await admin.fetch(
        """
        select pg_terminate_backend(l.pid) from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and locktype = 'advisory' and granted and objsubid = 1
        """
    )
    await admin.close()
    assert len(killed) == 1


async def _insert(probe: Probe, rows: list[tuple[bytes, bytes]]) -> None:
    async with probe.db.transaction() as tx:
        for key, value in rows:
            await tx.execute(
                text("insert into outbox (topic, key, value, headers) values (:topic, :key, :value, '\\x90')"),
                topic=probe.topic.name,
                key=key,
                value=value,
            )


async def _done(event: ActionAudited) -> Done[None]:
    return Done(None, [event])


async def _is_empty(probe: Probe) -> bool:
    return await pending(probe) == 0


async def _codes(probe: Probe, expected: list[str]) -> bool:
    return [job["error_code"] for job in await probe.jobs()] == expected


async def _attempts(probe: Probe, job_id: object, expected: int) -> bool:
    return [job["attempts"] for job in await probe.jobs() if job["id"] == job_id] >= [expected]

"""Replicas come and go, processes and connections are killed: every effect once, in order."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from shared.contracts.base import Event
from shared.db import Tx
from shared.messaging.kafka import KafkaAddress
from tests.conftest import eventually
from tests.messaging.harness import Deposited, Probe, probing, record_effect
from tests.messaging.processes import child

ACCOUNTS = "abcdefgh"


async def send_all(probe: Probe, first: int, last: int) -> None:
    """Send first..last-1 of every account, each account in order."""
    for n in range(first, last):
        await asyncio.gather(*(probe.send(probe.make(account, n)) for account in ACCOUNTS))


async def all_done(probe: Probe, count: int) -> bool:
    return len(await probe.effects()) >= count * len(ACCOUNTS)


async def assert_once_in_order(probe: Probe, count: int) -> None:
    for account in ACCOUNTS:
        assert await probe.effects(account) == list(range(count))


@pytest.mark.apache
async def test_two_replicas_share_and_a_rebalance_in_the_middle_changes_nothing(
    probe_url: str, address: KafkaAddress
) -> None:
    async with probing(probe_url, address, partitions=4) as probe:
        first = probe.start(record_effect, member="first")
        sending = asyncio.create_task(send_all(probe, 0, 100))
        await eventually(lambda: all_done(probe, 10))
        second = probe.start(record_effect, member="second")
        await eventually(lambda: second.delivery.health() == (True, "2 partitions"))
        assert first.delivery.health() == (True, "2 partitions")
        await sending
        await first.stop()
        await send_all(probe, 100, 120)
        await eventually(lambda: all_done(probe, 120))
        await assert_once_in_order(probe, 120)
        assert await probe.jobs() == []


@pytest.mark.chaos
async def test_a_consumer_killed_in_the_middle_leaves_nothing_undone_and_nothing_done_twice(probe: Probe) -> None:
    probe.address = replace(probe.address, static_members=True)  # so that the successor need not outwait a session
    await send_all(probe, 0, 60)
    process = child(probe, "consumer")
    try:
        await eventually(lambda: all_done(probe, 10))
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)
    assert not await all_done(probe, 60), "killed too late to prove anything"
    await send_all(probe, 60, 70)
    probe.start(record_effect)
    await eventually(lambda: all_done(probe, 70))
    await assert_once_in_order(probe, 70)
    assert await probe.jobs() == []


@pytest.mark.chaos
async def test_connections_that_die_cost_nothing_and_are_no_attempts(probe: Probe) -> None:
    admin = await asyncpg.connect(probe.url.replace("openbell_probe@", "postgres@"))
    replica = probe.start(record_effect)
    sending = asyncio.create_task(send_all(probe, 0, 100))
    killed = 0
    while not sending.done() or killed <= 10:
        killed += await admin.fetchval(
            """
            select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = current_database() and usename = 'openbell_probe'
            """
        )
        await asyncio.sleep(0.05)
    await admin.close()
    await sending
    await eventually(lambda: all_done(probe, 100))
    await assert_once_in_order(probe, 100)
    assert await probe.jobs() == [], "a lost connection is nobody's attempt"
    await eventually(lambda: replica.delivery.health()[0])


async def test_what_is_derived_has_the_same_id_when_it_runs_again(probe: Probe) -> None:
    """The first run is undone after its events were made; the second run tells the same facts."""
    told: list[Any] = []

    async def derive(event: Deposited, tx: Tx) -> Sequence[Event]:
        made = [probe.event.caused_by(event, ordinal, account="derived", n=ordinal) for ordinal in range(2)]
        if event.account == "derived":
            return []
        told.append([one.id for one in made])
        if len(told) == 1:
            raise asyncpg.SerializationError("made up")
        return made

    event = probe.make("a", 1)
    await probe.send(event)
    probe.start(derive)
    records = await probe.read_topic(probe.topic.name, 3)
    ids = {dict(one.headers)["ce_id"].decode() for one in records if one.key == b"derived"}
    assert told[0] == told[1]
    assert ids == {str(one) for one in told[0]}
    times = {dict(one.headers)["ce_time"] for one in records}
    assert times == {event.time.isoformat().encode()}, "a derived fact lies in its cause's inbox day"


@pytest.mark.chaos
async def test_a_postgres_that_stands_still_is_nobodys_attempt(probe: Probe) -> None:
    """The lane is locked by somebody else for longer than the deadline; nothing is parked, then it runs."""
    admin = await asyncpg.connect(probe.url.replace("openbell_probe@", "postgres@"))
    await admin.execute("begin; lock table probe.inbox in access exclusive mode")
    replica = probe.start(record_effect)
    replica.lanes.deadline_s = 0.2  # type: ignore[misc]
    await probe.send(probe.make("a", 1))
    await eventually(lambda: not replica.delivery.health()[0] and replica.delivery.health()[1].startswith("runs again"))
    await admin.execute("commit")
    await admin.close()
    await eventually(lambda: all_effects(probe, [1]))
    assert await probe.jobs() == []
    await eventually(lambda: replica.delivery.health()[0])


async def all_effects(probe: Probe, expected: list[int]) -> bool:
    return await probe.effects() == expected

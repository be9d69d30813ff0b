"""What the runtime shows of itself is true, above all while it stands still."""

import asyncio
import zlib
from collections.abc import Sequence
from datetime import timedelta

from prometheus_client import REGISTRY
from sqlalchemy import text

from shared.clock import utc_now
from shared.contracts.base import Event
from shared.db import Database, Tx
from shared.errors import Permanent
from shared.messaging import metrics
from shared.messaging.door import Done, Door
from shared.messaging.kafka import KafkaAddress
from shared.messaging.outbox import Outbox
from shared.messaging.relay import Relay
from tests.conftest import eventually
from tests.messaging.harness import Deposited, Probe

NOWHERE = KafkaAddress("127.0.0.1:1")


def value(name: str, **labels: str) -> float:
    """Return what is shown; -1 where nothing is."""
    found = REGISTRY.get_sample_value(name, labels)
    return -1.0 if found is None else found


async def test_lag_is_told_in_records_and_in_the_age_of_the_oldest_that_waits(probe: Probe) -> None:
    gate = asyncio.Event()

    async def wait(event: Deposited, tx: Tx) -> Sequence[Event]:
        del event, tx
        await gate.wait()
        return ()

    an_hour_ago = int((utc_now() - timedelta(hours=1)).timestamp() * 1000)
    partition, _ = await probe.send(probe.make("a", 1), timestamp_ms=an_hour_ago)
    place = {"consumer": probe.name, "topic": probe.topic.name, "partition": str(partition)}
    replica = probe.start(wait)
    replica.delivery.check_s = 0.05  # type: ignore[misc]
    await eventually(lambda: value("openbell_consumer_lag_seconds", **place) >= 3600)
    assert value("openbell_consumer_lag_records", **place) == 1
    gate.set()
    await eventually(lambda: value("openbell_consumer_lag_records", **place) == 0)
    assert value("openbell_consumer_lag_seconds", **place) < 60
    probe.replicas.remove(replica)
    await replica.stop()
    assert value("openbell_consumer_lag_seconds", **place) == -1, "what is somebody else's now is not shown here"


async def test_the_oldest_dead_event_has_an_age(probe: Probe) -> None:
    async def refuse(event: Deposited, tx: Tx) -> Sequence[Event]:
        raise Permanent("no")

    await probe.send(probe.make("a", 1))
    probe.start(refuse)
    dead = {"consumer": probe.name, "status": "dead"}
    await eventually(lambda: value("openbell_failed_jobs", **dead) == 1)
    async with probe.db.transaction() as tx:
        await tx.execute(text("update failed_jobs set failed_at = now() - interval '1 day'"))
    await eventually(lambda: value("openbell_failed_jobs_oldest_seconds", **dead) >= 86_400)
    assert value("openbell_failed_jobs_oldest_seconds", consumer=probe.name, status="waiting") == 0


async def test_an_outbox_tells_its_age_while_kafka_is_away(probe_url: str) -> None:
    db = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=4)
    async with db.transaction() as tx:
        await tx.execute(
            text(
                "insert into outbox (topic, key, value, headers, created_at) "
                "values ('probe.none', 'a', 'b', '\\x90', now() - interval '1 hour')"
            )
        )
    relay = asyncio.create_task(Relay("probe", db, NOWHERE).run())
    try:
        await eventually(lambda: value("openbell_outbox_age_seconds", service="probe") >= 3600)
        assert value("openbell_outbox_rows", service="probe") == 1
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        await db.close()


async def test_a_replica_that_does_not_lead_shows_nothing_of_the_outbox(probe_url: str) -> None:
    db = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=4)
    leader, follower = (Relay("probe", db, NOWHERE) for _ in range(2))
    held = await db.connect()
    await held.execute(f"select pg_advisory_lock({_lock_of(leader)})")
    metrics.outbox("probe", 7, 7.0)
    standing_by = asyncio.create_task(follower.run())
    try:
        await eventually(lambda: value("openbell_outbox_rows", service="probe") == -1)
        assert value("openbell_outbox_age_seconds", service="probe") == -1
    finally:
        standing_by.cancel()
        await asyncio.gather(standing_by, return_exceptions=True)
        held.terminate()
        await db.close()


async def test_what_is_committed_is_counted_by_type_and_what_is_rolled_back_is_not(probe: Probe) -> None:
    door = Door(probe.db, Outbox("probe", lambda: None))
    kind = {"type": Deposited.type, "state": ""}
    before = max(0.0, value("openbell_events_published_total", **kind))

    async def tell(tx: Tx) -> Done[None]:
        del tx
        return Done(None, [probe.make("a", 1), probe.make("b", 2)])

    async def fail(tx: Tx) -> Done[None]:
        done = await tell(tx)
        await Outbox("probe", lambda: None).add(tx, done.events)
        raise RuntimeError("after the insert")

    await door.run(tell)
    with_failure = await asyncio.gather(door.run(fail), return_exceptions=True)
    assert isinstance(with_failure[0], RuntimeError)
    assert value("openbell_events_published_total", **kind) == before + 2


def _lock_of(relay: Relay) -> int:

    return zlib.crc32(f"relay/{relay.consumer.partition('.')[0]}".encode())

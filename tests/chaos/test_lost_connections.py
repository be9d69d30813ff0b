"""Connections to Postgres that are lost in ways that only a network knows."""

from collections.abc import AsyncGenerator
from random import Random

import asyncpg
import pytest

from shared.messaging.kafka import KafkaAddress
from tests.chaos.proxy import Proxy
from tests.conftest import eventually
from tests.messaging.harness import Probe, probing, record_effect


@pytest.fixture
async def proxy(probe_url: str) -> AsyncGenerator[Proxy]:
    opened = Proxy(int(probe_url.rpartition("/")[0].rpartition(":")[2]), Random(1))
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def probe(probe_url: str, address: KafkaAddress, proxy: Proxy) -> AsyncGenerator[Probe]:
    """A probe whose replicas reach Postgres through the proxy."""
    async with probing(probe_url, address) as opened:
        opened.url = opened.url.replace(f":{proxy.upstream}/", f":{proxy.port}/")
        yield opened


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_relay_that_hears_of_its_end_before_the_connection_ends_goes_on(
    probe: Probe, proxy: Proxy, probe_url: str
) -> None:
    """asyncpg then calls its own state broken (InternalClientError), or waits for an answer that never comes.

    The relay must connect again, not break, at the latest when a statement's time is over.
    """
    replica = probe.start(record_effect)
    await eventually(lambda: replica.relay.health() == (True, "leading"))
    proxy.hides_ends = True
    admin = await asyncpg.connect(probe_url)
    await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'openbell_probe'")
    await admin.close()
    proxy.hides_ends = False
    replica.relay.wake()
    await eventually(lambda: replica.relay.health() != (True, "leading"), timeout_s=70)
    await eventually(lambda: replica.relay.health() == (True, "leading"))
    assert not replica.tasks[0].done()


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_connection_that_falls_silent_stops_neither_relay_nor_consumer_for_ever(
    probe: Probe, proxy: Proxy
) -> None:
    """The server's side is gone, the client's hears nothing and no end, as behind a load balancer."""
    replica = probe.start(record_effect)
    await probe.send(probe.make("a", 1))

    async def done(count: int) -> bool:
        return len(await probe.effects()) == count

    await eventually(lambda: done(1))
    await eventually(lambda: replica.relay.health() == (True, "leading"))
    assert proxy.half_open("client") > 1
    await probe.send(probe.make("a", 2))
    await eventually(lambda: done(2), timeout_s=70)
    await probe.send(probe.make("a", 3))
    await eventually(lambda: done(3), timeout_s=70)

    async def led() -> bool:
        """Somebody holds the relay's lock, and on a connection that works."""
        async with probe.db.read() as tx:
            return bool(await tx.connection.fetchval(_LED))

    await eventually(led, timeout_s=70)


_LED = """
    select count(*) from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and a.datname = current_database() and a.query not like 'select count(*)%'
"""

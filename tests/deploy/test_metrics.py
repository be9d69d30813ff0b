"""Every metric is named by the convention, bounded, and in the list; the new ones tell the truth."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import asyncpg
import httpx
import pytest
from prometheus_client import REGISTRY
from purgatory import AsyncCircuitBreakerFactory

from deploy.local import postgres
from deploy.metrics import DOCUMENT, LABELS, OVER_REPLICAS, Metric, declared, document
from shared.db import Database
from shared.external import Client, breaker_moved, calling
from shared.migrate import prepare
from shared.settings import SharedSettings
from shared.vitals import Vitals
from tests.conftest import eventually

METRICS = declared()
NAMED = re.compile(r"openbell_[a-z0-9]+(_[a-z0-9]+)+")
UNBOUNDED = {"user", "user_id", "account", "symbol", "url", "path", "email", "error", "message", "order", "id", "key"}
each = pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_the_list_is_what_the_code_declares() -> None:
    assert DOCUMENT.read_text() == document(), "run `python -m deploy.metrics`"


@each
def test_a_name_ends_in_its_unit(metric: Metric) -> None:
    assert NAMED.fullmatch(metric.name)
    assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|kb|mb|percent)(_total)?$", metric.name)
    assert metric.about
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_bytes"))
    if "Unix time" in metric.about or metric.about.startswith("When "):
        assert metric.name.endswith("_timestamp_seconds")


@each
def test_a_label_takes_few_values(metric: Metric) -> None:
    assert set(metric.labels) <= set(LABELS) - UNBOUNDED


@each
def test_a_gauge_says_how_replicas_are_put_together(metric: Metric) -> None:
    assert (metric.kind == "gauge") == (metric.name in OVER_REPLICAS)


def test_what_is_said_of_labels_and_gauges_is_said_of_some() -> None:
    assert set(LABELS) == {label for metric in METRICS for label in metric.labels}
    assert set(OVER_REPLICAS) <= {metric.name for metric in METRICS}


@pytest.mark.parametrize(("status", "outcome"), [(200, "ok"), (404, "refused"), (503, "failed")])
async def test_a_call_of_another_system_is_counted_by_how_it_ended(status: int, outcome: str) -> None:
    before = value("openbell_external_requests_total", api="test", outcome=outcome) or 0.0
    seconds = value("openbell_external_request_seconds_count", api="test") or 0.0
    async with Client("test", transport=httpx.MockTransport(lambda _: httpx.Response(status))) as client:
        await client.get("http://other.example/users/7")
    assert value("openbell_external_requests_total", api="test", outcome=outcome) == before + 1
    assert value("openbell_external_request_seconds_count", api="test") == seconds + 1


def test_a_call_that_raises_has_failed() -> None:
    before = value("openbell_external_requests_total", api="test", outcome="failed") or 0.0
    with pytest.raises(OSError, match="away"), calling("test"):
        raise OSError("away")
    assert value("openbell_external_requests_total", api="test", outcome="failed") == before + 1


async def test_a_breaker_shows_whether_it_is_open() -> None:
    breakers = AsyncCircuitBreakerFactory(default_threshold=2, default_ttl=0.01)
    breakers.add_listener(breaker_moved)

    async def call(error: Exception | None = None) -> float | None:
        with contextlib.suppress(Exception):
            async with await breakers.get_breaker("test"):
                if error is not None:
                    raise error
        return value("openbell_breaker_open", target="test")

    assert await call() == 0
    assert await call(OSError()) == 0
    assert await call(OSError()) == 1

    async def closed() -> bool:
        return await call() == 0

    await eventually(closed)


async def test_a_pool_in_use_and_a_loop_that_is_late_are_seen(open_database: Callable[[str], Database]) -> None:
    db = open_database("api")
    vitals = Vitals("api", db)
    vitals.tick_s = 0.01
    slow = "openbell_event_loop_lag_seconds_bucket"
    before = value(slow, service="api", le="+Inf") or 0.0
    in_time = value(slow, service="api", le="0.1") or 0.0
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(db.read())
        waiter = asyncio.create_task(db.pool.acquire())
        task = asyncio.create_task(vitals.run())
        try:
            await eventually(lambda: value("openbell_database_pool_used", service="api") == 8)
            await eventually(lambda: value("openbell_database_pool_waiting", service="api") == 1)
            assert value("openbell_database_pool_size", service="api") == 8
            _hold_the_loop()
            await eventually(
                lambda: (
                    (value(slow, service="api", le="+Inf") or 0.0) - before
                    > (value(slow, service="api", le="0.1") or 0.0) - in_time
                )
            )
        finally:
            task.cancel()
            waiter.cancel()
            await asyncio.gather(task, waiter, return_exceptions=True)


async def test_postgres_tells_the_oldest_transaction_of_the_role_and_its_connections(
    open_database: Callable[[str], Database],
) -> None:
    db = open_database("api")
    vitals = Vitals("api", db)
    vitals.tick_s, vitals.look_s = 0.01, 0.0
    oldest = "openbell_postgres_oldest_transaction_seconds"
    async with db.transaction() as tx:
        await tx.connection.execute("set transaction isolation level repeatable read")
        await tx.connection.execute("select count(*) from users")  # a snapshot is held from here on
        task = asyncio.create_task(vitals.run())
        try:
            await eventually(lambda: (value(oldest, service="api") or 0) > 0.2)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    connections = value("openbell_postgres_connections", service="api") or 0
    everybody = value("openbell_postgres_connections_all", service="api") or 0
    assert 2 <= connections <= everybody <= (value("openbell_postgres_connections_max", service="api") or 0)
    assert (value("openbell_postgres_database_bytes", service="api") or 0) > 1_000_000


@pytest.mark.slow
async def test_postgres_tells_prepared_transactions_and_slots_of_anybody(tmp_path: Path) -> None:
    more = {"wal_level": "logical", "max_prepared_transactions": "2"}
    with postgres.start(tmp_path / "postgres", fsync=False, more=more) as server:
        await prepare(server.dsn, ("api",))
        admin = await asyncpg.connect(server.dsn)
        await admin.execute("create table held (one int)")
        await admin.execute("select pg_create_logical_replication_slot('nobody_reads', 'pgoutput')")  # waits for others
        await admin.execute("begin; insert into held values (1); prepare transaction 'left'")
        for _ in range(5):
            await admin.execute("select pg_current_xact_id()")
        db = Database(SharedSettings(database_url=server.dsn).service_database_url("api"), schema="api", size=2)
        vitals = Vitals("api", db)
        vitals.tick_s, vitals.look_s = 0.01, 0.0
        task = asyncio.create_task(vitals.run())
        try:
            await eventually(lambda: (value("openbell_postgres_oldest_prepared_seconds", service="api") or 0) > 0.1)
            assert (value("openbell_postgres_slot_xmin_transactions", service="api") or 0) >= 5
            await admin.execute("rollback prepared 'left'")
            await admin.execute("select pg_drop_replication_slot('nobody_reads')")
            await eventually(lambda: value("openbell_postgres_oldest_prepared_seconds", service="api") == 0)
            await eventually(lambda: value("openbell_postgres_slot_xmin_transactions", service="api") == 0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await db.close()
            await admin.close()
    postgres.remove(tmp_path / "postgres")


def _hold_the_loop() -> None:
    """Keep the event loop from turning for a fifth of a second: what is measured here, not a wait for anything."""
    import time  # noqa: PLC0415 - only here

    until = time.perf_counter() + 0.2
    while time.perf_counter() < until:
        pass

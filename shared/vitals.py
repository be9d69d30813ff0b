"""How a service itself is: whether its event loop keeps time, its pool has room, and what it takes of Postgres.

A process that serves several services measures the one loop for each of them; the figures agree. What Postgres tells
of sessions is about this service's role alone: of others it shows no more than that they are there (pg_read_all_stats
would show it more, other services' queries too). Prepared transactions and slots it shows of everybody. All of it takes
0.03 % of a core (measured in a process that does nothing else).
"""

import asyncio
from typing import Final

from prometheus_client import Gauge, Histogram
from sqlalchemy import text

from shared.db import Database, is_rerun

LOOP_LAG: Final = Histogram(
    "openbell_event_loop_lag_seconds",
    "How much later than asked for the event loop woke a sleeper, once a second.",
    ("service",),
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)
POOL_SIZE: Final = Gauge("openbell_database_pool_size", "Connections that the pool may open.", ("service",))
POOL_USED: Final = Gauge("openbell_database_pool_used", "Connections in use, looked at once a second.", ("service",))
POOL_WAITING: Final = Gauge("openbell_database_pool_waiting", "Who waits for a connection.", ("service",))
CONNECTIONS: Final = Gauge(
    "openbell_postgres_connections", "Connections of this service's role, all replicas.", ("service",)
)
CONNECTIONS_ALL: Final = Gauge("openbell_postgres_connections_all", "Connections of everybody.", ("service",))
CONNECTIONS_MAX: Final = Gauge(
    "openbell_postgres_connections_max", "Connections that Postgres allows to roles like ours.", ("service",)
)
OLDEST_TRANSACTION: Final = Gauge(
    "openbell_postgres_oldest_transaction_seconds",
    "Age of the role's oldest transaction that holds back the clearing away of dead rows (xmin); 0 where none does.",
    ("service",),
)
OLDEST_PREPARED: Final = Gauge(
    "openbell_postgres_oldest_prepared_seconds",
    "Age of the oldest prepared transaction, whoever's it is; it holds back xmin, and outlives its session.",
    ("service",),
)
SLOT_XMIN: Final = Gauge(
    "openbell_postgres_slot_xmin_transactions",
    "Transactions since the one that a replication slot holds xmin back to, of rows or of the catalog; the furthest.",
    ("service",),
)
DATABASE_BYTES: Final = Gauge("openbell_postgres_database_bytes", "Size of the database on disk.", ("service",))

_LOOK: Final = text(
    """
    select count(*) filter (where usename = current_user) as ours,
           (select sum(numbackends) from pg_stat_database) as everybody,
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most,
           pg_database_size(current_database()) as bytes,
           extract(epoch from clock_timestamp() - min(xact_start) filter (
               where usename = current_user and (backend_xmin is not null or backend_xid is not null))) as oldest,
           (select extract(epoch from clock_timestamp() - min(prepared)) from pg_prepared_xacts) as prepared,
           (select max(greatest(age(xmin), age(catalog_xmin))) from pg_replication_slots) as slot
    from pg_stat_activity where pid <> pg_backend_pid()
    """
)


class Vitals:
    """Measures one service."""

    tick_s: float = 1.0
    look_s: float = 30.0

    def __init__(self, service: str, db: Database) -> None:
        self.name = "vitals"
        self._service = service
        self._db = db

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        lag = LOOP_LAG.labels(self._service)
        POOL_SIZE.labels(self._service).set(self._db.pool.size)
        look_at = loop.time()
        while True:
            asked = loop.time()
            await asyncio.sleep(self.tick_s)
            lag.observe(max(0.0, loop.time() - asked - self.tick_s))
            pool = self._db.pool
            POOL_USED.labels(self._service).set(pool.in_use)
            POOL_WAITING.labels(self._service).set(pool.waiting)
            if loop.time() >= look_at and pool.in_use < pool.size:  # else it would wait, and measure nothing meanwhile
                look_at = loop.time() + self.look_s
                await self._look()

    async def _look(self) -> None:
        """Ask Postgres; one that does not answer is told by readiness."""
        try:
            async with self._db.read() as tx:
                row = await tx.fetchrow(_LOOK)
        except Exception as error:
            if not is_rerun(error):
                raise
            return
        if row is not None:
            CONNECTIONS.labels(self._service).set(row["ours"] + 1)
            CONNECTIONS_ALL.labels(self._service).set(row["everybody"])
            CONNECTIONS_MAX.labels(self._service).set(row["most"])
            DATABASE_BYTES.labels(self._service).set(row["bytes"])
            OLDEST_TRANSACTION.labels(self._service).set(max(0.0, float(row["oldest"] or 0)))
            OLDEST_PREPARED.labels(self._service).set(max(0.0, float(row["prepared"] or 0)))
            SLOT_XMIN.labels(self._service).set(row["slot"] or 0)

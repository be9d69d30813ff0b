"""The database of simulations: the schema `sim`, made as a service's first migrations make theirs."""

import asyncio
import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import Final
from uuid import uuid4

import asyncpg

from shared import migrate, work
from shared.messaging import inbox, tables
from tests.chaos.simulation.database import Server
from tests.chaos.simulation.service import DAY_ONE, SCHEMA

_TABLES: Final = (
    "create table effects (n bigserial primary key, consumer text, event_id uuid, key text)",
    f"create table jobs (id uuid primary key, {work.COLUMNS})",
)


@contextlib.contextmanager
def simulating(admin_url: str) -> Generator[Server]:
    """Make a database for simulations, and drop it at the end. Call it while no loop runs."""
    name = f"sim_{uuid4().hex[:12]}"
    url = f"{admin_url.rpartition('/')[0]}/{name}"
    asyncio.run(_command(admin_url, f"create database {name}"))
    asyncio.run(make_schema(url))
    server = Server(url.replace("//postgres@", "//openbell_sim@"), SCHEMA)
    try:
        yield server
    finally:
        server.close()
        asyncio.run(_command(admin_url, f"drop database {name} with (force)"))


async def _command(url: str, sql: str) -> None:
    admin = await asyncpg.connect(url)
    try:
        await admin.execute(sql)
    finally:
        await admin.close()


async def make_schema(admin_url: str) -> None:
    """Make the schema `sim`: messaging tables, a table of effects, one of claimed rows."""
    statements: list[str] = []

    class Operations:
        def execute(self, sqltext: str) -> None:
            statements.append(sqltext)

    await migrate.prepare(admin_url, [SCHEMA])
    tables.create(Operations())
    tables.add_cluster(Operations())
    statements.extend(_TABLES)
    work.create_indexes(Operations(), "jobs")
    work.create_pauses(Operations())
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute("set role openbell_sim; set search_path to sim")
        for statement in statements:
            await admin.execute(statement)
        day = inbox.day_of(DAY_ONE)
        # One day, not forty: emptying each costs more than a run.
        await admin.execute(
            f"create table inbox_one partition of inbox for values from ('{day}') to ('{day + timedelta(days=1)}')"
        )
        # Autovacuum must not hold a lock, or choose a plan, that another run of the seed would not see.
        for table in ("inbox_one", "consumer_offsets", "outbox", "failed_jobs", "effects", "jobs"):
            await admin.execute(f"alter table {table} set (autovacuum_enabled = off)")
    finally:
        await admin.close()

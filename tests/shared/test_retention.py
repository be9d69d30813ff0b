"""What is past its time goes in slices, each for good, whatever becomes of the next one."""

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.db import Database, Tx
from shared.messaging import failed
from shared.retention import SLICE, forget, slice_of

OLD = slice_of("things", "age > :age")
PARK = text("""
    insert into failed_jobs (consumer, topic, partition, record_offset, key, value, headers, status, updated_at)
    select 'c', 't', 0, n, 'k', 'v', '', :status, :at
    from generate_series(cast(:first as int), cast(:last as int)) as n""")


@pytest.fixture
async def db(open_database: Callable[[str], Database]) -> Database:
    database = open_database("data")
    async with database.transaction() as tx:
        await tx.execute(text("create table things (id int primary key, age int)"))
        await tx.execute(text("insert into things select n, n % 2 from generate_series(1, :rows) as n"), rows=4 * SLICE)
    return database


async def _left(db: Database, table: str = "things") -> int:
    async with db.read() as tx:
        return await tx.fetchval(text(f"select count(*) from {table}"))


async def test_all_of_a_large_backlog_goes_and_nothing_else(db: Database):
    assert await forget(db.transaction, OLD, age=0) == 2 * SLICE
    assert await _left(db) == 2 * SLICE
    assert await forget(db.transaction, OLD, age=0) == 0


async def test_what_was_deleted_stays_deleted_when_a_later_slice_fails(db: Database):
    begun = 0

    @asynccontextmanager
    async def failing_at_the_second() -> AsyncGenerator[Tx]:
        nonlocal begun
        begun += 1
        async with db.transaction() as tx:
            yield tx
            if begun > 1:
                raise TimeoutError("cut off")

    with pytest.raises(TimeoutError):
        await forget(failing_at_the_second, OLD, age=0)
    assert await _left(db) == 3 * SLICE


async def test_a_row_that_is_being_renewed_stays(db: Database):
    async with db.transaction() as tx:
        await tx.execute(text("update things set age = 0 where id = 1"))
        assert await forget(db.transaction, OLD, age=0) == 2 * SLICE - 1
    async with db.read() as tx:
        assert await tx.fetchval(text("select age from things where id = 1")) == 0


async def test_failed_jobs_that_are_settled_go_after_a_while_and_open_ones_never(db: Database):
    now = datetime.now(UTC)
    async with db.transaction() as tx:
        for number, status in enumerate(("waiting", "held", "dead", "resolved", "discarded")):
            for at in (now - timedelta(days=31), now):
                place = 2 * number + (at == now)
                await tx.execute(PARK, status=status, at=at, first=place, last=place)
    assert await failed.forget_settled(db.transaction, now - timedelta(days=30)) == 2
    assert await _left(db, "failed_jobs") == 8


async def test_a_slice_of_settled_failed_jobs_is_found_by_an_index_and_deleted_by_its_places(db: Database):
    """Whatever the statistics say: they are old when a backlog is large."""
    now = datetime.now(UTC)
    for settled in (0, 100, 2 * SLICE):
        async with db.transaction() as tx:
            await tx.execute(text("delete from failed_jobs"))
            await tx.execute(PARK, status="dead", at=now, first=1, last=SLICE)
            await tx.execute(PARK, status="resolved", at=now, first=SLICE + 1, last=SLICE + settled)
            await tx.execute(text("analyze failed_jobs"))
            plan = [row[0] for row in await tx.fetch(text(f"explain {failed.FORGET_SETTLED}"), before=now)]
        scans = [re.sub(r" +\(.*", "", line).strip(" ->") for line in plan if "Scan" in line]
        assert scans == ["Index Scan using failed_jobs_settled on failed_jobs failed_jobs_1", "Tid Scan on failed_jobs"]

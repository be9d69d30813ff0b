"""A key's rows get their ids in the order of their commits, however many keys the transactions write."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Iterable

import pytest
from sqlalchemy import text

from shared.db import Database, Tx
from shared.messaging.outbox import FEW_KEYS, Outbox
from shared.messaging.record import bucket
from tests.conftest import eventually

KEY = b"account-1"
FEW = [KEY, b"account-2"]
MANY = [KEY, *(f"other-{n}".encode() for n in range(FEW_KEYS))]
NEIGHBOUR = next(key for n in range(100_000) if bucket(key := f"neighbour-{n}".encode()) == bucket(KEY))

_IDS = text("select id, value from outbox where key = :key order by id")
_WAITERS = text(
    """
    select count(*) from pg_locks where locktype = 'advisory' and not granted
    and database = (select oid from pg_database where datname = current_database())
    """
)
_OLD_LOCK = text("select pg_advisory_xact_lock(cast(:space as int), cast(:bucket as int))")


@pytest.fixture
async def db(probe_url: str) -> AsyncGenerator[Database]:
    opened = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=4)
    yield opened
    await opened.close()


async def add(tx: Tx, keys: Iterable[bytes], value: bytes) -> None:
    await Outbox("probe", lambda: None).add(tx, (), [("probe.notes", key, value, ()) for key in keys])


async def lock_as_before(tx: Tx) -> None:
    """Lock the key's bucket as versions did that knew buckets only."""
    await tx.execute(_OLD_LOCK, space=zlib.crc32(b"outbox/probe") - 2**31, bucket=bucket(KEY))


async def waits(db: Database, task: asyncio.Task[None]) -> bool:
    """Tell whether the task stands before a lock; waits until it does or is done."""

    async def settled() -> bool:
        async with db.read() as tx:
            return task.done() or await tx.fetchval(_WAITERS) > 0

    await eventually(settled)
    return not task.done()


async def commit(db: Database, keys: Iterable[bytes], value: bytes) -> None:
    async with db.transaction() as tx:
        await add(tx, keys, value)


@pytest.mark.parametrize("second", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("first", [FEW, MANY], ids=["few", "many"])
async def test_a_transaction_waits_for_the_one_before_it_that_wrote_the_same_key(
    db: Database, first: list[bytes], second: list[bytes]
) -> None:
    async with db.transaction() as tx:
        await add(tx, first, b"first")
        later = asyncio.create_task(commit(db, second, b"second"))
        assert await waits(db, later)
    await later
    async with db.read() as tx:
        assert [row["value"] for row in await tx.fetch(_IDS, key=KEY)] == [b"first", b"second"]


async def test_small_transactions_of_other_keys_do_not_wait_for_each_other(db: Database) -> None:
    async with db.transaction() as tx:
        await add(tx, FEW, b"first")
        async with asyncio.timeout(10):
            await commit(db, [NEIGHBOUR], b"second")


async def test_a_version_that_locks_buckets_only_and_this_one_wait_for_each_other(db: Database) -> None:
    async def old() -> None:
        async with db.transaction() as tx:
            await lock_as_before(tx)

    async with db.transaction() as tx:
        await lock_as_before(tx)
        new = asyncio.create_task(commit(db, FEW, b"new"))
        assert await waits(db, new)
    await new
    async with db.transaction() as tx:
        await add(tx, FEW, b"new")
        before = asyncio.create_task(old())
        assert await waits(db, before)
    await before

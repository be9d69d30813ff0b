"""The pool is fair and leaks nothing; statements are compiled once and checked."""

import asyncio
from collections.abc import AsyncGenerator

import asyncpg
import pytest
from sqlalchemy import text

from shared.db import Database, DatabaseUnavailable, is_rerun
from tests.conftest import eventually

WHO = text("select pg_backend_pid()")


@pytest.fixture
async def db(postgres: str) -> AsyncGenerator[Database]:
    database = Database(postgres, schema="public", size=1)
    yield database
    await database.close()


async def test_a_connection_goes_to_whoever_waited_longest(db: Database) -> None:
    order: list[int] = []

    async def ask(number: int) -> None:
        async with db.read() as tx:
            await tx.fetchval(WHO)
            order.append(number)

    async with db.transaction():
        waiting = [asyncio.create_task(ask(number)) for number in range(5)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting, ask(5))
    assert order == [0, 1, 2, 3, 4, 5]


async def test_a_cancelled_statement_leaves_a_working_pool(db: Database) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), db.transaction() as tx:
                await tx.fetchval(text("select pg_sleep(10)"))
    assert db.pool.in_use == 0
    assert await db.answers()


async def test_a_waiter_that_gives_up_loses_no_connection(db: Database) -> None:
    async with db.transaction():
        waiting = [asyncio.create_task(db.answers()) for _ in range(4)]
        await asyncio.sleep(0)
        for task in waiting[:3]:
            task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert waiting[3].result() is True
    assert db.pool.in_use == 0


async def test_postgres_answers_although_the_pool_is_all_in_use(db: Database) -> None:
    async with db.read():
        assert await db.answers(within_s=5)


async def test_closing_the_pool_tells_those_who_wait(db: Database) -> None:
    async with db.transaction():
        waiting = asyncio.create_task(db.pool.acquire())
        await asyncio.sleep(0)
        await db.close()
        with pytest.raises(DatabaseUnavailable):
            await waiting
    with pytest.raises(DatabaseUnavailable):
        await db.pool.acquire()


async def test_a_killed_connection_is_a_reason_to_run_again(db: Database, postgres: str) -> None:
    admin = await asyncpg.connect(postgres)
    for use in (db.read, db.transaction):
        with pytest.raises(Exception) as caught:  # noqa: PT012 - the kill belongs to the block
            async with use() as tx:
                await admin.execute("select pg_terminate_backend($1)", await tx.fetchval(WHO))
                await eventually(tx.connection.is_closed)
                await tx.fetchval(WHO)
        assert is_rerun(caught.value)
    await admin.close()
    assert await db.answers()


async def test_nothing_is_committed_when_the_block_raises_and_callbacks_follow_the_commit(db: Database) -> None:
    told: list[str] = []
    async with db.transaction() as tx:
        await tx.execute(text("create table kept (n int)"))
        tx.after_commit(lambda: told.append("made"))
        assert told == []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        async with db.transaction() as tx:
            tx.after_commit(lambda: told.append("lost"))
            assert await tx.execute(text("insert into kept values (1), (2)")) == 2
            raise ZeroDivisionError
    async with db.transaction() as tx:
        assert await tx.fetchval(text("select count(*) from kept")) == 0
        await tx.execute(text("drop table kept"))
    assert told == ["made"]


async def test_a_wrong_parameter_is_named(db: Database) -> None:
    statement = text("select cast(:one as int) + cast(:two as int) + cast(:one as int)")
    async with db.read() as tx:
        assert await tx.fetchval(statement, one=1, two=2) == 4
        with pytest.raises(TypeError, match="three"):
            await tx.fetchval(statement, one=1, three=2)
        with pytest.raises(TypeError, match="two"):
            await tx.fetchval(statement, one=1)

"""What a claimed row carries, and whom a wait binds where several lanes lead to one destination."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import text

from shared.db import Row
from shared.errors import Transient
from shared.work import Busy, Performed, Started, Worker, start
from tests.shared.test_work import Bench, bench

__all__ = ["bench"]


async def test_a_claimed_row_carries_its_token(bench: Bench) -> None:
    ids = await bench.add("a", "b", "c")
    kept: list[Row] = []

    async def effect(row: Row) -> Performed:
        kept.append(await bench.row(row["id"]))
        return Performed()

    bench.effect = effect
    await bench.run(bench.worker())
    assert {(row["id"], row["token"]) for row in bench.performed} == {(row["id"], row["token"]) for row in kept}
    assert {row["id"] for row in bench.performed} == set(ids)
    assert all(row["token"] is not None for row in kept)


async def test_a_wait_binds_whom_the_work_names_and_not_the_lane_alone(bench: Bench) -> None:
    async with bench.database.transaction() as tx:
        await tx.execute(text("alter table chores add column owner text"))
    ids = await bench.add("a", "b", "c")
    async with bench.database.transaction() as tx:
        await tx.execute(text("update chores set owner = case when lane = 'c' then 'other' else 'one' end"))
    bench.fail(Busy(retry_after_s=5))
    plain = bench.worker()

    def worker(concurrency: int) -> Worker:
        work = replace(plain._work, pauses="owner", policy=replace(plain._policy, concurrency=concurrency))
        return Worker(work, bench.door, bench.clock, draw=lambda: 0.5)

    await bench.run(worker(1))
    await bench.run(worker(4))
    assert [row["id"] for row in bench.performed] == [ids[0], ids[2]]
    bench.clock.advance(5.001)
    await bench.run(worker(4))
    assert {row["id"] for row in bench.performed[2:]} == {ids[0], ids[1]}


async def test_what_prepare_has_started_is_performed_though_the_worker_stops(bench: Bench) -> None:
    (row_id,) = await bench.add(None)
    began, go_on = asyncio.Event(), asyncio.Event()

    async def prepare(row: Row) -> Started:
        until = bench.clock() + timedelta(seconds=30)
        async with bench.database.transaction() as tx:
            assert await tx.fetch(start("chores"), ids=[row["id"]], tokens=[row["token"]], until=until)
        began.set()
        await go_on.wait()
        return Started(row)

    bench.prepare = prepare
    worker = bench.worker()
    await worker.turn()
    await began.wait()
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    assert [row["id"] for row in bench.performed] == [row_id]
    assert (await bench.row(row_id))["status"] == "done"


async def test_a_start_that_is_undone_with_its_transaction_leaves_no_doubt(bench: Bench) -> None:
    (row_id,) = await bench.add(None)

    async def prepare(row: Row) -> Started:
        async with bench.database.transaction() as tx:
            await tx.fetch(start("chores"), ids=[row["id"]], tokens=[row["token"]], until=bench.clock())
            raise Transient("not now")

    bench.prepare = prepare
    await bench.run(bench.worker())
    row = await bench.row(row_id)
    assert (row["status"], row["uncertain"], bench.performed) == ("pending", False, [])

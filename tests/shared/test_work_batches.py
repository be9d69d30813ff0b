"""Many rows at once: what they share is shared, and what one of them does is its alone."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.work import Performed, Policy, Settled, Worker
from shared.work.choice import choose
from shared.work.pace import LEAST, ROUND_S, Patience, Places, Precedence, Together
from tests.shared.test_work import Bench, bench

__all__ = ["bench"]

MANY = Policy(concurrency=2, ahead=20, together=20, lease_s=30)


async def asking(together: Together[int, int], *asked: int) -> list[int | BaseException]:
    return await asyncio.gather(*(together(one) for one in asked), return_exceptions=True)


async def test_what_is_asked_together_is_done_at_once_and_answered_apart() -> None:
    batches: list[list[int]] = []

    async def double(ones: Sequence[int]) -> list[int | Exception]:
        batches.append(list(ones))
        await asyncio.sleep(0)
        return [ValueError(one) if one == 3 else one * 2 for one in ones]

    together = Together(double, most=4)
    answers = await asking(together, 1, 2, 3, 4, 5, 6)
    assert batches == [[1, 2, 3, 4], [5, 6]]
    assert [answers[0], answers[1], answers[3], answers[4], answers[5]] == [2, 4, 8, 10, 12]
    assert isinstance(answers[2], ValueError)


async def test_what_is_asked_during_a_batch_goes_with_the_next_and_a_failure_is_told_to_all_of_its_batch() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    batches: list[list[int]] = []

    async def fail_the_first(ones: Sequence[int]) -> list[int | Exception]:
        batches.append(list(ones))
        if len(batches) == 1:
            begun.set()
            await go_on.wait()
            raise OSError
        return list(ones)

    together = Together(fail_the_first, most=9)
    first = asyncio.create_task(asking(together, 1, 2))
    await begun.wait()
    second = asyncio.create_task(asking(together, 3, 4))
    await asyncio.sleep(0)
    go_on.set()
    assert [type(answer) for answer in await first] == [OSError, OSError]
    assert await second == [3, 4]
    assert batches == [[1, 2], [3, 4]]


async def test_what_nobody_waits_for_any_more_is_not_done() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    batches: list[list[int]] = []

    async def slowly(ones: Sequence[int]) -> list[int | Exception]:
        batches.append(list(ones))
        begun.set()
        await go_on.wait()
        return list(ones)

    together = Together(slowly, most=9)
    first = asyncio.create_task(together(1))
    await begun.wait()
    left, gone = asyncio.create_task(together(2)), asyncio.create_task(together(3))
    await asyncio.sleep(0)
    gone.cancel()
    go_on.set()
    assert await asyncio.gather(first, left) == [1, 2]
    assert batches == [[1], [2]]


async def test_a_free_place_goes_to_the_lowest_rank_and_among_equals_to_whoever_came_first() -> None:
    places, taken = Places(1), list[str]()

    async def take(rank: int, name: str) -> None:
        await places.take(rank)
        taken.append(name)
        await asyncio.sleep(0)
        places.give_back()

    await asyncio.gather(take(1, "a"), take(1, "b"), take(0, "c"), take(1, "d"), take(0, "e"))
    assert taken == ["a", "c", "e", "b", "d"]


async def test_a_place_of_one_that_stopped_waiting_is_not_lost() -> None:
    places = Places(1)
    await places.take(0)
    waiting = [asyncio.create_task(places.take(0)) for _ in range(2)]
    await asyncio.sleep(0)
    places.give_back()
    waiting[0].cancel()  # its turn has just come
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not waiting[1].cancelled()


async def test_those_who_can_wait_are_let_in_while_the_loop_keeps_time_and_give_way_when_it_does_not() -> None:
    now, round_s = 0.0, 0.0

    def clock() -> float:
        nonlocal now
        now += round_s
        return now

    patience = Patience(10, clock)
    patience.others()
    seen = [patience.places]
    for _ in range(60):
        await patience.look()
        seen.append(patience.places)
    assert (seen[0], seen[-1]) == (LEAST, 10)
    assert seen == sorted(seen)
    round_s = 2 * ROUND_S
    await patience.look()
    assert patience.places == 7
    for _ in range(9):
        await patience.look()
    assert patience.places == LEAST


def test_others_stand_back_for_so_long_at_a_time_and_for_half_of_the_time_at_most() -> None:
    now = 0.0

    def after(passed_s: float) -> bool:
        nonlocal now
        now += passed_s
        return first()

    first = Precedence(10, lambda: now)
    assert not after(100)
    with first.taken():
        assert after(0)
        with first.taken():
            assert after(9)
        assert after(0.5)
        assert not after(1)
        held = sum(after(0.5) for _ in range(1000))
        assert 480 <= held <= 520
    assert not after(4)
    with first.taken():
        assert after(3)
        assert not after(2)
    assert not after(100)
    with contextlib.suppress(OSError), first.taken():
        assert after(9)
        raise OSError
    assert not after(0)


def worker(bench: Bench, policy: Policy = MANY, **changed: object) -> Worker:
    plain = bench.worker(policy)
    return Worker(replace(plain._work, **changed), bench.door, bench.clock, draw=lambda: 0.5)  # type: ignore[arg-type]


async def test_rows_are_claimed_ahead_and_no_more_are_performed_at_once_than_there_are_places(bench: Bench) -> None:
    flying, most, finish = 0, 0, asyncio.Event()

    async def effect(row: Row) -> Performed:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await finish.wait()
        flying -= 1
        return Performed()

    bench.effect = effect
    ids = await bench.add(*[None] * 12)
    one = worker(bench)
    await one.turn()
    await bench.until(lambda: len(bench.performed) == 2)
    statuses = [(await bench.row(row_id))["status"] for row_id in ids]
    assert sorted(statuses) == ["claimed"] * 10 + ["started"] * 2
    finish.set()
    await one.idle()
    assert most == 2
    assert {(await bench.row(row_id))["status"] for row_id in ids} == {"done"}


async def test_ends_that_come_together_are_recorded_in_few_transactions(bench: Bench) -> None:
    ends: list[int] = []

    async def settled(some: Sequence[Settled], tx: Tx) -> Sequence[Event]:
        ends.append(len(some))
        return ()

    await bench.add(*[None] * 20)
    one = worker(bench, replace(MANY, concurrency=20), settled=settled)
    await bench.run(one)
    assert sum(ends) == 20
    assert len(ends) <= 3


async def test_an_end_that_cannot_be_recorded_costs_only_itself(bench: Bench) -> None:
    ids = await bench.add(*[None] * 5)
    bad = ids[2]

    async def settled(ends: Sequence[Settled], tx: Tx) -> Sequence[Event]:
        if any(end.row["id"] == bad for end in ends):
            raise ValueError
        return ()

    one = worker(bench, replace(MANY, concurrency=5), settled=settled)
    await one.turn()
    flying = [task for _, task in one._flights.values()]
    told = await asyncio.gather(*flying, return_exceptions=True)
    assert [type(error) for error in told if error is not None] == [ValueError]
    found = {row_id: (await bench.row(row_id))["status"] for row_id in ids}
    assert found == {row_id: "started" if row_id == bad else "done" for row_id in ids}


async def test_of_a_batch_a_row_whose_lease_was_lost_is_not_touched(bench: Bench) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        await finish.wait()
        return Performed()

    bench.effect = effect
    ids = await bench.add(*[None] * 4)
    one = worker(bench, replace(MANY, concurrency=4))
    await one.turn()
    await bench.until(lambda: len(bench.performed) == 4)
    await bench.crash(ids[1], "started")  # another worker has it now
    token: UUID = (await bench.row(ids[1]))["token"]
    finish.set()
    await one.idle()
    row = await bench.row(ids[1])
    assert (row["status"], row["token"]) == ("started", token)
    assert len(bench.settled) == 3


async def test_of_what_was_claimed_ahead_the_lowest_rank_goes_first(bench: Bench) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        if row["lane"] == "first":
            await finish.wait()
        return Performed()

    bench.effect = effect
    await bench.add("first", "x1", "x2", "urgent")
    one = worker(bench, replace(MANY, concurrency=1), rank=lambda row: 0 if row["lane"] == "urgent" else 1)
    await one.turn()
    await bench.until(lambda: len(bench.performed) == 1)
    finish.set()
    await one.idle()
    assert [row["lane"] for row in bench.performed] == ["first", "urgent", "x1", "x2"]


@pytest.mark.parametrize(
    ("lanes", "free", "let_in", "taken", "more"),
    [
        pytest.param("abc", 5, 5, "abc", False, id="all that there are"),
        pytest.param("abcd", 3, 0, "abc", True, id="more than are free"),
        pytest.param("aaaa", 1, 0, "a", True, id="as many as are looked at"),
        pytest.param("aab", 5, 0, "ab", False, id="one of a lane"),
        pytest.param("abXY", 9, 1, "abX", False, id="few that can wait"),
        pytest.param("abXY", 3, 1, "abX", False, id="none more that may be let in"),
        pytest.param("abXY", 3, 2, "abX", True, id="one more that may be let in"),
        pytest.param("abcX", 2, 0, "ab", True, id="others left behind which none is let in"),
        pytest.param("XYZU", 1, 0, "", False, id="they stand back"),
    ],
)
def test_what_a_claim_takes_and_whether_another_may_find_more(
    lanes: str, free: int, let_in: int, taken: str, *, more: bool
) -> None:
    """Rows by their lanes; capitals can wait."""
    rows = [cast("Row", {"lane": lane}) for lane in lanes]
    choice = choose(rows, free, lambda row: row["lane"].isupper(), let_in)
    assert ("".join(row["lane"] for row in choice.rows), choice.more) == (taken, more)


@pytest.mark.parametrize("waits", [(3.0, 7.0), (7.0, 3.0)], ids=["longer last", "longer first"])
async def test_of_two_waits_in_one_batch_that_bind_the_same_the_longer_holds(
    bench: Bench, waits: tuple[float, float]
) -> None:
    left = list(waits)

    async def effect(row: Row) -> Performed:
        return Performed(pause_s=left.pop(0))

    bench.effect = effect
    async with bench.database.transaction() as tx:
        await tx.execute(text("alter table chores add column owner text default 'one'"))
    await bench.add("a", "b")
    now = bench.clock()
    await bench.run(worker(bench, pauses="owner"))
    async with bench.database.read() as tx:
        kept = await tx.fetch(text("select lane, until from work_pauses"))
    assert [(row["lane"], row["until"]) for row in kept] == [("one", now + timedelta(seconds=7))]


PATIENT: dict[str, object] = {
    "order": "lane like 'patient%', due_at, id",
    "rank": lambda row: int(row["lane"].startswith("patient")),
}
"""Rows that can wait, by their lane."""


async def test_of_those_who_can_wait_no_more_are_claimed_than_are_let_in_and_others_all(bench: Bench) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        del row
        await finish.wait()
        return Performed()

    bench.effect = effect
    await bench.add(*(f"patient{number}" for number in range(9)), *(f"urgent{number}" for number in range(9)))
    one = worker(bench, replace(MANY, concurrency=20), **PATIENT)
    await one.turn()
    await bench.until(lambda: len(bench.performed) == 9 + LEAST)
    await one.turn()
    async with bench.database.read() as tx:
        left = await tx.fetch(text("select lane from chores where status = 'pending'"))
    assert len(left) == 9 - LEAST
    assert all(row["lane"].startswith("patient") for row in left)
    finish.set()
    await one.idle()
    while left:
        await one.turn()
        await one.idle()
        async with bench.database.read() as tx:
            left = await tx.fetch(text("select lane from chores where status = 'pending'"))
    assert len(bench.settled) == 18


async def test_while_nobody_else_comes_all_who_can_wait_are_claimed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        if row["lane"] != "urgent":
            await finish.wait()
        return Performed()

    async def claimed() -> int:
        async with bench.database.read() as tx:
            return int(await tx.fetchval(text("select count(*) from chores where status in ('claimed', 'started')")))

    bench.effect = effect
    monkeypatch.setattr("shared.work.pace.ALONE_S", 3_600.0)
    one = worker(bench, replace(MANY, concurrency=20), **PATIENT)
    await bench.add("urgent")
    await one.turn()
    await one.idle()
    await bench.add(*(f"patient{number}" for number in range(9)))
    await one.turn()
    assert await claimed() == LEAST
    monkeypatch.setattr("shared.work.pace.ALONE_S", 0.0)
    await one.turn()
    assert await claimed() == 9
    finish.set()
    await one.idle()


async def test_while_they_stand_back_none_that_can_wait_is_claimed_and_others_all(bench: Bench) -> None:
    stands_back = True
    await bench.add(*(f"patient{number}" for number in range(40)), *(f"urgent{number}" for number in range(40)))
    one = worker(bench, replace(MANY, concurrency=60), stands_back=lambda: stands_back, **PATIENT)
    assert await one.turn() == MANY.poll_s
    await one.idle()
    assert sorted(row["lane"] for row in bench.performed) == sorted(f"urgent{number}" for number in range(40))
    assert await one.turn() == MANY.poll_s
    assert len(bench.performed) == 40
    stands_back = False
    while len(bench.performed) < 80:
        await one.turn()
        await one.idle()
    assert {row["lane"] for row in bench.performed[40:]} == {f"patient{number}" for number in range(40)}

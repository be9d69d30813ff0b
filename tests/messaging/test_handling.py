"""Handlers in one transaction: an event that fails costs only itself, and as few tries as can be."""

import asyncio
import uuid
from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from math import log2
from random import Random
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from shared.contracts.base import Event
from shared.contracts.topics import TOPICS
from shared.db import Database, Tx
from shared.errors import Permanent, SomeFailed, Transient
from shared.messaging.consumer import Policy, Route
from shared.messaging.decode import Item
from shared.messaging.failed import Failure, judge
from shared.messaging.handling import Pace, Ran, Turn, run
from shared.messaging.record import Record
from tests.messaging.harness import INSERT, Deposited, make_schema

T = TypeVar("T")
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EFFECTS = text("select account, n from effects order by id")
KEYS = "abcd"
WAYS = ("alone", "alone, late", "batch", "batch, late", "named", "named, late", "by Postgres")
"""How a handler fails: one event at a time or a batch, named or not, before it writes or after, in Postgres."""


class Known(Deposited):
    topic = TOPICS[0]


@dataclass
class Bank:
    """A loop of its own, so that hypothesis may call it, and a connection."""

    loop: asyncio.AbstractEventLoop
    db: Database

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)


@pytest.fixture(scope="module")
def bank(postgres: str) -> Generator[Bank]:
    name = f"handling_{uuid.uuid4().hex[:12]}"
    url = f"{postgres.rpartition('/')[0]}/{name}"
    loop = asyncio.new_event_loop()

    async def open_bank() -> Database:
        admin = await asyncpg.connect(postgres)
        await admin.execute(f"create database {name}")
        await admin.close()
        await make_schema(url)
        return Database(url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=1)

    opened = Bank(loop, loop.run_until_complete(open_bank()))
    yield opened

    async def close_bank() -> None:
        await opened.db.close()
        admin = await asyncpg.connect(postgres)
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()

    loop.run_until_complete(close_bank())
    loop.close()


@dataclass
class Teller:
    """A handler that fails for some events, in one of the ways, and counts how often it is asked."""

    way: str
    bad: dict[int, Exception]
    asked: list[int] = field(default_factory=list[int])
    after: list[int] = field(default_factory=list[int])

    def route(self) -> Route:
        single = self.way.startswith("alone") or self.way == "by Postgres"
        return Route(Known, self.one if single else self.many, batch=not single)

    async def one(self, event: Known, tx: Tx) -> Sequence[Event]:
        return await self.many([event], tx)

    async def many(self, events: Sequence[Known], tx: Tx) -> Sequence[Event]:
        self.asked.append(len(events))
        for event in events:
            tx.after_commit(lambda n=event.n: self.after.append(n))
        if not self.way.endswith("late"):
            await self._fail(events, tx)
        for event in events:
            await tx.execute(INSERT, account=event.account, n=event.n)
        if self.way.endswith("late"):
            await self._fail(events, tx)
        return list(events)

    async def _fail(self, events: Sequence[Known], tx: Tx) -> None:
        bad: dict[uuid.UUID | None, Exception] = {
            event.id: self.bad[event.n] for event in events if event.n in self.bad
        }
        if bad and self.way == "by Postgres":
            await tx.execute(text("select 1 / 0"))
        if bad:
            raise SomeFailed(bad) if self.way.startswith("named") else next(iter(bad.values()))


def items_of(keys: Sequence[str | None], teller: Teller) -> list[Item]:
    route = teller.route()
    made: list[Item] = []
    for n, key in enumerate(keys):
        event = Known(id=uuid.uuid4(), time=NOW, account=key or "-", n=n)
        record = Record("bank", 0, n, None if key is None else key.encode(), b"", ())
        made.append(Item(record, Known.type, event.id, NOW.date(), event, route))
    return made


def judged(item: Item, error: Exception) -> Failure:
    del item
    return judge(error, 0, Policy(), NOW, 0.0)


async def ran_in_one(db: Database, items: Sequence[Item], pace: Pace) -> tuple[Ran, list[tuple[str, int]]]:
    """Run them; return what became of them, and the effects as the commit would leave them."""
    async with db.transaction() as tx:
        ran = await run(tx, items, judged, Turn(), len(items) + 1, pace)
        effects = [(row["account"], row["n"]) for row in await tx.fetch(EFFECTS)]
        await tx.execute(text("truncate effects"))
    return ran, effects


@settings(max_examples=60)
@given(
    keys=st.lists(st.sampled_from([*KEYS, None]), min_size=2, max_size=24),
    bad=st.dictionaries(st.integers(0, 23), st.sampled_from([Transient("later"), Permanent("never")]), max_size=12),
    way=st.sampled_from(WAYS),
    seen=st.sampled_from([(0, 0), (100, 5), (100, 50)]),
)
def test_of_a_transaction_s_events_only_those_that_fail_and_what_waits_behind_them_are_left_out(
    bank: Bank, keys: list[str | None], bad: dict[int, Exception], way: str, seen: tuple[int, int]
) -> None:
    if way == "by Postgres":  # what Postgres says has no class of ours: it waits
        bad = dict.fromkeys(bad, Transient("later"))
    teller = Teller(way, bad)
    items = items_of(keys, teller)
    ran, effects = bank.do(ran_in_one(bank.db, items, Pace(*seen)))

    fenced: set[str] = set()
    done: list[int] = []
    failed: list[int] = []
    behind: list[int] = []
    for n, key in enumerate(keys):
        if key in fenced:
            behind.append(n)
        elif n in bad:
            failed.append(n)
            if key is not None and isinstance(bad[n], Transient):
                fenced.add(key)
        else:
            done.append(n)
    assert sorted(item.record.offset for item in ran.done) == done
    assert sorted(item.record.offset for item, _ in ran.failed) == failed
    assert sorted(item.record.offset for item in ran.behind) == behind
    assert sorted(n for _, n in effects) == done
    assert sorted(teller.after) == done, "what was to follow the commit follows what was done, and nothing else"
    by_key = sorted(effects, key=lambda one: one[0])
    for key, some in groupby(by_key, key=lambda one: one[0]):
        numbers = [n for _, n in some]
        assert key == "-" or numbers == sorted(numbers), "a key's effects are in order"


@pytest.mark.parametrize(("once_in", "most"), [(5, 0.95), (20, 0.45), (100, 0.15)])
def test_finding_unnamed_failures_in_batches_takes_little_more_than_can_be_learnt_from_an_answer(
    bank: Bank, once_in: int, most: float
) -> None:
    """An answer is worth one bit at most; an event that fails once in so many has the bits of the entropy below."""
    random = Random(7)
    pace = Pace()
    asked = events = 0
    for _ in range(12):
        bad: dict[int, Exception] = {n: Permanent("no") for n in range(125) if random.random() < 1 / once_in}
        teller = Teller("batch", bad)
        bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(125)], teller), pace))
        asked += len(teller.asked)
        events += 125
    share = 1 / once_in
    bits = -share * log2(share) - (1 - share) * log2(1 - share)
    assert bits * 0.7 < asked / events < most


def test_while_none_fails_all_run_together_and_after_a_failure_they_soon_do_again(bank: Bank) -> None:
    pace = Pace()
    teller = Teller("alone", {60: Permanent("no")})
    bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(125)], teller), pace))
    assert len(teller.asked) < 125 + 62, "the one that failed did not run much again"
    todo = items_of(list(KEYS) * 50, Teller("alone", {}))
    assert 1 < pace.together(todo) < 20
    for _ in range(10):
        pace.note(500, 0)
    assert pace.together(todo) == len(todo)


def test_a_batch_handler_that_names_its_failures_is_asked_twice(bank: Bank) -> None:
    pace = Pace()
    for _ in range(3):
        teller = Teller("named", {n: Permanent("no") for n in range(0, 100, 5)})
        bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(100)], teller), pace))
        assert teller.asked == [100, 80]


def test_what_fails_before_it_writes_makes_nothing_run_twice(bank: Bank) -> None:
    bad: dict[int, Exception] = dict.fromkeys(range(3, 60, 5), Permanent("no"))
    teller = Teller("alone", bad)
    bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(60)], teller), Pace()))
    assert teller.asked == [1] * 60


def test_after_one_that_fails_when_it_has_written_there_is_a_savepoint_for_a_few(bank: Bank) -> None:
    pace = Pace()
    bad: dict[int, Exception] = dict.fromkeys(range(3, 60, 5), Permanent("no"))
    bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(60)], Teller("alone, late", bad)), pace))
    teller = Teller("alone, late", bad)
    bank.do(ran_in_one(bank.db, items_of([f"{n}" for n in range(60)], teller), pace))
    assert len(teller.asked) <= 60 + len(bad) * 4, "little runs again: not all that was done before"


async def test_what_failed_before_its_first_statement_is_undone_without_a_word_to_postgres(probe_url: str) -> None:
    db = Database(probe_url.replace("//postgres@", "//openbell_probe@"), schema="probe", size=1)
    said: list[str] = []

    def note(query: Any) -> None:
        said.append(query.query)

    async with db.transaction() as tx:
        tx.connection.add_query_logger(note)
        await tx.savepoint()
        tx.after_commit(lambda: said.append("called"))
        await tx.back_to_savepoint()
        await tx.savepoint()
        await tx.execute(INSERT, account="a", n=1)
        await tx.back_to_savepoint()
        await tx.savepoint()
        tx.connection.remove_query_logger(note)
        assert await tx.fetch(EFFECTS) == []
    await asyncio.sleep(0)
    assert [one for one in said if "savepoint" in one] == ["savepoint here", "rollback to savepoint here"]
    assert "called" not in said
    await db.close()

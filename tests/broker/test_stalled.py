"""A worker that stalled over its lease changes nothing of an order that another worker has taken over."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from services.broker.ports import VenueRefused
from services.broker.store.orders import OrderStore
from shared.contracts.broker import LegTerms, OrderRequested, OrderTerms
from shared.db import DatabaseUnavailable, Row
from shared.errors import Transient
from shared.messaging.door import Door
from shared.service import Service
from shared.work import Started, Work, Worker
from tests.broker.brokerage import USER, Brokerage, opened
from tests.broker.stall import Stall
from tests.conftest import eventually
from tests.fakes.venue_books import Manner

TERMS = OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="limit", quantity=1, limit=100)  # type: ignore[arg-type]


class Away:
    """A pool that has no connection the next time."""

    def __init__(self, database: Any) -> None:
        self._database, self._pool = database, database.pool

    async def acquire(self) -> Any:
        self._database.pool = self._pool
        raise DatabaseUnavailable("nobody is there")


@pytest.fixture
async def other(brokerage: Brokerage) -> AsyncGenerator[Service]:
    """A second process of the service."""
    service = brokerage._service()
    yield service
    await service.close()


def worker_of(service: Service) -> Worker:
    return next(one for one in service._runners if isinstance(one, Worker))


def stalling(work: Work, door: Door, brokerage: Brokerage, stall: Stall) -> Worker:
    """Return a worker that stalls after it has claimed a row."""

    async def prepare(row: Row) -> Row | Started:
        await stall()
        assert work.prepare is not None
        return await work.prepare(row)

    return Worker(replace(work, prepare=prepare), door, brokerage.clock, draw=lambda: 0.5)


async def ask(brokerage: Brokerage) -> tuple[UUID, UUID]:
    """Ask for an order that nobody sends yet; return its account and its id."""
    account, order = await brokerage.account(), uuid4()
    about: dict[str, Any] = {"id": uuid4(), "time": brokerage.clock(), "account_id": account, "user_id": USER}
    await brokerage.hear(OrderRequested(**about, order_id=order, terms=TERMS))
    return account, order


async def test_a_worker_that_stalled_before_it_judged_does_not_judge_what_another_one_sends(
    brokerage: Brokerage, other: Service
) -> None:
    account, order = await ask(brokerage)
    stall, sending = Stall(), Stall()
    brokerage.desk(account).before_submits = [sending]
    ours = worker_of(brokerage.service)
    first, second = stalling(ours._work, brokerage.service.door, brokerage, stall), worker_of(other)
    await first.turn()
    await stall.begun.wait()
    brokerage.clock.advance(16)  # its lease has run out
    await second.turn()
    await eventually(sending.begun.is_set)
    assert (await brokerage.ask("POST", "/broker/halt", {}))[0] == 204  # judged now, it would be refused
    stall.end.set()
    await first.idle()
    assert (await brokerage.state(order), await brokerage.codes(order)) == ("pending_submit", [])
    sending.end.set()
    await second.idle()
    assert await brokerage.state(order) == "accepted"
    assert brokerage.desk(account).submits() == [order]


async def test_a_worker_that_stalled_while_it_sent_does_not_refuse_what_another_one_sends(
    brokerage: Brokerage, other: Service
) -> None:
    account, order = await ask(brokerage)
    stall, sending = Stall(VenueRefused("not with these credentials")), Stall()
    brokerage.desk(account).before_submits = [stall, sending]
    first, second = worker_of(brokerage.service), worker_of(other)
    await first.turn()
    await eventually(stall.begun.is_set)
    brokerage.clock.advance(16)
    await second.turn()  # nobody knows what became of it
    brokerage.clock.advance(1)
    await second.turn()  # the venue has not seen it: it is sent again
    await eventually(sending.begun.is_set)
    stall.end.set()
    await first.idle()
    assert (await brokerage.state(order), await brokerage.codes(order)) == ("pending_submit", [])
    sending.end.set()
    await second.idle()
    assert await brokerage.state(order) == "accepted"
    assert brokerage.desk(account).submits() == [order]
    assert await brokerage.rows("select * from flags") == []


async def test_a_database_that_is_lost_while_the_outcome_is_unknown_lets_nothing_go_twice(database_url: str) -> None:
    async with opened(database_url, Manner("no-ids", knows_ids=False)) as brokerage:
        account, order = await ask(brokerage)
        brokerage.desk(account).lose_next("answer")
        database: Any = brokerage.service.db

        async def goes() -> None:
            database.pool = Away(database)

        brokerage.desk(account).before_submits = [goes]
        await brokerage.worker.turn()
        await brokerage.worker.idle()
        assert await brokerage.state(order) == "pending_submit"
        await brokerage.settle(wholly=True)
        assert await brokerage.state(order) == "accepted"
        assert brokerage.desk(account).submits() == [order]


async def test_a_worker_that_stalled_at_the_venue_does_not_judge_what_another_one_sends(
    brokerage: Brokerage, other: Service
) -> None:
    account, order = await ask(brokerage)
    stall, sending = Stall(), Stall()
    brokerage.desk(account).before_balance, brokerage.desk(account).before_submits = [stall], [sending]
    first, second = worker_of(brokerage.service), worker_of(other)
    await first.turn()
    await eventually(stall.begun.is_set)
    brokerage.clock.advance(16)
    await second.turn()
    await eventually(sending.begun.is_set)
    assert (await brokerage.ask("POST", "/broker/halt", {}))[0] == 204
    stall.end.set()
    await first.idle()
    sending.end.set()
    await second.idle()
    assert (await brokerage.state(order), await brokerage.codes(order)) == ("accepted", [])
    assert brokerage.desk(account).submits() == [order]


async def test_an_order_that_was_judged_a_moment_ago_is_not_judged_again(brokerage: Brokerage) -> None:
    account, order = await ask(brokerage)
    (row,) = await brokerage.rows("update sendings set status = 'claimed', token = id returning *")
    sendings: Any = cast("Any", brokerage.worker._work.perform).__self__
    of = await brokerage.account_of(account)
    async with brokerage.service.db.read() as tx:
        stored = await OrderStore().get(tx, order)
    told = await sendings._asking.of(of, stored)
    await sendings.prepare(row)
    with pytest.raises(Transient):
        await brokerage.service.door.run(lambda tx: sendings._judge(tx, row, of, told))
    assert await brokerage.state(order) == "pending_submit"


async def test_a_worker_whose_lease_has_run_out_lets_nothing_go(brokerage: Brokerage) -> None:
    account, order = await ask(brokerage)
    (row,) = await brokerage.rows("update sendings set status = 'claimed', token = id returning *")
    await brokerage.rows("update sendings set token = gen_random_uuid() returning *")  # claimed by another one
    sendings: Any = cast("Any", brokerage.worker._work.perform).__self__
    with pytest.raises(Transient, match="another worker has it"):
        await sendings.prepare(row)
    assert await brokerage.state(order) == "new"
    assert brokerage.desk(account).submits() == []


async def test_an_order_that_is_let_go_is_started_in_the_same_transaction(brokerage: Brokerage) -> None:
    await ask(brokerage)
    (row,) = await brokerage.rows("update sendings set status = 'claimed', token = id returning *")
    sendings: Any = cast("Any", brokerage.worker._work.perform).__self__
    await sendings.prepare(row)
    (kept,) = await brokerage.rows(
        "select o.state, s.status, o.xmin = s.xmin as together from orders o join sendings s on s.order_id = o.id"
    )
    assert tuple(kept.values()) == ("pending_submit", "started", True)

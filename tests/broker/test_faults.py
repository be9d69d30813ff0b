"""Faults of the brokerage's core that its proofs found, each once."""

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from services.broker.domain.instruments import instrument
from services.broker.domain.orders import Fill
from services.broker.service.books import Books
from services.broker.store.books import BookStore
from services.broker.store.orders import OrderStore
from shared.clock import new_id
from shared.contracts.base import Event
from shared.contracts.broker import CloseRequested, LegTerms, OrderRequested, OrderTerms, ReplaceRequested
from shared.db import Tx
from tests.broker.brokerage import Brokerage, opened
from tests.broker.crashing import mortal
from tests.conftest import eventually
from tests.fakes.venue_books import Manner

D = Decimal
TERMS = OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="limit", quantity=D(1), limit=D(100))


async def test_an_order_that_was_judged_before_a_kill_is_judged_again(database_url: str) -> None:
    async with mortal(database_url) as brokerage:
        account, order = await brokerage.account(), uuid4()
        for steps in range(60):  # each process dies a step later, until one dies right after it has judged
            order = uuid4()
            await brokerage.hear(OrderRequested(**brokerage._about(account), order_id=order, terms=TERMS))
            brokerage.fate.left = steps
            async with brokerage.dying():
                await brokerage.worker.turn()
                await brokerage.worker.idle()
            if await brokerage.state(order) == "pending_submit" and order not in brokerage.desk(account).submits():
                break
            await brokerage.finish()
        assert await brokerage.state(order) == "pending_submit"
        brokerage.clock.advance(61)
        await brokerage.finish()
        assert await brokerage.codes(order) == ["TOO_LATE"]
        assert order not in brokerage.desk(account).submits()


async def test_a_second_wish_while_the_first_is_carried_out_stops_nobody(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account)
    store = OrderStore()

    async def wish() -> None:
        async with brokerage.service.db.transaction() as tx:
            await store.send(tx, uuid4(), order, "look_up", brokerage.clock())

    await wish()
    async with brokerage.service.db.transaction() as tx:
        stopped = "update sendings set status = 'claimed', lease_until = $1 where kind = 'look_up'"
        await tx.connection.execute(stopped, brokerage.clock())
    await wish()
    brokerage.clock.advance(10)
    await brokerage.worker.turn()
    await brokerage.worker.idle()
    await brokerage.settle(wholly=True)
    assert await brokerage.rows("select 1 from sendings where status <> 'done'") == []


async def test_nothing_is_closed_that_was_sold_meanwhile(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    order = await brokerage.place(account, quantity=10)
    await desk.fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    selling = await brokerage.place(account, quantity=10, side="sell", limit=D(101))
    await desk.fill(selling, D(10), D(101))  # and we have not heard of it
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert await brokerage.codes(closing) == ["NOTHING_HELD"]
    assert desk.submits() == [order, selling]


async def test_what_is_closed_is_what_the_venue_holds_though_a_fill_was_not_told(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    order = await brokerage.place(account, quantity=10)
    await desk.fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    selling = await brokerage.place(account, quantity=10, side="sell", limit=D(101))
    await desk.fill(selling, D(4), D(101))
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert desk.find(closing).order.terms.quantity == D(6)


async def test_a_close_that_waits_for_an_order_is_given_up_in_time(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    order = await brokerage.place(account, quantity=10)
    await desk.fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    await brokerage.place(account, quantity=4, side="sell", limit=D(101))
    desk.hold_cancels()  # and it is never carried out
    closing = await brokerage.close_position(account)
    for _ in range(20):
        brokerage.clock.advance(10)
        await brokerage.settle()
    assert await brokerage.codes(closing) == ["TOO_LATE"]


async def test_a_cancel_that_was_lost_with_our_credentials_is_asked_for_again(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account)
    brokerage.desk(account).revoked = True
    await brokerage.cancel(account, order)
    brokerage.desk(account).revoked = False
    assert await brokerage.state(order) == "pending_cancel"
    brokerage.clock.advance(120)
    await brokerage.sweep()
    assert await brokerage.state(order) == "canceled"


async def test_an_order_in_doubt_whose_credentials_were_taken_is_ended_once_they_are_back(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    desk.lose_next("request")
    order = await brokerage.place(account)
    desk.revoked = True
    await brokerage.settle(wholly=True)
    assert await brokerage.state(order) == "unknown"
    desk.revoked = False
    brokerage.clock.advance(120)
    await brokerage.sweep()
    assert (await brokerage.state(order), await brokerage.codes(order)) == ("rejected", ["NOT_SENT"])


async def test_a_look_up_beside_its_sending_ends_no_doubt_of_a_venue_that_takes_an_id_twice(database_url: str) -> None:
    async with opened(database_url, Manner(knows_ids=False)) as brokerage:
        account = await brokerage.account()
        brokerage.desk(account).lose_next("request")
        order = await brokerage.place(account)
        async with brokerage.service.db.transaction() as tx:
            await OrderStore().send(tx, uuid4(), order, "look_up", brokerage.clock())
        await brokerage.settle(wholly=True)
        assert brokerage.desk(account).submits() == []
        assert (await brokerage.state(order), await brokerage.codes(order)) == ("rejected", ["NOT_SENT"])


async def test_a_replacement_that_the_venue_took_and_then_refused_is_ended(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk = brokerage.desk(account)
    order = await brokerage.place(account, quantity=10)
    desk.hold_cancels()
    by = await brokerage.replace(account, order, limit="99.50")
    brokerage.clock.advance(120)
    await brokerage.sweep()
    assert await brokerage.state(by) == "pending_submit"  # the wish stands
    await desk.fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    brokerage.clock.advance(120)
    await brokerage.sweep()
    assert (await brokerage.state(order), await brokerage.codes(by)) == ("filled", ["NOT_SENT"])


async def test_two_orders_at_once_do_not_spend_the_same_money(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    wanted = TERMS.model_copy(update={"quantity": D(600)})
    for _ in range(2):
        await brokerage.hear(OrderRequested(**brokerage._about(account), order_id=uuid4(), terms=wanted))
    await brokerage.settle()
    assert len(brokerage.desk(account).submits()) == 1
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert told["codes"] == ["BUYING_POWER"]


async def test_an_order_of_an_account_that_was_closed_meanwhile_is_not_sent(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.hear(OrderRequested(**brokerage._about(account), order_id=(order := uuid4()), terms=TERMS))
    async with brokerage.service.db.transaction() as tx:
        await tx.connection.execute("update accounts set closed_at = now() where id = $1", account)
    await brokerage.settle()
    assert await brokerage.codes(order) == ["ACCOUNT_CLOSED"]
    assert brokerage.desk(account).submits() == []


async def test_a_replacement_under_the_id_of_another_order_is_refused(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    first, second = await brokerage.place(account), await brokerage.place(account)
    about = brokerage._about(account)
    await brokerage.hear(ReplaceRequested(**about, order_id=first, by_order_id=second, limit=D("99.5")))
    await brokerage.settle()
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert told["codes"] == ["ORDER_ID_TAKEN"]
    assert await brokerage.rows("select 1 from sendings where kind = 'replace'") == []


async def test_an_order_that_its_venue_refused_has_a_code_and_an_audit(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    brokerage.desk(account).refuse_next("not today")
    order = await brokerage.place(account)
    assert await brokerage.codes(order) == ["VENUE_REJECTED"]
    audited = [one for one in brokerage.events("api.action.audited.v1") if one["subject"] == str(order)]
    assert [one["action"] for one in audited] == ["refuse.order"]


async def test_the_first_two_fills_of_a_position_both_count_though_they_come_at_once(brokerage: Brokerage) -> None:
    account = await brokerage.account_of(await brokerage.account())
    books = Books(BookStore(), OrderStore(), clock=brokerage.clock, new_id=new_id)
    came = asyncio.Event()
    of = instrument("AAPL")
    fills = [Fill(name, uuid4(), of, "buy", D(1), D(100), brokerage.clock()) for name in ("x1", "x2")]

    async def waits() -> bool:
        return bool(await brokerage.rows("select 1 from pg_locks where not granted"))

    async def first(tx: Tx) -> list[Event]:
        told = await books.book(tx, account, fills[:1])
        came.set()
        await eventually(waits)
        return list(told)

    async def second(tx: Tx) -> list[Event]:
        await came.wait()
        return list(await books.book(tx, account, fills[1:]))

    async with asyncio.timeout(30):
        await asyncio.gather(brokerage.service.door.publish(first), brokerage.service.door.publish(second))
    assert await brokerage.held(account.id) == {"AAPL": D(2)}


async def test_many_drifts_at_once_need_one_connection_each(brokerage: Brokerage) -> None:
    accounts = [await brokerage.account() for _ in range(20)]
    of = instrument("AAPL")
    for held in (D(3), D(5)):  # the second time all connections are open
        for account in accounts:
            brokerage.desk(account).drift(of, held)
        async with asyncio.timeout(60):
            await asyncio.gather(*(_reconciled(brokerage, account) for account in accounts))
    assert [await brokerage.held(account) for account in accounts] == [{"AAPL": D(5)}] * 20


async def _reconciled(brokerage: Brokerage, account_id: UUID) -> None:
    account = await brokerage.account_of(account_id)
    await brokerage.monitors._reconcile.run(account, await brokerage.monitors._venues.of(account))


async def test_a_close_of_somebody_elses_position_touches_nothing(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account)
    about: dict[str, Any] = {**brokerage._about(account), "user_id": uuid4()}
    await brokerage.hear(CloseRequested(**about, order_id=uuid4(), symbol="AAPL"))
    await brokerage.settle()
    assert await brokerage.state(order) == "accepted"
    assert brokerage.events("broker.order.rejected.v1")[-1]["codes"] == ["NO_SUCH_ACCOUNT"]

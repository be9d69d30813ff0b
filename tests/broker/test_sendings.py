"""What is said to venues: whom a wait binds, and how long it is kept."""

from datetime import timedelta
from typing import Any, cast

from services.broker.workers.by_the_clock import retention
from tests.broker.brokerage import Brokerage
from tests.broker.stall import Stall
from tests.conftest import eventually


async def test_a_venue_that_asks_to_wait_is_left_alone_by_all_of_the_accounts_orders_and_by_no_others(
    brokerage: Brokerage,
) -> None:
    one, other = await brokerage.account(), await brokerage.account()
    for account in (one, other):
        await brokerage.place(account, quantity=2)  # so that its money is known
    brokerage.desk(one).limit_next()
    waiting = await brokerage.place(one)
    more = await brokerage.place(one, quantity=3)
    free = await brokerage.place(other)
    await brokerage.worker.turn()
    await brokerage.worker.idle()
    assert [await brokerage.state(order) for order in (waiting, more, free)] == ["new", "new", "accepted"]
    brokerage.clock.advance(1.001)
    await brokerage.settle()
    assert [await brokerage.state(order) for order in (waiting, more)] == ["accepted", "accepted"]


async def test_an_account_whose_venue_hangs_is_asked_by_one_order_at_a_time(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    stall = Stall(TimeoutError())
    sendings: Any = cast("Any", brokerage.worker._work.perform).__self__
    sendings._asking._within_s = 600  # the stall says when it is over
    brokerage.desk(account).before_balance = [times_out, stall]
    first = await brokerage.place(account)
    others = [await brokerage.place(account, quantity=n) for n in (2, 3, 4)]
    assert {await brokerage.state(order) for order in (first, *others)} == {"new"}
    brokerage.clock.advance(1.001)
    await brokerage.worker.turn()
    await eventually(lambda: len(brokerage.worker._flights) == 1)
    assert stall.begun.is_set()
    stall.end.set()
    await brokerage.settle(wholly=True)
    assert {await brokerage.state(order) for order in (first, *others)} == {"accepted"}


async def times_out() -> None:
    raise TimeoutError


async def test_what_was_said_long_ago_is_forgotten_and_look_ups_sooner(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account)
    brokerage.clock.advance(120)
    await brokerage.sweep()
    job = retention(brokerage.monitors._reconcile._orders.store, brokerage.service.door)

    async def kinds(later: timedelta) -> list[str]:
        await job.run(brokerage.clock() + later)
        return sorted(row["kind"] for row in await brokerage.rows("select kind from sendings"))

    assert await kinds(timedelta(hours=23)) == ["look_up", "submit"]
    assert await kinds(timedelta(hours=25)) == ["submit"]
    assert await kinds(timedelta(days=31)) == []
    assert await brokerage.state(order) == "accepted"

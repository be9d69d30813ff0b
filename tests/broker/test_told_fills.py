"""What is told of fills: each execution with the order's total, and what only a total stands for at the order's end."""

from decimal import Decimal
from uuid import UUID

from services.broker.domain.orders import Cumulative, Report
from services.broker.domain.shapes import load_position
from services.broker.ports import Update
from tests.broker.brokerage import Brokerage

D = Decimal


async def told(brokerage: Brokerage, account: UUID, order: UUID, report: Report) -> list[tuple[Decimal, Decimal]]:
    """Let the stream tell that; return the quantity and the price of each fill that was told by now."""
    await brokerage.monitors._reconcile.told(await brokerage.account_of(account), Update(order, report))
    await brokerage.carry()
    return fills(brokerage)


def fills(brokerage: Brokerage) -> list[tuple[Decimal, Decimal]]:
    return [(D(one["quantity"]), D(one["price"])) for one in brokerage.events("broker.order.filled.v1")]


def total(brokerage: Brokerage, quantity: int, price: str) -> tuple[Cumulative, ...]:
    return (Cumulative(D(quantity), D(price), brokerage.clock()),)


async def test_each_execution_says_what_the_whole_order_has_filled_and_at_which_price(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(order, D(4), D("99.90"))
    await brokerage.desk(account).fill(order, D(6), D("100.00"))
    await brokerage.reconcile(account)
    (*_, last) = brokerage.events("broker.order.filled.v1")
    assert (last["quantity"], last["price"], last["whole"]) == ("6", "100.00", True)
    assert (D(last["filled"]), D(last["average_price"])) == (D(10), D("99.96"))


async def test_of_a_venue_that_tells_totals_only_the_fills_are_told_when_the_order_ends(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    part = Report("fill", cumulative=total(brokerage, 4, "100"))
    assert await told(brokerage, account, order, part) == []
    whole = Report("filled", cumulative=total(brokerage, 10, "100"))
    assert await told(brokerage, account, order, whole) == [(10, 100)]
    assert await told(brokerage, account, order, whole) == [(10, 100)]
    for quantity in (4, 6):
        await brokerage.desk(account).fill(order, D(quantity), D(100))
    await brokerage.reconcile(account)  # the executions after all
    assert fills(brokerage) == [(10, 100)]
    assert [one["whole"] for one in brokerage.events("broker.order.filled.v1")] == [True]


async def test_an_execution_that_comes_late_is_told_though_the_order_is_over(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    assert await told(brokerage, account, order, Report("canceled")) == []
    await brokerage.desk(account).fill(order, D(4), D(100))
    await brokerage.reconcile(account)
    assert fills(brokerage) == [(4, 100)]


async def test_a_busted_trade_leaves_position_and_profit_as_if_it_had_not_been(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    bought = await brokerage.place(account, quantity=10)
    gone = await brokerage.desk(account).fill(bought, D(4), D("90"))
    await brokerage.desk(account).fill(bought, D(6), D("100"))
    brokerage.clock.advance(1)
    sold = await brokerage.place(account, quantity=5, side="sell", limit=D(101))
    await brokerage.desk(account).fill(sold, D(5), D("101"))
    await brokerage.reconcile(account)
    assert await standing(brokerage, account) == (5, 4 * 11 + 1, D("96"))
    await brokerage.desk(account).bust(bought, gone)
    await brokerage.reconcile(account)
    assert await standing(brokerage, account) == (1, 5, D("100"))
    assert (await brokerage.state(bought), sorted(fills(brokerage))) == ("filled", [(4, 90), (5, 101), (6, 100)])
    (told,) = brokerage.events("broker.order.flagged.v1")
    assert (told["order_id"], told["code"]) == (str(bought), "TRADE_BUSTED")
    assert brokerage.events("broker.positions.drifted.v1") == []
    await brokerage.reconcile(account)
    assert len(brokerage.events("broker.order.flagged.v1")) == 1


async def standing(brokerage: Brokerage, account: UUID) -> tuple[Decimal, Decimal, Decimal | None]:
    """What is held of AAPL, what was made with what is closed (FIFO), and what each that is held has cost."""
    rows = await brokerage.rows("select body from positions where account_id = :id and symbol = 'AAPL'", id=account)
    position = load_position(rows[0]["body"])
    price = position.entry_price("average")
    return position.quantity, position.realised("fifo"), price


async def test_what_a_total_has_filled_of_a_canceled_order_is_told(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    assert await told(brokerage, account, order, Report("fill", cumulative=total(brokerage, 4, "100"))) == []
    assert await told(brokerage, account, order, Report("canceled")) == [(4, 100)]

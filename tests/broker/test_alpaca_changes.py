"""What has happened at Alpaca: all pages of it, orders that changed, and what moved positions without one of ours."""

from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.orders import Fill, Order
from services.broker.domain.positions import Charge, Expiry, PositionFact, Split, rebuild
from shared.errors import Transient
from tests.broker.alpaca_rig import ACCOUNT, AlpacaRig, AlpacaRigs
from tests.broker.samples import AAPL, terms
from tests.fakes.alpaca.shapes import Obj

CALL = "AAPL261218C00200000"
BY_HAND = {"symbol": "AAPL", "qty": "5", "side": "buy", "type": "market", "time_in_force": "day"}


@pytest.fixture
async def rig() -> AsyncGenerator[AlpacaRig]:
    async with AlpacaRigs().open() as opened:
        yield opened


@pytest.fixture
def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def now() -> datetime:
    return datetime.now(UTC)


async def placed(rig: AlpacaRig, **changes: Any) -> Order:
    order = Order(uuid4(), ACCOUNT.id, "alpaca", terms(10, time_in_force="gtc", **changes))
    await rig.venue.submit(order)
    return order


def age(rig: AlpacaRig, order: Obj, days: float) -> None:
    """Let an order, and all that was told of it, be so many days old."""
    at = f"{now() - timedelta(days=days):%Y-%m-%dT%H:%M:%S.%f}123Z"
    order |= dict.fromkeys(("created_at", "updated_at", "submitted_at"), at)
    for one in rig.alpaca.books.activities:
        if one.get("order_id") == order["id"]:
            one["transaction_time"] = at


async def facts(rig: AlpacaRig, since: datetime | None = None) -> list[PositionFact]:
    return list((await rig.venue.changes(since or now() - timedelta(hours=1))).facts)


def opened(of: Instrument, quantity: int, price: int = 10) -> Fill:
    long = quantity > 0
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return Fill("first", UUID(int=1), of, "buy" if long else "sell", Decimal(abs(quantity)), Decimal(price), at)


def quantity_of(book: Iterable[PositionFact], key: str) -> Decimal:
    return rebuild(book)[key].quantity


# Orders


async def test_all_pages_of_orders_and_of_fills_are_told(rig: AlpacaRig):
    orders = [Order(uuid4(), ACCOUNT.id, "alpaca", terms(10)) for _ in range(502)]
    same = f"{now():%Y-%m-%dT%H:%M:%S.%f}395Z"
    for order in orders:
        made = rig.alpaca.books.place({**BY_HAND, "client_order_id": f"openbell-{order.id}"})
        rig.alpaca.books.fill(made, Decimal(1), Decimal(10))
    for at in (498, 499, 500, 501):  # several on both sides of the page's end at one moment
        rig.order(orders[at].id)["submitted_at"] = same
    changes = await rig.venue.changes(now() - timedelta(hours=1))
    assert {one.order_id for one in changes.orders} == {one.id for one in orders}
    assert len(changes.orders) == 502
    assert {len(one.report.executions) for one in changes.orders} == {1}
    assert [path for _, path, _ in rig.alpaca.requests].count("/v2/account/activities") == 6 + 1


async def test_a_list_that_does_not_go_on_is_told(rig: AlpacaRig):
    for _ in range(501):
        rig.alpaca.books.place(BY_HAND)["submitted_at"] = "2026-11-20T15:00:00.000000123Z"
    with pytest.raises(Transient):
        await rig.venue.changes(datetime(2026, 11, 20, tzinfo=UTC))


async def test_an_old_order_that_ended_since_is_told_and_one_that_ended_before_is_not(rig: AlpacaRig):
    ended, before, works = [await placed(rig) for _ in range(3)]
    for order in (ended, before, works):
        age(rig, rig.order(order.id), 80)
    rig.alpaca.books.end(rig.order(ended.id), "canceled")
    rig.order(before.id)["status"] = "canceled"
    changes = await rig.venue.changes(now() - timedelta(hours=1))
    assert {one.order_id: one.report.kind for one in changes.orders} == {ended.id: "canceled", works.id: "accepted"}


async def test_executions_from_before_are_told_with_an_order_that_works(rig: AlpacaRig):
    order = await placed(rig)
    await rig.fill(order.id, Decimal(4), Decimal(10))
    age(rig, rig.order(order.id), 30)
    await rig.fill(order.id, Decimal(1), Decimal(11))
    (update,) = (await rig.venue.changes(now() - timedelta(hours=1))).orders
    assert [one.quantity for one in update.report.executions] == [4, 1]
    assert (await rig.venue.look_up(order)).executions == update.report.executions


async def test_an_order_that_is_too_old_to_be_listed_is_asked_for_when_it_was_filled(rig: AlpacaRig):
    order, other = await placed(rig), rig.alpaca.books.place(BY_HAND)
    age(rig, rig.order(order.id), 400)
    age(rig, other, 400)
    await rig.fill(order.id, Decimal(1), Decimal(11))
    rig.alpaca.books.fill(other, Decimal(2), Decimal(12))
    changes = await rig.venue.changes(now() - timedelta(hours=1))
    assert [(one.order_id, len(one.report.executions)) for one in changes.orders] == [(order.id, 1)]
    assert [one.order_id for one in changes.facts if isinstance(one, Fill)] == [UUID(other["id"])]


# Facts


async def test_fills_of_orders_that_somebody_else_placed_are_facts(rig: AlpacaRig):
    ours = await placed(rig)
    await rig.fill(ours.id, Decimal(3), Decimal(10))
    rig.alpaca.books.fill(rig.alpaca.books.place(BY_HAND), Decimal(2), Decimal("10.5"))
    other = rig.alpaca.books.place({**BY_HAND, "symbol": "BTC/USD", "side": "sell", "time_in_force": "gtc"})
    name = rig.alpaca.books.fill(other, Decimal("0.25"), Decimal(90))
    changes = await rig.venue.changes(now() - timedelta(hours=1))
    assert [one.order_id for one in changes.orders] == [ours.id]
    fills = [one for one in changes.facts if isinstance(one, Fill)]
    assert [(one.instrument.key, one.side, one.quantity, one.price) for one in fills] == [
        ("AAPL", "buy", Decimal(2), Decimal("10.5")),
        ("BTC/USD", "sell", Decimal("0.25"), Decimal(90)),
    ]
    assert (fills[1].order_id, fills[1].id) == (UUID(other["id"]), f"alpaca/{other['id']}/{name}")
    assert await facts(rig) == list(changes.facts)


@pytest.mark.parametrize(("before", "after"), [(10, 30), (-10, -30), (30, 10)])
async def test_a_split_is_told_by_its_two_halves(rig: AlpacaRig, today: str, before: int, after: int):
    words = f"From QTY:{before}, To QTY:{after}, Position Value:100"
    rig.alpaca.books.post("SPLIT", day=today, symbol="AAPL", qty=str(after), description=f"ADD, {words}")
    rig.alpaca.books.post("SPLIT", day=today, symbol="AAPL", qty=str(-before), description=f"REMOVE, {words}")
    rig.alpaca.books.post("SPLIT", day=today, symbol="SPY", qty="-1", description="REMOVE, and no more")
    (split,) = await facts(rig)
    assert isinstance(split, Split)
    assert (split.new, split.old, split.quantity_after) == (abs(after), abs(before), after)
    assert quantity_of([opened(AAPL, before), split], "AAPL") == after


async def test_a_contract_that_expires_is_gone(rig: AlpacaRig, today: str):
    rig.alpaca.books.post("OPEXP", day=today, symbol=CALL, qty="-2")
    (expiry,) = await facts(rig)
    assert isinstance(expiry, Expiry)
    assert expiry.at > datetime.fromisoformat(f"{today}T20:00:00Z")  # after what was traded in it that day
    assert quantity_of([opened(instrument(CALL), 2), expiry], CALL) == 0


@pytest.mark.parametrize(
    ("kind", "contracts", "shares", "money"), [("OPEXC", "-2", "200", "-40000"), ("OPASN", "2", "-200", "40000")]
)
async def test_exercise_and_assignment_are_the_contracts_and_the_shares_at_the_strike(
    rig: AlpacaRig, today: str, kind: str, contracts: str, shares: str, money: str
):
    name = rig.alpaca.books.post(kind, day=today, symbol=CALL, qty=contracts)
    rig.alpaca.books.post(
        "OPTRD", day=today, name=name, symbol="AAPL", qty=shares, price="231.7", net_amount=money
    )  # as recorded: the price is the market's, and both have one id
    told = await facts(rig)
    book = rebuild([opened(instrument(CALL), -int(contracts)), *told])
    assert (book[CALL].quantity, book["AAPL"].quantity, book["AAPL"].cash) == (0, int(shares), Decimal(money))
    assert len({one.id for one in told}) == 2


async def test_a_contract_that_is_settled_in_cash_is_gone_at_its_price(rig: AlpacaRig, today: str):
    rig.alpaca.books.post("OPCSH", day=today, symbol=CALL, qty="-2", net_amount="300")
    (expiry,) = await facts(rig)
    assert isinstance(expiry, Expiry)
    assert expiry.price == Decimal("1.5")


async def test_a_fee_in_coins_takes_them_and_costs_their_worth(rig: AlpacaRig, today: str):
    rig.alpaca.books.post("CFEE", day=today, symbol="BTCUSD", qty="-0.25", price="1000")
    told = await facts(rig)
    book = rebuild([opened(instrument("BTC/USD"), 2, 1000), *told])["BTC/USD"]
    assert (book.quantity, book.fees, book.cash) == (Decimal("1.75"), 250, -2000)


async def test_a_fee_in_money_is_charged_to_what_it_was_taken_for(rig: AlpacaRig, today: str):
    rig.alpaca.books.post("FEE", day=today, symbol="AAPL", net_amount="-0.17")
    rig.alpaca.books.post("FEE", day=today, net_amount="-0.02")  # for nothing that it names: the balance tells it
    (charge,) = await facts(rig)
    assert isinstance(charge, Charge)
    assert (charge.instrument, charge.fee) == (AAPL, Decimal("0.17"))


async def test_what_is_posted_days_later_is_found(rig: AlpacaRig):
    rig.alpaca.books.post("OPEXP", day=f"{now() - timedelta(days=5):%Y-%m-%d}", symbol=CALL, qty="-2")
    assert len(await facts(rig, now())) == 1


async def test_what_was_taken_back_or_cannot_be_read_is_left_out(rig: AlpacaRig, today: str):
    rig.alpaca.books.post("OPEXP", day=today, symbol=CALL, qty="-2", status="canceled")
    rig.alpaca.books.post("FEE", day=today, symbol="no such thing", net_amount="-1")
    rig.alpaca.books.post("OPEXP", day=today, symbol=CALL, qty="-1")
    assert [one.quantity for one in await facts(rig) if isinstance(one, Expiry)] == [1]


async def test_an_order_that_filled_more_than_was_known_is_not_replaced(rig: AlpacaRig):
    order = await placed(rig)
    await rig.fill(order.id, Decimal(4), Decimal(10))
    by = Order(uuid4(), ACCOUNT.id, "alpaca", terms(10, time_in_force="gtc"))
    report = await rig.venue.replace(order, by)
    assert report is not None
    assert (report.kind, rig.submits()) == ("replace_rejected", [order.id])

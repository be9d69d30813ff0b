"""tastytrade's transactions become facts: fees of ours, fills of others, expiries, deliveries, splits."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from services.broker.adapters.tastytrade.history import facts_of
from services.broker.adapters.tastytrade.venue import TastytradeVenue
from services.broker.domain.instruments import Equity, instrument
from services.broker.domain.orders import Fill, Order
from services.broker.domain.positions import Charge, Expiry, Split, rebuild
from shared.clock import utc_now
from tests.broker.samples import AAPL, ACCOUNT, terms
from tests.broker.tastytrade_rig import opened
from tests.fakes.tastytrade import Desk, FakeTastytrade

RIVN_PUT = instrument("RIVN261218P00014000")


@pytest.fixture
async def fake() -> AsyncGenerator[FakeTastytrade]:
    async with FakeTastytrade() as running:
        yield running


@pytest.fixture
async def venue(fake: FakeTastytrade) -> AsyncGenerator[TastytradeVenue]:
    made = opened(fake)
    yield made
    await made.close()


def book(desk: Desk, kind: str, sub: str, symbol: str, quantity: str, **more: Any) -> dict[str, Any]:
    of = "Equity Option" if len(symbol) == 21 else "Equity"
    root = symbol[:6].strip()
    named = {"symbol": symbol, "instrument_type": of, "underlying_symbol": root, "quantity": quantity}
    return desk.book(transaction_type=kind, transaction_sub_type=sub, **named, **more)


async def test_fees_of_our_fills_are_charges_and_the_fills_themselves_are_not_told_twice(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    fake.desk.fee = Decimal("0.13")
    order = Order(uuid4(), ACCOUNT, "tastytrade", terms(10))
    await venue.submit(order)
    fake.desk.fill(fake.desk.under(str(order.id)), Decimal(10), Decimal("9.5"))
    changes = await venue.changes(utc_now())
    (charge,) = changes.facts
    assert isinstance(charge, Charge)
    assert (charge.instrument, charge.fee) == (AAPL, Decimal("0.13"))
    (told,) = changes.orders
    assert told.order_id == order.id
    assert sum(one.quantity for one in told.report.executions) == 10
    assert (await venue.changes(utc_now())).facts == changes.facts
    (execution,) = told.report.executions
    fill = Fill("f", order.id, AAPL, "buy", execution.quantity, execution.price, execution.at)
    assert rebuild([fill, charge])["AAPL"].cash == (await venue.balance()).cash - 100_000


async def test_fills_of_orders_that_somebody_placed_elsewhere_are_facts(fake: FakeTastytrade, venue: TastytradeVenue):
    fake.desk.fee = Decimal("0.01")
    leg = {"instrument-type": "Equity", "symbol": "BRK/B", "quantity": 3, "action": "Sell to Open"}
    theirs = fake.desk.place(
        {"order-type": "Market", "time-in-force": "Day", "source": "WEB", "external-identifier": str(uuid4())}
        | {"legs": [leg]}
    )
    fake.desk.fill(theirs, Decimal(3), Decimal(400))
    changes = await venue.changes(utc_now())
    assert changes.orders == []
    (fill,) = changes.facts
    assert isinstance(fill, Fill)
    assert (fill.instrument, fill.side, fill.quantity, fill.price) == (Equity("BRK.B"), "sell", 3, 400)
    assert (fill.order_id, fill.fee) == (uuid5(ACCOUNT, str(theirs.id)), Decimal("0.01"))


async def test_an_order_of_long_ago_that_filled_since_is_told(fake: FakeTastytrade, venue: TastytradeVenue):
    order = Order(uuid4(), ACCOUNT, "tastytrade", terms(10))
    await venue.submit(order)
    placed = fake.desk.under(str(order.id))
    fake.desk.skew = timedelta(days=-1)
    fake.desk.fill(placed, Decimal(10), Decimal(9))
    placed.received = placed.updated = utc_now() - timedelta(days=90)
    fake.desk.skew = timedelta()
    changes = await venue.changes(utc_now())
    assert [(one.order_id, one.report.kind) for one in changes.orders] == [(order.id, "filled")]
    assert changes.facts == []


async def test_all_pages_of_the_history_are_read_and_what_is_booked_late_too(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    fake.desk.skew = timedelta(days=-3)  # dated back to Friday
    book(fake.desk, "Receive Deliver", "Expiration", "AAPL  261120C00200000", "2.0")
    fake.desk.skew = timedelta()
    for _ in range(130):
        book(fake.desk, "Money Movement", "Fee", "AAPL", "0", value="0.02", value_effect="Debit")
    changes = await venue.changes(utc_now())
    assert sum(isinstance(one, Charge) for one in changes.facts) == 130
    assert [one.quantity for one in changes.facts if isinstance(one, Expiry)] == [2]


def told(desk: Desk) -> list[Any]:
    return facts_of(desk.transactions, (), ACCOUNT)


@pytest.fixture
def desk() -> Desk:
    return Desk("5WX06827", lambda order: None)


@pytest.mark.parametrize("sub", ["Expiration", "Exercise", "Assignment"])
def test_an_option_without_a_price_is_gone_for_nothing(desk: Desk, sub: str):
    book(desk, "Receive Deliver", sub, "RIVN  261218P00014000", "40.0")
    (expiry,) = told(desk)
    assert isinstance(expiry, Expiry)
    assert (expiry.instrument, expiry.quantity, expiry.price) == (RIVN_PUT, 40, 0)


def test_an_option_settled_for_cash_is_gone_at_what_was_paid_a_share(desk: Desk):
    more = {"value": "2500.0", "value_effect": "Credit"}
    book(desk, "Receive Deliver", "Cash Settled Exercise", "SPXW  261218C05000000", "2.0", **more)
    (expiry,) = told(desk)
    assert (expiry.quantity, expiry.price) == (2, Decimal("12.5"))


def test_an_assignment_is_an_expiry_and_the_shares_that_came(desk: Desk):
    book(desk, "Receive Deliver", "Assignment", "RIVN  261218P00014000", "40.0")
    bought = {"action": "Buy to Open", "price": "14.0", "value": "56000.0", "value_effect": "Debit"}
    fees = {"clearing_fees": "5.0", "clearing_fees_effect": "Debit"}
    book(desk, "Receive Deliver", "Buy to Open", "RIVN", "4000.0", **bought, **fees)
    expiry, fill = told(desk)
    assert isinstance(expiry, Expiry)
    assert (fill.instrument, fill.side, fill.quantity, fill.price, fill.fee) == (Equity("RIVN"), "buy", 4000, 14, 5)
    sold = Fill("s", UUID(int=9), RIVN_PUT, "sell", Decimal(40), Decimal(1), fill.at - timedelta(days=9))
    positions = rebuild([sold, *told(desk)])
    assert positions[RIVN_PUT.key].quantity == 0
    assert positions["RIVN"].quantity == 4000


@pytest.mark.parametrize(("sub", "new", "old"), [("Forward Split", "108.0", "54.0"), ("Reverse Split", "5.0", "50.0")])
def test_two_rows_of_a_split_are_one_split(desk: Desk, sub: str, new: str, old: str):
    opening = book(desk, "Receive Deliver", sub, "TQQQ", new, action="Buy to Open", value="9940.86")
    closing = book(desk, "Receive Deliver", sub, "TQQQ", old, action="Sell to Close", value="9940.86")
    closing["executed-at"] = opening["executed-at"]
    (split,) = told(desk)
    assert isinstance(split, Split)
    assert (split.new, split.old, split.quantity_after) == (Decimal(new), Decimal(old), Decimal(new))
    assert told(desk) == facts_of(reversed(desk.transactions), (), ACCOUNT)


def test_a_split_of_what_is_short_leaves_it_short(desk: Desk):
    opening = book(desk, "Receive Deliver", "Forward Split", "TQQQ", "20.0", action="Sell to Open")
    closing = book(desk, "Receive Deliver", "Forward Split", "TQQQ", "10.0", action="Buy to Close")
    closing["executed-at"] = opening["executed-at"]
    assert [one.quantity_after for one in told(desk)] == [-20]


def test_a_split_that_renames_its_contract_closes_one_and_opens_the_other(desk: Desk):
    more = {"value": "300.0"}
    book(desk, "Receive Deliver", "Forward Split", "AAPL  261218C00200000", "1.0", action="Sell to Close", **more)
    book(desk, "Receive Deliver", "Forward Split", "AAPL  261218C00100000", "2.0", action="Buy to Open", **more)
    assert [(one.side, one.quantity, one.price) for one in told(desk)] == [("sell", 1, 3), ("buy", 2, Decimal("1.5"))]


def test_shares_of_a_dividend_came_at_their_price(desk: Desk):
    book(desk, "Receive Deliver", "Dividend", "KBWD", "1.68074", action="Buy to Open", price="16.46")
    (fill,) = told(desk)
    assert (fill.quantity, fill.price) == (Decimal("1.68074"), Decimal("16.46"))


def test_money_that_moves_for_other_reasons_and_futures_are_no_facts(desk: Desk):
    desk.book(transaction_type="Money Movement", transaction_sub_type="Deposit", value="1000.0", value_effect="Credit")
    book(desk, "Money Movement", "Dividend", "AAPL", "0", value="2.4", value_effect="Credit")
    desk.book(
        transaction_type="Trade",
        transaction_sub_type="Buy",
        symbol="/ESZ6",
        instrument_type="Future",
        action="Buy",
        quantity="1.0",
    )
    assert told(desk) == []


def test_a_fee_that_is_given_back_is_below_zero(desk: Desk):
    book(desk, "Money Movement", "Fee", "AAPL", "0", value="0.02", value_effect="Credit")
    assert [one.fee for one in told(desk)] == [Decimal("-0.02")]

"""What the rules are told of an account's other orders, of its money and of the market."""

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from services.broker.store.seen import seen
from shared.contracts.broker import LegTerms, OrderTerms
from shared.contracts.quotes import QuoteTaken
from tests.broker.brokerage import Brokerage, opened

D = Decimal


async def taken(brokerage: Brokerage, account: UUID, told_s: float) -> Decimal:
    """Return what orders have taken of money that was told so many seconds from now."""
    since = brokerage.clock() + timedelta(seconds=told_s)
    nobody, now = uuid4(), brokerage.clock()
    async with brokerage.service.db.transaction() as tx:
        found = await seen(
            tx,
            order_id=nobody,
            account_id=account,
            user_id=nobody,
            symbols=[],
            plan=None,
            told_at=since,
            minute=now,
            window=now,
            most=1,
            now=now,
        )
    reserved: Decimal = found["reserved"]
    return reserved


async def test_working_orders_by_notional_count_towards_the_position(database_url: str) -> None:
    async with opened(database_url, max_position_value="70000") as brokerage:
        account = await brokerage.account()
        market: dict[str, Any] = {"quantity": None, "notional": D(30_000), "type": "market", "limit": None}
        legs = (LegTerms(symbol="AAPL", side="buy"),)
        placed = [await brokerage.place_terms(account, OrderTerms(legs=legs, **market)) for _ in range(3)]
        assert [await brokerage.state(one) for one in placed] == ["accepted", "accepted", "rejected"]
        assert await brokerage.codes(placed[2]) == ["POSITION_TOO_LARGE"]


async def test_what_the_venue_refuses_and_what_replaces_counts_against_the_pace(database_url: str) -> None:
    async with opened(database_url, max_orders_a_minute=2) as brokerage:
        account = await brokerage.account()
        working = await brokerage.place(account)
        brokerage.clock.advance(1)
        brokerage.desk(account).refuse_next("not today")
        assert await brokerage.state(await brokerage.place(account, quantity=2)) == "rejected"
        brokerage.clock.advance(1)
        late = await brokerage.replace(account, working, limit="99.50")
        assert await brokerage.codes(late) == ["TOO_MANY_ORDERS"]
        assert await brokerage.codes(await brokerage.place(account, quantity=3)) == ["TOO_MANY_ORDERS"]


async def test_of_a_burst_the_first_orders_go_out_however_late_they_are_judged(database_url: str) -> None:
    async with opened(database_url, max_orders_a_minute=1) as brokerage:
        account = await brokerage.account()
        brokerage.desk(account).down = True
        first = await brokerage.place(account)
        brokerage.clock.advance(1)
        second = await brokerage.place(account)
        brokerage.desk(account).down = False
        await brokerage.rows(
            "update sendings set due_at = due_at + interval '10 seconds' where order_id = :id returning 1", id=second
        )  # so that the first one is judged first, with the second one waiting
        await brokerage.settle(wholly=True)
        assert (await brokerage.state(first), await brokerage.codes(second)) == ("accepted", ["TOO_MANY_ORDERS"])


async def test_an_order_on_its_way_while_the_money_was_told_is_counted(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.place(account, quantity=10)
    assert await taken(brokerage, account, 0) == 1000
    assert await taken(brokerage, account, 1) == 0
    brokerage.clock.advance(5)
    assert await taken(brokerage, account, -1) == 0  # nothing was heard of it since
    order = await brokerage.place(account, quantity=7)
    brokerage.clock.advance(5)
    await brokerage.desk(account).fill(order, D(3), D(100))
    await brokerage.reconcile(account)
    assert await taken(brokerage, account, -1) == 700


async def test_what_a_canceled_order_has_bought_stays_taken(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    bought, empty = await brokerage.place(account, quantity=10), await brokerage.place(account, quantity=5)
    await brokerage.desk(account).fill(bought, D(3), D(100))
    for one in (bought, empty):
        await brokerage.cancel(account, one)
    await brokerage.reconcile(account)
    assert [await brokerage.state(one) for one in (bought, empty)] == ["canceled", "canceled"]
    assert await taken(brokerage, account, 0) == 1000


@pytest.mark.parametrize(("ahead_s", "ask", "kept"), [(4, 2.0, True), (6, 2.0, False), (0, float("inf"), False)])
async def test_a_quote_from_the_future_or_without_a_number_is_not_kept(
    brokerage: Brokerage, ahead_s: int, ask: float, kept: bool
) -> None:
    now = brokerage.clock()
    fields: dict[str, Any] = {"source": "cboe", "simulated": False, "close": None, "bid": 1.0}
    at = now + timedelta(seconds=ahead_s)
    await brokerage.hear(QuoteTaken.model_construct(id=uuid4(), time=now, symbol="ODD", as_of=at, ask=ask, **fields))
    assert bool(await brokerage.rows("select 1 from quotes where symbol = 'ODD'")) == kept


@pytest.mark.parametrize("amount", ["1e9999999", "-1e9999999", "1e15"])
async def test_an_amount_too_large_to_reckon_with_is_stopped_at_the_door(brokerage: Brokerage, amount: str) -> None:
    with pytest.raises(ValidationError):
        OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="market", quantity=D(amount))
    body = {"venue": "memory", "mode": "paper", "name": "mine", "limits": {"max_order_value": amount}}
    assert (await brokerage.ask("POST", "/broker/accounts", body))[0] in {400, 422}

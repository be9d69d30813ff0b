"""Faults of the brokerage's doors that a review found, each once."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from services.broker.domain.instruments import instrument
from services.broker.ports import Account
from services.broker.service.checking import Rulebook
from services.broker.service.vault import NoCredentials
from services.broker.service.venues import Venues
from shared.contracts.broker import LegTerms, OrderRequested, OrderTerms
from tests.broker.brokerage import NOW, USER, Brokerage
from tests.conftest import ManualClock
from tests.fakes.venue import MemoryAdapter
from tests.fakes.venue_books import PLAIN

D = Decimal
TERMS = OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="limit", quantity=D(1), limit=D(100))


async def ask(brokerage: Brokerage, account: UUID, order: UUID, terms: OrderTerms, *, ago_s: float = 0) -> None:
    at = brokerage.clock() - timedelta(seconds=ago_s)
    await brokerage.hear(
        OrderRequested(id=uuid4(), time=at, account_id=account, user_id=USER, order_id=order, terms=terms)
    )
    await brokerage.settle()


async def test_an_order_under_a_strangers_id_does_not_show_the_strangers_order(brokerage: Brokerage) -> None:
    account, somebody = await brokerage.account(), uuid4()
    order = await brokerage.place(account)
    theirs = await brokerage.account(somebody)
    body = {"account_id": str(theirs), "order_id": str(order), "terms": TERMS.model_dump(mode="json")}
    status, answer = await brokerage.ask("POST", "/broker/orders?wait_s=1", body, user_id=somebody)
    assert (status, answer) == (202, {"order_id": str(order), "order": None})


async def test_a_symbol_in_small_letters_is_the_same_instrument(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    bought = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(bought, D(10), D(100))
    await brokerage.reconcile(account)
    resting = await brokerage.place(account, " aapl", quantity=10, side="sell", limit=D(101))
    assert await brokerage.state(resting) == "accepted"
    await brokerage.close_position(account)
    assert await brokerage.state(resting) in {"pending_cancel", "canceled"}


async def test_an_order_that_was_asked_for_long_ago_is_not_sent(brokerage: Brokerage) -> None:
    account, late, soon = await brokerage.account(), uuid4(), uuid4()
    await ask(brokerage, account, late, TERMS, ago_s=61)
    await ask(brokerage, account, soon, TERMS, ago_s=59)
    assert await brokerage.codes(late) == ["TOO_LATE"]
    assert brokerage.desk(account).submits() == [soon]


async def test_an_order_that_could_not_be_sent_for_a_minute_is_given_up_though_its_venue_is_away(
    brokerage: Brokerage,
) -> None:
    account = await brokerage.account()
    brokerage.desk(account).down = True
    order = await brokerage.place(account)
    assert await brokerage.state(order) == "new"
    brokerage.clock.advance(61)
    await brokerage.settle()
    assert await brokerage.codes(order) == ["TOO_LATE"]


async def test_an_order_id_with_other_terms_is_refused_and_with_the_same_is_one_order(brokerage: Brokerage) -> None:
    account, order = await brokerage.account(), uuid4()
    await ask(brokerage, account, order, TERMS)
    await ask(brokerage, account, order, TERMS)
    assert brokerage.events("broker.order.rejected.v1") == []
    await ask(brokerage, account, order, TERMS.model_copy(update={"quantity": D(2)}))
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert told["codes"] == ["ORDER_ID_TAKEN"]
    assert brokerage.desk(account).submits() == [order]


def account_at(adapter: MemoryAdapter) -> Account:
    return Account(uuid4(), USER, adapter.name, "paper")


async def test_a_venue_is_opened_anew_with_new_credentials_and_not_with_deleted_ones() -> None:
    adapter, versions = MemoryAdapter(PLAIN, ManualClock(NOW)), [uuid4()]
    account = account_at(adapter)

    async def secrets(_: Account) -> Mapping[str, str]:
        if len(versions) > 2:
            raise NoCredentials
        return {"key": str(versions[-1])}

    async def version(_: Account) -> UUID:
        return versions[-1]

    venues = Venues([adapter], secrets, version)
    first = await venues.of(account)
    assert await venues.of(account) is first
    versions.append(uuid4())
    assert await venues.of(account) is not first
    versions.append(uuid4())
    with pytest.raises(NoCredentials):
        await venues.of(account)


async def test_opening_one_account_keeps_no_other_waiting() -> None:
    adapter, gate = MemoryAdapter(PLAIN, ManualClock(NOW)), asyncio.Event()
    slow, quick = account_at(adapter), account_at(adapter)

    async def secrets(account: Account) -> Mapping[str, str]:
        if account == slow:
            await gate.wait()
        return {"key": "secret"}

    venues = Venues([adapter], secrets)
    opening = asyncio.create_task(venues.of(slow))
    async with asyncio.timeout(5):
        await venues.of(quick)
    assert not opening.done()
    gate.set()
    await opening


async def test_rules_are_kept_by_venue_and_mode_and_only_so_many() -> None:
    adapter = MemoryAdapter(PLAIN, ManualClock(NOW))
    venue = adapter.open(account_at(adapter), {"key": "secret"})
    book, apple, other = Rulebook(most=2), instrument("AAPL"), instrument("MSFT")
    for place in (("x", "paper"), ("x", "live")):
        assert set(await book.of(place, venue, [apple, other])) == {"AAPL", "MSFT"}  # type: ignore[arg-type]
    assert {place for place, _ in book._known} == {("x", "live")}

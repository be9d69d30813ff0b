"""The venue in memory, where it does more than the conformance cases ask of every stand-in."""

from decimal import Decimal
from uuid import UUID

import pytest

from services.broker.domain.orders import Fill
from services.broker.domain.positions import Charge, Expiry, PositionFact, Split, rebuild
from services.broker.ports import Account, VenueRefused
from shared.errors import Transient
from tests.broker.samples import AAPL, CALL, at, order
from tests.broker.trader import Trader
from tests.fakes.venue import Desk, MemoryAdapter
from tests.fakes.venue_books import START, Manner

ACCOUNT = Account(UUID(int=7), UUID(int=1), "memory", "paper")


def moment():
    return at(0)


async def test_a_submit_that_is_sent_twice_to_a_venue_without_ids_is_two_orders():
    desk = Desk(Manner(knows_ids=False), moment)
    one = order(10)
    await desk.venue.submit(one)
    await desk.fill(one.id, Decimal(10), Decimal(10))
    await desk.venue.submit(one)
    await desk.fill(one.id, Decimal(10), Decimal(10))
    assert desk.submits() == [one.id, one.id]
    trader = Trader(desk, START)
    trader.orders[one.id] = one
    trader.told(one.id, await desk.venue.look_up(one))
    assert "OVERFILL" in trader.anomalies()


@pytest.mark.parametrize("wish", ["cancel", "replacement"])
async def test_a_wish_that_was_held_is_carried_out_when_the_venue_comes_to_it(wish: str):
    desk = Desk(clock=moment)
    trader = Trader(desk, START)
    placed = await trader.submit()
    desk.hold_cancels()
    by = await trader.replace(placed, trader.terms()) if wish == "replacement" else await trader.cancel(placed)
    async with trader.listening():
        await desk.carry_out(placed)
        await trader.hears(placed, "canceled" if by is None else "replaced")
    if by is not None:
        await trader.settles(by, "accepted")


@pytest.mark.parametrize(
    "facts",
    [
        (Fill("elsewhere", UUID(int=9), AAPL, "buy", Decimal(7), Decimal(100), at(1), fee=Decimal("0.5")),),
        (Split("split", AAPL, at(1), Decimal(3), Decimal(2), Decimal(15), cash=Decimal("1.25")),),
        (Charge("charge", AAPL, at(1), Decimal("0.02")),),
        (
            Fill("short", UUID(int=9), CALL, "sell", Decimal(2), Decimal(5), at(1)),
            Expiry("expiry", CALL, at(2), Decimal(2)),
        ),
    ],
    ids=["a fill of somebody else's order", "a split", "a fee", "an expiry"],
)
async def test_what_moves_positions_without_an_order_is_told_by_changes(facts: tuple[PositionFact, ...]):
    desk = Desk(clock=moment)
    trader = Trader(desk, START)
    trader.since = at(0)
    placed = await trader.submit()
    await desk.fill(placed, Decimal(10), Decimal(99))
    await trader.agrees()
    for fact in facts:
        desk.happen(fact)
    assert (await desk.venue.changes(at(0))).facts == list(facts)
    assert rebuild([*trader.fills(), *facts])[AAPL.key].quantity == desk.quantity(AAPL)
    await trader.agrees()
    desk.drift(AAPL, Decimal(11))
    with pytest.raises(AssertionError):
        await trader.agrees()


async def test_an_account_is_opened_again_over_the_same_books():
    adapter = MemoryAdapter(clock=moment)
    one = order(10)
    venue = adapter.open(ACCOUNT, {"key": "k"})
    await venue.submit(one)
    await venue.close()
    with pytest.raises(AssertionError):
        await venue.look_up(one)
    assert (await adapter.open(ACCOUNT, {"key": "k"}).look_up(one)).kind == "accepted"
    assert adapter.desk(ACCOUNT.id).submits() == [one.id]
    assert adapter.desk(UUID(int=8)).submits() == []


async def test_a_venue_that_is_down_or_refuses_the_account_does_nothing():
    desk = Desk(clock=moment)
    desk.down = True
    with pytest.raises(Transient):
        await desk.venue.submit(order())
    desk.down, desk.revoked = False, True
    with pytest.raises(VenueRefused):
        await desk.venue.submit(order())
    assert desk.submits() == []

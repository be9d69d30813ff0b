"""Conformance of venues: each type, time in force and class of order, and what a venue tells of its instruments."""

from decimal import Decimal
from typing import Any
from uuid import UUID

from services.broker.domain.instruments import Equity
from services.broker.domain.lifecycle import leg_filled
from services.broker.domain.orders import WORKING, Leg, TimeInForce
from tests.broker.trader import ASK, BID, HIGHER, SAMPLES, Trader, case, first


async def place(trader: Trader, **terms: Any) -> UUID:
    """Place an order that passes the checks, and hold it to having been taken."""
    order = trader.new(trader.terms(**terms))
    await trader.passes_checks(order.terms)
    await trader.submit(order)
    assert order.id in trader.rig.submits()
    assert trader.state(order.id) in WORKING | {"filled"}
    return order.id


async def ends_filled(trader: Trader, order_id: UUID, price: Decimal) -> None:
    """Fill what is left of an order: a venue that matches may have filled it at once."""
    quantity = trader.orders[order_id].terms.quantity or Decimal(0)
    if await trader.look_up(order_id) != "filled":
        await trader.rig.fill(order_id, quantity - trader.filled(order_id), price)
    await trader.settles(order_id, "filled")
    assert trader.filled(order_id) == quantity
    assert trader.rig.submits() == [order_id]


def move(trader: Trader, bid: str, ask: str) -> None:
    trader.rig.quote(trader.terms().legs[0].instrument.key, Decimal(bid), Decimal(ask))


# Types


@case("V01")
async def test_a_market_order_is_filled(trader: Trader):
    order = await place(trader, type="market", limit=None)
    await ends_filled(trader, order, ASK)


@case("V02")
async def test_a_limit_order_rests_and_is_filled(trader: Trader):
    order = await place(trader)
    assert await trader.look_up(order) == "accepted"
    await ends_filled(trader, order, Decimal(99))


@case("V03")
async def test_a_stop_order_is_filled_once_the_market_is_there(trader: Trader):
    order = await place(trader, type="stop", limit=None, stop=Decimal(105))
    assert await trader.look_up(order) == "accepted"
    move(trader, "105.00", "105.02")
    await ends_filled(trader, order, Decimal("105.02"))


@case("V04")
async def test_a_stop_limit_order_is_filled_once_the_market_is_there(trader: Trader):
    order = await place(trader, type="stop_limit", limit=Decimal(106), stop=Decimal(105))
    assert await trader.look_up(order) == "accepted"
    move(trader, "105.00", "105.02")
    await ends_filled(trader, order, Decimal("105.02"))


@case("V05")
async def test_a_trailing_stop_is_filled_once_the_market_has_turned(trader: Trader):
    order = await place(trader, type="trailing_stop", limit=None, trail_amount=Decimal(2))
    assert await trader.look_up(order) == "accepted"
    move(trader, "95.00", "95.02")
    move(trader, "97.50", "97.52")
    await ends_filled(trader, order, Decimal("97.52"))


# How long


async def lasts(trader: Trader, time: TimeInForce) -> None:
    """A limit that the market meets, so that a venue which matches fills it whatever the time in force."""
    kind = first(kind for kind, times in trader.capabilities.times.items() if time in times)
    legs = (Leg(SAMPLES[kind], "buy", opens=True),)
    order = await place(trader, legs=legs, time_in_force=time, limit=Decimal(101))
    await ends_filled(trader, order, ASK)


@case("V06")
async def test_an_order_for_the_day(trader: Trader):
    await lasts(trader, "day")


@case("V07")
async def test_an_order_until_it_is_canceled(trader: Trader):
    await lasts(trader, "gtc")


@case("V08")
async def test_an_order_for_at_once(trader: Trader):
    await lasts(trader, "ioc")


@case("V09")
async def test_an_order_for_all_or_nothing(trader: Trader):
    await lasts(trader, "fok")


@case("V10")
async def test_an_order_for_the_opening(trader: Trader):
    await lasts(trader, "opg")


@case("V11")
async def test_an_order_for_the_close(trader: Trader):
    await lasts(trader, "cls")


# What


@case("V12")
async def test_an_option_of_one_leg(trader: Trader):
    trader.rig.quote(SAMPLES["option"].key, Decimal("1.50"), Decimal("1.55"))
    order = await place(trader, quantity=2, legs=(Leg(SAMPLES["option"], "buy", opens=True),), limit=Decimal("1.50"))
    await ends_filled(trader, order, Decimal("1.50"))


@case("V13")
async def test_each_leg_of_a_spread_is_filled_by_its_ratio(trader: Trader):
    trader.rig.quote(SAMPLES["option"].key, Decimal("2.50"), Decimal("2.55"))
    trader.rig.quote(HIGHER.key, Decimal("1.00"), Decimal("1.05"))
    legs = (Leg(SAMPLES["option"], "buy", opens=True), Leg(HIGHER, "sell", opens=True))
    order = await place(
        trader, quantity=3, legs=legs, limit=Decimal("1.50"), order_class="multi_leg", strategy="vertical"
    )
    await trader.rig.fill(order, Decimal(1), Decimal("1.50"))
    await trader.settles(order, "partially_filled")
    assert [leg_filled(trader.orders[order], leg) for leg in (0, 1)] == [1, 1]
    await ends_filled(trader, order, Decimal("1.50"))
    assert [leg_filled(trader.orders[order], leg) for leg in (0, 1)] == [3, 3]
    held = {one.instrument.key: one.quantity for one in await trader.rig.venue.positions()}
    assert held == {SAMPLES["option"].key: 3, HIGHER.key: -3}


@case("V14")
async def test_a_crypto_pair(trader: Trader):
    time = "gtc" if "gtc" in trader.capabilities.times["crypto"] else "day"
    legs = (Leg(SAMPLES["crypto"], "buy"),)
    order = await place(trader, legs=legs, time_in_force=time, quantity=Decimal("0.25"))
    await ends_filled(trader, order, Decimal(99))


@case("V15")
async def test_a_quantity_below_one(trader: Trader):
    order = await place(trader, quantity=Decimal("0.3"))
    await trader.rig.fill(order, Decimal("0.1"), Decimal(99))
    await ends_filled(trader, order, Decimal(99))


@case("V16")
async def test_an_order_by_its_value_is_filled_when_the_venue_says_so(trader: Trader):
    kind = first(trader.capabilities.notional)
    terms = {"type": "market", "limit": None, "quantity": None, "notional": Decimal(50)}
    order = await place(trader, legs=(Leg(SAMPLES[kind], "buy"),), **terms)
    if await trader.look_up(order) != "filled":
        await trader.rig.fill(order, Decimal("0.5"), BID)
    await trader.settles(order, "filled")
    assert trader.rig.submits() == [order]


async def stopped(trader: Trader) -> tuple[Leg, UUID]:
    """Buy ten, and protect them by a stop; return the leg that sells them and the stop."""
    bought = await place(trader)
    await ends_filled(trader, bought, Decimal(99))
    leg = Leg(trader.terms().legs[0].instrument, "sell", opens=False)
    stop = trader.new(trader.terms(legs=(leg,), type="stop", limit=None, stop=Decimal(90)))
    await trader.submit(stop)
    assert await trader.look_up(stop.id) == "accepted"
    return leg, stop.id


async def closes(trader: Trader, leg: Leg, stop: UUID, quantity: int) -> None:
    """Cancel the stop, and close the rest at a limit once it is gone."""
    await trader.cancel(stop)
    await trader.settles(stop, "canceled")
    profit = trader.new(trader.terms(quantity, legs=(leg,), limit=Decimal(110)))
    await trader.submit(profit)
    assert await trader.look_up(profit.id) == "accepted"
    await trader.rig.fill(profit.id, Decimal(quantity), Decimal(110))
    await trader.settles(profit.id, "filled")
    assert trader.filled(stop) + trader.filled(profit.id) == 10  # a fee in what is traded may leave less than nothing


@case("V17")
async def test_a_stop_protects_what_an_entry_filled_and_is_canceled_for_a_take_profit(trader: Trader):
    leg, stop = await stopped(trader)
    await closes(trader, leg, stop, 10)


@case("V18")
async def test_a_stop_that_is_filled_in_part_is_canceled_and_a_limit_closes_what_is_left(trader: Trader):
    leg, stop = await stopped(trader)
    await trader.rig.fill(stop, Decimal(4), Decimal(90))
    await closes(trader, leg, stop, 6)


@case("V19")
async def test_an_order_for_outside_regular_hours(trader: Trader):
    order = await place(trader, extended_hours=True)
    await ends_filled(trader, order, Decimal(99))


# What a venue tells before anything is sent


@case("V20")
async def test_steps_of_known_instruments_are_told_and_unknown_ones_left_out(trader: Trader):
    known, unknown = trader.terms().legs[0].instrument, Equity("ZZZZZ")
    rules = await trader.rig.venue.rules([known, unknown])
    assert set(rules) == {known.key}
    assert rules[known.key].tradable
    assert rules[known.key].tick(Decimal(100)) > 0
    assert 0 < rules[known.key].quantity_step <= rules[known.key].least_quantity * 10**12


def test_expirations_of_the_samples_lie_ahead():
    option = SAMPLES["option"]
    assert HIGHER.expires_on.weekday() == 4
    assert HIGHER.key[:10] == option.key[:10]

"""Conformance of venues: the life of an order, its fills, and the races of a cancel or a replacement with them."""

import asyncio
from decimal import Decimal
from uuid import UUID

from tests.broker.trader import Trader, case

PRICE = Decimal(99)


async def filled(trader: Trader) -> UUID:
    order = await trader.submit()
    await trader.rig.fill(order, Decimal(10), PRICE)
    await trader.settles(order, "filled")
    return order


# Fills and ends


@case("V22")
async def test_a_partial_fill_and_then_the_rest_come_by_the_stream(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.hears(order, "accepted")
        await trader.rig.fill(order, Decimal(4), PRICE)
        await trader.hears(order, "partially_filled", 4)
        await trader.rig.fill(order, Decimal(6), Decimal("98.5"))
        await trader.hears(order, "filled", 10)


@case("V23")
async def test_what_happens_inside_the_block_comes_also_before_it_is_first_read(trader: Trader):
    order = await trader.submit()
    async with trader.rig.venue.stream() as frames:
        await trader.rig.fill(order, Decimal(4), PRICE)
        await trader.rig.end(order, "canceled")
        async with asyncio.timeout(30):
            while trader.state(order) != "canceled":
                one = await anext(frames)
                trader.told(one.order_id, one.report)
    assert trader.filled(order) == 4


@case("V24")
async def test_a_working_order_is_canceled(trader: Trader):
    order = await trader.submit()
    await trader.cancel(order)
    await trader.settles(order, "canceled")
    assert trader.filled(order) == 0


@case("V25")
async def test_a_partially_filled_order_is_canceled_and_keeps_its_fills(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.rig.fill(order, Decimal(4), PRICE)
        await trader.hears(order, "partially_filled", 4)
        await trader.cancel(order)
        await trader.hears(order, "canceled", 4)


@case("V26")
async def test_an_order_is_filled_while_its_cancel_is_pending(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        trader.rig.hold_cancels()
        await trader.cancel(order)
        assert trader.state(order) == "pending_cancel"
        assert await trader.look_up(order) == "pending_cancel"
        await trader.rig.fill(order, Decimal(10), PRICE)
        await trader.hears(order, "filled", 10)
    await trader.settles(order, "filled")


@case("V27")
async def test_an_order_is_filled_in_part_while_its_cancel_is_pending_and_then_canceled(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        trader.rig.hold_cancels()
        await trader.cancel(order)
        await trader.rig.fill(order, Decimal(3), PRICE)
        await trader.hears(order, "pending_cancel", 3)
        await trader.rig.end(order, "canceled")
        await trader.hears(order, "canceled", 3)
    assert not trader.anomalies()


@case("V28")
async def test_a_cancel_of_a_filled_order_tells_that_it_is_filled(trader: Trader):
    order = await trader.submit()
    await trader.rig.fill(order, Decimal(10), PRICE)
    await trader.cancel(order)  # we have not heard of the fill
    await trader.settles(order, "filled")
    assert trader.filled(order) == 10
    assert not trader.anomalies()  # it was never told to be canceled


@case("V33")
async def test_a_refused_order_is_rejected_with_the_venues_reason_and_takes_no_effect(trader: Trader):
    trader.rig.refuse_next("too little buying power")
    order = await trader.submit()
    assert trader.state(order) == "rejected"
    assert "too little buying power" in (trader.orders[order].reason or "")
    assert trader.rig.submits() == []
    assert await trader.rig.venue.positions() == []
    another = await trader.submit()
    assert trader.state(another) == "accepted"


@case("V34")
async def test_the_venue_lets_an_order_expire(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.rig.fill(order, Decimal(1), PRICE)
        await trader.rig.end(order, "expired")
        await trader.hears(order, "expired", 1)
    await trader.settles(order, "expired")


@case("V35")
async def test_the_venue_rejects_an_order_that_it_had_accepted(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.hears(order, "accepted")
        await trader.rig.end(order, "rejected")
        await trader.hears(order, "rejected", 0)
    await trader.settles(order, "rejected")


@case("V36")
async def test_a_fill_that_comes_after_the_cancel_counts_and_is_marked(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.cancel(order)
        await trader.hears(order, "canceled")
        await trader.rig.fill(order, Decimal(3), PRICE)
        await trader.hears(order, "canceled", 3)
    await trader.settles(order, "canceled")
    assert trader.anomalies() == {"LATE_FILL"}


# Replacements


@case("V29")
async def test_a_replacement_takes_the_place_of_a_working_order(trader: Trader):
    order = await trader.submit()
    by = await trader.replace(order, trader.terms(limit=Decimal(98)))
    await trader.settles(order, "replaced")
    assert trader.orders[order].replaced_by == by
    report = await trader.rig.venue.look_up(trader.orders[order])
    assert report.kind == "replaced"  # the venue has ended it, too
    await trader.settles(by, "accepted")
    await trader.rig.fill(by, Decimal(10), Decimal(98))
    await trader.settles(by, "filled")
    assert trader.filled(order) == 0


@case("V30")
async def test_a_partially_filled_order_is_replaced_and_the_fills_of_both_count(trader: Trader):
    order = await trader.submit()
    await trader.rig.fill(order, Decimal(4), PRICE)
    await trader.settles(order, "partially_filled")
    by = await trader.replace(order, trader.terms(limit=Decimal(98)))
    await trader.settles(order, "replaced")
    await trader.settles(by, "accepted")
    await trader.rig.fill(by, Decimal(1), Decimal(98))
    await trader.settles(by, "partially_filled")
    assert (trader.filled(order), trader.filled(by)) == (4, 1)


@case("V31")
async def test_an_order_is_filled_while_its_replacement_is_pending_and_only_one_of_them_fills(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        trader.rig.hold_cancels()
        by = await trader.replace(order, trader.terms(limit=Decimal(98)))
        await trader.rig.fill(order, Decimal(4), PRICE)
        await trader.hears(order, "partially_filled", 4)
        await trader.rig.fill(order, Decimal(6), PRICE)
        await trader.hears(order, "filled", 10)
    await trader.settles(order, "filled")
    assert await trader.look_up(by) in {"new", "rejected", "canceled"}  # never there, refused, or ended with it
    assert trader.filled(by) == 0


@case("V32")
async def test_a_filled_order_is_not_replaced(trader: Trader):
    order = await trader.submit()
    await trader.rig.fill(order, Decimal(10), PRICE)
    by = await trader.replace(order, trader.terms(limit=Decimal(98)))  # we have not heard of the fill
    await trader.settles(order, "filled")
    assert await trader.look_up(by) in {"new", "rejected", "canceled"}
    assert trader.filled(by) == 0

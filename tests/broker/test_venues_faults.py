"""Conformance of venues: what is lost, told twice, late or refused on the way, and what is found after a restart."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from services.broker.domain.orders import Leg, Report
from shared.errors import Transient
from tests.broker.trader import Trader, case
from tests.conftest import eventually

PRICE = Decimal(99)


# Writes without an answer


@case("V37")
async def test_a_submit_without_an_answer_is_found_and_not_sent_again(trader: Trader):
    trader.rig.lose_next("answer")
    order = await trader.submit()
    assert trader.state(order) == "unknown"
    assert await trader.look_up(order) == "accepted"
    assert trader.rig.submits() == [order]


@case("V38")
async def test_a_submit_that_never_arrived_is_not_found_and_sent_again_with_one_effect(trader: Trader):
    trader.rig.lose_next("request")
    order = await trader.submit()
    assert trader.state(order) == "unknown"
    assert trader.rig.submits() == []
    assert await trader.look_up(order) == "new"
    await trader.submit(trader.orders[order])
    assert trader.state(order) == "accepted"
    assert trader.rig.submits() == [order]


@case("V39")
async def test_an_id_that_the_venue_has_never_seen_is_not_found(trader: Trader):
    await trader.submit()
    report = await trader.rig.venue.look_up(trader.new(trader.terms()))
    assert (report.kind, report.looked_up, report.executions) == ("not_found", True, ())


@case("V40")
async def test_an_id_that_is_submitted_twice_has_one_effect(trader: Trader):
    assert trader.rig.venue.knows_ids
    order = trader.new(trader.terms())
    await trader.submit(order)
    await trader.rig.fill(order.id, Decimal(4), PRICE)
    trader.orders[order.id] = order  # as if we had lost all that we knew of it
    await trader.submit(order)
    assert trader.state(order.id) == "unknown"
    assert await trader.look_up(order.id) == "partially_filled"
    assert trader.rig.submits() == [order.id]


@case("V41")
async def test_a_cancel_without_an_answer_is_found_to_be_done(trader: Trader):
    order = await trader.submit()
    trader.rig.lose_next("answer")
    await trader.cancel(order)
    assert trader.state(order) == "pending_cancel"
    await trader.settles(order, "canceled")


@case("V42")
async def test_a_cancel_that_never_arrived_leaves_the_order_working_and_is_asked_again(trader: Trader):
    order = await trader.submit()
    trader.rig.lose_next("request")
    await trader.cancel(order)
    report = await trader.rig.venue.look_up(trader.orders[order])
    assert report.kind == "accepted"
    await trader.cancel(order)
    await trader.settles(order, "canceled")


@case("V43")
async def test_a_replacement_without_an_answer_is_found_to_be_done(trader: Trader):
    order = await trader.submit()
    trader.rig.lose_next("answer")
    by = await trader.replace(order, trader.terms(limit=Decimal(98)))
    await trader.settles(order, "replaced")
    await trader.settles(by, "accepted")


# The stream


@case("V44")
async def test_a_cut_stream_is_told_and_what_was_missed_comes_by_changes(trader: Trader):
    works, ends = await trader.submit(), await trader.submit()
    async with trader.listening():
        trader.rig.drop_stream()
        await trader.rig.fill(works, Decimal(4), PRICE)
        await trader.rig.fill(ends, Decimal(10), PRICE)
        await eventually(lambda: trader.cuts == 1)
    assert trader.filled(works) == trader.filled(ends) == 0
    async with trader.listening():
        assert await trader.catch_up() >= {works, ends}
        assert (trader.state(works), trader.filled(works)) == ("partially_filled", 4)
        assert (trader.state(ends), trader.filled(ends)) == ("filled", 10)
        await trader.rig.fill(works, Decimal(6), PRICE)
        await trader.hears(works, "filled", 10)


@case("V45")
async def test_frames_that_are_lost_without_a_word_come_by_a_look_up_and_by_changes(trader: Trader):
    async with trader.listening():
        one, other, told = await trader.submit(), await trader.submit(), await trader.submit()
        for order in (one, other, told):
            await trader.hears(order, "accepted")
        trader.rig.lose_frames(2)
        await trader.rig.fill(one, Decimal(4), PRICE)
        await trader.rig.fill(other, Decimal(10), PRICE)
        await trader.rig.fill(told, Decimal(10), PRICE)
        await trader.hears(told, "filled", 10)
        assert (trader.filled(one), trader.filled(other)) == (0, 0)
        assert await trader.look_up(one) == "partially_filled"
        assert other in await trader.catch_up()
        assert (trader.state(other), trader.filled(other)) == ("filled", 10)


@case("V46")
async def test_changes_tell_orders_that_work_however_long_nothing_has_happened_to_them(trader: Trader):
    order = await trader.submit()
    await trader.rig.fill(order, Decimal(4), PRICE)
    assert order in await trader.catch_up(datetime.now(UTC))
    assert (trader.state(order), trader.filled(order)) == ("partially_filled", 4)


@case("V47")
async def test_changes_and_look_ups_told_again_change_nothing(trader: Trader):
    orders = [await trader.submit() for _ in range(3)]
    await trader.rig.fill(orders[0], Decimal(4), PRICE)
    await trader.rig.fill(orders[1], Decimal(10), PRICE)
    await trader.cancel(orders[2])
    await trader.catch_up()
    known, facts = dict(trader.orders), len(trader.facts)
    assert [known[order].state for order in orders] == ["partially_filled", "filled", "canceled"]
    await trader.catch_up()
    for order in orders:
        await trader.look_up(order)
    assert (trader.orders, len(trader.facts)) == (known, facts)


@case("V48")
async def test_a_fill_that_is_told_twice_counts_once(trader: Trader):
    async with trader.listening():
        order = await trader.submit()
        await trader.rig.fill(order, Decimal(4), PRICE)
        await trader.rig.repeat_fill()
        await trader.rig.fill(order, Decimal(1), PRICE)
        await trader.hears(order, "partially_filled", 5)
    await trader.settles(order, "partially_filled")
    assert trader.filled(order) == 5


@case("V49")
async def test_after_a_look_up_every_fill_is_known_by_the_venues_execution_id(trader: Trader):
    order = await trader.submit()
    names = [await trader.rig.fill(order, Decimal(4), PRICE), await trader.rig.fill(order, Decimal(6), Decimal(98))]
    await trader.settles(order, "filled")
    assert [(name, one.price) for (_, name), one in trader.orders[order].executions.items()] == [
        (names[0], Decimal(99)),
        (names[1], Decimal(98)),
    ]


# The venue's limits and its clock


@case("V50")
async def test_a_rate_limit_is_transient_and_nothing_was_done(trader: Trader):
    order = trader.new(trader.terms())
    trader.rig.limit_next()
    with pytest.raises(Transient):
        await trader.submit(order)
    assert trader.state(order.id) == "new"
    assert trader.rig.submits() == []
    await trader.submit(order)
    assert trader.rig.submits() == [order.id]
    trader.rig.limit_next()
    with pytest.raises(Transient):
        await trader.cancel(order.id)
    assert (await trader.rig.venue.look_up(order)).kind == "accepted"


async def loses_nothing(trader: Trader, seconds: float) -> None:
    trader.rig.skew(seconds)
    async with trader.listening():
        told = await trader.submit()
        await trader.rig.fill(told, Decimal(4), PRICE)
        await trader.hears(told, "partially_filled", 4)
    missed = await trader.submit()
    await trader.rig.fill(missed, Decimal(10), PRICE)
    assert missed in await trader.catch_up()
    assert (trader.state(missed), trader.filled(missed)) == ("filled", 10)
    now = datetime.now(UTC)
    assert all(abs(fill.at - now) < timedelta(minutes=5) for fill in trader.fills())


@case("V51")
async def test_a_venue_whose_clock_is_ahead_loses_nothing(trader: Trader):
    await loses_nothing(trader, 90)


@case("V52")
async def test_a_venue_whose_clock_is_behind_loses_nothing(trader: Trader):
    await loses_nothing(trader, -90)


# What is taken back


@case("V56")
async def test_a_trade_that_the_venue_takes_back_counts_no_more(trader: Trader):
    async with trader.listening():
        whole, works = await trader.submit(), await trader.submit()
        for order in (whole, works):
            gone = await trader.rig.fill(order, Decimal(4), PRICE)
            if order == whole:
                await trader.rig.fill(order, Decimal(6), Decimal("98.5"))
            await trader.rig.bust(order, gone)
        await trader.hears(whole, "filled", 6)
        await trader.hears(works, "partially_filled", 0)
        await trader.catch_up()
        for order in (whole, works):
            await trader.look_up(order)
        assert (trader.filled(whole), trader.filled(works)) == (6, 0), "told again, it stays taken back"
        await trader.rig.fill(works, Decimal(10), PRICE)
        await trader.settles(works, "filled")
        assert trader.filled(works) == 10
    assert trader.anomalies() == {"TRADE_BUSTED"}
    assert [fill.price for fill in trader.fills()] == [Decimal("98.5"), PRICE]


# Afterwards


async def one_in_each_state(trader: Trader) -> dict[UUID, str]:
    """Return orders as a process leaves them that is killed, and the state that a look-up has to find."""
    arrived, lost = trader.new(trader.terms()), trader.new(trader.terms())
    trader.rig.lose_next("answer")
    await trader.submit(arrived)
    trader.rig.lose_next("request")
    await trader.submit(lost)
    found = {arrived.id: "accepted", lost.id: "new"}
    for state in ("accepted", "partially_filled", "filled", "canceled", "replaced", "pending_cancel"):
        found[await trader.submit()] = state
    accepted, partial, whole, canceled, replaced, pending = list(found)[2:]
    await trader.rig.fill(partial, Decimal(4), PRICE)
    await trader.look_up(partial)
    await trader.rig.fill(whole, Decimal(10), PRICE)  # and we were not told
    await trader.cancel(canceled)
    found[await trader.replace(replaced, trader.terms(limit=Decimal(98)))] = "accepted"
    trader.rig.hold_cancels()
    await trader.cancel(pending)
    for order in (arrived, lost):  # nothing was recorded but that they were being sent
        trader.orders[order.id] = order
        trader.told(order.id, Report("submit_sent"))
    assert trader.state(accepted) == "accepted"
    return found


@case("V53")
async def test_after_a_restart_every_order_is_found_in_the_state_that_it_has(trader: Trader):
    wanted = await one_in_each_state(trader)
    submits = trader.rig.submits()
    await trader.rig.reopen()
    for order in wanted:
        if trader.state(order) == "pending_submit":
            trader.told(order, Report("outcome_unknown"))
    for order in wanted:
        await trader.look_up(order)
    assert {order: trader.state(order) for order in wanted} == wanted
    assert trader.rig.submits() == submits
    async with trader.listening():
        order = next(order for order, state in wanted.items() if state == "accepted")
        await trader.rig.fill(order, Decimal(10), PRICE)
        await trader.hears(order, "filled", 10)


@case("V54")
async def test_positions_and_cash_after_fills_are_what_the_executions_say(trader: Trader):
    bought = await trader.submit()
    await trader.rig.fill(bought, Decimal(4), Decimal("98.37"))
    await trader.rig.fill(bought, Decimal(6), Decimal("98.99"))
    leg = trader.terms().legs[0]
    sell = trader.terms(3, legs=(Leg(leg.instrument, "sell"),), limit=Decimal(101))
    sold = await trader.submit(trader.new(sell))
    await trader.rig.fill(sold, Decimal(3), Decimal("101.5"))
    await trader.catch_up()
    assert (trader.state(bought), trader.state(sold)) == ("filled", "filled")
    await trader.agrees()
    held = {one.instrument.key: one.quantity for one in await trader.rig.venue.positions()}
    assert held == {leg.instrument.key: 7 - sum(fill.fee_quantity for fill in trader.fills())}
    spent = Decimal(4) * Decimal("98.37") + Decimal(6) * Decimal("98.99") - Decimal(3) * Decimal("101.5")
    fees = sum(fill.fee for fill in trader.fills())
    assert (await trader.rig.venue.balance()).cash == trader.start - spent - fees


@case("V55")
async def test_quantities_and_prices_are_exact(trader: Trader):
    order = await trader.submit()
    prices = [Decimal("98.1"), Decimal("98.2"), Decimal("98.3")]
    for price in prices:
        await trader.rig.fill(order, Decimal(3), price)
    await trader.settles(order, "partially_filled")
    executions = trader.orders[order].executions.values()
    assert [(one.quantity, one.price) for one in executions] == [(3, price) for price in prices]
    assert sum(one.quantity * one.price for one in executions) == Decimal("883.8")

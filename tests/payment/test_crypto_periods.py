"""What a crypto payment buys: the first period or one more, from when to when, and for whom it buys none."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from services.payment.domain.periods import period_after
from services.payment.domain.subscriptions import State
from services.payment.store.subscriptions import state_of
from shared.db import Database
from tests.payment.bitcoin_town import DAY, NEEDED, PRICE, Town, town_on


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> AsyncGenerator[Town]:
    async with town_on(open_database("payment")) as built:
        yield built


async def test_a_second_invoice_extends_the_subscription_and_another_plan_is_refused(town: Town):
    bench = town.bench
    first = await bench.invoice("BTC")
    user = first["user_id"]
    town.esplora.send({first["address"]: PRICE})
    await town.mine(NEEDED)
    with pytest.raises(Exception, match="You have a subscription already"):
        await bench.invoice("BTC", user=user, plan="team")
    second = await bench.invoice("BTC", user=user)
    before = await bench.subscription(user)
    assert before is not None
    assert second["renews"] == before["id"]
    town.esplora.send({second["address"]: PRICE})
    await town.mine(NEEDED)
    after = await bench.subscription(user)
    assert after is not None
    assert after["id"] == before["id"]
    assert after["current_period_start"] == before["current_period_start"]
    assert after["current_period_end"] - before["current_period_end"] == timedelta(days=30)
    assert [told["renewal"] for told in await bench.told("payment.payments")] == [False, True]


async def test_periods_paid_one_after_the_other_return_to_the_day_the_first_began_on(town: Town):
    bench, user = town.bench, uuid4()
    town.esplora.now = int(datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp())
    bench.clock.now = datetime(2027, 1, 31, 12, tzinfo=UTC)
    ends: list[str] = []
    for _ in range(2):
        await bench.round()
        invoice = await bench.invoice("BTC", user=user)
        town.esplora.send({invoice["address"]: PRICE})
        await town.mine(NEEDED)
        subscription = await bench.subscription(user)
        assert subscription is not None
        assert subscription["anchor_day"] == 31
        ends.append(f"{subscription['current_period_end']:%m-%d}")
    assert ends == ["02-28", "03-31"]


@pytest.mark.parametrize(("days", "kept"), [(-1, True), (3, True), (7, False), (20, False)])
async def test_a_period_paid_after_access_stopped_begins_with_the_payment(town: Town, days: int, kept: bool):
    bench, user = town.bench, uuid4()
    invoice = await bench.invoice("BTC", user=user)
    end = bench.clock.now - timedelta(days=days)
    graced = State("crypto", None, "pro", "past_due", end - 30 * DAY, end, grace_until=end + 7 * DAY)
    await bench.door.publish(lambda tx: bench.subscriptions.become(tx, user, graced))
    town.esplora.send({invoice["address"]: PRICE})
    await town.mine(NEEDED)
    row, subscription = await bench.get(invoice), await bench.subscription(user)
    assert subscription is not None
    assert row["granted_from"] == (end if kept else bench.clock.now)
    assert subscription["current_period_end"] == row["granted_until"] == period_after(row["granted_from"], "month")


async def test_when_a_period_is_taken_back_the_days_of_grace_move_with_its_end(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    user, end = invoice["user_id"], bench.clock.now + 20 * DAY
    paid = State("crypto", None, "pro", "active", end - 30 * DAY, end)
    await bench.door.publish(lambda tx: bench.subscriptions.become(tx, user, paid))
    tx = town.esplora.send({invoice["address"]: PRICE})
    await town.mine(NEEDED)
    granted = await bench.subscription(user)
    assert granted is not None
    graced = replace(state_of(granted), grace_until=granted["current_period_end"] + 7 * DAY)  # as the daily run does
    await bench.door.publish(lambda tx: bench.subscriptions.become(tx, user, graced, granted["id"]))
    town.esplora.reorganise(NEEDED)
    town.esplora.forget(tx)
    await bench.round()
    await town.pass_time(3601)
    row = await bench.subscription(user)
    assert row is not None
    assert (row["status"], row["current_period_end"], row["grace_until"]) == ("active", end, end + 7 * DAY)


async def test_who_subscribed_elsewhere_meanwhile_is_told_and_not_subscribed_twice(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    user = invoice["user_id"]
    by_card = State("stripe", "sub_1", "pro", "active")
    await bench.door.publish(lambda tx: bench.subscriptions.become(tx, user, by_card))
    with pytest.raises(Exception, match="You have a subscription already"):
        await bench.invoice("BTC", user=user)
    town.esplora.send({invoice["address"]: PRICE})
    await town.mine(NEEDED)
    row = await bench.get(invoice)
    assert (row["state"], row["problem"], row["granted_until"]) == ("paid", "ALREADY_SUBSCRIBED", None)
    assert len(await bench.rows("select * from subscriptions")) == 1
    over = State("stripe", "sub_1", "pro", "canceled")
    await bench.door.publish(lambda tx: bench.subscriptions.become(tx, user, over))
    await bench.round()
    subscription = await bench.subscription(user)
    assert subscription is not None
    assert subscription["provider"] == "crypto"
    assert len(await bench.told("payment.payments")) == 1

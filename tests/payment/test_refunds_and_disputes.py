"""What a refund and a dispute mean for access: which payment's, how long, and when it comes back."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.payment.domain.subscriptions import State
from shared.contracts.payment import (
    PaymentDisputed,
    PaymentRefunded,
    SubscriptionChanged,
)
from shared.db import Database
from tests.payment.ledger_bench import DAY, NOW, Bench
from tests.payment.money_objects import END, START, charge, dispute, invoice, of, refund


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


# Refunds


async def test_a_refund_is_told_once_when_it_has_succeeded(bench: Bench) -> None:
    await bench.user()
    assert not await bench.apply("refund", refund(status="pending"))
    (event,) = await bench.apply("refund", refund(900))
    assert isinstance(event, PaymentRefunded)
    assert (str(event.amount), event.currency, event.reference) == ("9.00", "USD", "stripe/re_1")
    assert not await bench.apply("refund", refund(900))


async def test_a_full_refund_of_the_current_period_ends_access_until_the_next_is_paid(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    (event,) = await bench.apply("charge", charge(refunded=True, amount_refunded=2900))
    assert isinstance(event, SubscriptionChanged)
    assert (event.status, event.entitlements) == ("paused", ())
    assert not await bench.allowed(user)
    assert not await bench.apply("charge", charge(refunded=True, amount_refunded=2900))
    (again,) = await bench.subscribed(user, NOW + 30 * DAY)
    assert isinstance(again, SubscriptionChanged)
    assert (again.status, again.entitlements) == ("active", ("pro",))


async def test_a_refund_that_comes_before_its_invoice_is_known_ends_access_with_the_invoice(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("charge", charge(refunded=True))
    assert await bench.allowed(user) == ("pro",)
    (changed,) = of(SubscriptionChanged, await bench.apply("invoice", invoice()))
    assert changed.entitlements == ()


async def test_a_refund_that_the_bank_does_not_take_gives_access_back(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    await bench.apply("charge", charge(refunded=True))
    assert not await bench.allowed(user)
    await bench.apply("charge", charge(refunded=False))
    assert await bench.allowed(user) == ("pro",)


@pytest.mark.parametrize(
    ("billed", "refunded"),
    [
        ({}, {"refunded": False, "amount_refunded": 2899}),  # in part
        ({"lines": {"data": [{"period": {"start": START + 9999, "end": END}}]}}, {"refunded": True}),  # a change's cost
        ({"lines": {"data": [{"period": {"start": START - 100, "end": START}}]}}, {"refunded": True}),  # last month's
        ({"parent": {"subscription_details": {"subscription": "sub_0"}}}, {"refunded": True}),  # another's
    ],
)
async def test_other_refunds_leave_access_alone(bench: Bench, billed: dict[str, Any], refunded: dict[str, Any]) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice(**billed))
    assert not await bench.apply("charge", charge(**refunded))
    assert await bench.allowed(user) == ("pro",)


async def test_what_paid_before_a_change_to_the_year_holds_nothing_back_and_what_paid_for_the_year_does(
    bench: Bench,
) -> None:
    user = await bench.user()
    began = NOW - 10 * DAY
    month = {"start": int(began.timestamp()), "end": int((began + 30 * DAY).timestamp())}
    year = {"start": START, "end": int((NOW + 365 * DAY).timestamp())}
    unused = {"start": START, "end": month["end"]}
    await bench.become(user, State("stripe", "sub_1", "pro", "active", began, began + 30 * DAY))
    await bench.apply("invoice", invoice(lines={"data": [{"period": month}]}))
    await bench.become(user, State("stripe", "sub_1", "pro", "active", NOW, NOW + 365 * DAY))
    lines = {"data": [{"period": unused}, {"period": year}]}
    changed = invoice("paid", "pi_2", id="in_2", billing_reason="subscription_update", lines=lines)
    await bench.apply("invoice", changed)
    await bench.apply("charge", charge(refunded=True))
    assert await bench.allowed(user) == ("pro",)
    await bench.apply("charge", charge(id="ch_2", payment_intent="pi_2", refunded=True, balance_transaction=None))
    assert await bench.allowed(user) == ()


async def test_an_invoice_whose_period_nobody_noted_counts_by_its_reason(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    await bench.apply("charge", charge(refunded=True))
    for reason, allowed in (("subscription_cycle", ()), ("subscription_update", ("pro",))):
        async with bench.database.transaction() as tx:
            await tx.execute(text("update invoice_payments set period_start = null, reason = :reason"), reason=reason)
        assert await bench.allowed(user) == allowed


async def test_a_refund_has_its_charge_fetched_until_the_charge_shows_it(bench: Bench) -> None:
    await bench.user()
    refunded = charge(refunded=True, amount_refunded=2900)
    await bench.apply("refund", refund(charge=refunded))
    assert bench.wanted == [("charge", "ch_1")]
    async with bench.database.transaction() as tx:
        await bench.mirror.put(tx, "charge", "ch_1", charge(amount_refunded=0), NOW)
    await bench.apply("refund", refund(charge=refunded))
    assert bench.wanted == [("charge", "ch_1")] * 2
    async with bench.database.transaction() as tx:
        await bench.mirror.put(tx, "charge", "ch_1", refunded, NOW)
    await bench.apply("refund", refund(charge=refunded))
    assert bench.wanted == [("charge", "ch_1")] * 2


async def test_a_refund_without_a_charge_is_booked_as_nobodys_and_waits_for_nothing(bench: Bench) -> None:
    assert not await bench.apply("refund", refund(charge=None, customer=None))
    assert [row["user_id"] for row in await bench.rows("select user_id from ledger_entries")] == [None]
    assert bench.wanted == []


# Disputes


async def test_a_dispute_holds_access_back_until_it_is_won(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    opened, changed = await bench.apply("dispute", dispute())
    assert isinstance(opened, PaymentDisputed)
    assert isinstance(changed, SubscriptionChanged)
    assert (opened.status, str(opened.amount), changed.status) == ("opened", "29.00", "paused")
    assert not await bench.apply("dispute", dispute("under_review"))
    won, changed = await bench.apply("dispute", dispute("won"))
    assert isinstance(won, PaymentDisputed)
    assert won.status == "won"
    assert await bench.allowed(user) == ("pro",)


async def test_a_lost_dispute_ends_access_of_its_subscription_and_not_of_the_next(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    events = await bench.apply("dispute", dispute("lost"))
    assert [event.status for event in of(PaymentDisputed, events)] == ["opened", "lost"]
    await bench.subscribed(user, NOW + 30 * DAY)
    assert not await bench.allowed(user), "a renewal of the same subscription does not lift it"
    await bench.become(user, State("stripe", "sub_1", "pro", "canceled"))
    await bench.subscribed(user, NOW + 60 * DAY, "sub_2")
    assert await bench.allowed(user) == ("pro",)


@pytest.mark.parametrize("status", ["warning_needs_response", "warning_closed", "prevented"])
async def test_an_inquiry_is_no_dispute(bench: Bench, status: str) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await bench.apply("invoice", invoice())
    assert not await bench.apply("dispute", dispute(status, balance_transactions=[]))
    assert await bench.allowed(user) == ("pro",)

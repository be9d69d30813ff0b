"""What Stripe's objects say about money: told once each, booked once each, and what it means for access."""

import random
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.payment.domain.money import UnknownCurrency
from services.payment.domain.subscriptions import State
from shared.contracts.base import Event
from shared.contracts.payment import (
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    SubscriptionChanged,
)
from shared.db import Database
from shared.errors import NotYet
from tests.payment.ledger_bench import DAY, NOW, PRICE, Bench, moved, official

START = int(NOW.timestamp())
END = int((NOW + 30 * DAY).timestamp())


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


def intent(**changes: Any) -> dict[str, Any]:
    return official("payment_intent", id="pi_1", customer="cus_1", last_payment_error=None) | changes


def invoice(status: str = "paid", paying: Any = "pi_1", **changes: Any) -> dict[str, Any]:
    """An invoice for a month of the plan, with its payment."""
    line = {"period": {"start": START, "end": END}, "pricing": {"price_details": {"price": PRICE}}}
    payment = official("invoice_payment", payment={"type": "payment_intent", "payment_intent": paying})
    amounts = {"amount_due": 2900, "amount_paid": 2900 if status == "paid" else 0, "currency": "usd"}
    about: dict[str, Any] = {
        "id": "in_1",
        "customer": "cus_1",
        "status": status,
        "amount_remaining": 2900 - amounts["amount_paid"],  # pyright: ignore[reportOperatorIssue]
        "billing_reason": "subscription_cycle",
        "hosted_invoice_url": "https://invoice.stripe.com/i/1",
        "lines": {"data": [line]},
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}},
        "payments": {"object": "list", "data": [payment] if paying else []},
    }
    return official("invoice", **amounts) | about | changes


def charge(status: str = "succeeded", **changes: Any) -> dict[str, Any]:
    booked = moved(2900, 114, id="txn_1", source="ch_1") if status == "succeeded" else None
    about = {"id": "ch_1", "customer": "cus_1", "amount": 2900, "payment_intent": "pi_1", "created": START}
    return official("charge", status=status, balance_transaction=booked) | about | changes


def refund(amount: int = 2900, **changes: Any) -> dict[str, Any]:
    booked = moved(-amount, 0, "refund", id="txn_2", source="re_1")
    about = {"id": "re_1", "amount": amount, "charge": charge(), "payment_intent": "pi_1"}
    return official("refund", balance_transaction=booked) | about | changes


def dispute(status: str = "needs_response", **changes: Any) -> dict[str, Any]:
    found = [moved(-2900, 1500, "dispute", id="txn_3", source="dp_1")]
    if status == "won":
        found.append(moved(2900, 0, "dispute_reversal", id="txn_4", source="dp_1"))
    about = {"id": "dp_1", "amount": 2900, "charge": charge(), "payment_intent": "pi_1"}
    return official("dispute", status=status, balance_transactions=found) | about | changes


def of(kind: type[Event], events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# Receipts and failures


async def test_a_paid_invoice_is_a_receipt_once(bench: Bench) -> None:
    user = await bench.user()
    (event,) = await bench.apply("invoice", invoice())
    assert isinstance(event, PaymentReceived)
    assert (event.user_id, str(event.amount), event.currency, event.plan) == (user, "29.00", "USD", "pro")
    assert (event.reference, event.renewal) == ("stripe/in_1", True)
    assert event.receipt_url == "https://invoice.stripe.com/i/1"
    assert not await bench.apply("invoice", invoice())


@pytest.mark.parametrize("change", [{"status": "open"}, {"amount_paid": 0}, {"status": "void"}, {"status": "draft"}])
async def test_an_invoice_that_nothing_came_in_for_is_no_receipt(bench: Bench, change: dict[str, Any]) -> None:
    await bench.user()
    assert not await bench.apply("invoice", invoice() | change)


async def test_the_first_payment_is_no_renewal(bench: Bench) -> None:
    await bench.user()
    (event,) = await bench.apply("invoice", invoice(billing_reason="subscription_create"))
    assert isinstance(event, PaymentReceived)
    assert not event.renewal


async def test_what_comes_before_its_customer_waits_for_it(bench: Bench) -> None:
    for kind, obj in (("invoice", invoice()), ("charge", charge("failed")), ("refund", refund())):
        with pytest.raises(NotYet):
            await bench.apply(kind, obj)
    await bench.user()
    (event,) = await bench.apply("invoice", invoice())
    assert isinstance(event, PaymentReceived)


async def test_a_payment_of_a_customer_who_was_deleted_since_is_still_told(bench: Bench) -> None:
    user = await bench.user(None)
    await bench.hear_of("cus_1", user)
    (event,) = await bench.apply("invoice", invoice())
    assert event.user_id == user  # pyright: ignore[reportAttributeAccessIssue]


async def test_objects_of_strangers_and_gone_ones_tell_nothing(bench: Bench) -> None:
    await bench.user("cus_other")
    await bench.hear_of("cus_1")
    for kind, obj in (
        ("invoice", invoice()),
        ("charge", charge("failed")),
        ("refund", refund()),
        ("dispute", dispute()),
    ):
        assert not await bench.apply(kind, obj)
    for kind in ("invoice", "charge", "refund", "dispute", "payment_method", "payout", "balance_transaction"):
        assert not await bench.apply(kind, None, "x_1")
    assert len(await bench.rows("select * from ledger_entries where user_id is null")) == 2


async def test_a_failed_charge_is_told_once_though_its_invoice_was_paid_since(bench: Bench) -> None:
    user = await bench.user()
    await bench.apply("invoice", invoice())
    failed = charge("failed", failure_message="Your card has insufficient funds.")
    (event,) = await bench.apply("charge", failed)
    assert isinstance(event, PaymentFailed)
    assert (event.user_id, str(event.amount), event.reason) == (user, "29.00", "Your card has insufficient funds.")
    assert not await bench.apply("charge", failed)
    assert not await bench.balances()


async def test_a_failure_that_the_open_invoice_tells_first_says_when_it_is_tried_again(bench: Bench) -> None:
    await bench.user()
    error = {"type": "card_error", "code": "card_declined", "message": "Declined.", "charge": "ch_1"}
    waiting = invoice("open", intent(last_payment_error=error), next_payment_attempt=END)
    (event,) = await bench.apply("invoice", waiting)
    assert isinstance(event, PaymentFailed)
    assert (event.reason, event.next_attempt_at, event.pay_url) == (
        "Declined.",
        NOW + 30 * DAY,
        "https://invoice.stripe.com/i/1",
    )
    assert not await bench.apply("charge", charge("failed"))


async def test_a_renewal_that_waits_for_the_customer_is_told_and_a_checkout_is_not(bench: Bench) -> None:
    await bench.user()
    asking = intent(status="requires_action")
    assert not await bench.apply("invoice", invoice("open", asking, billing_reason="subscription_create"))
    (event,) = await bench.apply("invoice", invoice("open", asking))
    assert isinstance(event, PaymentFailed)
    assert event.action_required
    assert not await bench.apply("invoice", invoice("open", asking))


async def test_an_unknown_currency_is_an_error_and_no_entry(bench: Bench) -> None:
    await bench.user()
    with pytest.raises(UnknownCurrency):
        await bench.apply("charge", charge(balance_transaction=moved(5, currency="zzz")))
    assert not await bench.balances()


# The ledger


async def test_a_life_of_money_is_booked_once_each(bench: Bench) -> None:
    user = await bench.user()
    payout = official("payout", balance_transaction=moved(-1000, 0, "payout", id="txn_5"))
    for _ in range(2):
        await bench.apply("charge", charge())
        await bench.apply("refund", refund(900))
        await bench.apply("dispute", dispute("won"))
        await bench.apply("payout", payout)
        await bench.apply("balance_transaction", moved(-50, 0, "fee", id="txn_6", source=None))
    assert await bench.balances() == {
        ("assets:bank", "USD"): 1000,
        ("assets:stripe", "USD"): 2786 - 900 - 4400 + 2900 - 1000 - 50,
        ("expenses:dispute_fees", "USD"): 1500,
        ("expenses:disputes", "USD"): 0,  # what the dispute took has come back
        ("expenses:fees", "USD"): 164,
        ("income:refunds", "USD"): 900,
        ("income:subscriptions", "USD"): -2900,
    }
    rows = await bench.rows("select key, about, user_id from ledger_entries order by key")
    assert [(row["key"], row["about"]) for row in rows[:4]] == [
        ("stripe/txn_1", "stripe/ch_1"),
        ("stripe/txn_2", "stripe/re_1"),
        ("stripe/txn_3", "stripe/dp_1"),
        ("stripe/txn_4", "stripe/dp_1"),
    ]
    assert {row["user_id"] for row in rows[:4]} == {user}


async def test_a_refund_whose_charge_is_told_by_its_id_waits_for_the_charge(bench: Bench) -> None:
    user = await bench.user()
    bare = refund(charge="ch_1", customer=None)
    with pytest.raises(NotYet):
        await bench.apply("refund", bare)
    await bench.apply("charge", charge())
    (event,) = of(PaymentRefunded, await bench.apply("refund", bare))
    assert event.user_id == user


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


# Cards


async def test_the_newest_card_is_noted_and_a_card_taken_away_is_forgotten(bench: Bench) -> None:
    user = await bench.user()

    def card(name: str, year: int, created: int) -> dict[str, Any]:
        about = {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": year}
        return official("payment_method", id=name, customer="cus_1", card=about, created=created)

    await bench.apply("payment_method", card("pm_2", 2027, 200))
    await bench.apply("payment_method", card("pm_1", 2026, 100))
    ((found),) = await bench.rows("select * from cards")
    assert (found["user_id"], found["provider_id"], str(found["expires"])) == (user, "pm_2", "2028-01-01")
    await bench.apply("payment_method", card("pm_2", 2030, 200))  # the bank sent a new one
    assert [str(row["expires"]) for row in await bench.rows("select * from cards")] == ["2031-01-01"]
    await bench.apply("charge", charge(created=300, payment_method="pm_3"))
    assert [row["provider_id"] for row in await bench.rows("select * from cards")] == ["pm_3"]
    await bench.apply("payment_method", card("pm_3", 2030, 200) | {"customer": None})
    assert not await bench.rows("select * from cards")


# Any order


def _life(customer: str, run: str) -> list[tuple[str, dict[str, Any]]]:
    """All that Stripe says in the end of a subscription's life with every kind of trouble."""

    def named(obj: dict[str, Any]) -> dict[str, Any]:
        """Make the object one of this run: ids of its own."""
        found: dict[str, Any] = {}
        for name, value in obj.items():
            if isinstance(value, dict):
                value = named(value)  # noqa: PLW2901 - the same, renamed  # pyright: ignore[reportUnknownArgumentType]
            elif isinstance(value, list):
                value = [named(one) if isinstance(one, dict) else one for one in value]  # noqa: PLW2901 - the same, renamed  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            elif isinstance(value, str) and value.partition("_")[0] in _OURS:
                value = customer if value == "cus_1" else f"{value}{run}"  # noqa: PLW2901 - the same, renamed
            found[name] = value
        return found

    failed = charge("failed", id="ch_0")
    last = invoice(id="in_2", paying="pi_2", billing_reason="subscription_cycle")
    disputed = charge(id="ch_2", payment_intent="pi_2", balance_transaction=moved(2900, 114, id="txn_7", source="ch_2"))
    objects = [
        ("invoice", invoice(billing_reason="subscription_create")),
        ("charge", failed),
        ("charge", charge(refunded=True)),
        ("refund", refund()),
        ("invoice", last),
        ("charge", disputed),
        ("dispute", dispute("won", charge=disputed, payment_intent="pi_2")),
    ]
    return [(kind, named(obj)) for kind, obj in objects]


_OURS = {"cus", "pi", "in", "ch", "re", "dp", "txn", "sub"}


@given(chance=st.randoms(use_true_random=False))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_order_and_repetition_ends_in_the_same_ledger_notices_and_access(
    bench: Bench, chance: random.Random
) -> None:
    outcomes: list[Any] = []
    for shuffled in (False, True):
        run = uuid4().hex
        customer = f"cus_{run}"
        user = await bench.user(customer)
        await bench.subscribed(user, subscription=f"sub_1{run}")
        life = _life(customer, run)
        if shuffled:
            life += chance.choices(life, k=chance.randint(0, 7))
            chance.shuffle(life)
        told: list[Event] = []
        for kind, obj in life:
            told += await bench.apply(kind, obj)
        outcomes.append((await _booked(bench, user), _notices(told, run), await bench.allowed(user)))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 6


async def _booked(bench: Bench, user: UUID) -> list[tuple[Any, ...]]:
    rows = await bench.rows(f"""
        select split_part(left(key, 12), '/', 2) as key, account, amount from ledger_entries
        join ledger_postings on entry = key where user_id = '{user}' order by key, line""")
    return [tuple(row) for row in rows]


def _notices(told: Sequence[Event], run: str) -> list[str]:
    facts = [event for event in told if not isinstance(event, SubscriptionChanged)]
    return sorted(f"{event.type} {event.model_dump()['reference'].removesuffix(run)}" for event in facts)

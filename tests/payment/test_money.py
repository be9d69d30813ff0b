"""What Stripe's objects say about money: told once each, booked once each, in whatever order."""

import random
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.payment.domain.money import UnknownCurrency
from shared.contracts.base import Event
from shared.contracts.payment import (
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    SubscriptionChanged,
)
from shared.db import Database
from shared.errors import NotYet
from tests.payment.ledger_bench import DAY, NOW, Bench, moved, official
from tests.payment.money_objects import END, charge, dispute, intent, invoice, of, refund


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


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

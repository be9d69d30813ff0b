"""Two subscriptions of one user: which of them stays, and that none slips through."""

import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest

from services.payment.adapters.evm import UNRECONCILED
from services.payment.domain.ledger import of_hand
from services.payment.domain.money import price
from services.payment.domain.subscriptions import State
from services.payment.main import build
from services.payment.ports import Json
from services.payment.service.doubles import UNRESOLVED
from services.payment.service.ledger import Ledger
from services.payment.service.settlement import UNMATCHED
from services.payment.store.ledger import LedgerStore
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.service import Environment
from tests.payment.buying import OURS, Shop
from tests.payment.inprocess import InProcess, asked, books, follow, have, signed_up, subscriber


async def test_a_plan_granted_for_nothing_gives_way_to_the_card_that_has_just_paid(shop: Shop) -> None:
    user_id, customer, subscription = await _granted_while_paying(shop)
    await shop.suspect(user_id, customer, subscription)
    await shop.idle()
    assert shop.fake.get("subscription", subscription)["status"] == "active"
    assert shop.fake.all("refund") == []
    (ours,) = await shop.rows("select * from subscriptions")
    assert (ours["provider"], ours["status"], ours["grace_until"]) == ("manual", "canceled", None)
    assert ("subscription", subscription) in shop.marked, "it is taken as soon as the other is over"
    (told,) = [one for one in await shop.audited() if one["action"] == "end.manual_plan"]
    assert (told["actor"], told["subject"]) == ("system", str(user_id))
    await shop.follow(user_id, subscription)
    await shop.suspect(user_id, customer, subscription)
    await shop.idle()
    assert shop.fake.get("subscription", subscription)["status"] == "active"


async def test_a_plan_granted_for_money_stays_and_the_card_is_paid_back(shop: Shop) -> None:
    user_id, customer, subscription = await _granted_while_paying(shop, paid=True)
    await shop.suspect(user_id, customer, subscription)
    await shop.idle()
    assert shop.fake.get("subscription", subscription)["status"] == "canceled"
    assert len(shop.fake.all("refund")) == 1
    assert [row["status"] for row in await shop.rows("select status from subscriptions")] == ["active"]


async def test_a_granted_plan_stays_when_what_stripe_had_is_over(shop: Shop) -> None:
    user_id, customer, subscription = await _granted_while_paying(shop)
    await shop.api.write(f"subscriptions/{subscription}", {}, key="by-hand", method="delete")
    await shop.suspect(user_id, customer, subscription)
    await shop.idle()
    assert [row["status"] for row in await shop.rows("select status from subscriptions")] == ["active"]


async def test_a_third_that_appears_while_the_second_is_looked_at_is_ended_too_and_nothing_twice(shop: Shop) -> None:
    user_id, first = await shop.subscriber()
    customer = await _customer(shop, user_id)
    second = await shop.bought_by_hand(customer, "pro")
    look = shop.doubles._check  # pyright: ignore[reportPrivateUsage] - what comes between the look and its end
    third: list[str] = []

    async def slow(row: Row) -> Json:
        found = await look(row)
        if not third:
            third.append(await shop.bought_by_hand(customer, "max"))
            await shop.suspect(user_id, customer, third[0])
        return found

    shop.calls.before("doubles.check", slow)
    await shop.suspect(user_id, customer, second)
    await shop.idle()
    status = {one["id"]: one["status"] for one in shop.fake.all("subscription")}
    assert status == {first: "active", second: "canceled", third[0]: "canceled"}
    assert len(shop.fake.all("refund")) == len(await shop.ordered("refund.create")) == 2
    assert len(await shop.ordered("subscription.cancel")) == 2
    told = [one["details"]["subscription"] for one in await shop.audited() if one["action"].startswith("cancel.")]
    assert told == [second, third[0]]


async def test_a_debit_that_arrives_after_its_doubled_subscription_was_ended_is_paid_back_once(
    running: InProcess,
) -> None:
    user_id, session = await _doubled_by_debit(running)
    await follow(running)
    second = running.fake.get("checkout.session", session)["subscription"]
    assert running.fake.get("subscription", second)["status"] == "canceled"
    assert running.fake.all("refund") == []
    running.fake.advance(days=4)
    running.fake.settle(session, good=True)
    await follow(running)
    await _assert_paid_back_once(running, user_id)


async def test_a_debit_that_arrives_while_its_subscription_is_being_ended_is_paid_back_once(running: InProcess) -> None:
    user_id, session = await _doubled_by_debit(running)
    (performs,) = (cast("Any", one._work.perform) for one in running.workers if one._work.kind == "stripe")
    (refreshing,) = (one for one in running.workers if one._work.kind == "refresh")
    calls = performs.__self__
    look = calls._hooks.before["doubles.check"]
    arrived = False

    async def slow(row: Row) -> Json:
        nonlocal arrived
        found = await look(row)
        if not arrived:
            arrived = True
            running.fake.settle(session, good=True)
            await running.deliver(running.fake.events)
            running.fake.delivered(*(event["id"] for event in running.fake.events))
            for _ in range(5):
                await running.carry()
                await refreshing.turn()
                await refreshing.idle()
            assert not await running.rows("select 1 from refreshes where status = 'pending'")
            (invoice,) = running.fake.all("invoice", amount_due=5900)
            (known,) = await running.rows("select body from stripe_objects where id = :id", id=invoice["id"])
            assert known["body"]["status"] == "paid", "it has been applied before the subscription is ended"
        return found

    calls.before("doubles.check", slow)
    await follow(running)
    assert arrived
    await _assert_paid_back_once(running, user_id)


async def test_a_debit_that_fails_after_its_doubled_subscription_was_ended_costs_nobody_anything(
    running: InProcess,
) -> None:
    user_id, session = await _doubled_by_debit(running)
    await follow(running)
    running.fake.settle(session, good=False)
    await follow(running)
    assert running.fake.all("refund") == []
    assert (await books(running))["income:subscriptions"] == -2900
    assert (await have(running, user_id))["entitlements"] == ["pro"]


async def test_a_debit_that_arrives_after_its_user_ended_the_subscription_at_once_is_kept_as_a_cards_payment_is(
    running: InProcess,
) -> None:
    user_id = await signed_up(running)
    session = (await asked(running, user_id, "checkout", {"plan": "max"}, 201))["id"]
    assert running.fake.complete(session, running.fake.card("delays"))
    await follow(running)
    assert (await have(running, user_id))["entitlements"] == ["max", "pro"]
    await asked(running, user_id, "cancel?now=true", None, 200)
    running.fake.advance(days=4)
    running.fake.settle(session, good=True)
    for _ in range(2):
        await running.deliver(running.fake.events)
        await follow(running)
    assert running.fake.all("refund") == []
    found = await books(running)
    assert (found["income:subscriptions"], found.get("income:refunds")) == (-5900, None)
    receipts = [body for kind, body in running.told if kind == "payment.payment.received.v1"]
    assert [(one["user_id"], one["amount"]) for one in receipts] == [(str(user_id), "59.00")]
    shown = await have(running, user_id)
    assert (shown["status"], shown["entitlements"]) == ("canceled", [])
    await asked(running, user_id, "checkout", {"plan": "pro"}, 201)  # it stands in nobody's way


def test_what_needs_a_person_is_counted_from_zero_on(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {"name": "eth", "kind": "evm", "chain_id": 1, "assets": [{"symbol": "ETH", "decimals": 18}]}
    address = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_KEY", "sk_test_1")
    monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_CHAINS", json.dumps([chain | {"shared_address": address}]))
    monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_URLS", json.dumps({"eth": "http://127.0.0.1:9"}))
    counters: dict[Any, dict[str, str]] = {UNRESOLVED: {"kind": "refund.create"}}
    counters |= {counter: {"chain": "eth"} for counter in (UNMATCHED, UNRECONCILED)}
    for counter in counters:
        counter.clear()
    build(Environment())
    for counter, labels in counters.items():
        (family,) = counter.collect()
        assert (labels, 0.0) in [(one.labels, one.value) for one in family.samples if one.name.endswith("_total")]


async def _doubled_by_debit(running: InProcess) -> tuple[UUID, str]:
    """Return a subscriber who pays a session of the dashboard's too, by a debit that takes days; and that session."""
    user_id = await subscriber(running)
    (customer,) = running.fake.all("customer")
    running.fake.advance(seconds=60)
    wish = {"mode": "subscription", "customer": customer["id"], "success_url": OURS}
    wish["line_items"] = [{"price": "price_max", "quantity": 1}]
    session = running.fake.api.call("POST", "/v1/checkout/sessions", wish)["id"]
    assert running.fake.complete(session, running.fake.card("delays"))
    return user_id, session


async def _assert_paid_back_once(running: InProcess, user_id: UUID) -> None:
    (refund,) = running.fake.all("refund")
    assert (refund["amount"], refund["reason"]) == (5900, "duplicate")
    await running.deliver(running.fake.events)
    await follow(running)
    assert len(running.fake.all("refund")) == 1
    found = await books(running)
    assert (found["income:subscriptions"], found["income:refunds"]) == (-2900 - 5900, 5900)
    assert (await have(running, user_id))["entitlements"] == ["pro"]
    told = [body for _, body in running.told if body.get("action") == "refund.double_subscription"]
    assert [one["details"]["refunded"] for one in told] == [[refund["payment_intent"]]]


async def _granted_while_paying(shop: Shop, *, paid: bool = False) -> tuple[UUID, str, str]:
    """Return a user whose payment by card nobody had heard of when a plan was granted; customer, subscription."""
    user_id = await shop.buyer()
    session = await shop.begin(user_id)
    assert shop.fake.complete(session.id)
    now = shop.clock()
    await shop.have(user_id, State("manual", None, "max", "active", now, now + timedelta(days=3)))
    if paid:
        await shop.door.publish(lambda tx: _book(shop, tx, user_id))
    return user_id, await _customer(shop, user_id), shop.fake.get("checkout.session", session.id)["subscription"]


async def _book(shop: Shop, tx: Tx, user_id: UUID) -> Sequence[Event]:
    entry = of_hand("manual/wire-1", price(Decimal(29), "USD"), at=shop.clock(), about="manual/wire-1", user_id=user_id)
    assert await Ledger(LedgerStore(), shop.clock).add(tx, entry)
    return ()


async def _customer(shop: Shop, user_id: UUID) -> str:
    customer = await shop.customers.known(user_id)
    assert customer is not None
    return customer

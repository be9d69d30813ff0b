"""The stand-in for Stripe behaves as Stripe says that it does, seen through Stripe's own client."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import stripe
from stripe._object_classes import get_object_class

from tests.conftest import recorded
from tests.fakes.stripe import FakeStripe

DAY = 86_400


@pytest.fixture
async def fake() -> AsyncGenerator[FakeStripe]:
    with FakeStripe() as running:
        yield running
        await running.close()


async def buy(fake: FakeStripe, price: dict[str, Any], *, card: Any = None, **data: Any) -> dict[str, Any]:
    """Make a customer who subscribes at the checkout; return the subscription as the account holds it."""
    client = fake.client()
    customer = await client.v1.customers.create_async({"email": "a@example.com"})
    wanted: Any = {
        "mode": "subscription",
        "customer": customer.id,
        "line_items": [{"price": price["id"], "quantity": 1}],
        "success_url": "https://example.com/",
        "subscription_data": {"metadata": {"user_id": "u1"}, **data},
    }
    session = await client.v1.checkout.sessions.create_async(wanted)
    assert fake.complete(session.id, card)
    return fake.all("subscription", customer=customer.id)[0]


def told(fake: FakeStripe, since: int = 0) -> list[str]:
    return [event["type"] for event in fake.events if event["created"] >= since]


async def life(fake: FakeStripe) -> None:
    """Make one object of each kind."""
    price = fake.price(2900)
    fake.feature(price["product"], "pro")
    client = fake.client()
    await client.v1.coupons.create_async({"percent_off": 50, "duration": "once"})
    sub = await buy(fake, price, trial_period_days=7)
    fake.advance(days=8)
    charge = fake.charge_of(fake.get("subscription", sub["id"])["latest_invoice"])
    fake.refund(charge["id"], 500)
    fake.dispute(charge["id"])
    fake.advance(days=31)


async def test_every_field_is_one_that_stripes_own_client_knows(fake: FakeStripe) -> None:
    await life(fake)
    seen: set[str] = set()
    for event in fake.events:
        thing = event["data"]["object"]
        for one in [thing, *thing.get("items", {}).get("data", []), *thing.get("lines", {}).get("data", [])]:
            known = get_object_class("V1", one["object"])
            strange = set(one) - set(known.__annotations__) - {"of", "line"}
            assert not strange, (one["object"], strange)
            seen.add(one["object"])
    assert {"subscription", "invoice", "charge", "refund", "dispute", "payment_intent", "checkout.session"} <= seen


async def test_every_field_is_in_the_official_fixtures(fake: FakeStripe) -> None:
    resources = json.loads(recorded("data", "stripe", "current", "fixtures3.json").read_text())["resources"]
    newer = {"amount_overpaid", "failure_balance_transaction", "failure_reason", "status_details"}
    await life(fake)
    for kind in fake.api.books.kinds:
        for thing in fake.all(kind):
            strange = set(thing) - set(resources.get(kind, thing)) - newer
            assert not strange, (kind, strange)


async def test_a_period_ends_where_the_items_say_and_an_invoice_names_its_subscription_in_its_parent(
    fake: FakeStripe,
) -> None:
    sub = await buy(fake, fake.price(2900))
    client = fake.client()
    found = await client.v1.subscriptions.retrieve_async(sub["id"], {"expand": ["latest_invoice.payments"]})
    assert "current_period_end" not in found
    assert found["items"].data[0].current_period_end == 1_790_000_000 + 31 * DAY - DAY  # 21 Sep to 21 Oct
    invoice: Any = found.latest_invoice
    assert {"paid", "charge", "payment_intent", "subscription"}.isdisjoint(invoice.to_dict())
    assert invoice.parent.subscription_details.subscription == sub["id"]
    assert invoice.payments.data[0].payment.payment_intent == fake.all("payment_intent")[0]["id"]


async def test_a_subscription_is_tried_renewed_failed_tried_again_and_ended(fake: FakeStripe) -> None:
    card = fake.card()
    sub = await buy(fake, fake.price(2900), card=card, trial_period_days=7)
    assert sub["status"] == "trialing"
    fake.advance(days=5)
    assert told(fake)[-1] == "customer.subscription.trial_will_end"
    fake.advance(days=3)
    assert sub["status"] == "active"
    assert [invoice["amount_paid"] for invoice in fake.all("invoice")] == [0, 2900]
    fake.behave(card["id"], "declines")
    begun = fake.now
    fake.advance(days=31)
    assert sub["status"] == "past_due"
    kinds = told(fake, begun)
    assert kinds.index("invoice.finalized") < kinds.index("charge.failed") < kinds.index("invoice.payment_failed")
    invoice = fake.all("invoice")[-1]
    assert invoice["attempt_count"] == 1
    assert invoice["next_payment_attempt"] is not None
    fake.advance(days=20)
    assert sub["status"] == "canceled"
    assert invoice["attempt_count"] == 4
    assert told(fake)[-1] == "customer.subscription.deleted"
    fake.advance(days=90)
    assert told(fake)[-1] == "customer.subscription.deleted"


async def test_a_failed_renewal_is_mended_by_a_better_card(fake: FakeStripe) -> None:
    card = fake.card()
    sub = await buy(fake, fake.price(2900), card=card)
    fake.behave(card["id"], "declines")
    fake.advance(days=31)
    assert sub["status"] == "past_due"
    fake.behave(card["id"], "pays")
    fake.advance(days=3)
    assert sub["status"] == "active"
    assert told(fake)[-2:] == ["invoice.payment_succeeded", "customer.subscription.updated"]


async def test_a_bank_that_asks_is_answered_by_the_customer(fake: FakeStripe) -> None:
    card = fake.card()
    sub = await buy(fake, fake.price(2900), card=card)
    fake.behave(card["id"], "asks")
    fake.advance(days=31)
    assert sub["status"] == "past_due"
    assert "invoice.payment_action_required" in told(fake)
    fake.authenticate(sub["latest_invoice"])
    assert sub["status"] == "active"


async def test_a_checkout_is_declined_expires_or_waits_for_a_debit(fake: FakeStripe) -> None:
    price = fake.price(2900)
    client = fake.client()
    wanted: Any = {
        "mode": "subscription",
        "line_items": [{"price": price["id"]}],
        "success_url": "https://example.com/",
        "customer_email": "b@example.com",
    }
    declined = await client.v1.checkout.sessions.create_async(wanted)
    assert not fake.complete(declined.id, fake.card("declines"))
    delayed = await client.v1.checkout.sessions.create_async(wanted)
    assert fake.complete(delayed.id, fake.card("delays"))
    session = fake.get("checkout.session", delayed.id)
    assert (session["status"], session["payment_status"]) == ("complete", "unpaid")
    fake.settle(delayed.id, good=True)
    assert session["payment_status"] == "paid"
    assert fake.get("subscription", session["subscription"])["status"] == "active"
    fake.advance(days=2)
    assert (await client.v1.checkout.sessions.retrieve_async(declined.id)).status == "expired"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.checkout.sessions.expire_async(declined.id)


@pytest.mark.parametrize("behaviour", ["create_prorations", "always_invoice", "none"])
async def test_a_change_of_plan_costs_what_its_preview_said(fake: FakeStripe, behaviour: Any) -> None:
    cheap, dear = fake.price(1000), fake.price(4000)
    sub = await buy(fake, cheap)
    client = fake.client()
    fake.advance(days=15)
    change: Any = {
        "items": [{"id": sub["items"]["data"][0]["id"], "price": dear["id"]}],
        "proration_behavior": behaviour,
        "proration_date": fake.now,
    }
    preview = await client.v1.invoices.create_preview_async({"subscription": sub["id"], "subscription_details": change})
    expected = {"create_prorations": 4000 + 1500, "always_invoice": 1500, "none": 4000}
    assert preview.total == expected[behaviour]
    before = len(fake.all("invoice"))
    await client.v1.subscriptions.update_async(sub["id"], change)
    if behaviour != "always_invoice":
        assert len(fake.all("invoice")) == before
        fake.advance(days=16)
    assert fake.all("invoice")[-1]["amount_paid"] == preview.total
    assert fake.all("subscription")[0]["items"]["data"][0]["price"]["id"] == dear["id"]


async def test_the_balance_is_the_sum_of_what_moved(fake: FakeStripe) -> None:
    sub = await buy(fake, fake.price(2900))
    charge = fake.charge_of(sub["latest_invoice"])
    client = fake.client()
    refund = await client.v1.refunds.create_async({"charge": charge["id"], "amount": 900})
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.refunds.create_async({"charge": charge["id"], "amount": 2001})
    dispute = fake.dispute(charge["id"])
    fake.decide(dispute["id"], won=True)
    moved = await client.v1.balance_transactions.list_async({"limit": 100})
    assert [(one.type, one.amount, one.fee) for one in moved.data][::-1] == [
        ("charge", 2900, 114),
        ("refund", -900, 0),
        ("adjustment", -2000, 1500),
        ("adjustment", 2000, 0),
    ]
    assert (await client.v1.balance.retrieve_async()).available[0].amount == sum(one.net for one in moved.data)
    assert refund.balance_transaction == moved.data[2].id
    fake.fail_refund(refund.id)
    assert told(fake)[-2:] == ["refund.failed", "charge.refund.updated"]


async def test_events_are_listed_by_their_delivery_and_for_thirty_days(fake: FakeStripe) -> None:
    await buy(fake, fake.price(2900))
    client = fake.client()
    lost = fake.events[3]
    fake.delivered(*(event["id"] for event in fake.events if event is not lost))
    found = await client.v1.events.list_async({"delivery_success": False})
    assert [event.id for event in found.data] == [lost["id"]]
    assert len((await client.v1.events.list_async({"types": ["invoice.paid", "charge.*"]})).data) == 2
    fake.advance(days=31)
    assert all(one.created > lost["created"] for one in (await client.v1.events.list_async({"limit": 100})).data)


async def test_a_thin_notification_leads_to_its_event_and_its_object(fake: FakeStripe) -> None:
    client = fake.client()
    made = await client.v1.customers.create_async({"name": "A"})
    body = fake.thin(fake.events[-1])
    note: Any = client.parse_event_notification(body.decode(), fake.sign(body)["stripe-signature"], fake.webhook_secret)
    assert (note.type, note.related_object.id) == ("v1.customer.created", made.id)
    assert (await note.fetch_event_async()).id == note.id
    related = await client.raw_request_async("get", note.related_object.url)
    assert json.loads(related.body)["name"] == "A"


async def test_what_stripe_would_refuse_is_refused(fake: FakeStripe) -> None:
    client = fake.client()
    for params in ({"emial": "a@example.com"}, {"email": "nobody"}):
        with pytest.raises(stripe.InvalidRequestError):
            await client.v1.customers.create_async(params)  # pyright: ignore[reportArgumentType]
    with pytest.raises(stripe.InvalidRequestError) as missing:
        await client.v1.subscriptions.retrieve_async("sub_none")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.AuthenticationError):
        await client.v1.customers.list_async({}, {"api_key": "sk_test_other"})


async def test_a_subscription_is_paused_resumed_and_ended_at_its_periods_end(fake: FakeStripe) -> None:
    price = fake.price(2900)
    fake.feature(price["product"], "pro")
    sub = await buy(fake, price)
    client = fake.client()

    async def entitled() -> list[str]:
        found = await client.v1.entitlements.active_entitlements.list_async({"customer": sub["customer"]})
        return [one.lookup_key for one in found.data]

    assert await entitled() == ["pro"]
    await client.v1.subscriptions.pause_async(sub["id"])
    assert sub["status"] == "paused"
    assert await entitled() == []
    fake.advance(days=40)
    await client.v1.subscriptions.resume_async(sub["id"])
    assert (sub["status"], await entitled()) == ("active", ["pro"])
    await client.v1.subscriptions.update_async(sub["id"], {"cancel_at_period_end": True})
    fake.advance(days=31)
    assert (sub["status"], await entitled()) == ("canceled", [])
    assert (await client.v1.subscriptions.list_async({"customer": sub["customer"]})).data == []
    assert len((await client.v1.subscriptions.list_async({"status": "all"})).data) == 1


async def test_a_trial_without_a_card_pauses_when_it_was_told_to(fake: FakeStripe) -> None:
    client = fake.client()
    customer = await client.v1.customers.create_async({})
    made = await client.v1.subscriptions.create_async(
        {
            "customer": customer.id,
            "items": [{"price": fake.price(2900)["id"]}],
            "trial_period_days": 1,
            "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
        }
    )
    fake.advance(days=2)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "paused"
    assert "customer.subscription.paused" in told(fake)


async def test_a_first_payment_that_never_comes_expires_the_subscription(fake: FakeStripe) -> None:
    client = fake.client()
    customer = await client.v1.customers.create_async({"payment_method": "pm_card_chargeDeclined"})
    made = await client.v1.subscriptions.create_async(
        {"customer": customer.id, "items": [{"price": fake.price(2900)["id"]}]}
    )
    assert made.status == "incomplete"
    fake.advance(days=1)
    assert (await client.v1.subscriptions.retrieve_async(made.id)).status == "incomplete_expired"
    assert told(fake)[-1] == "invoice.voided"


async def test_a_coupon_is_taken_off_once(fake: FakeStripe) -> None:
    client = fake.client()
    coupon = await client.v1.coupons.create_async({"percent_off": 50, "duration": "once"})
    customer = await client.v1.customers.create_async({"payment_method": "pm_card_visa"})
    await client.v1.subscriptions.create_async(
        {
            "customer": customer.id,
            "items": [{"price": fake.price(2900)["id"]}],
            "discounts": [{"coupon": coupon.id}],
        }
    )
    fake.advance(days=31)
    assert [invoice["amount_paid"] for invoice in fake.all("invoice")] == [1450, 2900]


async def test_a_deleted_customer_is_a_tombstone_without_subscriptions(fake: FakeStripe) -> None:
    sub = await buy(fake, fake.price(2900))
    client = fake.client()
    await client.v1.customers.delete_async(sub["customer"])
    found: Any = await client.v1.customers.retrieve_async(sub["customer"])
    assert found.deleted
    assert sub["status"] == "canceled"
    assert told(fake)[-1] == "customer.deleted"
    with pytest.raises(stripe.InvalidRequestError):
        await client.v1.billing_portal.sessions.create_async({"customer": sub["customer"]})

"""From the sign-up to the entitlement through the service as main wires it, Stripe's client and Stripe's stand-in."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from shared.contracts.api import UserSignedUp
from tests.fakes.stripe import FakeStripe
from tests.payment.inprocess import PLANS, InProcess, asked, follow, have, started

PLAN = PLANS[0]
PRICE = "price_pro"


@pytest.fixture
async def running(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcess]:
    with FakeStripe() as fake:
        fake.price(2900, price_id=PRICE)
        max_price = fake.price(5900)["id"]
        plans = [PLAN, {**PLAN, "name": "max", "entitlements": ["max"], "stripe_price": max_price}]
        running = started(fake, database_url, monkeypatch, PLANS=json.dumps(plans))
        yield running
        await running.close()
        await fake.close()


async def test_a_user_signs_up_buys_changes_and_cancels(running: InProcess) -> None:
    fake, user_id = running.fake, uuid4()
    await running.tell(
        UserSignedUp(id=uuid4(), time=running.service.clock(), user_id=user_id, email="ada@example.org", role="user")
    )
    await follow(running)
    session = await asked(running, user_id, "checkout", {"plan": "pro"}, 201)
    assert fake.complete(session["id"])
    await follow(running)
    assert (await have(running, user_id))["entitlements"] == ["pro"]
    again = await asked(running, user_id, "checkout", {"plan": "pro"}, 409)
    assert again["error"]["code"] == "ALREADY_SUBSCRIBED"
    preview = await asked(running, user_id, "change-plan?preview=true", {"plan": "max"}, 200)
    assert preview["proration_minor"] == 3000
    await asked(running, user_id, "change-plan", {"plan": "max", "at": preview["at"]}, 200)
    await follow(running)
    assert (await have(running, user_id))["entitlements"] == ["max"]
    await asked(running, user_id, "cancel", None, 200)
    await follow(running)
    assert (await have(running, user_id))["cancel_at_period_end"] is True
    fake.advance(days=32)
    await follow(running)
    assert (await have(running, user_id))["status"] == "canceled"
    assert len(fake.all("customer")) == len(fake.all("subscription")) == 1


async def test_two_paid_sessions_become_one_subscription_by_webhooks_alone(running: InProcess) -> None:
    fake, user_id = running.fake, uuid4()
    await running.tell(
        UserSignedUp(id=uuid4(), time=running.service.clock(), user_id=user_id, email="bob@example.org", role="user")
    )
    await follow(running)
    (customer,) = fake.all("customer")
    for _ in range(2):
        line = {"price": PRICE, "quantity": 1}
        wanted: Any = {
            "mode": "subscription",
            "customer": customer["id"],
            "line_items": [line],
            "success_url": "https://x.example",
        }
        session = await fake.client().v1.checkout.sessions.create_async(wanted)
        assert fake.complete(session.id)
        fake.advance(seconds=60)
    await follow(running)
    first, second = fake.all("subscription")
    assert (first["status"], second["status"]) == ("active", "canceled")
    assert [one["amount"] for one in fake.all("refund")] == [2900]
    assert (await have(running, user_id))["entitlements"] == ["pro"]
    rows = await running.rows("select provider_id, status from subscriptions where status = 'active'")
    assert rows == [{"provider_id": first["id"], "status": "active"}]


async def test_a_subscription_of_a_users_second_customer_is_ended_and_paid_back(running: InProcess) -> None:
    fake, user_id = running.fake, uuid4()
    await running.tell(
        UserSignedUp(id=uuid4(), time=running.service.clock(), user_id=user_id, email="dan@example.org", role="user")
    )
    await follow(running)
    session = await asked(running, user_id, "checkout", {"plan": "pro"}, 201)
    assert fake.complete(session["id"])
    await follow(running)
    other = await fake.client().v1.customers.create_async({"email": "dan@example.net"})
    fake.advance(seconds=60)
    wanted: Any = {
        "mode": "subscription",
        "customer": other.id,
        "line_items": [{"price": PRICE, "quantity": 1}],
        "subscription_data": {"metadata": {"user_id": str(user_id)}},
        "success_url": "https://x.example",
    }
    assert fake.complete((await fake.client().v1.checkout.sessions.create_async(wanted)).id)
    await follow(running)
    first, second = fake.all("subscription")
    assert (first["status"], second["status"]) == ("active", "canceled")
    assert [one["amount"] for one in fake.all("refund")] == [2900]
    assert (await have(running, user_id))["entitlements"] == ["pro"]


async def test_a_customer_deleted_in_the_dashboard_is_made_anew(running: InProcess) -> None:
    fake, user_id = running.fake, uuid4()
    await running.tell(
        UserSignedUp(id=uuid4(), time=running.service.clock(), user_id=user_id, email="eve@example.org", role="user")
    )
    await follow(running)
    (old,) = fake.all("customer")
    await fake.client().v1.customers.delete_async(old["id"])
    await follow(running)
    living = [one for one in fake.all("customer") if not one.get("deleted")]
    assert [one["metadata"]["user_id"] for one in living] == [str(user_id)]

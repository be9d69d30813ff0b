"""Plans that Stripe's prices name: bought, followed, taken off sale; and prices that cannot be plans."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.payment.domain.plans import Plan, Plans, Priced, names_plan, priced
from services.payment.domain.stripe import state_of
from shared.contracts.api import UserSignedUp
from tests.fakes.stripe import FakeStripe
from tests.payment.inprocess import InProcess, asked, follow, have, started


@pytest.fixture
async def running(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcess]:
    with FakeStripe() as fake:
        fake.price(2900, price_id="price_pro")
        running = started(fake, database_url, monkeypatch)
        yield running
        await running.close()
        await fake.close()


def call(running: InProcess, path: str, **params: Any) -> dict[str, Any]:
    with running.fake.wire.lock:
        return running.fake.api.call("POST", f"/v1/{path}", params)


def price(running: InProcess, amount: int = 1900, interval: str = "month", **metadata: str) -> str:
    """Make a price at Stripe that bears this metadata."""
    product = call(running, "products", name="Openbell Team")["id"]
    about = {"currency": "usd", "unit_amount": str(amount), "recurring": {"interval": interval}}
    return call(running, "prices", product=product, metadata=metadata, **about)["id"]


async def signed_up(running: InProcess) -> UUID:
    user_id = uuid4()
    at, email = running.service.clock(), f"{user_id.hex[:8]}@example.org"
    await running.tell(UserSignedUp(id=uuid4(), time=at, user_id=user_id, email=email, role="user"))
    await follow(running)
    return user_id


async def subscriber(running: InProcess, plan: str) -> UUID:
    user_id = await signed_up(running)
    session = await asked(running, user_id, "checkout", {"plan": plan}, 201)
    assert running.fake.complete(session["id"])
    await follow(running)
    return user_id


async def test_a_plan_that_only_a_price_names_is_bought_and_gives_what_the_price_says(running: InProcess) -> None:
    made = price(running, openbell_plan="team", openbell_entitlements="pro, team", openbell_trial_days="5")
    user_id = await subscriber(running, "team")
    found = await have(running, user_id)
    assert (found["plan"], found["entitlements"], found["status"]) == ("team", ["pro", "team"], "trialing")
    (subscription,) = running.fake.all("subscription")
    assert subscription["items"]["data"][0]["price"]["id"] == made
    assert subscription["trial_end"] - subscription["created"] == 5 * 86_400
    changed = await asked(running, user_id, "change-plan", {"plan": "pro"}, 200)
    assert changed["applied"] is False
    await follow(running)
    assert (await have(running, user_id))["plan"] == "pro"


async def test_a_price_taken_off_sale_is_bought_no_more_and_who_has_it_keeps_it(running: InProcess) -> None:
    made = price(running, openbell_plan="team", openbell_entitlements="pro,team")
    user_id = await subscriber(running, "team")
    call(running, f"prices/{made}", active="false")
    await follow(running)
    refused = await asked(running, await signed_up(running), "checkout", {"plan": "team"}, 409)
    assert refused["error"]["code"] == "NOT_OFFERED"
    running.fake.advance(days=32)
    await follow(running)
    found = await have(running, user_id)
    assert (found["plan"], found["entitlements"], found["status"]) == ("team", ["pro", "team"], "active")


async def test_a_product_taken_off_sale_takes_its_plans_along(running: InProcess) -> None:
    made = price(running, openbell_plan="team")
    await follow(running)
    call(running, f"products/{running.fake.get('price', made)['product']}", active="false")
    await follow(running)
    await asked(running, await signed_up(running), "checkout", {"plan": "team"}, 409)


async def test_who_has_a_plan_is_told_when_its_price_allows_another_thing(running: InProcess) -> None:
    made = price(running, openbell_plan="team", openbell_entitlements="team")
    user_id = await subscriber(running, "team")
    about = {"openbell_plan": "team", "openbell_entitlements": "team,alerts"}
    call(running, f"prices/{made}", metadata=about)
    await follow(running)
    told = [body for kind, body in running.told if kind.startswith("payment.subscription.")]
    assert told[-1]["user_id"] == str(user_id)
    assert told[-1]["entitlements"] == ["alerts", "team"]


async def test_a_subscription_heard_of_before_its_price_has_the_plan_at_once(running: InProcess) -> None:
    user_id = await signed_up(running)
    made = price(running, openbell_plan="team", openbell_entitlements="pro,team")
    (customer,) = running.fake.all("customer")
    running.fake.set_card(customer["id"], running.fake.card())
    call(running, "subscriptions", customer=customer["id"], items=[{"price": made}])
    await running.deliver([one for one in running.fake.events if one["type"] == "customer.subscription.created"])
    await running.settle()
    found = await have(running, user_id)
    assert (found["plan"], found["entitlements"]) == ("team", ["pro", "team"])


async def test_the_sweep_finds_a_plan_that_no_webhook_told_of(running: InProcess) -> None:
    price(running, openbell_plan="team")
    await running.job("stripe-sweep")(running.service.clock())
    await running.settle()
    await asked(running, await signed_up(running), "checkout", {"plan": "team"}, 201)


async def test_a_price_that_cannot_be_a_plan_is_audited_once_and_sold_to_nobody(running: InProcess) -> None:
    made = price(running, interval="week", openbell_plan="team")
    await follow(running)
    call(running, f"prices/{made}", nickname="again")
    await follow(running)
    refused = [body for kind, body in running.told if kind.startswith("api.") and body["subject"] == made]
    assert [one["action"] for one in refused] == ["refuse.stripe_plan"]
    assert (await asked(running, await signed_up(running), "checkout", {"plan": "team"}, 404))["error"]["details"]


def stripes(name: str, price_id: str, *, active: bool = True, created: int = 1, **metadata: str) -> Priced:
    said = {
        "id": price_id,
        "type": "recurring",
        "billing_scheme": "per_unit",
        "currency": "usd",
        "unit_amount": 1900,
        "created": created,
        "recurring": {"interval": "year", "interval_count": 1, "usage_type": "licensed"},
        "metadata": {"openbell_plan": name, **metadata},
    }
    assert names_plan(said)
    return priced(said, "Team", active=active)


def ours(name: str = "pro", stripe_price: str | None = "price_pro") -> Plan:
    return Plan.model_validate(
        {
            "name": name,
            "title": "Ours",
            "price_usd": 29,
            "entitlements": ["ours"],
            "stripe_price": stripe_price,
        }
    )


def test_a_plan_of_the_settings_wins_over_a_price_of_its_name() -> None:
    plans = Plans([ours()]).beside([stripes("pro", "price_other")])
    assert plans["pro"] == ours()
    assert plans.of_price("price_other") == ours(), "who pays that price has the plan of the settings"
    plans = Plans([ours()]).beside([stripes("gold", "price_pro"), stripes("gold", "price_gold", created=0)])
    assert plans.of_price("price_pro") == ours(), "a price that the settings name stays with its plan"
    assert plans["gold"].stripe_price == "price_gold"


def test_a_price_says_what_is_bought_before_the_subscription_says_what_was() -> None:
    plans = Plans([ours("pro", None), ours("max", None)])

    def plan(price: dict[str, Any], **metadata: str) -> str:
        said = {"id": "sub_1", "status": "active", "metadata": metadata, "items": {"data": [{"price": price}]}}
        state = state_of(said, plans, timedelta(days=7), datetime(2026, 11, 22, tzinfo=UTC))
        assert state is not None
        return state.plan

    assert plan({"id": "price_1", "lookup_key": "pro"}, plan="max") == "pro"  # changed in Stripe's portal
    assert plan({"id": "price_1", "lookup_key": None}, plan="max") == "max"
    assert plan({"id": "price_1"}) == "price_1"


def test_the_newest_price_that_can_be_bought_is_sold_and_older_ones_stay_known() -> None:
    old, new, gone = (
        stripes("team", "a"),
        stripes("team", "b", created=2),
        stripes("team", "c", active=False, created=3),
    )
    for order in ([old, new, gone], [gone, new, old]):
        plans = Plans([ours()]).beside(order)
        assert plans["team"].stripe_price == "b"
        assert [plan.name for one in "abc" if (plan := plans.of_price(one)) is not None] == ["team"] * 3
    assert Plans([ours()]).beside([gone])["team"].stripe_price is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("currency", "eur"),
        ("type", "one_time"),
        ("billing_scheme", "tiered"),
        ("unit_amount", 0),
        ("unit_amount", None),
        ("recurring", {"interval": "month", "interval_count": 3, "usage_type": "licensed"}),
        ("recurring", {"interval": "month", "interval_count": 1, "usage_type": "metered"}),
        ("metadata", {"openbell_plan": "Team One"}),
        ("metadata", {"openbell_plan": "team", "openbell_trial_days": "x"}),
    ],
)
def test_a_price_of_another_kind_is_no_plan(field: str, value: Any) -> None:
    said: dict[str, Any] = {
        "id": "a",
        "type": "recurring",
        "billing_scheme": "per_unit",
        "currency": "usd",
        "unit_amount": 1,
        "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"},
        "metadata": {"openbell_plan": "team"},
    }
    assert priced(said, None, active=True).plan.entitlements == ("team",)
    with pytest.raises(ValueError, match=r"."):
        priced(said | {field: value}, None, active=True)

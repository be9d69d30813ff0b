"""Routes that belong to a plan follow what payment tells of subscriptions."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from services.api.main import Gateway
from services.api.service.plans import HELD_S
from shared.clock import new_id
from shared.contracts.payment import SubscriptionChanged
from shared.http import routes
from tests.api.conftest import Person, client_of, problem
from tests.conftest import ManualClock

SUBSCRIPTION = uuid4()


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setenv("OPENBELL_API_REQUIRE_PLANS", "true")
    return make_gateway()


def changed(user_id: UUID, clock: ManualClock, version: int = 1, **fields: Any) -> SubscriptionChanged:
    usual: dict[str, Any] = {
        "subscription_id": SUBSCRIPTION,
        "provider": "stripe",
        "plan": "pro",
        "status": "active",
        "entitlements": ("pro",),
        "entitled_until": None,
        "current_period_end": None,
    }
    return SubscriptionChanged(id=new_id(), time=clock(), user_id=user_id, version=version, **(usual | fields))


async def hear(gateway: Gateway, events: Sequence[SubscriptionChanged]) -> None:
    (consumer,) = (one for one in gateway.consumers if one.name == "api.subscriptions")
    (route,) = consumer.routes.values()
    async with gateway.db.transaction() as tx:
        await route.handler(events, tx)


async def refused(client: httpx.AsyncClient, person: Person, path: str = "/leaderboard") -> bool:
    answer = await client.get(path, headers=person.headers)
    if answer.status_code != 402:
        return False
    assert problem(answer)["code"] == "PLAN_REQUIRED"
    assert problem(answer)["details"] == {"plan": "pro"}
    return True


async def test_what_belongs_to_a_plan_is_refused_without_it(client: httpx.AsyncClient, ada: Person, admin: Person):
    for path in ("/leaderboard", "/activity/AAPL", "/realtime-options/AAPL"):
        assert await refused(client, ada, path)
    assert not await refused(client, admin)
    assert (await client.get("/leaderboard")).status_code == 401


async def test_a_subscription_opens_the_routes_at_once_and_its_end_closes_them(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person, bob: Person, clock: ManualClock
):
    assert await refused(client, ada)
    await hear(gateway, [changed(ada.id, clock)])
    assert not await refused(client, ada)
    assert await refused(client, bob)
    await hear(gateway, [changed(ada.id, clock, 2, status="canceled", entitlements=())])
    assert await refused(client, ada)


async def test_old_news_changes_nothing(gateway: Gateway, client: httpx.AsyncClient, ada: Person, clock: ManualClock):
    await hear(gateway, [changed(ada.id, clock, 3), changed(ada.id, clock, 2, entitlements=())])
    await hear(gateway, [changed(ada.id, clock, 1, entitlements=())])
    assert not await refused(client, ada)


async def test_a_new_subscription_counts_beside_an_old_one(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person, clock: ManualClock
):
    old = changed(ada.id, clock, 9, subscription_id=uuid4(), status="expired", entitlements=())
    await hear(gateway, [changed(ada.id, clock, 1), old])
    assert not await refused(client, ada)


async def test_access_ends_by_the_clock_whatever_is_heard(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person, clock: ManualClock
):
    await hear(gateway, [changed(ada.id, clock, entitled_until=clock() + timedelta(seconds=10))])
    assert not await refused(client, ada)
    clock.now += timedelta(seconds=10)
    assert await refused(client, ada)


async def test_another_replica_follows_within_a_second(
    gateway: Gateway, make_gateway: Callable[..., Gateway], ada: Person, clock: ManualClock
):
    async with client_of(make_gateway().app) as other:
        assert await refused(other, ada)
        await hear(gateway, [changed(ada.id, clock)])
        clock.now += timedelta(seconds=HELD_S)
        assert not await refused(other, ada)


async def test_in_development_no_plan_is_asked_for(
    make_gateway: Callable[..., Gateway], ada: Person, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENBELL_API_REQUIRE_PLANS")
    async with client_of(make_gateway().app) as client:
        assert not await refused(client, ada)


def test_only_known_entitlements_are_asked_for(gateway: Gateway):
    asked = {handler.opt.get("plan") for _, _, handler in routes(gateway.app)}
    assert asked == {None, "pro"}

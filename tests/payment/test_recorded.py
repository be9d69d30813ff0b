"""Every webhook that was ever recorded is accepted, kept as it came, and settled."""

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.payment.domain.stripe import KINDS
from tests.conftest import recorded
from tests.fakes.stripe import FakeStripe
from tests.payment.inprocess import InProcess, started
from tests.payment.lives import Life

FOLDERS = ("recorded-2020", "current/events")


@pytest.fixture
async def service(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[InProcess]:
    with FakeStripe() as fake:
        running = started(fake, database_url, monkeypatch)
        yield running
        await running.close()


def with_id(body: bytes, number: int) -> bytes:
    """Give an envelope whose id was blotted out one of its own."""
    return re.sub(rb'"evt_0+"', b'"evt_%d"' % number, body, count=1)


def unhandled() -> float:
    name = "openbell_payment_webhooks_unhandled"
    samples = [sample for family in REGISTRY.collect() if family.name == name for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == f"{name}_total")


@pytest.mark.parametrize("folder", FOLDERS)
async def test_recorded_webhooks_are_kept_as_they_came_and_settled(service: InProcess, folder: str) -> None:
    files = sorted(recorded("data", "stripe", *folder.split("/")).glob("*.json"))
    bodies = [with_id(path.read_bytes(), number) for number, path in enumerate(files)]
    assert len(bodies) >= 11
    before = unhandled()
    for body in bodies:
        status, answer = await service.post(body, service.fake.sign(body, at=service.fake.now))
        assert (status, answer) == (200, {"new": True})
    for body in bodies:
        status, answer = await service.post(body, service.fake.sign(body, at=service.fake.now))
        assert (status, answer) == (200, {"new": False})
    assert service.fake.requests == [], "taking a webhook asks Stripe nothing"
    kept = await service.rows("select event_id, body from webhooks")
    assert sorted(row["body"] for row in kept) == sorted(bodies)
    await service.settle()
    settled = await service.rows("select kind, status from refreshes")
    assert settled
    assert {row["status"] for row in settled} == {"done"}
    assert await service.rows("select * from failed_jobs") == []
    assert await service.rows("select * from subscriptions") == []
    objects = [json.loads(body)["data"]["object"] for body in bodies]
    strange = [one for one in objects if one.get("object") not in KINDS or not _id(one)]
    assert unhandled() - before == len(strange)


async def test_a_thin_event_has_its_object_fetched(service: InProcess) -> None:
    (user_id,) = await service.users(1)
    service.fake.price(2900, price_id="price_pro")
    life = Life(service.fake, user_id, "")
    life.begin()
    life.buy()
    (subscription,) = service.fake.all("subscription")
    about = {"id": subscription["id"], "type": "subscription", "url": f"/v1/subscriptions/{subscription['id']}"}
    thin = _thin(service, "v1.customer.subscription.updated", about)
    assert await service.post(*service.fake.signed(thin, at=service.fake.now)) == (200, {"new": True})
    await service.settle(wholly=True)
    assert await service.rows("select provider_id, status from subscriptions") == [
        {"provider_id": subscription["id"], "status": "active"}
    ]


async def test_a_thin_event_about_nothing_that_we_follow_is_kept_and_counted(service: InProcess) -> None:
    before = unhandled()
    for number, about in enumerate((None, {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"})):
        thin = _thin(service, "v1.gizmo.frobnicated", about) | {"id": f"evt_{number}"}
        assert await service.post(*service.fake.signed(thin, at=service.fake.now)) == (200, {"new": True})
    await service.settle()
    kept = await service.rows("select object_kind, object_id from webhooks order by event_id")
    assert kept == [
        {"object_kind": None, "object_id": None},
        {"object_kind": "billing.meter", "object_id": "mtr_1"},
    ]
    assert await service.rows("select * from refreshes") == []
    assert unhandled() - before == 2


def _thin(service: InProcess, name: str, about: dict[str, str] | None) -> dict[str, Any]:
    created = service.clock().isoformat().replace("+00:00", "Z")
    thin = {"id": "evt_thin", "object": "v2.core.event", "type": name, "created": created, "livemode": False}
    return thin | {"context": None, "reason": None} | ({} if about is None else {"related_object": about})


async def test_a_type_that_nobody_knows_is_kept_and_counted(service: InProcess) -> None:
    before = unhandled()
    event = {
        "id": "evt_strange",
        "object": "event",
        "created": service.fake.now,
        "data": {"object": {"id": "gizmo_1", "object": "gizmo"}},
        "livemode": False,
        "type": "gizmo.frobnicated",
    }
    status, _ = await service.post(*service.fake.signed(event, at=service.fake.now))
    assert status == 200
    await service.settle()
    (row,) = await service.rows("select type, object_kind, object_id from webhooks")
    assert row == {"type": "gizmo.frobnicated", "object_kind": "gizmo", "object_id": "gizmo_1"}
    assert await service.rows("select * from refreshes") == []
    assert unhandled() - before == 1


def _id(thing: dict[str, object]) -> object:
    return (
        thing.get("customer") if thing.get("object") == "entitlements.active_entitlement_summary" else thing.get("id")
    )

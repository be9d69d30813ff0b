"""Every webhook that was ever recorded is accepted, kept as it came, and settled."""

import json
import re
from collections.abc import AsyncGenerator

import pytest
from prometheus_client import REGISTRY

from services.payment.domain.stripe import KINDS
from tests.conftest import recorded
from tests.fakes.stripe import FakeStripe
from tests.payment.inprocess import InProcess, started

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

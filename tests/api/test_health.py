"""How all services are, as an administrator sees it through the gateway."""

from typing import Any

import httpx

from services.api.main import Gateway
from shared.http import build_app
from tests.api.conftest import Person
from tests.shared.test_http import FakeService


def neighbour(gateway: Gateway, name: str) -> FakeService:
    service = FakeService()
    service.name, service.clock = name, gateway.clock
    gateway.neighbours[name] = build_app(service)
    if name == "api":
        gateway._operations_app = build_app(service)
    return service


async def health(client: httpx.AsyncClient, admin: Person) -> dict[str, Any]:
    answer = await client.get("/ops/health", headers=admin.headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_administrator_sees_every_services_checks_and_which_are_silent(
    gateway: Gateway, client: httpx.AsyncClient, admin: Person
):
    detector = neighbour(gateway, "detector")
    detector.checks["relay"] = (False, "Kafka is away")
    services = (await health(client, admin))["services"]
    assert services["detector"] == {
        "status": "not ready",
        "checks": {"database": {"ok": True, "detail": "fine"}, "relay": {"ok": False, "detail": "Kafka is away"}},
    }
    assert services["api"]["status"] == "not ready"
    assert services["api"]["checks"]["start"] == {"ok": False, "detail": "not started"}
    assert services["api"]["checks"]["database"]["ok"] is True
    assert services["alerts"] == {"status": "unavailable", "reason": "UPSTREAM_UNAVAILABLE"}

    detector.checks["relay"] = (True, "leading")
    assert (await health(client, admin))["services"]["detector"]["status"] == "ready"


async def test_all_is_ready_when_every_service_is(gateway: Gateway, client: httpx.AsyncClient, admin: Person):
    others = [neighbour(gateway, name) for name in ("alerts", "api", "broker", "data", "detector", "payment")]
    assert (await health(client, admin))["status"] == "ready"
    others[0].checks["kafka"] = (False, "away")
    assert (await health(client, admin))["status"] == "not ready"
    others[0].checks["kafka"] = (True, "back")
    del gateway.neighbours["data"]
    assert (await health(client, admin))["status"] == "not ready"

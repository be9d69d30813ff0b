"""Is the process alive, is the service ready, and its figures for Prometheus.

What would surprise you: `/readyz` tells everybody whether, and only operators why. Who is one, `Operators` decides by
the address of the connection: a probe has to work while Postgres, and with it every key, is out of reach.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.http.callers import Caller, Operators
from shared.http.json import json_response
from shared.http.served import Served


class Check(msgspec.Struct, frozen=True):
    """One thing that a service needs."""

    ok: bool
    detail: str


class Health(msgspec.Struct, frozen=True):
    """How a service is. `status` is "ready" when all checks are ok, else "not ready"."""

    status: str
    checks: Mapping[str, Check]


def health_routes(service: Served, operators: Operators) -> list[HTTPRouteHandler]:
    """Return /healthz, /readyz and /metrics."""
    health = _Health(service)

    @get("/healthz", caller=Caller.PUBLIC, include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """Answer while the event loop turns; looks at nothing else."""
        return {"status": "alive"}

    @get("/readyz", caller=Caller.PUBLIC, include_in_schema=False)
    async def readyz(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Answer 200 when everything the service needs works, else 503; to operators with what does not."""
        found = await health.get()
        told = found if operators.sent(request.scope) else {"status": found.status}
        return json_response(told, status_code=200 if found.status == "ready" else 503)

    @get("/metrics", caller=Caller.OPERATOR, include_in_schema=False)
    async def metrics() -> Response[bytes]:
        """Return the process's figures."""
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    return [healthz, readyz, metrics]


def health_operations(service: Served) -> Sequence[HTTPRouteHandler]:
    """Return the route that the gateway asks to show how all services are."""
    health = _Health(service)

    @get("/ops/health", caller=Caller.ADMIN, tags=["operations"])
    async def show_health() -> Response[bytes]:
        """Return how the service is, with each check; 200 whatever it is."""
        return json_response(await health.get())

    return [show_health]


class _Health:
    """Checks once at a time: who asks meanwhile shares the answer, so that probes cannot use up the connections."""

    def __init__(self, service: Served) -> None:
        self._service = service
        self._checking: asyncio.Task[Health] | None = None

    async def get(self) -> Health:
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def _check(self) -> Health:
        checks = await self._service.readiness()
        ready = all(ok for ok, _ in checks.values())
        return Health("ready" if ready else "not ready", {name: Check(*found) for name, found in checks.items()})

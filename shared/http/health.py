"""Is the process alive, is the service ready, and its figures for Prometheus."""

from typing import Any

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.http.callers import Caller
from shared.http.served import Served


def health_routes(service: Served) -> list[HTTPRouteHandler]:
    """Return /healthz, /readyz and /metrics."""

    @get("/healthz", caller=Caller.PUBLIC, include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """Answer while the event loop turns; looks at nothing else."""
        return {"status": "alive"}

    @get("/readyz", caller=Caller.PUBLIC, include_in_schema=False)
    async def readyz() -> Response[dict[str, Any]]:
        """Answer 200 when everything the service needs works, else 503 with what does not."""
        checks = await service.readiness()
        ready = all(ok for ok, _ in checks.values())
        return Response(
            {
                "status": "ready" if ready else "not ready",
                "checks": {name: {"ok": ok, "detail": detail} for name, (ok, detail) in checks.items()},
            },
            status_code=200 if ready else 503,
        )

    @get("/metrics", caller=Caller.PUBLIC, include_in_schema=False)
    async def metrics() -> Response[bytes]:
        """Return the process's figures."""
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    return [healthz, readyz, metrics]

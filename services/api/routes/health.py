"""Whether the gateway runs, for everybody; how every service is, for administrators."""

import asyncio
from typing import Any

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from services.api.forwarding import Forwarder
from services.api.ports import Outgoing
from services.api.routes.common import HttpRequest
from shared.errors import OpenbellError
from shared.http import Caller, exchange_of
from shared.http.health import Health
from shared.http.json import json_response


def gateway_health_routes(forwarder: Forwarder) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/health", caller=Caller.PUBLIC, tags=["health"])
    async def health() -> dict[str, str]:
        """Answer while the gateway runs."""
        return {"status": "ok"}

    @get("/ops/health", caller=Caller.ADMIN, tags=["operations"])
    async def show_health(request: HttpRequest) -> Response[bytes]:
        """Show how every service is, with each of its checks, and which do not answer."""
        names = forwarder.services
        found = dict(zip(names, await asyncio.gather(*(_ask(forwarder, request, name) for name in names)), strict=True))
        ready = all(isinstance(one, Health) and one.status == "ready" for one in found.values())
        return json_response({"status": "ready" if ready else "not ready", "services": found})

    return [health, show_health]


async def _ask(forwarder: Forwarder, request: HttpRequest, service: str) -> Health | dict[str, Any]:
    try:
        answer = await forwarder.send(
            service,
            Outgoing("GET", "/ops/health", b"", ()),
            identity=request.scope["user"],
            request_id=exchange_of(request.scope).request_id,
        )
    except OpenbellError as error:
        return {"status": "unavailable", "reason": error.code}
    if answer.status != 200:  # noqa: PLR2004 - HTTP OK
        return {"status": "unavailable", "reason": f"HTTP {answer.status}"}
    return msgspec.json.decode(answer.body, type=Health)

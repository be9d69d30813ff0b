"""The documentation: one OpenAPI document of all services, and a page that shows it without asking anybody else.

The document is made of what the services answer now and kept for half a minute; a service that is silent is missing
from it for that long.
"""

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler

from services.api.documents import merge
from services.api.forwarding import Forwarder, Rule
from services.api.ports import Outgoing
from services.api.routes.common import HttpRequest
from shared.clock import Clock
from shared.errors import OpenbellError
from shared.http import Caller, exchange_of
from shared.http.document import PATH, document

KEPT_S: Final = 30.0
_PAGE: Final = Path(__file__).with_name("docs.html")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def docs_routes(forwarder: Forwarder, rules: tuple[Rule, ...], clock: Clock) -> list[HTTPRouteHandler]:
    """Return the routes."""
    merged = _Merged(forwarder, rules, clock)
    assets = {name: _PAGE.with_name(name).read_bytes() for name in ("docs.html", "docs.js", "docs.css")}

    @get("/docs", caller=Caller.PUBLIC, include_in_schema=False)
    async def page() -> Response[bytes]:
        """Show the documentation."""
        return _asset(assets["docs.html"], MediaType.HTML)

    @get("/docs/docs.js", caller=Caller.PUBLIC, include_in_schema=False)
    async def script() -> Response[bytes]:
        """Return the page's script."""
        return _asset(assets["docs.js"], "text/javascript")

    @get("/docs/docs.css", caller=Caller.PUBLIC, include_in_schema=False)
    async def style() -> Response[bytes]:
        """Return the page's style."""
        return _asset(assets["docs.css"], MediaType.CSS)

    @get("/docs/openapi.json", caller=Caller.PUBLIC, include_in_schema=False)
    async def openapi(request: HttpRequest) -> Response[bytes]:
        """Return the OpenAPI document of all services."""
        return Response(await merged.get(request), media_type="application/json")

    return [page, script, style, openapi]


def _asset(content: bytes, media_type: str) -> Response[bytes]:
    headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "max-age=300"}
    return Response(content, media_type=media_type, headers=headers)


class _Merged:
    def __init__(self, forwarder: Forwarder, rules: tuple[Rule, ...], clock: Clock) -> None:
        self._forwarder = forwarder
        self._rules = rules
        self._clock = clock
        self._made: tuple[float, bytes] | None = None
        self._lock = asyncio.Lock()

    async def get(self, request: HttpRequest) -> bytes:
        async with self._lock:
            now = self._clock().timestamp()
            if self._made is None or now - self._made[0] > KEPT_S:
                self._made = (now, await self._make(request))
            return self._made[1]

    async def _make(self, request: HttpRequest) -> bytes:
        names = sorted({rule.service for rule in self._rules})
        request_id = exchange_of(request.scope).request_id
        found = await asyncio.gather(*(self._ask(name, request_id) for name in names))
        others = {name: part for name, part in zip(names, found, strict=True) if part is not None}
        return msgspec.json.encode(merge(document(request.app), others, self._rules), enc_hook=str)

    async def _ask(self, service: str, request_id: str) -> dict[str, Any] | None:
        try:
            answer = await self._forwarder.send(
                service, Outgoing("GET", PATH, b"", ()), identity=None, request_id=request_id
            )
        except OpenbellError:
            return None
        return msgspec.json.decode(answer.body) if answer.status == 200 else None  # noqa: PLR2004 - HTTP OK

"""A service in this process, reached as the ASGI app that it is; a service elsewhere, reached over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import quote

import httpx
from litestar.types import ASGIApp
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from services.api.ports import Answer, Outgoing, UpstreamUnavailable

SICK: Final = frozenset({502, 503, 504})
RETRY_AFTER_S: Final = 2.0
_SAFE_PATH: Final = "/!$&'()*+,;=:@-._~"


class InMemory:
    """Calls the app with a scope of its own. `find` is asked at each call, for services may start later than we do."""

    def __init__(self, find: Callable[[], ASGIApp | None], timeout_s: float) -> None:
        self._find = find
        self._timeout_s = timeout_s

    async def send(self, request: Outgoing) -> Answer:
        """See Upstream."""
        app = self._find()
        if app is None:
            raise UpstreamUnavailable(retry_after_s=RETRY_AFTER_S)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": quote(request.path, safe=_SAFE_PATH).encode(),
            "query_string": request.query,
            "root_path": "",
            "headers": [*request.headers, (b"content-length", str(len(request.body)).encode())],
            "client": None,
            "server": None,
            "state": {},
        }
        exchange = _Exchange(request.body)
        try:
            async with asyncio.timeout(self._timeout_s):
                await app(cast("Any", scope), cast("Any", exchange.receive), cast("Any", exchange.send))
        except TimeoutError as error:
            raise UpstreamUnavailable("the service took too long", retry_after_s=RETRY_AFTER_S) from error
        return exchange.answer()


class _Exchange:
    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.Event().wait()  # nobody disconnects before the answer is there
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = list(message["headers"])
        elif message["type"] == "http.response.body":
            self._chunks.append(message.get("body", b""))

    def answer(self) -> Answer:
        if not self._status:
            raise UpstreamUnavailable(retry_after_s=RETRY_AFTER_S)
        return Answer(self._status, self._headers, b"".join(self._chunks))


class OverHttp:
    """Calls a service elsewhere through pooled connections, behind a circuit breaker of its own.

    Failed connections and the statuses 502, 503 and 504 count against it; while it is open nothing is sent.
    """

    def __init__(
        self, name: str, base_url: str, client: httpx.AsyncClient, breakers: AsyncCircuitBreakerFactory
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._client = client
        self._breakers = breakers

    async def send(self, request: Outgoing) -> Answer:
        """See Upstream."""
        try:
            async with await self._breakers.get_breaker(self._name):
                return _healthy(await self._send(request))
        except _SickError as sick:
            return sick.answer
        except (OpenedState, httpx.TransportError) as error:
            raise UpstreamUnavailable(retry_after_s=RETRY_AFTER_S) from error

    async def _send(self, request: Outgoing) -> Answer:
        query = f"?{request.query.decode('latin-1')}" if request.query else ""
        url = f"{self._base_url}{quote(request.path, safe=_SAFE_PATH)}{query}"
        response = await self._client.request(
            request.method,
            url,
            headers=[*request.headers, (b"accept-encoding", b"identity")],
            content=request.body,
        )
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        return Answer(response.status_code, headers, response.content)


def _healthy(answer: Answer) -> Answer:
    """Return the answer; raises where the breaker is to count it."""
    if answer.status in SICK:
        raise _SickError(answer)
    return answer


class _SickError(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def not_failures() -> list[Any]:
    """What ends a call without saying anything about the upstream: the caller left."""
    return [asyncio.CancelledError]

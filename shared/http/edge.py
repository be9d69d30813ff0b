"""The outermost layer of every service, plain ASGI: request ids, metrics, and what must not come in.

It sees every request, unknown routes included. It adds to the scope an `Exchange` under "openbell"; whoever
handles the request may append response headers there. Successes are counted, not logged.
"""

import itertools
import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final, cast

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import Counter, Histogram

from shared import telemetry
from shared.clock import NewId
from shared.http.errors import ErrorAnswers, Failure
from shared.identity import REQUEST_ID

_log = logging.getLogger(__name__)

REQUESTS: Final = Counter("openbell_http_requests_total", "Requests answered", ("service", "method", "route", "status"))
DURATION: Final = Histogram(
    "openbell_http_request_duration_seconds",
    "From the request line to the last byte of the answer",
    ("service", "method", "route"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

_SANE_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NUL_ESCAPE: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NUL: Final = Failure(422, "VALIDATION_ERROR", "A NUL character is not allowed anywhere in a request.")
_CRASHED: Final = Failure(500, "INTERNAL_ERROR", "Something went wrong on our side.")


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as the edge sees them."""

    request_id: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    status: int = 0


def exchange_of(scope: object) -> Exchange:
    """Return the exchange that the edge put into the scope."""
    return cast("dict[str, Exchange]", scope)["openbell"]


def has_nul(body: bytes, content_type: str) -> bool:
    """Whether a body would decode to a string with a NUL character."""
    if b"\x00" in body:
        return True
    if content_type == "application/x-www-form-urlencoded":
        return b"%00" in body
    return b"u0000" in body and _NUL_ESCAPE.search(body) is not None


class Edge:
    """Wraps an ASGI app."""

    def __init__(self, app: ASGIApp, service: str, answers: ErrorAnswers, new_id: NewId) -> None:
        self._app = app
        self._service = service
        self._answers = answers
        self._ids = itertools.count()
        self._process = new_id().hex
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._request(cast("HTTPScope", scope), receive, send)

    async def _request(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        exchange = Exchange(self._request_id(scope["headers"]))
        cast("dict[str, Any]", scope)["openbell"] = exchange
        token = REQUEST_ID.set(exchange.request_id)

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", exchange.request_id.encode()),
                    *exchange.headers,
                ]
            await send(message)

        try:
            if "\x00" in scope["path"] or b"%00" in scope["query_string"] or b"\x00" in scope["query_string"]:
                await self._refuse(_NUL, exchange, respond)
            elif telemetry.exporting():
                parent = next((value for name, value in scope["headers"] if name == b"traceparent"), None)
                with telemetry.serving(f"{scope['method']} {self._service}", parent):
                    await self._app(scope, receive, respond)
            else:
                await self._app(scope, receive, respond)
        except Exception:
            _log.exception("http_crashed", extra=self._extra(exchange, scope))
            if exchange.status:
                raise  # the answer is half out: only closing the connection tells the caller
            await self._refuse(_CRASHED, exchange, respond)
        finally:
            REQUEST_ID.reset(token)
            template = cast("dict[str, Any]", scope).get("path_template") or "unmatched"
            self._count(scope["method"], template, exchange.status or 499, time.perf_counter() - started)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a WebSocket: it has a request id too, and is counted when it is let in or refused."""
        exchange = Exchange(self._request_id(scope["headers"]))
        cast("dict[str, Any]", scope)["openbell"] = exchange
        started = time.perf_counter()

        async def respond(message: Message) -> None:
            if message["type"] in {"websocket.accept", "websocket.http.response.start"}:
                told = cast("dict[str, Any]", message)
                exchange.status = told.get("status", 101)
                own = (b"x-request-id", exchange.request_id.encode())
                told["headers"] = [*told.get("headers", ()), own, *exchange.headers]
                template = cast("dict[str, Any]", scope).get("path_template") or "unmatched"
                self._count("GET", template, exchange.status, time.perf_counter() - started)
            await send(message)

        token = REQUEST_ID.set(exchange.request_id)
        try:
            await self._app(scope, receive, respond)
        finally:
            REQUEST_ID.reset(token)

    def _extra(self, exchange: Exchange, scope: Scope) -> dict[str, str]:
        return {"service": self._service, "request_id": exchange.request_id, "path": scope["path"]}

    def _request_id(self, headers: Any) -> str:
        for name, value in headers:
            if name == b"x-request-id":
                if _SANE_REQUEST_ID.fullmatch(value):
                    return cast("bytes", value).decode()
                break
        return f"{self._process}.{next(self._ids):x}"  # unique like a uuid of its own, at a tenth of the cost

    async def _refuse(self, failure: Failure, exchange: Exchange, respond: Send) -> None:
        status, headers, body = self._answers.plain(failure, exchange.request_id)
        await respond({"type": "http.response.start", "status": status, "headers": headers})
        await respond({"type": "http.response.body", "body": body, "more_body": False})

    def _count(self, method: str, route: str, status: int, seconds: float) -> None:
        if method not in _METHODS:
            method = "OTHER"
        counter = self._counters.get((method, route, status))
        if counter is None:
            counter = REQUESTS.labels(self._service, method, route, str(status))
            self._counters[method, route, status] = counter
        histogram = self._histograms.get((method, route))
        if histogram is None:
            histogram = DURATION.labels(self._service, method, route)
            self._histograms[method, route] = histogram
        counter.inc()
        histogram.observe(seconds)

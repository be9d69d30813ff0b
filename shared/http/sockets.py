"""WebSockets: refusing one before it is accepted, in the form of every error; uvicorn's protocol with an end to it.

What would surprise you: a refusal before the acceptance is an HTTP answer (ASGI's "WebSocket Denial Response"); after
it there is a close code only.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, cast

from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from shared.clock import Clock
from shared.http.errors import failure_of

_log = logging.getLogger(__name__)

CUT_S: Final = 5.0


async def refuse(scope: object, send: Callable[[Any], Any], error: Exception, now: datetime) -> None:
    """Answer the request for a socket with an error."""
    failure = failure_of(error)
    body = failure.body(cast("dict[str, Any]", scope)["openbell"].request_id, now)
    headers = [(key.encode(), value.encode()) for key, value in failure.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def refusals(clock: Clock) -> Callable[[ASGIApp], ASGIApp]:
    """Return the middleware that refuses the sockets that the gate does not let in."""

    def around(app: ASGIApp) -> ASGIApp:
        async def admit(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "websocket":
                await app(scope, receive, send)
                return
            try:
                await app(scope, receive, send)
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asks gets an answer
                failure = failure_of(error)
                if failure.status >= 500:  # noqa: PLR2004 - HTTP: our fault
                    _log.exception("socket_failed", extra={"path": scope["path"]})
                await refuse(scope, cast("Callable[[Any], Any]", send), error, clock())

        return admit

    return around


class Sockets(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which waits for ever for a peer that takes nothing: to tell it that it is too slow, too."""

    async def send(self, message: Any) -> None:
        """Send; the close goes behind whatever waits to be taken."""
        if message["type"] == "websocket.close":
            self.writable.set()
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # refused, which uvicorn takes for an omission

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Give the peer a while to take the rest; then cut the connection."""
        super().on_task_complete(task)
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.close_timeout + CUT_S, self.transport.abort)

"""The socket that tells users what happens as it happens, and tickets for those who cannot send a header."""

from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from litestar import WebSocket, post, websocket
from litestar.types import ControllerRouterHandler

from services.api.gate import session_of
from services.api.realtime import Realtime
from services.api.routes.common import HttpRequest
from services.api.tickets import Tickets
from shared.clock import Clock
from shared.errors import Invalid, OpenbellError
from shared.http import Caller, Who
from shared.http.sockets import refuse

_MOST: Final = 2**63 - 1


class TicketView(msgspec.Struct, frozen=True):
    """A ticket: it opens one socket, until `expires_at`, at /realtime?ticket=..."""

    ticket: str
    expires_at: datetime


def realtime_routes(realtime: Realtime, tickets: Tickets, clock: Clock) -> list[ControllerRouterHandler]:
    """Return the routes."""

    @post("/realtime/tickets", caller=Caller.USER, status_code=201, tags=["realtime"])
    async def add_ticket(request: HttpRequest, identity: Who) -> TicketView:
        """Get a ticket that opens one WebSocket at /realtime, for a browser, which can send no header."""
        del identity
        return TicketView(*await tickets.issue(session_of(request.scope)))

    @websocket("/realtime", caller=Caller.USER)
    async def follow(socket: WebSocket[Any, Any, Any]) -> None:
        """Send the caller's alerts, notices and outcomes of deliveries as they come, `since` a cursor."""
        try:
            await realtime.serve(socket, session_of(socket.scope), _since(socket.scope["query_string"]))
        except OpenbellError as error:
            await refuse(socket.scope, socket.send, error, clock())

    return [add_ticket, follow]


def _since(query: bytes) -> int | None:
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("since")
    if found is None:
        return None
    digits = found[0] if len(found) == 1 and found[0].isascii() and found[0].isdigit() else ""
    if not 0 < len(digits) <= len(str(_MOST)) or int(digits) > _MOST:
        raise Invalid("this is not a cursor", problems=[{"path": "since", "message": "not a cursor that was sent"}])
    return int(digits)

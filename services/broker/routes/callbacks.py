"""What venues call."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from services.broker.domain.callbacks import Signature
from services.broker.service.callbacks import Callbacks
from shared.errors import TooLarge
from shared.http import Caller, header

MAX_BYTES: Final = 100_000


def handlers(callbacks: Callbacks) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/broker/callbacks/{venue:str}", caller=Caller.PROVIDER, status_code=200)
    async def venue_callback(request: Request[Any, Any, Any], venue: FromPath[str]) -> Response[bytes]:
        """Take a venue's callback: 200 when it is kept, the first time and each time after."""
        callbacks.knows(venue)
        body = bytearray()
        async for chunk in request.stream():  # as it came: it is signed, and a NUL is the venue's to send
            body += chunk
            if len(body) > MAX_BYTES:
                raise TooLarge(f"a callback has at most {MAX_BYTES} bytes")
        scope = request.scope
        signature = Signature(
            header(scope, b"webhook-id"), header(scope, b"webhook-timestamp"), header(scope, b"webhook-signature")
        )
        new = await callbacks.take(venue, bytes(body), signature)
        return Response(b'{"new":true}' if new else b'{"new":false}', media_type="application/json")

    return [venue_callback]

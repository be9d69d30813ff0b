"""What Stripe calls."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from services.payment.service.intake import Intake
from shared.errors import TooLarge
from shared.http import Caller, header

MAX_BYTES: Final = 1_000_000


def handlers(intake: Intake) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/pay/webhooks/stripe", caller=Caller.PROVIDER, status_code=200)
    async def stripe_webhook(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Take one webhook of Stripe's: 200 when it is kept, the first time and each time after."""
        body = bytearray()
        async for chunk in request.stream():  # as it came: request.body() would refuse a NUL, which is Stripe's to send
            body += chunk
            if len(body) > MAX_BYTES:
                raise TooLarge(f"a webhook has at most {MAX_BYTES} bytes")
        new = await intake.take(bytes(body), header(request.scope, b"stripe-signature"))
        return Response(b'{"new":true}' if new else b'{"new":false}', media_type="application/json")

    return [stripe_webhook]

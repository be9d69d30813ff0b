"""What Stripe calls."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import Receive, Scope

from services.payment.service.intake import Intake
from shared.http import Caller, body_of, header

MAX_BYTES: Final = 1_000_000


def handlers(intake: Intake) -> list[HTTPRouteHandler]:
    """Return the routes."""

    async def quick(scope: Scope, receive: Receive) -> bytes:
        body = await body_of(
            receive, MAX_BYTES
        )  # as it came: Request.body() would refuse a NUL, which is Stripe's to send
        new = await intake.take(body, header(scope, b"stripe-signature"))
        return b'{"new":true}' if new else b'{"new":false}'

    @post("/pay/webhooks/stripe", caller=Caller.PROVIDER, quick=quick, status_code=200)
    async def stripe_webhook(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Take one webhook of Stripe's: 200 when it is kept, the first time and each time after."""
        return Response(await quick(request.scope, request.receive), media_type="application/json")

    return [stripe_webhook]

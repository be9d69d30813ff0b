"""Routes whose paths belong to other services."""

from collections.abc import Iterable

from litestar import Response, route
from litestar.handlers import HTTPRouteHandler

from services.api.forwarding import Forwarder, Rule, safe_path
from services.api.ports import Answer, Outgoing
from services.api.routes.common import HttpRequest
from shared.http import Caller, exchange_of


def forward_routes(forwarder: Forwarder, rules: Iterable[Rule]) -> list[HTTPRouteHandler]:
    """Return one handler for each rule."""
    return [_forward(forwarder, rule) for rule in rules]


def _forward(forwarder: Forwarder, rule: Rule) -> HTTPRouteHandler:
    @route(
        [rule.prefix, f"{rule.prefix}/{{rest:path}}"],
        http_method=list(rule.methods),  # pyright: ignore[reportArgumentType]
        caller=rule.caller,
        plan=rule.plan,
        include_in_schema=False,
        status_code=200,
        name=f"forward {rule.prefix}",
    )
    async def forward(request: HttpRequest) -> Response[bytes]:
        outgoing = Outgoing(
            request.method,
            safe_path(request.scope["path"]),
            request.scope["query_string"],
            request.scope["headers"],
            await _body(request, rule),
        )
        answer = await forwarder.send(
            rule.service,
            outgoing,
            identity=request.scope["user"],
            request_id=exchange_of(request.scope).request_id,
            stale_s=rule.stale_s,
        )
        return response_of(request, answer)

    return forward


async def _body(request: HttpRequest, rule: Rule) -> bytes:
    """Return the body; a provider's as it came, for it is signed, and a NUL in it is the provider's to send."""
    if rule.caller is Caller.PROVIDER:
        return b"".join([chunk async for chunk in request.stream()])  # raises beyond the app's MAX_BODY_BYTES
    return await request.body()


def response_of(request: HttpRequest, answer: Answer) -> Response[bytes]:
    """Return a service's answer as ours. Repeated headers stay repeated."""
    media_type = "application/json"
    for name, value in answer.headers:
        if name == b"content-type":
            media_type = value.decode("latin-1")
        else:
            exchange_of(request.scope).headers.append((name, value))
    return Response(answer.body, status_code=answer.status, media_type=media_type)

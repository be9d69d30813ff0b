"""Which kind of caller each route takes. A route says so in its decorator, or the app is not built.

    @get("/leaderboard", caller=Caller.USER)
    async def leaderboard(identity: Who) -> ...

A handler with a parameter `identity: Who` receives the caller. PROVIDER and LINK routes check a signature over
bytes that only they understand: the handler itself does it, first thing. OPERATOR routes ask for no credential: they
answer connections from the networks of those who run this.

What would surprise you: the check is a middleware, not a Litestar guard, because Litestar copies the handler for
each guard of each request, which costs more than the check.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, cast

from litestar import Litestar
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from shared.errors import Forbidden, Invalid, TooLarge, Unauthenticated
from shared.identity import HEADER, Identity, Verifier


class Caller(StrEnum):
    """Who may call a route."""

    PUBLIC = "public"
    USER = "user or key"
    ADMIN = "admin"
    PROVIDER = "provider signature"
    LINK = "signed link"
    OPERATOR = "operator network"


Gate = Callable[[Scope, Caller], Awaitable[Identity | None]]
"""Lets a request in, or raises. Returns who calls where the kind of caller is a person or a key."""

Who = NamedDependency[Identity]
"""The type of a handler's parameter `identity`: the caller that was let in."""

Quick = Callable[[Scope, Receive], Awaitable[bytes]]
"""Answers 200 with JSON from the bare request: the scope's "user" is who calls, "path_params" are what the path says.
A route that names one with `quick=` is answered before Litestar builds a request and a response, which is half the cost
of a point read; the decorated function then stands for its documentation."""

NEEDS_IDENTITY: Final = frozenset({Caller.USER, Caller.ADMIN})

_IDENTITY_HEADER: Final = HEADER.encode()
_PASSED_ON: Final = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"})
_JSON: Final = ((b"content-type", b"application/json"),)


class Operators:
    """Those who run Openbell: who connects from one of `networks`, and for nobody else.

    A request that a proxy passed on is a stranger's, wherever the proxy runs.
    """

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._networks = networks

    def sent(self, scope: Scope) -> bool:
        """Whether an operator sent this request."""
        client = scope.get("client")
        if client is None or any(name in _PASSED_ON for name, _ in scope["headers"]):
            return False
        try:
            address = ip_address(client[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)


class UndeclaredRoute(TypeError):
    """Every route states its kind of caller: add `caller=Caller....` to its decorator."""


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header, by its lower-case name; None when it is absent or sent twice (a smuggling trick)."""
    found = [value for key, value in scope["headers"] if key == name]
    return found[0].decode("latin-1") if len(found) == 1 else None


async def body_of(receive: Receive, at_most: int) -> bytes:
    """Return a request's body, byte for byte. Raises TooLarge, and Invalid when the caller left before its end."""
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Invalid("the request ended before its body did")
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > at_most:
            raise TooLarge(f"a body here has at most {at_most} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


def identity_gate(verifier: Verifier) -> Gate:
    """Return the gate of a service behind the gateway: it believes the signed identity and nothing else."""

    async def gate(scope: Scope, caller: Caller) -> Identity | None:
        if caller not in NEEDS_IDENTITY:
            return None
        token = header(scope, _IDENTITY_HEADER)
        if token is None:
            raise Unauthenticated("this service answers the gateway only: the request carries no signed identity")
        return verifier.verify(token)

    return gate


def admission(gate: Gate, operators: Operators) -> Callable[[ASGIApp], ASGIApp]:
    """Return the middleware that opens the gate for the route's kind of caller."""

    def around(app: ASGIApp) -> ASGIApp:
        async def admit(scope: Scope, receive: Receive, send: Send) -> None:
            handler = cast("BaseRouteHandler", scope["route_handler"])
            caller: Caller = handler.opt.get("caller", Caller.PUBLIC)  # only OPTIONS, which says Allow, has none
            identity = await gate(scope, caller)
            if caller in NEEDS_IDENTITY:
                if identity is None:
                    raise Unauthenticated
                if caller is Caller.ADMIN and not identity.is_admin:
                    raise Forbidden("this is for administrators")
            elif caller is Caller.OPERATOR and not operators.sent(scope):
                raise Forbidden("this is for callers from OPENBELL_OPERATOR_NETWORKS, without a proxy between")
            scope["user"] = identity
            quick: Quick | None = handler.opt.get("quick")
            if quick is None:
                await app(scope, receive, send)
                return
            body = await quick(scope, receive)
            length = str(len(body)).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, (b"content-length", length)]})
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return admit

    return around


async def current_identity(scope: Scope) -> Identity:
    """Return the caller that the gate let in."""
    identity = scope.get("user")
    if not isinstance(identity, Identity):
        raise Unauthenticated
    return identity


def routes(app: Litestar) -> Iterator[tuple[str, str, BaseRouteHandler]]:
    """Yield (method, path template, handler) of every route, without the automatic OPTIONS."""
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            yield "*", route.path_format, cast("Any", route).route_handler
            continue
        for handler in route.route_handlers:
            for method in sorted(str(name) for name in handler.http_methods if name != "OPTIONS"):
                yield method, route.path_format, handler


def require_callers(app: Litestar) -> None:
    """Raise UndeclaredRoute for a route without a kind of caller."""
    for method, path, handler in routes(app):
        if not isinstance(handler.opt.get("caller"), Caller):
            raise UndeclaredRoute(f"{method} {path} does not state its kind of caller: add caller=Caller.... to it")

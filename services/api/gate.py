"""Lets requests into the gateway: who calls, and how often they may.

A route may add `limit="signup"` to its decorator; then callers are limited by their address under that policy. Routes
for users and administrators are limited by the user. Wrong credentials count against the address they come from. A
route may add `plan="pro"`: callers need that entitlement, where plans are required at all.
"""

from collections.abc import Coroutine, Mapping
from typing import Any, Final, cast
from urllib.parse import parse_qs

from litestar.types import Scope

from services.api.domain import caller_address
from services.api.limits import Limiter, Policy
from services.api.principals import Principals, Session
from services.api.service.plans import Plans
from services.api.tickets import Tickets
from shared.errors import RateLimited, Unauthenticated
from shared.http import Caller, exchange_of
from shared.identity import Identity

USER: Final = "user"
SIGNUP: Final = "signup"
FAILURES: Final = "failures"

_SESSION: Final = "openbell.session"


class Gate:
    """The gateway's gate, see shared.http.callers."""

    def __init__(
        self,
        principals: Principals,
        limiter: Limiter,
        policies: Mapping[str, Policy],
        trusted_proxies: int,
        *,
        plans: Plans | None = None,
        tickets: Tickets | None = None,
    ) -> None:
        self._principals = principals
        self._limiter = limiter
        self._policies = policies
        self._user_policy = policies[USER]
        self._failures = policies[FAILURES]
        self._trusted_proxies = trusted_proxies
        self._plans = plans
        self._tickets = tickets

    async def __call__(self, scope: Scope, caller: Caller) -> Identity | None:
        """Let the request in; raises Unauthenticated, RateLimited or PlanRequired."""
        options = cast("Any", scope["route_handler"]).opt
        limit = options.get("limit")
        if limit is not None:
            await self._spend(scope, self._policies[limit], self.address(scope))
        if caller is not Caller.USER and caller is not Caller.ADMIN:
            return None
        session = await self._identify(scope)
        identity = session.identity
        cast("dict[str, Any]", scope)[_SESSION] = session
        await self._spend(scope, self._user_policy, identity.user_id.hex)
        if self._plans is not None and (entitlement := options.get("plan")) is not None:
            await self._plans.check(identity, entitlement)
        return identity

    def address(self, scope: Scope) -> str:
        """Return the address that a request is limited by."""
        client = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return caller_address(client[0] if client else None, ",".join(forwarded), self._trusted_proxies)

    async def _identify(self, scope: Scope) -> Session:
        credential, ticket = credential_of(scope), _ticket_of(scope)
        if ticket is not None and self._tickets is not None:
            if credential is not None:
                raise Unauthenticated("send one credential, not two")
            return await self._counted(scope, self._tickets.redeem(ticket))
        if credential is None:
            raise Unauthenticated
        if len(credential) > 8192:  # noqa: PLR2004 - no token of ours or of an issuer we know comes near
            raise Unauthenticated("this credential is too long")
        known = self._principals.remembered(credential)
        return known or await self._counted(scope, self._principals.identify(credential))

    async def _counted(self, scope: Scope, asked: Coroutine[Any, Any, Session]) -> Session:
        """Return the session; who guesses is not looked up any more, and a wrong guess counts."""
        address = self.address(scope)
        try:
            self._limiter.check(self._failures, address)
        except RateLimited:
            asked.close()
            raise
        try:
            return await asked
        except Unauthenticated:
            await self._limiter.spend(self._failures, address)
            raise

    async def _spend(self, scope: Scope, policy: Policy, who: str) -> None:
        headers = exchange_of(scope).headers
        headers.append((b"ratelimit-policy", policy.header))
        headers.append((b"ratelimit", await self._limiter.spend(policy, who)))


def session_of(scope: Scope) -> Session:
    """Return who calls and by what; for routes that the gate has let a user or key into."""
    return cast("dict[str, Session]", scope)[_SESSION]


def _ticket_of(scope: Scope) -> str | None:
    if scope["type"] != "websocket":
        return None
    found = parse_qs(scope["query_string"].decode("latin-1")).get("ticket")
    return found[0] if found else None


def credential_of(scope: Scope) -> str | None:
    """Return the one credential of a request; None without one. Raises Unauthenticated for two."""
    found: str | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated("the only scheme is Bearer")
            given = rest.strip()
        elif name == b"x-api-key":
            given = value.strip()
        else:
            continue
        if found is not None:
            raise Unauthenticated("send one credential, not two")
        found = given.decode("latin-1")
    return found or None

"""Lets requests into the gateway: who calls, and how often they may.

A route may add `limit="signup"` to its decorator; then callers are limited by their address under that policy. Routes
for users and administrators are limited by the user. Wrong credentials count against the address they come from. A
route may add `plan="pro"`: callers need that entitlement, where plans are required at all.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

from litestar.types import Scope

from services.api.domain import caller_address
from services.api.limits import Limiter, Policy
from services.api.principals import Principals
from services.api.service.plans import Plans
from shared.errors import Unauthenticated
from shared.http import Caller, exchange_of
from shared.identity import Identity

USER: Final = "user"
SIGNUP: Final = "signup"
FAILURES: Final = "failures"


class Gate:
    """The gateway's gate, see shared.http.callers."""

    def __init__(
        self,
        principals: Principals,
        limiter: Limiter,
        policies: Mapping[str, Policy],
        trusted_proxies: int,
        plans: Plans | None = None,
    ) -> None:
        self._principals = principals
        self._limiter = limiter
        self._policies = policies
        self._user_policy = policies[USER]
        self._failures = policies[FAILURES]
        self._trusted_proxies = trusted_proxies
        self._plans = plans

    async def __call__(self, scope: Scope, caller: Caller) -> Identity | None:
        """Let the request in; raises Unauthenticated, RateLimited or PlanRequired."""
        options = cast("Any", scope["route_handler"]).opt
        limit = options.get("limit")
        if limit is not None:
            await self._spend(scope, self._policies[limit], self.address(scope))
        if caller is not Caller.USER and caller is not Caller.ADMIN:
            return None
        identity = await self._identify(scope)
        await self._spend(scope, self._user_policy, identity.user_id.hex)
        if self._plans is not None and (entitlement := options.get("plan")) is not None:
            await self._plans.check(identity, entitlement)
        return identity

    def address(self, scope: Scope) -> str:
        """Return the address that a request is limited by."""
        client = scope.get("client")
        forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return caller_address(client[0] if client else None, ",".join(forwarded), self._trusted_proxies)

    async def _identify(self, scope: Scope) -> Identity:
        credential = credential_of(scope)
        if credential is None:
            raise Unauthenticated
        if len(credential) > 8192:  # noqa: PLR2004 - no token of ours or of an issuer we know comes near
            raise Unauthenticated("this credential is too long")
        known = self._principals.remembered(credential)
        if known is not None:
            return known
        address = self.address(scope)
        self._limiter.check(self._failures, address)  # who guesses keys is not looked up any more
        try:
            return await self._principals.identify(credential)
        except Unauthenticated:
            await self._limiter.spend(self._failures, address)
            raise

    async def _spend(self, scope: Scope, policy: Policy, who: str) -> None:
        headers = exchange_of(scope).headers
        headers.append((b"ratelimit-policy", policy.header))
        headers.append((b"ratelimit", await self._limiter.spend(policy, who)))


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

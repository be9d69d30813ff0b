"""Requests that are refused before, or outside of, what their route audits: a body of the wrong form."""

from collections.abc import Awaitable, Callable
from typing import Final

from litestar.types import Scope

from services.payment.service.audit import Actor, Audit
from shared.http import exchange_of
from shared.http.errors import failure_of
from shared.identity import Identity

_BAD_INPUT: Final = frozenset({400, 413, 415, 422})


def auditing(audit: Audit) -> Callable[[Exception, Scope], Awaitable[None]]:
    """Return the hook that tells the auditor of bad input, once; what was in it is not told."""

    async def tell(error: Exception, scope: Scope) -> None:
        failure, identity = failure_of(error), scope.get("user")
        if failure.status not in _BAD_INPUT or scope.get("method") != "POST" or not isinstance(identity, Identity):
            return
        actor = Actor(identity.user_id, exchange_of(scope).request_id)
        await audit.refused(actor, "request", error, code=failure.code, path=scope["path"])

    return tell

"""What the routes share: the circumstances of a request."""

from typing import Any

from litestar import Request

from services.api.service import By
from shared.clock import Clock, NewId
from shared.http import exchange_of
from shared.identity import Identity

HttpRequest = Request[Any, Any, Any]


def by(request: HttpRequest, identity: Identity | None, clock: Clock, new_id: NewId) -> By:
    """Return who does what this request asks."""
    actor = str(identity.user_id) if identity else "public"
    return By(actor, clock(), new_id, exchange_of(request.scope).request_id)

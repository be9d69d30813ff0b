"""What the routes share."""

from typing import Any

from litestar import Request

from services.alerts.service import Actor
from shared.http import exchange_of
from shared.identity import Identity

HttpRequest = Request[Any, Any, Any]


def actor_of(request: HttpRequest, identity: Identity) -> Actor:
    """Return who does something, in which request."""
    return Actor(str(identity.user_id), exchange_of(request.scope).request_id)

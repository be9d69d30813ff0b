"""What a user has."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from litestar import get
from litestar.handlers import HTTPRouteHandler
from pydantic import BaseModel

from services.payment.service.subscriptions import Subscriptions
from shared.contracts.payment import Provider, SubscriptionStatus
from shared.http import Caller, Who
from shared.messaging.door import Door


class Subscription(BaseModel):
    """A user's subscription: the one that is not over, else the last one."""

    id: UUID
    provider: Provider
    plan: str
    status: SubscriptionStatus
    entitlements: Sequence[str]
    entitled_until: datetime | None
    current_period_end: datetime | None
    trial_end: datetime | None
    cancel_at_period_end: bool


def handlers(subscriptions: Subscriptions, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/pay/subscription", caller=Caller.USER)
    async def subscription(identity: Who) -> Subscription:
        """Return your subscription; 404 when you never had one."""
        async with door.read() as tx:
            found: dict[str, Any] = await subscriptions.shown(tx, identity.user_id)
        return Subscription(**found)

    return [subscription]

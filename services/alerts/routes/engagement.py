"""What users do with what they are told: opened, clicked, and the figures of it."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from services.alerts.routes.channels import Token
from services.alerts.service import Engagement
from services.alerts.store.engagement import ChannelCounts, EngagementStore, TypeCounts
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Door


class Opened(msgspec.Struct, frozen=True):
    """When an alert or a notice was first opened."""

    id: UUID
    opened_at: datetime


class Acknowledged(msgspec.Struct, frozen=True):
    """When an alert or a notice was first acknowledged."""

    id: UUID
    acknowledged_at: datetime


class Stats(msgspec.Struct, frozen=True):
    """Figures over a user's alerts, and what was told in the last `days` and how much of it was opened.

    `total` to `latest_at` are over all alerts. `recent` counts the alerts and notices of the last `days`; `types` are
    "activity" for alerts and the kinds of notices; `channels` counts deliveries of both.
    """

    total: int
    unopened: int
    simulated: int
    notifications: int
    latest_at: datetime | None
    days: int
    recent: int
    open_rate: float | None
    types: dict[str, TypeCounts]
    channels: dict[str, ChannelCounts]


def handlers(engagement: Engagement, store: EngagementStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/api/alerts/{subject_id:uuid}/opened", caller=Caller.USER, status_code=200)
    async def open_any(identity: Who, subject_id: FromPath[UUID]) -> Opened:
        """Note that you opened an alert or a notice of yours. Again changes nothing."""
        user_id = identity.user_id
        return Opened(subject_id, await door.run(lambda tx: engagement.open(user_id, subject_id, tx)))

    @post("/api/alerts/{user_id:uuid}/{alert_id:uuid}/opened", caller=Caller.USER, status_code=200)
    async def open_alert(identity: Who, user_id: FromPath[UUID], alert_id: FromPath[UUID]) -> Opened:
        """Note that the user opened an alert or a notice. Again changes nothing."""
        own(identity, user_id)
        return Opened(alert_id, await door.run(lambda tx: engagement.open(user_id, alert_id, tx)))

    @post("/api/alerts/{subject_id:uuid}/acknowledged", caller=Caller.USER, status_code=200)
    async def acknowledge(identity: Who, subject_id: FromPath[UUID]) -> Acknowledged:
        """Note that you have seen to an alert or a notice of yours. Again changes nothing."""
        user_id = identity.user_id
        return Acknowledged(subject_id, await door.run(lambda tx: engagement.acknowledge(user_id, subject_id, tx)))

    @get("/api/alerts/{user_id:uuid}/stats", caller=Caller.USER)
    async def stats(
        identity: Who, user_id: FromPath[UUID], days: Annotated[int, QueryParameter(ge=1, le=366)] = 30
    ) -> Stats:
        """Return figures over the user's alerts, and over what the last `days` told by type and channel."""
        own(identity, user_id)
        since = engagement.since(days)
        async with door.read() as tx:
            counts = await store.counts(tx, user_id)
            types = await store.types(tx, user_id, since)
            channels = await store.channels(tx, user_id, since)
        recent = sum(one.total for one in types.values())
        opened = sum(one.opened for one in types.values())
        return Stats(
            total=counts["total"],
            unopened=counts["unopened"],
            simulated=counts["simulated"],
            notifications=counts["notifications"],
            latest_at=counts["latest_at"],
            days=days,
            recent=recent,
            open_rate=opened / recent if recent else None,
            types=types,
            channels=channels,
        )

    @get("/links/click", caller=Caller.LINK, status_code=303)
    async def click(token: Token) -> Response[None]:
        """Note that a link in a message was followed, and lead on to the page that shows what it is about."""
        address = await door.run(lambda tx: engagement.click(token, tx))
        headers = {"location": address, "cache-control": "no-store", "referrer-policy": "no-referrer"}
        return Response(None, status_code=303, headers=headers)

    return [open_any, open_alert, acknowledge, stats, click]

"""A user's notices: receipts, failed payments, what ends soon."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from services.alerts.domain.channels import target_id
from services.alerts.domain.states import state_of
from services.alerts.service import Engagement
from services.alerts.store.notices import NoticeStore
from shared.http import Caller, Who
from shared.http.cursors import cursor_after, parse_cursor
from shared.identity import own
from shared.messaging.door import Door


class NoticeDelivery(msgspec.Struct, frozen=True):
    """One delivery of a notice."""

    id: UUID
    channel: str
    target_id: str
    status: str
    attempts: int
    settled_at: datetime | None
    detail: str | None


class NoticeView(msgspec.Struct, frozen=True):
    """What the user was told."""

    id: UUID
    kind: str
    title: str
    lines: list[str]
    at: datetime
    opened_at: datetime | None
    clicked_at: datetime | None
    acknowledged_at: datetime | None
    deliveries: list[NoticeDelivery]


class NoticesPage(msgspec.Struct, frozen=True):
    """Some notices, newest first; `next` is the cursor of the page after."""

    notices: list[NoticeView]
    next: str | None


def handlers(engagement: Engagement, store: NoticeStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/notices", caller=Caller.USER)
    async def list_notices(
        identity: Who,
        user_id: FromPath[UUID],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        before: Annotated[str | None, QueryParameter(max_length=100)] = None,
        kind: Annotated[str | None, QueryParameter(max_length=100)] = None,
    ) -> NoticesPage:
        """Return what the user was told besides alerts, newest first, with the state of its deliveries.

        `kind` narrows it to one kind, such as `receipt`.
        """
        own(identity, user_id)
        cursor = parse_cursor(before)
        async with door.read() as tx:
            rows = await store.page(tx, user_id, limit + 1, cursor, kind=kind)
            deliveries = await store.deliveries_of(tx, [row["notice_id"] for row in rows])
        page = rows[:limit]
        more = cursor_after(page[-1]["created_at"], page[-1]["notice_id"]) if len(rows) > limit else None
        views = [
            NoticeView(
                row["notice_id"],
                row["kind"],
                row["title"],
                row["lines"],
                row["at"],
                row["opened_at"],
                row["clicked_at"],
                row["acknowledged_at"],
                [
                    NoticeDelivery(
                        one["id"],
                        one["channel"],
                        target_id(one["lane"]),
                        state_of(one["status"], one["delivered_at"]),
                        one["attempts"],
                        one["settled_at"],
                        one["last_error"],
                    )
                    for one in deliveries
                    if one["notice_id"] == row["notice_id"]
                ],
            )
            for row in page
        ]
        return NoticesPage(views, more)

    @post("/api/alerts/{user_id:uuid}/notices/{notice_id:uuid}/opened", caller=Caller.USER, status_code=204)
    async def open_notice(identity: Who, user_id: FromPath[UUID], notice_id: FromPath[UUID]) -> None:
        """Note that the user has seen a notice. Again changes nothing."""
        own(identity, user_id)
        await door.run(lambda tx: engagement.open(user_id, notice_id, tx))

    return [list_notices, open_notice]

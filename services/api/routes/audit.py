"""The audit log, for administrators."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter

from services.api.service import AuditLog
from shared.errors import Invalid
from shared.http import Caller
from shared.http.json import json_response
from shared.messaging.door import Door

MAX_PAGE: Final = 500


def audit_routes(audit: AuditLog, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/audit", caller=Caller.ADMIN, tags=["audit"])
    async def list_audit(
        actor: FromQuery[str | None] = None,
        action: FromQuery[str | None] = None,
        subject: FromQuery[str | None] = None,
        before: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=MAX_PAGE)] = 100,
    ) -> Response[bytes]:
        """List what was done, latest first. `next` of one page is `before` of the one after it."""
        place = parse_place(before) if before is not None else None
        async with door.read() as tx:
            entries = await audit.page(tx, actor=actor, action=action, subject=subject, before=place, limit=limit)
        last = entries[-1] if len(entries) == limit else None
        return json_response({"entries": entries, "next": f"{last.at.isoformat()}_{last.id}" if last else None})

    return [list_audit]


def parse_place(text: str) -> tuple[datetime, UUID]:
    """Return the place in the log that a page ended at; raises Invalid."""
    at, _, entry_id = text.replace(" ", "+").partition("_")  # a plus sign in a query that nobody encoded
    try:
        moment, place = datetime.fromisoformat(at), UUID(entry_id)
    except ValueError as error:
        raise Invalid("`before` is not a `next` of this list", problems=[{"path": "before"}]) from error
    if moment.tzinfo is None:
        raise Invalid("`before` is not a `next` of this list", problems=[{"path": "before"}])
    return moment, place

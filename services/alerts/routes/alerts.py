"""Door 2, HTTP: a user's alerts. Users reach only their own."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from services.alerts.domain.channels import target_id
from services.alerts.domain.states import state_of
from services.alerts.domain.text import SIMULATED_NOTE
from services.alerts.store.alerts import AlertsStore
from shared.contracts.symbols import PATTERN
from shared.db import Row
from shared.http import Caller, Who
from shared.http.cursors import cursor_after, parse_cursor
from shared.identity import own
from shared.messaging.door import Door


class DeliveryView(msgspec.Struct, frozen=True):
    """One delivery of an alert."""

    id: UUID
    channel: str
    target_id: str
    status: str
    attempts: int
    created_at: datetime
    settled_at: datetime | None
    next_attempt_at: datetime | None
    detail: str | None


class AlertView(msgspec.Struct, frozen=True):
    """One alert: its best few contracts, and how many there are in all."""

    id: UUID
    rule_id: UUID
    rule: str
    symbol: str
    session: str
    title: str
    simulated: bool
    note: str | None
    top_score: float
    contract_count: int
    premium_usd: str
    contracts: Any
    source: str
    delay_s: float
    as_of: datetime
    created_at: datetime
    updated_at: datetime
    opened_at: datetime | None
    clicked_at: datetime | None
    acknowledged_at: datetime | None
    notifications: int
    deliveries: list[DeliveryView]


class AlertsPage(msgspec.Struct, frozen=True):
    """Some of a user's alerts, newest first. `next` is the `before` of the next page."""

    alerts: list[AlertView]
    total: int
    unopened: int
    next: str | None


def handlers(store: AlertsStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}", caller=Caller.USER)
    async def list_alerts(  # noqa: PLR0917 - Litestar calls it by name
        identity: Who,
        user_id: FromPath[UUID],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        before: Annotated[str | None, QueryParameter(max_length=100)] = None,
        kind: Annotated[Literal["watchlist", "rule"] | None, QueryParameter(name="type")] = None,
        symbol: Annotated[str | None, QueryParameter(max_length=20, pattern=f"^(?i:{PATTERN})$")] = None,
    ) -> AlertsPage:
        """Return the user's alerts, newest first, with the state of their deliveries.

        `type` narrows them to those of the watchlist or of rules, `symbol` to one symbol.
        """
        own(identity, user_id)
        cursor = parse_cursor(before)
        async with door.read() as tx:
            rows = await store.page(tx, user_id, limit + 1, cursor, kind=kind, symbol=symbol)
            deliveries = await store.deliveries_of(tx, [row["alert_id"] for row in rows])
            counts = await store.counts(tx, user_id)
        page = rows[:limit]
        more = cursor_after(page[-1]["created_at"], page[-1]["alert_id"]) if len(rows) > limit else None
        views = [_alert(row, deliveries.get(row["alert_id"], [])) for row in page]
        return AlertsPage(views, counts["total"], counts["unopened"], more)

    return [list_alerts]


def _alert(row: Row, deliveries: list[Row]) -> AlertView:
    return AlertView(
        id=row["alert_id"],
        rule_id=row["rule_id"],
        rule=row["rule_name"],
        symbol=row["symbol"],
        session=row["session"].isoformat(),
        title=row["title"],
        simulated=row["simulated"],
        note=SIMULATED_NOTE if row["simulated"] else None,
        top_score=row["top_score"],
        contract_count=row["contract_count"],
        premium_usd=str(row["premium_usd"]),
        contracts=row["best"],
        source=row["source"],
        delay_s=row["delay_s"],
        as_of=row["as_of"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        opened_at=row["opened_at"],
        clicked_at=row["clicked_at"],
        acknowledged_at=row["acknowledged_at"],
        notifications=row["notifications"],
        deliveries=[
            DeliveryView(
                id=one["id"],
                channel=one["channel"],
                target_id=target_id(one["lane"]),
                status=state_of(one["status"], one["delivered_at"]),
                attempts=one["attempts"],
                created_at=one["created_at"],
                settled_at=one["settled_at"],
                next_attempt_at=one["due_at"] if one["status"] == "pending" else None,
                detail=one["last_error"],
            )
            for one in deliveries
        ],
    )

"""What users do with alerts and notices, which is kept apart from whether they were delivered."""

from collections import Counter, defaultdict
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from services.alerts.domain.states import state_of
from shared.db import Row, Tx

ACTIVITY: Final = "activity"
"""The type of alerts; a notice's is its kind."""

# An id is an alert's or a notice's.
_OPENED: Final = text("""
    with alert as (
        update alerts set opened_at = coalesce(opened_at, :now) where alert_id = :id and user_id = :user_id
        returning opened_at
    ), notice as (
        update notices set opened_at = coalesce(opened_at, :now) where notice_id = :id and user_id = :user_id
        returning opened_at
    )
    select opened_at from alert union all select opened_at from notice""")
_ACKNOWLEDGED: Final = text("""
    with alert as (
        update alerts set acknowledged_at = coalesce(acknowledged_at, :now), opened_at = coalesce(opened_at, :now)
        where alert_id = :id and user_id = :user_id returning acknowledged_at
    ), notice as (
        update notices set acknowledged_at = coalesce(acknowledged_at, :now), opened_at = coalesce(opened_at, :now)
        where notice_id = :id and user_id = :user_id returning acknowledged_at
    )
    select acknowledged_at from alert union all select acknowledged_at from notice""")
# A group's message has the id of its bundle. What has rung again since was not told by it.
_ACKNOWLEDGED_GROUP: Final = text("""
    with item as materialized (
        select i.* from bundles b join bundle_items i on i.bundle_id = coalesce(b.again_of, b.id)
        where b.id = :id and b.user_id = :user_id
    ), alert as materialized (
        select a.alert_id, a.session from item join alerts a using (alert_id, session)
        where a.notifications = item.ring order by a.alert_id, a.session for update of a
    ), alerted as (
        update alerts a set acknowledged_at = coalesce(a.acknowledged_at, :now), opened_at = coalesce(a.opened_at, :now)
        from alert where a.alert_id = alert.alert_id and a.session = alert.session
    )
    update notices n set acknowledged_at = coalesce(n.acknowledged_at, :now), opened_at = coalesce(n.opened_at, :now)
    from item where n.notice_id = item.notice_id""")
_CLICKED: Final = text("""
    with alert as (
        update alerts set clicked_at = coalesce(clicked_at, :now), opened_at = coalesce(opened_at, :now)
        where alert_id = :id and user_id = :user_id
    )
    update notices set clicked_at = coalesce(clicked_at, :now), opened_at = coalesce(opened_at, :now)
    where notice_id = :id and user_id = :user_id""")
_COUNTS: Final = text("""
    select count(*) as total, count(*) filter (where opened_at is null) as unopened,
        count(*) filter (where simulated) as simulated, max(updated_at) as latest_at,
        coalesce(sum(notifications), 0) as notifications
    from alerts where user_id = :user_id""")
_TYPES: Final = text(f"""
    select type, count(*) as total, count(opened_at) as opened, count(clicked_at) as clicked,
        count(acknowledged_at) as acknowledged
    from (
        select '{ACTIVITY}' as type, opened_at, clicked_at, acknowledged_at from alerts
        where user_id = :user_id and created_at >= :since
        union all
        select kind, opened_at, clicked_at, acknowledged_at from notices
        where user_id = :user_id and created_at >= :since
    ) told group by type order by type""")  # noqa: S608 - our own words
_CHANNELS: Final = text("""
    select channel, status, max(delivered_at) as delivered_at, count(*) as total, count(opened_at) as opened
    from (
        select d.channel, d.status, d.delivered_at, a.opened_at
        from deliveries d join alerts a using (alert_id, session)
        where d.user_id = :user_id and d.created_at >= :since
        union all
        select d.channel, d.status, d.delivered_at, n.opened_at
        from notice_deliveries d join notices n using (notice_id)
        where d.user_id = :user_id and d.created_at >= :since
    ) sent group by channel, status, delivered_at is null order by channel, status""")


class TypeCounts(msgspec.Struct, frozen=True):
    """How many of one type there are, and what became of them. `open_rate` is from 0 to 1."""

    total: int
    opened: int
    clicked: int
    acknowledged: int
    open_rate: float


class ChannelCounts(msgspec.Struct, frozen=True):
    """How many deliveries one channel has, by state, and how many of their alerts and notices were opened."""

    total: int
    opened: int
    open_rate: float
    states: dict[str, int]


class EngagementStore:
    """Reads and writes what users do, always inside the caller's transaction."""

    async def opened(self, tx: Tx, user_id: UUID, subject_id: UUID, now: datetime) -> datetime | None:
        """Keep when a user first opened an alert or a notice; None when it is not theirs."""
        return await tx.fetchval(_OPENED, id=subject_id, user_id=user_id, now=now)

    async def acknowledged(self, tx: Tx, user_id: UUID, subject_id: UUID, now: datetime) -> datetime | None:
        """Keep when a user first acknowledged an alert or a notice, opened by that too; None when it is not theirs.

        With a group's message goes all that it told.
        """
        at: datetime | None = await tx.fetchval(_ACKNOWLEDGED, id=subject_id, user_id=user_id, now=now)
        if at is not None:
            await tx.execute(_ACKNOWLEDGED_GROUP, id=subject_id, user_id=user_id, now=now)
        return at

    async def clicked(self, tx: Tx, user_id: UUID, subject_id: UUID, now: datetime) -> None:
        """Keep when a user first followed a link about an alert or a notice; it counts as opened too."""
        await tx.execute(_CLICKED, id=subject_id, user_id=user_id, now=now)

    async def counts(self, tx: Tx, user_id: UUID) -> Row:
        """Return the figures over all of a user's alerts."""
        row = await tx.fetchrow(_COUNTS, user_id=user_id)
        assert row is not None  # noqa: S101 - an aggregate always has a row
        return row

    async def types(self, tx: Tx, user_id: UUID, since: datetime) -> dict[str, TypeCounts]:
        """Return what was told since, by type."""
        return {
            row["type"]: TypeCounts(
                row["total"], row["opened"], row["clicked"], row["acknowledged"], row["opened"] / row["total"]
            )
            for row in await tx.fetch(_TYPES, user_id=user_id, since=since)
        }

    async def channels(self, tx: Tx, user_id: UUID, since: datetime) -> dict[str, ChannelCounts]:
        """Return the deliveries since, by channel."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in await tx.fetch(_CHANNELS, user_id=user_id, since=since):
            found[row["channel"]].append(row)
        return {channel: _channel(rows) for channel, rows in found.items()}


def _channel(rows: list[Row]) -> ChannelCounts:
    total, opened = sum(row["total"] for row in rows), sum(row["opened"] for row in rows)
    states: Counter[str] = Counter()
    for row in rows:
        states[state_of(row["status"], row["delivered_at"])] += row["total"]
    return ChannelCounts(total, opened, opened / total, dict(states))

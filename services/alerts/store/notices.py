"""Notices, and how their deliveries go, which are claimed rows (shared.work); kept as long as alerts."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.store.inhibitions import FIRING
from services.alerts.store.silences import RUNNING
from shared import retention
from shared.db import Row, Tx

_ADD: Final = text("""
    insert into notices (notice_id, user_id, kind, title, lines, at, created_at, rule_id, symbol, account_id)
    values (:notice_id, :user_id, :kind, :title, cast(:lines as text[]), :at, :now, :rule_id, :symbol,
        :account_id)""")
_KNOWN: Final = text("select notice_id from notices where notice_id = any(cast(:notices as uuid[]))")
_DELIVERY: Final = text(f"""
    select d.id, d.uncertain, d.user_id, d.channel, d.lane, d.notice_id, n.kind, n.title, n.lines, n.at,
        n.symbol, n.rule_id, d.escalated, d.because, n.acknowledged_at, p.choices, {RUNNING} as silences,
        n.account_id, p.inhibitions, {FIRING} as firing,
        (select g.sections from digests g where g.id = d.notice_id) as sections,
        c.target, c.key_id, c.wrapped, c.body, c.enabled, coalesce(p.timezone, u.timezone) as timezone, p.locale
    from notice_deliveries d join notices n using (notice_id)
    left join preferences p on p.user_id = d.user_id
    left join users u on u.user_id = d.user_id
    left join channels c on c.user_id = d.user_id and c.channel = d.channel and c.lane = d.lane
    where d.id = :id""")  # noqa: S608 - our own words
_LATELY: Final = text("""
    select created_at from notices where user_id = :user_id and kind = :kind and created_at > :since
    order by created_at desc""")
_DELIVERED: Final = text("update notice_deliveries set provider_id = :provider_id, template = :template where id = :id")
_FAIL_PENDING: Final = text("""
    update notice_deliveries set status = 'failed', last_error = :reason, settled_at = :now
    where id in (select id from notice_deliveries where status = 'pending' and user_id = :user_id
        and channel = :channel and lane = :lane order by id for update)
    returning *""")
_PAGE: Final = text("""
    select * from notices where user_id = :user_id and (cast(:kind as text) is null or kind = :kind)
      and (cast(:before_at as timestamptz) is null or (created_at, notice_id) < (:before_at, :before_id))
    order by created_at desc, notice_id desc limit :limit""")
_DELIVERIES_OF: Final = text("""
    select id, notice_id, channel, lane, status, attempts, settled_at, last_error, delivered_at from notice_deliveries
    where notice_id = any(cast(:notices as uuid[])) order by created_at, channel""")
_FORGET: Final = retention.slice_of("notices", "created_at < :before")


class NoticeStore:
    """Reads and writes notices, always inside the caller's transaction."""

    async def add(self, tx: Tx, notices: Sequence[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
        """Add the notices whose ids are new; return them."""
        first: dict[UUID, dict[str, Any]] = {}
        for notice in notices:
            first.setdefault(notice["notice_id"], notice)
        known = {row["notice_id"] for row in await tx.fetch(_KNOWN, notices=list(first))}
        new = [notice for notice_id, notice in first.items() if notice_id not in known]
        await tx.execute_many(_ADD, [{"symbol": None, "account_id": None, **notice, "now": now} for notice in new])
        return new

    async def lately(self, tx: Tx, user_id: UUID, kind: str, since: datetime) -> list[datetime]:
        """Return when a user's notices of a kind were written, newest first."""
        rows = await tx.fetch(_LATELY, user_id=user_id, kind=kind, since=since)
        return [row["created_at"] for row in rows]

    async def delivery(self, tx: Tx, delivery_id: UUID, now: datetime) -> Row | None:
        """Return what a delivery says, where it goes, and what its user wants now."""
        return await tx.fetchrow(_DELIVERY, id=delivery_id, now=now)

    async def delivered(self, tx: Tx, delivery_id: UUID, result: Mapping[str, Any]) -> None:
        """Keep the id that the other side gave (`provider_id`), and what laid the message out (`template`)."""
        await tx.execute(_DELIVERED, id=delivery_id, provider_id=result["provider_id"], template=result["template"])

    async def fail_pending(self, tx: Tx, delivery: Row, reason: str, now: datetime) -> list[Row]:
        """Fail what waits for the channel that a delivery went to; return it."""
        target = {"user_id": delivery["user_id"], "channel": delivery["channel"], "lane": delivery["lane"]}
        return await tx.fetch(_FAIL_PENDING, reason=reason, now=now, **target)

    async def page(
        self, tx: Tx, user_id: UUID, limit: int, before: tuple[datetime, UUID] | None, *, kind: str | None
    ) -> list[Row]:
        """Return a user's notices, newest first; of one kind, where that is asked."""
        at, notice_id = before or (None, None)
        return await tx.fetch(_PAGE, user_id=user_id, kind=kind, limit=limit, before_at=at, before_id=notice_id)

    async def deliveries_of(self, tx: Tx, notices: Sequence[UUID]) -> list[Row]:
        """Return the deliveries of some notices."""
        return await tx.fetch(_DELIVERIES_OF, notices=list(notices))

    async def forget(self, transaction: retention.Transaction, before: datetime) -> None:
        """Delete notices that are older, with their deliveries."""
        await retention.forget(transaction, _FORGET, before=before)

"""Escalations: claimed rows (shared.work), one for each turn of what rings, kept for a week after their end."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.routing import ACTIVITY, Ring
from services.alerts.store.deliveries import ring_of
from shared import retention
from shared.db import Row, Tx

KEEP: Final = timedelta(days=7)

_ADD: Final = text("""
    insert into escalations (id, user_id, channel, after_minutes, alert_id, session, ring, notice_id, due_at,
        created_at)
    select r.*, cast(:now as timestamptz)
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, user_id uuid, channel text, after_minutes int,
        alert_id uuid, session date, ring int, notice_id uuid, due_at timestamptz)
    on conflict (id) do nothing""")
_OPEN: Final = text(f"""
    select e.id, '{ACTIVITY}' as kind, a.symbol, a.rule_id, cast(null as uuid) as account_id
    from escalations e join alerts a on a.alert_id = e.alert_id and a.session = e.session
    where e.id = any(cast(:ids as uuid[])) and a.session = any(cast(:sessions as date[]))
      and a.notifications = e.ring and a.acknowledged_at is null
      and exists (select from deliveries d where d.alert_id = e.alert_id and d.session = e.session and d.ring = e.ring
          and d.channel = e.channel and d.status not in ('suppressed', 'digested'))
    union all
    select e.id, n.kind, n.symbol, n.rule_id, n.account_id from escalations e join notices n using (notice_id)
    where e.id = any(cast(:ids as uuid[])) and n.acknowledged_at is null
      and exists (select from notice_deliveries d where d.notice_id = e.notice_id
          and d.channel = e.channel and d.status not in ('suppressed', 'digested'))""")  # noqa: S608 - our own word
_FORGET: Final = retention.slice_of("escalations", "settled_at < :before")


class EscalationStore:
    """Reads and writes escalations, always inside the caller's transaction."""

    async def add(self, tx: Tx, rows: Sequence[dict[str, Any]], now: datetime) -> None:
        """Add escalations, those that are there left as they are."""
        if rows:
            await tx.execute(_ADD, rows=list(rows), now=now)

    async def open(self, tx: Tx, steps: Sequence[Row]) -> dict[UUID, Ring]:
        """Return what rang, by escalation: what is not acknowledged, has not rung again and was not held back."""
        sessions = sorted({step["session"] for step in steps if step["session"] is not None})
        rows = await tx.fetch(_OPEN, ids=[step["id"] for step in steps], sessions=sessions)
        return {row["id"]: ring_of(row) for row in rows}

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete what ended a week ago."""
        await retention.forget(transaction, _FORGET, before=now - KEEP)

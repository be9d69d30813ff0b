"""Who wants digests and when, and the digests, which are claimed rows (shared.work).

Planning looks at what is due alone, by an index, and never at all users.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.routing import DIGESTS
from shared import retention
from shared.db import Row, Tx

_PLANS: Final = """
    select d.*, p.timezone as own_timezone, coalesce(p.timezone, u.timezone, 'UTC') as timezone,
        coalesce(jsonb_array_length(p.caps) > 0 or p.choices @> '[{"choice": "digest"}]', false) as holds_back
    from digest_plans d
    left join users u using (user_id) left join preferences p using (user_id)"""
_PLAN: Final = text(f"{_PLANS} where user_id = :user_id for update of d")
_DUE: Final = text(
    f"{_PLANS} where d.next_due_at <= :now order by d.next_due_at, d.user_id limit :limit for update of d skip locked"
)
_READS: Final = text("""
    select coalesce(p.timezone, u.timezone, 'UTC') as timezone, coalesce(p.locale, 'en_US') as locale
    from (select cast(:user_id as uuid) as user_id) one
    left join users u using (user_id) left join preferences p using (user_id)""")
_CHOOSE: Final = text("""
    insert into digest_plans (user_id, frequency, hour, weekday, covered_until, next_due_at)
    values (:user_id, :frequency, :hour, :weekday, cast(:covered_until as timestamptz),
        cast(:next_due_at as timestamptz))
    on conflict (user_id) do update set frequency = excluded.frequency, hour = excluded.hour,
        weekday = excluded.weekday, covered_until = excluded.covered_until, next_due_at = excluded.next_due_at""")
_MOVE: Final = text("""
    update digest_plans d set covered_until = r.covered_until, next_due_at = r.next_due_at
    from jsonb_to_recordset(cast(:rows as jsonb))
        as r (user_id uuid, covered_until timestamptz, next_due_at timestamptz)
    where d.user_id = r.user_id""")
_ADD: Final = text("""
    insert into digests (id, user_id, frequency, since, until, due_at, created_at)
    select r.id, r.user_id, r.frequency, r.since, r.until, r.due_at, cast(:now as timestamptz)
    from jsonb_to_recordset(cast(:rows as jsonb))
        as r (id uuid, user_id uuid, frequency text, since timestamptz, until timestamptz, due_at timestamptz)
    on conflict (id) do nothing""")
_DIGEST: Final = text("select * from digests where id = :id for update")
_COLLECTED: Final = text("update digests set sections = cast(:sections as jsonb) where id = :id")
_SECTIONS: Final = text("select sections from digests where id = :id")
_LOCK: Final = text("""
    select n.notice_id, n.user_id, n.created_at from notices n
    where n.notice_id = any(cast(:ids as uuid[])) and n.kind = any(:digests) order by n.notice_id for update""")
_GIVE_BACK: Final = tuple(
    text(f"""
    update {table} held set digest_id = null
    from notices n
    where n.notice_id = any(cast(:ids as uuid[])) and n.user_id = held.user_id and n.notice_id = held.digest_id
      and held.created_at < n.created_at and held.created_at >= n.created_at - interval '62 days'
      and not exists (select from notice_deliveries d
        where d.notice_id = n.notice_id and d.status not in ('suppressed', 'failed'))""")  # noqa: S608 - our own words
    for table in ("deliveries", "notice_deliveries")
)
_FORGET: Final = retention.slice_of("digests", "created_at < :before")


class DigestStore:
    """Reads and writes plans and digests, always inside the caller's transaction."""

    async def plan(self, tx: Tx, user_id: UUID) -> Row | None:
        """Return a user's plan with the time zone that holds, locked; None when they never chose one."""
        return await tx.fetchrow(_PLAN, user_id=user_id)

    async def reads(self, tx: Tx, user_id: UUID) -> Row:
        """Return a user's `timezone` and `locale`, as far as they are known here."""
        row = await tx.fetchrow(_READS, user_id=user_id)
        assert row is not None  # noqa: S101 - it begins with a row
        return row

    async def choose(self, tx: Tx, **plan: Any) -> None:
        """Keep a user's plan."""
        await tx.execute(_CHOOSE, **plan)

    async def due(self, tx: Tx, now: datetime, limit: int) -> list[Row]:
        """Return plans that are due, locked; those that another replica holds are left out."""
        return await tx.fetch(_DUE, now=now, limit=limit)

    async def move(self, tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
        """Keep how far users' digests reach, and when the next ones are due."""
        await tx.execute(_MOVE, rows=list(rows))

    async def add(self, tx: Tx, rows: Sequence[dict[str, Any]], now: datetime) -> None:
        """Add digests to be made; one that is there stays as it is."""
        if rows:
            await tx.execute(_ADD, rows=list(rows), now=now)

    async def digest(self, tx: Tx, digest_id: UUID) -> Row | None:
        """Return a digest, locked."""
        return await tx.fetchrow(_DIGEST, id=digest_id)

    async def collected(self, tx: Tx, digest_id: UUID, sections: list[Any]) -> None:
        """Keep what a digest says."""
        await tx.execute(_COLLECTED, id=digest_id, sections=sections)

    async def sections(self, tx: Tx, digest_id: UUID) -> list[Any]:
        """Return what a digest says."""
        return await tx.fetchval(_SECTIONS, id=digest_id) or []

    async def give_back(self, tx: Tx, notice_ids: Sequence[UUID]) -> None:
        """Let the next digest tell again what was held back for these, of those that are digests and reached nobody."""
        digests = await tx.fetch(_LOCK, ids=list(notice_ids), digests=sorted(DIGESTS))
        for statement in _GIVE_BACK if digests else ():
            await tx.execute(statement, ids=[row["notice_id"] for row in digests])

    async def forget(self, transaction: retention.Transaction, before: datetime) -> None:
        """Delete older digests."""
        await retention.forget(transaction, _FORGET, before=before)

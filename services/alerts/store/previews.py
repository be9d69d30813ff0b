"""What a user was told lately, to show what messages look like."""

from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

_ALERT: Final = text("""
    select a.*, a.alert_id as id, coalesce(p.timezone, u.timezone) as timezone, p.locale
    from alerts a
    left join preferences p on p.user_id = a.user_id
    left join users u on u.user_id = a.user_id
    where a.user_id = :user_id and (cast(:alert_id as uuid) is null or a.alert_id = :alert_id)
    order by a.created_at desc, a.alert_id desc limit 1""")
_NOTICE: Final = text("""
    select n.*, n.notice_id as id, false as uncertain, coalesce(p.timezone, u.timezone) as timezone, p.locale,
        (select g.sections from digests g where g.id = n.notice_id) as sections
    from notices n
    left join preferences p on p.user_id = n.user_id
    left join users u on u.user_id = n.user_id
    where n.user_id = :user_id and (cast(:notice_id as uuid) is null or n.notice_id = :notice_id)
      and (cast(:kind as text) is null or n.kind = :kind)
    order by n.created_at desc, n.notice_id desc limit 1""")


class PreviewStore:
    """Reads alerts and notices, always inside the caller's transaction."""

    async def alert(self, tx: Tx, user_id: UUID, alert_id: UUID | None) -> Row | None:
        """Return one of a user's alerts, the newest where none is named."""
        return await tx.fetchrow(_ALERT, user_id=user_id, alert_id=alert_id)

    async def notice(self, tx: Tx, user_id: UUID, notice_id: UUID | None, kind: str | None) -> Row | None:
        """Return one of a user's notices, the newest (of a kind) where none is named."""
        return await tx.fetchrow(_NOTICE, user_id=user_id, notice_id=notice_id, kind=kind)

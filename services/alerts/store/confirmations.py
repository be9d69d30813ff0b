"""Mails that ask whether an address is its user's: claimed rows (shared.work), kept for a week."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.links import Link
from services.alerts.domain.mail_events import address_hash
from shared import retention
from shared.db import Row, Tx

KEEP: Final = timedelta(days=7)

_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('alerts/confirmations', 0))")
_LATELY: Final = text("""
    select created_at from confirmations
    where created_at > :since and (user_id = :user_id or lane = :lane) order by created_at desc limit :most""")
_ADD: Final = text("""
    insert into confirmations (id, user_id, lane, due_at, created_at)
    values (:id, :user_id, :lane, cast(:now as timestamptz), :now)""")
_NEEDED: Final = text("""
    select d.id, d.user_id, d.lane, c.target from confirmations d
    join channels c on c.user_id = d.user_id and c.channel = 'email' and c.lane = d.lane
    where d.id = :id and c.confirmed_at is null""")
_NOT_SENT: Final = text("""
    update channels set reason = :reason, updated_at = :now
    where user_id = :user_id and channel = 'email' and lane = :lane and confirmed_at is null""")
_CONFIRM: Final = text("""
    update channels set confirmed_at = :now, enabled = true, reason = null, updated_at = :now
    where user_id = :user_id and channel = 'email' and lane = :lane and confirmed_at is null""")
_CONFIRMED: Final = text("""
    select exists (select from channels where user_id = :user_id and channel = 'email' and lane = :lane
        and confirmed_at is not null)""")
_SUPPRESSED: Final = text("select kind from suppressions where address_hash = :address_hash")
_FORGET: Final = retention.slice_of("confirmations", "created_at < :before and settled_at is not null")


class ConfirmationStore:
    """Reads and writes confirmations, always inside the caller's transaction."""

    async def suppressed(self, tx: Tx, address: str) -> str | None:
        """Return why an address gets no mail ("bounced", "complained", "unsubscribed"); None when it does."""
        return await tx.fetchval(_SUPPRESSED, address_hash=address_hash(address))

    async def lately(self, tx: Tx, link: Link, since: datetime, most: int) -> list[datetime]:
        """Return when the newest `most` mails to this user or this address were asked for; others wait until we end."""
        await tx.execute(_LOCK)
        rows = await tx.fetch(_LATELY, user_id=link.user_id, lane=link.lane, since=since, most=most)
        return [row["created_at"] for row in rows]

    async def add(self, tx: Tx, confirmation_id: UUID, link: Link, now: datetime) -> None:
        """Write a mail to be sent."""
        await tx.execute(_ADD, id=confirmation_id, user_id=link.user_id, lane=link.lane, now=now)

    async def needed(self, tx: Tx, confirmation_id: UUID) -> Row | None:
        """Return what a mail needs; None when the address was confirmed, changed or removed meanwhile."""
        return await tx.fetchrow(_NEEDED, id=confirmation_id)

    async def not_sent(self, tx: Tx, link: Link, reason: str, now: datetime) -> None:
        """Keep why the mail did not arrive where its user sees it."""
        await tx.execute(_NOT_SENT, user_id=link.user_id, lane=link.lane, reason=reason, now=now)

    async def confirm(self, tx: Tx, link: Link, now: datetime) -> bool:
        """Enable the channel; False when it is not unconfirmed."""
        return bool(await tx.execute(_CONFIRM, user_id=link.user_id, lane=link.lane, now=now))

    async def confirmed(self, tx: Tx, link: Link) -> bool:
        """Return whether the address is confirmed."""
        return bool(await tx.fetchval(_CONFIRMED, user_id=link.user_id, lane=link.lane))

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete what is older than `KEEP`."""
        await retention.forget(transaction, _FORGET, before=now - KEEP)

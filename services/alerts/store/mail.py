"""What became of mails, and the addresses that get none any more, of which a hash is kept."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.alerts.domain.mail_events import MailEvent, address_hash, why_lost
from shared import retention
from shared.db import Row, Tx

KEEP: Final = timedelta(days=90)

_ADD: Final = text("""
    insert into mail_events (provider, event_id, kind, address_hash, delivery_id, detail, at, received_at, lost)
    values (:provider, :event_id, :kind, :address_hash, :delivery_id, :detail, :at, :now, :lost)
    on conflict do nothing""")
_NOTED: Final = {
    (table, column): text(
        f"update {table} set {column} = coalesce({column}, :at) where id = :delivery_id"  # noqa: S608 - our own words
    )
    for table in ("deliveries", "notice_deliveries")
    for column in ("delivered_at", "opened_at", "clicked_at")
}
_HOLD: Final = tuple(
    text(f"select id from {table} where id = any(cast(:ids as uuid[])) order by id for update")  # noqa: S608 - our own
    for table in ("deliveries", "notice_deliveries")
)
_LOST: Final = text("""
    select distinct on (delivery_id) delivery_id, kind, detail from mail_events
    where delivery_id = any(cast(:ids as uuid[])) and lost order by delivery_id, received_at""")
_FAILED: Final = tuple(
    text(
        f"update {table} set status = 'failed', last_error = :detail"  # noqa: S608 - our own words
        " where id = :delivery_id and status = 'done' returning *"
    )
    for table in ("deliveries", "notice_deliveries")
)
_SUPPRESS: Final = text("""
    insert into suppressions (address_hash, kind, detail, provider, at)
    values (:address_hash, :kind, :detail, :provider, :at) on conflict do nothing""")
_DISABLE: Final = text("""
    update channels set enabled = false, reason = :reason, updated_at = :now
    where channel = 'email' and lower(target) = lower(:address)""")
_END: Final = text("""
    update channels set enabled = false, reason = :reason, updated_at = :now
    where user_id = :user_id and channel = 'email' and lane = :lane and enabled""")
_LIST: Final = text("select * from suppressions order by at desc, address_hash limit :limit")
_REMOVE: Final = text("delete from suppressions where address_hash = :address_hash")
_FORGET: Final = retention.slice_of("mail_events", "received_at < :before")


class MailStore:
    """Reads and writes mail_events and suppressions, always inside the caller's transaction."""

    async def add(self, tx: Tx, event: MailEvent, now: datetime) -> bool:
        """Keep an event; False for one that is known."""
        added = await tx.execute(
            _ADD,
            provider=event.provider,
            event_id=event.event_id,
            kind=event.kind,
            address_hash=address_hash(event.address),
            delivery_id=event.delivery_id,
            detail=event.detail,
            at=event.at,
            now=now,
            lost=event.lost,
        )
        return bool(added)

    async def hold(self, tx: Tx, deliveries: Collection[UUID]) -> None:
        """Hold deliveries until the caller's transaction ends: who settles them sees its events, or we see that end."""
        if deliveries:
            for one in _HOLD:
                await tx.execute(one, ids=list(deliveries))

    async def lost(self, tx: Tx, deliveries: Collection[UUID]) -> dict[UUID, str]:
        """Return which deliveries' mails are known not to arrive, and why; the caller holds them."""
        rows = await tx.fetch(_LOST, ids=list(deliveries)) if deliveries else []
        return {row["delivery_id"]: why_lost(row["kind"], row["detail"]) for row in rows}

    async def note(self, tx: Tx, event: MailEvent) -> None:
        """Note on the delivery when it was first delivered, opened or clicked."""
        for table in ("deliveries", "notice_deliveries"):
            await tx.execute(_NOTED[table, f"{event.kind}_at"], delivery_id=event.delivery_id, at=event.at)

    async def fail(self, tx: Tx, delivery_id: UUID, detail: str) -> list[Row]:
        """Note that a mail which was taken did not arrive; return its delivery, the first time."""
        return [row for one in _FAILED for row in await tx.fetch(one, delivery_id=delivery_id, detail=detail)]

    async def suppress(self, tx: Tx, event: MailEvent, reason: str, now: datetime) -> None:
        """Send nothing more to an address; its channels are disabled, whosever they are."""
        await tx.execute(
            _SUPPRESS,
            address_hash=address_hash(event.address),
            kind=event.kind,
            detail=event.detail,
            provider=event.provider,
            at=event.at,
        )
        await tx.execute(_DISABLE, address=event.address, reason=reason, now=now)

    async def end(self, tx: Tx, user_id: UUID, lane: str, reason: str, now: datetime) -> bool:
        """Disable one user's channel; False when it was not enabled."""
        return bool(await tx.execute(_END, user_id=user_id, lane=lane, reason=reason, now=now))

    async def suppressions(self, tx: Tx, limit: int) -> Sequence[Row]:
        """Return the newest addresses that get no mail."""
        return await tx.fetch(_LIST, limit=limit)

    async def remove(self, tx: Tx, address: str) -> bool:
        """Let an address get mail again; False when it does."""
        return bool(await tx.execute(_REMOVE, address_hash=address_hash(address)))

    async def forget(self, transaction: retention.Transaction, now: datetime) -> None:
        """Delete events that are older than `KEEP`; suppressed addresses stay."""
        await retention.forget(transaction, _FORGET, before=now - KEEP)

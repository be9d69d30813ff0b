"""Callbacks as they came."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx
from shared.retention import Transaction, forget, slice_of

MOST: Final = 200

_ADD: Final = text("""
    insert into callbacks (venue, event_id, signed_at, received_at, body, order_id, venue_order_id, open)
    values (:venue, :event_id, :signed_at, :at, :body, :order_id, :venue_order_id, false)
    on conflict do nothing""")
_LEFT_OPEN: Final = text("update callbacks set open = :open where venue = :venue and event_id = :event_id")
_OPEN: Final = text("""
    select venue, event_id, order_id, venue_order_id from callbacks
    where open and received_at > :since order by received_at limit :most for update skip locked""")
_FORGET: Final = slice_of("callbacks", "received_at < :before")


class CallbackStore:
    """Reads and writes `callbacks`."""

    async def add(
        self,
        tx: Tx,
        venue: str,
        event_id: str,
        body: bytes,
        *,
        signed_at: datetime,
        order: tuple[UUID | None, str | None],
        at: datetime,
    ) -> bool:
        """Keep one; tell whether it is new. `order` is its id with us and its id at the venue."""
        added = await tx.execute(
            _ADD,
            venue=venue,
            event_id=event_id,
            signed_at=signed_at,
            at=at,
            body=body,
            order_id=order[0],
            venue_order_id=order[1],
        )
        return bool(added)

    async def leave(self, tx: Tx, venue: str, event_id: str, *, open_: bool) -> None:
        """Note whether the order that it names is still to be found."""
        await tx.execute(_LEFT_OPEN, venue=venue, event_id=event_id, open=open_)

    async def open(self, tx: Tx, since: datetime) -> Sequence[Row]:
        """Return those since then whose order was not found, the oldest first."""
        return await tx.fetch(_OPEN, since=since, most=MOST)

    async def forget(self, transaction: Transaction, before: datetime) -> int:
        """Delete what came before then."""
        return await forget(transaction, _FORGET, before=before)

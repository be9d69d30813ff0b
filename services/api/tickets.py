"""Tickets: what a browser opens its WebSocket with, for it can set no header.

A ticket stands for the credential that asked for it, opens one socket, and is good for half a minute. So it may stand
in an address, where a key must never be: addresses end up in logs.
"""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from services.api.principals import Session
from services.api.store import feed
from shared.clock import Clock
from shared.db import Database
from shared.errors import Unauthenticated
from shared.identity import Identity

LIFETIME: Final = timedelta(seconds=30)


class Tickets:
    """Gives out tickets and takes them back, each once. Only digests are kept."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def issue(self, session: Session) -> tuple[str, datetime]:
        """Return a new ticket, and until when it is good."""
        ticket = secrets.token_urlsafe(32)
        until = self._clock() + LIFETIME
        async with self._db.read() as tx:  # one statement commits by itself
            await feed.add_ticket(
                tx,
                digest=_digest(ticket),
                user_id=session.identity.user_id,
                role=session.identity.role,
                key_id=session.key_id,
                ends_at=None if session.ends_at is None else datetime.fromtimestamp(session.ends_at, UTC),
                until=until,
            )
        return ticket, until

    async def redeem(self, ticket: str) -> Session:
        """Return what a ticket stands for; it is used up. Raises Unauthenticated."""
        async with self._db.read() as tx:
            row = await feed.redeem(tx, _digest(ticket), self._clock())
        if row is None:
            raise Unauthenticated("this ticket is not valid: each opens one socket within 30 seconds")
        ends_at: datetime | None = row["ends_at"]
        return Session(Identity(row["user_id"], row["role"]), row["key_id"], ends_at and ends_at.timestamp())


def _digest(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode()).digest()

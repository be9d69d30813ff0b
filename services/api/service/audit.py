"""The audit log: what every service says was done, by whom, kept where administrators read it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from services.api import store
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.db import Tx


class Entry(msgspec.Struct, frozen=True):
    """One line of the log."""

    id: UUID
    service: str
    actor: str
    action: str
    subject: str
    at: datetime
    request_id: str | None
    details: dict[str, Any]


class AuditLog:
    """Use cases on the audit log."""

    async def record(self, events: Sequence[ActionAudited], tx: Tx) -> Sequence[Event]:
        """Append what was done; an event's id is its line's."""
        rows = [
            {
                "id": event.id,
                "service": event.service,
                "actor": event.actor,
                "action": event.action,
                "subject": event.subject,
                "at": event.at,
                "request_id": event.request_id,
                "details": event.details,
            }
            for event in events
        ]
        await store.add_audit(tx, rows)
        return ()

    async def page(
        self,
        tx: Tx,
        *,
        actor: str | None,
        action: str | None,
        subject: str | None,
        before: tuple[datetime, UUID] | None,
        limit: int,
    ) -> list[Entry]:
        """Return one page, latest first."""
        rows = await store.audited(tx, actor=actor, action=action, subject=subject, before=before, limit=limit)
        return [Entry(*row.values()) for row in rows]

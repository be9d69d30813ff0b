"""Who did what, for the auditor."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.contracts.api import ActionAudited


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, in which request."""

    name: str
    request_id: str | None = None


def audited(actor: Actor, action: str, subject: str, *, id: UUID, at: datetime, **details: str) -> ActionAudited:  # noqa: A002 - the event's field
    """Return the event that tells of an action; no detail may hold a secret."""
    return ActionAudited(
        id=id,
        time=at,
        service="alerts",
        actor=actor.name,
        request_id=actor.request_id,
        action=action,
        subject=subject,
        at=at,
        details=details,
    )

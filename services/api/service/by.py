"""Who does something, when, in answer to which request; and the audit event that says so."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.clock import NewId
from shared.contracts.api import ActionAudited


@dataclass(frozen=True, slots=True)
class By:
    """The circumstances of a use case. `actor` is a user id, "public" or "system"."""

    actor: str
    now: datetime
    new_id: NewId
    request_id: str | None = None

    def audit(self, action: str, subject: str, **details: Any) -> ActionAudited:
        """Return the event for the audit log. `details` never holds a secret."""
        return ActionAudited(
            id=self.new_id(),
            time=self.now,
            service="api",
            actor=self.actor,
            action=action,
            subject=subject,
            at=self.now,
            request_id=self.request_id,
            details=details,
        )

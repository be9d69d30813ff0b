"""The states of a delivery as people and events see them, whatever its row's work calls them. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from shared.contracts.alerts import DeliveryStatus

State = Literal["queued"] | DeliveryStatus

_STATES: Final[Mapping[str, State]] = {
    "pending": "queued",
    "claimed": "queued",
    "started": "queued",
    "done": "sent",
    "failed": "failed",
    "unknown": "unknown",
    "suppressed": "suppressed",
    "digested": "digested",
}
_ENDS: Final[Mapping[str, DeliveryStatus]] = {
    "done": "sent",
    "failed": "failed",
    "unknown": "unknown",
    "suppressed": "suppressed",
    "digested": "digested",
}


def state_of(status: str, delivered_at: datetime | None = None) -> State:
    """Return the state that a row's status stands for; `delivered_at` is when its arrival was confirmed, if it was."""
    return "delivered" if status == "done" and delivered_at is not None else _STATES[status]


def end_of(status: str) -> DeliveryStatus:
    """Return the state that a settled row has reached."""
    return _ENDS[status]

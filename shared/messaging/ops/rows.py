"""Rows of `failed_jobs`: how they are chosen when a person acts on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

Status = Literal["waiting", "held", "dead", "resolved", "discarded"]
OPEN: Final[tuple[Status, ...]] = ("waiting", "held", "dead")

BRIEF: Final = """
    id, consumer, topic, partition, record_offset, key, job_type, event_id, status, attempts, due_at, error_code,
    error_message, fingerprint, failed_at, updated_at, resolved_by, resolution
"""
BRIEF_NAMES: Final = tuple(name.strip() for name in BRIEF.split(","))
CHOSEN: Final = """
    status = any(cast(:statuses as text[]))
    and (cast(:consumer as text) is null or consumer = :consumer)
    and (cast(:fingerprint as text) is null or fingerprint = :fingerprint)
    and (cast(:code as text) is null or error_code = :code)
    and (cast(:since as timestamptz) is null or failed_at >= :since)
    and (cast(:until as timestamptz) is null or failed_at < :until)
"""
"""The condition of a `Filter`; its parameters are `Filter.params()`."""


@dataclass(frozen=True, slots=True)
class By:
    """Who acts, and in which request."""

    actor: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are meant. Times are of the first failure: `since` included, `until` not."""

    statuses: Sequence[str] = OPEN
    consumer: str | None = None
    fingerprint: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of `CHOSEN`."""
        return {
            "statuses": list(self.statuses),
            "consumer": self.consumer,
            "fingerprint": self.fingerprint,
            "code": self.code,
            "since": self.since,
            "until": self.until,
        }

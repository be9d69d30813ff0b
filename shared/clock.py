"""Time and ids come in as arguments; this is where they come from.

A `Clock` is any function that returns the current time, aware and in UTC.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import uuid_utils

Clock = Callable[[], datetime]
NewId = Callable[[], uuid.UUID]


def utc_now() -> datetime:
    """Return the wall clock, aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> uuid.UUID:
    """Return a time-ordered id (UUID version 7, RFC 9562) for a new fact."""
    return uuid.UUID(int=uuid_utils.uuid7().int)

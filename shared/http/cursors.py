"""Places in a list that is newest first: what `next` of a page says, and `before` of the next one takes."""

import re
from datetime import datetime
from typing import Final
from uuid import UUID

from shared.errors import Invalid

_CURSOR: Final = re.compile(r"(?P<at>[0-9T:.+Z-]{20,40})~(?P<id>[0-9a-f-]{36})", re.ASCII)


def cursor_after(at: datetime, row_id: UUID) -> str:
    """Return the place after a row."""
    return f"{at.isoformat()}~{row_id}"


def parse_cursor(before: str | None) -> tuple[datetime, UUID] | None:
    """Return the place; None for the start of the list. Raises Invalid."""
    if before is None:
        return None
    match = _CURSOR.fullmatch(before.replace(" ", "+"))  # a plus sign that was not escaped arrives as a space
    try:
        if match is not None and (at := datetime.fromisoformat(match["at"])).tzinfo is not None:
            return at, UUID(match["id"])
    except ValueError:
        pass
    raise Invalid("`before` is not a cursor: take it from `next` of the page before")

"""A user's feed: their alerts, notices and what became of deliveries, for their sockets to read.

What would surprise you: live or resumed, a socket reads rows after a position. What tells it of new ones says only
that there are some, so nothing can fall between the past and the present, and nothing comes twice.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from services.api.coalesce import Coalescer
from services.api.store import feed
from shared.clock import Clock
from shared.contracts.alerts import (
    AlertRaised,
    AlertUpdated,
    DeliverySettled,
    DeliverySettledV1,
    NoticeDeliverySettled,
    NoticeRaised,
)
from shared.contracts.base import Event
from shared.db import Database, Row, Tx

Told = AlertRaised | AlertUpdated | NoticeRaised | DeliverySettled | DeliverySettledV1 | NoticeDeliverySettled
PAGE: Final = 50
"""Rows read at once for a socket: all that is ever held for it."""


class Message(msgspec.Struct, frozen=True):
    """What a socket is sent of one event. `cursor` is where to resume after it."""

    type: str
    id: UUID
    cursor: str
    at: str
    data: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Start:
    """Where a socket begins, and whether something before that is kept no more."""

    position: int
    gap: bool


class Feed:
    """Writes feeds as their events come, and reads them for sockets, many at once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._heads = Coalescer(self._read_heads)
        self._rows = Coalescer(self._read_rows)

    async def record(self, events: Sequence[Told], tx: Tx) -> Sequence[Event]:
        """Append events to their users' feeds."""
        rows = [
            {
                "user": event.user_id,
                "id": event.id,
                "type": event.type,
                "at": event.time,
                "body": event.model_dump_json(exclude={"user_id"}),
            }
            for event in events
        ]
        await feed.add(tx, rows, self._clock())
        return ()

    async def start(self, user_id: UUID, since: int | None) -> Start:
        """Return where a socket begins: now, or after `since`. A position that was never given out begins now."""
        row = await self._heads.get(user_id)
        head, first = (row["head"], row["first"]) if row is not None else (0, None)
        if since is None or since == head:
            return Start(head, gap=False)
        if since > head or first is None:
            return Start(head, gap=True)
        return Start(max(since, first - 1), gap=since + 1 < first)

    async def after(self, user_id: UUID, position: int) -> Sequence[tuple[int, bytes]]:
        """Return the next positions of a feed with their messages as JSON, PAGE at most."""
        return await self._rows.get((user_id, position)) or ()

    async def _read_heads(self, users: list[UUID]) -> Mapping[UUID, Row]:
        async with self._db.read() as tx:
            return {row["user_id"]: row for row in await feed.heads(tx, users)}

    async def _read_rows(self, places: list[tuple[UUID, int]]) -> Mapping[tuple[UUID, int], list[tuple[int, bytes]]]:
        async with self._db.read() as tx:
            rows = await feed.after(tx, places, PAGE)
        found: dict[tuple[UUID, int], list[tuple[int, bytes]]] = defaultdict(list)
        for row in rows:
            found[row["user_id"], row["since"]].append((row["position"], _message(row)))
        return found


def _message(row: Row) -> bytes:
    at = row["at"].isoformat()
    body = msgspec.Raw(row["body"].encode())
    return msgspec.json.encode(Message(row["type"], row["id"], str(row["position"]), at, body))

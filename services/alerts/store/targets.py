"""Targets of channels as they are kept: sealed, or readable still; nothing here can open them.

What would surprise you: a target that is not empty counts, whatever else its row holds, for code from before sealing
wrote it last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

SLICE: Final = 500

_SEALING: Final = text("select * from sealing")
_LOCK_SEALING: Final = text("select * from sealing for update")
_KEEP_LANE_KEY: Final = text("update sealing set key_id = :key_id, wrapped = :wrapped, body = :body")
_READABLE: Final = text("""
    select user_id, channel, lane, target from channels where target <> '' and channel <> 'email'
    order by user_id, channel, lane limit :most for no key update skip locked""")
_SEAL: Final = text("""
    update channels set target = '', key_id = :key_id, wrapped = :wrapped, body = :body, shown = :shown
    where user_id = :user_id and channel = :channel and lane = :lane""")
_OLD: Final = text("""
    select user_id, channel, lane, key_id, wrapped, body from channels
    where target = '' and key_id <> :current and (user_id, channel, lane) > (:user_id, :channel, :lane)
    order by user_id, channel, lane limit :most for no key update""")
_REWRAP: Final = text("""
    update channels set key_id = :key_id, wrapped = :wrapped
    where user_id = :user_id and channel = :channel and lane = :lane""")
_KEYS: Final = text("""
    select key_id, count(*) as used from (
        select key_id from channels where target = ''
        union all
        select key_id from sealing where key_id is not null) kept
    group by key_id order by key_id""")
_COUNT_READABLE: Final = text("select count(*) from channels where target <> '' and channel <> 'email'")


@dataclass(frozen=True, slots=True)
class Kept:
    """A target as its row has it: readable; or empty, sealed, with what may be shown of it."""

    target: str = field(repr=False)
    key_id: str | None = None
    wrapped: bytes | None = None
    body: bytes | None = None
    shown: str | None = None

    def params(self) -> dict[str, Any]:
        """Return what the statements take."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Place:
    """Which target: the key of `channels`. `FIRST` is before all others."""

    user_id: UUID
    channel: str
    lane: str

    @classmethod
    def of(cls, row: Row) -> "Place":
        """Return the place of a row that names it."""
        return cls(row["user_id"], row["channel"], row["lane"])

    def params(self) -> dict[str, Any]:
        """Return what the statements take."""
        return {"user_id": self.user_id, "channel": self.channel, "lane": self.lane}

    def __str__(self) -> str:
        return f"{self.user_id}/{self.lane}"


FIRST: Final = Place(UUID(int=0), "", "")


class TargetStore:
    """Reads and writes sealed targets, always inside the caller's transaction."""

    def __init__(self, slice_rows: int = SLICE) -> None:
        self.slice_rows = slice_rows

    async def sealing(self, tx: Tx, *, lock: bool = False) -> Row:
        """Return the row that says when sealing begins; locked, others wait with theirs until we end."""
        row = await tx.fetchrow(_LOCK_SEALING if lock else _SEALING)
        assert row is not None  # noqa: S101 - the migration wrote it
        return row

    async def keep_lane_key(self, tx: Tx, *, key_id: str, wrapped: bytes, body: bytes) -> None:
        """Keep the key of lanes, sealed."""
        await tx.execute(_KEEP_LANE_KEY, key_id=key_id, wrapped=wrapped, body=body)

    async def readable(self, tx: Tx) -> Sequence[Row]:
        """Return a slice of what lies readable and should not, locked; what others hold is left to them."""
        return await tx.fetch(_READABLE, most=self.slice_rows)

    async def seal(self, tx: Tx, kept: Sequence[tuple[Place, Kept]]) -> None:
        """Write sealed targets in the place of readable ones."""
        await tx.execute_many(_SEAL, [place.params() | one.params() for place, one in kept])

    async def under_old_keys(self, tx: Tx, current: str, after: Place) -> Sequence[Row]:
        """Return a slice of what is not under the current key, by its place, locked."""
        return await tx.fetch(_OLD, current=current, most=self.slice_rows, **after.params())

    async def rewrap(self, tx: Tx, wrapped: Sequence[Mapping[str, object]]) -> None:
        """Write wrapped data keys: the place's fields, key_id, wrapped."""
        await tx.execute_many(_REWRAP, wrapped)

    async def keys(self, tx: Tx) -> Mapping[str, int]:
        """Return how many targets lie under each key, the key of lanes counted as one."""
        return {row["key_id"]: row["used"] for row in await tx.fetch(_KEYS)}

    async def count_readable(self, tx: Tx) -> int:
        """Return how many targets lie readable and should not."""
        return await tx.fetchval(_COUNT_READABLE) or 0

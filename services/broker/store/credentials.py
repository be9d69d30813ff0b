"""Credentials, sealed; nothing here can open them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

SLICE: Final = 500

_PUT: Final = text("""
    insert into credentials (account_id, version, names, key_id, wrapped, body, updated_at, expires_at, refresh_at)
    values (:account_id, :version, :names, :key_id, :wrapped, :body, :at, :expires_at, :refresh_at)
    on conflict (account_id) do update set
        version = excluded.version, names = excluded.names, key_id = excluded.key_id, wrapped = excluded.wrapped,
        body = excluded.body, updated_at = excluded.updated_at, expires_at = excluded.expires_at,
        refresh_at = excluded.refresh_at, lease = null, lease_until = null, refused_at = null""")
_REPLACE: Final = text("""
    update credentials set
        version = :version, names = :names, key_id = :key_id, wrapped = :wrapped, body = :body, updated_at = :at,
        expires_at = :expires_at, refresh_at = :refresh_at, lease = null, lease_until = null, refused_at = null
    where account_id = :account_id and version = :read""")
_GET: Final = text("select * from credentials where account_id = :account_id")
_LOCK: Final = text("select * from credentials where account_id = :account_id for no key update")
_VERSION: Final = text("select version from credentials where account_id = :account_id")
_FORGET: Final = text("delete from credentials where account_id = :account_id")
_LEASE: Final = text("update credentials set lease = :lease, lease_until = :until where account_id = :account_id")
_REST: Final = text("""
    update credentials set lease = null, lease_until = :until where account_id = :account_id and lease = :lease""")
_REFUSED: Final = text("""
    update credentials set lease = null, lease_until = null, refused_at = :at
    where account_id = :account_id and version = :read""")
_OLD: Final = text("""
    select c.account_id, a.venue, c.key_id, c.wrapped, c.body
    from credentials c join accounts a on a.id = c.account_id
    where c.key_id <> :current and c.account_id > :after
    order by c.account_id limit :most for no key update of c""")
_REWRAP: Final = text("update credentials set key_id = :key_id, wrapped = :wrapped where account_id = :account_id")
_KEYS: Final = text("select key_id, count(*) as used from credentials group by key_id order by key_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One account's credentials, sealed, and until when they are good."""

    account_id: UUID
    version: UUID
    names: Collection[str]
    key_id: str
    wrapped: bytes
    body: bytes
    at: datetime
    expires_at: datetime | None = None
    refresh_at: datetime | None = None

    def params(self) -> dict[str, Any]:
        """Return what the statements take."""
        return {name: getattr(self, name) for name in self.__slots__} | {"names": sorted(self.names)}


class CredentialStore:
    """Reads and writes `credentials`."""

    def __init__(self, slice_rows: int = SLICE) -> None:
        self.slice_rows = slice_rows

    async def put(self, tx: Tx, entry: Entry) -> None:
        """Keep an account's credentials instead of those before."""
        await tx.execute(_PUT, **entry.params())

    async def replace(self, tx: Tx, entry: Entry, read: UUID) -> bool:
        """Keep refreshed ones in the place of the version that was read; tell whether it was still there."""
        return bool(await tx.execute(_REPLACE, **entry.params(), read=read))

    async def get(self, tx: Tx, account_id: UUID, *, lock: bool = False) -> Row | None:
        """Return the row; locked, nobody else changes it until the commit."""
        return await tx.fetchrow(_LOCK if lock else _GET, account_id=account_id)

    async def version(self, tx: Tx, account_id: UUID) -> UUID | None:
        """Return which credentials these are; None where there are none."""
        return await tx.fetchval(_VERSION, account_id=account_id)

    async def forget(self, tx: Tx, account_id: UUID) -> bool:
        """Delete; tell whether there were any."""
        return bool(await tx.execute(_FORGET, account_id=account_id))

    async def lease(self, tx: Tx, account_id: UUID, lease: UUID, until: datetime) -> None:
        """Let nobody else refresh until then."""
        await tx.execute(_LEASE, account_id=account_id, lease=lease, until=until)

    async def rest(self, tx: Tx, account_id: UUID, lease: UUID, until: datetime) -> None:
        """Give a lease up; nobody tries again before then."""
        await tx.execute(_REST, account_id=account_id, lease=lease, until=until)

    async def refused(self, tx: Tx, account_id: UUID, read: UUID, at: datetime) -> bool:
        """Note that the venue refreshes this version no more; tell whether it is still the one."""
        return bool(await tx.execute(_REFUSED, account_id=account_id, read=read, at=at))

    async def under_old_keys(self, tx: Tx, current: str, after: UUID) -> Sequence[Row]:
        """Return a slice of what is not under the current key, by account id, locked, each with its venue."""
        return await tx.fetch(_OLD, current=current, after=after, most=self.slice_rows)

    async def rewrap(self, tx: Tx, wrapped: Sequence[Mapping[str, object]]) -> None:
        """Write wrapped data keys: account_id, key_id, wrapped."""
        await tx.execute_many(_REWRAP, wrapped)

    async def keys(self, tx: Tx) -> Mapping[str, int]:
        """Return how many credentials lie under each key."""
        return {row["key_id"]: row["used"] for row in await tx.fetch(_KEYS)}

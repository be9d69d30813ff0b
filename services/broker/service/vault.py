"""The vault: accounts' credentials, encrypted at rest. Each call takes the transaction that it belongs to.

What is sealed is bound to account and venue, so that a row copied to another account does not open. Nothing that comes
out of here shows a secret when it is printed, and no error carries one.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson
from prometheus_client import Counter

from services.broker.domain.credentials import Secrets
from services.broker.ports import Account, VenueRefused
from services.broker.store.credentials import CredentialStore, Entry
from shared.clock import Clock, NewId
from shared.db import Row, Tx
from shared.envelope import Envelope, Sealed, Unopened
from shared.errors import Transient

_log = logging.getLogger(__name__)

FIRST: Final = UUID(int=0)

UNREADABLE: Final = Counter(
    "openbell_broker_credentials_unreadable_total", "Times that credentials did not open: a key is missing, or worse"
)


class NoCredentials(VenueRefused):
    """This account has no credentials: set them, or connect it."""

    code = "NO_CREDENTIALS"
    status = 409


class Unreadable(Transient):
    """The credentials of this account do not open here; an operator has to look at the keys."""

    code = "CREDENTIALS_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Kept:
    """An account's credentials, opened, and how they stand."""

    secrets: Secrets = field(repr=False)
    version: UUID
    expires_at: datetime | None
    refresh_at: datetime | None
    lease: UUID | None
    lease_until: datetime | None
    refused_at: datetime | None


@dataclass(frozen=True, slots=True)
class About:
    """What may be told of an account's credentials."""

    names: Sequence[str]
    updated_at: datetime
    expires_at: datetime | None
    refused: bool


@dataclass(frozen=True, slots=True)
class Rotated:
    """A slice of a rotation: how many were wrapped anew, which do not open, and after whom to go on (None: the end)."""

    rewrapped: int
    unreadable: Sequence[UUID]
    last: UUID | None


class Vault:
    """Keeps credentials."""

    def __init__(self, store: CredentialStore, envelope: Envelope, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._envelope = envelope
        self._clock = clock
        self._new_id = new_id

    async def put(
        self,
        tx: Tx,
        account: Account,
        secrets: Mapping[str, str],
        *,
        expires_at: datetime | None = None,
        refresh_at: datetime | None = None,
    ) -> None:
        """Keep credentials instead of those before."""
        await self._store.put(tx, self._entry(account, secrets, expires_at, refresh_at))

    async def replace(
        self, tx: Tx, account: Account, read: UUID, secrets: Mapping[str, str], good: tuple[datetime | None, ...]
    ) -> bool:
        """Keep refreshed credentials in the place of the version `read`; tell whether that was still the one.

        `good` is (expires_at, refresh_at).
        """
        return await self._store.replace(tx, self._entry(account, secrets, *good), read)

    async def get(self, tx: Tx, account: Account) -> Secrets:
        """Return an account's credentials. Raises NoCredentials, Unreadable."""
        return (await self.kept(tx, account)).secrets

    async def kept(self, tx: Tx, account: Account, *, lock: bool = False) -> Kept:
        """Return them with how they stand, locked where asked. Raises NoCredentials, Unreadable."""
        row = await self._store.get(tx, account.id, lock=lock)
        if row is None:
            raise NoCredentials
        return Kept(
            self._opened(row, account.id, account.venue),
            row["version"],
            row["expires_at"],
            row["refresh_at"],
            row["lease"],
            row["lease_until"],
            row["refused_at"],
        )

    async def version(self, tx: Tx, account_id: UUID) -> UUID | None:
        """Return which credentials these are, to know whether a venue was opened with them; None: there are none."""
        return await self._store.version(tx, account_id)

    async def about(self, tx: Tx, account_id: UUID) -> About | None:
        """Return what may be told of them; nothing is opened."""
        row = await self._store.get(tx, account_id)
        if row is None:
            return None
        return About(row["names"], row["updated_at"], row["expires_at"], row["refused_at"] is not None)

    async def forget(self, tx: Tx, account_id: UUID) -> bool:
        """Delete an account's credentials; tell whether there were any."""
        return await self._store.forget(tx, account_id)

    async def rotate(self, tx: Tx, after: UUID = FIRST) -> Rotated:
        """Wrap a slice of what lies under old keys anew, from the account id `after` on.

        What does not open is left as it is and told; a broken-off rotation goes on with whatever is still under old
        keys.
        """
        rows = await self._store.under_old_keys(tx, self._envelope.current, after)
        wrapped: list[Mapping[str, object]] = []
        unreadable: list[UUID] = []
        for row in rows:
            try:
                new = self._envelope.rewrap(_sealed(row), _about(row["account_id"], row["venue"]))
            except Unopened as error:
                _unreadable(row["account_id"], error)
                unreadable.append(row["account_id"])
            else:
                wrapped.append({"account_id": row["account_id"], "key_id": new.key_id, "wrapped": new.wrapped})
        await self._store.rewrap(tx, wrapped)
        more = len(rows) == self._store.slice_rows
        return Rotated(len(wrapped), unreadable, rows[-1]["account_id"] if more else None)

    async def keys(self, tx: Tx) -> Mapping[str, int]:
        """Return how many credentials lie under each key: one with none may leave the settings."""
        return await self._store.keys(tx)

    def _entry(
        self, account: Account, secrets: Mapping[str, str], expires_at: datetime | None, refresh_at: datetime | None
    ) -> Entry:
        sealed = self._envelope.seal(orjson.dumps(dict(secrets)), _about(account.id, account.venue))
        names: Collection[str] = list(secrets)
        return Entry(
            account.id,
            self._new_id(),
            names,
            sealed.key_id,
            sealed.wrapped,
            sealed.body,
            self._clock(),
            expires_at,
            refresh_at,
        )

    def _opened(self, row: Row, account_id: UUID, venue: str) -> Secrets:
        try:
            return Secrets(orjson.loads(self._envelope.open(_sealed(row), _about(account_id, venue))))
        except Unopened as error:
            _unreadable(account_id, error)
            raise Unreadable from None


def _unreadable(account_id: UUID, error: Unopened) -> None:
    UNREADABLE.inc()
    _log.error("broker.credentials_unreadable", extra={"account": str(account_id), "why": str(error)})


def _sealed(row: Row) -> Sealed:
    return Sealed(row["key_id"], row["wrapped"], row["body"])


def _about(account_id: UUID, venue: str) -> bytes:
    return b"openbell/credentials/" + account_id.bytes + venue.encode()

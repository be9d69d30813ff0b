"""Who calls: an API key of ours, or a token that somebody we were told to trust has signed.

What would surprise you: an answer is remembered by the hash of the credential for a few seconds, so a key deleted on
one replica may work on another for that long (`principal_ttl_s`); on the replica that deleted it, it ends at once.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.api import store
from services.api.domain import parse_key, same_digest
from services.api.ports import Tokens
from shared.clock import Clock
from shared.db import Database
from shared.errors import Unauthenticated
from shared.identity import Identity

REMEMBERED: Final = 20_000


@dataclass(frozen=True, slots=True)
class Session:
    """Who calls, and by what: a key of ours, or a token that holds until `ends_at` (Unix time)."""

    identity: Identity
    key_id: UUID | None
    ends_at: float | None


@dataclass(frozen=True, slots=True)
class _Known:
    session: Session
    until: float


class Principals:
    """Turns a credential into an identity."""

    def __init__(self, db: Database, clock: Clock, tokens: Tokens | None, ttl_s: float) -> None:
        self._db = db
        self._clock = clock
        self._tokens = tokens
        self._ttl_s = ttl_s
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._by_key: dict[UUID, bytes] = {}

    def remembered(self, credential: str) -> Session | None:
        """Return who calls when this was established a moment ago."""
        known = self._known.get(hashlib.sha256(credential.encode()).digest())
        return known.session if known is not None and self._clock().timestamp() < known.until else None

    async def identify(self, credential: str) -> Session:
        """Return who calls; raises Unauthenticated."""
        digest = hashlib.sha256(credential.encode()).digest()
        fresh = await self._key(credential) if credential.startswith("ob_") else await self._token(credential)
        self._remember(digest, fresh)
        return fresh.session

    async def subject(self, token: str) -> str:
        """Return the subject of a foreign token, whether or not we know a user for it."""
        if self._tokens is None:
            raise Unauthenticated("tokens are not accepted here: send an API key")
        return (await self._tokens.verify(token)).name

    def forget(self, key_id: UUID) -> None:
        """Drop what is remembered of a key."""
        digest = self._by_key.pop(key_id, None)
        if digest is not None:
            self._known.pop(digest, None)

    async def _key(self, credential: str) -> _Known:
        parts = parse_key(credential)
        if parts is not None:
            async with self._db.read() as tx:
                row = await store.key(tx, parts.id)
            if row is not None and same_digest(row["digest"], parts.digest):
                until = self._clock().timestamp() + self._ttl_s
                return _Known(Session(Identity(row["user_id"], row["role"]), parts.id, None), until)
        raise Unauthenticated("this API key is not valid")

    async def _token(self, token: str) -> _Known:
        if self._tokens is None:
            raise Unauthenticated("tokens are not accepted here: send an API key")
        subject = await self._tokens.verify(token)
        async with self._db.read() as tx:
            row = await store.user_by_subject(tx, subject.name)
        if row is None:
            raise Unauthenticated("the token is good, but its user has not signed up here")
        until = min(subject.expires, self._clock().timestamp() + self._ttl_s)
        return _Known(Session(Identity(row["id"], row["role"]), None, subject.expires), until)

    def _remember(self, digest: bytes, known: _Known) -> None:
        self._known[digest] = known
        if (key_id := known.session.key_id) is not None:
            self._by_key[key_id] = digest
        if len(self._known) > REMEMBERED:
            _, dropped = self._known.popitem(last=False)
            if (key_id := dropped.session.key_id) is not None:
                self._by_key.pop(key_id, None)

"""OAuth redirects under way: one for each account, by the hash of its state."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from shared.db import Row, Tx

_BEGIN: Final = text("""
    insert into oauth_states (account_id, digest, user_id, venue, key_id, wrapped, body, expires_at)
    values (:account_id, :digest, :user_id, :venue, :key_id, :wrapped, :body, :expires_at)
    on conflict (account_id) do update set
        digest = excluded.digest, user_id = excluded.user_id, venue = excluded.venue, key_id = excluded.key_id,
        wrapped = excluded.wrapped, body = excluded.body, expires_at = excluded.expires_at""")
_TAKE: Final = text("""
    delete from oauth_states
    where digest = :digest and user_id = :user_id and venue = :venue and expires_at > :now returning *""")


@dataclass(frozen=True, slots=True)
class Redirect:
    """Who was sent away for which account; key_id, wrapped and body are the sealed PKCE verifier."""

    account_id: UUID
    digest: bytes
    user_id: UUID
    venue: str
    key_id: str
    wrapped: bytes
    body: bytes
    expires_at: datetime

    def params(self) -> dict[str, Any]:
        """Return what the statement takes."""
        return {name: getattr(self, name) for name in self.__slots__}


class OAuthStore:
    """Reads and writes `oauth_states`."""

    async def begin(self, tx: Tx, redirect: Redirect) -> None:
        """Keep a redirect; one before it of the same account is void."""
        await tx.execute(_BEGIN, **redirect.params())

    async def take(self, tx: Tx, digest: bytes, user_id: UUID, venue: str, now: datetime) -> Row | None:
        """Return a user's redirect and forget it: it is good once."""
        return await tx.fetchrow(_TAKE, digest=digest, user_id=user_id, venue=venue, now=now)

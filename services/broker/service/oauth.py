"""Connecting an account by OAuth: away to the venue with a state, back with a code, tokens into the vault.

What would surprise you: the way back is for the same signed-in user, not for whoever holds the state. Otherwise
somebody could send another person to the venue and get that person's brokerage into an account of their own. So the
venue sends people to a page of ours, and that page calls us with their key.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.broker.domain.oauth import OAuthVenue, word_of
from services.broker.ports import Account, GrantRefused, TokenEndpoint
from services.broker.service.credentials import Actor, Credentials, NoSuchAccount
from services.broker.service.refresh import Tasks, written
from services.broker.service.vault import Vault
from services.broker.store.oauth import OAuthStore, Redirect
from shared.clock import Clock
from shared.db import Row, Tx
from shared.envelope import Envelope, RandomBytes, Sealed, Unopened
from shared.errors import NotFound, Permanent, Transient
from shared.messaging.door import Done, Door
from shared.work import OutcomeUnknown

GOOD_FOR: Final = timedelta(minutes=10)
_RANDOM_BYTES: Final = 32


class NoOAuth(NotFound):
    """Accounts of this venue are not connected by OAuth here."""

    code = "OAUTH_NOT_CONFIGURED"


class BadState(Permanent):
    """This state is not one of yours, was used, or is over ten minutes old: begin anew."""

    code = "OAUTH_STATE_INVALID"


class Denied(Permanent):
    """The venue did not give its consent: begin anew if that was not meant."""

    code = "OAUTH_DENIED"


class NotExchanged(Transient):
    """The venue gave no tokens for the code, which is good once: begin anew."""

    code = "OAUTH_NOT_EXCHANGED"


@dataclass(frozen=True, slots=True)
class Started:
    """Where the user goes, and until when the way back is open."""

    url: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Connected:
    """The account that has tokens now. `expires_at` is None for a token without an end."""

    account_id: UUID
    expires_at: datetime | None


class OAuth:
    """Connects accounts. `venues` are those with OAuth, by name."""

    def __init__(
        self,
        door: Door,
        vault: Vault,
        credentials: Credentials,
        endpoint: TokenEndpoint,
        venues: Mapping[str, OAuthVenue],
        *,
        store: OAuthStore,
        envelope: Envelope,
        clock: Clock,
        random_bytes: RandomBytes,
    ) -> None:
        self._door = door
        self._vault = vault
        self._credentials = credentials
        self._store = store
        self._endpoint = endpoint
        self._venues = venues
        self._envelope = envelope
        self._clock = clock
        self._random = random_bytes
        self._tasks = Tasks()

    async def start(self, actor: Actor, venue: str, account_id: UUID) -> Started:
        """Return where to send the actor; an earlier start for the account is void.

        Raises NoOAuth, NoSuchAccount, AccountClosed.
        """
        about = self._about(venue)
        state, verifier = word_of(self._random(_RANDOM_BYTES)), word_of(self._random(_RANDOM_BYTES))
        digest, until = _digest(state), self._clock() + GOOD_FOR

        async def begin(tx: Tx) -> Done[None]:
            account = await self._credentials.own(tx, actor, account_id)
            if account.venue != venue:
                raise NoSuchAccount
            sealed = self._envelope.seal(verifier.encode(), _sealed_about(digest))
            user_id = actor.identity.user_id
            await self._store.begin(
                tx, Redirect(account_id, digest, user_id, venue, sealed.key_id, sealed.wrapped, sealed.body, until)
            )
            return Done(None)

        await self._door.run(begin)
        return Started(about.address(state, verifier), until)

    async def finish(self, actor: Actor, venue: str, state: str, code: str | None) -> Connected:
        """Exchange the code that the venue sent with a state; None when it sent an error instead.

        Raises NoOAuth, BadState, Denied, GrantRefused, NotExchanged; NoSuchAccount, AccountClosed.
        """
        about = self._about(venue)
        digest = _digest(state)
        async with self._door.transaction() as tx:
            row = await self._store.take(tx, digest, actor.identity.user_id, venue, self._clock())
        if row is None:
            raise BadState
        if code is None:
            raise Denied
        return await self._tasks.run(self._exchange(actor, about, row["account_id"], code, self._verifier(row)))

    async def close(self) -> None:
        """Wait for exchanges under way, so that no token is lost."""
        await self._tasks.close()

    async def _exchange(self, actor: Actor, venue: OAuthVenue, account_id: UUID, code: str, verifier: str) -> Connected:
        try:
            granted = await self._endpoint.ask(venue, venue.code_grant(code, verifier))
        except GrantRefused:
            raise
        except (Transient, OutcomeUnknown) as error:
            raise NotExchanged(f"{error}; the code is good once: begin anew") from None
        expires_at, refresh_at = granted.good(self._clock())

        async def keep(tx: Tx) -> Done[None]:
            account: Account = await self._credentials.own(tx, actor, account_id)
            secrets = granted.secrets({})
            await self._vault.put(tx, account, secrets, expires_at=expires_at, refresh_at=refresh_at)
            return Done(None, [self._credentials.audited(actor, "connect.account", account_id, venue=venue.name)])

        await written(lambda: self._door.run(keep))
        return Connected(account_id, expires_at)

    def _about(self, venue: str) -> OAuthVenue:
        about = self._venues.get(venue)
        if about is None:
            raise NoOAuth
        return about

    def _verifier(self, row: Row) -> str:
        sealed = Sealed(row["key_id"], row["wrapped"], row["body"])
        try:
            return self._envelope.open(sealed, _sealed_about(row["digest"])).decode()
        except Unopened:
            raise BadState from None  # its key left the settings meanwhile


def _digest(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


def _sealed_about(digest: bytes) -> bytes:
    return b"openbell/oauth/" + digest

"""Credentials as users and operators handle them: set, shown without values, forgotten, wrapped anew."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.broker.domain.credentials import checked
from services.broker.ports import Account
from services.broker.service.vault import FIRST, About, NoCredentials, Vault
from services.broker.store.accounts import AccountStore, account_of
from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Conflict, NotFound
from shared.identity import Identity
from shared.messaging.door import Done, Door

SLICES: Final = 20

Needed = Callable[[str], Collection[str]]
"""Returns the names of what a venue's credentials consist of; raises NotFound for an unknown venue."""


class NoSuchAccount(NotFound):
    """You have no such account."""

    code = "UNKNOWN_ACCOUNT"


class AccountClosed(Conflict):
    """This account is closed."""

    code = "ACCOUNT_CLOSED"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, and in which request."""

    identity: Identity
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Rotation:
    """A part of a rotation. `next` is where to go on; None: all has been seen. `keys`: how many lie under each."""

    rewrapped: int
    unreadable: Sequence[UUID]
    next: UUID | None
    keys: Mapping[str, int] = field(default_factory=dict[str, int])


class Credentials:
    """Takes a transaction, returns what happened."""

    def __init__(self, vault: Vault, accounts: AccountStore, needed: Needed, *, clock: Clock, new_id: NewId) -> None:
        self._vault = vault
        self._accounts = accounts
        self._needed = needed
        self._clock = clock
        self._new_id = new_id

    async def set(self, tx: Tx, actor: Actor, account_id: UUID, values: Mapping[str, str]) -> Done[About]:
        """Keep the owner's credentials. Raises NoSuchAccount, AccountClosed, BadCredentials."""
        account = await self.own(tx, actor, account_id)
        await self._vault.put(tx, account, checked(values, self._needed(account.venue)))
        about = await self._told(tx, account_id)
        return Done(about, [self.audited(actor, "set.credentials", account_id, venue=account.venue)])

    async def show(self, tx: Tx, actor: Actor, account_id: UUID) -> About:
        """Return what may be told of them. Raises NoSuchAccount, NoCredentials."""
        await self._seen(tx, actor, account_id)
        return await self._told(tx, account_id)

    async def forget(self, tx: Tx, actor: Actor, account_id: UUID) -> Done[None]:
        """Delete them; administrators may, too. Raises NoSuchAccount."""
        account = await self._seen(tx, actor, account_id)
        if not await self._vault.forget(tx, account_id):
            return Done(None)
        return Done(None, [self.audited(actor, "forget.credentials", account_id, venue=account.venue)])

    async def rotate(self, door: Door, actor: Actor, after: UUID | None) -> Rotation:
        """Wrap what lies under old keys anew, some slices of it, each in a transaction of its own."""
        rewrapped, unreadable, last = 0, list[UUID](), after or FIRST
        going: UUID | None = last
        for _ in range(SLICES):
            async with door.transaction() as tx:
                part = await self._vault.rotate(tx, last)
            rewrapped += part.rewrapped
            unreadable += part.unreadable
            going = part.last
            if going is None:
                break
            last = going

        async def tell(tx: Tx) -> Done[Rotation]:
            done = Rotation(rewrapped, unreadable, going, await self._vault.keys(tx))
            told = self.audited(
                actor, "rotate.credentials", "credentials", rewrapped=rewrapped, unreadable=len(unreadable)
            )
            return Done(done, [told])

        return await door.run(tell)

    async def own(self, tx: Tx, actor: Actor, account_id: UUID) -> Account:
        """Return an open account of the actor's. Raises NoSuchAccount, AccountClosed."""
        row = await self._accounts.lock(tx, account_id)
        if row is None or row["user_id"] != actor.identity.user_id:
            raise NoSuchAccount
        if row["closed_at"] is not None:
            raise AccountClosed
        return account_of(row)

    def audited(self, actor: Actor, action: str, subject: object, **details: Any) -> Event:
        """Return what the auditor hears."""
        now = self._clock()
        return ActionAudited(
            id=self._new_id(),
            time=now,
            service="broker",
            actor=str(actor.identity.user_id),
            request_id=actor.request_id,
            action=action,
            subject=str(subject),
            at=now,
            details=details,
        )

    async def _seen(self, tx: Tx, actor: Actor, account_id: UUID) -> Account:
        """Return an account of the actor's, for administrators anybody's. Whether somebody else has it is not told."""
        row = await self._accounts.get(tx, account_id)
        if row is None or not (row["user_id"] == actor.identity.user_id or actor.identity.is_admin):
            raise NoSuchAccount
        return account_of(row)

    async def _told(self, tx: Tx, account_id: UUID) -> About:
        about = await self._vault.about(tx, account_id)
        if about is None:
            raise NoCredentials
        return about

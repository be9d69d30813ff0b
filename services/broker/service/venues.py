"""Accounts' venues, opened when they are needed and kept open: one for each account."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID
from weakref import WeakValueDictionary

from services.broker.domain.checks import Capabilities
from services.broker.ports import Account, Adapter, Venue, VenueRefused
from shared.errors import NotFound

Secrets = Callable[[Account], Awaitable[Mapping[str, str]]]
"""Returns an account's credentials, opened."""
Version = Callable[[Account], Awaitable[UUID | None]]
"""Returns which credentials an account has now: another value for other ones."""
IDLE_S: Final = 3600.0
"""A venue that nobody used for so long is closed; it is opened anew when somebody does."""
ASK_AGAIN_S: Final = 60.0
"""So long credentials are not asked for while their version stays: some are refreshed only when they are asked for."""


class NoSuchVenue(NotFound):
    """There is no such venue here."""

    code = "UNKNOWN_VENUE"


@dataclass(slots=True)
class _Open:
    """A venue, what it was opened with, when that was asked for, and when the venue was used last."""

    account: Account
    venue: Venue
    version: UUID | None
    secrets: Mapping[str, str] = field(repr=False)
    asked_at: float
    used_at: float


async def the_same(account: Account) -> None:
    """Credentials that never change."""
    del account


class Venues:
    """Opens venues; one that is open keeps nobody waiting while another is opened."""

    def __init__(self, adapters: Sequence[Adapter], secrets: Secrets, version: Version = the_same) -> None:
        self._adapters: Final = {one.name: one for one in adapters}
        self._secrets = secrets
        self._version = version
        self._open: dict[UUID, _Open] = {}
        self._kept: Counter[UUID] = Counter()
        self._opening: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    @property
    def names(self) -> list[str]:
        """What there is."""
        return sorted(self._adapters)

    def adapter(self, venue: str) -> Adapter:
        """Return a kind of venue. Raises NoSuchVenue."""
        found = self._adapters.get(venue)
        if found is None:
            raise NoSuchVenue(f"there is no venue {venue[:40]!r}; there are {', '.join(self.names)}")
        return found

    def capabilities(self, venue: str) -> Capabilities:
        """Return what a venue takes. Raises NoSuchVenue."""
        return self.adapter(venue).capabilities

    async def of(self, account: Account) -> Venue:
        """Return an account's venue. Raises NoSuchVenue, VenueRefused for credentials that it cannot use."""
        version = await self._version(account)
        if (known := self._fresh(account, version)) is not None:
            return known
        async with self._lock(account.id):
            return self._fresh(account, version) or await self._opened(account, version)

    def _fresh(self, account: Account, version: UUID | None) -> Venue | None:
        """Return the account's venue where it was opened with what the account has now."""
        known = self._open.get(account.id)
        if known is None or (known.account, known.version) != (account, version):
            return None
        now = asyncio.get_running_loop().time()
        known.used_at = now
        return known.venue if now - known.asked_at < ASK_AGAIN_S else None

    @asynccontextmanager
    async def kept(self, account: Account) -> AsyncGenerator[Venue]:
        """Return an account's venue that counts as used until the end of the block. Raises as `of`."""
        self._kept[account.id] += 1
        try:
            yield await self.of(account)
        finally:
            self._kept[account.id] -= 1
            if not self._kept[account.id]:
                del self._kept[account.id]

    async def _opened(self, account: Account, version: UUID | None) -> Venue:
        adapter, now = self.adapter(account.venue), asyncio.get_running_loop().time()
        await asyncio.to_thread(lambda: adapter.capabilities)  # some load a large library for it
        try:
            secrets = await self._secrets(account)
        except VenueRefused:
            await self._drop(account.id)  # what it was opened with is no more
            raise
        known = self._open.get(account.id)
        if known is not None and (known.account, dict(known.secrets)) == (account, dict(secrets)):
            venue = known.venue
        else:
            await self._drop(account.id)
            venue = adapter.open(account, secrets)
        self._open[account.id] = _Open(account, venue, version, secrets, now, used_at=now)
        await self._close_idle(now)
        return venue

    async def _close_idle(self, now: float) -> None:
        """Close what nobody used for long, so that what is open stays bounded by what is used."""
        idle = [one for one, known in self._open.items() if now - known.used_at > IDLE_S and not self._kept[one]]
        for account_id in idle:
            await self._drop(account_id)

    def _lock(self, account_id: UUID) -> asyncio.Lock:
        return self._opening.setdefault(account_id, asyncio.Lock())

    async def _drop(self, account_id: UUID) -> None:
        known = self._open.pop(account_id, None)
        if known is not None:
            await known.venue.close()

    async def ready(self, venue: str) -> None:
        """Load what a kind of venue needs. Raises NoSuchVenue, VenueRefused for one that cannot be traded."""
        adapter = self.adapter(venue)
        await asyncio.to_thread(lambda: (adapter.capabilities, adapter.secrets))

    async def forget(self, account_id: UUID) -> None:
        """Close an account's venue: its credentials changed, or it is gone."""
        async with self._lock(account_id):
            await self._drop(account_id)

    async def close(self) -> None:
        """Close all of them."""
        for account_id in list(self._open):
            await self.forget(account_id)

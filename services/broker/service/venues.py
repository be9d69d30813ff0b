"""Accounts' venues, opened when they are needed and kept open: one for each account."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from services.broker.domain.checks import Capabilities
from services.broker.ports import Account, Adapter, Venue
from shared.errors import NotFound

Secrets = Callable[[Account], Awaitable[Mapping[str, str]]]
"""Returns an account's credentials, opened."""


class NoSuchVenue(NotFound):
    """There is no such venue here."""

    code = "UNKNOWN_VENUE"


class Venues:
    """Opens venues."""

    def __init__(self, adapters: Sequence[Adapter], secrets: Secrets) -> None:
        self._adapters: Final = {one.name: one for one in adapters}
        self._secrets = secrets
        self._open: dict[UUID, tuple[Account, Venue]] = {}
        self._opening = asyncio.Lock()

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
        async with self._opening:
            known = self._open.get(account.id)
            if known is not None and known[0] == account:
                return known[1]
            if known is not None:
                await known[1].close()
            adapter = self.adapter(account.venue)
            await asyncio.to_thread(lambda: adapter.capabilities)  # some load a large library for it
            venue = adapter.open(account, await self._secrets(account))
            self._open[account.id] = (account, venue)
            return venue

    async def ready(self, venue: str) -> None:
        """Load what a kind of venue needs. Raises NoSuchVenue, VenueRefused for one that cannot be traded."""
        adapter = self.adapter(venue)
        await asyncio.to_thread(lambda: (adapter.capabilities, adapter.secrets))

    async def forget(self, account_id: UUID) -> None:
        """Close an account's venue: its credentials changed, or it is gone."""
        async with self._opening:
            known = self._open.pop(account_id, None)
            if known is not None:
                await known[1].close()

    async def close(self) -> None:
        """Close all of them."""
        for account_id in list(self._open):
            await self.forget(account_id)

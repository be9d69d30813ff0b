"""A brokerage whose process dies at a step that the test chooses: before and after each commit and each venue call.

brokerage.fate.left = 3                  # it dies at the fourth step from now
async with brokerage.dying(): ...        # what it does until then; another process runs afterwards, leases are over
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from services.broker.domain.orders import Order, Report
from services.broker.ports import Account
from shared.db import Tx
from shared.service import Service
from tests.broker.brokerage import Brokerage
from tests.fakes.venue import Desk, MemoryAdapter, MemoryVenue
from tests.fakes.venue_books import PLAIN, Clock, Manner

LEASE_S = 16


class KilledError(BaseException):
    """The process is gone: nothing catches it, and nothing of it goes on."""


class Fate:
    """After how many steps the process dies; None while it does not."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.dead = False

    def step(self) -> None:
        """Go one step on, or die."""
        if self.left is not None:
            self.left -= 1
            self.dead = self.dead or self.left < 0
        if self.dead:
            raise KilledError

    def reborn(self) -> None:
        self.left, self.dead = None, False


class MortalVenue(MemoryVenue):
    """Steps before and after whatever changes something."""

    def __init__(self, desk: Desk, fate: Fate) -> None:
        super().__init__(desk)
        self._fate = fate

    async def submit(self, order: Order) -> Report:
        self._fate.step()
        told = await super().submit(order)
        self._fate.step()
        return told

    async def cancel(self, order: Order) -> Report | None:
        self._fate.step()
        told = await super().cancel(order)
        self._fate.step()
        return told

    async def replace(self, order: Order, by: Order) -> Report | None:
        self._fate.step()
        told = await super().replace(order, by)
        self._fate.step()
        return told

    async def look_up(self, order: Order) -> Report:
        self._fate.step()
        return await super().look_up(order)


class MortalAdapter(MemoryAdapter):
    """Opens mortal venues."""

    def __init__(self, manner: Manner, clock: Clock, fate: Fate) -> None:
        super().__init__(manner, clock)
        self._fate = fate

    def open(self, account: Account, secrets: Mapping[str, str]) -> MortalVenue:
        del secrets
        return MortalVenue(self.desk(account.id), self._fate)


class MortalBrokerage(Brokerage):
    """The service, which may die."""

    def __init__(self, database_url: str, manner: Manner = PLAIN, **settings: Any) -> None:
        self.fate = Fate()
        super().__init__(database_url, manner, **settings)
        self.adapter = MortalAdapter(manner, self.clock, self.fate)
        self.service = self._service()
        self.deaths = 0

    def _service(self) -> Service:
        service = super()._service()
        service.db.transaction = _mortal(service.db.transaction, self.fate)  # pyright: ignore[reportAttributeAccessIssue]
        return service

    @asynccontextmanager
    async def dying(self) -> AsyncGenerator[None]:
        """Do what is in the block, until the process dies; then another one runs, the leases of the first are over."""
        try:
            yield
        except KilledError:
            self.deaths += 1
            self.fate.dead = True
            flying = [task for _, task in self.worker._flights.values()]
            await asyncio.gather(*flying, return_exceptions=True)
            self.fate.reborn()
            await self.restart()
            self.clock.advance(LEASE_S)
            await self.quotes()
        self.fate.left = None

    async def finish(self) -> None:
        """Let all that is to be said be said, however late it is due."""
        while True:
            await self.settle(wholly=True)
            left = await self.rows("select max(lease_until) as at from sendings where status in ('claimed', 'started')")
            if left[0]["at"] is None:
                return
            self.clock.advance(LEASE_S)
            await self.worker.turn()
            await self.worker.idle()


def _mortal(
    transaction: Callable[[], AbstractAsyncContextManager[Tx]], fate: Fate
) -> Callable[[], AbstractAsyncContextManager[Tx]]:
    @asynccontextmanager
    async def begin() -> AsyncGenerator[Tx]:
        fate.step()
        async with transaction() as tx:
            yield tx
            fate.step()  # nothing is kept
        fate.step()  # it is kept, and nobody heard

    return begin


@asynccontextmanager
async def mortal(database_url: str, manner: Manner = PLAIN, **settings: Any) -> AsyncGenerator[MortalBrokerage]:
    """Open a brokerage that may die, with quotes; it is closed after the block."""
    brokerage = MortalBrokerage(database_url, manner, **settings)
    await brokerage.quotes()
    yield brokerage
    await brokerage.service.close()

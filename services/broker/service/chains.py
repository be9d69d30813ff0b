"""Quotes of options, from the chains of their underlyings.

A chain has thousands of contracts, and few are traded. So the last chain of each underlying is kept as it came; a
contract gets a quote when an order names it, and from then on, or while it is held, with each chain. A quote is as old
as its chain says: one that a source tells with delay counts no more than an equity's would.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.domain.instruments import Instrument, Option
from services.broker.service.quotes import AHEAD, Hear, Told
from services.broker.store.books import BookStore
from services.broker.store.chains import ChainStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.db import Tx
from shared.messaging.door import Door
from shared.schedule import Job

KEPT: Final = timedelta(days=14)
"""So long a contract is followed of which no chain tells any more."""
_NOBODY: Final = UUID(int=0)


class Chains:
    """Keeps chains, and takes quotes out of them."""

    def __init__(
        self, store: ChainStore, books: BookStore, *, door: Door, clock: Clock, hear: Sequence[Hear] = ()
    ) -> None:
        self._store = store
        self._books = books
        self._door = door
        self._clock = clock
        self._hear = hear

    async def take(self, events: Sequence[ChainCollected], tx: Tx) -> Sequence[Event]:
        """Keep the newest chain of each underlying, and tell the contracts in it that are followed."""
        latest = self._clock() + AHEAD
        newest = {
            one.key: one for one in sorted(events, key=lambda one: one.header.as_of) if one.header.as_of <= latest
        }
        kept = [
            one
            for _, one in sorted(newest.items())
            if await self._store.keep(tx, one.key, one.header.as_of, one.to_bytes())
        ]
        followed = await self._store.followed(tx, [one.key for one in kept])
        await self._tell(tx, kept, followed)
        return ()

    async def follow(self, instruments: Collection[Instrument]) -> None:
        """Give the options among these their quotes, if they have none yet."""
        options = {of.key: of.underlying for of in instruments if isinstance(of, Option)}
        if not options:
            return
        async with self._door.read() as tx:
            known = await self._books.quotes(tx, options)
        wanted: dict[str, set[str]] = {}
        for key in options.keys() - known.keys():
            wanted.setdefault(options[key], set()).add(key)
        if wanted:
            async with self._door.transaction() as tx:
                bodies = await self._store.bodies(tx, wanted)
                chains = [ChainCollected.from_bytes(body, id=_NOBODY, time=self._clock()) for body in bodies]
                await self._tell(tx, chains, wanted)

    def forgets(self) -> Job:
        """Return the job that deletes what is over."""

        async def forget(at: datetime) -> None:
            await self._store.forget(self._door.transaction, at - KEPT)

        return Job("chains-retention", "53 4 * * *", forget)

    async def _tell(self, tx: Tx, chains: Sequence[ChainCollected], wanted: Mapping[str, Collection[str]]) -> None:
        told = [
            one
            for chain in chains
            for one in quotes_of(chain, wanted.get(chain.key, ()))
            if await self._books.quote(tx, one.symbol, one.bid, one.ask, one.at, chain.header.simulated, chain.key)
        ]
        for hear in self._hear:
            await hear(tx, told)


def quotes_of(chain: ChainCollected, contracts: Collection[str]) -> list[Told]:
    """Return the quotes of some contracts that have both sides; a side without anybody is zero."""
    columns = chain.contracts.select(["contract", "bid", "ask"]).to_pydict()
    return [
        Told(name, Decimal(repr(bid)), Decimal(repr(ask)), chain.header.as_of)
        for name, bid, ask in zip(columns["contract"], columns["bid"], columns["ask"], strict=True)
        if name in contracts and bid is not None and ask is not None and 0 <= bid <= ask and math.isfinite(ask)
    ]

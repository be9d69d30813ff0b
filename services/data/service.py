"""What this service does: record what a source told, and answer with the last good of it."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from services.data.domain.chain import Quote, Snapshot, Validators, fact_id, quote_taken
from services.data.domain.pairs import PairQuote, pair_quoted
from services.data.domain.symbols import parse_contract, parse_symbol
from services.data.store import SnapshotStore
from shared.clock import Clock
from shared.contracts.api import StockAdded, StockRemoved
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected, ChainHeader, Source
from shared.db import Tx
from shared.errors import NotFound, OpenbellError

DECODED: Final = 32
"""Chains that stay decoded, those asked for last: about half a megabyte each."""


@dataclass(frozen=True, slots=True)
class LastGood:
    """The last good chain of a symbol, `age_s` seconds after the source's own time of it."""

    header: ChainHeader
    contracts: pa.Table
    age_s: float
    failures: int  # fetches that failed since


class DataService:
    """The use cases. Each takes a transaction and returns the events that happened."""

    def __init__(self, store: SnapshotStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._last_good: OrderedDict[str, ChainCollected] = OrderedDict()

    async def record(self, snapshot: Snapshot, tx: Tx) -> list[Event]:
        """Keep the snapshot and tell of it, unless its symbol and source already told something as new."""
        header, now = snapshot.header, self._clock()
        collected = ChainCollected(
            id=fact_id("chain", header.symbol, header.source, header.as_of),
            time=now,
            header=header,
            contracts=snapshot.contracts,
        )
        if not await self._store.keep(collected, snapshot.validators, now, tx):
            await self._store.checked(header.symbol, header.source, now, tx)
            return []
        return [collected, quote_taken(_quote_of(header), now)]

    async def record_quotes(self, quotes: Sequence[Quote], tx: Tx) -> list[Event]:  # noqa: ARG002 - no state
        """Tell the quotes."""
        now = self._clock()
        return [quote_taken(quote, now) for quote in quotes]

    async def record_pairs(
        self,
        quotes: Sequence[PairQuote],
        source: str,
        tx: Tx,  # noqa: ARG002 - no state
        *,
        simulated: bool,
    ) -> list[Event]:
        """Tell the quotes of crypto pairs."""
        now = self._clock()
        return [pair_quoted(quote, source, now, simulated=simulated) for quote in quotes]

    async def record_unchanged(self, symbol: str, source: Source, tx: Tx) -> list[Event]:
        """Note that the source has nothing newer."""
        await self._store.checked(symbol, source, self._clock(), tx)
        return []

    async def record_failure(self, symbol: str, source: Source, error: OpenbellError, tx: Tx) -> list[Event]:
        """Note a failed fetch."""
        await self._store.failed(symbol, source, f"{error.code}: {error.message}"[:500], self._clock(), tx)
        return []

    async def watch(self, event: StockAdded, tx: Tx) -> list[Event]:
        """Keep that a user watches a symbol; from the next round on it is asked for."""
        await self._store.watch(parse_symbol(event.symbol), event.user_id, tx)
        return []

    async def unwatch(self, event: StockRemoved, tx: Tx) -> list[Event]:
        """Keep that a user no longer watches a symbol."""
        await self._store.unwatch(parse_symbol(event.symbol), event.user_id, tx)
        return []

    async def watched(self, tx: Tx) -> Sequence[str]:
        """Return the symbols that users watch, those of most users first."""
        return await self._store.watched(tx)

    async def validators(self, source: Source, tx: Tx) -> Mapping[str, Validators]:
        """Return what makes the next requests conditional, by symbol."""
        return await self._store.validators(source, tx)

    async def last_good(self, symbol: str, contract: str | None, tx: Tx) -> LastGood:
        """Return the last good chain of a symbol, or one contract of it.

        Raises Invalid for a name outside the grammars, NotFound for a symbol never collected and for a
        contract that the chain does not have.
        """
        symbol = parse_symbol(symbol)
        wanted = None if contract is None else parse_contract(contract)
        event, failures = await self._decoded(symbol, tx)
        contracts = event.contracts
        if wanted is not None:
            index = pc.index(contracts["contract"], wanted).as_py()
            if index < 0:
                raise NotFound("the chain has no such contract", symbol=symbol, contract=wanted)
            contracts = contracts.slice(index, 1)
        age_s = (self._clock() - event.header.as_of).total_seconds()
        return LastGood(event.header, contracts, age_s, failures)

    async def _decoded(self, symbol: str, tx: Tx) -> tuple[ChainCollected, int]:
        """Return the last good chain, decoded once for each snapshot, and the fetches that failed since."""
        event = self._last_good.get(symbol)
        known = None if event is None else (event.header.source, event.header.as_of)
        kept = await self._store.latest(symbol, tx, known)
        if kept is None:
            raise NotFound("no option chain of this symbol has been collected", symbol=symbol)
        if event is None or kept.chain is not None:
            assert kept.chain is not None  # noqa: S101 - it was not known, so it came along
            event = ChainCollected.from_bytes(kept.chain, id=UUID(int=0), time=self._clock())  # never published
        self._last_good[symbol] = event
        self._last_good.move_to_end(symbol)
        if len(self._last_good) > DECODED:
            self._last_good.popitem(last=False)
        return event, kept.failures


def _quote_of(header: ChainHeader) -> Quote:
    return Quote(
        symbol=header.symbol,
        as_of=header.as_of,
        source=header.source,
        simulated=header.simulated,
        close=header.close,
        bid=header.bid,
        ask=header.ask,
    )

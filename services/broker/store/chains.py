"""The last chain of each underlying, and which of its contracts are followed."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import text

from shared.db import Row, Tx
from shared.retention import Transaction, forget, slice_of

_KEEP: Final = text("""
    insert into chains as known (symbol, at, body) values (:symbol, :at, :body)
    on conflict (symbol) do update set at = excluded.at, body = excluded.body where known.at < excluded.at""")
_GET: Final = text("select body from chains where symbol = any(:symbols)")
_FOLLOWED: Final = text("""
    select symbol, underlying from quotes where underlying = any(:symbols)
    union
    select symbol, body -> 'instrument' ->> 'underlying' from positions
    where quantity <> 0 and body -> 'instrument' ->> 'underlying' = any(:symbols)""")
_FORGET: Final = (slice_of("quotes", "underlying is not null and at < :before"), slice_of("chains", "at < :before"))


class ChainStore:
    """Reads and writes chains."""

    async def keep(self, tx: Tx, symbol: str, at: datetime, body: bytes) -> bool:
        """Keep a chain that is newer than the one before."""
        return bool(await tx.execute(_KEEP, symbol=symbol, at=at, body=body))

    async def bodies(self, tx: Tx, symbols: Collection[str]) -> list[bytes]:
        """Return the last chains of underlyings."""
        rows: list[Row] = await tx.fetch(_GET, symbols=list(symbols))
        return [row["body"] for row in rows]

    async def followed(self, tx: Tx, symbols: Collection[str]) -> Mapping[str, set[str]]:
        """Return the contracts, by underlying, that orders have named or that are held."""
        found: dict[str, set[str]] = {}
        for row in await tx.fetch(_FOLLOWED, symbols=list(symbols)):
            found.setdefault(row["underlying"], set()).add(row["symbol"])
        return found

    async def forget(self, transaction: Transaction, before: datetime) -> None:
        """Delete what no chain has told of since then: contracts expire, underlyings are collected no more."""
        for statement in _FORGET:
            await forget(transaction, statement, before=before)

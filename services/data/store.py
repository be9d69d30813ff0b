"""The schema `data`: the last good answer of each symbol and source, how asking for it goes, and what users watch.

`chain` is the Arrow stream as the event carries it, its header included. A symbol may have one row a source,
for a simulated answer must never overwrite a real one; what was recorded last is what is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import text

from services.data.domain.chain import Validators
from shared.contracts.data import ChainCollected, Source
from shared.db import Tx

_KEEP: Final = text(
    """
    insert into snapshots as kept
        (symbol, source, as_of, session, simulated, chain, etag, last_modified, recorded_at, checked_at)
    values (:symbol, :source, :as_of, :session, :simulated, :chain, :etag, :last_modified, :now, :now)
    on conflict (symbol, source) do update set
        as_of = excluded.as_of, session = excluded.session, simulated = excluded.simulated,
        chain = excluded.chain, etag = excluded.etag, last_modified = excluded.last_modified,
        recorded_at = excluded.recorded_at, checked_at = excluded.checked_at, failures = 0, last_error = null
    where kept.as_of is null or kept.as_of < excluded.as_of
    returning true
    """
)
_CHECKED: Final = text(
    """
    update snapshots set checked_at = :now, failures = 0, last_error = null
    where symbol = :symbol and source = :source
    """
)
_FAILED: Final = text(
    """
    insert into snapshots as kept (symbol, source, checked_at, failures, last_error)
    values (:symbol, :source, :now, 1, :error)
    on conflict (symbol, source) do update set
        checked_at = excluded.checked_at, failures = kept.failures + 1, last_error = excluded.last_error
    """
)
_LATEST: Final = text(
    """
    select source, as_of, failures,
        case when (source, as_of) is distinct from (cast(:source as text), cast(:as_of as timestamptz)) then chain end
            as chain
    from snapshots
    where symbol = :symbol and chain is not null
    order by recorded_at desc limit 1
    """
)
_VALIDATORS: Final = text(
    "select symbol, etag, last_modified from snapshots where source = :source and chain is not null"
)

_WATCH: Final = text("insert into watched (symbol, user_id) values (:symbol, :user_id) on conflict do nothing")
_UNWATCH: Final = text("delete from watched where symbol = :symbol and user_id = :user_id")
_WATCHED: Final = text("select symbol from watched group by symbol order by count(*) desc, symbol")


@dataclass(frozen=True, slots=True)
class Kept:
    """A last good answer: which it is, its Arrow stream unless it is already known, and the fetches failed since."""

    source: Source
    as_of: datetime
    failures: int
    chain: bytes | None


class SnapshotStore:
    """Reads and writes `data.snapshots` and `data.watched`."""

    async def keep(self, event: ChainCollected, validators: Validators, now: datetime, tx: Tx) -> bool:
        """Keep the chain if it is newer than the one of its symbol and source; say whether it was."""
        header = event.header
        kept = await tx.fetchval(
            _KEEP,
            symbol=header.symbol,
            source=header.source,
            as_of=header.as_of,
            session=header.session,
            simulated=header.simulated,
            chain=event.to_bytes(),
            etag=validators.etag,
            last_modified=validators.last_modified,
            now=now,
        )
        return kept is not None

    async def checked(self, symbol: str, source: Source, now: datetime, tx: Tx) -> None:
        """Note that the source has nothing newer."""
        await tx.execute(_CHECKED, symbol=symbol, source=source, now=now)

    async def failed(self, symbol: str, source: Source, error: str, now: datetime, tx: Tx) -> None:
        """Note a failed fetch; the last good answer stays."""
        await tx.execute(_FAILED, symbol=symbol, source=source, error=error, now=now)

    async def latest(self, symbol: str, tx: Tx, known: tuple[Source, datetime] | None = None) -> Kept | None:
        """Return the answer of `symbol` that was recorded last, from any source; without its chain if it is `known`."""
        source, as_of = known or (None, None)
        row = await tx.fetchrow(_LATEST, symbol=symbol, source=source, as_of=as_of)
        return None if row is None else Kept(**dict(row))

    async def watch(self, symbol: str, user_id: UUID, tx: Tx) -> None:
        """Keep that a user watches a symbol."""
        await tx.execute(_WATCH, symbol=symbol, user_id=user_id)

    async def unwatch(self, symbol: str, user_id: UUID, tx: Tx) -> None:
        """Keep that a user no longer does."""
        await tx.execute(_UNWATCH, symbol=symbol, user_id=user_id)

    async def watched(self, tx: Tx) -> list[str]:
        """Return the symbols that users watch, those of most users first."""
        return [row["symbol"] for row in await tx.fetch(_WATCHED)]

    async def validators(self, source: Source, tx: Tx) -> Mapping[str, Validators]:
        """Return, by symbol, what makes the next request to `source` conditional."""
        rows = await tx.fetch(_VALIDATORS, source=source)
        return {row["symbol"]: Validators(row["etag"], row["last_modified"]) for row in rows}

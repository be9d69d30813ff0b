"""Tables and queries of the detector's schema.

Every write is one statement for a whole batch, its rows handed over as arrays and sorted by their key, so
that two lanes that meet on a row meet in the same order. What would surprise you: no handler touches the
board. Handlers add candidates and scans of a minute; one worker makes the board of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import text

from services.detector.domain.snapshots import Snapshot
from shared import retention
from shared.contracts.data import ChainHeader
from shared.contracts.detector import LeaderboardEntry, UnusualContract
from shared.db import Row, Tx

_SNAPSHOTS = text(
    """
    select symbol, session, as_of, contracts, volumes
    from snapshots
    where symbol = any(cast(:symbols as text[]))
    """
)

_KEEP_SNAPSHOTS = text(
    """
    insert into snapshots as known (symbol, session, as_of, contracts, volumes)
    select * from unnest(cast(:symbols as text[]), cast(:sessions as date[]), cast(:as_ofs as timestamptz[]),
                         cast(:contracts as text[]), cast(:volumes as bytea[])) as new
    order by 1
    on conflict (symbol) do update
    set session = excluded.session, as_of = excluded.as_of,
        contracts = excluded.contracts, volumes = excluded.volumes
    where (excluded.session, excluded.as_of) > (known.session, known.as_of)
    """
)

# The newest snapshot describes the contract; its best score and its first appearance survive a late one.
_ADD_ACTIVITY = text(
    """
    insert into activity as known
        (session, contract, symbol, as_of, underlying_usd, source, simulated, detail, score,
         best_score, first_as_of)
    select distinct on (session, contract)
        session, contract, symbol, as_of, underlying_usd, source, simulated, cast(detail as jsonb), score,
        max(score) over same, min(as_of) over same
    from unnest(cast(:sessions as date[]), cast(:contracts as text[]), cast(:symbols as text[]),
                cast(:as_ofs as timestamptz[]), cast(:underlyings as numeric[]), cast(:sources as text[]),
                cast(:simulated as boolean[]), cast(:details as text[]), cast(:scores as float8[]))
        with ordinality as new
            (session, contract, symbol, as_of, underlying_usd, source, simulated, detail, score, place)
    window same as (partition by session, contract)
    order by session, contract, as_of desc, place desc
    on conflict (session, contract) do update
    set best_score = greatest(known.best_score, excluded.best_score),
        first_as_of = least(known.first_as_of, excluded.first_as_of),
        symbol = case when excluded.as_of >= known.as_of then excluded.symbol else known.symbol end,
        as_of = case when excluded.as_of >= known.as_of then excluded.as_of else known.as_of end,
        underlying_usd = case
            when excluded.as_of >= known.as_of then excluded.underlying_usd else known.underlying_usd end,
        source = case when excluded.as_of >= known.as_of then excluded.source else known.source end,
        simulated = case when excluded.as_of >= known.as_of then excluded.simulated else known.simulated end,
        detail = case when excluded.as_of >= known.as_of then excluded.detail else known.detail end,
        score = case when excluded.as_of >= known.as_of then excluded.score else known.score end
    """
)

_ADD_SCANS = text(
    """
    insert into scans (session, minute, symbols)
    select session, minute, array_agg(symbol)
    from unnest(cast(:sessions as date[]), cast(:minutes as timestamptz[]), cast(:symbols as text[]))
        as new (session, minute, symbol)
    group by session, minute
    """
)

_ADD_CANDIDATES = text(
    """
    insert into candidates as known
        (session, minute, contract, symbol, score, premium_usd, volume, open_interest, simulated)
    select *
    from unnest(cast(:sessions as date[]), cast(:minutes as timestamptz[]), cast(:contracts as text[]),
                cast(:symbols as text[]), cast(:scores as float8[]), cast(:premiums as numeric[]),
                cast(:volumes as bigint[]), cast(:interests as bigint[]), cast(:simulated as boolean[])) as new
    order by 1, 2, 3
    on conflict (session, minute, contract) do update
    set symbol = excluded.symbol, score = excluded.score, premium_usd = excluded.premium_usd,
        volume = excluded.volume, open_interest = excluded.open_interest, simulated = excluded.simulated
    where excluded.score >= known.score
    """
)

_LOCK_BOARD = text("select pg_try_advisory_xact_lock(hashtext('openbell/detector/leaderboard'))")

_TAKE_MINUTES = text(
    """
    with taken as (
        update scans set counted = true where not counted returning session, minute
    )
    select distinct session, minute from taken order by session, minute
    """
)

_COUNT_SYMBOLS = text(
    """
    select minute, count(distinct symbol) as symbols
    from scans, unnest(symbols) as symbol
    where session = :session and minute = any(cast(:minutes as timestamptz[]))
    group by minute
    """
)

_BOARDS_SINCE = text(
    """
    select session, minute, symbols_scanned, entries
    from boards
    where session = :session
      and minute >= coalesce((select max(minute) from boards where session = :session and minute < :since), :since)
    order by minute
    """
)

_CANDIDATES_SINCE = text(
    """
    select * from (
        select *, row_number() over (partition by minute order by score desc, contract) as rank
        from candidates
        where session = :session and minute >= :since
    ) as ranked
    where rank <= :places
    order by minute, rank
    """
)

_DROP_CANDIDATES = text(
    """
    delete from candidates as each using (
        select minute, contract, row_number() over (partition by minute order by score desc, contract) as rank
        from candidates
        where session = :session and minute = any(cast(:minutes as timestamptz[]))
    ) as ranked
    where each.session = :session and each.minute = ranked.minute and each.contract = ranked.contract
      and ranked.rank > :places
    """
)

_KEEP_BOARDS = text(
    """
    insert into boards (session, minute, symbols_scanned, entries)
    select cast(:session as date), minute, symbols, cast(entries as jsonb)
    from unnest(cast(:minutes as timestamptz[]), cast(:symbols as int[]), cast(:entries as text[]))
        as new (minute, symbols, entries)
    on conflict (session, minute) do update
    set symbols_scanned = excluded.symbols_scanned, entries = excluded.entries
    """
)

_BOARD = text(
    """
    select session, minute, symbols_scanned, entries
    from boards
    where (cast(:session as date) is null or session = :session)
      and (cast(:at as timestamptz) is null or minute <= :at)
    order by session desc, minute desc
    limit 1
    """
)

_HISTORY = text(
    """
    select session, minute, symbols_scanned, jsonb_array_length(entries) as places,
           entries -> 0 ->> 'contract' as best_contract, cast(entries -> 0 ->> 'score' as float8) as best_score
    from boards
    where session = coalesce(cast(:session as date), (select max(session) from boards))
    order by minute desc
    limit :limit
    """
)

_ACTIVITY = text(
    """
    select session, as_of, first_as_of, underlying_usd, source, simulated, best_score, detail
    from activity
    where symbol = :symbol
      and session = coalesce(cast(:session as date), (select max(session) from activity where symbol = :symbol))
    order by best_score desc, contract
    limit :limit
    """
)

_DROP_OLD = {
    table: retention.slice_of(table, "session < :before")
    for table in ("activity", "boards", "candidates", "scans", "snapshots")
}


@dataclass(frozen=True, slots=True)
class Minute:
    """A minute's place in the board's history. `ends` is the first moment after it."""

    ends: datetime
    symbols_scanned: int
    entries: tuple[LeaderboardEntry, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best contracts that one batch found in one minute of a session."""

    session: date
    minute_ends: datetime
    entries: Sequence[LeaderboardEntry]


class DetectorStore:
    """Reads and writes through the caller's transaction."""

    async def snapshots(self, tx: Tx, symbols: Iterable[str]) -> dict[str, Snapshot]:
        """Return what is known of each symbol's last snapshot."""
        rows = await tx.fetch(_SNAPSHOTS, symbols=sorted(set(symbols)))
        return {row["symbol"]: _snapshot(row) for row in rows}

    async def keep_snapshots(self, tx: Tx, kept: Mapping[str, Snapshot]) -> None:
        """Remember `kept` where it is newer than what is known."""
        if not kept:
            return
        await tx.execute(
            _KEEP_SNAPSHOTS,
            symbols=list(kept),
            sessions=[snapshot.session for snapshot in kept.values()],
            as_ofs=[snapshot.as_of for snapshot in kept.values()],
            contracts=["\n".join(snapshot.contracts.to_pylist()) for snapshot in kept.values()],
            volumes=[snapshot.volume.astype("<i8").tobytes() for snapshot in kept.values()],
        )

    async def add_activity(
        self, tx: Tx, found: Sequence[tuple[ChainHeader, Decimal | None, Sequence[UnusualContract]]]
    ) -> None:
        """Store every contract found, one row a contract and session."""
        rows = [(header, usd, contract) for header, usd, contracts in found for contract in contracts]
        if not rows:
            return
        await tx.execute(
            _ADD_ACTIVITY,
            sessions=[header.session for header, _, _ in rows],
            contracts=[contract.contract for _, _, contract in rows],
            symbols=[header.symbol for header, _, _ in rows],
            as_ofs=[header.as_of for header, _, _ in rows],
            underlyings=[usd for _, usd, _ in rows],
            sources=[header.source for header, _, _ in rows],
            simulated=[header.simulated for header, _, _ in rows],
            details=[contract.model_dump_json() for _, _, contract in rows],
            scores=[contract.score for _, _, contract in rows],
        )

    async def add_scans(self, tx: Tx, scans: Sequence[tuple[date, datetime, str]]) -> None:
        """Store which symbols were scanned, as (session, end of the minute, symbol)."""
        sessions, minutes, symbols = zip(*scans, strict=True)
        await tx.execute(_ADD_SCANS, sessions=list(sessions), minutes=list(minutes), symbols=list(symbols))

    async def add_candidates(self, tx: Tx, candidates: Iterable[Candidates]) -> None:
        """Store who may enter the board in each minute; a contract's better score in a minute stands."""
        rows = [(each.session, each.minute_ends, entry) for each in candidates for entry in each.entries]
        if not rows:
            return
        await tx.execute(
            _ADD_CANDIDATES,
            sessions=[session for session, _, _ in rows],
            minutes=[ends for _, ends, _ in rows],
            contracts=[entry.contract for _, _, entry in rows],
            symbols=[entry.symbol for _, _, entry in rows],
            scores=[entry.score for _, _, entry in rows],
            premiums=[entry.premium_usd for _, _, entry in rows],
            volumes=[entry.volume for _, _, entry in rows],
            interests=[entry.open_interest for _, _, entry in rows],
            simulated=[entry.simulated for _, _, entry in rows],
        )

    async def lock_board(self, tx: Tx) -> bool:
        """Say whether the board is ours until the transaction ends; another replica may have it."""
        return bool(await tx.fetchval(_LOCK_BOARD))

    async def take_minutes(self, tx: Tx) -> dict[date, list[datetime]]:
        """Return session -> minutes that were scanned since they were last taken, in order."""
        taken: dict[date, list[datetime]] = {}
        for row in await tx.fetch(_TAKE_MINUTES):
            taken.setdefault(row["session"], []).append(row["minute"])
        return taken

    async def count_symbols(self, tx: Tx, session: date, minutes: Sequence[datetime]) -> dict[datetime, int]:
        """Return how many different symbols were scanned in each minute."""
        rows = await tx.fetch(_COUNT_SYMBOLS, session=session, minutes=list(minutes))
        return {row["minute"]: row["symbols"] for row in rows}

    async def boards_since(self, tx: Tx, session: date, since: datetime) -> list[Minute]:
        """Return the board of each minute from `since` on, and the one before it if there is one."""
        return [_minute(row) for row in await tx.fetch(_BOARDS_SINCE, session=session, since=since)]

    async def candidates_since(
        self, tx: Tx, session: date, since: datetime, places: int
    ) -> dict[datetime, list[LeaderboardEntry]]:
        """Return the best `places` candidates of each minute from `since` on, best first."""
        best: dict[datetime, list[LeaderboardEntry]] = {}
        for row in await tx.fetch(_CANDIDATES_SINCE, session=session, since=since, places=places):
            best.setdefault(row["minute"], []).append(LeaderboardEntry.model_validate(dict(row)))
        return best

    async def drop_candidates(self, tx: Tx, session: date, minutes: Sequence[datetime], places: int) -> None:
        """Forget the candidates of `minutes` beyond `places`: no later one can bring them back."""
        await tx.execute(_DROP_CANDIDATES, session=session, minutes=list(minutes), places=places)

    async def keep_boards(self, tx: Tx, session: date, boards: Sequence[Minute]) -> None:
        """Store the board of each minute."""
        await tx.execute(
            _KEEP_BOARDS,
            session=session,
            minutes=[board.ends for board in boards],
            symbols=[board.symbols_scanned for board in boards],
            entries=["[" + ",".join(entry.model_dump_json() for entry in board.entries) + "]" for board in boards],
        )

    async def board(self, tx: Tx, session: date | None, at: datetime | None) -> Row | None:
        """Return the newest board (session, minute, symbols_scanned, entries), of `session`, not after `at`."""
        return await tx.fetchrow(_BOARD, session=session, at=at)

    async def history(self, tx: Tx, session: date | None, limit: int) -> list[Row]:
        """Return the minutes of the newest session, or of `session`, newest first."""
        return await tx.fetch(_HISTORY, session=session, limit=limit)

    async def activity(self, tx: Tx, symbol: str, session: date | None, limit: int) -> list[Row]:
        """Return the unusual contracts of the symbol's newest session, or of `session`, best first."""
        return await tx.fetch(_ACTIVITY, symbol=symbol, session=session, limit=limit)

    async def drop_old(self, transaction: retention.Transaction, before: Mapping[str, date]) -> dict[str, int]:
        """Delete sessions before the date given for each table; return how many rows went."""
        return {name: await retention.forget(transaction, _DROP_OLD[name], before=day) for name, day in before.items()}


def _snapshot(row: Row) -> Snapshot:
    names: list[Any] = row["contracts"].split("\n") if row["contracts"] else []
    volume = np.frombuffer(row["volumes"], dtype="<i8").astype(np.int64)
    return Snapshot(row["session"], row["as_of"], pa.array(names, pa.string()), volume)


def _minute(row: Row) -> Minute:
    entries = tuple(LeaderboardEntry.model_validate(entry) for entry in row["entries"])
    return Minute(row["minute"], row["symbols_scanned"], entries)

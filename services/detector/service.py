"""Use cases of the detector: find what is unusual in chains, keep the leaderboard, show both.

`detect` is a batch handler: whatever the number of chains, it makes a few array operations and a constant
number of statements. What would surprise you: it never touches the leaderboard, so that lanes never wait for
each other; `refresh_board` makes it of what they stored.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from prometheus_client import Counter

from services.detector.domain.board import entry, merge, minute_end, top_x
from services.detector.domain.rule import Chains, Rule, check_header, detect
from services.detector.domain.scoring import describe, price_or_none
from services.detector.domain.snapshots import compare
from services.detector.store import Candidates, DetectorStore, Minute
from shared.clock import Clock, NewId
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.contracts.detector import ActivityDetected, LeaderboardChanged, LeaderboardEntry, UnusualContract
from shared.db import Row, Tx
from shared.errors import NotFound
from shared.retention import Transaction

log = logging.getLogger("openbell.detector")

CHAINS: Final = Counter("openbell_detector_chains_total", "Chain snapshots scanned.")
CONTRACTS: Final = Counter("openbell_detector_contracts_total", "Contracts scanned.")
UNUSUAL: Final = Counter("openbell_detector_unusual_total", "Contracts that met the rule, once a snapshot.")
LEFT_OUT: Final = Counter(
    "openbell_detector_rows_faulty_total", "Rows left out, or without a side, by what was wrong.", ("reason",)
)

CONTRACTS_PER_EVENT: Final = 500
_ORDINARY: Final = frozenset({"zero_open_interest"})  # contracts listed today have none: counted, not logged

Told = Sequence[tuple[ChainCollected, Sequence[UnusualContract]]]


@dataclass(frozen=True, slots=True)
class BoardRules:
    """The board's places; who may enter in a minute (see `top_x`)."""

    size: int = 100
    least: int = 5
    share: float = 0.01


@dataclass(frozen=True, slots=True)
class Retention:
    """How many days of sessions are kept."""

    activity_days: int = 90
    board_days: int = 30


class Detector:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: DetectorStore,
        *,
        clock: Clock,
        new_id: NewId,
        rule: Rule | None = None,
        board: BoardRules | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._rule = rule or Rule()
        self._board = board or BoardRules()
        self._retention = retention or Retention()

    async def detect(self, events: Sequence[ChainCollected], tx: Tx) -> list[Event]:
        """Find and store the unusual contracts of the chains; tell them, chain by chain.

        Raises Invalid when a chain's header says nothing usable. Broken rows are counted and left out.
        """
        for event in events:
            check_header(event.header)
        chains = Chains.of([(event.header, event.contracts) for event in events])
        found = detect(chains, self._rule)
        known = await self._store.snapshots(tx, (event.header.symbol for event in events))
        change, kept = compare(chains, found, known)
        by_chain = describe(found, change)
        told = [(event, by_chain[number]) for number, event in enumerate(events) if number in by_chain]

        await self._store.keep_snapshots(tx, kept)
        await self._store.add_activity(
            tx, [(event.header, price_or_none(event.header.close), contracts) for event, contracts in told]
        )
        await self._store.add_candidates(tx, self._candidates(told))
        await self._store.add_scans(
            tx,
            [(event.header.session, minute_end(event.header.as_of), event.header.symbol) for event in events],
        )
        tx.after_commit(lambda: _account(events, len(chains), len(found), found.faults))
        return [activity for event, contracts in told for activity in _activity(event, contracts)]

    def _candidates(self, told: Told) -> list[Candidates]:
        """Return the best of each minute: more than the board has places can never enter it."""
        found: dict[tuple[date, datetime], list[LeaderboardEntry]] = {}
        for event, contracts in told:
            header = event.header
            minute = found.setdefault((header.session, minute_end(header.as_of)), [])
            minute += (entry(header.symbol, contract, simulated=header.simulated) for contract in contracts)
        return [
            Candidates(session, ends, merge((), entries, self._board.size))
            for (session, ends), entries in sorted(found.items())
        ]

    async def refresh_board(self, tx: Tx) -> list[Event]:
        """Take in the minutes scanned since the last time; tell the boards that changed.

        A minute that changes late is settled again, and every board of its session after it.
        """
        if not await self._store.lock_board(tx):
            return []
        told: list[Event] = []
        for session, minutes in (await self._store.take_minutes(tx)).items():
            told += await self._settle(tx, session, minutes)
        return told

    async def _settle(self, tx: Tx, session: date, minutes: Sequence[datetime]) -> list[Event]:
        since, size = minutes[0], self._board.size
        known = {board.ends: board for board in await self._store.boards_since(tx, session, since)}
        scanned = {ends: board.symbols_scanned for ends, board in known.items()}
        scanned |= await self._store.count_symbols(tx, session, minutes)
        candidates = await self._store.candidates_since(tx, session, since, size)

        entries = next((board.entries for ends, board in known.items() if ends < since), ())
        boards: list[Minute] = []
        for ends in sorted(ends for ends in scanned if ends >= since):
            places = top_x(scanned[ends], self._board.least, self._board.share)
            entries = merge(entries, candidates.get(ends, [])[:places], size)
            boards.append(Minute(ends, scanned[ends], entries))
        newest = boards[-1]
        await self._store.keep_boards(tx, session, [board for board in boards if board != known.get(board.ends)])
        await self._store.drop_candidates(tx, session, [ends for ends in scanned if ends < newest.ends], size)

        before = known[max(known)].entries if known else ()
        if newest.entries == before:
            return []
        return [
            LeaderboardChanged(
                id=self._new_id(),
                time=self._clock(),
                session=session,
                as_of=newest.ends,
                symbols_scanned=newest.symbols_scanned,
                entries=newest.entries,
            )
        ]

    async def board(self, session: date | None, at: datetime | None, tx: Tx) -> Row | None:
        """Return the newest board, of `session` if given, as it stood at `at` if given.

        None while there has never been one; raises NotFound when there is none for what was asked.
        """
        row = await self._store.board(tx, session, at)
        if row is None and (session or at):
            raise NotFound("there is no leaderboard of that session or time")
        return row

    async def history(self, session: date | None, limit: int, tx: Tx) -> list[Row]:
        """Return the minutes of a session's board, newest first."""
        return await self._store.history(tx, session, limit)

    async def activity(self, symbol: str, session: date | None, limit: int, tx: Tx) -> list[Row]:
        """Return a symbol's unusual contracts of one session, best first."""
        return await self._store.activity(tx, symbol.upper(), session, limit)

    async def drop_old(self, today: date, transaction: Transaction) -> None:
        """Delete what is older than its retention."""
        activity = today - timedelta(days=self._retention.activity_days)
        board = today - timedelta(days=self._retention.board_days)
        dropped = await self._store.drop_old(
            transaction,
            {"activity": activity, "boards": board, "candidates": board, "scans": board, "snapshots": board},
        )
        log.info("detector.dropped_old", extra={"rows": dropped})


def _activity(event: ChainCollected, contracts: Sequence[UnusualContract]) -> list[ActivityDetected]:
    header = event.header
    return [
        ActivityDetected.caused_by(
            event,
            ordinal,
            symbol=header.symbol,
            session=header.session,
            as_of=header.as_of,
            source=header.source,
            simulated=header.simulated,
            delay_s=header.delay_s,
            underlying_usd=price_or_none(header.close),
            contracts=tuple(contracts[start : start + CONTRACTS_PER_EVENT]),
        )
        for ordinal, start in enumerate(range(0, len(contracts), CONTRACTS_PER_EVENT))
    ]


def _account(
    events: Sequence[ChainCollected], scanned: int, found: int, faults: Mapping[int, Mapping[str, int]]
) -> None:
    CHAINS.inc(len(events))
    CONTRACTS.inc(scanned)
    UNUSUAL.inc(found)
    for number, reasons in faults.items():
        for reason, count in reasons.items():
            LEFT_OUT.labels(reason).inc(count)
        if reasons.keys() - _ORDINARY:
            header = events[number].header
            log.warning(
                "detector.faulty_rows",
                extra={"symbol": header.symbol, "as_of": header.as_of.isoformat(), "reasons": dict(reasons)},
            )

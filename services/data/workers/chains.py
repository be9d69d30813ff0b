"""The poller: asks the source for every symbol, round after round, and records what it tells.

The symbols are those of the settings and those that users watch, which each round reads anew. Fetching happens
outside any transaction; what came of it is recorded through the door. A round asks first for the symbols that waited
longest, a few at a time. An open breaker or a closed market asks nothing; `health`
and the metrics say so. When recording fails, `run` raises and is started again: nothing was told, and a
recording or a tick told twice is the same fact.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import stamina
from prometheus_client import Counter, Gauge
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from services.data.domain.chain import Snapshot, Validators
from services.data.ports import ChainSource, Ended, QuoteFeed, Unchanged
from services.data.service import DataService
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import NotFound, OpenbellError, Permanent, Transient
from shared.external import breaker_moved
from shared.messaging.door import Door

log = logging.getLogger("openbell.data")

POLLS: Final = Counter(
    "openbell_data_polls_total",
    "Fetches by outcome: new, unchanged, unknown (no such symbol), failed, refused (breaker open), ended.",
    ("source", "outcome"),
)
DROPPED: Final = Counter(
    "openbell_data_rows_dropped_total", "Faulty rows of chains, by what was wrong.", ("source", "reason")
)
PHASE: Final = Gauge("openbell_data_poller_phase", "1 for what the poller is doing.", ("phase",))
LAST_NEW: Final = Gauge(
    "openbell_data_last_snapshot_timestamp_seconds", "When a new chain was last recorded.", ("source",)
)

LONGEST_NAP_S: Final = 60.0
LONGEST_RETRY_AFTER_S: Final = 30.0
ASK_UNKNOWN_AGAIN: Final = timedelta(hours=1)
STALLED_AFTER: Final = timedelta(minutes=5)


class Phase(StrEnum):
    """What the poller is doing."""

    STARTING = "starting"
    POLLING = "polling"
    OUTSIDE_SESSION = "outside session"
    BREAKER_OPEN = "breaker open"
    ENDED = "ended"


class Poller:
    """Polls one source for ever. `open_source` chooses and opens it when `run` starts."""

    name = "data.poller"

    def __init__(
        self,
        *,
        open_source: Callable[[], Awaitable[ChainSource]],
        service: DataService,
        door: Door,
        clock: Clock,
        symbols: Sequence[str],
        max_watched: int = 100,
        batch: int = 4,
        attempts: int = 3,
        breaker_threshold: int = 5,
        breaker_s: float = 60.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.phase = Phase.STARTING
        self.source_name = "none"
        self._open_source = open_source
        self._service = service
        self._door = door
        self._clock = clock
        self._configured = tuple(symbols)
        self._max_watched = max_watched
        self._symbols = self._configured
        self._batch = batch
        self._attempts = attempts
        self._breakers = AsyncCircuitBreakerFactory(
            breaker_threshold, breaker_s, exclude=[Permanent, asyncio.CancelledError]
        )
        self._breakers.add_listener(breaker_moved)
        self._sleep = sleep
        self._known: dict[str, Validators] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._turns_by = clock() + STALLED_AFTER
        self._unknown_until: dict[str, datetime] = {}

    def health(self) -> tuple[bool, str]:
        """Return whether the loop turns, and what it is doing.

        An open breaker is not ill health: the last good answers are served, and nobody here can mend the
        source.
        """
        stalled = self._clock() > self._turns_by
        detail = f"{self.source_name}: {self.phase}" + (", stalled" if stalled else "")
        return self.phase is not Phase.STARTING and not stalled, detail

    async def run(self) -> None:
        """Poll until cancelled."""
        self._enter(Phase.STARTING)
        source = await self._open_source()
        self.source_name = source.name
        log.info("data.source_opened", extra={"source": source.name, "delay_s": source.delay_s})
        try:
            async with self._door.read() as tx:
                self._known = dict(await self._service.validators(source.name, tx))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._poll(source))
                if source.quotes is not None:
                    tasks.create_task(self._stream(source, source.quotes))
        finally:
            await source.aclose()

    async def _poll(self, source: ChainSource) -> None:
        while True:
            started = self._clock()
            closed_for_s = source.opens_in_s(started)
            if closed_for_s > 0:
                self._enter(Phase.OUTSIDE_SESSION)
                await self._rest(min(closed_for_s, LONGEST_NAP_S))
                continue
            if self.phase is not Phase.BREAKER_OPEN:
                self._enter(Phase.POLLING)
            if await self.round(source):
                self._enter(Phase.ENDED)
                log.info("data.source_ended", extra={"source": source.name})
                self._turns_by = datetime.max.replace(tzinfo=UTC)
                await asyncio.Event().wait()
            spent_s = (self._clock() - started).total_seconds()
            await self._rest(max(source.poll_every_s - spent_s, 0.0))

    async def _rest(self, seconds: float) -> None:
        self._turns_by = self._clock() + timedelta(seconds=seconds) + STALLED_AFTER
        await self._sleep(seconds)

    async def round(self, source: ChainSource) -> bool:
        """Ask once for every symbol; return whether the source has ended for all of them."""
        now = self._clock()
        self._symbols = await self._wanted(now)
        due = [symbol for symbol in source.offers(self._symbols) if not self._unknown(symbol, now)]
        due.sort(key=lambda symbol: self._turns.get(symbol, -1))
        ended = 0
        for first in range(0, len(due), self._batch):
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(self._ask(source, one)) for one in due[first : first + self._batch]]
            outcomes = [task.result() for task in asked]
            self._turns_by = self._clock() + STALLED_AFTER
            ended += outcomes.count("ended")
            for outcome in outcomes:
                POLLS.labels(source.name, outcome).inc()
            if "refused" in outcomes:
                self._enter(Phase.BREAKER_OPEN)
                return False
            self._enter(Phase.POLLING)
        return bool(due) and ended == len(due)

    async def _wanted(self, now: datetime) -> tuple[str, ...]:
        """Return the symbols of the settings, then what users watch: those of most users, as far as they are known."""
        async with self._door.read() as tx:
            watched = await self._service.watched(tx)
        more = [one for one in watched if one not in self._configured and not self._unknown(one, now)]
        return *self._configured, *more[: self._max_watched]

    def _unknown(self, symbol: str, now: datetime) -> bool:
        return symbol in self._unknown_until and now < self._unknown_until[symbol]

    async def _ask(self, source: ChainSource, symbol: str) -> str:
        """Fetch one symbol and record the outcome; return its name."""
        try:
            found = await self._fetch(source, symbol)
        except OpenedState:
            return "refused"
        except OpenbellError as error:
            self._took_turn(symbol)
            log.warning("data.fetch_failed", extra={"symbol": symbol, "code": error.code, "error": error.message})
            if isinstance(error, NotFound):
                self._unknown_until[symbol] = self._clock() + ASK_UNKNOWN_AGAIN
            failure = error
            await self._door.publish(lambda tx: self._service.record_failure(symbol, source.name, failure, tx))
            return "unknown" if isinstance(error, NotFound) else "failed"
        self._took_turn(symbol)
        if isinstance(found, Ended):
            return "ended"
        if isinstance(found, Unchanged):
            await self._door.publish(lambda tx: self._service.record_unchanged(symbol, source.name, tx))
            return "unchanged"
        return await self._record(found)

    async def _fetch(self, source: ChainSource, symbol: str) -> Snapshot | Unchanged | Ended:
        known = self._known.get(symbol, Validators())
        async with await self._breakers.get_breaker(source.name):
            async for attempt in stamina.retry_context(_retry, self._attempts, wait_initial=0.5, wait_max=10.0):
                with attempt:
                    return await source.fetch(symbol, known)
        raise AssertionError("the last attempt either returns or raises")

    async def _record(self, snapshot: Snapshot) -> str:
        header = snapshot.header
        told: list[int] = []

        async def record(tx: Tx) -> list[Event]:
            events = await self._service.record(snapshot, tx)
            told.append(len(events))
            return events

        await self._door.publish(record)
        for reason, count in snapshot.dropped.items():
            DROPPED.labels(header.source, reason).inc(count)
        if not told[-1]:
            return "unchanged"
        self._known[header.symbol] = snapshot.validators
        LAST_NEW.labels(header.source).set(self._clock().timestamp())
        return "new"

    async def _stream(self, source: ChainSource, feed: QuoteFeed) -> None:
        told: dict[str, datetime] = {}
        while True:
            taken = [feed.take(symbol) for symbol in source.offers(self._symbols)]
            fresh = [quote for quote in taken if told.get(quote.symbol) != quote.as_of]
            await self._door.publish(lambda tx, quotes=fresh: self._service.record_quotes(quotes, tx))
            told.update((quote.symbol, quote.as_of) for quote in fresh)
            await self._sleep(feed.every_s)

    def _took_turn(self, symbol: str) -> None:
        self._turn += 1
        self._turns[symbol] = self._turn

    def _enter(self, phase: Phase) -> None:
        if phase is not self.phase:
            log.info("data.phase", extra={"source": self.source_name, "phase": phase.value})
        self.phase = phase
        for each in Phase:
            PHASE.labels(each.value).set(1.0 if each is phase else 0.0)


def _retry(error: Exception) -> bool | float:
    """Say whether to ask again: after stamina's back-off with jitter, or after the stated wait."""
    if not isinstance(error, Transient):
        return False
    wait_s = error.retry_after_s
    if wait_s is None:
        return True
    return wait_s if wait_s <= LONGEST_RETRY_AFTER_S else False

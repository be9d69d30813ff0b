"""The pair poller: asks a source for the quotes of all crypto pairs at once, again and again, and tells what is new.

Nothing is kept: a quote that is not told counts for nothing a minute later. Where the source refuses a request for one
of its pairs, the pairs are asked for in halves until that one stands alone, and it is left out for an hour.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Gauge

from services.data.domain.pairs import PairQuote
from services.data.ports import PairQuotes, PairSource
from services.data.service import DataService
from services.data.workers.chains import ASK_UNKNOWN_AGAIN, DROPPED, POLLS, STALLED_AFTER
from shared.clock import Clock
from shared.errors import Invalid, OpenbellError, Transient
from shared.messaging.door import Door

log = logging.getLogger("openbell.data")

TOLD_AT: Final = Gauge(
    "openbell_data_last_pair_quote_timestamp_seconds",
    "When a new quote of a crypto pair was last told; before the first one, when asking began.",
    ("source",),
)
LONGEST_S: Final = 60.0
"""So long it waits at most after failures, each of which doubles the wait."""
LONGEST_TOLD_S: Final = 600.0
"""So long at most where the source says how long."""


class PairPoller:
    """Polls one source for ever. `open_source` chooses and opens it when `run` starts; None where there is none."""

    name = "data.pairs"

    def __init__(
        self,
        *,
        open_source: Callable[[], Awaitable[PairSource | None]],
        service: DataService,
        door: Door,
        clock: Clock,
        pairs: Sequence[str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._open_source = open_source
        self._service = service
        self._door = door
        self._clock = clock
        self._pairs = tuple(pairs)
        self._sleep = sleep
        self._told: dict[str, datetime] = {}
        self._refused_until: dict[str, datetime] = {}
        self._failures = 0
        self._detail = "starting"
        self._turns_by: datetime | None = clock() + STALLED_AFTER

    def health(self) -> tuple[bool, str]:
        """Return whether the loop turns, and what it last did. A source that fails is not ill health."""
        stalled = self._turns_by is not None and self._clock() > self._turns_by
        return not stalled, self._detail + (", stalled" if stalled else "")

    async def run(self) -> None:
        """Poll until cancelled."""
        source = await self._open_source()
        if source is None:
            self._detail, self._turns_by = "no source", None
            await asyncio.Event().wait()
            return
        log.info("data.pairs_opened", extra={"source": source.name, "pairs": len(self._pairs)})
        TOLD_AT.labels(source.name).set(self._clock().timestamp())
        try:
            while True:
                wait_s = await self.round(source)
                self._turns_by = self._clock() + timedelta(seconds=wait_s) + STALLED_AFTER
                await self._sleep(wait_s)
        finally:
            await source.aclose()

    async def round(self, source: PairSource) -> float:
        """Ask once for every pair, and tell what is new; return the seconds until the next round."""
        began = self._clock()
        asked = [pair for pair in self._pairs if self._refused_until.get(pair, began) <= began]
        try:
            found = await self._ask(source, asked)
        except OpenbellError as error:
            return self._failed(source, error)
        self._failures = 0
        for reason, count in found.dropped.items():
            DROPPED.labels(source.name, reason).inc(count)
        fresh = [one for one in found.quotes if self._told.get(one.symbol) != one.as_of]
        if fresh:
            await self._tell(source, fresh)
        POLLS.labels(source.name, "new" if fresh else "unchanged").inc()
        self._detail = f"{source.name}: {len(found.quotes)} of {len(self._pairs)} pairs"
        return max(source.every_s - (self._clock() - began).total_seconds(), 0.0)

    async def _tell(self, source: PairSource, fresh: Sequence[PairQuote]) -> None:
        await self._door.publish(
            lambda tx: self._service.record_pairs(fresh, source.name, tx, simulated=source.simulated)
        )
        self._told.update((one.symbol, one.as_of) for one in fresh)
        TOLD_AT.labels(source.name).set(self._clock().timestamp())

    async def _ask(self, source: PairSource, pairs: Sequence[str]) -> PairQuotes:
        if not pairs:
            return PairQuotes(())
        try:
            return await source.quotes(pairs)
        except Invalid as error:
            if len(pairs) == 1:
                self._refused_until[pairs[0]] = self._clock() + ASK_UNKNOWN_AGAIN
                log.warning("data.pair_refused", extra={"pair": pairs[0], "error": error.message})
                POLLS.labels(source.name, "unknown").inc()
                return PairQuotes(())
        middle = len(pairs) // 2
        one, other = await self._ask(source, pairs[:middle]), await self._ask(source, pairs[middle:])
        dropped = {
            name: one.dropped.get(name, 0) + other.dropped.get(name, 0) for name in {*one.dropped, *other.dropped}
        }
        return PairQuotes([*one.quotes, *other.quotes], dropped)

    def _failed(self, source: PairSource, error: OpenbellError) -> float:
        self._failures += 1
        log.warning("data.pairs_failed", extra={"source": source.name, "code": error.code, "error": error.message})
        POLLS.labels(source.name, "failed").inc()
        self._detail = f"{source.name}: {error.message}"
        told_s = (error.retry_after_s or 0.0) if isinstance(error, Transient) else 0.0
        own_s = max(min(source.every_s * 2 ** min(self._failures, 10), LONGEST_S), source.every_s)
        return max(own_s, min(told_s, LONGEST_TOLD_S))

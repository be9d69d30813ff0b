"""Watches progress while the run lasts: how long partitions stand still, and when they move again after a fault."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg

from tests.chaos.ledger.events import DEBIT_CONSUMER
from tests.chaos.ledger.producer import Sent

_OFFSETS = "select partition, next_offset from ledger.consumer_offsets where consumer = $1"
_EFFECTS = "select coalesce(sum(effects), 0)::bigint from ledger.totals"
EVERY_S = 0.2


@dataclass
class _Open:
    kind: str
    begun: float
    beyond: dict[int, int]
    """Partition -> the offset that must be passed: the end of the log once the fault was over."""


@dataclass
class Watched:
    """What was seen."""

    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    longest_stall_s: float = 0.0
    """In which nothing at all took effect although something was there."""
    longest_standing_s: float = 0.0
    """In which one partition's position stood: it moves when a whole batch is settled."""
    most_behind: int = 0


class Monitor:
    """Polls the stored offsets, past every proxy. A fault is over when what came before its end is done."""

    def __init__(self, admin_url: Callable[[], str], sent: Sent) -> None:
        self.seen = Watched()
        self._admin_url = admin_url
        self._sent = sent
        self._offsets: dict[int, int] = {}
        self._moved_at: dict[int, float] = {}
        self._effects = 0
        self._effect_at = time.monotonic()
        self._open: list[_Open] = []

    def healed(self, kind: str, begun: float) -> None:
        """A fault that began at `begun` (monotonic) is over; time its recovery."""
        self._open.append(_Open(kind, begun, dict(self._sent.ends)))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                connection = await asyncpg.connect(self._admin_url(), timeout=5)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._note({}, self._effects)
                await asyncio.sleep(EVERY_S)
                continue
            try:
                while True:
                    async with asyncio.timeout(5):
                        rows = await connection.fetch(_OFFSETS, DEBIT_CONSUMER)
                        effects = await connection.fetchval(_EFFECTS)
                    self._note({row["partition"]: row["next_offset"] for row in rows}, effects)
                    await asyncio.sleep(EVERY_S)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                pass
            finally:
                connection.terminate()

    def _note(self, offsets: dict[int, int], effects: int) -> None:
        now = time.monotonic()
        behind = 0
        for partition, end in self._sent.ends.items():
            at = offsets.get(partition, self._offsets.get(partition, 0))
            if at != self._offsets.get(partition) or at >= end:
                self._moved_at[partition] = now
            self._offsets[partition] = at
            behind += max(0, end - at)
            still_s = now - self._moved_at.setdefault(partition, now)
            self.seen.longest_standing_s = max(self.seen.longest_standing_s, still_s)
        if effects != self._effects or not behind:
            self._effects, self._effect_at = effects, now
        self.seen.longest_stall_s = max(self.seen.longest_stall_s, now - self._effect_at)
        self.seen.most_behind = max(self.seen.most_behind, behind)
        for fault in list(self._open):
            if all(self._offsets.get(partition, 0) >= end for partition, end in fault.beyond.items()):
                self.seen.recoveries[fault.kind].append(now - fault.begun)
                self._open.remove(fault)

"""One partition of a consumer: fetch a batch, settle it in lanes, store where to read on.

Where to read from stands in Postgres, with the name of the Kafka that it is true of: another Kafka, or one that was
made anew, is read from its start, and the inbox knows what is not new.
"""

import asyncio
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database, Row, Tx
from shared.messaging import metrics
from shared.messaging.consumer import Consumer
from shared.messaging.decode import decode_all
from shared.messaging.failed import Failure, Parked, clean, park
from shared.messaging.fuse import Fuse
from shared.messaging.lane import FuseOpen, Lanes, Position, Stopped, happens
from shared.messaging.ports import KafkaReader, Unreadable
from shared.messaging.record import Record

_STORED: Final = text(
    """
    select next_offset, cluster from consumer_offsets
    where consumer = :consumer and topic = :topic and partition = :partition
    """
)
# Without waiting for the disk: lost, it is read again, and the inbox knows the events.
_STORE: Final = text(
    """
    with lazy as materialized (select set_config('synchronous_commit', 'off', true))
    insert into consumer_offsets (consumer, topic, partition, next_offset, cluster)
    select :consumer, :topic, :partition, :next_offset, :cluster from lazy
    on conflict (consumer, topic, partition) do update
    set next_offset = excluded.next_offset, cluster = coalesce(excluded.cluster, consumer_offsets.cluster),
        updated_at = now()
    """
)
_REPOSITION: Final = (OffsetOutOfRangeError, NoOffsetForPartitionError)

_log = logging.getLogger(__name__)


class Partition:
    """Runs one partition while it is ours. `following`, `settled` and `stuck` tell how far it is."""

    poll_ms: Final = 5000
    probe_ms: Final = 200

    def __init__(  # noqa: PLR0917 - wired in one place, shared.messaging.delivery
        self,
        name: TopicPartition,
        kafka: KafkaReader,
        cluster: str | None,
        consumer: Consumer,
        db: Database,
        lanes: Lanes,
        fuse: Fuse,
        clock: Clock,
    ) -> None:
        self._name = name
        self._kafka = kafka
        self._cluster = cluster
        self._consumer = consumer
        self._db = db
        self._lanes = lanes
        self._fuse = fuse
        self._clock = clock
        self._about = {"consumer": consumer.name, "partition": f"{name.topic}/{name.partition}"}
        self._stopping = asyncio.Event()
        self._waits = False
        self._told = False  # whether its lag is on show
        self.task: asyncio.Task[None] | None = None
        self.following: int | None = None  # the next offset to read
        self.settled: int | None = None  # the next offset, as far as Kafka has not been told
        self.stuck: str | None = None
        self._waits_since = _now()  # when the oldest record that is not settled was written, at the earliest
        self._stood: tuple[int, float] | None = None  # where it stands although there is more, and since when

    def is_starved(self, end: int, after_s: float) -> bool:
        """Whether Kafka has had more for so long, up to `end`, and gives nothing of it to us, who ask for it."""
        if self._fuse.is_open or not self._waits or self.following is None or end <= self.following:
            self._stood = None
            return False
        now = _now()
        if self._stood is None or self._stood[0] != self.following:
            self._stood = (self.following, now)
        return now - self._stood[1] >= after_s

    def stop(self) -> None:
        """Ask it to end after what is in flight."""
        self._stopping.set()
        if self._waits and self.task is not None:
            self.task.cancel()

    def tell_lag(self, end: int) -> None:
        """Show how far it is from the partition's end: in records, and by the age of the oldest that waits."""
        place = (self._consumer.name, self._name.topic, str(self._name.partition))
        behind = max(0, end - (self.following or 0))
        if not behind:
            self._waits_since = _now()
        metrics.LAG.labels(*place).set(behind)
        metrics.LAG_SECONDS.labels(*place).set(_now() - self._waits_since)
        self._told = True

    def forget_lag(self) -> None:
        """Show it no more: somebody else has the partition now."""
        if self._told:
            for gauge in (metrics.LAG, metrics.LAG_SECONDS):
                gauge.remove(self._consumer.name, self._name.topic, str(self._name.partition))

    async def run(self) -> None:
        """Run until stopped. What breaks it, other than Kafka, is told, tried again, and costs no other partition."""
        delay_s = 1.0
        while not self._stopping.is_set():
            try:
                await self._run()
            except (KafkaError, OSError):
                raise
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001 - the partition stands still and says why
                delay_s = min(delay_s * 2, 30.0) if self.stuck else 1.0
                reason = clean(f"{type(error).__name__}: {error}")
                self.stuck = f"{self._about['partition']} does not get on: {reason}"[:250]
                _log.exception("partition_stuck", extra=self._about)
                await happens(self._stopping, delay_s)

    async def _run(self) -> None:
        following = await self._position()
        while not self._stopping.is_set():
            self.following = following
            probe = self._lanes.due == 0 and self._fuse.take_probe()
            if self._fuse.is_open and not probe:
                await self._stand_by()
                continue
            limit = 1 if probe else self._consumer.max_batch
            try:
                with self._waiting():
                    wait_ms = self.probe_ms if probe else self.poll_ms
                    found, after = await self._kafka.fetch(self._name, following, wait_ms=wait_ms, limit=limit)
                stored = await self._settle(await self._readable(found), after, probe=probe)
            except _REPOSITION:
                following = await self._position()
                continue
            except FuseOpen:
                self._kafka.seek(self._name, following)
                continue
            self.stuck = None
            if after != following:
                following = after
                if not stored:
                    await self._store(following)
                self.settled = following
            if probe and self._fuse.is_open:
                await self._stand_by()  # where it found nothing to try, another partition may

    @contextmanager
    def _waiting(self) -> Generator[None]:
        """Mark a wait for Kafka with nothing in flight: it need not be finished, it can be cut."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    async def _stand_by(self) -> None:
        self._kafka.pause(self._name)
        try:
            with self._waiting():
                await self._fuse.wait_closed(0.5)
        finally:
            if self._name in self._kafka.assignment():
                self._kafka.resume(self._name)

    async def _readable(self, found: Sequence[Record | Unreadable]) -> list[Record]:
        for one in found:
            if isinstance(one, Unreadable):
                record = Record(self._name.topic, self._name.partition, one.offset, None, one.body, ())
                message = f"a record batch, offsets {one.offset} to {one.last_offset}, cannot be read: {one.reason}"
                await self._note(record, "CORRUPT_BATCH", message)
        return [one for one in found if isinstance(one, Record)]

    async def _settle(self, records: Sequence[Record], following: int, *, probe: bool) -> bool:
        """Settle the records; return whether the position after them is stored already."""
        if records:
            self._waits_since = _now() - self._age_s(records[0])
        items = decode_all(self._consumer, records, self._clock())
        if skipped := len(records) - len(items):
            metrics.EVENTS.labels(self._consumer.name, "skipped").inc(skipped)
        if not items:
            if probe:
                self._fuse.unspent()
            return False
        with metrics.BATCH_SECONDS.labels(self._consumer.name).time():
            position = Position(following, self._cluster)
            stored = await self._lanes.settle(items, self._stopping, position, probe=probe)
        if records[-1].time is not None:
            metrics.AGE_SECONDS.labels(self._consumer.name).observe(self._age_s(records[-1]))
        self._waits_since = _now() - self._age_s(records[-1])
        return stored

    def _age_s(self, record: Record) -> float:
        return 0.0 if record.time is None else max(0.0, (self._clock() - record.time).total_seconds())

    async def _position(self) -> int:
        """Seek to where Postgres says, and see to it that nothing was lost before or behind it."""

        async def read() -> Row | None:
            async with self._db.read() as tx:
                return await tx.fetchrow(_STORED, **self._place())

        row = await self._lanes.rerun(read, self._stopping)
        with self._waiting():
            first = (await self._kafka.beginning_offsets([self._name]))[self._name]
            end = (await self._kafka.end_offsets([self._name]))[self._name]
        following = first if row is None else await self._known_place(row["next_offset"], row["cluster"], first, end)
        self._kafka.seek(self._name, following)
        return following

    async def _known_place(self, stored: int, cluster: str | None, first: int, end: int) -> int:
        """Return where to read on, given what was stored: not always there."""
        here = Record(self._name.topic, self._name.partition, stored, None, None, ())
        if cluster and self._cluster and cluster != self._cluster:
            message = (
                f"offset {stored} is one of the Kafka {cluster}; this is {self._cluster}, read from its start. "
                "What the other one held and was not read is not here"
            )
            await self._note(here, "OTHER_CLUSTER", message, next_offset=first)
            return first
        if stored < first:
            message = f"offsets {stored} to {first - 1} left the log before they were read; widen the topic's retention"
            await self._note(here, "GAP", message, next_offset=first)
            return first
        if stored > end:
            _log.warning("log_truncated", extra=self._about | {"stored": stored, "end": end})
            return first  # the log is younger than our memory: read it all, the inbox knows what is not new
        return stored

    async def _note(self, record: Record, code: str, message: str, next_offset: int | None = None) -> None:
        """Park something that never was an event: corrupt bytes, a gap in the log."""

        async def write() -> None:
            async with self._db.transaction() as tx:
                note = Parked(record, Failure("dead", code, clean(message)), None, None)
                await park(tx, self._consumer.name, [note], self._clock())
                if next_offset is not None:
                    await self._store_in(tx, next_offset)

        await self._lanes.rerun(write, self._stopping)
        self._lanes.parked()
        _log.error("records_unreadable", extra=self._about | {"code": code, "reason": message})

    async def _store(self, following: int) -> None:
        async def write() -> None:
            async with self._db.read() as tx:  # one statement is a transaction of its own
                await self._store_in(tx, following)

        await self._lanes.rerun(write, self._stopping)

    async def _store_in(self, tx: Tx, following: int) -> None:
        await tx.execute(_STORE, **self._place(), next_offset=following, cluster=self._cluster)

    def _place(self) -> dict[str, object]:
        return {
            "consumer": self._consumer.name,
            "topic": self._name.topic,
            "partition": self._name.partition,
        }


def _now() -> float:
    return asyncio.get_running_loop().time()

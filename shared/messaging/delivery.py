"""The delivery loop of one consumer: partitions run at once, each a batch at a time, lanes of a batch at once.

Where to read from stands in Postgres; the offset committed to Kafka only shows others the lag. Positions move when
a whole batch is settled: done, skipped or parked. When Postgres or Kafka is away, the loop waits and reads again.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)
from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database
from shared.messaging import metrics, raw_fetch
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode_all
from shared.messaging.failed import Failure, Parked, park
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, new_consumer
from shared.messaging.lane import FuseOpen, Lanes, Stopped
from shared.messaging.raw_fetch import Unreadable
from shared.messaging.record import Record, lane_of

_STORED: Final = text(
    "select next_offset from consumer_offsets where consumer = :consumer and topic = :topic and partition = :partition"
)
_STORE: Final = text(
    """
    insert into consumer_offsets (consumer, topic, partition, next_offset)
    values (:consumer, :topic, :partition, :next_offset)
    on conflict (consumer, topic, partition) do update set next_offset = excluded.next_offset, updated_at = now()
    """
)
_LAZY: Final = text("set local synchronous_commit = off")  # lost, it is read again, and the inbox knows the events

_UNPARSED: Final = (UnicodeDecodeError, CorruptRecordException, RecordTooLargeError, ValueError, IndexError)
_REPOSITION: Final = (OffsetOutOfRangeError, NoOffsetForPartitionError)

_log = logging.getLogger(__name__)


class Delivery:
    """Runs one consumer until it is stopped. `health()` says whether it makes progress."""

    poll_ms: Final = 1000
    drain_s: Final = 12.0

    def __init__(  # noqa: PLR0917 - wired in one place, shared.service
        self,
        consumer: Consumer,
        address: KafkaAddress,
        member: str,
        db: Database,
        lanes: Lanes,
        fuse: Fuse,
        clock: Clock,
    ) -> None:
        self.name = f"consumer {consumer.name}"
        self._consumer = consumer
        self._address = address
        self._member = member
        self._db = db
        self._lanes = lanes
        self._fuse = fuse
        self._clock = clock
        self._about = {"consumer": consumer.name}
        self._runners: dict[TopicPartition, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._settled: dict[TopicPartition, int] = {}
        self._gaps: set[TopicPartition] = set()
        self._trouble: str | None = "not connected yet"

    def health(self) -> tuple[bool, str]:
        """Return (works, what it is doing or what stops it)."""
        if self._fuse.is_open:
            return False, "stopped by its fuse: it only fails; see /ops/failed-jobs"
        if self._gaps:
            return (
                False,
                f"records were gone before they were read: {sorted(map(str, self._gaps))}; see /ops/failed-jobs",
            )
        if self._trouble:
            return False, self._trouble
        return True, f"{len(self._runners)} partitions"

    async def run(self) -> None:
        """Connect and deliver, again and again, until cancelled; then finish what is in flight."""
        while True:
            try:
                await self._session()
            except (KafkaError, OSError) as error:
                self._trouble = f"Kafka: {type(error).__name__}"
                _log.warning("kafka_lost", extra=self._about | {"error": repr(error)})
                await asyncio.sleep(1)

    async def _session(self) -> None:
        kafka = new_consumer(self._address, self._consumer.name, self._member)
        kafka.subscribe([topic.name for topic in self._consumer.topics], listener=_Listener(self, kafka))
        try:
            await kafka.start()
            self._trouble = None
            while True:
                await asyncio.sleep(1)
                await self._commit(kafka)
                for task, _ in self._runners.values():
                    if task.done():
                        task.result()  # raises what broke the runner
        finally:
            await self._stop_runners()
            await self._commit(kafka)
            await kafka.stop()

    def assigned(self, kafka: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Begin to run partitions."""
        for partition in partitions:
            stopping = asyncio.Event()
            task = asyncio.create_task(self._run_partition(kafka, partition, stopping), name=f"{self.name} {partition}")
            self._runners[partition] = (task, stopping)

    async def revoked(self, kafka: AIOKafkaConsumer) -> None:
        """Finish what is in flight and let every partition go."""
        await self._stop_runners()
        await self._commit(kafka)

    async def _stop_runners(self) -> None:
        runners, self._runners = self._runners, {}
        for _, stopping in runners.values():
            stopping.set()
        if runners:
            tasks = [task for task, _ in runners.values()]
            _, late = await asyncio.wait(tasks, timeout=self.drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _commit(self, kafka: AIOKafkaConsumer) -> None:
        settled, self._settled = self._settled, {}
        if settled:
            try:
                await kafka.commit(dict(settled))
            except (
                KafkaError,
                OSError,
            ) as error:  # Postgres knows better; this is for the lag that others see
                _log.info("kafka_commit_failed", extra=self._about | {"error": type(error).__name__})

    async def _run_partition(self, kafka: AIOKafkaConsumer, partition: TopicPartition, stopping: asyncio.Event) -> None:
        following = await self._position(kafka, partition, stopping)
        while not stopping.is_set():
            probe = self._fuse.take_probe() if self._fuse.is_open and self._lanes.waiting == 0 else False
            if self._fuse.is_open and not probe:
                await self._stand_by(kafka, partition)
                continue
            try:
                records, after = await self._fetch(
                    kafka, partition, following, 1 if probe else self._consumer.max_batch
                )
                if not records:
                    following = after
                    continue
                await self._settle(partition, records, stopping, probe=probe)
            except _REPOSITION:
                following = await self._position(kafka, partition, stopping)
                continue
            except FuseOpen:
                kafka.seek(partition, following)
                continue
            except Stopped:
                return
            following = after
            await self._store(partition, following, stopping)
            self._settled[partition] = following
            highwater: int | None = kafka.highwater(partition)
            if highwater is not None:
                metrics.LAG.labels(self._consumer.name, partition.topic, str(partition.partition)).set(
                    max(0, highwater - following)
                )

    async def _stand_by(self, kafka: AIOKafkaConsumer, partition: TopicPartition) -> None:
        kafka.pause(partition)
        try:
            await self._fuse.wait_closed(0.5)
        finally:
            if partition in kafka.assignment():
                kafka.resume(partition)

    async def _fetch(
        self, kafka: AIOKafkaConsumer, partition: TopicPartition, following: int, limit: int
    ) -> tuple[list[Record], int]:
        """Return the next records and the offset after them."""
        try:
            batches = await kafka.getmany(partition, timeout_ms=self.poll_ms, max_records=limit)
        except _UNPARSED as error:
            return await self._fetch_raw(kafka, partition, following, error)
        records = [
            Record(
                partition.topic,
                partition.partition,
                one.offset,
                one.key,
                one.value,
                tuple((name.encode(), value) for name, value in one.headers),
                one.timestamp,
            )
            for one in batches.get(partition, ())
        ]
        return records, records[-1].offset + 1 if records else following

    async def _fetch_raw(
        self, kafka: AIOKafkaConsumer, partition: TopicPartition, following: int, error: Exception
    ) -> tuple[list[Record], int]:
        _log.warning(
            "records_unparsed",
            extra=self._about | {"partition": str(partition), "offset": following, "error": repr(error)[:300]},
        )
        found, after = await raw_fetch.fetch(kafka, partition, following)
        if not found and after == following:
            raise KafkaError(f"{partition} cannot be read at {following}: {error!r}") from error
        for unreadable in found:
            if isinstance(unreadable, Unreadable):
                await self._park_unreadable(partition, unreadable)
        kafka.seek(partition, after)
        return [one for one in found if isinstance(one, Record)], after

    async def _park_unreadable(self, partition: TopicPartition, batch: Unreadable) -> None:
        record = Record(partition.topic, partition.partition, batch.offset, None, batch.body, ())
        message = f"a record batch, offsets {batch.offset} to {batch.last_offset}, cannot be read: {batch.reason}"
        await self._park_note(record, "CORRUPT_BATCH", message)

    async def _park_note(self, record: Record, code: str, message: str) -> None:
        """Park something that never was an event: corrupt bytes, a gap in the log."""

        async def write() -> None:
            async with self._db.transaction() as tx:
                await park(
                    tx,
                    self._consumer.name,
                    [Parked(record, Failure("dead", code, message), None, None)],
                    self._clock(),
                )

        await self._lanes.rerun(write, asyncio.Event())
        _log.error("records_unreadable", extra=self._about | {"code": code, "reason": message})

    async def _settle(
        self, partition: TopicPartition, records: Sequence[Record], stopping: asyncio.Event, *, probe: bool
    ) -> None:
        with metrics.BATCH_SECONDS.labels(self._consumer.name).time():
            now = self._clock()
            items = decode_all(self._consumer, records, now)
            skipped = len(records) - len(items)
            if skipped:
                metrics.EVENTS.labels(self._consumer.name, "skipped").inc(skipped)
            lanes: defaultdict[int, list[Item]] = defaultdict(list)
            for item in items:
                lanes[lane_of(item.record, Lanes.count)].append(item)
            outcomes = await asyncio.gather(
                *(self._lanes.settle(lane, some, stopping, probe=probe) for lane, some in lanes.items()),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        if (newest := records[-1].time) is not None:
            metrics.AGE_SECONDS.labels(self._consumer.name).observe(max(0.0, (self._clock() - newest).total_seconds()))

    async def _store(self, partition: TopicPartition, following: int, stopping: asyncio.Event) -> None:
        async def write() -> None:
            async with self._db.transaction() as tx:
                await tx.execute(_LAZY)
                await tx.execute(
                    _STORE,
                    consumer=self._consumer.name,
                    topic=partition.topic,
                    partition=partition.partition,
                    next_offset=following,
                )

        try:
            await self._lanes.rerun(write, stopping)
        except Stopped:
            return  # it is read again, and the inbox knows

    async def _position(self, kafka: AIOKafkaConsumer, partition: TopicPartition, stopping: asyncio.Event) -> int:
        """Seek to where Postgres says, and see to it that nothing was lost before or behind it."""

        async def read() -> int | None:
            async with self._db.read() as tx:
                return await tx.fetchval(
                    _STORED,
                    consumer=self._consumer.name,
                    topic=partition.topic,
                    partition=partition.partition,
                )

        stored = await self._lanes.rerun(read, stopping)
        first = (await kafka.beginning_offsets([partition]))[partition]
        end = (await kafka.end_offsets([partition]))[partition]
        following = first if stored is None else stored
        if stored is not None and stored < first:
            note = Record(partition.topic, partition.partition, stored, None, None, ())
            message = f"offsets {stored} to {first - 1} left the log before they were read; widen the topic's retention"
            await self._park_note(note, "GAP", message)
            self._gaps.add(partition)
            following = first
        elif stored is not None and stored > end:
            _log.warning(
                "log_truncated", extra=self._about | {"partition": str(partition), "stored": stored, "end": end}
            )
            following = first  # the log is younger than our memory: read it all, the inbox knows what is not new
        kafka.seek(partition, following)
        return following


class _Listener(ConsumerRebalanceListener):
    def __init__(self, delivery: Delivery, kafka: AIOKafkaConsumer) -> None:
        self._delivery = delivery
        self._kafka = kafka

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        del revoked  # the eager protocol takes them all
        await self._delivery.revoked(self._kafka)

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        self._delivery.assigned(self._kafka, assigned)

"""The delivery loop of one consumer: partitions run at once, each a batch at a time, lanes of a batch at once.

Where to read from stands in Postgres; the offset committed to Kafka only shows others the lag. Positions move when
a whole batch is settled: done, skipped or parked. When Postgres or Kafka is away, the loop waits and reads again.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)
from prometheus_client import Gauge
from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database, Tx
from shared.messaging import metrics, raw_fetch
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode_all
from shared.messaging.failed import Failure, Parked, clean, park
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, new_consumer
from shared.messaging.lane import FuseOpen, Lanes, Stopped, happens
from shared.messaging.raw_fetch import Unreadable
from shared.messaging.record import Record, lane_of

_STORED: Final = text(
    "select next_offset from consumer_offsets where consumer = :consumer and topic = :topic and partition = :partition"
)
# Without waiting for the disk: lost, it is read again, and the inbox knows the events.
_STORE: Final = text(
    """
    with lazy as materialized (select set_config('synchronous_commit', 'off', true))
    insert into consumer_offsets (consumer, topic, partition, next_offset)
    select :consumer, :topic, :partition, :next_offset from lazy
    on conflict (consumer, topic, partition) do update set next_offset = excluded.next_offset, updated_at = now()
    """
)

_REPOSITION: Final = (OffsetOutOfRangeError, NoOffsetForPartitionError)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Runner:
    """The task of one partition."""

    partition: TopicPartition
    stopping: asyncio.Event
    task: asyncio.Task[None] | None = None
    waits: bool = False

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Mark a wait for Kafka with nothing in flight: it need not be finished, it can be cut."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False

    def stop(self) -> None:
        """Ask it to end after what is in flight."""
        self.stopping.set()
        if self.waits and self.task is not None:
            self.task.cancel()


class Delivery:
    """Runs one consumer until it is stopped. `health()` says whether it makes progress."""

    poll_ms: Final = 1000
    drain_s: Final = 12.0
    check_s: Final = 2.0
    answer_s: Final = 5.0
    """Red after check_s + answer_s without an answer from Kafka."""

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
        self._open = False
        self._runners: dict[TopicPartition, _Runner] = {}
        self._runner_ended = asyncio.Event()
        self._following: dict[TopicPartition, int] = {}
        self._settled: dict[TopicPartition, int] = {}
        self._stuck: dict[TopicPartition, str] = {}
        self._joined = False
        self._trouble: str | None = "not connected yet"

    def health(self) -> tuple[bool, str]:
        """Return (works, what it is doing or what stops it)."""
        stuck = next((f"{one.topic}/{one.partition} does not get on: {why}" for one, why in self._stuck.items()), None)
        trouble = (
            ("stopped by its fuse: it only fails; see /ops/failed-jobs" if self._fuse.is_open else None)
            or (
                "records were gone before they were read: the GAP rows of /ops/failed-jobs"
                if self._lanes.gaps
                else None
            )
            or self._trouble
            or (None if self._joined else "waits for its group")
            or stuck
            or self._lanes.held_up
        )
        return (False, trouble) if trouble else (True, f"{len(self._runners)} partitions")

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
        self._open, self._joined = True, False
        try:
            async with asyncio.timeout(30):
                await kafka.start()
            while True:
                await self._ask_ends(kafka)
                await self._commit(kafka)
                await happens(self._runner_ended, self.check_s)
                self._runner_ended.clear()
                for runner in self._runners.values():
                    if runner.task is not None and runner.task.done():
                        runner.task.result()  # raises what broke the runner
        finally:
            self._open = False
            await self._stop_runners()
            await self._commit(kafka)
            with contextlib.suppress(KafkaError, OSError):
                async with asyncio.timeout(self.answer_s):
                    await kafka.stop()

    async def _ask_ends(self, kafka: AIOKafkaConsumer) -> None:
        """Ask Kafka where the partitions end: it gives the lag, and shows that a broker answers."""
        asked = kafka.assignment() or {TopicPartition(topic.name, 0) for topic in self._consumer.topics}
        try:
            async with asyncio.timeout(self.answer_s):
                ends = await kafka.end_offsets(asked)
        except (KafkaError, OSError) as error:
            self._trouble = f"Kafka does not answer: {type(error).__name__}"
            return
        self._trouble = None
        for partition, end in ends.items():
            if partition in self._following:
                self._lag(partition).set(max(0, end - self._following[partition]))

    def _lag(self, partition: TopicPartition) -> Gauge:
        return metrics.LAG.labels(self._consumer.name, partition.topic, str(partition.partition))

    def assigned(self, kafka: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        """Begin to run partitions."""
        self._joined = True
        if not self._open:
            return
        for partition in partitions:
            runner = self._runners[partition] = _Runner(partition, asyncio.Event())
            runner.task = asyncio.create_task(self._keep_running(kafka, runner), name=f"{self.name} {partition}")
            runner.task.add_done_callback(lambda _: self._runner_ended.set())

    async def revoked(self, kafka: AIOKafkaConsumer) -> None:
        """Finish what is in flight and let every partition go."""
        await self._stop_runners()
        await self._commit(kafka)

    async def _stop_runners(self) -> None:
        runners, self._runners = self._runners, {}
        for runner in runners.values():
            runner.stop()
        tasks = [runner.task for runner in runners.values() if runner.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for partition in self._following:
            with contextlib.suppress(KeyError):
                metrics.LAG.remove(self._consumer.name, partition.topic, str(partition.partition))
        self._following.clear()
        self._stuck.clear()

    async def _commit(self, kafka: AIOKafkaConsumer) -> None:
        """Tell Kafka how far we are. Postgres knows better; this is for the lag that others see."""
        settled, self._settled = self._settled, {}
        if not settled:
            return
        try:
            async with asyncio.timeout(self.answer_s):
                await kafka.commit(dict(settled))
        except (KafkaError, OSError) as error:
            _log.info("kafka_commit_failed", extra=self._about | {"error": type(error).__name__})
            self._settled = {one: at for one, at in settled.items() if one in self._runners} | self._settled

    async def _keep_running(self, kafka: AIOKafkaConsumer, runner: _Runner) -> None:
        """Run a partition. What breaks it, other than Kafka, is told and tried again, and costs no other partition."""
        delay_s = 1.0
        while not runner.stopping.is_set():
            try:
                await self._run_partition(kafka, runner)
            except (KafkaError, OSError):
                raise
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001 - the partition stands still and says why
                delay_s = min(delay_s * 2, 30.0) if runner.partition in self._stuck else 1.0
                self._stuck[runner.partition] = f"{type(error).__name__}: {error}"[:200]
                _log.exception("partition_stuck", extra=self._about | {"partition": str(runner.partition)})
                await happens(runner.stopping, delay_s)

    async def _run_partition(self, kafka: AIOKafkaConsumer, runner: _Runner) -> None:
        partition = runner.partition
        following = await self._position(kafka, runner)
        while not runner.stopping.is_set():
            self._following[partition] = following
            probe = self._lanes.due == 0 and self._fuse.take_probe()
            if self._fuse.is_open and not probe:
                await self._stand_by(kafka, runner)
                continue
            limit = 1 if probe else self._consumer.max_batch
            try:
                records, after = await self._fetch(kafka, runner, following, limit)
                await self._settle(records, runner.stopping, probe=probe)
            except _REPOSITION:
                following = await self._position(kafka, runner)
                continue
            except FuseOpen:
                kafka.seek(partition, following)
                continue
            self._stuck.pop(partition, None)
            if after != following:
                following = after
                await self._store(partition, following, runner.stopping)
                self._settled[partition] = following
                if (end := kafka.highwater(partition)) is not None:
                    self._lag(partition).set(max(0, end - following))

    async def _stand_by(self, kafka: AIOKafkaConsumer, runner: _Runner) -> None:
        kafka.pause(runner.partition)
        try:
            with runner.waiting():
                await self._fuse.wait_closed(0.5)
        finally:
            if runner.partition in kafka.assignment():
                kafka.resume(runner.partition)

    async def _fetch(
        self, kafka: AIOKafkaConsumer, runner: _Runner, following: int, limit: int
    ) -> tuple[list[Record], int]:
        """Return the next records and the offset after them."""
        partition = runner.partition
        try:
            with runner.waiting():
                batches = await kafka.getmany(partition, timeout_ms=self.poll_ms, max_records=limit)
        except (CorruptRecordException, RecordTooLargeError) as error:
            return await self._fetch_raw(kafka, runner, following, error)
        except KafkaError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a parser or codec raises over bytes it cannot read
            return await self._fetch_raw(kafka, runner, following, error)
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
        self, kafka: AIOKafkaConsumer, runner: _Runner, following: int, error: Exception
    ) -> tuple[list[Record], int]:
        partition = runner.partition
        _log.warning(
            "records_unparsed",
            extra=self._about | {"partition": str(partition), "offset": following, "error": repr(error)[:300]},
        )
        found, after = await raw_fetch.fetch(kafka, partition, following)
        if not found and after == following:
            raise KafkaError(f"{partition} cannot be read at {following}: {error!r}") from error
        for one in found:
            if isinstance(one, Unreadable):
                record = Record(partition.topic, partition.partition, one.offset, None, one.body, ())
                message = f"a record batch, offsets {one.offset} to {one.last_offset}, cannot be read: {one.reason}"
                await self._note(record, "CORRUPT_BATCH", message, runner.stopping)
        kafka.seek(partition, after)
        return [one for one in found if isinstance(one, Record)], after

    async def _note(
        self, record: Record, code: str, message: str, stopping: asyncio.Event, next_offset: int | None = None
    ) -> None:
        """Park something that never was an event: corrupt bytes, a gap in the log."""

        async def write() -> None:
            async with self._db.transaction() as tx:
                note = Parked(record, Failure("dead", code, clean(message)), None, None)
                await park(tx, self._consumer.name, [note], self._clock())
                if next_offset is not None:
                    await self._store_in(tx, TopicPartition(record.topic, record.partition), next_offset)

        await self._lanes.rerun(write, stopping)
        self._lanes.parked()
        _log.error("records_unreadable", extra=self._about | {"code": code, "reason": message})

    async def _settle(self, records: Sequence[Record], stopping: asyncio.Event, *, probe: bool) -> None:
        items = decode_all(self._consumer, records, self._clock())
        if skipped := len(records) - len(items):
            metrics.EVENTS.labels(self._consumer.name, "skipped").inc(skipped)
        if not items:
            if probe:
                self._fuse.unspent()
            return
        with metrics.BATCH_SECONDS.labels(self._consumer.name).time():
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
            async with self._db.read() as tx:  # one statement is a transaction of its own
                await self._store_in(tx, partition, following)

        await self._lanes.rerun(write, stopping)

    async def _store_in(self, tx: Tx, partition: TopicPartition, following: int) -> None:
        await tx.execute(
            _STORE,
            consumer=self._consumer.name,
            topic=partition.topic,
            partition=partition.partition,
            next_offset=following,
        )

    async def _position(self, kafka: AIOKafkaConsumer, runner: _Runner) -> int:
        """Seek to where Postgres says, and see to it that nothing was lost before or behind it."""
        partition = runner.partition

        async def read() -> int | None:
            async with self._db.read() as tx:
                return await tx.fetchval(
                    _STORED,
                    consumer=self._consumer.name,
                    topic=partition.topic,
                    partition=partition.partition,
                )

        stored = await self._lanes.rerun(read, runner.stopping)
        with runner.waiting():
            first = (await kafka.beginning_offsets([partition]))[partition]
            end = (await kafka.end_offsets([partition]))[partition]
        following = first if stored is None else stored
        if stored is not None and stored < first:
            record = Record(partition.topic, partition.partition, stored, None, None, ())
            message = f"offsets {stored} to {first - 1} left the log before they were read; widen the topic's retention"
            await self._note(record, "GAP", message, runner.stopping, next_offset=first)
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

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, revoked: set[TopicPartition]
    ) -> None:
        del revoked  # the eager protocol takes them all
        await self._delivery.revoked(self._kafka)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, assigned: list[TopicPartition]
    ) -> None:
        self._delivery.assigned(self._kafka, assigned)

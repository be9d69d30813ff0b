"""The delivery loop of one consumer: its membership in the group, and a task for each partition that it gets.

Where to read from stands in Postgres (partition.py); the offset committed to Kafka only shows others the lag. When
Postgres or Kafka is away, the loop waits and reads again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from shared.clock import Clock
from shared.db import Database
from shared.messaging.consumer import Consumer
from shared.messaging.fuse import Fuse
from shared.messaging.lane import Lanes, happens
from shared.messaging.partition import Partition
from shared.messaging.ports import Kafka, KafkaReader

_log = logging.getLogger(__name__)


class Delivery:
    """Runs one consumer until it is stopped. `health()` says whether it makes progress."""

    drain_s: float = 8.0
    check_s: Final = 2.0
    answer_s: Final = 5.0
    """Red after check_s + answer_s without an answer from Kafka."""
    starved_s: float = 45.0
    """A client that gets nothing for so long, though there is more, is given up for a new one. Longer than aiokafka
    waits for the answer to a fetch."""

    def __init__(  # noqa: PLR0917 - wired in one place, shared.service
        self,
        consumer: Consumer,
        kafka: Kafka,
        member: str,
        db: Database,
        lanes: Lanes,
        fuse: Fuse,
        clock: Clock,
    ) -> None:
        self.name = f"consumer {consumer.name}"
        self._consumer = consumer
        self._kafka = kafka
        self._member = member
        self._db = db
        self._lanes = lanes
        self._fuse = fuse
        self._clock = clock
        self._about = {"consumer": consumer.name}
        self._open = False
        self._cluster: str | None = None
        self._partitions: dict[TopicPartition, Partition] = {}
        self._one_ended = asyncio.Event()
        self._joined = False
        self._trouble: str | None = "not connected yet"

    def health(self) -> tuple[bool, str]:
        """Return (works, what it is doing or what stops it)."""
        lost = "records may be lost: the GAP and OTHER_CLUSTER rows of /ops/failed-jobs" if self._lanes.gaps else None
        trouble = (
            ("stopped by its fuse: it only fails; see /ops/failed-jobs" if self._fuse.is_open else None)
            or lost
            or self._trouble
            or (None if self._joined else "waits for its group")
            or next((one.stuck for one in self._partitions.values() if one.stuck), None)
            or self._lanes.held_up
        )
        return (False, trouble) if trouble else (True, f"{len(self._partitions)} partitions")

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
        reader = self._kafka.reader(self._consumer.name, self._member)
        self._open, self._joined = False, False
        try:
            async with asyncio.timeout(30):
                await reader.start()
                self._cluster = await reader.cluster_id()
            self._open = True
            reader.subscribe([topic.name for topic in self._consumer.topics], listener=_Listener(self, reader))
            while True:
                await self._ask_ends(reader)
                await self._tell(reader, self._partitions)
                await happens(self._one_ended, self.check_s)
                self._one_ended.clear()
                for partition in self._partitions.values():
                    if partition.task is not None and partition.task.done():
                        partition.task.result()  # raises what broke it
        finally:
            self._open = False
            await self._stop_partitions(reader)
            with contextlib.suppress(KafkaError, OSError):
                async with asyncio.timeout(self.answer_s):
                    await reader.stop()

    async def _ask_ends(self, reader: KafkaReader) -> None:
        """Ask Kafka where the partitions end: it gives the lag, and shows that a broker answers.

        Raises KafkaError when a partition is starved: its client has lost its way.
        """
        asked = set(reader.assignment()) or {TopicPartition(topic.name, 0) for topic in self._consumer.topics}
        try:
            async with asyncio.timeout(self.answer_s):
                ends = await reader.end_offsets(asked)
        except (KafkaError, OSError) as error:
            self._trouble = f"Kafka does not answer: {type(error).__name__}"
            return
        self._trouble = None
        for name, end in ends.items():
            partition = self._partitions.get(name)
            if partition is None or partition.following is None:
                continue
            partition.tell_lag(end)
            if partition.is_starved(end, self.starved_s):
                raise KafkaError(
                    f"{name.topic}/{name.partition} ends at {end}, and nothing comes after {partition.following}"
                )

    def assigned(self, reader: KafkaReader, names: Sequence[TopicPartition]) -> None:
        """Begin to run partitions."""
        self._joined = True
        if not self._open:
            return
        for name in names:
            partition = Partition(
                name, reader, self._cluster, self._consumer, self._db, self._lanes, self._fuse, self._clock
            )
            partition.task = asyncio.create_task(partition.run(), name=f"{self.name} {name}")
            partition.task.add_done_callback(lambda _: self._one_ended.set())
            self._partitions[name] = partition

    async def revoked(self, reader: KafkaReader) -> None:
        """Finish what is in flight and let every partition go."""
        self._joined = False
        await self._stop_partitions(reader)

    async def _stop_partitions(self, reader: KafkaReader) -> None:
        partitions, self._partitions = self._partitions, {}
        for partition in partitions.values():
            partition.stop()
        tasks = [partition.task for partition in partitions.values() if partition.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._tell(reader, partitions)
        for partition in partitions.values():
            partition.forget_lag()

    async def _tell(self, reader: KafkaReader, partitions: dict[TopicPartition, Partition]) -> None:
        """Tell Kafka how far we are. Postgres knows better; this is for the lag that others see."""
        settled = {name: one.settled for name, one in partitions.items() if one.settled is not None}
        if not settled:
            return
        try:
            async with asyncio.timeout(self.answer_s):
                await reader.commit(settled)
        except (KafkaError, OSError) as error:
            _log.info("kafka_commit_failed", extra=self._about | {"error": type(error).__name__})
            return
        for name, offset in settled.items():
            if partitions[name].settled == offset:
                partitions[name].settled = None


class _Listener(ConsumerRebalanceListener):
    def __init__(self, delivery: Delivery, reader: KafkaReader) -> None:
        self._delivery = delivery
        self._reader = reader

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, revoked: set[TopicPartition]
    ) -> None:
        del revoked  # the eager protocol takes them all
        await self._delivery.revoked(self._reader)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, assigned: list[TopicPartition]
    ) -> None:
        self._delivery.assigned(self._reader, assigned)

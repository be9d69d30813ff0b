"""Kafka in memory: what shared.messaging.ports asks for, as Apache Kafka and aiokafka answer it.

    kafka = MemoryKafka({"sim.facts": 2})
    reader, writer = kafka.reader("group", "a"), kafka.writer("relay")

Groups use the eager protocol: members hear of a rebalance by their next heartbeat, let everything go, and join again;
who is silent for a session is left out, and his commits fail. A producer's records reach a partition in the order of
the sends; after an error its later ones fail too, as an idempotent producer's do. What a client has on the wire when
it is given up, or its process dies, may still arrive. `Network` says how long a request travels and what becomes of
it.

Left out: topics that come or grow while members wait for them (the next rebalance sees them), transactions, compaction.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalStateError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
)

from shared.messaging.ports import Outgoing, Unreadable
from shared.messaging.record import Record
from tests.fakes.kafka_broker import TOPIC_NAME, Broker, Group, Network, after, now

__all__ = ["MemoryKafka", "MemoryReader", "MemoryWriter", "Network", "Sent"]


class Sent(NamedTuple):
    """What a producer's future holds."""

    topic: str
    partition: int
    offset: int


class MemoryKafka(Broker):
    """A cluster, and where its clients come from."""

    def reader(self, group: str, member: str) -> "MemoryReader":
        """Return a group member, not started."""
        return MemoryReader(self, self.groups.setdefault(group, Group(self, group)), member)

    def writer(self, client_id: str) -> "MemoryWriter":
        """Return a producer, not started."""
        return MemoryWriter(self, client_id)


class MemoryReader:
    """A member, as aiokafka's consumer behaves with auto_offset_reset="none" and without auto-commit."""

    def __init__(self, kafka: MemoryKafka, group: Group, member: str) -> None:
        self._kafka = kafka
        self._group = group
        self._name = member
        self._id = ""
        self._generation = -1
        self._assigned: dict[TopicPartition, None] = {}  # a set whose order is the same in every process
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._topics: tuple[str, ...] = ()
        self._listener: ConsumerRebalanceListener | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        if not self._kafka.network.up:
            raise KafkaConnectionError("no broker takes connections")
        await self._kafka.ask(lambda: None)

    async def stop(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._id:
            await self._kafka.ask(lambda: self._group.leave(self._id))

    def subscribe(self, topics: Sequence[str], *, listener: ConsumerRebalanceListener) -> None:
        self._topics, self._listener = tuple(topics), listener
        self._task = asyncio.create_task(self._coordinate())

    async def _coordinate(self) -> None:
        prepared = False
        while True:
            try:
                if not prepared:
                    await self._let_go()
                    prepared = True
                self._id, future = await self._kafka.ask(lambda: self._group.join(self._id, self._name, self._topics))
                self._generation, names = await future
                prepared = False
                self._assigned, self._positions, self._paused = dict.fromkeys(names), {}, set()
                await _call(self._listener and self._listener.on_partitions_assigned, self._assigned.keys())
                while await self._beat():  # noqa: ASYNC110 - heartbeats are by the clock
                    await asyncio.sleep(self._kafka.heartbeat_s)
            except KafkaError:
                await asyncio.sleep(0.1)

    async def _beat(self) -> bool:
        return await self._kafka.ask(lambda: self._group.beat(self._id, self._generation))

    async def _let_go(self) -> None:
        """Tell the listener, and keep the session alive meanwhile."""
        telling = asyncio.create_task(
            _call(self._listener and self._listener.on_partitions_revoked, self._assigned.keys())
        )
        while not telling.done():
            await asyncio.wait((telling,), timeout=self._kafka.heartbeat_s)
            with contextlib.suppress(KafkaError):
                await self._beat()

    def assignment(self) -> set[TopicPartition]:
        return set(self._assigned)

    async def fetch(
        self, partition: TopicPartition, offset: int, *, wait_ms: int, limit: int
    ) -> tuple[list[Record | Unreadable], int]:
        if self._closed:
            raise ConsumerStoppedError
        deadline = now() + wait_ms / 1000
        await asyncio.sleep(self._kafka.network.delay_s())
        while True:
            found = self._look(partition, limit) if self._kafka.network.up else []
            left_s = deadline - now()
            if found or left_s <= 0:
                break
            arrival = asyncio.get_running_loop().create_future()
            if partition in self._kafka.logs:
                self._kafka.logs[partition].waiters.append(arrival)
            await asyncio.wait((arrival,), timeout=left_s)
        if not found or partition not in self._assigned:
            return [], offset
        following = after(found[-1])
        self._positions[partition] = following
        return found, following

    def _look(self, partition: TopicPartition, limit: int) -> list[Record | Unreadable]:
        if partition not in self._assigned or partition in self._paused:
            return []
        position, log = self._positions.get(partition), self._kafka.logs[partition]
        if position is None:
            raise NoOffsetForPartitionError(partition)
        if not log.first <= position <= log.end:
            raise OffsetOutOfRangeError({partition: position})
        found = [one for one in log.entries if after(one) > position][:limit]
        for index, one in enumerate(found):
            if isinstance(one, Unreadable):
                return found[: max(index, 1)]
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._ours(partition)
        self._positions[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        for one in partitions:
            self._ours(one)
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        for one in partitions:
            self._ours(one)
            self._kafka.logs[one].wake()
        self._paused.difference_update(partitions)

    def _ours(self, partition: TopicPartition) -> None:
        if partition not in self._assigned:
            raise IllegalStateError(f"No current assignment for partition {partition}")

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._kafka.ask(lambda: {one: self._kafka.logs[one].first for one in partitions})

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._kafka.ask(lambda: {one: self._kafka.logs[one].end for one in partitions})

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        for one in offsets:
            self._ours(one)
        await self._kafka.ask(lambda: self._group.commit(self._id, self._generation, offsets))

    async def cluster_id(self) -> str | None:
        return await self._kafka.ask(lambda: self._kafka.cluster)


@dataclass(slots=True)
class _Pipe:
    """A producer's way to one partition: one batch on the wire at a time."""

    queue: "deque[tuple[Record, asyncio.Future[Sent]]]" = field(default_factory=deque)
    flying: bool = False
    broken: KafkaError | None = None


class MemoryWriter:
    """An idempotent producer."""

    def __init__(self, kafka: MemoryKafka, client_id: str) -> None:
        self._kafka = kafka
        self.client_id = client_id
        self._pipes: dict[TopicPartition, _Pipe] = {}
        self._open: dict[asyncio.Future[Sent], None] = {}  # ordered, which a set of futures is not
        self._gone = False

    async def start(self) -> None:
        if not self._kafka.network.up:
            raise KafkaConnectionError("no broker takes connections")
        await self._kafka.ask(lambda: None)

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, *, headers: Sequence[tuple[str, bytes | None]]
    ) -> asyncio.Future[Sent]:
        if self._gone:
            raise ProducerClosed
        await self.partitions_for(topic)
        number = self._kafka.choose(topic, key)
        packed = tuple((name.encode(), one) for name, one in headers)
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._open[future] = None
        future.add_done_callback(self._open.pop)
        future.add_done_callback(lambda one: one.cancelled() or one.exception())  # nobody need ask
        pipe = self._pipes.setdefault(TopicPartition(topic, number), _Pipe())
        pipe.queue.append((Record(topic, number, -1, key, value, packed), future))
        self._push(pipe)
        return future

    async def send_all(self, topic: str, records: Sequence[Outgoing]) -> list[asyncio.Future[Sent]]:
        for key, value, _ in records:
            if len(value or b"") + len(key or b"") > self._kafka.max_bytes:
                raise MessageSizeTooLargeError(f"the message is {len(value or b'')} bytes when serialized")
        futures: list[asyncio.Future[Sent]] = []
        for key, value, headers in records:
            try:
                futures.append(await self.send(topic, value, key, headers=headers))
            except KafkaError as error:
                if not futures:
                    raise
                futures += [asyncio.get_running_loop().create_future()] * (len(records) - len(futures))
                futures[-1].set_exception(error)
                break
        return futures

    def _push(self, pipe: _Pipe) -> None:
        if pipe.flying or not pipe.queue or self._gone:
            return
        batch = list(pipe.queue)
        pipe.queue.clear()
        if pipe.broken is not None:
            self._end(pipe, batch, pipe.broken)
        else:
            pipe.flying = True
            self._kafka.later(self._kafka.network.delay_s(), self._arrive, pipe, batch)

    def _arrive(self, pipe: _Pipe, batch: "list[tuple[Record, asyncio.Future[Sent]]]") -> None:
        network = self._kafka.network
        if self._gone and not (network.up and network.arrives_late()):
            return
        if not network.up:
            self._kafka.later(0.1, self._arrive, pipe, batch)
            return
        fate = network.fate()
        if fate == "lost":
            self._end(pipe, batch, KafkaTimeoutError("the batch expired"))
            return
        kept = [self._kafka.append(record) for record, _ in batch]
        if fate == "kept":
            self._kafka.later(network.delay_s(), self._acknowledge, pipe, batch, kept)
        else:
            self._kafka.later(self._kafka.request_s, self._end, pipe, batch, KafkaTimeoutError("no acknowledgement"))

    def _acknowledge(
        self, pipe: _Pipe, batch: "list[tuple[Record, asyncio.Future[Sent]]]", kept: Sequence[Record]
    ) -> None:
        pipe.flying = False
        for (_, future), record in zip(batch, kept, strict=True):
            if not future.done():
                future.set_result(Sent(record.topic, record.partition, record.offset))
        self._push(pipe)

    def _end(self, pipe: _Pipe, batch: "list[tuple[Record, asyncio.Future[Sent]]]", error: KafkaError) -> None:
        pipe.flying = False
        pipe.broken = OutOfOrderSequenceNumber("an earlier batch of this producer was not acknowledged")
        for _, future in batch:
            if not future.done():
                future.set_exception(error)
        self._push(pipe)

    async def flush(self) -> None:
        while self._open:
            await asyncio.wait(tuple(self._open))

    async def partitions_for(self, topic: str) -> set[int]:
        if not TOPIC_NAME.fullmatch(topic):
            raise InvalidTopicError(topic)
        while not (found := self._kafka.partitions_of(topic)):  # noqa: ASYNC110 - as clients ask for metadata
            await asyncio.sleep(0.1)
        return found

    async def answers(self) -> bool:
        await self._kafka.ask(lambda: None)
        return True

    async def give_up(self) -> None:
        self.vanish()
        for future in tuple(self._open):
            if not future.done():
                future.set_exception(KafkaConnectionError("the producer was given up"))
        await asyncio.sleep(0)

    def vanish(self) -> None:
        """End as a killed process does: what has not left never leaves."""
        self._gone = True


async def _call(callback: Any, names: AbstractSet[TopicPartition]) -> None:
    """Call a listener, which may be a coroutine; what it raises is swallowed, as aiokafka does."""
    if callback is not None:
        with contextlib.suppress(Exception):
            answer = callback(names)
            if asyncio.iscoroutine(answer):
                await answer

"""The broker's side of the Kafka in memory (tests/fakes/kafka.py): the log, and the groups' coordinator."""

import asyncio
import contextvars
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Literal, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, KafkaTimeoutError
from aiokafka.partitioner import DefaultPartitioner

from shared.messaging.ports import Unreadable
from shared.messaging.record import Record

T = TypeVar("T")
Fate = Literal["kept", "kept but not acknowledged", "lost"]

TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class Network:
    """How requests travel: at once and without loss, unless a test's subclass says otherwise."""

    up = True

    def delay_s(self) -> float:
        """Return how long a request or an answer travels."""
        return 0.0

    def fate(self) -> Fate:
        """Say what becomes of a batch of records."""
        return "kept"

    def arrives_late(self) -> bool:
        """Whether a batch still arrives whose sender is gone."""
        return True


@dataclass(slots=True)
class Log:
    """One partition."""

    entries: list[Record | Unreadable] = field(default_factory=list[Record | Unreadable])
    first: int = 0
    waiters: list[asyncio.Future[None]] = field(default_factory=list["asyncio.Future[None]"])

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return after(self.entries[-1]) if self.entries else self.first

    def wake(self) -> None:
        """Tell who waits for records."""
        waiters, self.waiters = self.waiters, []
        for one in waiters:
            if not one.done():
                one.set_result(None)


class Broker:
    """The cluster itself. Its timers run in the context it was made in, not in that of the client that asked."""

    session_s = 10.0
    rebalance_s = 30.0
    heartbeat_s = 3.0
    request_s = 40.0
    max_bytes = 16 * 1_048_576

    def __init__(self, topics: Mapping[str, int], network: Network | None = None, seed: int = 0) -> None:
        self.network = network or Network()
        self.logs: dict[TopicPartition, Log] = {}
        self.groups: dict[str, Group] = {}
        self.committed: dict[tuple[str, TopicPartition], int] = {}
        self.cluster: str | None = "memory"
        self.appended: Callable[[Record], None] = lambda _: None
        self._random = random.Random(seed)
        self._context = contextvars.copy_context()
        for name, partitions in topics.items():
            self.create(name, partitions)

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic."""
        self.logs |= {TopicPartition(topic, number): Log() for number in range(partitions)}

    def partitions_of(self, topic: str) -> set[int]:
        """Return a topic's partitions, none when it does not exist."""
        return {name.partition for name in self.logs if name.topic == topic}

    def append(self, record: Record) -> Record:
        """Put a record at the end of its partition, whatever offset it says; return it as it lies there."""
        log = self.logs[TopicPartition(record.topic, record.partition)]
        kept = Record(
            record.topic, record.partition, log.end, record.key, record.value, record.headers, record.timestamp_ms
        )
        log.entries.append(kept)
        log.wake()
        self.appended(kept)
        return kept

    def append_unreadable(self, name: TopicPartition, body: bytes, records: int = 1) -> None:
        """Put a batch there that no client can read."""
        log = self.logs[name]
        log.entries.append(Unreadable(log.end, log.end + records - 1, body, "made so by a test"))
        log.wake()

    def trim(self, name: TopicPartition, first: int) -> None:
        """Forget what lies before an offset, as retention does."""
        log = self.logs[name]
        log.entries = [one for one in log.entries if one.offset >= first]
        log.first = first

    def records(self, topic: str) -> list[Record]:
        """Return a topic's records, partition by partition."""
        names = sorted(name for name in self.logs if name.topic == topic)
        return [one for name in names for one in self.logs[name].entries if isinstance(one, Record)]

    def choose(self, topic: str, key: bytes | None) -> int:
        """Return the partition of a key, as Kafka's own clients choose it."""
        numbers = sorted(self.partitions_of(topic))
        return self._random.choice(numbers) if key is None else DefaultPartitioner()(key, numbers, numbers)

    def later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Call back as the cluster, not as the client that asked."""
        return asyncio.get_running_loop().call_later(delay_s, callback, *args, context=self._context)

    async def ask(self, answer: Callable[[], T]) -> T:
        """Send a request and return the answer. Raises KafkaTimeoutError, KafkaConnectionError."""
        await self._travel()
        found = answer()
        await self._travel()
        return found

    async def _travel(self) -> None:
        await asyncio.sleep(self.network.delay_s())
        waited_s = 0.0
        while not self.network.up:
            if waited_s >= self.request_s:
                raise KafkaTimeoutError("no broker answered")
            await asyncio.sleep(0.1)
            waited_s += 0.1


@dataclass(slots=True)
class _Member:
    topics: tuple[str, ...]
    seen_at: float
    joining: "asyncio.Future[tuple[int, list[TopicPartition]]] | None" = None


class Group:
    """The coordinator's side of a group."""

    def __init__(self, kafka: Broker, name: str) -> None:
        self._kafka = kafka
        self.name = name
        self.members: dict[str, _Member] = {}
        self.generation = 0
        self._rebalancing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._ids = count(1)

    def join(
        self, member_id: str, name: str, topics: tuple[str, ...]
    ) -> tuple[str, "asyncio.Future[tuple[int, list[TopicPartition]]]"]:
        """Take a member in, again or anew; the future is done when the rebalance is."""
        if member_id not in self.members:
            member_id = f"{name}-{next(self._ids)}"
            self.members[member_id] = _Member(topics, now())
            self._watch(member_id)
        member = self.members[member_id]
        member.topics, member.seen_at = topics, now()
        member.joining = asyncio.get_running_loop().create_future()
        future = member.joining
        self._rebalance()
        self._complete_when_all_are_here()
        return member_id, future

    def beat(self, member_id: str, generation: int) -> bool:
        """Note a heartbeat; False tells the member to join again."""
        member = self.members.get(member_id)
        if member is None or generation != self.generation:
            return False
        member.seen_at = now()
        return not self._rebalancing

    def leave(self, member_id: str) -> None:
        """Let a member go."""
        if self.members.pop(member_id, None) is not None:
            self._rebalance()
            self._complete_when_all_are_here()

    def commit(self, member_id: str, generation: int, offsets: Mapping[TopicPartition, int]) -> None:
        """Keep offsets. Raises CommitFailedError for who is no member of this generation."""
        if member_id not in self.members or generation != self.generation:
            raise CommitFailedError("the group has moved on")
        self.members[member_id].seen_at = now()
        for partition, offset in offsets.items():
            self._kafka.committed[self.name, partition] = offset

    def _watch(self, member_id: str) -> None:
        member = self.members.get(member_id)
        if member is None:
            return
        left_s = member.seen_at + self._kafka.session_s - now()
        if member.joining is not None:
            left_s = self._kafka.session_s
        if left_s <= 0:
            self.leave(member_id)
        else:
            self._kafka.later(left_s + 0.001, self._watch, member_id)

    def _rebalance(self) -> None:
        if not self._rebalancing:
            self._rebalancing = True
            self._deadline = self._kafka.later(self._kafka.rebalance_s, self._out_of_patience)

    def _out_of_patience(self) -> None:
        self.members = {name: one for name, one in self.members.items() if one.joining is not None}
        self._complete_when_all_are_here()

    def _complete_when_all_are_here(self) -> None:
        if not self._rebalancing or any(one.joining is None for one in self.members.values()):
            return
        self._rebalancing = False
        self.generation += 1
        if self._deadline is not None:
            self._deadline.cancel()
        shares: dict[str, list[TopicPartition]] = {member_id: [] for member_id in self.members}
        turn = 0
        for name in sorted(self._kafka.logs):
            takers = [member_id for member_id, one in self.members.items() if name.topic in one.topics]
            if takers:
                shares[takers[turn % len(takers)]].append(name)
                turn += 1
        for member_id, one in self.members.items():
            if one.joining is not None and not one.joining.done():
                one.joining.set_result((self.generation, shares[member_id]))
            one.joining, one.seen_at = None, now()


def after(entry: Record | Unreadable) -> int:
    return (entry.last_offset if isinstance(entry, Unreadable) else entry.offset) + 1


def now() -> float:
    return asyncio.get_running_loop().time()

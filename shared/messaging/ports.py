"""What the runtime asks of Kafka. Two things answer: aiokafka (kafka.py), and the log in memory of the tests.

Errors are aiokafka's: KafkaError, OffsetOutOfRangeError and NoOffsetForPartitionError from reading.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import ConsumerRebalanceListener, TopicPartition

from shared.messaging.record import Record


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A batch that cannot be read at all: its bytes, and why."""

    offset: int
    last_offset: int
    body: bytes
    reason: str


Outgoing = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
"""(key, value, headers) of a record to send."""


class KafkaReader(Protocol):
    """A member of a consumer group. Nothing is committed or reset by itself."""

    async def start(self) -> None:
        """Connect, and join the group in the background."""

    async def stop(self) -> None:
        """Leave the group."""

    def subscribe(self, topics: Sequence[str], *, listener: ConsumerRebalanceListener) -> None:
        """Ask for partitions of these topics; the listener hears of each rebalance."""

    def assignment(self) -> Iterable[TopicPartition]:
        """Return the partitions that are ours now."""
        ...

    async def fetch(
        self, partition: TopicPartition, offset: int, *, wait_ms: int, limit: int
    ) -> tuple[list[Record | Unreadable], int]:
        """Return what follows in the partition, whose position is `offset`, and the offset after it."""
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from there."""

    def pause(self, *partitions: TopicPartition) -> None:
        """Fetch nothing from these."""

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch from these again."""

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the first offset still there."""
        ...

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Return the offset after the last record."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Show others how far we are."""

    async def cluster_id(self) -> str | None:
        """Return the name that Kafka gave itself when it was made; None where it gives none."""
        ...


class KafkaWriter(Protocol):
    """An idempotent producer that waits for all in-sync replicas."""

    async def start(self) -> None:
        """Connect."""

    async def send_all(self, topic: str, records: Sequence[Outgoing]) -> Sequence[asyncio.Future[Any]]:
        """Hand records over, in their order; a future for each, done when Kafka has it.

        What cannot be handed over, and all that follows it, is failed at once. Raises KafkaError when that is so of
        all.
        """
        ...

    async def flush(self) -> None:
        """Wait until everything handed over is done or failed."""

    async def partitions_for(self, topic: str) -> set[int]:
        """Return the topic's partitions; waits while there are none."""
        ...

    async def answers(self) -> bool:
        """Tell whether a broker answers."""
        ...

    async def give_up(self) -> None:
        """Stop at once: what is not sent is never sent, what waits for an answer fails."""


class Kafka(Protocol):
    """Where clients come from."""

    def reader(self, group: str, member: str) -> KafkaReader:
        """Return a group member, not started."""
        ...

    def writer(self, client_id: str) -> KafkaWriter:
        """Return a producer, not started."""
        ...

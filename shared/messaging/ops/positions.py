"""Where things stand in Kafka: what topics hold, and how far each consumer of this service is behind.

It asks Kafka through a connection of its own and Postgres for what was settled, so it answers also while a consumer
stands still. When Kafka does not answer, the rows say so and show what Postgres knows.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from sqlalchemy import text

from shared.clock import Clock
from shared.contracts.topics import TOPICS, Topic, dead_letter_topic
from shared.db import Database, Row
from shared.messaging import raw_fetch
from shared.messaging.consumer import Consumer
from shared.messaging.kafka import KafkaAddress, Reader
from shared.messaging.record import Record
from shared.messaging.replay import know_topics

ANSWER_S: Final = 5.0
PROBLEM: Final = "Kafka does not answer"
NO_TOPIC: Final = "Kafka has no such topic"

_SETTLED: Final = text("select consumer, topic, partition, next_offset, updated_at from consumer_offsets")


class Positions:
    """Topics and lag, as one service sees them. `consumers` are those of the running code."""

    def __init__(
        self, service: str, db: Database, address: KafkaAddress, consumers: Sequence[Consumer], clock: Clock
    ) -> None:
        self._service = service
        self._db = db
        self._address = address
        self._consumers = consumers
        self._clock = clock

    async def topics(self) -> list[dict[str, Any]]:
        """Return the service's topics and its consumers' dead-letter topics, with what each partition holds."""
        letters = [dead_letter_topic(consumer.name) for consumer in self._consumers]
        shapes = [*(topic for topic in TOPICS if topic.owner == self._service), *letters]
        async with self._asking() as kafka:
            bounds = await _bounds(kafka, [topic.name for topic in shapes])
        return [self._topic(topic, bounds) for topic in shapes]

    async def lag(self) -> list[dict[str, Any]]:
        """Return each consumer's partitions: what it settled, what Kafka has, the difference in records and seconds.

        The seconds are the age of the first record that is not settled; None where nobody can tell.
        """
        async with self._db.read() as tx:
            found = await tx.fetch(_SETTLED)
        settled = {(row["consumer"], TopicPartition(row["topic"], row["partition"])): row for row in found}
        wanted = [(consumer.name, topic.name) for consumer in self._consumers for topic in consumer.topics]
        async with self._asking() as kafka:
            bounds = await _bounds(kafka, sorted({topic for _, topic in wanted}))
            rows: list[dict[str, Any]] = []
            for consumer, topic in wanted:
                parts = {part for part in bounds or () if part.topic == topic}
                parts |= {part for name, part in settled if (name, part.topic) == (consumer, topic)}
                for part in sorted(parts) or [TopicPartition(topic, -1)]:
                    row = settled.get((consumer, part))
                    rows.append(self._behind(consumer, part, row, bounds))
            await asyncio.gather(*(self._age(kafka, row) for row in rows if row["lag_records"]))
        return rows

    def _topic(self, topic: Topic, bounds: dict[TopicPartition, tuple[int, int]] | None) -> dict[str, Any]:
        ends = [
            {"partition": part.partition, "first_offset": first, "end_offset": end}
            for part, (first, end) in sorted((bounds or {}).items())
            if part.topic == topic.name
        ]
        return {
            "service": self._service,
            "topic": topic.name,
            "owner": topic.owner,
            "key": topic.key,
            "partitions": topic.partitions,
            "retention_ms": topic.retention_ms,
            "compact": topic.compact,
            "records": sum(one["end_offset"] - one["first_offset"] for one in ends) if ends else None,
            "offsets": ends,
            "problem": None if ends else PROBLEM if bounds is None else NO_TOPIC,
        }

    def _behind(
        self,
        consumer: str,
        part: TopicPartition,
        row: Row | None,
        bounds: dict[TopicPartition, tuple[int, int]] | None,
    ) -> dict[str, Any]:
        settled = None if row is None else row["next_offset"]
        first, end = (bounds or {}).get(part, (None, None))
        lag = None if first is None or end is None else max(0, end - max(settled or 0, first))
        return {
            "service": self._service,
            "consumer": consumer,
            "topic": part.topic,
            "partition": part.partition,
            "settled_offset": settled,
            "settled_at": None if row is None else row["updated_at"],
            "first_offset": first,
            "end_offset": end,
            "lag_records": lag,
            "lag_s": 0.0 if lag == 0 else None,
            "problem": None if lag is not None else PROBLEM if bounds is None else NO_TOPIC,
        }

    async def _age(self, kafka: Reader | None, row: dict[str, Any]) -> None:
        if kafka is None:
            return
        part = TopicPartition(row["topic"], row["partition"])
        following = max(row["settled_offset"] or 0, row["first_offset"])
        try:
            async with asyncio.timeout(ANSWER_S / 2):
                found, _ = await raw_fetch.fetch(kafka, part, following)
        except (KafkaError, OSError, TimeoutError):
            return
        time: datetime | None = next((one.time for one in found if isinstance(one, Record)), None)
        if time is not None:
            row["lag_s"] = round(max(0.0, (self._clock() - time).total_seconds()), 3)

    @asynccontextmanager
    async def _asking(self) -> AsyncGenerator[Reader | None]:
        """Yield a connection to Kafka, or None when it does not answer."""
        kafka = Reader(
            **self._address.connection(),
            enable_auto_commit=False,
            isolation_level="read_committed",  # as consumers read: what they cannot have yet is no lag
        )
        try:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await kafka.start()
                    await know_topics(kafka)
            except (KafkaError, OSError, TimeoutError):
                yield None
            else:
                yield kafka
        finally:
            await kafka.stop()


async def _bounds(kafka: Reader | None, topics: Sequence[str]) -> dict[TopicPartition, tuple[int, int]] | None:
    """Return (first offset, end offset) of each partition; None when Kafka does not answer in time."""
    if kafka is None:
        return None
    parts = [TopicPartition(topic, number) for topic in topics for number in kafka.partitions_for_topic(topic) or ()]
    if not parts:
        return {}
    try:
        async with asyncio.timeout(ANSWER_S):
            firsts, ends = await asyncio.gather(kafka.beginning_offsets(parts), kafka.end_offsets(parts))
    except (KafkaError, OSError, TimeoutError):
        return None
    return {part: (firsts[part], ends[part]) for part in parts}

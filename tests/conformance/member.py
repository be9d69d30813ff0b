"""A member of a consumer group, as the runtime is one: it keeps its own offsets.

As a program (`member.py BOOTSTRAP GROUP TOPIC`): join, say what it has, and stay until killed.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

from aiokafka import ConsumerRebalanceListener, TopicPartition

from shared.messaging.kafka import KafkaAddress
from shared.messaging.ports import Kafka, KafkaReader, Unreadable
from shared.messaging.record import Record


class Member(ConsumerRebalanceListener):
    """Reads what it is assigned, from the start of each partition."""

    def __init__(self, reader: KafkaReader) -> None:
        self.reader = reader
        self.heard: list[tuple[str, frozenset[TopicPartition]]] = []
        self.following: dict[TopicPartition, int] = {}

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, revoked: set[TopicPartition]
    ) -> None:
        self.heard.append(("revoked", frozenset(revoked)))

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, assigned: list[TopicPartition]
    ) -> None:
        self.heard.append(("assigned", frozenset(assigned)))
        self.following.clear()

    @property
    def mine(self) -> set[TopicPartition]:
        """What is assigned now; nothing while the group decides."""
        return set(self.heard[-1][1]) if self.heard and self.heard[-1][0] == "assigned" else set()

    def has(self, count: int) -> bool:
        return len(self.mine) == count

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.reader.seek(partition, offset)
        self.following[partition] = offset

    async def turn(self, partition: TopicPartition, wait_ms: int = 200) -> list[Record]:
        """Fetch once; what follows in the partition."""
        if partition not in self.following:
            self.seek(partition, (await self.reader.beginning_offsets([partition]))[partition])
        at = self.following[partition]
        found, self.following[partition] = await self.reader.fetch(partition, at, wait_ms=wait_ms, limit=500)
        assert not [one for one in found if isinstance(one, Unreadable)], found
        return [one for one in found if isinstance(one, Record)]

    async def read(self, count: int, within_s: float = 15) -> list[Record]:
        """Return `count` records or more, of all partitions that are ours."""
        records: list[Record] = []
        async with asyncio.timeout(within_s):
            while len(records) < count:
                for partition in sorted(self.mine):
                    records.extend(await self.turn(partition, 50))
                await asyncio.sleep(0)
        return records


@contextlib.asynccontextmanager
async def joined(kafka: Kafka, group: str, topics: list[str], name: str = "a") -> AsyncGenerator[Member]:
    """Join a group; leave it at the end."""
    reader = kafka.reader(group, name)
    member = Member(reader)
    await reader.start()
    try:
        reader.subscribe(topics, listener=member)
        async with asyncio.timeout(20):
            while not member.mine:  # noqa: ASYNC110 - the listener has no event of its own
                await asyncio.sleep(0.01)
        yield member
    finally:
        await reader.stop()


async def stay(bootstrap: str, group: str, topic: str) -> None:
    async with joined(KafkaAddress(bootstrap), group, [topic], "doomed") as member:
        sys.stdout.write(f"has {len(member.mine)}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(stay(*sys.argv[1:]))

"""How long a fetch waits at the broker: what is idle costs little, what is busy waits for nobody."""

import asyncio
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.protocol.fetch import FetchRequest

from shared.contracts.topics import Topic
from shared.messaging import kafka
from shared.messaging.kafka import KafkaAddress, Reader, ensure_topics
from tests.conftest import eventually

PARTITIONS = 3


class Watched:
    """A reader whose fetches are written down as (partitions asked for, longest wait in ms)."""

    def __init__(self, address: KafkaAddress) -> None:
        self.reader: Reader = address.reader(f"patience-{uuid4().hex[:8]}", "one")
        self.fetches: list[tuple[int, int]] = []
        self.assigned = asyncio.Event()
        client: Any = self.reader._client
        client.send = partial(self.reader._send, partial(self._noting, client.send.args[0]))

    async def _noting(self, send: Any, node: Any, request: Any, **options: Any) -> Any:
        if type(request) is FetchRequest:
            self.fetches.append((sum(len(parts) for _, parts in request.topics), request._max_wait_ms))
        return await send(node, request, **options)


class Listener(ConsumerRebalanceListener):
    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, revoked: object
    ) -> None:
        del revoked

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - it may be a coroutine
        self, assigned: object
    ) -> None:
        del assigned
        self._watched.assigned.set()


@pytest.mark.apache
async def test_a_fetch_is_patient_when_all_are_idle_and_short_at_first_while_one_is_busy(address: KafkaAddress) -> None:
    topic = Topic(f"patience-{uuid4().hex[:8]}", partitions=PARTITIONS)
    await ensure_topics(address, [topic])
    watched, writer = Watched(address), address.writer("patience")
    reader = watched.reader
    first = TopicPartition(topic.name, 0)
    await reader.start()
    await writer.start()
    try:
        reader.subscribe([topic.name], listener=Listener(watched))
        await watched.assigned.wait()
        for number in range(PARTITIONS):
            reader.seek(TopicPartition(topic.name, number), 0)
        await eventually(lambda: (PARTITIONS, kafka._PATIENT_MS) in watched.fetches)
        await asyncio.gather(*[await writer.send(topic.name, b"x", b"k", partition=0) for _ in range(3)])
        found, after = await reader.fetch(first, 0, wait_ms=30_000, limit=1)
        assert (len(found), after) == (1, 1)
        del watched.fetches[:]
        await eventually(lambda: (PARTITIONS - 1, kafka._BUSY_MS) in watched.fetches)
        await eventually(lambda: (PARTITIONS - 1, 4 * kafka._BUSY_MS) <= watched.fetches[-1] < (PARTITIONS, 0))
        assert len((await reader.fetch(first, 1, wait_ms=1000, limit=10))[0]) == 2
        await eventually(lambda: (PARTITIONS, kafka._PATIENT_MS) in watched.fetches)
    finally:
        await writer.give_up()
        await reader.stop()

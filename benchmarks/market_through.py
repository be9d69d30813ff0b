"""The whole US options market once through Kafka, detector and Postgres: first snapshot sent to last settled.

The baseline carries the same bytes through Kafka alone, to a consumer that throws them away. Producing is part of
both; making the snapshots is not.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.market import CONTRACTS, market
from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from shared.clock import new_id, utc_now
from shared.contracts.data import ChainCollected
from shared.contracts.topics import CHAINS, Topic
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of

BAR_S: Final = 60.0
GOAL_S: Final = 20.0
BLANK: Final = Topic("bench.chains", partitions=CHAINS.partitions, max_message_bytes=CHAINS.max_message_bytes)

Message = tuple[bytes, bytes, list[tuple[str, bytes | None]]]


def run() -> list[dict[str, Any]]:
    """Measure; return a row."""
    with servers() as below:
        return asyncio.run(measure(below))


async def measure(below: Stack) -> list[dict[str, Any]]:
    """Measure on servers that run already."""
    messages = [_message(event) for event in market()]
    address = KafkaAddress(below.kafka.bootstrap)
    await ensure_topics(address, [CHAINS, BLANK])
    admin = await asyncpg.connect(below.admin_url)
    try:
        carried_s = await _carry(address, messages)
        async with service(below, "detector"):
            began = time.monotonic()
            await _send(address, CHAINS.name, messages)
            await until(lambda: _settled(admin, len(messages)), 300)
            through_s = time.monotonic() - began
        found = await admin.fetchval("select count(*) from detector.activity")
        assert found > 0, "nothing was found"
    finally:
        await admin.close()
    return [
        row(
            f"whole market ({len(messages)} chains, {CONTRACTS} contracts, {found} unusual) to settled",
            through_s,
            "s (baseline: Kafka alone; bar and goal are seconds)",
            baseline=carried_s,
            bar=BAR_S,
            goal=GOAL_S,
            holds=through_s < BAR_S,
        )
    ]


def _message(event: ChainCollected) -> Message:
    fresh = event.model_copy(update={"id": new_id(), "time": utc_now()})
    headers = [(name.decode(), value) for name, value in headers_of(fresh, "/bench")]
    return fresh.key.encode(), fresh.to_bytes(), headers


async def _send(address: KafkaAddress, topic: str, messages: Sequence[Message]) -> None:
    producer: AIOKafkaProducer = address.writer("bench")
    await producer.start()
    try:
        sent = [await producer.send(topic, value, key, headers=headers) for key, value, headers in messages]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def _carry(address: KafkaAddress, messages: Sequence[Message]) -> float:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address.bootstrap, max_partition_fetch_bytes=4 * 1_048_576, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        parts = [TopicPartition(BLANK.name, number) for number in range(BLANK.partitions)]
        consumer.assign(parts)
        began = time.monotonic()
        sending = asyncio.create_task(_send(address, BLANK.name, messages))
        got = 0
        while got < len(messages):
            got += sum(len(records) for records in (await consumer.getmany(timeout_ms=500)).values())
        await sending
        return time.monotonic() - began
    finally:
        await consumer.stop()


async def _settled(admin: "asyncpg.Connection[asyncpg.Record]", count: int) -> bool:
    done = await admin.fetchval(
        "select sum(next_offset) from detector.consumer_offsets where consumer = 'detector.chains'"
    )
    return (done or 0) >= count

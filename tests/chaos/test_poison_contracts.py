"""Every consumer of the services, fed with golden files that were tampered with: parked with a reason, or handled."""

import asyncio
import contextlib
import copy
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition

from deploy.local.kafka import RunningKafka
from services.alerts.main import build as build_alerts
from services.api.main import build as build_api
from services.detector.main import build as build_detector
from shared.contracts.data import ChainCollected
from shared.contracts.topics import TOPICS
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import Headers, pack_headers
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.contracts.examples import EXAMPLES
from tests.contracts.golden import FOLDER, record_of

EACH = 25
"""How often each golden file is tampered with."""

_INSTEAD: tuple[Any, ...] = (
    *(None, "", "\x00", "a\x00b", "x" * 100_000, "\u202e\x1b[2J", "'; drop table inbox; --", "NaN"),
    *(0, -1, 2**31, 2**63, 10**400, 1e308, -0.0, True, [], {}, [[[]]], {"\x00": "\x00"}),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-02-30", "00000000-0000-0000-0000-000000000000"),
)


@dataclass
class Lies:
    """A record in Kafka."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def tampered(random: Random) -> Iterator[tuple[str, bytes | None, bytes | None, Headers]]:
    """Yield (topic, key, value, headers) of golden files with something wrong in each; the last of each is right."""
    topics = {event.type: event.topic.name for event in EXAMPLES}
    for file in sorted(FOLDER.glob("*.json")):
        golden = json.loads(file.read_text())
        right = record_of(golden)
        for number in range(EACH + 1):
            headers = dict(right.headers) | {
                b"ce_id": str(uuid.UUID(int=random.getrandbits(128))).encode(),
                b"ce_time": datetime.now(UTC).isoformat().encode(),
            }
            value = right.value
            if number < EACH:
                value = _damaged(golden["data"], right.value or b"", random)
            yield topics[file.stem], right.key if number < EACH else b"right", value, tuple(headers.items())


def _damaged(data: Any, body: bytes, random: Random) -> bytes:
    if isinstance(data, str) or random.random() < 0.1:  # bytes that are not JSON, or no more
        flipped = bytearray(body)
        for _ in range(random.choice((1, 2, 8))):
            flipped[random.randrange(len(flipped))] = random.choice((0, 0xFF, random.randrange(256)))
        return bytes(flipped[: random.choice((len(flipped), random.randrange(len(flipped))))])
    changed = copy.deepcopy(data)
    holder, name = random.choice(list(_places(changed)))
    if random.random() < 0.15:
        del holder[name]
    else:
        holder[name] = random.choice(_INSTEAD)
    return json.dumps(changed).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in list(pairs):
        yield value, name
        yield from _places(inner)


async def test_whatever_lies_in_the_topics_every_consumer_gets_through_it(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, address: KafkaAddress
) -> None:
    await ensure_topics(address, TOPICS)
    lies = await _send_all(clean_kafka.bootstrap)
    environment = Environment(settings)
    services: list[Service] = [build(environment) for build in (build_api, build_detector, build_alerts)]
    admin = await asyncpg.connect(database_url)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(admin.close)
        for service in services:
            await stack.enter_async_context(service.running())
        await eventually(lambda: _settled(admin, services, lies), 90)
        await eventually(lambda: _ready(services), 30)
        for service in services:
            for consumer in service.consumers:
                for one in lies:
                    if one.topic in {topic.name for topic in consumer.topics}:
                        await _assert_accounted(admin, service.name, consumer.name, set(consumer.routes), one)


def test_a_chain_whose_bytes_were_tampered_with_is_refused_or_safe_to_read() -> None:
    """Arrow follows offsets that point anywhere: read unchecked, some of these end the process."""
    chain = next(event for event in EXAMPLES if isinstance(event, ChainCollected))
    random = Random(1)
    for _ in range(3000):
        body = bytearray(chain.to_bytes())
        for _ in range(random.choice((1, 2, 5))):
            body[random.randrange(len(body))] = random.choice((0, 0xFF, random.randrange(256)))
        try:
            read = ChainCollected.from_bytes(bytes(body), id=chain.id, time=chain.time)
        except Exception:  # noqa: BLE001, S112 - refused, whatever it says
            continue
        read.contracts.validate(full=True)


async def _send_all(bootstrap: str) -> list[Lies]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=4_000_000)
    await producer.start()
    lies: list[Lies] = []
    try:
        for topic, key, value, headers in tampered(Random(20261122)):
            pairs = [(name.decode(), content) for name, content in headers]
            sent = await producer.send_and_wait(topic, value, key=key, headers=pairs)
            lies.append(Lies(topic, sent.partition, sent.offset, key, value, headers))
    finally:
        await producer.stop()
    return lies


async def _settled(admin: asyncpg.Connection, services: list[Service], lies: list[Lies]) -> bool:
    ends: dict[TopicPartition, int] = {}
    for one in lies:
        name = TopicPartition(one.topic, one.partition)
        ends[name] = max(ends.get(name, 0), one.offset + 1)
    for service in services:
        rows = await admin.fetch(f"select * from {service.name}.consumer_offsets")
        stored = {(row["consumer"], row["topic"], row["partition"]): row["next_offset"] for row in rows}
        for consumer in service.consumers:
            topics = {topic.name for topic in consumer.topics}
            for name, end in ends.items():
                if name.topic in topics and stored.get((consumer.name, name.topic, name.partition), 0) < end:
                    await asyncio.sleep(0.2)
                    return False
    return True


async def _ready(services: list[Service]) -> bool:
    found = [await service.readiness() for service in services]
    return all(ok for one in found for ok, _ in one.values())


async def _assert_accounted(
    admin: asyncpg.Connection, schema: str, consumer: str, handled: set[str], one: Lies
) -> None:
    row = await admin.fetchrow(
        f"select * from {schema}.failed_jobs where consumer = $1 and topic = $2 and partition = $3"
        " and record_offset = $4",
        *(consumer, one.topic, one.partition, one.offset),
    )
    if row is not None:
        assert (row["key"], row["value"], row["headers"]) == (one.key, one.value, pack_headers(one.headers))
        assert row["error_code"]
        assert row["error_message"]
        return
    headers = dict(one.headers)
    if (headers[b"ce_type"] or b"").decode() not in handled:
        return
    done = await admin.fetchval(
        f"select count(*) from {schema}.inbox where consumer = $1 and event_id = $2",
        consumer,
        uuid.UUID((headers[b"ce_id"] or b"").decode()),
    )
    assert done == 1, f"{consumer} lost {one}"

"""One behaviour for every Kafka that we claim to support: Apache Kafka, the embedded broker, the one in memory.

What one lacks stands in lacks.py, and in the README.
"""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError, OffsetOutOfRangeError

from shared.contracts.topics import Topic
from shared.messaging.ports import KafkaWriter, Outgoing
from tests.conformance.member import joined
from tests.conftest import eventually


def named(**shape: Any) -> Topic:
    return Topic(f"probe.{uuid.uuid4().hex[:10]}", **shape)


@contextlib.asynccontextmanager
async def sending(backend: Any) -> AsyncGenerator[KafkaWriter]:
    writer: KafkaWriter = backend.kafka.writer("conformance")
    await writer.start()
    try:
        yield writer
    finally:
        await writer.give_up()


async def give(writer: KafkaWriter, topic: Topic, *records: Outgoing) -> None:
    """Send records, and wait until Kafka has them."""
    await asyncio.gather(*await writer.send_all(topic.name, records))


async def put(backend: Any, topic: Topic, *pairs: tuple[bytes | None, bytes | None]) -> None:
    """Send (key, value) pairs, and wait until Kafka has them."""
    async with sending(backend) as writer:
        await give(writer, topic, *((key, value, []) for key, value in pairs))


async def test_a_key_stays_in_one_partition_and_its_records_in_order(backend: Any) -> None:
    topic = named(partitions=4)
    await backend.create(topic)
    await put(backend, topic, *((f"k{n % 7}".encode(), str(n).encode()) for n in range(200)))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        records = await member.read(200)
    assert len(records) == 200
    for key in {one.key for one in records}:
        mine = [one for one in records if one.key == key]
        assert len({one.partition for one in mine}) == 1
        assert [int(one.value or b"") for one in mine] == sorted(int(one.value or b"") for one in mine)
    assert len({one.partition for one in records}) > 1
    for partition in range(4):
        offsets = [one.offset for one in records if one.partition == partition]
        assert all(first < second for first, second in pairwise(offsets))


async def test_bytes_come_back_as_they_went_and_null_is_not_empty(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    odd: list[tuple[str, bytes | None]] = [
        ("n", None),
        ("e", b""),
        ("n", b"again"),
        ("", b"no name"),
        ("ü\x00", bytes(range(256))),
    ]
    sent: list[Outgoing] = [(None, None, []), (b"", b"", []), (None, b"\x00\xff", odd), (b"\x00k", None, odd[:1])]
    async with sending(backend) as writer:
        for key, value, headers in sent:
            await give(writer, topic, (key, value, headers))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        records = await member.read(len(sent))
    got = [(one.key, one.value, [(name.decode(), value) for name, value in one.headers]) for one in records]
    assert got == sent


async def test_a_record_tells_when_it_was_sent(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    await put(backend, topic, (b"k", b"v"))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        (record,) = await member.read(1)
    assert record.time is not None
    assert abs((datetime.now(UTC) - record.time).total_seconds()) < 60


async def test_offsets_tell_where_a_partition_begins_and_ends(backend: Any) -> None:
    topic = named(partitions=2)
    await backend.create(topic)
    here, there = (TopicPartition(topic.name, number) for number in range(2))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        assert await member.reader.end_offsets([here, there]) == {here: 0, there: 0}
        await put(backend, topic, *[(b"one key", b"x")] * 5)
        await member.read(5)
        begin = await member.reader.beginning_offsets([here, there])
        end = await member.reader.end_offsets([here, there])
        assert begin == {here: 0, there: 0}
        assert sorted(end.values()) == [0, 5]
        (full,) = (name for name in end if end[name])
        assert member.following[full] == 5


async def test_what_was_read_is_read_again_after_a_seek_back(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    await put(backend, topic, *((b"k", str(n).encode()) for n in range(10)))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        await member.read(10)
        member.seek(TopicPartition(topic.name, 0), 4)
        assert [one.offset for one in await member.read(6)] == [4, 5, 6, 7, 8, 9]


async def test_a_paused_partition_gives_nothing_until_it_is_resumed(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    here = TopicPartition(topic.name, 0)
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        assert await member.turn(here) == []
        member.reader.pause(here)
        await put(backend, topic, (b"k", b"1"))
        assert await member.turn(here, 700) == []
        assert await member.turn(here, 100) == []
        member.reader.resume(here)
        assert [one.value for one in await member.read(1)] == [b"1"]


async def test_reading_beyond_the_end_says_so(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    await put(backend, topic, (b"k", b"1"))
    here = TopicPartition(topic.name, 0)
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        member.seek(here, 1000)
        with pytest.raises(OffsetOutOfRangeError):
            await member.turn(here, 15_000)


async def test_each_partition_is_one_members_and_both_hear_of_it(backend: Any) -> None:
    topic = named(partitions=4)
    await backend.create(topic)
    async with joined(backend.kafka, topic.name, [topic.name], "a") as first:
        assert first.has(4)
        async with joined(backend.kafka, topic.name, [topic.name], "b") as second:
            await eventually(lambda: first.has(2) and second.has(2))
            assert not first.mine & second.mine
            assert ("revoked", frozenset(TopicPartition(topic.name, n) for n in range(4))) in first.heard
            await put(backend, topic, *((f"k{n}".encode(), b"x") for n in range(50)))
            halves = await asyncio.gather(*(_drained(one) for one in (first, second)))
            assert sum(len(half) for half in halves) == 50
            assert all(halves)
        await eventually(lambda: first.has(4))  # the other left


async def _drained(member: Any) -> list[Any]:
    found: list[Any] = []
    for partition in sorted(member.mine):
        while more := await member.turn(partition, 2000):
            found.extend(more)
    return found


async def test_several_members_of_several_groups_each_get_what_is_theirs(backend: Any) -> None:
    one, other = named(partitions=2), named(partitions=2)
    await backend.create(one, other)
    for topic in (one, other):
        await put(backend, topic, *((f"k{n}".encode(), topic.name.encode()) for n in range(20)))
    wanted = {"x": [one.name], "y": [one.name, other.name]}
    for group, topics in wanted.items():
        async with joined(backend.kafka, f"{one.name}-{group}", topics) as member:
            found = await member.read(20 * len(topics))
            assert len(found) == 20 * len(topics)
            assert {record.topic for record in found} == set(topics)


async def test_a_producer_that_gives_up_leaves_nothing_waiting(backend: Any) -> None:
    topic = named(partitions=3)
    await backend.create(topic)
    async with sending(backend) as writer:
        assert await writer.partitions_for(topic.name) == {0, 1, 2}
        assert await writer.answers()
        futures = [(await writer.send_all(topic.name, [(b"k", b"x", [])]))[0] for _ in range(20)]
    done, waiting = await asyncio.wait(futures, timeout=5)
    assert not waiting
    outcomes = [one.exception() for one in done]  # sent or given up, each says which
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        sure = outcomes.count(None)
        assert len(await member.read(sure)) >= sure


async def test_a_record_as_large_as_the_topic_allows_goes_through(backend: Any) -> None:
    topic = named(partitions=1, max_message_bytes=4_194_304)
    await backend.create(topic)
    large = os.urandom(4_194_304 - 30_000)  # random, so that compression does not help; lz4 adds a little
    async with sending(backend) as writer:
        await give(writer, topic, (b"k", large, []))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        (record,) = await member.read(1)
    assert record.value == large


async def test_a_record_that_is_larger_is_refused_and_told(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    async with sending(backend) as writer:
        with pytest.raises(MessageSizeTooLargeError):
            await give(writer, topic, (b"k", os.urandom(1_500_000), []))
    await put(backend, topic, (b"k", b"small"))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(1)] == [b"small"]


async def test_a_record_that_no_request_carries_is_refused_before_anything_is_handed_over(backend: Any) -> None:
    topic = named(partitions=1)
    await backend.create(topic)
    async with sending(backend) as writer:
        with pytest.raises(MessageSizeTooLargeError):
            await writer.send_all(topic.name, [(b"k", b"before", []), (b"k", bytes(17 * 1_048_576), [])])
        await give(writer, topic, (b"k", b"after", []))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(1)] == [b"after"]


async def test_many_records_of_a_partition_keep_their_order_over_several_batches(backend: Any) -> None:
    topic = named(partitions=2)
    await backend.create(topic)
    values = [f"{n:05d}".encode() + os.urandom(9_000) for n in range(150)]  # a batch has half a megabyte
    async with sending(backend) as writer:
        await give(writer, topic, *((b"k", value, []) for value in values))
    async with joined(backend.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(150)] == values


async def test_a_cluster_has_a_name_of_its_own(backend: Any) -> None:
    reader = backend.kafka.reader(named().name, "a")
    await reader.start()
    name = await reader.cluster_id()
    await reader.stop()
    assert name

"""What a Kafka with a wire, a disk and clients of others must do as well."""

import asyncio
import contextlib
import os
import struct
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from shared.contracts.topics import TOPICS
from shared.messaging.raw_fetch import RawFetch
from tests.conformance.backends import Server
from tests.conformance.lacks import LACKS
from tests.conformance.member import joined
from tests.conformance.test_kafka import named, put, sending
from tests.messaging.batches import CODECS, NOW_MS, batch, sealed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("codec", CODECS)
async def test_every_compression_is_taken_and_read(wire: Server, codec: str) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    sent = [(b"a", b"x" * 5000, ((b"h", b"1"),)), (b"", None, ()), (None, b"", ((b"n", None),))]
    await wire.put(topic.name, 0, batch(sent, codec))
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert [(one.key, one.value, one.headers) for one in await member.read(3)] == sent


async def test_commits_are_seen_by_others(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    await put(wire, topic, *[(b"k", b"x")] * 5)
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        await member.reader.commit({here: 3})
        assert await wire.committed(topic.name) == {here: 3}
        await member.reader.commit({here: 5})
        assert await wire.committed(topic.name) == {here: 5}


async def test_a_batch_that_is_sent_twice_by_an_idempotent_producer_is_there_once(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    producer_id = await _producer_id(wire)
    once = _numbered(producer_id, 0)
    for one in (once, once, _numbered(producer_id, 1), once):
        await wire.put(topic.name, 0, one)
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(2)] == [b"0", b"1"]
        assert await member.turn(TopicPartition(topic.name, 0)) == []


async def test_a_fetch_waits_for_records(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        client: Any = cast("Any", member.reader)._client
        node = client.cluster.leader_for_partition(TopicPartition(topic.name, 0))
        asked = time.monotonic()
        await client.send(node, RawFetch(300, 1, 1_000_000, 1, [(topic.name, [(0, 0, 1_000_000)])]))
        assert time.monotonic() - asked > 0.25  # no sooner; however much later


async def test_a_reader_with_nothing_to_read_asks_seldom(wire: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = named(partitions=2)
    await wire.create(topic)
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        for partition in member.mine:
            member.seek(partition, 0)
        client: Any = cast("Any", member.reader)._client
        asked: list[Any] = []
        send = client.send

        async def counted(node: Any, request: Any, **options: Any) -> Any:
            asked.append(request)
            return await send(node, request, **options)

        monkeypatch.setattr(client, "send", counted)
        for partition in sorted(member.mine):
            assert await member.turn(partition, 500) == []
        assert 0 < len(asked) < 100  # the broker that does not wait would answer thousands


async def test_a_reader_is_not_left_waiting_when_it_seeks_just_as_a_fetch_ends(
    wire: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        client: Any = cast("Any", member.reader)._client
        ended, release, send = asyncio.Event(), asyncio.Event(), client.send

        async def held(node: Any, request: Any, **options: Any) -> Any:
            answer = await send(node, request, **options)
            if type(request) is FetchRequest:
                ended.set()
                await release.wait()
            return answer

        monkeypatch.setattr(client, "send", held)
        member.seek(here, 0)
        await ended.wait()  # with nothing
        await put(wire, topic, (b"k", b"x"))
        member.seek(here, 0)
        release.set()
        assert await member.turn(here, 3000)


async def _producer_id(wire: Server) -> int:
    """Return a producer id that the broker gave out."""
    producer = AIOKafkaProducer(bootstrap_servers=wire.running.bootstrap, enable_idempotence=True)
    await producer.start()
    topic = named(partitions=1)
    await wire.create(topic)
    await producer.send_and_wait(topic.name, b"x")
    manager: Any = producer._txn_manager
    found: int = manager.producer_id
    await producer.stop()
    return found


def _numbered(producer_id: int, sequence: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=producer_id,
        producer_epoch=0,
        base_sequence=sequence,
        batch_size=1 << 16,
    )
    builder.append(0, NOW_MS, b"k", str(sequence).encode(), [])
    return bytes(builder.build())


async def test_a_transaction_that_was_committed_is_read_and_its_mark_stepped_over(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    async with wire.producer(f"tx-{topic.name}") as producer, producer.transaction():
        await producer.send(topic.name, b"1", key=b"k")
    await put(wire, topic, (b"k", b"2"))
    async with wire.producer(f"tx-{topic.name}") as producer, producer.transaction():
        await producer.send(topic.name, b"3", key=b"k")
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(3)] == [b"1", b"2", b"3"]
        assert await member.turn(here) == []
        assert member.following == await member.reader.end_offsets([here]), "what is read lags behind nothing"


async def test_a_transaction_that_was_aborted_is_not_read(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    async with wire.producer(f"tx-{topic.name}") as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic.name, b"aborted", key=b"k")
        await producer.abort_transaction()
    await put(wire, topic, (b"k", b"2"))
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(1)] == [b"2"]
        assert await member.turn(here) == []
        assert member.following == await member.reader.end_offsets([here])


async def test_what_was_deleted_moves_the_beginning_and_reading_before_it_says_so(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    await put(wire, topic, *((b"k", str(n).encode()) for n in range(10)))
    async with wire.admin() as admin:
        await admin.delete_records({here: RecordsToDelete(before_offset=6)})
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert await member.reader.beginning_offsets([here]) == {here: 6}
        assert [one.offset for one in await member.read(4)] == [6, 7, 8, 9]
        member.seek(here, 2)
        with pytest.raises(OffsetOutOfRangeError):
            await member.turn(here, 3000)


async def test_a_topic_has_the_shape_that_was_asked_for(wire: Server) -> None:
    topic = named(partitions=3, retention_ms=7_200_000, max_message_bytes=2_097_152)
    await wire.create(topic)
    await wire.create(topic)  # it is there: nothing happens
    async with wire.admin() as admin:
        answers: Any = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)])
        told = await admin.describe_topics([topic.name])
    shape = {entry[0]: entry[1] for entry in answers[0].resources[0][4]}
    assert shape["retention.ms"] == "7200000"
    assert shape["max.message.bytes"] == "2097152"
    assert shape["cleanup.policy"] == "delete"
    assert len(told[0]["partitions"]) == 3


def test_compaction_is_not_claimed() -> None:
    assert not [topic.name for topic in TOPICS if topic.compact], "then the suite must try it on every Kafka"


async def test_a_topic_that_nobody_made_is_not_made_by_asking(wire: Server) -> None:
    topic = named()
    async with sending(wire) as writer:
        with pytest.raises((TimeoutError, KafkaError)):
            async with asyncio.timeout(1):
                await writer.partitions_for(topic.name)


async def test_partitions_can_be_added(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    async with wire.admin() as admin:
        await admin.create_partitions({topic.name: NewPartitions(total_count=2)})
        assert len((await admin.describe_topics([topic.name]))[0]["partitions"]) == 2


@pytest.mark.parametrize("damage", ["checksum", "truncated", "negative length", "magic 0", "magic 1"])
async def test_a_damaged_batch_is_refused_at_the_door(wire: Server, damage: str) -> None:
    """What a broker lets in all the same the runtime parks: tests/chaos/test_poison.py."""
    topic = named(partitions=1)
    await wire.create(topic)
    with pytest.raises((KafkaError, TimeoutError)):
        async with asyncio.timeout(5):
            await wire.put(topic.name, 0, damaged(damage))


async def test_a_batch_that_counts_wrongly_is_refused(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    whole = bytearray(batch([(b"k", b"x" * 100, ())]))
    struct.pack_into(">i", whole, 57, 7)
    with pytest.raises((KafkaError, TimeoutError)):
        async with asyncio.timeout(5):
            await wire.put(topic.name, 0, sealed(bytes(whole)))


def damaged(how: str) -> bytes:
    """Return a record batch that is none."""
    whole = bytearray(batch([(b"k", b"x" * 100, ())]))
    match how:
        case "checksum":
            whole[-3] ^= 1
        case "truncated":
            return bytes(whole[:-20])
        case "negative length":
            struct.pack_into(">i", whole, 8, -5)
        case "magic 0":
            whole[16] = 0
        case _:
            whole[16] = 1
    return bytes(whole)


@pytest.mark.slow
async def test_a_member_that_dies_is_replaced_when_its_session_is_over(wire: Server) -> None:
    topic = named(partitions=2)
    await wire.create(topic)
    for within_s in (30, 20):  # a session is 10 s
        with _member(wire, topic.name) as process:
            assert process.stdout is not None
            async with asyncio.timeout(within_s):
                assert await asyncio.to_thread(process.stdout.readline) == b"has 2\n"


@contextlib.contextmanager
def _member(wire: Server, topic: str) -> Generator[subprocess.Popen[bytes]]:
    """Start a member of the group; kill it at the end."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(wire.member_command(topic, topic), stdout=subprocess.PIPE, cwd=ROOT, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_restart_keeps_its_name_its_records_and_its_commits(wire: Server) -> None:
    topic = named(partitions=1)
    await wire.create(topic)
    here = TopicPartition(topic.name, 0)
    await put(wire, topic, (b"k", b"before"))
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        await member.reader.commit({here: 1})
        name = await member.reader.cluster_id()
    wire.restart()
    await put(wire, topic, (b"k", b"after"))
    async with joined(wire.kafka, topic.name, [topic.name]) as member:
        assert [one.value for one in await member.read(2)] == [b"before", b"after"]
        assert await member.reader.cluster_id() == name
        assert await wire.committed(topic.name) == {here: 1}


def test_the_readme_says_what_the_embedded_broker_lacks() -> None:
    told = " ".join((ROOT / "README.md").read_text().split())
    assert [lack for lack in LACKS["embedded"].values() if lack not in told] == []

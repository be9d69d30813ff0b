"""Record batches made by hand, for what no producer would send."""

import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.errors import NoError, NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

from shared.messaging.record import Headers
from tests.conftest import eventually

NOW_MS = int(time.time() * 1000)
"""Brokers drop what is older than a topic keeps."""
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip_encode,
    "snappy": snappy_encode,
    "lz4": lz4_encode,
    "zstd": zstd_encode,
}
_HEAD = struct.Struct(">qiibIhiqqqhii")
One = tuple[bytes | None, bytes | None, Headers]


def batch(records: Sequence[One], codec: str = "none", base: int = 0, attributes: int = 0) -> bytes:
    """Return a record batch; a header name may be any bytes."""
    body = _PACK[codec](b"".join(_record(number, one) for number, one in enumerate(records)))
    last = len(records) - 1
    head = _HEAD.pack(
        *(base, _HEAD.size - 12 + len(body), 0, 2, 0, CODECS[codec] | attributes, last, NOW_MS, NOW_MS + last),
        *(-1, -1, -1, len(records)),
    )
    return sealed(head + body)


def _record(number: int, one: One) -> bytes:
    key, value, headers = one
    body = b"\0" + _varint(number) + _varint(number) + _field(key) + _field(value) + _varint(len(headers))
    body += b"".join(_field(name) + _field(content) for name, content in headers)
    return _varint(len(body)) + body


def _field(content: bytes | None) -> bytes:
    return _varint(-1) if content is None else _varint(len(content)) + content


def _varint(number: int) -> bytes:
    left = (number << 1) ^ (number >> 63)
    written = bytearray()
    while left > 0x7F:
        written.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes(written) + bytes((left,))


def sealed(data: bytes) -> bytes:
    """Return the batch with the checksum that fits it."""
    return data[:17] + struct.pack(">I", calc_crc32c(data[21:])) + data[21:]


async def produce(producer: AIOKafkaProducer, topic: str, partition: int, data: bytes) -> int:
    """Send a batch as it is; return the offset of its first record."""
    at = -1
    client: Any = producer.client
    await producer.partitions_for(topic)
    node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, data)])]
    )

    async def accepted() -> bool:
        nonlocal at
        response = await client.send(node, request)
        _, code, at, *_ = response.topics[0][1][0]
        error = for_code(code)
        if error is NotLeaderForPartitionError:  # the topic is a moment old
            return False
        if error is not NoError:
            raise error
        return True

    await eventually(accepted)
    return at

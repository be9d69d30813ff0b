"""Record batches made by hand, for what no producer would send."""

import struct
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import NoError, NotLeaderForPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from shared.messaging.record import Headers
from tests.conftest import eventually

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
One = tuple[bytes | None, bytes | None, Headers]


def batch(records: Sequence[One], codec: str = "none", base: int = 0, attributes: int = 0) -> bytes:
    """Return a record batch; a header name may be any bytes (ASCII stands in while it is built)."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 24,
    )
    strange: dict[bytes, bytes] = {}
    for number, (key, value, headers) in enumerate(records):
        pairs: list[tuple[str, bytes | None]] = []
        for name, content in headers:
            stand_in = name
            if not name.isascii():
                stand_in = f"{len(strange):0{len(name)}d}".replace("0", "~").encode()
                strange[stand_in] = name
            pairs.append((stand_in.decode(), content))
        builder.append(number, 1_700_000_000_000 + number, key, value, pairs)
    data = bytes(builder.build())
    for stand_in, name in strange.items():
        data = data.replace(stand_in, name)
    head = bytearray(data)
    struct.pack_into(">q", head, 0, base)
    struct.pack_into(">h", head, 21, struct.unpack_from(">h", head, 21)[0] | attributes)
    return sealed(bytes(head))


def sealed(data: bytes) -> bytes:
    """Return the batch with the checksum that fits it."""
    return data[:17] + struct.pack(">I", calc_crc32c(data[21:])) + data[21:]


async def produce(producer: AIOKafkaProducer, topic: str, partition: int, data: bytes) -> None:
    """Send a batch as it is."""
    client: Any = producer.client
    await producer.partitions_for(topic)
    node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, data)])]
    )

    async def accepted() -> bool:
        response = await client.send(node, request)
        error = for_code(response.topics[0][1][0][1])
        if error is NotLeaderForPartitionError:  # the topic is a moment old
            return False
        if error is not NoError:
            raise error
        return True

    await eventually(accepted)

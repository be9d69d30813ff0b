"""Reading a partition when the client's parser cannot: a header name that is not UTF-8, a corrupt batch.

aiokafka raises for the whole fetch then. This asks the broker for the same bytes and reads them with a parser that
takes header names as bytes and gives up on one batch, not on the partition.

Source of the format: Apache Kafka documentation, "Message Format", record batch version 2.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.errors import for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.util import calc_crc32c

from shared.messaging import unpacked
from shared.messaging.ports import Unreadable
from shared.messaging.record import Headers, Record

_HEAD: Final = struct.Struct(">qiibIhiqqqhii")  # base offset .. record count, 61 bytes
_LENGTH: Final = struct.Struct(">qi")
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20
_ABORT: Final = 0  # the type of a control record; 1 is a commit
_READ_COMMITTED: Final = 1
_CODECS: Final = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}
_MAX_BYTES: Final = 1_048_576  # the broker sends at least one batch, however large; a handful of records is enough
_CRC_AT: Final = 17
_VARINT: Final = 10  # bytes of the longest, a varlong


class RawFetch(FetchRequest):
    """A fetch whose answer we read ourselves, however large."""


async def fetch(
    kafka: AIOKafkaConsumer, partition: TopicPartition, offset: int
) -> tuple[list[Record | Unreadable], int]:
    """Return what lies at `offset` and in the rest of its fetch, and the offset to go on from."""
    client: Any = kafka._client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - aiokafka has no public way to the bytes of a fetch
    node = client.cluster.leader_for_partition(partition)
    wanted = [(partition.topic, [(partition.partition, offset, _MAX_BYTES)])]
    request = RawFetch(500, 1, _MAX_BYTES, _READ_COMMITTED, wanted)
    response = await client.send(node, request)
    (_, ((_, code, _, *parts),)), *_ = response.topics
    if code:
        error = for_code(code)
        raise error
    aborted = parts[2 if response.API_VERSION >= 11 else -2]  # noqa: PLR2004 - then the list is not the last but one
    return read(parts[-1] or b"", partition, offset, aborted or ())


def read(
    data: bytes, partition: TopicPartition, offset: int, aborted: Sequence[tuple[int, int]] = ()
) -> tuple[list[Record | Unreadable], int]:
    """Read record batches from the first record at or after `offset`; a cut-off last batch is for the next fetch.

    So is what would unpack to more than `unpacked.LIMIT` together; a first batch that alone does is read by itself.

    `aborted` are producers whose transaction failed, each with the first offset of it: those records never happened.
    """
    found: list[Record | Unreadable] = []
    following = offset
    position = 0
    data = data[: unpacked.readable(data) or _first_end(data)]
    failed = _Aborted(aborted)
    while position + _LENGTH.size <= len(data):
        base, length = _LENGTH.unpack_from(data, position)
        end = position + _LENGTH.size + length
        if length < 0 or end > len(data):
            break
        batch = data[position:end]
        position = end
        last = _last_offset(batch, base)
        try:
            if not failed.has(batch, base):
                found.extend(record for record in _records(batch, partition) if record.offset >= offset)
        except Exception as error:  # noqa: BLE001 - whatever a codec or these bytes provoke, it is this batch's
            found.append(Unreadable(max(base, offset), last, batch, f"{type(error).__name__}: {error}"))
        following = max(following, last + 1)
    return found, following


def _first_end(data: bytes) -> int:
    return _LENGTH.size + max(0, _LENGTH.unpack_from(data)[1]) if len(data) >= _LENGTH.size else 0


def _last_offset(batch: bytes, base: int) -> int:
    if len(batch) < _HEAD.size or batch[16] != 2:  # noqa: PLR2004 - the format's own number
        return base
    return base + max(0, struct.unpack_from(">i", batch, 23)[0])


def _records(batch: bytes, partition: TopicPartition) -> Iterator[Record]:
    base, _, _, magic, crc, attributes, _, first_ms, max_ms, *_, count = _HEAD.unpack_from(batch)
    if magic != 2:  # noqa: PLR2004 - the format's own number
        raise ValueError(f"message format version {magic}; every Kafka since 0.11 writes version 2")
    if crc != calc_crc32c(batch[_CRC_AT + 4 :]):
        raise ValueError("the checksum does not fit")
    if attributes & _CONTROL:
        return
    body = batch[_HEAD.size :]
    if codec := attributes & 0x07:
        if unpacked.batch_size(batch) is None:
            raise ValueError(f"it unpacks to more than {unpacked.LIMIT} bytes, or not at all")
        body = _CODECS[codec](body)
    reader = _Reader(body)
    for _ in range(count):
        reader.varint()  # length
        reader.skip(1)  # attributes
        timestamp_ms = max_ms if attributes & 0x08 else first_ms + reader.varint()
        if attributes & 0x08:
            reader.varint()
        offset = base + reader.varint()
        key, value = reader.field(), reader.field()
        headers: Headers = tuple((reader.field() or b"", reader.field()) for _ in range(reader.varint()))
        yield Record(partition.topic, partition.partition, offset, key, value, headers, timestamp_ms)


class _Aborted:
    """Follows which producers' transactions failed, batch by batch."""

    def __init__(self, aborted: Sequence[tuple[int, int]]) -> None:
        self._ahead = sorted(aborted, key=lambda one: one[1])
        self._failing: set[int] = set()

    def has(self, batch: bytes, base: int) -> bool:
        """Tell whether the batch belongs to a transaction that failed."""
        if not self._ahead and not self._failing:
            return False
        while self._ahead and self._ahead[0][1] <= base:
            self._failing.add(self._ahead.pop(0)[0])
        _, _, _, _, _, attributes, _, _, _, producer, *_ = _HEAD.unpack_from(batch)
        if attributes & _CONTROL:
            if _control_type(batch) == _ABORT:
                self._failing.discard(producer)
            return False
        return bool(attributes & _TRANSACTIONAL) and producer in self._failing


def _control_type(batch: bytes) -> int:
    reader = _Reader(batch[_HEAD.size :])
    reader.varint()  # length
    reader.skip(1)  # attributes
    reader.varint()  # time
    reader.varint()  # offset
    key = reader.field() or b""
    return int.from_bytes(key[2:4], "big")


class _Reader:
    """Walks over zigzag varints and length-prefixed fields; raises IndexError or ValueError where there is none."""

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._position = 0

    def varint(self) -> int:
        value = 0
        for place in range(_VARINT):
            byte = self._data[self._position]
            self._position += 1
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:  # noqa: PLR2004 - the continuation bit
                return (value >> 1) ^ -(value & 1)
        raise ValueError(f"a number of more than {_VARINT} bytes")

    def skip(self, count: int) -> None:
        self._position += count

    def field(self) -> bytes | None:
        length = self.varint()
        if length < 0:
            return None
        field = self._data[self._position : self._position + length]
        if len(field) < length:
            raise ValueError("a field runs over the end of its batch")
        self._position += length
        return field

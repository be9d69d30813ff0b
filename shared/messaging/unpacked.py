"""How much compressed records unpack to, found out before anything unpacks them: a few kilobytes can hold gigabytes.

What is fetched of one partition may unpack to LIMIT bytes; what is more waits for the next fetch. A single batch that
is larger is no batch of ours, and is parked as it lies there.
"""

import io
import struct
from gzip import GzipFile
from typing import Final

import cramjam

LIMIT: Final = 64 * 1_048_576  # four times what our own producers pack

_LENGTH: Final = struct.Struct(">qi")
_ATTRIBUTES_AT: Final = 21
_BODY_AT: Final = 61
_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_AT_MOST: Final = {_GZIP: 1040, _LZ4: 256}  # times its size, by the format; zstd knows no such bound
_XERIAL: Final = b"\x82SNAPPY\x00"
_CHUNK: Final = 1_048_576


def readable(data: bytes, room: int = LIMIT) -> int:
    """Return how many of these bytes are whole record batches that unpack, together, into `room`."""
    position = 0
    while position + _LENGTH.size <= len(data):
        end = position + _LENGTH.size + _LENGTH.unpack_from(data, position)[1]
        if end < position + _LENGTH.size or end > len(data):
            break
        room -= end - position
        size = batch_size(data[position:end], room)
        if size is None:
            return position
        room -= size
        position = end
    return len(data)


def batch_size(batch: bytes, room: int = LIMIT) -> int | None:
    """Return how many bytes a batch's compressed records may unpack to; None when it is over `room`, or no packing."""
    if len(batch) < _BODY_AT or batch[16] != 2:  # noqa: PLR2004 - the format's own number; older ones are judged later
        return 0
    codec, packed = batch[_ATTRIBUTES_AT + 1] & 0x07, batch[_BODY_AT:]
    if codec == 0:
        return 0
    if codec in _AT_MOST and len(packed) * _AT_MOST[codec] <= room:
        return len(packed) * _AT_MOST[codec]
    try:
        size = _measure(codec, packed, max(0, room))
    except Exception:  # noqa: BLE001 - whatever these bytes provoke, they are no packing
        return None
    return size if size <= room else None


def _measure(codec: int, packed: bytes, room: int) -> int:
    if codec == _SNAPPY:
        return _snappy(packed)
    if codec == _LZ4:
        return cramjam.lz4.decompress_into(packed, bytearray(room))
    if codec == _ZSTD:
        return cramjam.zstd.decompress_into(packed, bytearray(room))
    size = 0
    with GzipFile(fileobj=io.BytesIO(packed)) as stream:
        while size <= room and (chunk := stream.read(_CHUNK)):
            size += len(chunk)
    return size


def _snappy(packed: bytes) -> int:
    if not packed.startswith(_XERIAL):
        return cramjam.snappy.decompress_raw_len(packed)
    size, position = 0, 16
    while position < len(packed):
        (length,) = struct.unpack_from(">i", packed, position)
        size += cramjam.snappy.decompress_raw_len(packed[position + 4 : position + 4 + length])
        position += 4 + max(0, length)
    return size

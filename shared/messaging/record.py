"""A record as it lies in Kafka, and its envelope: the CloudEvents headers (Kafka binding, binary mode).

Source: CloudEvents 1.0, "Kafka Protocol Binding for CloudEvents", section 3.2 (binary content mode).
"""

import contextlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Final
from uuid import UUID

import msgspec

from shared.contracts.base import Event, parse_uuid
from shared.db import Row

Headers = tuple[tuple[bytes, bytes | None], ...]

_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(Headers)

BUCKETS: Final = 256
"""Keys fall into so many lock buckets; the outbox locks them, lanes are made of whole buckets."""


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record, byte for byte. A null key or value is None, an empty one b""."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the last header of that name, as Kafka clients do."""
        return dict(self.headers).get(name)

    @property
    def time(self) -> datetime | None:
        """The record's own timestamp."""
        if self.timestamp_ms is None or self.timestamp_ms < 0:
            return None
        try:
            return datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return None


def bucket(key: bytes | None) -> int:
    """Return the key's lock bucket, 0 to BUCKETS - 1."""
    return zlib.crc32(key or b"") % BUCKETS


def key_hash(key: bytes | None) -> int:
    """Return the key as 32 bits, signed: a lock of its own, but for a collision in four billion."""
    return zlib.crc32(key or b"") - 2**31


def lane_of(record: Record, lanes: int) -> int:
    """Return the lane of a record: by key; without a key, by offset, for nothing orders it."""
    return (record.offset if record.key is None else bucket(record.key)) % lanes


def headers_of(event: Event, source: str, trace: Sequence[tuple[str, str]] = ()) -> Headers:
    """Return the CloudEvents headers of an event, with the trace context's."""
    own = ((b"ce_id", str(event.id).encode()), (b"ce_time", event.time.isoformat().encode()))
    return (
        *_fixed(event.type, source, event.content_type),
        *own,
        *((name.encode(), one.encode()) for name, one in trace),
    )


@cache
def _fixed(kind: str, source: str, content_type: str) -> Headers:
    return (
        (b"ce_specversion", b"1.0"),
        (b"ce_type", kind.encode()),
        (b"ce_source", source.encode()),
        (b"content-type", content_type.encode()),
    )


def pack_headers(headers: Headers) -> bytes:
    """Return headers as one value, byte for byte."""
    return _pack.encode(headers)


def unpack_headers(packed: bytes) -> Headers:
    """Undo `pack_headers`."""
    return _unpack.decode(packed)


def sendable_headers(packed: bytes) -> list[tuple[str, bytes | None]]:
    """Return headers as the producer takes them: names must be UTF-8, others travel escaped, beside their bytes.

    Only a dead letter can have such a name; its failed_jobs row keeps the original.
    """
    found = unpack_headers(packed)
    with contextlib.suppress(UnicodeDecodeError):
        return [(name.decode(), value) for name, value in found]
    headers: list[tuple[str, bytes | None]] = []
    for name, value in found:
        try:
            headers.append((name.decode(), value))
        except UnicodeDecodeError:
            headers.append((name.decode("utf-8", "backslashreplace"), value))
            headers.append(("openbell-header-name", name))
    return headers


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the headers say about the event inside."""

    id: UUID
    type: str
    time: datetime


def event_type(headers: Mapping[bytes, bytes | None]) -> str | None:
    """Return the type header, or None when it is missing. Bytes that are not UTF-8 show as backslashes."""
    value = headers.get(b"ce_type")
    return None if value is None else value.decode("utf-8", "backslashreplace")


def open_envelope(headers: Mapping[bytes, bytes | None]) -> Envelope:
    """Read id, type and time from the headers; raises ValueError with what is wrong."""
    kind = event_type(headers)
    if not kind:
        raise ValueError("the header ce_type is missing")
    return Envelope(_id(_text(headers, b"ce_id")), kind, _time(_text(headers, b"ce_time")))


def _text(headers: Mapping[bytes, bytes | None], name: bytes) -> str:
    value = headers.get(name)
    if value is None:
        raise ValueError(f"the header {name.decode()} is missing")
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"the header {name.decode()} is not ASCII: {value[:40]!r}") from None


def _id(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError:
        raise ValueError(f"the header ce_id is not a UUID: {text[:40]!r}") from None


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"the header ce_time is not an RFC 3339 time: {text[:40]!r}") from None
    if time.tzinfo is None:
        raise ValueError(f"the header ce_time has no time zone: {text!r}")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"the header ce_time is outside the calendar: {text!r}") from None


def record_from_row(row: Row) -> Record:
    """Rebuild the record that a failed_jobs row keeps."""
    return Record(
        topic=row["topic"],
        partition=row["partition"],
        offset=row["record_offset"],
        key=row["key"],
        value=row["value"],
        headers=unpack_headers(row["headers"]),
    )

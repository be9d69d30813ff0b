"""From a record to something a handler can take, or to the reason why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from shared.contracts.base import Event
from shared.messaging.consumer import Consumer, Route
from shared.messaging.failed import Failure, clean
from shared.messaging.inbox import day_of, in_window
from shared.messaging.record import Record, event_type, open_envelope

MAX_KEY_BYTES: Final = 1024
"""A longer key names no entity of ours, and would not fit the index that fences keys: such a record is dead at once."""
_KEY_TOO_LONG: Final = Failure("dead", "KEY_TOO_LONG", f"the key is longer than {MAX_KEY_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Item:
    """A record of a handled type: with its event and handler, or with the failure that parks it."""

    record: Record
    job_type: str | None
    event_id: UUID | None = None
    day: date | None = None
    event: Event | None = None
    route: Route | None = None
    failure: Failure | None = None


def decode(consumer: Consumer, record: Record, now: datetime) -> Item | None:
    """Return the item, or None for a type that this consumer does not name."""
    item = _decode(consumer, record, now)
    if item is None or record.key is None or len(record.key) <= MAX_KEY_BYTES:
        return item
    return replace(item, event=None, route=None, failure=_KEY_TOO_LONG)


def _decode(consumer: Consumer, record: Record, now: datetime) -> Item | None:  # noqa: PLR0911 - a reason each
    headers = dict(record.headers)  # of two of a name the last one counts, as for Kafka clients
    kind = event_type(headers)
    gone = "held" if consumer.policy.hold else "dead"
    if kind is None:
        return Item(record, None, failure=Failure(gone, "NO_TYPE", "the header ce_type is missing"))
    route = consumer.routes.get(kind)
    if route is None:
        if _stem(kind) not in {_stem(known) for known in consumer.routes}:
            return None
        known = ", ".join(sorted(consumer.routes))
        message = f"{clean(kind)[:200]} is a version this code does not know; it handles {known}"
        return Item(record, kind, *_identity(headers, now), failure=Failure("held", "UNKNOWN_VERSION", message))
    try:
        envelope = open_envelope(headers)
    except ValueError as error:
        return Item(record, kind, failure=Failure(gone, "BAD_ENVELOPE", clean(str(error))))
    if not in_window(envelope.time, now):
        message = f"ce_time {envelope.time.isoformat()} is outside the days that the inbox remembers"
        return Item(record, kind, failure=Failure(gone, "OUT_OF_WINDOW", message))
    identity = (envelope.id, day_of(envelope.time))
    if record.value is None:
        failure = Failure(gone, "UNDECODABLE", "the record has no value (a tombstone)")
        return Item(record, kind, *identity, failure=failure)
    try:
        event = route.event.from_bytes(record.value, id=envelope.id, time=envelope.time)
    except Exception as error:  # noqa: BLE001 - whatever a body provokes, the record is parked with it
        return Item(record, kind, *identity, failure=Failure(gone, "UNDECODABLE", _reason(error)))
    return Item(record, kind, *identity, event=event, route=route)


def decode_all(consumer: Consumer, records: Sequence[Record], now: datetime) -> list[Item]:
    """Decode a batch, leaving out what this consumer does not name."""
    return [item for record in records if (item := decode(consumer, record, now)) is not None]


def _identity(headers: Mapping[bytes, bytes | None], now: datetime) -> tuple[UUID | None, date | None]:
    try:
        envelope = open_envelope(headers)
    except ValueError:
        return None, None
    return (envelope.id, day_of(envelope.time)) if in_window(envelope.time, now) else (None, None)


def _stem(kind: str) -> str:
    stem, _, version = kind.rpartition(".v")
    return stem if version.isdigit() else kind


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found: list[dict[str, Any]] = [dict(one) for one in error.errors(include_url=False, include_input=False)[:5]]
        return clean("; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in found))
    return clean(f"{type(error).__name__}: {error}")

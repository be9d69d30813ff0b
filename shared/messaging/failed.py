"""Parking: what could not be done lies in `failed_jobs`, byte for byte, where a person sees it.

Statuses: `waiting` runs again by itself, `held` waits for a person and fences its key, `dead` waits for a person
and fences nothing, `resolved` and `discarded` are history. Of a key's waiting rows only the lowest has a due time;
the others have none and follow when it is done. `settle_heads` restores this after every change.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text

from shared import retention
from shared.db import Row, Tx
from shared.errors import NotYet, OpenbellError, Permanent
from shared.messaging.consumer import Policy
from shared.messaging.outbox import Message
from shared.messaging.record import Record, pack_headers

Lane = tuple[str, str, int, int]
"""(consumer, topic, partition, lane): what one lock covers."""

BEHIND: Final = "BEHIND"
NOTES: Final = frozenset({"GAP", "CORRUPT_BATCH", "OTHER_CLUSTER", "KEY_TOO_LONG"})
"""Codes of rows that tell of records which nobody can run: they are read and discarded, not retried."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record is parked. `status` is waiting, held or dead; `due_at` stands for waiting heads only."""

    status: str
    code: str
    message: str
    due_at: datetime | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """A record on its way into failed_jobs."""

    record: Record
    failure: Failure
    job_type: str | None
    event_id: UUID | None


_PARK: Final = text(
    """
    insert into failed_jobs (consumer, topic, partition, record_offset, key, value, headers, record_time, job_type,
                             event_id, status, attempts, due_at, error_code, error_message, errors, fingerprint,
                             failed_at)
    select :consumer, r.topic, r.partition, r.record_offset, r.key, r.value, r.headers, r.record_time, r.job_type,
           r.event_id, r.status, r.attempts, r.due_at, r.code, r.message,
           case when r.code = 'BEHIND' then '[]' else jsonb_build_array(jsonb_build_object(
               'at', cast(:now as timestamptz), 'code', r.code, 'message', r.message)) end,
           r.fingerprint, :now
    from unnest(cast(:topics as text[]), cast(:partitions as int[]), cast(:offsets as bigint[]),
                cast(:keys as bytea[]), cast(:values as bytea[]), cast(:headers as bytea[]),
                cast(:times as timestamptz[]), cast(:types as text[]), cast(:event_ids as uuid[]),
                cast(:statuses as text[]), cast(:attempts as int[]), cast(:due as timestamptz[]),
                cast(:codes as text[]), cast(:messages as text[]), cast(:prints as text[]))
         r(topic, partition, record_offset, key, value, headers, record_time, job_type, event_id, status, attempts,
           due_at, code, message, fingerprint)
    on conflict (consumer, topic, partition, record_offset, digest) do nothing
    returning record_offset
    """
)

_FENCED: Final = text(
    """
    select key, count(*) as waiting from failed_jobs
    where consumer = :consumer and topic = :topic and partition = :partition
      and key = any(cast(:keys as bytea[])) and status in ('waiting', 'held')
    group by key
    """
)

_HEADS: Final = text(
    """
    with keyed as (
        select k.key, k.due, (
            select h.id from failed_jobs h
            where h.consumer = :consumer and h.topic = :topic and h.partition = :partition and h.key = k.key
              and h.status in ('waiting', 'held')
            order by h.record_offset limit 1
        ) as head
        from unnest(cast(:keys as bytea[]), cast(:dues as timestamptz[])) k(key, due)
    )
    update failed_jobs f set due_at = case when f.id = k.head then k.due end, updated_at = :now
    from keyed k
    where f.consumer = :consumer and f.topic = :topic and f.partition = :partition and f.key = k.key
      and f.status = 'waiting'
      and case when f.id = k.head then f.due_at is null or f.id = any(cast(:chosen as uuid[]))
               else f.due_at is not null end
    returning f.id, f.consumer, f.topic, f.partition, f.key, f.record_offset, f.due_at, f.attempts
    """
)

FORGET_SETTLED: Final = retention.slice_of(
    "failed_jobs", "status in ('resolved', 'discarded') and updated_at < :before"
)


async def park(tx: Tx, consumer: str, parked: Sequence[Parked], now: datetime) -> set[int]:
    """Write rows; one that already lies there stays as it is. Return the offsets of the new ones."""
    rows = await tx.fetch(
        _PARK,
        consumer=consumer,
        now=now,
        topics=[one.record.topic for one in parked],
        partitions=[one.record.partition for one in parked],
        offsets=[one.record.offset for one in parked],
        keys=[one.record.key for one in parked],
        values=[one.record.value for one in parked],
        headers=[pack_headers(one.record.headers) for one in parked],
        times=[one.record.time for one in parked],
        types=[clean(one.job_type) if one.job_type else None for one in parked],
        event_ids=[one.event_id for one in parked],
        statuses=[one.failure.status for one in parked],
        attempts=[one.failure.attempts for one in parked],
        due=[one.failure.due_at for one in parked],
        codes=[one.failure.code for one in parked],
        messages=[one.failure.message for one in parked],
        prints=[fingerprint(consumer, one.job_type, one.failure) for one in parked],
    )
    return {row["record_offset"] for row in rows}


async def fenced_keys(tx: Tx, consumer: str, topic: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Return the keys that have a waiting or held row, with how many."""
    rows = await tx.fetch(_FENCED, consumer=consumer, topic=topic, partition=partition, keys=list(keys))
    return {row["key"]: row["waiting"] for row in rows}


async def settle_heads(
    tx: Tx, lane: Lane, dues: Mapping[bytes, datetime], now: datetime, chosen: Sequence[UUID] = ()
) -> list[Row]:
    """Give the lowest open row of each key its due time, if it waits, and take it from all others.

    `dues` says when each key's head runs. A head that is not among `chosen` (ids) keeps the due time that it has.
    The lane must be locked. Return the heads that changed.
    """
    if not dues:
        return []
    rows = await tx.fetch(
        _HEADS,
        consumer=lane[0],
        topic=lane[1],
        partition=lane[2],
        keys=list(dues),
        dues=list(dues.values()),
        chosen=list(chosen),
        now=now,
    )
    return [row for row in rows if row["due_at"] is not None]


async def forget_settled(transaction: retention.Transaction, before: datetime) -> int:
    """Delete what was resolved or discarded before that time; return how many."""
    return await retention.forget(transaction, FORGET_SETTLED, before=before)


def judge(error: Exception, attempts: int, policy: Policy, now: datetime, draw: float) -> Failure:
    """Decide what becomes of a record that failed `attempts` times before. `draw` in [-1, 1] varies the delay by 10%.

    Permanent: dead at once. NotYet: the longer delays. Anything else: the policy's delays, then dead.
    """
    code, message = describe(error)
    delays = policy.not_yet_delays_s if isinstance(error, NotYet) else policy.delays_s
    gone = "held" if policy.hold else "dead"
    if isinstance(error, Permanent) or attempts >= len(delays):
        return Failure(gone, code, message, attempts=attempts + 1)
    delay_s = delays[attempts] * (1 + 0.1 * draw)
    return Failure("waiting", code, message, now + timedelta(seconds=delay_s), attempts + 1)


def describe(error: BaseException) -> tuple[str, str]:
    """Return a stable code and a cleaned message."""
    if isinstance(error, OpenbellError):
        details = f" {dict(error.details)}" if error.details else ""
        return error.code, clean(error.message + details)
    if isinstance(error, TimeoutError):
        return "DEADLINE", "the handler did not finish before its deadline"
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot even tell what it is
        said = ""
    return type(error).__name__, clean(said or type(error).__name__)


def clean(message: str) -> str:
    """Cut to 2,000 characters and hide what looks like a secret; Postgres text takes no NUL."""
    message = message.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()
    return _SECRET.sub(r"\1***", message)[:2000]


_SECRET: Final = re.compile(
    r"(?i)((?:password|secret|token|authorization|api[-_]?key|/api/webhooks/\d+)['\"]?\s*[=:/]\s*['\"]?(?:bearer\s+)?)[^\s'\",;&]+"
)
_VARIABLE: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|'[^']*'|\"[^\"]*\"|\d+", re.IGNORECASE)


def fingerprint(consumer: str, job_type: str | None, failure: Failure) -> str | None:
    """Group failures that a person would call the same: consumer, type, code, message without its values."""
    if failure.code == BEHIND:
        return None
    shape = _VARIABLE.sub("?", failure.message)
    return hashlib.sha256(f"{consumer}|{job_type}|{failure.code}|{shape}".encode()).hexdigest()[:16]


def dead_letter(consumer: str, record: Record, failure: Failure) -> Message:
    """Return what goes to `<consumer>.dlq`: the record byte for byte, with the reason in headers."""
    reason: list[tuple[bytes, bytes | None]] = [
        (b"openbell-dlq-consumer", consumer.encode()),
        (b"openbell-dlq-topic", record.topic.encode()),
        (b"openbell-dlq-partition", str(record.partition).encode()),
        (b"openbell-dlq-offset", str(record.offset).encode()),
        (b"openbell-dlq-code", failure.code.encode()),
        (b"openbell-dlq-message", failure.message[:500].encode()),
        (b"openbell-dlq-attempts", str(failure.attempts).encode()),
    ]
    return f"{consumer}.dlq", record.key, record.value, (*record.headers, *reason)

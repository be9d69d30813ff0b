"""What a person does about one failed job: look inside, retry, edit, redirect, discard. Each is a use case for a Door.

A retry keeps the event's id and owns its row; it frees what waits behind it when it is done. An edit makes a new row
at the same place in the key's order: another body is another fact, so it has an id of its own and names the old one as
its cause. Every action is audited.
"""

import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import text

from shared.clock import Clock, NewId, new_id
from shared.contracts.api import ActionAudited
from shared.contracts.topics import AUDIT, TOPICS, dead_letter_topic
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode
from shared.messaging.door import Done
from shared.messaging.failed import NOTES, Failure, Parked, park, settle_heads
from shared.messaging.lane import lane_of_row, lock_lane
from shared.messaging.ops.rows import BRIEF, BRIEF_NAMES, CHOSEN, OPEN, By, Filter
from shared.messaging.record import Record, record_from_row, unpack_headers

EDITED: Final = "EDITED"

_LIST: Final = text(
    f"""
    select {BRIEF} from failed_jobs where {CHOSEN} and (cast(:before as uuid) is null or id < :before)
    order by id desc limit :limit
    """  # noqa: S608 - constants of ours
)
_GROUPS: Final = text(
    """
    select fingerprint, consumer, job_type, error_code, min(error_message) as example, count(*) as rows,
           min(failed_at) as first_at, max(failed_at) as last_at, array_agg(distinct status) as statuses
    from failed_jobs where status in ('waiting', 'held', 'dead') and fingerprint is not null
    group by fingerprint, consumer, job_type, error_code order by rows desc limit 200
    """
)
_SHOW: Final = text("select * from failed_jobs where id = :id")
_LOCK: Final = text("select * from failed_jobs where id = :id for update")
_RETRY: Final = text(
    """
    update failed_jobs set status = 'waiting', due_at = cast(:due_at as timestamptz), updated_at = :now,
           resolved_by = :actor
    where id = :id
    """
)
_CLOSE: Final = text(
    """
    update failed_jobs set status = :status, due_at = null, updated_at = :now, resolved_by = :actor,
           resolution = :resolution
    where id = :id
    """
)
_KNOW: Final = text("insert into inbox (consumer, event_id, day) values (:consumer, :event_id, :day)")
_AT: Final = text(
    """
    select id from failed_jobs
    where consumer = :consumer and topic = :topic and partition = :partition and record_offset = :record_offset
      and event_id = :event_id
    """
)


@dataclass(frozen=True, slots=True)
class Edit:
    """What changes in a record: its body, its type, its time. None leaves a part as it is."""

    value: bytes | None = None
    type: str | None = None
    time: datetime | None = None


class FailedJobs:
    """The failed jobs of one service. `consumers` are those of the running code."""

    def __init__(self, service: str, clock: Clock, ids: NewId = new_id, consumers: Sequence[Consumer] = ()) -> None:
        self._service = service
        self._clock = clock
        self._ids = ids
        self._consumers = consumers

    async def page(
        self,
        tx: Tx,
        *,
        statuses: Sequence[str] = OPEN,
        consumer: str | None = None,
        fingerprint: str | None = None,
        code: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Return rows, newest first, without their bodies. `before` is the last id of the page before."""
        chosen = Filter(statuses, consumer, fingerprint, code, since, until)
        return [self.brief(row) for row in await tx.fetch(_LIST, **chosen.params(), before=before, limit=limit)]

    async def groups(self, tx: Tx) -> list[dict[str, Any]]:
        """Return open rows grouped by what went wrong, the largest group first."""
        return [{"service": self._service, **dict(row)} for row in await tx.fetch(_GROUPS)]

    async def show(self, tx: Tx, job_id: UUID) -> dict[str, Any]:
        """Return one row with its headers, body and history. Raises NotFound."""
        row = await self._found(tx, _SHOW, job_id)
        return {
            **self.brief(row),
            "headers": [[_printable(name), _printable(value)] for name, value in unpack_headers(row["headers"])],
            "value": _body(row["value"]),
            "value_bytes": None if row["value"] is None else len(row["value"]),
            "errors": row["errors"],
        }

    async def retry(self, tx: Tx, job_id: UUID, actor: str, request_id: str | None = None) -> Done[dict[str, Any]]:
        """Run a dead, held or waiting row as soon as its key allows. Raises NotFound, Conflict when it is finished."""
        row = await self._open(tx, job_id, runnable=True)
        now = self._clock()
        await tx.execute(_RETRY, id=job_id, due_at=None if row["key"] is not None else now, now=now, actor=actor)
        if row["key"] is not None:
            await settle_heads(tx, lane_of_row(row), {row["key"]: now}, now, [job_id])
        return Done(await self.show(tx, job_id), [self._audit("retry", row, By(actor, request_id), now)])

    async def discard(
        self, tx: Tx, job_id: UUID, actor: str, reason: str, request_id: str | None = None
    ) -> Done[dict[str, Any]]:
        """Give a row up for good; what waits behind it goes on. Raises NotFound, Conflict, Invalid without a reason."""
        if not reason.strip():
            raise Invalid("say why the job is discarded", field="reason")
        row = await self._open(tx, job_id)
        now = self._clock()
        await self._close(tx, row, "discarded", actor, reason, now)
        audit = self._audit("discard", row, By(actor, request_id), now, reason=reason)
        return Done(await self.show(tx, job_id), [audit])

    async def edit(self, tx: Tx, job_id: UUID, by: By, change: Edit) -> Done[dict[str, Any]]:
        """Put a mended event in a row's place; return the new row.

        It has a new id and waits where the old one stood; the old row is resolved. Raises NotFound; Conflict when the
        row is finished or tells of no record; Invalid when nothing changes, when the consumer's contract does not
        take the result, or when it belongs to another key.
        """
        row = await self._open(tx, job_id, runnable=True)
        now = self._clock()
        item = self._mended(row, change, now)
        at = {name: row[name] for name in ("consumer", "topic", "partition", "record_offset")}
        await tx.execute(_KNOW, consumer=row["consumer"], event_id=item.event_id, day=item.day)
        why = Failure("waiting", EDITED, f"edited by {by.actor}, was {job_id}", now if row["key"] is None else None)
        await park(tx, row["consumer"], [Parked(item.record, why, item.job_type, item.event_id)], now)
        new = await tx.fetchval(_AT, **at, event_id=item.event_id)
        await self._close(tx, row, "resolved", by.actor, f"edited: {new}", now, chosen=new)
        audit = self._audit("edit", row, by, now, new_job=str(new), new_event=str(item.event_id))
        return Done(await self.show(tx, new), [audit])

    async def redirect(self, tx: Tx, job_id: UUID, by: By, topic: str) -> Done[dict[str, Any]]:
        """Publish a row's record byte for byte to another topic; what waits behind it goes on.

        Only to topics of this service and to dead-letter topics of its consumers: into somebody else's topic it would
        tell all their readers something that its owner did not. Raises NotFound, Conflict, Invalid.
        """
        row = await self._open(tx, job_id, runnable=True)
        allowed = sorted(self._targets() - {row["topic"]})
        if topic not in allowed:
            raise Invalid(f"{self._service} may not redirect to {topic}; it may to {', '.join(allowed)}", field="topic")
        now = self._clock()
        record = record_from_row(row)
        mark = (b"openbell-redirected-from", f"{self._service}/{job_id}".encode())
        await self._close(tx, row, "resolved", by.actor, f"redirected to {topic}", now)
        audit = self._audit("redirect", row, by, now, to=topic)
        letter = (topic, record.key, record.value, (*record.headers, mark))
        return Done(await self.show(tx, job_id), [audit], [letter])

    def brief(self, row: Row) -> dict[str, Any]:
        """Return a row as lists show it."""
        return {"service": self._service} | {
            name: _printable(row[name]) if name == "key" else row[name] for name in BRIEF_NAMES
        }

    def _targets(self) -> set[str]:
        own = {topic.name for topic in TOPICS if topic.owner == self._service} - {AUDIT.name}
        return own | {dead_letter_topic(consumer.name).name for consumer in self._consumers}

    def _mended(self, row: Row, change: Edit, now: datetime) -> Item:
        consumer = next((one for one in self._consumers if one.name == row["consumer"]), None)
        if consumer is None:
            raise Invalid(f"{row['consumer']} is no consumer of {self._service}: nobody could check an edited body")
        if change == Edit():
            raise Invalid("say what changes: value, type or time")
        record = _edited(row, change, self._ids())
        item = decode(consumer, record, now)
        if item is None:
            raise Invalid(f"{consumer.name} does not handle this type; it handles {', '.join(sorted(consumer.routes))}")
        if item.failure is not None or item.event is None:
            failure = item.failure or Failure("dead", "UNDECODABLE", "no event")
            raise Invalid(f"{consumer.name} could not read it: {failure.message}", code=failure.code)
        if record.key is not None and item.event.key.encode() != record.key:
            raise Invalid(
                f"this body belongs to {item.event.key!r}, the record to {_printable(record.key)!r}; it would run "
                "outside its order",
                field="value",
            )
        return item

    async def _open(self, tx: Tx, job_id: UUID, *, runnable: bool = False) -> Row:
        """Lock the row's lane, as its consumer does, then the row. Raises NotFound; Conflict for a finished row."""
        row = await self._found(tx, _SHOW, job_id)
        await lock_lane(tx, lane_of_row(row))
        row = await self._found(tx, _LOCK, job_id)
        if row["status"] not in OPEN:
            raise Conflict(f"the job is {row['status']} already", status=row["status"])
        if runnable and row["error_code"] in NOTES:
            raise Conflict("this row tells of records that cannot be read; discard it once you have read it")
        return row

    async def _close(  # noqa: PLR0917 - one statement's values
        self, tx: Tx, row: Row, status: str, actor: str, resolution: str, now: datetime, chosen: UUID | None = None
    ) -> None:
        """End a row and let its key go on."""
        await tx.execute(_CLOSE, id=row["id"], status=status, now=now, actor=actor, resolution=resolution)
        if row["key"] is not None:
            await settle_heads(tx, lane_of_row(row), {row["key"]: now}, now, [chosen] if chosen else ())

    async def _found(self, tx: Tx, statement: Any, job_id: UUID) -> Row:
        row = await tx.fetchrow(statement, id=job_id)
        if row is None:
            raise NotFound(f"{self._service} has no failed job {job_id}")
        return row

    def _audit(self, verb: str, row: Row, by: By, now: datetime, **details: Any) -> ActionAudited:
        about = {"consumer": row["consumer"], "job_type": row["job_type"], "code": row["error_code"], **details}
        return ActionAudited(
            id=self._ids(),
            time=now,
            service=self._service,
            actor=by.actor,
            action=f"{verb}.failed_job",
            subject=f"failed_job/{row['id']}",
            at=now,
            request_id=by.request_id,
            details=about,
        )


def _edited(row: Row, change: Edit, event_id: UUID) -> Record:
    """Return the row's record with the change, a new id, and the old one (or the row's, if it had none) as cause."""
    record = record_from_row(row)
    fresh = {b"ce_id": str(event_id).encode(), b"ce_causationid": str(row["event_id"] or row["id"]).encode()}
    if change.type is not None:
        fresh[b"ce_type"] = change.type.encode()
    if change.time is not None:
        fresh[b"ce_time"] = change.time.isoformat().encode()
    kept = tuple((name, value) for name, value in record.headers if name not in fresh)
    value = record.value if change.value is None else change.value
    time = row["record_time"]
    return replace(
        record,
        value=value,
        headers=(*kept, *fresh.items()),
        timestamp_ms=None if time is None else int(time.timestamp() * 1000),
    )


def _printable(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _body(value: bytes | None) -> Any:
    """Return JSON as it is, anything else as base64 of its first 64 KiB."""
    if value is None:
        return None
    with contextlib.suppress(orjson.JSONDecodeError, TypeError):
        body = orjson.loads(value)
        orjson.dumps(body)  # raises TypeError for what is nested so deeply that no answer can hold it
        return body
    return {"base64": base64.b64encode(value[:65_536]).decode()}

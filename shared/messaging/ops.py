"""What a person does about failed jobs: list, group, look inside, retry, discard. Each is a use case for a Door.

A retry keeps the event's id and owns its row; it frees what waits behind it when it is done. Discarding needs a reason
and is audited, as is retrying.
"""

import base64
import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import orjson
from sqlalchemy import text

from shared.clock import Clock, NewId, new_id
from shared.contracts.api import ActionAudited
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done
from shared.messaging.failed import NOTES
from shared.messaging.lane import LOCK_LANE, Lanes, lane_space
from shared.messaging.record import lane_of, record_from_row, unpack_headers
from shared.messaging.retry import FREE_NEXT

Status = Literal["waiting", "held", "dead", "resolved", "discarded"]
OPEN: Final[tuple[Status, ...]] = ("waiting", "held", "dead")

_BRIEF: Final = """
    id, consumer, topic, partition, record_offset, key, job_type, event_id, status, attempts, due_at, error_code,
    error_message, fingerprint, failed_at, updated_at, resolved_by, resolution
"""
_LIST: Final = text(
    f"""
    select {_BRIEF} from failed_jobs
    where status = any(cast(:statuses as text[]))
      and (cast(:consumer as text) is null or consumer = :consumer)
      and (cast(:fingerprint as text) is null or fingerprint = :fingerprint)
      and (cast(:before as uuid) is null or id < :before)
    order by id desc limit :limit
    """  # noqa: S608 - a constant of this module
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
_LOWER: Final = text(
    """
    select 1 from failed_jobs
    where consumer = :consumer and topic = :topic and partition = :partition and key = :key
      and status in ('waiting', 'held') and record_offset < :record_offset and id <> :id limit 1
    """
)
_RETRY: Final = text(
    """
    update failed_jobs set status = 'waiting', due_at = cast(:due_at as timestamptz), updated_at = :now,
           resolved_by = :actor
    where id = :id
    """
)
_DISCARD: Final = text(
    """
    update failed_jobs set status = 'discarded', due_at = null, updated_at = :now, resolved_by = :actor,
           resolution = :reason
    where id = :id
    """
)


class FailedJobs:
    """The failed jobs of one service."""

    def __init__(self, service: str, clock: Clock, ids: NewId = new_id) -> None:
        self._service = service
        self._clock = clock
        self._ids = ids

    async def page(
        self,
        tx: Tx,
        *,
        statuses: Sequence[str] = OPEN,
        consumer: str | None = None,
        fingerprint: str | None = None,
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Return rows, newest first, without their bodies. `before` is the last id of the page before."""
        rows = await tx.fetch(
            _LIST,
            statuses=list(statuses),
            consumer=consumer,
            fingerprint=fingerprint,
            before=before,
            limit=limit,
        )
        return [self._brief(row) for row in rows]

    async def groups(self, tx: Tx) -> list[dict[str, Any]]:
        """Return open rows grouped by what went wrong, the largest group first."""
        return [{"service": self._service, **dict(row)} for row in await tx.fetch(_GROUPS)]

    async def show(self, tx: Tx, job_id: UUID) -> dict[str, Any]:
        """Return one row with its headers, body and history. Raises NotFound."""
        row = await self._found(tx, _SHOW, job_id)
        return {
            **self._brief(row),
            "headers": [[_printable(name), _printable(value)] for name, value in unpack_headers(row["headers"])],
            "value": _body(row["value"]),
            "value_bytes": None if row["value"] is None else len(row["value"]),
            "errors": row["errors"],
        }

    async def retry(self, tx: Tx, job_id: UUID, actor: str, request_id: str | None = None) -> Done[dict[str, Any]]:
        """Run a dead, held or waiting row as soon as its key allows. Raises NotFound, Conflict when it is finished."""
        row = await self._locked(tx, job_id)
        if row["error_code"] in NOTES:
            raise Conflict("this row tells of records that cannot be read; discard it once you have read it")
        if row["status"] not in OPEN:
            raise Conflict(f"the job is {row['status']}; only open jobs are retried", status=row["status"])
        now = self._clock()
        place = {name: row[name] for name in ("consumer", "topic", "partition", "key", "record_offset", "id")}
        behind = row["key"] is not None and await tx.fetchval(_LOWER, **place)
        await tx.execute(_RETRY, id=job_id, due_at=None if behind else now, now=now, actor=actor)
        return Done(await self.show(tx, job_id), [self._audit("retry.failed_job", row, actor, request_id, now)])

    async def discard(
        self, tx: Tx, job_id: UUID, actor: str, reason: str, request_id: str | None = None
    ) -> Done[dict[str, Any]]:
        """Give a row up for good; what waits behind it goes on. Raises NotFound, Conflict, Invalid without a reason."""
        if not reason.strip():
            raise Invalid("say why the job is discarded", field="reason")
        row = await self._locked(tx, job_id)
        if row["status"] not in OPEN:
            raise Conflict(f"the job is {row['status']} already", status=row["status"])
        now = self._clock()
        await tx.execute(_DISCARD, id=job_id, now=now, actor=actor, reason=reason)
        if row["key"] is not None:
            place = {name: row[name] for name in ("consumer", "topic", "partition")}
            await tx.execute(FREE_NEXT, **place, keys=[row["key"]], now=now)
        audit = self._audit("discard.failed_job", row, actor, request_id, now, reason=reason)
        return Done(await self.show(tx, job_id), [audit])

    async def _locked(self, tx: Tx, job_id: UUID) -> Row:
        """Lock the row's lane, as its consumer does, then the row: nothing can park behind it meanwhile."""
        row = await self._found(tx, _SHOW, job_id)
        space = lane_space(row["consumer"], row["topic"], row["partition"])
        await tx.execute(LOCK_LANE, space=space, lane=lane_of(record_from_row(row), Lanes.count))
        return await self._found(tx, _LOCK, job_id)

    async def _found(self, tx: Tx, statement: Any, job_id: UUID) -> Row:
        row = await tx.fetchrow(statement, id=job_id)
        if row is None:
            raise NotFound(f"{self._service} has no failed job {job_id}")
        return row

    def _brief(self, row: Row) -> dict[str, Any]:
        names = (name.strip() for name in _BRIEF.split(","))
        return {"service": self._service} | {
            name: _printable(row[name]) if name == "key" else row[name] for name in names
        }

    def _audit(
        self, action: str, row: Row, actor: str, request_id: str | None, now: datetime, **details: Any
    ) -> ActionAudited:
        return ActionAudited(
            id=self._ids(),
            time=now,
            service=self._service,
            actor=actor,
            action=action,
            subject=f"failed_job/{row['id']}",
            at=now,
            request_id=request_id,
            details={
                "consumer": row["consumer"],
                "job_type": row["job_type"],
                "code": row["error_code"],
                **details,
            },
        )


def _printable(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _body(value: bytes | None) -> Any:
    """Return JSON as it is, anything else as base64 of its first 64 KiB."""
    if value is None:
        return None
    with contextlib.suppress(orjson.JSONDecodeError):
        return orjson.loads(value)
    return {"base64": base64.b64encode(value[:65_536]).decode()}

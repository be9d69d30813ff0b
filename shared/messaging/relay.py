"""The relay: carries outbox rows to Kafka, in id order, and deletes them when Kafka has them.

Each schema has one leader: the holder of a session advisory lock, on the very connection it works with. On a send
error it awaits everything in flight, makes a new producer and reads again; inboxes downstream know the duplicates.
A row that Kafka refuses for ever goes to failed_jobs as held and fences its (topic, key).
"""

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTopicError, KafkaError, MessageSizeTooLargeError
from sqlalchemy import text

from shared.db import Connection, Database, DatabaseUnavailable, Row, Tx
from shared.messaging import metrics
from shared.messaging.failed import BEHIND, Failure, Parked, park
from shared.messaging.kafka import KafkaAddress, new_producer
from shared.messaging.record import Record, unpack_headers

_READ: Final = text(
    """
    select id, topic, key, value, headers from (
        select *, sum(coalesce(octet_length(value), 0) + 100) over (order by id) as total
        from (select * from outbox order by id limit :rows) page
    ) sized
    where total <= :bytes or id = (select min(id) from outbox)
    order by id
    """
)
_DELETE: Final = text("delete from outbox where id = any(cast(:ids as bigint[]))")
_FENCED: Final = text(
    "select distinct topic, key from failed_jobs where consumer = :consumer and status in ('waiting', 'held')"
)
_AGAIN: Final = text(
    """
    with due as (
        select id, topic, key, value, headers, record_offset from failed_jobs
        where consumer = :consumer and status = 'waiting' and due_at <= now() order by record_offset for update
    ), sent as (
        insert into outbox (topic, key, value, headers)
        select topic, key, value, headers from due order by record_offset
    )
    update failed_jobs f set status = 'resolved', due_at = null, updated_at = now(),
           resolved_by = coalesce(f.resolved_by, 'retry')
    from due where f.id = due.id
    """
)
_FREE: Final = text(
    """
    update failed_jobs f set due_at = now() where consumer = :consumer and status = 'waiting' and due_at is null
      and not exists (select 1 from failed_jobs h where h.consumer = f.consumer and h.topic = f.topic
                      and h.key is not distinct from f.key and h.status = 'held')
    """
)
_OLDEST: Final = text(
    """
    select extract(epoch from clock_timestamp() - min(created_at)) as age, count(*) as rows
    from (select created_at from outbox order by id limit 10000) oldest
    """
)
_LAZY: Final = text("set synchronous_commit = off")  # a deletion lost in a crash is a duplicate, and those are absorbed

_log = logging.getLogger(__name__)


class Relay:
    """Carries one service's outbox. Every replica runs one; the leader works, the others stand by."""

    rows: Final = 2000
    bytes: Final = 8 * 1_048_576
    poll_s: Final = 1.0
    debounce_s: Final = 0.005

    def __init__(self, service: str, db: Database, address: KafkaAddress) -> None:
        self.name = "relay"
        self.consumer = f"{service}.outbox"
        self._service = service
        self._db = db
        self._address = address
        self._channel = f"openbell_{service}_outbox"
        self._woken = asyncio.Event()
        self._leading = False
        self._notifying: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._measured_at = 0.0
        self._about = {"service": service}

    def health(self) -> tuple[bool, str]:
        """Return (works, what it is doing or what stops it)."""
        return (False, self._trouble) if self._trouble else (True, "leading" if self._leading else "standing by")

    def wake(self) -> None:
        """Say that rows were committed. In another process than the leader's, NOTIFY, once for many commits."""
        self._woken.set()
        if not self._leading and (self._notifying is None or self._notifying.done()):
            self._notifying = asyncio.get_running_loop().create_task(self._notify())

    def _notified(self, *_: object) -> None:
        self._woken.set()

    async def _notify(self) -> None:
        await asyncio.sleep(self.debounce_s)
        with contextlib.suppress(DatabaseUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            async with self._db.read() as tx:
                await tx.connection.execute(f"notify {self._channel}")

    async def run(self) -> None:
        """Lead when nobody else does, until cancelled."""
        while True:
            try:
                await self._stand()
            except (
                DatabaseUnavailable,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                KafkaError,
                OSError,
            ) as error:
                self._trouble = f"{type(error).__name__}: {error}"[:200]
                _log.warning("relay_interrupted", extra=self._about | {"error": repr(error)[:300]})
                await asyncio.sleep(0.5)

    async def _stand(self) -> None:
        connection = await self._db.connect()
        try:
            lock = zlib.crc32(f"relay/{self._service}".encode())
            while not await connection.fetchval("select pg_try_advisory_lock($1)", lock):
                self._trouble = None
                await asyncio.sleep(self.poll_s)
            await connection.add_listener(self._channel, self._notified)
            await self._lead(connection)
        finally:
            self._leading = False
            connection.terminate()

    async def _lead(self, connection: Connection) -> None:
        tx = Tx(connection)
        await tx.execute(_LAZY)
        producer = new_producer(self._address, f"openbell-{self._service}-relay")
        try:
            await producer.start()
            self._leading, self._trouble = True, None
            while True:
                self._woken.clear()
                if await self._carry(tx, producer):
                    continue
                await self._housekeeping(tx)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.poll_s):
                        await self._woken.wait()
        finally:
            await producer.stop()

    async def _carry(self, tx: Tx, producer: AIOKafkaProducer) -> int:
        """Carry one page of rows; return how many were there. Raises what made a send fail, after settling the rest."""
        rows = await tx.fetch(_READ, rows=self.rows, bytes=self.bytes)
        if not rows:
            return 0
        fenced = {(row["topic"], row["key"]) for row in await tx.fetch(_FENCED, consumer=self.consumer)}
        page = _Page()
        for row in rows:
            if (row["topic"], row["key"]) in fenced:
                page.refused.append((row, Failure("waiting", BEHIND, "waits behind a refused row of its key")))
                continue
            try:
                future = await producer.send(row["topic"], row["value"], row["key"], headers=_sendable(row["headers"]))
            except (KafkaError, OSError) as error:
                if page.failed(row, error):
                    fenced.add((row["topic"], row["key"]))
                else:
                    break
            else:
                page.sent.append((row, future))
        await producer.flush()
        await page.finish()
        await self._settle(tx, page.done, page.refused)
        if page.error is not None:
            metrics.RELAY_ERRORS.labels(self._service).inc()
            raise page.error
        return len(rows)

    async def _settle(self, tx: Tx, done: Sequence[Row], refused: Sequence[tuple[Row, Failure]]) -> None:
        if done:
            await tx.execute(_DELETE, ids=[row["id"] for row in done])
            metrics.RELAYED.labels(self._service).inc(len(done))
        if refused:
            parked = [
                Parked(
                    Record(row["topic"], -1, row["id"], row["key"], row["value"], unpack_headers(row["headers"])),
                    failure,
                    "outbox",
                    None,
                )
                for row, failure in refused
            ]
            async with tx.connection.transaction():
                await park(tx, self.consumer, parked, datetime.now(UTC))
                await tx.execute(_DELETE, ids=[row["id"] for row, _ in refused])
            _log.error(
                "kafka_refused",
                extra=self._about | {"rows": len(refused), "code": refused[0][1].code, "reason": refused[0][1].message},
            )

    async def _housekeeping(self, tx: Tx) -> None:
        if time.monotonic() - self._measured_at < self.poll_s:
            return
        self._measured_at = time.monotonic()
        await tx.execute(_FREE, consumer=self.consumer)
        if await tx.execute(_AGAIN, consumer=self.consumer):
            _log.info("refused_rows_tried_again", extra=self._about)
            self._woken.set()
        row = await tx.fetchrow(_OLDEST)
        metrics.OUTBOX_ROWS.labels(self._service).set(row["rows"] if row else 0)
        metrics.OUTBOX_AGE_SECONDS.labels(self._service).set(float(row["age"] or 0) if row else 0)


_REFUSED: Final = (MessageSizeTooLargeError, InvalidTopicError)


@dataclass(slots=True)
class _Page:
    """What became of a page of rows."""

    sent: list[tuple[Row, asyncio.Future[Any]]] = field(default_factory=list[tuple[Row, "asyncio.Future[Any]"]])
    done: list[Row] = field(default_factory=list[Row])
    refused: list[tuple[Row, Failure]] = field(default_factory=list[tuple[Row, Failure]])
    error: BaseException | None = None

    async def finish(self) -> None:
        """Await every acknowledgement."""
        outcomes = await asyncio.gather(*(future for _, future in self.sent), return_exceptions=True)
        for (row, _), outcome in zip(self.sent, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self.failed(row, outcome)
            else:
                self.done.append(row)

    def failed(self, row: Row, error: BaseException) -> bool:
        """Note an error; True when Kafka will never take this row, False when the page must be sent again."""
        if isinstance(error, _REFUSED):
            refusal = Failure("held", type(error).__name__, f"Kafka refuses this record for ever: {error}")
            self.refused.append((row, refusal))
            return True
        self.error = error
        return False


def _sendable(packed: bytes) -> list[tuple[str, bytes | None]]:
    """Return headers as the producer takes them: names must be UTF-8, others travel escaped, beside their bytes.

    Only a dead letter can have such a name; its failed_jobs row keeps the original.
    """
    headers: list[tuple[str, bytes | None]] = []
    for name, value in unpack_headers(packed):
        try:
            headers.append((name.decode(), value))
        except UnicodeDecodeError:
            headers.append((name.decode("utf-8", "backslashreplace"), value))
            headers.append(("openbell-header-name", name))
    return headers

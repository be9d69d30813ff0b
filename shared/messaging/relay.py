"""The relay: carries outbox rows to Kafka, in id order, and deletes them when Kafka has them.

Each schema has one leader: the holder of a session advisory lock, on the very connection it works with. On a send
error it awaits everything in flight, makes a new producer and reads again; inboxes downstream know the duplicates.
A row that Kafka refuses for ever goes to failed_jobs as held and fences its (topic, key).
"""

import asyncio
import contextlib
import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from aiokafka.errors import InvalidTopicError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError
from sqlalchemy import text

from shared.db import Connection, Database, DatabaseUnavailable, Row, Tx
from shared.messaging import metrics
from shared.messaging.failed import BEHIND, Failure, Parked, clean, park
from shared.messaging.lane import happens
from shared.messaging.ports import Kafka, KafkaWriter
from shared.messaging.record import Record, sendable_headers, unpack_headers

_READ: Final = text(
    """
    select id, topic, key, value, headers, followed from (
        select *, row_number() over (order by id) as n, lead(id) over (order by id) is not null as followed,
               sum(coalesce(octet_length(value), 0) + 100) over (order by id) as total
        from (select * from outbox where topic <> all(cast(:missing as text[])) order by id limit :rows) page
    ) sized
    where total <= :bytes or n = 1
    order by id
    """
)
_DELETE: Final = text("delete from outbox where id = any(cast(:ids as bigint[]))")
_FENCED: Final = text(
    """
    select distinct topic, key from failed_jobs
    where consumer = :consumer and status in ('waiting', 'held') and key is not null
    """
)
_FREED: Final = text(
    """
    select id, topic, key, value, headers from failed_jobs f
    where consumer = :consumer and status = 'waiting' and topic <> all(cast(:missing as text[]))
      and not exists (select 1 from failed_jobs h where h.consumer = f.consumer and h.topic = f.topic
                      and h.key = f.key and h.status = 'held')
    order by record_offset limit 200
    """
)
_CARRIED: Final = text(
    """
    update failed_jobs set status = 'resolved', due_at = null, updated_at = now(),
           resolved_by = coalesce(resolved_by, 'retry')
    where id = any(cast(:ids as uuid[]))
    """
)
_REFUSED_AGAIN: Final = text(
    """
    update failed_jobs set status = 'held', due_at = null, updated_at = now(), attempts = attempts + 1,
           error_code = :code, error_message = :message
    where id = :id
    """
)
_LOOK: Final = text(
    """
    select extract(epoch from clock_timestamp() - min(created_at)) as age, count(*) as rows,
           exists(select from failed_jobs where consumer = :consumer and status = 'waiting') as waiting
    from (select created_at from outbox order by id limit 10000) oldest
    """
)
# A deletion lost in a crash is a duplicate, and those are absorbed. A leader that stands still (SIGSTOP) loses its
# session and with it the lead, wherever it stands: idle, or within a statement. One that works speaks every poll_s.
_SETTINGS: Final = """
    set synchronous_commit = off; set idle_session_timeout = '{0:.0f}s'; set transaction_timeout = '{0:.0f}s'
"""

# InternalClientError: Postgres has said that it ends the connection, and asyncpg was asked before the end came.
_LOST: Final = (
    DatabaseUnavailable,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)

_log = logging.getLogger(__name__)


class Relay:
    """Carries one service's outbox. Every replica runs one; the leader works, the others stand by."""

    page_rows: Final = 2000
    page_bytes: Final = 8 * 1_048_576
    poll_s: Final = 2.0
    ask_s: Final = 2.0  # how often Kafka is asked for a sign of life
    answer_s: Final = 10.0  # without acknowledgements for so long, Kafka is away
    look_again_s: Final = 30.0
    frozen_s: Final = 30.0
    large: Final = 400_000  # bytes; such a record travels alone, and what follows it waits for its fate
    debounce_s: Final = 0.005
    busy_s: Final = 0.05
    linger_s: Final = 0.02
    many: Final = 50  # rows in a page; after fewer it lingers a quarter as long

    def __init__(self, service: str, db: Database, kafka: Kafka) -> None:
        self.name = "relay"
        self.consumer = f"{service}.outbox"
        self._service = service
        self._db = db
        self._kafka = kafka
        self._channel = f"openbell_{service}_outbox"
        self._woken = asyncio.Event()
        self._leading = self._unsaid = False
        self._carried_at = self._looked_at = self._asked_at = 0.0
        self._pause_s = self.linger_s
        self._notifying: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._absent: dict[str, float] = {}  # topics that Kafka does not have, until when they are left out
        self._about = {"service": service}

    def health(self) -> tuple[bool, str]:
        """Return (works, what it is doing or what stops it)."""
        if self._absent:
            return False, f"Kafka has no topic {', '.join(sorted(self._absent))}"
        return (False, self._trouble) if self._trouble else (True, "leading" if self._leading else "standing by")

    def wake(self) -> None:
        """Say that rows were committed. In another process than the leader's, NOTIFY, once for many commits."""
        self._woken.set()
        if not self._leading:
            self._unsaid = True
            if self._notifying is None or self._notifying.done():
                self._notifying = asyncio.get_running_loop().create_task(self._notify())

    def _notified(self, *_: object) -> None:
        self._woken.set()

    async def _notify(self) -> None:
        while self._unsaid:
            await asyncio.sleep(self.debounce_s)
            self._unsaid = False
            with contextlib.suppress(*_LOST):
                async with self._db.read() as tx:
                    await tx.connection.execute(f"notify {self._channel}")

    async def run(self) -> None:
        """Lead when nobody else does, until cancelled."""
        while True:
            try:
                await self._stand()
            except (*_LOST, KafkaError) as error:
                self._trouble = f"{type(error).__name__}: {error}"[:200]
                _log.warning("relay_interrupted", extra=self._about | {"error": repr(error)[:300]})
                await asyncio.sleep(0.5)

    async def _stand(self) -> None:
        connection = await self._db.connect()
        try:
            lock = zlib.crc32(f"relay/{self._service}".encode())
            while not await connection.fetchval("select pg_try_advisory_lock($1)", lock):
                self._trouble = None
                metrics.outbox_elsewhere(self._service)
                await asyncio.sleep(self.poll_s)
            await connection.add_listener(self._channel, self._notified)
            await self._lead(connection)
        finally:
            self._leading = False
            connection.terminate()

    async def _lead(self, connection: Connection) -> None:
        tx = Tx(connection)
        self._woken.set()  # there may be rows that were announced to nobody
        await connection.execute(_SETTINGS.format(self.frozen_s))
        while True:
            await self._size(tx)  # told also while Kafka lets nobody in
            producer = self._kafka.writer(f"openbell-{self._service}-relay")
            try:
                async with asyncio.timeout(self.answer_s):
                    await producer.start()
                self._leading, self._trouble = True, None
                while not await self._turn(tx, producer):
                    pass
            finally:
                await producer.give_up()

    async def _turn(self, tx: Tx, producer: KafkaWriter) -> bool:
        """Carry a page, or wait for rows. True when the producer has had a record refused: its sequence has a hole."""
        if _now() - self._carried_at < self.busy_s:
            await asyncio.sleep(self._pause_s)  # one page for several commits; a lone one goes at once
        page = freed = None
        if self._woken.is_set():
            self._woken.clear()
            page = await self._carry(tx, producer)
        if page is not None and page.more:
            self._woken.set()
        elif page is not None:
            self._carried_at = _now()
            self._pause_s = self.linger_s if len(page.done) >= self.many else self.linger_s / 4
        if _now() - self._looked_at >= self.poll_s:
            self._looked_at = _now()
            freed = await self._look(tx, producer)
        if _now() - self._asked_at >= self.ask_s:
            self._asked_at = _now()
            await self._ask(producer)
        await happens(self._woken, self.poll_s)
        return any(one is not None and one.refused for one in (page, freed))

    async def _look(self, tx: Tx, producer: KafkaWriter) -> "_Page | None":
        """Tell how many rows there are, see to those that nobody announced, and carry what a person let go of."""
        row = await self._size(tx)
        if row["rows"]:
            self._woken.set()
        return await self._carry_freed(tx, producer) if row["waiting"] else None

    async def _size(self, tx: Tx) -> Row:
        (row,) = await tx.fetch(_LOOK, consumer=self.consumer)
        metrics.outbox(self._service, row["rows"], float(row["age"] or 0))
        return row

    async def _carry(self, tx: Tx, producer: KafkaWriter) -> "_Page | None":
        """Carry one page of rows, None when there are none. Raises what made a send fail, after settling the rest."""
        rows = await tx.fetch(_READ, rows=self.page_rows, bytes=self.page_bytes, missing=self._missing())
        if not rows:
            return None
        fenced = {(row["topic"], row["key"]) for row in await tx.fetch(_FENCED, consumer=self.consumer)}
        page = await self._send(producer, rows, fenced)
        settled = len(page.done) + len(page.refused) + len(page.behind)
        page.more = settled < len(rows) or len(rows) == self.page_rows or rows[-1]["followed"]
        if page.done:
            await tx.execute(_DELETE, ids=[row["id"] for row in page.done])
        if parked := [*page.refused, *((row, _BEHIND) for row in page.behind)]:
            async with tx.connection.transaction():
                await park(tx, self.consumer, [_parked(row, failure) for row, failure in parked], datetime.now(UTC))
                await tx.execute(_DELETE, ids=[row["id"] for row, _ in parked])
        self._tell(page)
        return page

    async def _carry_freed(self, tx: Tx, producer: KafkaWriter) -> "_Page | None":
        """Carry what a person let go of, and what waited behind it: from failed_jobs, before newer rows of its key."""
        rows = await tx.fetch(_FREED, consumer=self.consumer, missing=self._missing())
        if not rows:
            return None
        page = await self._send(producer, rows, set())
        if page.done:
            await tx.execute(_CARRIED, ids=[row["id"] for row in page.done])
        for row, failure in page.refused:
            await tx.execute(_REFUSED_AGAIN, id=row["id"], code=failure.code, message=failure.message)
        self._tell(page)
        return page

    async def _send(self, producer: KafkaWriter, rows: Sequence[Row], fenced: set[tuple[str, bytes]]) -> "_Page":
        """Send rows in order and await what became of each. What follows an unsent row of its key is not sent."""
        page = _Page()
        try:
            async with asyncio.timeout(self.answer_s):
                topics = await self._there(producer, dict.fromkeys(row["topic"] for row in rows))
                there = [row for row in rows if row["topic"] in topics]
                page.behind = [row for row in there if (row["topic"], row["key"]) in fenced]
                free = [row for row in there if (row["topic"], row["key"]) not in fenced]
                for some in _apart(free, self.large):
                    if not await self._send_some(producer, some, page):
                        break
                await producer.flush()
        except TimeoutError:
            page.error = KafkaTimeoutError(f"no acknowledgement within {self.answer_s:.0f} s")
            await producer.give_up()  # nothing may be sent behind our back: the rows are read again
        await page.finish()
        return page

    async def _send_some(self, producer: KafkaWriter, rows: Sequence[Row], page: "_Page") -> bool:
        """Send rows; False when what follows them is for a new producer, whose sequence has no hole."""
        of_topic: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            of_topic[row["topic"]].append(row)
        for topic, some in of_topic.items():
            records = [(row["key"], row["value"], sendable_headers(row["headers"])) for row in some]
            try:
                futures = await producer.send_all(topic, records)
            except (KafkaError, OSError) as error:
                for row in some:
                    page.failed(row, error)
                return False
            page.sent += zip(some, futures, strict=True)
            if len(some[0]["value"] or b"") > self.large:
                await asyncio.wait(futures)
            if any(one.done() and (one.cancelled() or one.exception() is not None) for one in set(futures)):
                return False
        return True

    async def _there(self, producer: KafkaWriter, topics: Iterable[str]) -> set[str]:
        """Return those that Kafka has. One that it has not must not stop the others: it is left out for a while."""
        asked = {topic: asyncio.ensure_future(producer.partitions_for(topic)) for topic in topics}
        try:
            _, late = await asyncio.wait(asked.values(), timeout=self.answer_s / 5)
            if late and not await producer.answers():
                raise TimeoutError
        finally:
            for one in asked.values():
                one.cancel()
        if errors := [error for one in asked.values() if one not in late and (error := one.exception()) is not None]:
            raise errors[0]
        for topic, one in asked.items():
            if one in late:
                self._absent[topic] = _now() + self.look_again_s
                _log.error("topic_missing", extra=self._about | {"topic": topic})
        return {topic for topic, one in asked.items() if one not in late}

    def _missing(self) -> list[str]:
        now = _now()
        self._absent = {topic: until for topic, until in self._absent.items() if until > now}
        return list(self._absent)

    def _tell(self, page: "_Page") -> None:
        if page.done:
            metrics.RELAYED.labels(self._service).inc(len(page.done))
        for row, failure in page.refused:
            about = {"topic": row["topic"], "code": failure.code, "reason": failure.message}
            _log.error("kafka_refused", extra=self._about | about)
        if page.error is not None:
            metrics.RELAY_ERRORS.labels(self._service).inc()
            raise page.error

    async def _ask(self, producer: KafkaWriter) -> None:
        """See whether Kafka answers."""
        try:
            async with asyncio.timeout(self.answer_s / 2):
                answered = await producer.answers()
        except TimeoutError:
            answered = False
        self._trouble = None if answered else "Kafka does not answer"


def _now() -> float:
    return asyncio.get_running_loop().time()


_BEHIND: Final = Failure("waiting", BEHIND, "waits behind a refused row of its key")
_REFUSED: Final = (MessageSizeTooLargeError, InvalidTopicError)


@dataclass(slots=True)
class _Page:
    """What became of a page of rows."""

    sent: list[tuple[Row, asyncio.Future[Any]]] = field(default_factory=list[tuple[Row, "asyncio.Future[Any]"]])
    done: list[Row] = field(default_factory=list[Row])
    behind: list[Row] = field(default_factory=list[Row])
    refused: list[tuple[Row, Failure]] = field(default_factory=list[tuple[Row, Failure]])
    error: BaseException | None = None
    more: bool = False  # rows may be left that nobody will announce again

    async def finish(self) -> None:
        """Await every acknowledgement."""
        if waits := [future for _, future in self.sent if not future.done()]:
            await asyncio.wait(waits)
        for row, future in self.sent:
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            if error is None:
                self.done.append(row)
            else:
                self.failed(row, error)

    def failed(self, row: Row, error: BaseException) -> None:
        """Note an error: Kafka will never take this row, or the page must be sent again."""
        if isinstance(error, _REFUSED):
            refusal = Failure("held", type(error).__name__, clean(f"Kafka refuses this record for ever: {error}"))
            self.refused.append((row, refusal))
        else:
            self.error = self.error or error


def _apart(rows: Iterable[Row], large: int) -> Iterator[list[Row]]:
    """Yield rows in their order, each large one by itself."""
    some: list[Row] = []
    for row in rows:
        if len(row["value"] or b"") <= large:
            some.append(row)
            continue
        if some:
            yield some
        yield [row]
        some = []
    if some:
        yield some


def _parked(row: Row, failure: Failure) -> Parked:
    record = Record(row["topic"], -1, row["id"], row["key"], row["value"], unpack_headers(row["headers"]))
    return Parked(record, failure, "outbox", None)

"""Retries: waiting rows of `failed_jobs` run again when they are due, in order for each key.

A key's rows run lowest offset first, under the same lane lock as its live records. When the head is done, the rows
behind it follow in growing batches; handler, outbox and the rows' end are one transaction.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from math import inf
from random import Random
from time import monotonic
from typing import Final

from sqlalchemy import text

from shared import telemetry
from shared.clock import Clock
from shared.db import Database, Row, Tx, is_rerun
from shared.errors import Permanent
from shared.messaging import metrics
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode
from shared.messaging.failed import Failure, dead_letter, error_entry, fingerprint, judge
from shared.messaging.fuse import Fuse
from shared.messaging.lane import LOCK_LANE, Lanes, cut_off, handle, happens, lane_space
from shared.messaging.outbox import Outbox
from shared.messaging.record import Record, lane_of, record_from_row

_DUE: Final = text(
    """
    select id, topic, partition, key, record_offset, due_at from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at <= :now
    order by due_at limit 1000
    """
)
_NEXT_DUE: Final = text(
    "select min(due_at) from failed_jobs where consumer = :consumer and status = 'waiting' and due_at > :now"
)
_OLDEST: Final = text(
    """
    select id, topic, partition, key, record_offset, due_at from failed_jobs
    where consumer = :consumer and status = 'waiting' and due_at is not null order by failed_at limit 1
    """
)
_COUNTS: Final = text(
    """
    select status, count(*) as rows, count(due_at) as due, count(*) filter (where error_code = 'GAP') as gaps
    from failed_jobs
    where consumer = :consumer and status in ('waiting', 'held', 'dead') group by status
    """
)
_OF_KEY: Final = text(
    """
    select * from failed_jobs
    where consumer = :consumer and topic = :topic and partition = :partition and key = :key
      and status in ('waiting', 'held')
    order by record_offset limit :limit for update
    """
)
_BY_ID: Final = text("select * from failed_jobs where id = :id and status = 'waiting' and due_at <= :by for update")
_RESOLVE: Final = text(
    """
    update failed_jobs set status = 'resolved', due_at = null, updated_at = :now, attempts = attempts + 1,
           resolved_by = coalesce(resolved_by, 'retry')
    where id = any(cast(:ids as uuid[]))
    """
)
_FAIL: Final = text(
    """
    update failed_jobs set status = :status, attempts = :attempts, due_at = :due_at, error_code = :code,
           error_message = :message, fingerprint = :print, updated_at = :now,
           errors = jsonb_path_query_array(errors, '$[last - 18 to last]') || cast(:entry as jsonb)
    where id = :id
    """
)
FREE_NEXT: Final = text(
    """
    update failed_jobs set due_at = coalesce(due_at, :now), updated_at = :now where id = (
        select id from failed_jobs
        where consumer = :consumer and topic = :topic and partition = :partition and key = :key
          and status in ('waiting', 'held')
        order by record_offset limit 1
    ) and status = 'waiting'
    """
)
_NOT_DUE: Final = text("update failed_jobs set due_at = null where id = :id and status = 'waiting'")
_RELEASE_KNOWN: Final = text(
    """
    update failed_jobs set status = 'waiting', due_at = now(), updated_at = now()
    where consumer = :consumer and status = 'held' and error_code = 'UNKNOWN_VERSION'
      and job_type = any(cast(:types as text[]))
    """
)

_log = logging.getLogger(__name__)


class Retries:
    """Runs one consumer's waiting rows."""

    idle_s: Final = 1.0
    linger_s: Final = 0.01
    largest_batch: Final = 100

    def __init__(  # noqa: PLR0917 - wired in one place, shared.service
        self,
        consumer: Consumer,
        db: Database,
        outbox: Outbox,
        lanes: Lanes,
        fuse: Fuse,
        clock: Clock,
        random: Random,
    ) -> None:
        self.name = f"retries {consumer.name}"
        self._consumer = consumer
        self._db = db
        self._outbox = outbox
        self._lanes = lanes
        self._fuse = fuse
        self._clock = clock
        self._random = random
        self._woken = asyncio.Event()
        self._never = asyncio.Event()
        self._counted_at = -inf
        self._running: dict[tuple[str, int, int], asyncio.Task[None]] = {}
        self._about = {"consumer": consumer.name}
        lanes.parked = self._woken.set

    async def run(self) -> None:
        """Retry until cancelled."""
        await self._lanes.rerun(self._release_known, self._never)
        try:
            while True:
                self._woken.clear()
                await self._lanes.rerun(self._turn, self._never)
                pause_s = await self._lanes.rerun(self._pause, self._never)
                await happens(self._woken, pause_s)
                await asyncio.sleep(self.linger_s)  # one turn for all that ended or parked meanwhile
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _turn(self) -> None:
        """Start what is due, each lane by itself: one that is slow keeps no other waiting."""
        await self._count()
        async with self._db.read() as tx:
            if not self._fuse.is_open:
                due = await tx.fetch(_DUE, consumer=self._consumer.name, now=self._clock())
            elif self._fuse.take_probe():
                due = await tx.fetch(_OLDEST, consumer=self._consumer.name)
            else:
                due = []
        probe = self._fuse.is_open
        lanes: defaultdict[tuple[str, int, int], list[Row]] = defaultdict(list)
        for row in due:
            lanes[row["topic"], row["partition"], _lane(row)].append(row)
        idle = [(lane, rows) for lane, rows in lanes.items() if lane not in self._running]
        if probe and not idle:
            self._fuse.unspent()
        for lane, rows in idle:
            task = self._running[lane] = asyncio.create_task(self._run_lane(rows, probe=probe))
            task.add_done_callback(partial(self._ended, lane))

    def _ended(self, lane: tuple[str, int, int], task: asyncio.Task[None]) -> None:
        del self._running[lane]
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("retries_broken", exc_info=error, extra=self._about)

    async def _pause(self) -> float:
        """Return how long to wait: until the next due time, a second at most."""
        async with self._db.read() as tx:
            due = await tx.fetchval(_NEXT_DUE, consumer=self._consumer.name, now=self._clock())
        if due is None or self._fuse.is_open:
            return self.idle_s
        return min(self.idle_s, max(0.0, (due - self._clock()).total_seconds()))

    async def _run_lane(self, rows: Sequence[Row], *, probe: bool) -> None:
        await self._lanes.rerun(partial(self._run_rows, rows, probe=probe), self._never)

    async def _run_rows(self, rows: Sequence[Row], *, probe: bool) -> None:
        keys: set[bytes] = set()
        for row in rows:
            if self._fuse.is_open and not probe:
                return
            if row["key"] is None:
                await self._attempt(row, 1, probe=probe)
            elif row["key"] not in keys:
                keys.add(row["key"])
                await self._drain(row, probe=probe)

    async def _drain(self, row: Row, *, probe: bool) -> None:
        """Run a key's rows from the lowest on, in batches that double while all goes well."""
        size = 1
        while not self._fuse.is_open or probe:
            went_well = await self._attempt(row, size, probe=probe)
            if went_well is None or probe:
                return
            size = min(size * 2, self.largest_batch) if went_well else 1

    async def _attempt(self, row: Row, size: int, *, probe: bool) -> bool | None:
        """Run up to `size` rows of the row's key together.

        True: done, more may follow. False: a batch failed, try one. None: nothing more to do now.
        """
        claimed: list[Row] = []
        try:
            async with cut_off(self._db, self._lanes.deadline_s) as turn, self._db.transaction() as tx:
                claimed = await self._claim(tx, row, size, probe=probe)
                if not claimed:
                    if probe:
                        self._fuse.unspent()
                    return None
                now = self._clock()
                turn.handling = True
                items = [self._item(one) for one in claimed]
                with telemetry.processing(self._consumer.name, [item.record for item in items]):
                    events = await handle(tx, items)
                turn.handling = False
                await tx.execute(_RESOLVE, ids=[one["id"] for one in claimed], now=now)
                if row["key"] is not None:
                    await self._free_next(tx, row, now)
                await self._outbox.add(tx, events)
        except Exception as error:
            if is_rerun(error) or not claimed:
                if probe:
                    self._fuse.unspent()
                raise
            if len(claimed) > 1:
                return False
            await self._lanes.rerun(partial(self._fail, claimed[0], error, probe=probe), self._never)
            return None
        for one in claimed:
            if one["due_at"] is not None:
                late_s = max(0.0, (now - one["due_at"]).total_seconds())
                metrics.RETRY_DELAY_ERROR_SECONDS.labels(self._consumer.name).observe(late_s)
        metrics.RETRIES.labels(self._consumer.name, "done").inc(len(claimed))
        self._fuse.succeeded(len(claimed))
        return True

    async def _claim(self, tx: Tx, row: Row, size: int, *, probe: bool) -> list[Row]:
        """Lock the lane and return the rows to run: the key's lowest, as far as they wait."""
        name, topic, partition = self._consumer.name, row["topic"], row["partition"]
        await tx.execute(LOCK_LANE, space=lane_space(name, topic, partition), lane=_lane(row))
        if row["key"] is None:
            return await tx.fetch(_BY_ID, id=row["id"], by=row["due_at"] if probe else self._clock())
        rows = await tx.fetch(_OF_KEY, consumer=name, topic=topic, partition=partition, key=row["key"], limit=size)
        if not rows:
            return []
        head = rows[0]
        ready = head["due_at"] is None or head["due_at"] <= self._clock() or probe
        if head["status"] != "waiting" or not ready:
            if head["id"] != row["id"]:  # only a head has a due time: an older row of the key came back
                await tx.execute(_NOT_DUE, id=row["id"])
            return []
        waiting: list[Row] = []
        for one in rows:
            if one["status"] != "waiting" or (waiting and one["due_at"] is not None and one["due_at"] > self._clock()):
                break
            waiting.append(one)
        return waiting

    def _item(self, row: Row) -> Item:
        """Decode the row's record again. Raises what parked it when it still cannot be handled."""
        record = record_from_row(row)
        item = decode(self._consumer, record, row["failed_at"])  # its inbox row is from then
        if item is None:
            raise LookupError(f"{self._consumer.name} does not handle {row['job_type']}")
        if item.failure is not None:
            raise _StillBroken(item.failure)
        return item

    async def _fail(self, row: Row, error: Exception, *, probe: bool) -> None:
        now = self._clock()
        attempts = row["attempts"]
        policy = self._consumer.policy
        paused = probe or self._fuse.is_open  # then an attempt does not count
        counted = min(attempts, len(policy.delays_s) - 1) if paused and policy.delays_s else attempts
        failure = judge(error, counted, policy, now, self._random.uniform(-1, 1))
        if isinstance(error, _StillBroken) and error.held:
            failure = replace(failure, status="held")
        record = record_from_row(row)
        async with self._db.transaction() as tx:
            space = lane_space(self._consumer.name, row["topic"], row["partition"])
            await tx.execute(LOCK_LANE, space=space, lane=_lane(row))
            still = await tx.fetchval(
                text("select attempts from failed_jobs where id = :id and status = 'waiting'"), id=row["id"]
            )
            if still != attempts:
                return  # somebody else dealt with it meanwhile
            if paused and failure.status == "waiting":
                failure = replace(failure, attempts=attempts)
            await tx.execute(
                _FAIL,
                id=row["id"],
                status=failure.status,
                attempts=failure.attempts,
                due_at=failure.due_at,
                code=failure.code,
                message=failure.message,
                print=fingerprint(self._consumer.name, row["job_type"], failure),
                now=now,
                entry=[error_entry(failure, now)],
            )
            if failure.status == "dead" and row["key"] is not None:
                await self._free_next(tx, row, now)
            letters = [] if failure.status == "waiting" else [dead_letter(self._consumer.name, record, failure)]
            await self._outbox.add(tx, (), letters)
        metrics.RETRIES.labels(self._consumer.name, "again" if failure.status == "waiting" else "dead").inc()
        self._fuse.failed(record.key if record.key is not None else row["id"])
        _log.warning(
            "retry_failed",
            extra=self._about
            | {"id": str(row["id"]), "status": failure.status, "code": failure.code, "reason": failure.message},
        )

    async def _free_next(self, tx: Tx, row: Row, now: datetime) -> None:
        await tx.execute(
            FREE_NEXT,
            consumer=self._consumer.name,
            topic=row["topic"],
            partition=row["partition"],
            key=row["key"],
            now=now,
        )

    async def _release_known(self) -> None:
        """Let run what was held for a version that this code now knows."""
        async with self._db.transaction() as tx:
            released = await tx.execute(_RELEASE_KNOWN, consumer=self._consumer.name, types=list(self._consumer.routes))
        if released:
            _log.info("held_versions_released", extra=self._about | {"rows": released})

    async def _count(self) -> None:
        now = monotonic()
        if now - self._counted_at < self.idle_s:
            return
        self._counted_at = now
        async with self._db.read() as tx:
            found = await tx.fetch(_COUNTS, consumer=self._consumer.name)
        rows = {row["status"]: row["rows"] for row in found}
        self._lanes.waiting = rows.get("waiting", 0)
        self._lanes.due = sum(row["due"] for row in found if row["status"] == "waiting")
        self._lanes.gaps = sum(row["gaps"] for row in found)
        for status in ("waiting", "held", "dead"):
            metrics.FAILED_JOBS.labels(self._consumer.name, status).set(rows.get(status, 0))


class _StillBroken(Permanent):
    """The record cannot be handled, now as before."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.code = failure.code  # pyright: ignore[reportAttributeAccessIssue]
        self.held = failure.status == "held"


def _lane(row: Row) -> int:
    record = Record(row["topic"], row["partition"], row["record_offset"], row["key"], None, ())
    return lane_of(record, Lanes.count)

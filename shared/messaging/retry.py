"""Retries: waiting rows of `failed_jobs` run again when they are due, in order for each key.

A key's rows run lowest offset first, under the same lane lock as its live records. The due heads of a lane run
together; when a head is done, the rows behind it follow, more with each round. Handlers, outbox and the rows' end are
one transaction.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import groupby
from math import inf
from random import Random
from typing import Final

from shared import telemetry
from shared.clock import Clock
from shared.db import Database, Row, Tx
from shared.errors import Permanent
from shared.messaging import metrics
from shared.messaging import retry_statements as statements
from shared.messaging.consumer import Consumer
from shared.messaging.deadline import cut_off
from shared.messaging.decode import Item, decode
from shared.messaging.failed import Failure, Lane, dead_letter, fingerprint, judge, settle_heads
from shared.messaging.fuse import Fuse
from shared.messaging.handling import Pace, run
from shared.messaging.lane import Lanes, happens, lane_of_row, lock_lane
from shared.messaging.outbox import Message, Outbox
from shared.messaging.record import BUCKETS, record_from_row

_log = logging.getLogger(__name__)


class Retries:
    """Runs one consumer's waiting rows."""

    idle_s: Final = 2.0
    count_s: Final = 5.0
    """How soon it shows what others did with this consumer's rows."""
    count_share: Final = 20
    """Counting, where there is much to count, takes one such part of the time,"""
    count_at_most_s: Final = 15.0
    """and is not put off for longer: readiness and limits follow it."""
    linger_s: Final = 0.01
    largest_batch: Final = 200
    largest_bytes: Final = 8 * 1_048_576
    page_rows: Final = 1000

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
        self._pace = Pace()
        self._woken = asyncio.Event()
        self._never = asyncio.Event()
        self._changed = True  # since the rows were counted
        self._counted_at = -inf
        self._count_from = -inf
        self._running: dict[Lane, asyncio.Task[None]] = {}
        self._about = {"consumer": consumer.name}
        lanes.parked = self._wake

    async def run(self) -> None:
        """Retry until cancelled."""
        await self._lanes.rerun(self._release_known, self._never)
        try:
            while True:
                self._woken.clear()
                pause_s = await self._lanes.rerun(self._turn, self._never)
                await happens(self._woken, pause_s)
                await asyncio.sleep(self.linger_s)  # one turn for all that ended or parked meanwhile
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self) -> None:
        self._changed = True
        self._woken.set()

    async def _turn(self) -> float:
        """Start what is due, each lane by itself: one that is slow keeps no other waiting.

        Returns how long to wait: until the next due time, idle_s at most. What is parked here wakes it at once.
        """
        await self._count()
        now = self._clock()
        probe = False
        async with self._db.read() as tx:
            look = await tx.fetchrow(statements.LOOK, consumer=self._consumer.name, now=now)
            if not self._fuse.is_open:
                due = await self._due(tx) if look is not None and look["due"] else []
            elif probe := self._fuse.take_probe():
                due = await tx.fetch(statements.OLDEST, consumer=self._consumer.name)
            else:
                due = []
        lanes: defaultdict[Lane, list[Row]] = defaultdict(list)
        for row in due:
            lanes[lane_of_row(row)].append(row)
        idle = [(lane, rows) for lane, rows in lanes.items() if lane not in self._running]
        if probe and not idle:
            self._fuse.unspent()
        for lane, rows in idle:
            task = self._running[lane] = asyncio.create_task(self._run_lane(rows, probe=probe))
            task.add_done_callback(partial(self._ended, lane))
        if len(due) == self.page_rows:
            return 0.0  # lanes that are idle still may have rows on the next page
        next_at = None if look is None or self._fuse.is_open else look["next_at"]
        return self.idle_s if next_at is None else min(self.idle_s, max(0.0, (next_at - self._clock()).total_seconds()))

    async def _due(self, tx: Tx) -> list[Row]:
        """Return due rows of lanes that are idle: a busy one hides no other, and its rows need not be read."""
        busy = [(topic, partition, number) for _, topic, partition, number in self._running]
        return await tx.fetch(
            statements.DUE,
            consumer=self._consumer.name,
            now=self._clock(),
            buckets=BUCKETS,
            count=self._lanes.count,
            topics=[one[0] for one in busy],
            partitions=[one[1] for one in busy],
            lanes=[one[2] for one in busy],
            rows=self.page_rows,
        )

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            del self._running[lane]
        elif (error := task.exception()) is not None:
            _log.error("retries_broken", exc_info=error, extra=self._about)
            asyncio.get_running_loop().call_later(self.idle_s, self._free, lane)  # it would break again at once
        else:
            self._free(lane)

    def _free(self, lane: Lane) -> None:
        del self._running[lane]
        self._wake()

    async def _run_lane(self, rows: Sequence[Row], *, probe: bool) -> None:
        """Run a lane's due rows, and then, deeper with each round, what waits behind them."""
        depth = 1
        while rows and (probe or not self._fuse.is_open):
            width = 1 if probe else max(1, self.largest_batch // depth)
            more: list[Row] = []
            for first in range(0, len(rows), width):
                if not self._fuse.is_open or probe:
                    more += await self._settle(rows[first : first + width], depth, probe=probe)
            rows = [] if probe else more
            depth = min(depth * 4, self.largest_batch)

    async def _settle(self, rows: Sequence[Row], depth: int, *, probe: bool) -> list[Row]:
        """Run the rows and up to `depth` of each key; return the rows that this freed, the next of their keys."""
        tried: list[Row] = []
        try:
            return await self._lanes.rerun(partial(self._together, rows, depth, tried, probe=probe), self._never)
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; nothing may be lost
            if len(rows) > 1:
                middle = len(rows) // 2
                return [
                    *await self._settle(rows[:middle], depth, probe=probe),
                    *await self._settle(rows[middle:], depth, probe=probe),
                ]
            if depth > 1:
                return await self._settle(rows, 1, probe=probe)
            failed = tried[0] if tried else rows[0]
            await self._lanes.rerun(partial(self._fail_alone, failed, error, probe=probe), self._never)
            return []

    async def _together(self, rows: Sequence[Row], depth: int, tried: list[Row], *, probe: bool) -> list[Row]:
        """Run them in one transaction; `tried` then holds the rows that it ran, should it raise."""
        lane = lane_of_row(rows[0])
        async with self._db.half, cut_off(self._db, self._lanes.deadline_s) as turn, self._db.transaction() as tx:
            await lock_lane(tx, lane)
            now = self._clock()
            claimed = await self._claim(tx, rows, lane, depth, None if probe else now)
            tried[:] = [row for row, _ in claimed]
            row_of = {id(item): row for row, item in claimed}
            paused = probe or self._fuse.is_open  # then an attempt does not count

            def judge_row(item: Item, error: Exception) -> Failure:
                return self._judge(row_of[id(item)], error, now, paused=paused)

            runnable = [item for _, item in claimed if item.failure is None]
            with telemetry.processing(self._consumer.name, [item.record for item in runnable]):
                await telemetry.remember(tx)
                ran = await run(tx, runnable, judge_row, turn, self._consumer.policy.fuse_keys, self._pace)
                broken = [(item, judge_row(item, _StillBroken(item.failure))) for _, item in claimed if item.failure]
                done = [row_of[id(item)] for item in ran.done]
                failed = [(row_of[id(item)], failure) for item, failure in (*ran.failed, *broken)]
                if done:
                    await tx.execute(statements.RESOLVE, ids=[row["id"] for row in done], now=now)
                await self._fail(tx, failed, now)
                freed = await settle_heads(tx, lane, {row["key"]: now for row in rows if row["key"] is not None}, now)
                await self._outbox.add(tx, ran.events, self._letters(failed))
        if probe and not claimed:
            self._fuse.unspent()
        self._tell(done, failed, now)
        return freed

    async def _claim(
        self, tx: Tx, rows: Sequence[Row], lane: Lane, depth: int, now: datetime | None
    ) -> list[tuple[Row, Item]]:
        """Return the rows to run: each key's lowest, as far as they wait and are due (without `now`, due or not)."""
        found = await tx.fetch(
            statements.CLAIM,
            consumer=lane[0],
            topic=lane[1],
            partition=lane[2],
            keys=list({row["key"] for row in rows if row["key"] is not None}),
            unkeyed=[row["id"] for row in rows if row["key"] is None],
            depth=depth,
            bytes=self.largest_bytes,
        )
        claimed: list[tuple[Row, Item]] = []
        for key, some in groupby(found, key=lambda row: row["key"]):
            for n, row in enumerate(some):
                ripe = now is None or row["due_at"] is None or row["due_at"] <= now
                if row["status"] != "waiting" or not ripe:
                    if key is not None:
                        break
                    continue
                item = self._item(row)
                if item.failure is None or key is None or n == 0:
                    claimed.append((row, item))
                if item.failure is not None and key is not None:
                    break  # what follows it waits for its fate
        return claimed

    def _item(self, row: Row) -> Item:
        """Decode the row's record again. Its failure is what parks it when it still cannot be handled."""
        record = record_from_row(row)
        item = decode(self._consumer, record, row["failed_at"])  # its inbox row is from then
        if item is None:
            message = f"{self._consumer.name} does not handle {row['job_type']}"
            return Item(record, row["job_type"], failure=Failure("dead", "NO_HANDLER", message))
        return item

    def _judge(self, row: Row, error: Exception, now: datetime, *, paused: bool) -> Failure:
        attempts, policy = row["attempts"], self._consumer.policy
        counted = min(attempts, len(policy.delays_s) - 1) if paused and policy.delays_s else attempts
        failure = judge(error, counted, policy, now, self._random.uniform(-1, 1))
        if isinstance(error, _StillBroken) and error.held:
            failure = replace(failure, status="held")
        if paused and failure.status == "waiting":
            failure = replace(failure, attempts=attempts)
        return failure

    async def _fail(self, tx: Tx, failed: Sequence[tuple[Row, Failure]], now: datetime) -> None:
        if not failed:
            return
        await tx.execute(
            statements.FAIL,
            now=now,
            ids=[row["id"] for row, _ in failed],
            statuses=[failure.status for _, failure in failed],
            attempts=[failure.attempts for _, failure in failed],
            due=[failure.due_at for _, failure in failed],
            codes=[failure.code for _, failure in failed],
            messages=[failure.message for _, failure in failed],
            prints=[fingerprint(self._consumer.name, row["job_type"], failure) for row, failure in failed],
        )

    async def _fail_alone(self, row: Row, error: Exception, *, probe: bool) -> None:
        """Record that a row's transaction cannot be committed."""
        now = self._clock()
        lane = lane_of_row(row)
        async with self._db.half, self._db.transaction() as tx:
            await lock_lane(tx, lane)
            found = await self._claim(tx, [row], lane, 1, None if probe else now)
            if not found or found[0][0]["id"] != row["id"] or found[0][0]["attempts"] != row["attempts"]:
                return  # another replica dealt with it meanwhile: the key's lowest is no longer what failed
            failed = [(found[0][0], self._judge(found[0][0], error, now, paused=probe or self._fuse.is_open))]
            await self._fail(tx, failed, now)
            if row["key"] is not None:
                await settle_heads(tx, lane, {row["key"]: now}, now)
            await self._outbox.add(tx, (), self._letters(failed))
        self._tell([], failed, now)

    def _letters(self, failed: Sequence[tuple[Row, Failure]]) -> list[Message]:
        return [
            dead_letter(self._consumer.name, record_from_row(row), failure)
            for row, failure in failed
            if failure.status != "waiting"
        ]

    def _tell(self, done: Sequence[Row], failed: Sequence[tuple[Row, Failure]], now: datetime) -> None:
        for row in done:
            if row["due_at"] is not None:
                late_s = max(0.0, (now - row["due_at"]).total_seconds())
                metrics.RETRY_DELAY_ERROR_SECONDS.labels(self._consumer.name).observe(late_s)
        for row, failure in failed:
            again = failure.status == "waiting"
            metrics.RETRIES.labels(self._consumer.name, "again" if again else "dead").inc()
            self._fuse.failed(row["key"] if row["key"] is not None else row["id"])
            _log.warning(
                "retry_failed",
                extra=self._about
                | {"id": str(row["id"]), "status": failure.status, "code": failure.code, "reason": failure.message},
            )
        if done:
            metrics.RETRIES.labels(self._consumer.name, "done").inc(len(done))
            self._fuse.succeeded(len(done))

    async def _release_known(self) -> None:
        """Let run what was held for a version that this code now knows."""
        async with self._db.transaction() as tx:
            released = await tx.execute(
                statements.RELEASE_KNOWN, consumer=self._consumer.name, types=list(self._consumer.routes)
            )
        if released:
            _log.info("held_versions_released", extra=self._about | {"rows": released})

    async def _count(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._count_from or not (self._changed or now - self._counted_at >= self.count_s):
            return
        self._changed, self._counted_at = False, now
        self._count_from = now + self.idle_s
        async with self._db.read() as tx:
            found = await tx.fetch(statements.COUNTS, consumer=self._consumer.name)
        took_s = asyncio.get_running_loop().time() - now
        self._count_from = now + max(self.idle_s, min(self.count_share * took_s, self.count_at_most_s))
        rows = {row["status"]: row["rows"] for row in found}
        ages = {row["status"]: float(row["age"]) for row in found}
        self._lanes.waiting = rows.get("waiting", 0)
        self._lanes.due = sum(row["due"] for row in found if row["status"] == "waiting")
        self._lanes.gaps = sum(row["gaps"] for row in found)
        for status in ("waiting", "held", "dead"):
            metrics.FAILED_JOBS.labels(self._consumer.name, status).set(rows.get(status, 0))
            metrics.FAILED_JOBS_AGE_SECONDS.labels(self._consumer.name, status).set(max(0.0, ages.get(status, 0.0)))


class _StillBroken(Permanent):
    """The record cannot be handled, now as before."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.code = failure.code  # pyright: ignore[reportAttributeAccessIssue]
        self.held = failure.status == "held"

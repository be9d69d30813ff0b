"""Claims rows of one kind, performs them, and records what came of it."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.sql.elements import TextClause

from shared.clock import Clock, utc_now
from shared.contracts.base import Event
from shared.db import Row, Tx, is_rerun
from shared.errors import OpenbellError, Permanent, Transient
from shared.messaging.door import Door
from shared.work import table
from shared.work.metrics import IN_FLIGHT, LOST, RETRIED, SETTLED, TOOK, UNKNOWN, WAITED
from shared.work.rules import Busy, Decision, OnUnknown, OutcomeUnknown, Policy, Status, decide, explain

log = logging.getLogger(__name__)

BUSY_S = 0.1


@dataclass(frozen=True, slots=True)
class Performed:
    """A success: what the other side answered, and how long it wants its lane left alone."""

    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Settled:
    """A row that reached its end, for the service to act on in the same transaction."""

    row: Row
    status: Status
    attempts: int
    error: Exception | None
    detail: str
    result: Mapping[str, Any]
    at: datetime


def created_at(row: Row) -> datetime:
    """Return when a row was written."""
    at: datetime = row["created_at"]
    return at


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of effect, and the table its rows wait in.

    `only` is an SQL condition for a table that several kinds share, `order` the columns by which what is due is claimed
    (with an index on them where `status = 'pending'`). `perform` gets the row as it was claimed, or what
    `prepare` made of it: all reading belongs there, for it runs before `started`, and what it raises is no doubt about
    the effect. `settled` runs in the transaction that records the end and returns the events that tell of it.
    `look_up` answers whether an uncertain effect has happened. `pauses` is the column that names who is left alone when
    an effect ends with Busy, where that is not the lane alone: several lanes may lead to one destination. A row carries
    its token: whoever may have stalled over its lease checks that it is still there before it changes anything else.
    `since` says when a row's age begins.
    """

    kind: str
    table: str
    perform: Callable[[Row], Awaitable[Performed]]
    on_unknown: OnUnknown
    prepare: Callable[[Row], Awaitable[Row]] | None = None
    settled: Callable[[Settled, Tx], Awaitable[Sequence[Event]]] | None = None
    look_up: Callable[[Row], Awaitable[bool]] | None = None
    only: str = "true"
    pauses: str = "lane"
    order: str = "due_at, id"
    policy: Policy = field(default_factory=Policy)
    since: Callable[[Row], datetime] = created_at


def choose(rows: Sequence[Row], free: int) -> list[Row]:
    """Take the first `free` rows, at most one of each lane."""
    chosen: list[Row] = []
    lanes: set[str] = set()
    for row in rows:
        lane: str | None = row["lane"]
        if len(chosen) == free:
            break
        if lane is not None and lane in lanes:
            continue
        if lane is not None:
            lanes.add(lane)
        chosen.append(row)
    return chosen


class Worker:
    """Performs one kind of work. `run()` until cancelled; `wake()` after a commit that wrote rows."""

    def __init__(
        self,
        work: Work,
        door: Door,
        clock: Clock = utc_now,
        *,
        draw: Callable[[], float] = random.random,
        new_token: Callable[[], UUID] = uuid4,
    ) -> None:
        if (work.on_unknown == "look_up") != (work.look_up is not None):
            raise ValueError(f"{work.kind}: on_unknown='look_up' and a look_up function go together")
        self.name = f"work.{work.kind}"
        self._work = work
        self._policy = work.policy
        self._door = door
        self._clock = clock
        self._draw = draw
        self._new_token = new_token
        self._wake = asyncio.Event()
        self._flights: dict[UUID, tuple[UUID, asyncio.Task[None]]] = {}
        self._keep_at: datetime | None = None
        self._stopping = False
        self._trouble = ""
        self._serialise = self._sql(table.SERIALISE)
        self._claimable = self._sql(table.CLAIMABLE)
        self._claim_rows = self._sql(table.CLAIM)
        self._look_at = self._sql(table.LOOK)
        self._start_row = self._sql(table.START)
        self._renew_rows = self._sql(table.RENEW)
        self._release_row = self._sql(table.RELEASE)
        self._release_expired = self._sql(table.RELEASE_EXPIRED)
        self._expired = self._sql(table.EXPIRED)
        self._settle_row = self._sql(table.SETTLE)
        self._add_pause = self._sql(table.PAUSE)
        self._forget_pauses = self._sql(table.FORGET_PAUSES)

    def _sql(self, template: str) -> TextClause:
        work = self._work
        return table.statement(template, work.table, work.only, work.pauses, work.order)

    def wake(self) -> None:
        """Look for rows now instead of at the next poll."""
        self._wake.set()

    def health(self) -> tuple[bool, str]:
        """Return whether rows are being claimed, and what hinders or how much is in flight."""
        return not self._trouble, self._trouble or f"{len(self._flights)} in flight"

    async def run(self) -> None:
        """Work until cancelled; then finish what is in flight, within `stop_s`."""
        self._stopping = False
        turned_at = 0.0
        try:
            while True:
                if asyncio.get_running_loop().time() - turned_at < BUSY_S:
                    await asyncio.sleep(
                        self._policy.linger_s
                    )  # one claim for several rows; a lone row is claimed at once
                self._wake.clear()
                turned_at = asyncio.get_running_loop().time()
                try:
                    wait_s = await self.turn()
                    self._trouble = ""
                except Exception as error:
                    if not is_rerun(error):
                        raise
                    self._trouble = explain(error)
                    log.warning("work.database", extra={"kind": self._work.kind, "error": explain(error)})
                    await asyncio.sleep(self._policy.poll_s)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # wait_for loses a cancellation that meets a wake-up
                        await self._wake.wait()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Claim no more, give back what has not started, wait for what has; cut it off after `stop_s`."""
        self._stopping = True
        tasks = [task for _, task in self._flights.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._policy.stop_s)
            for task in late:
                task.cancel()  # its row stays `started`: whoever sees the lease run out asks the policy
            await asyncio.gather(*late, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        while self._flights:
            await asyncio.gather(*(task for _, task in self._flights.values()))

    async def turn(self) -> float:
        """Keep leases, take what is due, start it; return how many seconds may pass before the next turn."""
        now = self._clock()
        if self._keep_at is None or now >= self._keep_at:
            await self._keep(now)
            self._keep_at = now + timedelta(seconds=self._policy.lease_s / 3)
        ready, rest_s = await self._look(now)
        if not ready:
            return rest_s
        while (free := self._policy.concurrency - len(self._flights)) > 0:
            rows, token, more = await self._claim(now, free)
            for row in rows:
                self._launch(row, token)
            if not more and len(self._flights) < self._policy.concurrency:
                return (await self._look(now))[1]
        return self._policy.poll_s

    async def _claim(self, now: datetime, free: int) -> tuple[list[Row], UUID, bool]:
        """Claim up to `free` rows; return them with their token, and whether another claim may find more."""
        token, limit = self._new_token(), free * 4
        async with self._door.transaction() as tx:
            await tx.execute(self._serialise)  # lanes stay single across replicas
            candidates = await tx.fetch(self._claimable, now=now, kind=self._work.kind, candidates=limit)
            ids = [row["id"] for row in choose(candidates, free)]
            until = now + timedelta(seconds=self._policy.lease_s)
            claimed = await tx.fetch(self._claim_rows, token=token, until=until, ids=ids) if ids else []
        rows = sorted(claimed, key=lambda row: ids.index(row["id"]))
        return rows, token, bool(rows) and len(candidates) == limit

    async def _look(self, now: datetime) -> tuple[bool, float]:
        """Return whether a row is due, and in how many seconds the next one will be, or its lane is free again."""
        async with self._door.read() as tx:
            found = await tx.fetchrow(self._look_at, now=now, kind=self._work.kind)
        if found is None or found["next_at"] is None:
            return found is None or found["ready"], self._policy.poll_s
        return found["ready"], min(self._policy.poll_s, (found["next_at"] - now).total_seconds())

    def _launch(self, row: Row, token: UUID) -> None:
        task = asyncio.create_task(self._fly(row, token), name=f"{self.name} {row['id']}")
        self._flights[row["id"]] = (token, task)
        IN_FLIGHT.labels(self._work.kind).inc()
        task.add_done_callback(lambda done: self._landed(row["id"], done))

    def _landed(self, row_id: UUID, task: asyncio.Task[None]) -> None:
        del self._flights[row_id]
        IN_FLIGHT.labels(self._work.kind).dec()
        if not task.cancelled() and task.exception() is not None:
            log.error("work.broken", exc_info=task.exception(), extra={"kind": self._work.kind, "id": str(row_id)})
        self._wake.set()

    async def _fly(self, row: Row, token: UUID) -> None:
        if self._stopping:
            async with self._door.transaction() as tx:
                await tx.execute(self._release_row, id=row["id"], token=token)
            return
        error: Exception | None = None
        performed, ready = Performed(), row
        try:
            known = row["uncertain"] and self._work.look_up is not None and await self._work.look_up(row)
            if not known:
                ready = row if self._work.prepare is None else await self._work.prepare(row)
                if not await self._start(row, token):
                    return
        except Exception as problem:  # noqa: BLE001 - whatever it is, nothing was done
            known = False
            error = problem if isinstance(problem, (Transient, Permanent)) else Transient(explain(problem))
        if error is None and not known:
            error, performed = await self._perform(ready)
        await self._settle(row, token, error, performed)

    async def _start(self, row: Row, token: UUID) -> bool:
        now = self._clock()
        async with self._door.read() as tx:  # one statement commits by itself
            until = now + timedelta(seconds=self._policy.lease_s)
            ours = await tx.execute(self._start_row, id=row["id"], token=token, until=until)
        if not ours:
            self._tell_lost(row)
        WAITED.labels(self._work.kind).observe(max(0.0, (now - row["due_at"]).total_seconds()))
        return bool(ours)

    async def _perform(self, row: Row) -> tuple[Exception | None, Performed]:
        try:
            with TOOK.labels(self._work.kind).time():
                return None, await self._work.perform(row)
        except OpenbellError as error:
            return error, Performed()
        except Exception as error:
            log.exception("work.unexpected", extra={"kind": self._work.kind, "id": str(row["id"])})
            return error, Performed()

    async def _pause(self, row: Row, error: Exception | None, performed: Performed, now: datetime, tx: Tx) -> None:
        """Keep, for every replica, how long the lane (or everyone) is to be left alone."""
        busy_s = (error.retry_after_s or 0.0) if isinstance(error, Busy) else performed.pause_s
        lane = "" if isinstance(error, Busy) and error.everyone else row[self._work.pauses]
        if busy_s > 0 and lane is not None:
            until = now + timedelta(seconds=busy_s)
            await tx.execute(self._add_pause, kind=self._work.kind, lane=str(lane), until=until)

    async def _settle(self, row: Row, token: UUID, error: Exception | None, performed: Performed) -> None:
        give_up_at = self._clock() + timedelta(seconds=self._policy.lease_s)
        while True:
            try:
                return await self._door.publish(lambda tx: self._record(row, token, error, performed, tx))
            except Exception as problem:
                if not is_rerun(problem) or self._clock() >= give_up_at:
                    raise
                await asyncio.sleep(self._policy.poll_s)

    async def _record(
        self, row: Row, token: UUID, error: Exception | None, performed: Performed, tx: Tx
    ) -> Sequence[Event]:
        now = self._clock()
        kind = self._work.kind
        decision = decide(
            self._policy,
            self._work.on_unknown,
            error,
            attempts=row["attempts"],
            uncertain=row["uncertain"],
            created_at=self._work.since(row),
            now=now,
            draw=self._draw(),
        )
        ours = await tx.execute(
            self._settle_row,
            id=row["id"],
            token=token,
            status=decision.status,
            due_at=decision.due_at,
            attempts=decision.attempts,
            uncertain=decision.uncertain,
            error=decision.reason or None,
            settled_at=now if decision.final else None,
        )
        await self._pause(row, error, performed, now, tx)  # even where the lease was lost: the wait was asked for
        if not ours:
            self._tell_lost(row)
            return ()
        tx.after_commit(lambda: _count(kind, decision))
        if not decision.final or self._work.settled is None:
            return ()
        settled = Settled(row, decision.status, decision.attempts, error, decision.reason, performed.result, now)
        return await self._work.settled(settled, tx)

    async def _keep(self, now: datetime) -> None:
        """Renew our leases, then take back what others let run out."""
        if self._flights:
            async with self._door.transaction() as tx:
                await tx.execute(
                    self._renew_rows,
                    until=now + timedelta(seconds=self._policy.lease_s),
                    ids=list(self._flights),
                    tokens=[token for token, _ in self._flights.values()],
                )
        async with self._door.transaction() as tx:
            await tx.execute(self._release_expired, now=now)
            await tx.execute(self._forget_pauses, now=now)
        await self._door.publish(lambda tx: self._settle_expired(now, tx))

    async def _settle_expired(self, now: datetime, tx: Tx) -> Sequence[Event]:
        events: list[Event] = []
        for row in await tx.fetch(self._expired, now=now):
            error = OutcomeUnknown("its worker stopped in the middle")
            events += await self._record(row, row["token"], error, Performed(), tx)
        return events

    def _tell_lost(self, row: Row) -> None:
        LOST.labels(self._work.kind).inc()
        log.warning("work.lost", extra={"kind": self._work.kind, "id": str(row["id"])})


def _count(kind: str, decision: Decision) -> None:
    if decision.unknown:
        UNKNOWN.labels(kind).inc()
    if decision.final:
        SETTLED.labels(kind, decision.status).inc()
    else:
        RETRIED.labels(kind).inc()

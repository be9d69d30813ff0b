"""Claims rows of one kind, performs them, and records what came of it."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from sqlalchemy.sql.elements import TextClause

from shared import telemetry
from shared.clock import Clock, utc_now
from shared.contracts.base import Event
from shared.db import Row, Tx, is_rerun
from shared.errors import OpenbellError, Permanent, Transient
from shared.messaging.door import Door
from shared.work import table
from shared.work.choice import FEW, choose, looked_at
from shared.work.metrics import AGE, IN_FLIGHT, LOST, RETRIED, SETTLED, TOOK, UNKNOWN, WAITED
from shared.work.pace import Patience, Places, Together
from shared.work.rules import Busy, Decision, OutcomeUnknown, decide, explain
from shared.work.work import Performed, Settled, Started, Work, equal

log = logging.getLogger(__name__)

BUSY_S = 0.1
AGAIN_S = 2.0
"""After so long a database that does not answer is asked again."""
START_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class _Ended:
    """How one attempt ended, before it is recorded."""

    row: Row
    token: UUID
    error: Exception | None
    performed: Performed


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
        self._pauses = work.pauses_with or work.kind
        self._door = door
        self._clock = clock
        self._draw = draw
        self._new_token = new_token
        self._wake = asyncio.Event()
        self._flights: dict[UUID, tuple[UUID, asyncio.Task[None]]] = {}
        self._keep_at: datetime | None = None
        self._stopping = False
        self._trouble = ""
        self._places = Places(work.policy.concurrency)
        self._patience = Patience(work.policy.concurrency + work.policy.ahead)
        self._waiting = 0
        self._start: Together[tuple[UUID, UUID], bool] = Together(self._start_rows, most=START_AT_ONCE)
        at_once = work.policy.concurrency if work.policy.together == 1 else 1
        self._settle: Together[_Ended, None] = Together(self._settle_rows, most=work.policy.together, at_once=at_once)
        self._serialise = self._sql(table.SERIALISE)
        self._claimable = self._sql(table.CLAIMABLE)
        self._claim_rows = self._sql(table.CLAIM)
        self._look_at = self._sql(table.LOOK)
        self._start_held = self._sql(table.START)
        self._renew_rows = self._sql(table.RENEW)
        self._release_row = self._sql(table.RELEASE)
        self._release_expired = self._sql(table.RELEASE_EXPIRED)
        self._expired = self._sql(table.EXPIRED)
        self._settle_held = self._sql(table.SETTLE)
        self._add_pauses = self._sql(table.PAUSE)
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
                    await asyncio.sleep(AGAIN_S)
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
        await asyncio.gather(self._start.close(), self._settle.close())

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
        room = self._policy.concurrency + self._policy.ahead
        while (free := room - len(self._flights)) > 0:
            rows, token, more = await self._claim(now, free)
            for row in rows:
                self._launch(row, token)
            if not more and len(self._flights) < room:
                return (await self._look(now))[1]
        return self._policy.poll_s

    async def _claim(self, now: datetime, free: int) -> tuple[list[Row], UUID, bool]:
        """Claim up to `free` rows; return them with their token, and whether another claim may find more."""
        if self._work.rank is not equal:
            free = min(free, self._let_in() + FEW)
        token = self._new_token()
        async with self._door.transaction() as tx:
            await tx.execute(self._serialise)  # lanes stay single across replicas
            candidates = await tx.fetch(self._claimable, now=now, kind=self._pauses, candidates=looked_at(free))
            if not all(map(self._can_wait, candidates)):
                self._patience.others()
            choice = choose(candidates, free, self._can_wait, self._let_in())
            ids = [row["id"] for row in choice.rows]
            until = now + timedelta(seconds=self._policy.lease_s)
            claimed = await tx.fetch(self._claim_rows, token=token, until=until, ids=ids) if ids else []
        rows = sorted(claimed, key=lambda row: ids.index(row["id"]))
        return rows, token, bool(rows) and choice.more

    def _let_in(self) -> int:
        """Return how many more of those that can wait may be claimed now."""
        return 0 if self._work.stands_back() else max(0, self._patience.places - self._waiting)

    async def _look(self, now: datetime) -> tuple[bool, float]:
        """Return whether a row is due, and in how many seconds the next one will be, or its lane is free again."""
        async with self._door.read() as tx:
            found = await tx.fetchrow(self._look_at, now=now, kind=self._pauses)
        if found is None or found["next_at"] is None:
            return found is None or found["ready"], self._policy.poll_s
        return found["ready"], min(self._policy.poll_s, (found["next_at"] - now).total_seconds())

    def _launch(self, row: Row, token: UUID) -> None:
        task = asyncio.create_task(self._traced(row, token), name=f"{self.name} {row['id']}")
        self._flights[row["id"]] = (token, task)
        self._waiting += self._can_wait(row)
        task.add_done_callback(lambda done: self._landed(row, done))

    def _can_wait(self, row: Row) -> bool:
        return self._work.rank(row) > 0

    def _landed(self, row: Row, task: asyncio.Task[None]) -> None:
        del self._flights[row["id"]]
        self._waiting -= self._can_wait(row)
        if not task.cancelled() and task.exception() is not None:
            log.error("work.broken", exc_info=task.exception(), extra={"kind": self._work.kind, "id": str(row["id"])})
        self._wake.set()

    async def _traced(self, row: Row, token: UUID) -> None:
        with telemetry.following(self.name, row.get("traceparent")):
            await self._fly(row, token)

    async def _fly(self, row: Row, token: UUID) -> None:
        if self._stopping:
            return await self._release(row, token)
        error: Exception | None = None
        performed, known = Performed(), False
        ready: Row | Started = row
        try:
            known = row["uncertain"] and self._work.look_up is not None and await self._work.look_up(row)
            if not known:
                ready = row if self._work.prepare is None else await self._work.prepare(row)
        except Exception as problem:  # noqa: BLE001 - whatever it is, nothing was done
            error = _before(problem)
        if error is None and not known:
            await self._places.take(self._work.rank(row))
            try:
                if self._can_wait(row):
                    await self._patience.look()
                if isinstance(ready, Started):
                    ready = ready.row
                elif self._stopping:
                    return await self._release(row, token)
                elif not await self._start((row["id"], token)):
                    return self._tell_lost(row)
                WAITED.labels(self._work.kind).observe(max(0.0, (self._clock() - row["due_at"]).total_seconds()))
                error, performed = await self._perform(ready)
            except _NotStarted as problem:
                error = problem.error
            finally:
                self._places.give_back()
        return await self._settle(_Ended(row, token, error, performed))

    async def _release(self, row: Row, token: UUID) -> None:
        async with self._door.transaction() as tx:
            await tx.execute(self._release_row, id=row["id"], token=token)

    async def _start_rows(self, asked: Sequence[tuple[UUID, UUID]]) -> list[bool]:
        """Record that effects begin; return for each whether its row is still ours."""
        until = self._clock() + timedelta(seconds=self._policy.lease_s)
        ids, tokens = [row_id for row_id, _ in asked], [token for _, token in asked]
        try:
            async with self._door.read() as tx:  # one statement commits by itself
                ours = {row["id"] for row in await tx.fetch(self._start_held, ids=ids, tokens=tokens, until=until)}
        except Exception as problem:
            raise _NotStarted(_before(problem)) from problem
        return [row_id in ours for row_id in ids]

    async def _perform(self, row: Row) -> tuple[Exception | None, Performed]:
        try:
            with TOOK.labels(self._work.kind).time(), IN_FLIGHT.labels(self._work.kind).track_inprogress():
                return None, await self._work.perform(row)
        except OpenbellError as error:
            return error, Performed()
        except Exception as error:
            log.exception("work.unexpected", extra={"kind": self._work.kind, "id": str(row["id"])})
            return error, Performed()

    async def _settle_rows(self, ends: Sequence[_Ended]) -> list[Exception | None]:
        """Record ends in one transaction, or each in its own where that fails: what one of them does is its alone."""
        give_up_at = self._clock() + timedelta(seconds=self._policy.lease_s)
        while True:
            try:
                await self._door.publish(lambda tx: self._record(ends, tx))
            except Exception as problem:  # noqa: BLE001 - it is raised to whoever asked for the record
                if is_rerun(problem) and self._clock() < give_up_at:
                    await asyncio.sleep(AGAIN_S)
                    continue
                if len(ends) == 1:
                    return [problem]
                return [told for end in ends for told in await self._settle_rows([end])]
            return [None] * len(ends)

    async def _record(self, ends: Sequence[_Ended], tx: Tx) -> Sequence[Event]:
        now = self._clock()
        decided = [(end, self._decide(end, now)) for end in ends]
        rows = await tx.fetch(
            self._settle_held,
            ids=[end.row["id"] for end in ends],
            tokens=[end.token for end in ends],
            statuses=[one.status for _, one in decided],
            dues=[one.due_at for _, one in decided],
            attempts=[one.attempts for _, one in decided],
            uncertains=[one.uncertain for _, one in decided],
            errors=[one.reason or None for _, one in decided],
            settled=[now if one.final else None for _, one in decided],
        )
        await self._pause(ends, now, tx)  # even where the lease was lost: the wait was asked for
        ours = {row["id"] for row in rows}
        settled: list[Settled] = []
        for end, one in decided:
            if end.row["id"] not in ours:
                self._tell_lost(end.row)
                continue
            age_s = (now - self._work.since(end.row)).total_seconds()
            tx.after_commit(partial(_count, self._work.kind, one, age_s))
            if one.final:
                result = end.performed.result
                settled.append(Settled(end.row, one.status, one.attempts, end.error, one.reason, result, now))
        return await self._work.settled(settled, tx) if settled and self._work.settled is not None else ()

    def _decide(self, end: _Ended, now: datetime) -> Decision:
        return decide(
            self._policy,
            self._work.on_unknown,
            end.error,
            attempts=end.row["attempts"],
            uncertain=end.row["uncertain"],
            created_at=self._work.since(end.row),
            now=now,
            draw=self._draw(),
        )

    async def _pause(self, ends: Sequence[_Ended], now: datetime, tx: Tx) -> None:
        """Keep, for every replica, how long lanes (or everyone) are to be left alone."""
        until: dict[str, datetime] = {}
        for end in ends:
            error = end.error
            busy_s = (error.retry_after_s or 0.0) if isinstance(error, Busy) else end.performed.pause_s
            lane = "" if isinstance(error, Busy) and error.everyone else end.row[self._work.pauses]
            if busy_s > 0 and lane is not None:
                at = now + timedelta(seconds=busy_s)
                until[str(lane)] = max(at, until.get(str(lane), at))
        if until:
            await tx.execute(self._add_pauses, kind=self._pauses, lanes=list(until), untils=list(until.values()))

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
        error = OutcomeUnknown("its worker stopped in the middle")
        expired = await tx.fetch(self._expired, now=now)
        return await self._record([_Ended(row, row["token"], error, Performed()) for row in expired], tx)

    def _tell_lost(self, row: Row) -> None:
        LOST.labels(self._work.kind).inc()
        log.warning("work.lost", extra={"kind": self._work.kind, "id": str(row["id"])})


class _NotStarted(Exception):
    """Starts could not be recorded."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _before(problem: Exception) -> Exception:
    """Return what became of an attempt that ended before its effect began: never a doubt."""
    return problem if isinstance(problem, (Transient, Permanent)) else Transient(explain(problem))


def _count(kind: str, decision: Decision, age_s: float) -> None:
    if decision.unknown:
        UNKNOWN.labels(kind).inc()
    if decision.final:
        SETTLED.labels(kind, decision.status).inc()
        AGE.labels(kind, decision.status).observe(max(0.0, age_s))
    else:
        RETRIED.labels(kind).inc()

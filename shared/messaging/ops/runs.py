"""Actions that take longer than a request: bulk retries and discards, and replays, as rows of `ops_runs`.

A run is claimed with a lease by one replica. Its progress is stored as it goes: killed, it goes on where it stood, on
whichever replica comes first; until then it shows as interrupted. One replay at a time for each consumer. When a run
ends, one audit event says what it did.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID, uuid4

import asyncpg
from aiokafka.errors import KafkaError
from sqlalchemy import text

from shared.clock import Clock, NewId, new_id
from shared.contracts.api import ActionAudited
from shared.db import Row, Tx, is_rerun
from shared.errors import Conflict, NotFound
from shared.messaging.door import Done, Door
from shared.messaging.failed import clean
from shared.messaging.lane import FuseOpen, happens
from shared.messaging.ops.bulk import Bulk, Order
from shared.messaging.ops.rows import By, Filter
from shared.messaging.replay import Progress, Range, Replay

Outcome = Literal["done", "failed", "cancelled"]
AUDITED_ROWS: Final = 100

_SHOWN: Final = """
    id, kind, consumer, request, counts, cardinality(rows) as rows, cancel, error, actor, runner, created_at,
    started_at, finished_at,
    case when status = 'running' and lease_until < cast(:now as timestamptz) then 'interrupted' else status end
        as status
"""
_LIST: Final = text(f"select {_SHOWN} from ops_runs order by id desc limit :limit")  # noqa: S608 - constants of ours
_SHOW: Final = text(f"select {_SHOWN} from ops_runs where id = :id")  # noqa: S608 - constants of ours
_ADD: Final = text(
    """
    insert into ops_runs (id, kind, consumer, request, rows, progress, counts, status, actor, request_id, created_at)
    values (:id, :kind, cast(:consumer as text), :request, cast(:rows as uuid[]), '{}', '{}', 'queued', :actor,
            cast(:request_id as text), :now)
    """
)
_CANCEL: Final = text(
    "update ops_runs set cancel = true where id = :id and status in ('queued', 'running') and not cancel"
)
_CLAIM: Final = text(
    """
    update ops_runs set status = 'running', token = :token, lease_until = :until, runner = :runner,
           started_at = coalesce(started_at, :now)
    where id = (
        select id from ops_runs
        where status in ('queued', 'running') and (lease_until is null or lease_until < :now)
        order by created_at limit 1 for update skip locked
    )
    returning *
    """
)
_RENEW: Final = text(
    "update ops_runs set lease_until = :until where id = :id and token = :token and status = 'running' returning cancel"
)
_FREE: Final = text(
    """
    update ops_runs set lease_until = :until, error = cast(:error as text)
    where id = :id and token = :token and status = 'running'
    """
)
_NOTE: Final = text(
    """
    update ops_runs set progress = :progress, counts = :counts, error = null
    where id = :id and token = :token and status = 'running'
    """
)
_END: Final = text(
    """
    update ops_runs set status = :status, error = cast(:error as text), finished_at = :now, lease_until = null
    where id = :id and token = :token and status = 'running' returning *
    """
)

_log = logging.getLogger(__name__)


class _LeaseLost(Exception):  # not an error: somebody else goes on with the run
    """Another replica has claimed the run."""


class Runs:
    """Keeps a service's runs and carries them out. `run()` until cancelled."""

    name = "operations"
    poll_s: Final = 5.0
    lease_s: Final = 15.0
    beat_s = 3.0
    again_s = 3.0
    at_once: Final = 4

    def __init__(  # noqa: PLR0917 - wired in one place, shared.service
        self,
        service: str,
        door: Door,
        bulk: Bulk,
        replay: Callable[[str], Replay],
        clock: Clock,
        runner: str = "here",
        ids: NewId = new_id,
    ) -> None:
        self._service = service
        self._door = door
        self._bulk = bulk
        self._replay = replay
        self._clock = clock
        self._runner = runner
        self._ids = ids
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- asked for over HTTP ------------------------------------------------------------------

    async def page(self, tx: Tx, limit: int = 50) -> list[dict[str, Any]]:
        """Return the latest runs, newest first."""
        return [self._shown(row) for row in await tx.fetch(_LIST, now=self._clock(), limit=limit)]

    async def show(self, tx: Tx, run_id: UUID) -> dict[str, Any]:
        """Return one run. Raises NotFound."""
        row = await tx.fetchrow(_SHOW, id=run_id, now=self._clock())
        if row is None:
            raise NotFound(f"{self._service} has no run {run_id}")
        return self._shown(row)

    async def start_bulk(self, tx: Tx, order: Order, cap: int, by: By) -> dict[str, Any] | None:
        """Choose the rows that the order means now, and queue it; None when there are none."""
        rows = await self._bulk.choose(tx, order, cap)
        if not rows:
            return None
        request = {"filter": dataclasses.asdict(order.chosen), "rate": order.rate, "reason": order.reason, "cap": cap}
        return await self._add(tx, order.verb, order.chosen.consumer, request, rows, by)

    async def start_replay(
        self, tx: Tx, consumer: str, wanted: Range, by: By, *, again: str | None, dry_run: bool, rate: float | None
    ) -> dict[str, Any]:
        """Queue a replay. Raises Invalid for what no replay can do, Conflict while another one runs there."""
        wanted = self._replay(consumer).check(wanted, again)
        request = {**dataclasses.asdict(wanted), "again": again, "dry_run": dry_run, "rate": rate}
        try:
            return await self._add(tx, "replay", consumer, request, (), by)
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"a replay into {consumer} is under way; wait for it or cancel it") from error

    async def cancel(self, tx: Tx, run_id: UUID, by: By) -> Done[dict[str, Any]]:
        """Ask a run to stop; what it did stays. Raises NotFound, Conflict when it has ended or was asked before."""
        if not await tx.execute(_CANCEL, id=run_id):
            found = await self.show(tx, run_id)
            raise Conflict(f"the run is {found['status']}", status=found["status"])
        tx.after_commit(self._wake.set)
        told = self._audit("cancel.run", run_id, by, {})
        return Done(await self.show(tx, run_id), [told])

    async def _add(  # noqa: PLR0917 - one row's values
        self,
        tx: Tx,
        kind: str,
        consumer: str | None,
        request: dict[str, Any],
        rows: Sequence[UUID],
        by: By,
    ) -> dict[str, Any]:
        run_id = self._ids()
        await tx.execute(
            _ADD,
            id=run_id,
            kind=kind,
            consumer=consumer,
            request=request,
            rows=list(rows),
            actor=by.actor,
            request_id=by.request_id,
            now=self._clock(),
        )
        tx.after_commit(self._wake.set)
        return await self.show(tx, run_id)

    def _shown(self, row: Row) -> dict[str, Any]:
        return {"service": self._service, **dict(row)}

    # --- carried out --------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out runs until cancelled; what is under way then is left for another replica, at once."""
        try:
            while True:
                self._wake.clear()
                await self._turn()
                await happens(self._wake, self.poll_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _turn(self) -> None:
        while len(self._tasks) < self.at_once:
            try:
                async with self._door.read() as tx:  # one statement is a transaction of its own
                    now = self._clock()
                    until = now + timedelta(seconds=self.lease_s)
                    found = await tx.fetchrow(_CLAIM, token=uuid4(), until=until, runner=self._runner, now=now)
            except Exception as error:
                if not is_rerun(error):
                    raise
                return
            if found is None:
                return
            task = asyncio.create_task(self._perform(found), name=f"run {found['id']}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:  # its lease runs out, and it goes on
            _log.error("run_unrecorded", exc_info=error, extra={"service": self._service})

    async def _perform(self, row: Row) -> None:
        """Work under the lease, and record how it ended."""
        work = self._replay_range if row["kind"] == "replay" else self._act_on_rows
        working = asyncio.create_task(work(row))
        cancelled = row["cancel"]
        try:
            while not working.done():
                if cancelled:
                    working.cancel()
                await asyncio.wait((working,), timeout=self.beat_s)
                if not working.done():
                    cancelled = await self._renew(row)
            await self._conclude(row, working)
        except _LeaseLost:
            _log.warning("run_lost", extra={"service": self._service, "run": str(row["id"])})
        except asyncio.CancelledError:
            await self._stopped(working)
            await self._free(row, None, 0)
            raise
        finally:
            await self._stopped(working)

    async def _conclude(self, row: Row, working: asyncio.Task[None]) -> None:
        if working.cancelled():
            await self._end(row, "cancelled", None)
            return
        error = working.exception()
        if error is None:
            await self._end(row, "done", None)
        elif isinstance(error, _LeaseLost):
            raise error
        elif is_rerun(error) or isinstance(error, (FuseOpen, KafkaError, OSError)):
            why = "the consumer is stopped by its fuse" if isinstance(error, FuseOpen) else type(error).__name__
            await self._free(row, f"goes on in a moment: {why}", self.again_s)
        else:
            _log.error("run_failed", exc_info=error, extra={"service": self._service, "run": str(row["id"])})
            await self._end(row, "failed", clean(f"{type(error).__name__}: {error}"))

    @staticmethod
    async def _stopped(working: asyncio.Task[None]) -> None:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    async def _renew(self, row: Row) -> bool:
        """Renew the lease; tell whether the run was cancelled. Raises _LeaseLost."""
        until = self._clock() + timedelta(seconds=self.lease_s)
        try:
            async with self._door.transaction() as tx:
                cancel = await tx.fetchval(_RENEW, id=row["id"], token=row["token"], until=until)
        except Exception as error:
            if not is_rerun(error):
                raise
            return False  # the work itself will notice; another replica may take over meanwhile
        if cancel is None:
            raise _LeaseLost
        return bool(cancel)

    async def _free(self, row: Row, error: str | None, after_s: float) -> None:
        """Leave the run to whoever comes first. A database that is away lets the lease run out instead."""
        until = self._clock() + timedelta(seconds=after_s)
        try:
            async with self._door.transaction() as tx:
                await tx.execute(_FREE, id=row["id"], token=row["token"], until=until, error=error)
        except Exception as away:
            if not is_rerun(away):
                raise

    async def _note(self, tx: Tx, row: Row, progress: dict[str, Any], counts: Counter[str]) -> None:
        if not await tx.execute(_NOTE, id=row["id"], token=row["token"], progress=progress, counts=dict(counts)):
            raise _LeaseLost

    async def _end(self, row: Row, outcome: Outcome, error: str | None) -> None:
        async def end(tx: Tx) -> Done[None]:
            now = self._clock()
            ended = await tx.fetchrow(_END, id=row["id"], token=row["token"], status=outcome, error=error, now=now)
            if ended is None:
                raise _LeaseLost
            details = {
                "outcome": outcome,
                "error": error,
                "consumer": ended["consumer"],
                "request": ended["request"],
                "chosen": len(ended["rows"]),
                "counts": ended["counts"],
                "rows": [str(one) for one in ended["rows"][:AUDITED_ROWS]],
                "started_at": str(ended["started_at"]),
            }
            action = "replay.consumer" if row["kind"] == "replay" else f"{row['kind']}.failed_jobs"
            return Done(None, [self._audit(action, row["id"], By(ended["actor"], ended["request_id"]), details)])

        await self._door.run(end)

    def _audit(self, action: str, run_id: UUID, by: By, details: dict[str, Any]) -> ActionAudited:
        now = self._clock()
        return ActionAudited(
            id=self._ids(),
            time=now,
            service=self._service,
            actor=by.actor,
            action=action,
            subject=f"run/{run_id}",
            at=now,
            request_id=by.request_id,
            details=details,
        )

    async def _act_on_rows(self, row: Row) -> None:
        request, ids = row["request"], row["rows"]
        chosen = Filter(request["filter"]["statuses"])  # the rows are chosen already; their status may have changed
        order = Order(row["kind"], chosen, row["actor"], request["rate"], request["reason"])
        counts = Counter[str]({"done": 0, "skipped": 0} | row["counts"])
        position: int = row["progress"].get("position", 0)
        due = datetime.fromisoformat(row["progress"]["due"]) if row["progress"] else row["started_at"]
        while position < len(ids):
            await asyncio.sleep(max(0.0, (due - order.lead - self._clock()).total_seconds()))
            async with self._door.transaction() as tx:
                now = self._clock()
                start = max(now, due)  # late, as after an interruption, the rest keeps its pace
                after, done = await self._bulk.batch(tx, order, ids, position, start, now)
                due = start + (after - position) * order.pace
                counts.update(done=done, skipped=after - position - done)
                await self._note(tx, row, {"position": after, "due": due}, counts)
            position = after

    async def _replay_range(self, row: Row) -> None:
        request = row["request"]
        times = {name: datetime.fromisoformat(request[name]) if request[name] else None for name in ("since", "until")}
        wanted = Range(request["topic"], request["partition"], request["from_offset"], **times)
        progress = Progress.read(row["progress"], row["counts"])
        replay = self._replay(row["consumer"])
        options = {"again": request["again"], "dry_run": request["dry_run"], "rate": request["rate"]}
        async with contextlib.aclosing(replay.steps(wanted, progress, **options)) as steps:
            async for _ in steps:
                async with self._door.transaction() as tx:
                    await self._note(tx, row, progress.written(), progress.counts)

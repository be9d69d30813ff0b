"""Jobs by the clock, as rows: one runner across replicas, a history, and a way to run one now.

    scheduler = Scheduler([Job("retention", "20 5 * * *", drop_old)], door, clock)
    await scheduler.run()

A job's cron expression is read in UTC (a sixth, leading field may give seconds); `calendar` narrows it to the
moments that an exchange's calendar allows. A runner holds a lease on the job's row and renews it; when it
dies, its run is recorded as `lost` and not repeated, for the job may be what killed it. Times that passed
while nobody ran are caught up by one run, told the latest of them. A job that is new, or whose expression
changed, begins with the next time after that.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID, uuid4

from cronsim import CronSim
from prometheus_client import Counter, Gauge
from sqlalchemy import text

from shared.clock import Clock, utc_now
from shared.contracts.base import Event
from shared.db import Row, Tx, is_rerun
from shared.errors import NotFound
from shared.messaging.door import Door
from shared.retention import slice_of
from shared.work import explain

log = logging.getLogger(__name__)

Trigger = Literal["clock", "manual"]
Outcome = Literal["running", "done", "failed", "lost"]

RUNS: Final = Counter("openbell_job_runs_total", "Runs of scheduled jobs", ["job_name", "outcome"])
LAST_DONE: Final = Gauge(
    "openbell_job_last_done_timestamp_seconds", "When the job last succeeded, Unix time", ["job_name"]
)

LEASE_S: Final = 30.0
AGAIN_S: Final = 1.0
POLL_S: Final = 5.0
"""How soon what another replica left is seen. A job's time, and a run asked for here, wait for no poll."""
STOP_S: Final = 10.0
KEEP_RUNS: Final = timedelta(days=30)
MAX_STEPS: Final = 20_000
"""How many times of an expression are tried against a calendar: two weeks of minutes."""

_CREATE = (
    """create table jobs (
        name text primary key,
        cron text not null,
        next_at timestamptz,
        requested_at timestamptz,
        token uuid,
        lease_until timestamptz,
        runner text
    )""",
    """create table job_runs (
        id uuid primary key,
        job text not null,
        scheduled_for timestamptz not null,
        "trigger" text not null check ("trigger" in ('clock', 'manual')),
        runner text not null,
        started_at timestamptz not null,
        finished_at timestamptz,
        outcome text not null check (outcome in ('running', 'done', 'failed', 'lost')),
        error text
    )""",
    "create index job_runs_history on job_runs (job, started_at desc)",
)

_KNOWN = text("select name, cron, next_at from jobs where name = any(cast(:names as text[])) for update")
_REGISTER = text("""
    insert into jobs (name, cron, next_at) values (:name, :cron, cast(:next_at as timestamptz))
    on conflict (name) do update set cron = excluded.cron, next_at = excluded.next_at
    where jobs.cron <> excluded.cron""")
_DUE = text("""
    select * from jobs
    where name = any(cast(:names as text[])) and (lease_until is null or lease_until < :now)
      and (next_at <= :now or requested_at is not null or token is not null)
    order by name for update skip locked""")
_TAKE = text("""
    update jobs set token = :token, lease_until = :until, runner = :runner, requested_at = null,
        next_at = cast(:next_at as timestamptz)
    where name = :name""")
_SKIP = text("""
    update jobs set token = null, lease_until = null, runner = null, next_at = cast(:next_at as timestamptz)
    where name = :name""")
_FREE = text("""
    update jobs set token = null, lease_until = null, runner = null where name = :name and token = :token""")
_RENEW = text("update jobs set lease_until = :until where token = any(cast(:tokens as uuid[]))")
_BEGIN = text("""
    insert into job_runs (id, job, scheduled_for, "trigger", runner, started_at, outcome)
    values (:id, :job, :scheduled_for, :trigger, :runner, :now, 'running')""")
_END = text("""
    update job_runs set finished_at = :now, outcome = :outcome, error = cast(:error as text)
    where id = :id and outcome = 'running'""")
_FORGET = slice_of("job_runs", "job = :job and started_at < :before")  # a slice with each run
_NEXT = text("select min(next_at) from jobs where name = any(cast(:names as text[])) and lease_until is null")
_LOOK = text("""
    select min(next_at) filter (where lease_until is null) as next_at,
        coalesce(bool_or((lease_until is null or lease_until < :now)
            and (next_at <= :now or requested_at is not null or token is not null)), false) as due
    from jobs where name = any(cast(:names as text[]))""")
_REQUEST = text("""
    update jobs set requested_at = coalesce(requested_at, :now) where name = :name""")
_LIST = text("""
    select jobs.*, last.scheduled_for, last.started_at, last.finished_at, last.outcome, last.error
    from jobs left join lateral (
        select * from job_runs where job = jobs.name order by started_at desc limit 1) last on true
    where jobs.name = any(cast(:names as text[])) order by jobs.name""")
_RUNS = text("select * from job_runs where job = :job order by started_at desc limit :limit")


@dataclass(frozen=True, slots=True)
class Job:
    """What runs, and when.

    `run` gets the time the run was due at (a manual run: the time it was asked for). `calendar` says of a
    time of the expression whether the job runs then: "the exchange is open", "the day is a session".
    """

    name: str
    cron: str
    run: Callable[[datetime], Awaitable[object]]
    calendar: Callable[[datetime], bool] | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as a person sees it."""

    name: str
    cron: str
    next_at: datetime | None
    requested_at: datetime | None
    running_on: str | None
    last_scheduled_for: datetime | None
    last_started_at: datetime | None
    last_finished_at: datetime | None
    last_outcome: Outcome | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class RunView:
    """One run in a job's history."""

    id: UUID
    job: str
    scheduled_for: datetime
    trigger: Trigger
    runner: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome
    error: str | None


@dataclass(frozen=True, slots=True)
class _Run:
    id: UUID
    job: Job
    scheduled_for: datetime


def create_tables(op: Any) -> None:
    """Create `jobs` and `job_runs` (for Alembic's `op`)."""
    for statement in _CREATE:
        op.execute(statement)


def drop_tables(op: Any) -> None:
    """Drop them."""
    op.execute("drop table job_runs")
    op.execute("drop table jobs")


def next_time(job: Job, after: datetime) -> datetime | None:
    """Return the first time after `after` that the expression names and the calendar allows.

    None when the expression names no more. Beyond MAX_STEPS refusals it is a time to look again, not to run.
    """
    found = None
    for _, found in zip(range(MAX_STEPS), CronSim(job.cron, after.astimezone(UTC)), strict=False):
        if job.calendar is None or job.calendar(found):
            break
    return found


def _rest_s(next_at: datetime | None, now: datetime) -> float:
    return max(0.0, min(POLL_S, (next_at - now).total_seconds())) if next_at else POLL_S


def latest_time(job: Job, first: datetime, now: datetime) -> datetime | None:
    """Return the latest allowed time in [first, now], which a late runner stands in for; None if none is."""
    start = now.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
    for _, found in zip(range(MAX_STEPS), CronSim(job.cron, start, reverse=True), strict=False):
        if found < first:
            break
        if job.calendar is None or job.calendar(found):
            return found
    return None


class Scheduler:
    """Runs a service's jobs on whichever replica comes first. `run()` until cancelled."""

    name = "schedule"

    def __init__(
        self,
        jobs: Sequence[Job],
        door: Door,
        clock: Clock = utc_now,
        *,
        runner: str = "here",
        stop_s: float = STOP_S,
        new_token: Callable[[], UUID] = uuid4,
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        if len(self._jobs) != len(jobs):
            raise ValueError("two jobs have the same name")
        for job in jobs:
            CronSim(job.cron, clock())  # a bad expression stops the start, not the first run
        self._names = list(self._jobs)
        self._door = door
        self._clock = clock
        self._runner = runner
        self._stop_s = stop_s
        self._new_token = new_token
        self._wake = asyncio.Event()
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._keep_at: datetime | None = None
        self._registered = False

    async def run(self) -> None:
        """Run jobs until cancelled; then give those that run a moment to finish."""
        try:
            while True:
                self._wake.clear()
                try:
                    wait_s = await self.turn()
                except Exception as error:
                    if not is_rerun(error):
                        raise
                    log.warning("schedule.database", extra={"error": explain(error)})
                    wait_s = AGAIN_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # wait_for loses a cancellation that meets a wake-up
                        await self._wake.wait()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Let running jobs finish for a moment, then cancel them; a cancelled run is recorded as lost."""
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._stop_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until no job runs here."""
        while self._running:
            await asyncio.gather(*self._running.values())

    async def turn(self) -> float:
        """Start what is due; return how many seconds may pass before the next turn."""
        now = self._clock()
        if not self._registered:
            async with self._door.transaction() as tx:
                await self._register(now, tx)
            self._registered = True
        if self._keep_at is None or now >= self._keep_at:
            await self._renew(now)
            self._keep_at = now + timedelta(seconds=LEASE_S / 3)
        async with self._door.read() as tx:
            found = await tx.fetchrow(_LOOK, names=self._names, now=now)
        if found is not None and not found["due"]:
            return _rest_s(found["next_at"], now)
        async with self._door.transaction() as tx:
            runs = [
                run
                for row in await tx.fetch(_DUE, names=self._names, now=now)
                if (run := await self._take(row, now, tx))
            ]
            next_at = await tx.fetchval(_NEXT, names=self._names)
        for run in runs:
            self._launch(run)
        return _rest_s(next_at, now)

    async def run_now(self, name: str, told: Sequence[Event] = ()) -> None:
        """Ask for a run now, and tell so; any replica picks it up, after a run in progress. Raises NotFound."""

        async def request(tx: Tx) -> Sequence[Event]:
            await self.request(name, tx)
            return told

        await self._door.publish(request)

    async def request(self, name: str, tx: Tx) -> None:
        """Ask for a run as soon as the transaction commits. Raises NotFound."""
        if name not in self._jobs or not await tx.execute(_REQUEST, name=name, now=self._clock()):
            raise NotFound(f"there is no job {name!r} here", jobs=self._names)
        tx.after_commit(self._wake.set)

    async def jobs(self) -> list[JobView]:
        """Return every job with its last and its next run."""
        async with self._door.read() as tx:
            return [
                JobView(
                    name=row["name"],
                    cron=row["cron"],
                    next_at=row["next_at"],
                    requested_at=row["requested_at"],
                    running_on=row["runner"],
                    last_scheduled_for=row["scheduled_for"],
                    last_started_at=row["started_at"],
                    last_finished_at=row["finished_at"],
                    last_outcome=row["outcome"],
                    last_error=row["error"],
                )
                for row in await tx.fetch(_LIST, names=self._names)
            ]

    async def runs(self, name: str, limit: int = 50) -> list[RunView]:
        """Return a job's latest runs, newest first."""
        async with self._door.read() as tx:
            return [RunView(**dict(row)) for row in await tx.fetch(_RUNS, job=name, limit=limit)]

    async def _register(self, now: datetime, tx: Tx) -> None:
        known = {row["name"]: row["cron"] for row in await tx.fetch(_KNOWN, names=self._names)}
        for job in self._jobs.values():
            if known.get(job.name) != job.cron:
                await tx.execute(_REGISTER, name=job.name, cron=job.cron, next_at=next_time(job, now))

    async def _take(self, row: Row, now: datetime, tx: Tx) -> _Run | None:
        """Take a job whose lease is free; record the run that let it run out."""
        job = self._jobs[row["name"]]
        if row["token"] is not None:
            await tx.execute(_END, id=row["token"], now=now, outcome="lost", error="its runner stopped")
            tx.after_commit(lambda: RUNS.labels(job.name, "lost").inc())
        passed = row["next_at"] is not None and row["next_at"] <= now
        next_at = next_time(job, now) if passed else row["next_at"]
        due = latest_time(job, row["next_at"], now) if passed else None
        scheduled_for: datetime | None = due or row["requested_at"]
        if scheduled_for is None:
            await tx.execute(_SKIP, name=job.name, next_at=next_at)
            return None
        run = _Run(self._new_token(), job, scheduled_for)
        until = now + timedelta(seconds=LEASE_S)
        await tx.execute(_TAKE, name=job.name, token=run.id, until=until, runner=self._runner, next_at=next_at)
        await tx.execute(
            _BEGIN,
            id=run.id,
            job=job.name,
            scheduled_for=scheduled_for,
            trigger="clock" if due else "manual",
            runner=self._runner,
            now=now,
        )
        return run

    def _launch(self, run: _Run) -> None:
        task = asyncio.create_task(self._perform(run), name=f"job {run.job.name}")
        self._running[run.id] = task
        task.add_done_callback(lambda done: self._landed(run, done))

    def _landed(self, run: _Run, task: asyncio.Task[None]) -> None:
        del self._running[run.id]
        error = None if task.cancelled() else task.exception()
        if error is not None:  # the outcome could not be recorded: the lease runs out and the run counts as lost
            log.error("schedule.unrecorded", exc_info=error, extra={"job": run.job.name})
        self._wake.set()

    async def _perform(self, run: _Run) -> None:
        outcome, reason = "done", None
        try:
            await run.job.run(run.scheduled_for)
        except asyncio.CancelledError:
            await self._finish(run, "lost", "stopped with its process")
            raise
        except Exception as error:
            log.exception("schedule.failed", extra={"job": run.job.name})
            outcome, reason = "failed", explain(error)
        await self._finish(run, outcome, reason)

    async def _finish(self, run: _Run, outcome: str, error: str | None) -> None:
        now = self._clock()
        async with self._door.transaction() as tx:
            await tx.execute(_END, id=run.id, now=now, outcome=outcome, error=error)
            await tx.execute(_FREE, name=run.job.name, token=run.id)
            await tx.execute(_FORGET, job=run.job.name, before=now - KEEP_RUNS)
        RUNS.labels(run.job.name, outcome).inc()
        if outcome == "done":
            LAST_DONE.labels(run.job.name).set(now.timestamp())

    async def _renew(self, now: datetime) -> None:
        if self._running:
            async with self._door.transaction() as tx:
                await tx.execute(_RENEW, tokens=list(self._running), until=now + timedelta(seconds=LEASE_S))

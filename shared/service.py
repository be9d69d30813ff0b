"""A service: what it consumes, runs by the clock, serves over HTTP, and how all of it starts and stops.

The recipe, in `services/<name>/main.py`:

    def build(env: Environment) -> Service:
        settings = DetectorSettings()
        service = Service("detector", env)              # owns .db, .door, .clock
        detector = Detector(settings, DetectorStore())
        service.consume(consumers.table(detector))      # a shared.messaging.consumer.Consumer
        service.work(LeaderboardWorker(detector, service.door, service.clock))  # has .name and async run()
        service.schedule(Job("retention", "0 5 * * *", detector.drop_old))      # shared.schedule
        service.serve(routes.handlers(detector, service.door))  # Litestar route handlers
        return service

and `services/<name>/__main__.py`:

    from services.detector.main import build
    from shared.process import main

    if __name__ == "__main__":
        main(build)

`build` only wires; `start` opens connections. A worker's `run()` loops until it is cancelled; when it raises,
it is started again after a pause, and readiness says so meanwhile.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Final, Protocol, runtime_checkable

import asyncpg
from litestar import Litestar
from litestar.types import ControllerRouterHandler
from sqlalchemy import text

from shared import idempotency
from shared.clock import Clock, utc_now
from shared.contracts.base import Event
from shared.contracts.topics import TOPICS, dead_letter_topic
from shared.db import Database, is_rerun
from shared.errors import Invalid
from shared.http import build_app
from shared.messaging import inbox
from shared.messaging.consumer import Consumer
from shared.messaging.delivery import Delivery
from shared.messaging.door import Door
from shared.messaging.failed import clean, forget_settled
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress, ensure_topics, wait_for_kafka
from shared.messaging.lane import Lanes
from shared.messaging.ops import Bulk, FailedJobs, Operations, Positions, Runs, runs_table
from shared.messaging.outbox import Outbox
from shared.messaging.relay import Relay
from shared.messaging.replay import Replay
from shared.messaging.retry import Retries
from shared.schedule import Job, Scheduler
from shared.schema import head
from shared.settings import SharedSettings
from shared.vitals import Vitals

_log = logging.getLogger(__name__)
_monotonic = time.monotonic

_REVISION: Final = text("select version_num from alembic_version")
KEEP_SETTLED_JOBS: Final = timedelta(days=30)


class SchemaTooOld(RuntimeError):
    """The database schema is older than this code needs; run `make migrate`."""


class Runner(Protocol):
    """Something that works until it is cancelled."""

    @property
    def name(self) -> str:
        """What it is called in logs and readiness."""
        ...

    async def run(self) -> None:
        """Work."""
        ...


@runtime_checkable
class HasHealth(Protocol):
    """A runner that can tell how it is."""

    def health(self) -> tuple[bool, str]:
        """Return (works, detail)."""
        ...


class Closable(Protocol):
    """What has connections."""

    async def close(self) -> None:
        """Give them up."""
        ...


@dataclass(frozen=True, slots=True)
class Environment:
    """What `build` gets: settings, a clock, chance, and this replica's name."""

    settings: SharedSettings = field(default_factory=SharedSettings)
    clock: Clock = utc_now
    random: Random = field(default_factory=lambda: Random(secrets.randbits(64)))  # noqa: S311 - for jitter
    replica: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass(frozen=True)
class StopBudget:
    """How long each part of a stop may take, in seconds; 15 altogether, for HTTP ends while consumers drain.

    What drains has shorter limits of its own (Delivery.drain_s, shared.work.Policy.stop_s, shared.schedule.STOP_S) and
    needs the rest to tell Kafka and Postgres. Whatever is late at the end of its part is cancelled again.
    """

    http_s: int = 10
    drain_s: float = 12.0
    relay_s: float = 2.0
    close_s: float = 1.0


class Service:
    """One service of Openbell, wired by its `build`, running between `start` and `stop`."""

    start_pause_s: Final = 1.0

    def __init__(self, name: str, env: Environment, reads: Sequence[type[Event]] = ()) -> None:
        """Prepare a service. `reads` are the events of its card: what its consumers may handle."""
        self.name = name
        self._reads = frozenset(reads)
        self.settings = env.settings
        self.clock = env.clock
        self.db = Database(env.settings.service_database_url(name), schema=name, size=env.settings.database_pool_size)
        self.kafka = KafkaAddress.of(env.settings)
        self.relay = Relay(name, self.db, self.kafka)
        self.outbox = Outbox(name, self.relay.wake)
        self.door = Door(self.db, self.outbox)
        self.handlers: list[ControllerRouterHandler] = []
        self.consumers: list[Consumer] = []
        self.operations = self._operations(env)
        self._env = env
        self._runners: list[Runner] = []
        self._closing: list[Closable] = []
        self._jobs = [
            Job("inbox-days", "17 * * * *", self._roll_inbox),
            Job("failed-jobs-retention", "27 4 * * *", self._forget_failed),
            Job("idempotency-retention", "7 * * * *", self._forget_answers),
        ]
        self._scheduler: Scheduler | None = None
        self._app: Litestar | None = None
        self.budget = StopBudget()
        self._starting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._lanes: dict[str, Lanes] = {}
        self._broken: dict[str, str] = {"start": "not started"}

    # --- wiring -------------------------------------------------------------------------------

    def consume(self, consumer: Consumer) -> None:
        """Run a consumer: its live records and its retries.

        Raises ValueError for one that is not this service's, and for events that the service's card does not name.
        """
        if not consumer.name.startswith(f"{self.name}."):
            raise ValueError(f"the consumer {consumer.name} must be named {self.name}.<what>")
        if consumer.name in self._lanes:
            raise ValueError(f"{self.name} has a consumer {consumer.name} already; put both tables into one")
        for route in consumer.routes.values():
            if route.event not in self._reads:
                raise ValueError(
                    f"{consumer.name} handles {route.event.type}, but the card of {self.name} does not name it: "
                    f"add {route.event.__name__} to READS in services/{self.name}/__init__.py"
                )
        env = self._env
        member = "static" if env.settings.kafka_static_members else env.replica
        fuse = Fuse(consumer.name, consumer.policy, _monotonic)
        lanes = Lanes(consumer, self.db, self.outbox, fuse, env.clock, env.random)
        self.consumers.append(consumer)
        self._lanes[consumer.name] = lanes
        self._runners.append(Delivery(consumer, self.kafka, member, self.db, lanes, fuse, env.clock))
        self._runners.append(Retries(consumer, self.db, self.outbox, lanes, fuse, env.clock, env.random))

    def work(self, runner: Runner) -> None:
        """Run a worker."""
        self._runners.append(runner)

    def closes(self, *closable: Closable) -> None:
        """Close these at the end, when no job, worker or request is left that would open them again."""
        self._closing.extend(closable)

    def schedule(self, job: Job) -> None:
        """Run a job by the clock."""
        self._jobs.append(job)

    def serve(self, handlers: list[ControllerRouterHandler]) -> None:
        """Serve routes."""
        self.handlers.extend(handlers)

    def _operations(self, env: Environment) -> Operations:
        failed_jobs = FailedJobs(self.name, env.clock, consumers=self.consumers)
        bulk = Bulk(failed_jobs)
        running = Runs(self.name, self.door, bulk, self.replay, env.clock, runner=env.replica)
        return Operations(
            failed_jobs, bulk, running, Positions(self.name, self.db, self.kafka, self.consumers, env.clock)
        )

    def replay(self, consumer: str) -> Replay:
        """Return what reads a topic again into one consumer. Raises Invalid for one that is not here."""
        known = {one.name: one for one in self.consumers}
        if consumer not in known:
            raise Invalid(f"{self.name} has no consumer {consumer}; it has {', '.join(known)}")
        return Replay(known[consumer], self._lanes[consumer], self.db, self.kafka, self.clock)

    @property
    def scheduler(self) -> Scheduler:
        """The service's jobs."""
        if self._scheduler is None:
            self._scheduler = Scheduler(self._jobs, self.door, self.clock, runner=self._env.replica)
        return self._scheduler

    @property
    def app(self) -> Litestar:
        """The HTTP app."""
        if self._app is None:
            self._app = build_app(self)
        return self._app

    # --- running ------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start in the background, for readiness tells how far it is; stop at the end of the block."""
        self._starting = asyncio.create_task(self._start_until_it_works(), name=f"{self.name} start")
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Check the schema, make inbox days and topics, and start all runners.

        Raises SchemaTooOld; DatabaseUnavailable, KafkaError, TimeoutError while those are away.
        """
        async with self.db.read() as tx:
            try:
                revision = await tx.fetchval(_REVISION)
            except asyncpg.UndefinedTableError:
                revision = None
        if revision is None or revision < head(self.name):
            raise SchemaTooOld(f"{self.name} is at {revision}, this code needs {head(self.name)}; run `make migrate`")
        await self._roll_inbox(self.clock())
        await wait_for_kafka(self.kafka, timeout_s=10)
        letters = [dead_letter_topic(consumer.name) for consumer in self.consumers]
        await ensure_topics(self.kafka, [*TOPICS, *letters])
        self._broken.pop("start", None)
        vitals = Vitals(self.name, self.db)
        for runner in (self.relay, vitals, self.scheduler, self.operations.runs, *self._runners):
            self._tasks.append(asyncio.create_task(self._supervise(runner), name=f"{self.name} {runner.name}"))
        _log.info("service_started", extra={"service": self.name, "replica": self._env.replica})

    async def drain(self) -> None:
        """Stop runners, each finishing what is in flight; the relay goes last, for it carries what they tell.

        The pool stays open: requests may still need it.
        """
        relay, others = self._tasks[:1], self._tasks[1:]
        others += [self._starting] if self._starting is not None else []
        self._tasks, self._starting = [], None
        late = await _end(others, self.budget.drain_s)
        late = await _end([*relay, *late], self.budget.relay_s)
        if late:
            names = sorted(task.get_name() for task in late)
            _log.error("service_stopped_late", extra={"service": self.name, "runners": names})

    async def stop(self) -> None:
        """Drain, if nobody did; then close what is open."""
        await self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.budget.close_s):
                await self.close()
        _log.info("service_stopped", extra={"service": self.name})

    async def close(self) -> None:
        """Close the connections, the pool last."""
        for one in self._closing:
            await one.close()
        await self.db.close()

    async def readiness(self) -> dict[str, tuple[bool, str]]:
        """Return name -> (ok, detail) for the database, the schema, Kafka's consumers, the relay and all workers."""
        checks: dict[str, tuple[bool, str]] = {name: (False, why) for name, why in self._broken.items()}
        try:
            async with asyncio.timeout(2), self.db.read() as tx:
                revision = await tx.fetchval(_REVISION)
            checks["database"] = (True, f"schema at {revision}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not ready
            checks["database"] = (False, type(error).__name__)
        if "start" not in self._broken:
            for runner in (self.relay, *self._runners):
                if runner.name not in checks and isinstance(runner, HasHealth):
                    checks[runner.name] = runner.health()
        return checks

    async def _start_until_it_works(self) -> None:
        while True:
            try:
                await self.start()
            except Exception as error:  # noqa: BLE001 - told in logs and readiness, and begun again
                self._broken["start"] = clean(f"{type(error).__name__}: {error}")[:300]
                known = isinstance(error, (SchemaTooOld, OSError, TimeoutError)) or is_rerun(error)
                _log.warning(
                    "service_cannot_start",
                    exc_info=not known,
                    extra={"service": self.name, "error": repr(error)},
                )
                await asyncio.sleep(self.start_pause_s)
            else:
                return

    async def _supervise(self, runner: Runner) -> None:
        pause_s = 1.0
        while True:
            began = _monotonic()
            try:
                await runner.run()
                why = "it ended by itself"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                why = "it was cancelled from within"  # by something that it awaits: nobody asked it to stop
                _log.exception("runner_failed", extra={"service": self.name, "runner": runner.name})
            except Exception as error:  # noqa: BLE001 - told in logs and readiness, and begun again
                why = clean(f"{type(error).__name__}: {error}")[:300]
                _log.exception("runner_failed", extra={"service": self.name, "runner": runner.name})
            pause_s = 1.0 if _monotonic() - began > 60 else min(pause_s * 2, 30.0)  # noqa: PLR2004 - a minute went well
            self._broken[runner.name] = why
            await asyncio.sleep(pause_s)
            del self._broken[runner.name]

    async def _roll_inbox(self, now: datetime) -> None:
        async with self.db.transaction() as tx:
            await inbox.roll(tx, now)

    async def _forget_failed(self, now: datetime) -> None:
        await forget_settled(self.db.transaction, now - KEEP_SETTLED_JOBS)
        await runs_table.forget(self.db.transaction, now - KEEP_SETTLED_JOBS)

    async def _forget_answers(self, now: datetime) -> None:
        await idempotency.forget(self.db.transaction, now)


async def _end(tasks: Sequence[asyncio.Task[None]], within_s: float) -> set[asyncio.Task[None]]:
    """Cancel tasks; return those that are not done in time."""
    if not tasks:
        return set()
    for task in tasks:
        task.cancel()
    _, late = await asyncio.wait(tasks, timeout=within_s)
    return late

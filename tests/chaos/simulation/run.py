"""One run of a plan: start the processes, tell the facts, do what the plan does to them, wait for rest, and look."""

import asyncio
import hashlib
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Final
from uuid import UUID

from aiokafka import TopicPartition

from shared.contracts.topics import AUDIT
from shared.db import is_rerun
from shared.errors import Conflict
from shared.messaging.door import Door
from shared.messaging.ops import FailedJobs
from shared.messaging.outbox import Outbox
from shared.messaging.record import Record, headers_of
from tests.chaos.simulation.database import STANDS_STILL_S, Postgres, Server, SimDatabase, Weather
from tests.chaos.simulation.invariants import Fate
from tests.chaos.simulation.look import Look
from tests.chaos.simulation.loop import PROCESS, Process, Stalled, VirtualLoop
from tests.chaos.simulation.plan import Plan, Trouble
from tests.chaos.simulation.service import DAY_ONE, DERIVED, FACTS, SCHEMA, Fact, Outside, Service
from tests.fakes.kafka import MemoryKafka, MemoryReader, MemoryWriter
from tests.fakes.kafka_broker import Fate as BatchFate
from tests.fakes.kafka_broker import Network

PATIENCE_S: Final = 300.0
_FATES: Final[dict[str, Fate]] = {
    "plain": "done",
    "transient": "done",
    "permanent": "parked",
    "hopeless": "parked",
    "poison": "parked",
    "next_version": "parked",
    "not_yet": "either",
    "foreign": "passed",
}
_TABLES: Final = ("inbox_one", "consumer_offsets", "outbox", "failed_jobs", "effects", "jobs", "work_pauses")
_EMPTY: Final = "; ".join(f"delete from {table}" for table in _TABLES)
_TRUNCATE: Final = f"truncate {', '.join(_TABLES)}"
_BUSY: Final = """
    select (select count(*) from outbox) as outbox,
           (select count(*) from jobs where status in ('pending', 'claimed', 'started')) as work,
           (select count(*) from failed_jobs f where status = 'waiting' and due_at is not null) as waiting
"""
_HELD_FOR_A_KNOWN_VERSION: Final = "select 1 from failed_jobs where status = 'held' and error_code = 'UNKNOWN_VERSION'"


@dataclass
class Report:
    """What a run showed."""

    plan: Plan
    wrong: list[str] = field(default_factory=list[str])
    steps: int = 0  # of the first process
    touched: list[int] = field(default_factory=list[int])  # its steps right after which the world had changed
    statements: int = 0
    virtual_s: float = 0.0
    trace: deque[str] = field(default_factory=lambda: deque[str](maxlen=4000))
    digest: str = ""

    def explain(self) -> str:
        """Say what is wrong, what came before, and how to see it again."""
        return "\n".join(
            [
                f"seed {self.plan.seed}, crash at step {self.plan.crash_at}, {self.virtual_s:.3f} s of virtual time",
                *self.wrong,
                "the last of what was done (virtual time, process, step):",
                *list(self.trace)[-30:],
                "again:",
                f"  python -m tests.chaos.simulation --plan '{self.plan.to_json()}'",
            ]
        )


class _SimNetwork(Network):
    def __init__(self, plan: Plan, random: Random) -> None:
        self._plan = plan
        self._random = random

    def delay_s(self) -> float:
        slow = self._random.random() < self._plan.slow
        return self._random.uniform(0, 0.05) if slow else 0.0003 * self._random.random()

    def fate(self) -> BatchFate:
        if self._random.random() >= self._plan.unacknowledged:
            return "kept"
        return self._random.choice(("kept but not acknowledged", "lost"))

    def arrives_late(self) -> bool:
        return self._random.random() < 0.5


class _SimKafka(MemoryKafka):
    """Clients know which process they are of, and go with it."""

    session_s = 2.0
    rebalance_s = 6.0
    heartbeat_s = 0.6
    request_s = 8.0

    def writer(self, client_id: str) -> MemoryWriter:
        writer = super().writer(client_id)
        PROCESS.get().on_death.append(writer.vanish)
        return writer

    def reader(self, group: str, member: str) -> MemoryReader:
        return super().reader(group, member)


class Run:
    """A run under way."""

    def __init__(self, plan: Plan, server: Server) -> None:
        self.report = Report(plan)
        self._plan = plan
        self._server = server
        self._random = Random(f"run/{plan.seed}")
        self._loop = VirtualLoop(Random(f"loop/{plan.seed}"))
        self._hash = hashlib.sha256()
        self._members: dict[int, Process] = {}  # who runs now, by number
        self._all: list[Process] = []
        self._under_test: Process | None = None
        ids = Random(f"ids/{plan.seed}")
        own = [UUID(int=ids.getrandbits(128), version=4) for _ in plan.facts]
        self._ids = [own[one.needs] if one.kind == "again" else own[n] for n, one in enumerate(plan.facts)]

    def clock(self) -> datetime:
        return DAY_ONE + timedelta(seconds=self._loop.time())

    def go(self) -> Report:
        """Run the plan to its end and return what it showed."""
        self._server.runs += 1
        emptied = _TRUNCATE if self._server.runs % 200 == 0 else _EMPTY
        self._server.run(self._server.monitor.execute(emptied))  # type: ignore[arg-type]
        logging.disable(logging.CRITICAL)
        try:
            self._loop.run_until_complete(self._story())
        except Stalled as error:
            self.report.wrong.append(str(error))
        self.report.wrong += self._look.violations(final=True)
        self.report.virtual_s = self._loop.time()
        self.report.digest = self._hash.hexdigest()
        if self._under_test is not None:
            self.report.steps = self._under_test.steps
        self._clean_up()
        logging.disable(logging.NOTSET)
        return self.report

    async def _story(self) -> None:
        plan = self._plan
        self._kafka = _SimKafka(
            {
                FACTS.name: plan.partitions,
                DERIVED.name: plan.partitions,
                "sim.first.dlq": 1,
                "sim.second.dlq": 1,
                AUDIT.name: 1,
            },
            _SimNetwork(plan, Random(f"network/{plan.seed}")),
            plan.seed,
        )
        self._kafka.appended = self._appended
        self._postgres = Postgres(
            self._server,
            self._loop,
            Random(f"postgres/{plan.seed}"),
            Weather(slow=plan.slow, lost=plan.lost),
            self._note,
        )
        self._outside = Outside(
            plan, Random(f"outside/{plan.seed}"), self.clock, self._ids, lambda what: self._note(PROCESS.get(), what)
        )
        self._look = Look(self._server, self._kafka, self._outside)
        for number in range(plan.processes):
            self._start(number)
        if self._under_test is not None:
            self._under_test.crash_at = plan.crash_at
        troubles = [self._loop.create_task(self._trouble(one)) for one in plan.troubles]
        if plan.deploy_at_s is not None:
            troubles.append(self._loop.create_task(self._deploy(plan.deploy_at_s)))
        await self._tell()
        if plan.deploy_at_s is not None or not plan.operator:
            await asyncio.gather(*troubles)
        await self._rest()
        if plan.operator:
            await self._operate()
            await asyncio.gather(*troubles)
            await self._rest()

    def _start(self, number: int) -> None:
        if number in self._members:
            return
        process = Process(f"p{number}.{len(self._all)}")
        self._members[number] = process
        self._all.append(process)
        self._under_test = self._under_test or process
        process.on_death.append(lambda: self._died(number, process))
        self._note(self._loop.world, f"{process.name} starts")
        self._loop.spawn(process, self._process(process, len(self._all)))

    async def _process(self, process: Process, seed: int) -> None:
        db = SimDatabase(self._postgres, SCHEMA, 10)
        deploy_at_s = self._plan.deploy_at_s
        knows_next = deploy_at_s is not None and self._loop.time() >= deploy_at_s
        await Service(self._outside, db, self._kafka, process.name, seed, knows_next=knows_next).main()

    def _died(self, number: int, process: Process) -> None:
        """What a SIGKILL leaves: sockets that close, and after a while a successor."""
        self._note(self._loop.world, f"{process.name} is dead")
        self._members.pop(number, None)
        for connection in [one for one in self._postgres.connections if one.process is process]:
            connection.terminate()
        self.report.wrong += [f"at the crash: {one}" for one in self._look.violations(final=False)]
        self._postgres.later(self._random.uniform(0.01, 0.5), self._start, number)

    async def _tell(self) -> None:
        """Put the facts into the log."""
        for n, fact in enumerate(self._plan.facts):
            await asyncio.sleep(self._plan.gap_s * self._random.random())
            original = fact.needs if fact.kind == "again" else n
            entity = fact.key if fact.key is not None else f"-{original}"
            event = Fact(id=self._ids[n], time=DAY_ONE, entity=entity, n=original)
            headers = dict(headers_of(event, "/sim"))
            value = event.to_bytes()
            if fact.kind == "poison":
                value = b"\xff\x00"
                if n % 2:
                    headers[b"ce_id"] = b"not an id"
            if fact.kind == "next_version":
                headers[b"ce_type"] = b"sim.fact.told.v2"
            if fact.kind == "foreign":
                headers[b"ce_type"] = b"sim.other.told.v1"
            key = None if fact.key is None else fact.key.encode()
            partition = self._kafka.choose(FACTS.name, key)
            if fact.kind == "again":  # where a null key went first is where a producer's duplicate lies
                partition = next(one for one, _ in self._look.fates if self._look.fates[one, _][0] == event.id)
            place = partition, self._kafka.logs[TopicPartition(FACTS.name, partition)].end
            nameless = fact.kind == "poison" and n % 2
            self._look.fates[place] = (None if nameless else event.id, _FATES[self._plan.facts[original].kind])
            self._kafka.append(Record(FACTS.name, partition, -1, key, value, tuple(headers.items()), 0))

    async def _trouble(self, one: Trouble) -> None:
        await asyncio.sleep(one.at_s)
        number = one.who % self._plan.processes if one.what != "start" else one.who
        process = self._members.get(number)
        self._note(self._loop.world, f"{one.what} {number} for {one.for_s}")
        if one.what == "start":
            self._start(number)
        elif one.what == "postgres":
            self._postgres.up = False
            self._postgres.restart()
            await asyncio.sleep(one.for_s)
            self._postgres.up = True
        elif one.what == "kafka":
            self._kafka.network.up = False
            await asyncio.sleep(one.for_s)
            self._kafka.network.up = True
        elif process is None:
            return
        elif one.what == "crash":
            process.kill()
        elif one.what == "cut":
            for connection in [it for it in self._postgres.connections if it.process is process]:
                connection.break_off()
        elif one.what == "freeze":
            await self._freeze(process, one.for_s)
        elif one.what == "stop":
            await self._stop(number, process)

    async def _freeze(self, process: Process, for_s: float) -> None:
        """SIGSTOP and SIGCONT. Postgres ends what stands still for too long, as shared.migrate and the relay ask."""
        process.frozen = True
        await asyncio.sleep(min(for_s, STANDS_STILL_S))
        if for_s > STANDS_STILL_S:
            for one in [it for it in self._postgres.connections if it.process is process]:
                if one.relay or one.is_in_transaction():
                    one.break_off()
            await asyncio.sleep(for_s - STANDS_STILL_S)
        process.frozen = False

    async def _stop(self, number: int, process: Process) -> None:
        """A graceful stop, and a start after it."""
        if process.dead:
            return
        process.tasks[0].cancel()
        await asyncio.wait(process.tasks[:1], timeout=60)
        if not process.tasks[0].done() and not process.dead:
            self.report.wrong.append(f"{process.name} did not stop within a minute")
        if not process.dead:
            process.on_death.clear()
            process.kill()
            for connection in [one for one in self._postgres.connections if one.process is process]:
                connection.terminate()
            self._members.pop(number, None)
            self._start(number)

    async def _deploy(self, at_s: float) -> None:
        """Replace the processes one by one with such as know the next version."""
        await asyncio.sleep(at_s)
        for number, process in sorted(self._members.items()):
            await self._stop(number, process)
            await asyncio.sleep(0.5)

    async def _operate(self) -> None:
        """What made facts fail is mended; a person retries or discards each that died or is held."""
        self._outside.cured = True
        jobs = FailedJobs(SCHEMA, self.clock)
        db = SimDatabase(self._postgres, SCHEMA, 2)
        door, random = Door(db, Outbox(SCHEMA, lambda: None)), Random(f"operator/{self._plan.seed}")
        rows = self._look.ask(
            "select * from failed_jobs where status in ('held', 'dead') order by consumer, partition, record_offset"
        )
        for row in rows:
            discards = random.random() < 0.4
            self._note(self._loop.world, f"a person {'discards' if discards else 'retries'} {row['record_offset']}")
            if row["status"] == "dead" and row["event_id"] is not None:
                self._look.retried.add(row["event_id"])
            while True:
                try:
                    if discards:
                        await door.run(lambda tx, job=row["id"]: jobs.discard(tx, job, "me", "seen"))
                    else:
                        await door.run(lambda tx, job=row["id"]: jobs.retry(tx, job, "me"))
                except Conflict:
                    break  # the release of a known version was quicker
                except Exception as error:
                    if not is_rerun(error):
                        raise
                    await asyncio.sleep(0.1)
                else:
                    break
        await db.close()

    async def _rest(self) -> None:
        """Wait until nothing is left to do."""
        started_at = self._loop.time()
        while self._loop.time() - started_at < PATIENCE_S:
            await asyncio.sleep(0.4)
            if self._is_quiet():
                return
        self.report.wrong.append(f"no rest within {PATIENCE_S:.0f} s")

    def _is_quiet(self) -> bool:
        crash_to_come = self._plan.crash_at is not None and self._under_test is not None and not self._under_test.dead
        if crash_to_come or not self._members:
            return False
        rows = self._look.ask("select consumer, partition, next_offset from consumer_offsets")
        known = {(row["consumer"], row["partition"]): row["next_offset"] for row in rows}
        for consumer, topic in (("sim.first", FACTS.name), ("sim.second", DERIVED.name)):
            for name, log in self._kafka.logs.items():
                if name.topic == topic and log.end and known.get((consumer, name.partition), 0) != log.end:
                    return False
        (busy,) = self._look.ask(_BUSY)
        if self._plan.deploy_at_s is not None and self._look.ask(_HELD_FOR_A_KNOWN_VERSION):
            return False
        return not any(busy.values())

    def _appended(self, record: Record) -> None:
        key = record.key if record.topic != AUDIT.name else b"..."  # ids of failed jobs come from Postgres's clock
        self._note(self._loop.world, f"kafka {record.topic}/{record.partition} {record.offset} {key!r}")

    def _note(self, process: Process, what: str) -> None:
        line = f"{self._loop.time():10.5f} {process.name} {process.steps} {what}"
        self.report.trace.append(line)
        self.report.statements += 1
        self._hash.update(line.encode())
        if process is self._under_test and (not self.report.touched or self.report.touched[-1] != process.steps):
            self.report.touched.append(process.steps)

    def _clean_up(self) -> None:
        """Bury the processes, then give every connection back."""
        self._postgres.up = False
        for connection in tuple(self._postgres.connections):
            connection.break_off()
        for process in self._all:
            process.on_death.clear()
            self._loop.bury(process)
        self._loop.bury(self._loop.world)
        for connection in tuple(self._postgres.connections):
            connection.break_off()
        self._loop.close()


def simulate(plan: Plan, server: Server) -> Report:
    """Run a plan once."""
    return Run(plan, server).go()

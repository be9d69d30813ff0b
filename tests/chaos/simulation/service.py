"""The service under test, wired as shared.service wires one: two consumers, their retries, a relay, a worker.

`sim.first` takes facts, writes an effect, a claimed row and tells a derived fact; `sim.second` takes those.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import ClassVar, Final, Protocol
from uuid import UUID, uuid5

from sqlalchemy import text

from shared import work
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Database, Row, Tx
from shared.errors import NotYet, Permanent, Transient
from shared.messaging.consumer import Consumer, Policy
from shared.messaging.delivery import Delivery
from shared.messaging.door import Door
from shared.messaging.fuse import Fuse
from shared.messaging.lane import Lanes
from shared.messaging.outbox import Outbox
from shared.messaging.ports import Kafka
from shared.messaging.relay import Relay
from shared.messaging.retry import Retries
from tests.chaos.simulation.invariants import Performance
from tests.chaos.simulation.plan import OnUnknown, Plan

SCHEMA: Final = "sim"
DAY_ONE: Final = datetime(2030, 1, 1, 6, tzinfo=UTC)
FACTS: Final = Topic("sim.facts")
DERIVED: Final = Topic("sim.derived")
_EFFECT: Final = text(
    """
    insert into effects (consumer, event_id, key)
    select :consumer, r.id, r.key from unnest(cast(:ids as uuid[]), cast(:keys as text[])) with ordinality r(id, key, n)
    order by n
    """
)
_DONE: Final = text("select 1 from effects where consumer = 'sim.first' and event_id = :id")
_JOB: Final = text(
    "insert into jobs (id, lane, due_at, created_at) select id, :lane, :now, :now from unnest(cast(:ids as uuid[])) id"
)


class Fact(Event):
    type: ClassVar[str] = "sim.fact.told.v1"
    topic: ClassVar[Topic] = FACTS

    entity: str
    n: int

    @property
    def key(self) -> str:
        return self.entity


class FactV2(Fact):
    type: ClassVar[str] = "sim.fact.told.v2"


class Derived(Event):
    type: ClassVar[str] = "sim.fact.derived.v1"
    topic: ClassVar[Topic] = DERIVED

    entity: str

    @property
    def key(self) -> str:
        return self.entity


@dataclass
class Outside:
    """What is not the service's: it survives every crash."""

    plan: Plan
    random: Random
    clock: Clock
    ids: Sequence[UUID]
    note: Callable[[str], None]
    tries: Counter[int] = field(default_factory=Counter[int])
    performed: list[Performance] = field(default_factory=list[Performance])
    cured: bool = False  # what failed works now

    async def perform(self, row: Row) -> work.Performed:
        """The effect of a claimed row, somewhere between two waits."""
        await asyncio.sleep(self.random.uniform(0, 2 if self.random.random() < 0.2 else 0.02))
        if self.random.random() < self.plan.sink_fails:
            if self.random.random() < 0.5:
                raise Transient("the other side is away")
            self._do(row)
            raise work.OutcomeUnknown("the other side did not answer")
        self._do(row)
        await asyncio.sleep(self.random.uniform(0, 0.02))
        return work.Performed()

    def _do(self, row: Row) -> None:
        self.note(f"performed, uncertain={row['uncertain']}")
        self.performed.append(Performance(row["id"], row["uncertain"]))

    async def look_up(self, row: Row) -> bool:
        """Whether it has happened."""
        await asyncio.sleep(self.random.uniform(0, 0.02))
        return any(one.id == row["id"] for one in self.performed)

    async def behave(self, fact: Fact, tx: Tx) -> None:
        """Raise what the plan says of this fact."""
        plan = self.plan.facts[fact.n]
        if self.cured:
            return
        self.tries[fact.n] += 1
        if plan.kind == "hopeless" or (plan.kind == "transient" and self.tries[fact.n] <= plan.times):
            raise Transient("not now")
        if plan.kind == "permanent":
            raise Permanent("never")
        if plan.kind == "not_yet" and not await tx.fetchval(_DONE, id=self.ids[plan.needs]):
            raise NotYet("something else first")


class Runner(Protocol):
    name: str

    def run(self) -> Awaitable[None]: ...


class Service:
    """One process. `main()` runs it until cancelled, which is a graceful stop."""

    def __init__(
        self, outside: Outside, db: Database, kafka: Kafka, member: str, seed: int, *, knows_next: bool
    ) -> None:
        plan, loop = outside.plan, asyncio.get_running_loop()
        self._outside = outside
        self._db = db
        self.relay = Relay(SCHEMA, db, kafka)
        # Every time-out is a fifth of what it is, in one proportion with the server's: runs are shorter so.
        self.relay.answer_s, self.relay.frozen_s, self.relay.look_again_s = 2.0, 6.0, 6.0  # type: ignore[misc]
        outbox = Outbox(SCHEMA, self.relay.wake)
        policy = Policy(
            delays_s=(0.2, 0.4, 0.8),
            not_yet_delays_s=(0.3, 0.6, 1.2, 2.4, 5.0, 10.0),
            hold=plan.hold,
            fuse_keys=plan.fuse_keys,
            probe_every_s=2.0,
        )
        first, second = Consumer("sim.first", policy, max_batch=8), Consumer("sim.second", policy, max_batch=8)
        if plan.batch:
            first.on_batch(Fact, self._take_all)
        else:
            first.on(Fact, self._take)
        if knows_next:
            first.on(FactV2, self._take)
        second.on_batch(Derived, self._note)
        self.runners: list[Runner] = []
        for number, consumer in enumerate((first, second)):
            fuse = Fuse(consumer.name, policy, loop.time)
            lanes = Lanes(consumer, db, outbox, fuse, outside.clock, Random(seed + number))
            delivery = Delivery(consumer, kafka, member, db, lanes, fuse, outside.clock)
            lanes.deadline_s, delivery.drain_s, delivery.answer_s = 6.0, 2.4, 1.0  # type: ignore[misc]
            self.runners += [
                delivery,
                Retries(consumer, db, outbox, lanes, fuse, outside.clock, Random(seed + number)),
            ]
        on_unknown: OnUnknown = plan.on_unknown
        tokens = Random(seed)
        policy_of_work = work.Policy(lease_s=3.0, poll_s=1.0, base_s=0.1, cap_s=1.0, max_attempts=12, stop_s=2.0)
        self._worker = work.Worker(
            work.Work(
                "sim.sink",
                "jobs",
                outside.perform,
                on_unknown,
                settled=work.one_by_one(self._settled),
                look_up=outside.look_up if on_unknown == "look_up" else None,
                policy=policy_of_work,
            ),
            Door(db, outbox),
            outside.clock,
            draw=Random(seed).random,
            new_token=lambda: UUID(int=tokens.getrandbits(128)),
        )
        self.runners.append(self._worker)

    async def main(self) -> None:
        """Run everything; at the end stop as shared.service does, the relay last."""
        relay = asyncio.create_task(self._supervise(self.relay))
        others = [asyncio.create_task(self._supervise(one)) for one in self.runners]
        try:
            await asyncio.gather(*others)
        finally:
            for tasks in (others, [relay]):
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await self._db.close()

    async def _supervise(self, runner: Runner) -> None:
        while True:
            try:
                await runner.run()
            except Exception as error:  # noqa: BLE001 - as shared.service does: told, and started again
                self._outside.note(f"{runner.name} broke: {error!r}")
            await asyncio.sleep(1)

    async def _take(self, fact: Fact, tx: Tx) -> list[Event]:
        return await self._take_all([fact], tx)

    async def _take_all(self, facts: Sequence[Fact], tx: Tx) -> list[Event]:
        for fact in facts:
            await self._outside.behave(fact, tx)
            await self._write("sim.first", [fact], tx)
        jobs = [uuid5(fact.id, "job") for fact in facts]
        lane = "left" if facts[0].n % 3 == 0 else None
        await tx.execute(_JOB, ids=jobs, lane=lane, now=self._outside.clock())
        tx.after_commit(self._worker.wake)
        return [Derived.caused_by(fact, entity=fact.entity) for fact in facts]

    async def _note(self, events: Sequence[Derived], tx: Tx) -> list[Event]:
        await self._write("sim.second", events, tx)
        return []

    async def _settled(self, settled: work.Settled, tx: Tx) -> list[Event]:
        """What a service does at the end of an effect; it must be once."""
        await tx.execute(_EFFECT, consumer="sim.sink", ids=[settled.row["id"]], keys=[settled.status])
        return []

    async def _write(self, consumer: str, events: Sequence[Fact] | Sequence[Derived], tx: Tx) -> None:
        await tx.execute(
            _EFFECT, consumer=consumer, ids=[one.id for one in events], keys=[one.entity for one in events]
        )

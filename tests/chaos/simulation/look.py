"""Looking at a run: what lies in Postgres, in Kafka and outside, handed to the invariants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.messaging.record import Record
from tests.chaos.simulation import invariants
from tests.chaos.simulation.database import Server
from tests.chaos.simulation.invariants import Fate, Job, Observed, Row, Seen
from tests.chaos.simulation.service import DAY_ONE, DERIVED, FACTS, Derived, Fact, Outside
from tests.fakes.kafka import MemoryKafka


@dataclass
class Look:
    """`fates` says what may become of the record at a place; `retried` whom a person ran again out of order."""

    _server: Server
    _kafka: MemoryKafka
    _outside: Outside
    fates: dict[tuple[int, int], tuple[UUID | None, Fate]] = field(
        default_factory=dict[tuple[int, int], tuple[UUID | None, Fate]]
    )
    retried: set[UUID] = field(default_factory=set[UUID])

    def ask(self, sql: str) -> list[Any]:
        """Ask beside the processes."""
        return self._server.run(self._server.monitor.fetch(sql))  # type: ignore[arg-type]

    def violations(self, *, final: bool) -> list[str]:
        """Say what does not hold: at any time, or when all is at rest."""
        first, second = self._observe("sim.first", FACTS.name), self._observe("sim.second", DERIVED.name)
        found = [*invariants.offsets_behind_what_is_settled(first), *invariants.offsets_behind_what_is_settled(second)]
        if not final:
            return found
        for seen in (first, second):
            found += [*invariants.done_or_parked(seen), *invariants.in_order(seen), *invariants.at_rest(seen)]
        rows = [
            Row(row["id"], row["status"], row["lease_until"] is not None or row["token"] is not None)
            for row in self.ask("select id, status, lease_until, token from jobs")
        ]
        ended = [row["event_id"] for row in self.ask("select event_id from effects where consumer = 'sim.sink'")]
        found += invariants.outside(rows, self._outside.performed, self._outside.plan.on_unknown, ended)
        made = [
            (
                row["key"].encode(),
                Derived.caused_by(Fact(id=row["event_id"], time=DAY_ONE, entity="", n=0), entity="").id,
            )
            for row in self.ask("select key, event_id from effects where consumer = 'sim.first' order by n")
        ]
        arrived = [(one.key or b"", _id_of(one)) for one in self._kafka.records(DERIVED.name)]
        (outbox,) = self.ask("select count(*) from outbox")
        found += invariants.told(made, arrived, outbox["count"])
        found += self._letters((first, second))
        return found

    def _letters(self, consumers: Sequence[Observed]) -> Iterator[str]:
        """Every row that died or is held after a failure of its own lies in the dead-letter topic too."""
        for seen in consumers:
            letters = {_place_of(one) for one in self._kafka.records(f"{seen.consumer}.dlq")}
            rows = {job.place for job in seen.jobs if job.status in {"dead", "held"}}
            mended = self._outside.cured or self._outside.plan.deploy_at_s is not None  # their letters stay
            if not rows <= letters or (rows != letters and not mended):
                yield f"{seen.consumer}: {sorted(rows)} are dead or held, and its letters tell of {sorted(letters)}"

    def _observe(self, consumer: str, topic: str) -> Observed:
        jobs = [
            Job(
                (row["partition"], row["record_offset"]),
                row["key"],
                row["event_id"],
                row["status"],
                row["due_at"] is not None,
            )
            for row in self.ask(f"select * from failed_jobs where consumer = '{consumer}'")
        ]
        effects = self.ask(f"select event_id from effects where consumer = '{consumer}' order by n")
        inbox = self.ask(f"select event_id from inbox where consumer = '{consumer}'")
        offsets = self.ask(f"select partition, next_offset from consumer_offsets where consumer = '{consumer}'")
        shown = {name.partition: offset for (group, name), offset in self._kafka.committed.items() if group == consumer}
        return Observed(
            consumer,
            [self._seen(record) for record in self._kafka.records(topic)],
            [row["event_id"] for row in effects],
            jobs,
            frozenset(row["event_id"] for row in inbox),
            {row["partition"]: row["next_offset"] for row in offsets},
            shown,
            frozenset(self.retried),
        )

    def _seen(self, record: Record) -> Seen:
        place = record.partition, record.offset
        if record.topic == FACTS.name:
            event, fate = self.fates[place]
            mended = self._outside.cured and fate == "parked" and event is not None
            released = self._outside.plan.deploy_at_s is not None and record.header(b"ce_type") == b"sim.fact.told.v2"
            return Seen(place, record.key, event, "either" if mended or released else fate)
        return Seen(place, record.key, _id_of(record), "done")


def _id_of(record: Record) -> UUID:
    return UUID((record.header(b"ce_id") or b"").decode())


def _place_of(letter: Record) -> tuple[int, int]:
    partition, offset = letter.header(b"openbell-dlq-partition"), letter.header(b"openbell-dlq-offset")
    return int(partition or -1), int(offset or -1)

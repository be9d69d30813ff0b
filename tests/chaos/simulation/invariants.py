"""What must hold, said over what was seen: plain data in, sentences about what is wrong out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

Fate = Literal["done", "parked", "either", "passed"]
Place = tuple[int, int]
"""(partition, offset)"""


@dataclass(frozen=True)
class Seen:
    """A record in the log, and what may become of it. `event` is None where its headers give no id."""

    place: Place
    key: bytes | None
    event: UUID | None
    fate: Fate


@dataclass(frozen=True)
class Job:
    """A row of failed_jobs."""

    place: Place
    key: bytes | None
    event: UUID | None
    status: str
    due: bool


@dataclass(frozen=True)
class Observed:
    """Everything about one consumer: its log, what it did, and what it wrote down."""

    consumer: str
    log: Sequence[Seen]
    effects: Sequence[UUID]  # in the order in which they took effect
    jobs: Sequence[Job]
    inbox: frozenset[UUID]
    offsets: Mapping[int, int]  # partition -> next offset, as stored
    shown: Mapping[int, int] = field(default_factory=dict[int, int])  # the same, as Kafka was told
    retried: frozenset[UUID] = frozenset()  # what a person ran again after its key had been released


def offsets_behind_what_is_settled(seen: Observed) -> Iterator[str]:
    """No offset stands past an unsettled record. Holds at any time."""
    parked = {job.place for job in seen.jobs}
    for record in seen.log:
        partition, offset = record.place
        settled = record.fate == "passed" or record.event in seen.inbox or record.place in parked
        if offset < seen.offsets.get(partition, 0) and not settled:
            yield f"{seen.consumer}: the stored offset of partition {partition} is past the unsettled {offset}"
    for partition, offset in seen.shown.items():
        if offset > seen.offsets.get(partition, 0):
            yield f"{seen.consumer}: Kafka was told {offset} of partition {partition}, Postgres knows less"


def done_or_parked(seen: Observed) -> Iterator[str]:
    """Each event took effect once, or lies in failed_jobs; never both, never neither."""
    effects = Counter(seen.effects)
    fates = {record.event or record.place: record for record in reversed(seen.log)}
    jobs: dict[UUID | Place, list[Job]] = {}
    for job in seen.jobs:
        jobs.setdefault(job.event or job.place, []).append(job)
    for name, record in fates.items():
        rows = [job for job in jobs.get(name, ()) if job.status != "resolved"]
        times = effects.get(record.event, 0) if record.event else 0
        about = f"{seen.consumer}: the record at {record.place} of key {record.key!r}"
        behind = any(row.status == "waiting" and _behind(row, seen.jobs) for row in rows)
        if record.fate == "passed":
            if times or rows:
                yield f"{about} is not its business, and it dealt with it"
        elif times > 1:
            yield f"{about} took effect {times} times: a duplicate"
        elif times and rows:
            yield f"{about} took effect and is {rows[0].status}: both"
        elif not times and not rows:
            yield f"{about} neither took effect nor is parked: lost"
        elif len(rows) > 1:
            yield f"{about} is parked {len(rows)} times"
        elif record.fate == "done" and not times and not behind:
            yield f"{about} should have taken effect and is {rows[0].status}"
        elif record.fate == "parked" and times:
            yield f"{about} should have been refused and took effect"
    for event in effects.keys() - {record.event for record in seen.log}:
        yield f"{seen.consumer}: an effect of {event}, which is not in the log"


def in_order(seen: Observed) -> Iterator[str]:
    """The effects of a key stand in the order of its log. What died left a gap, and the rest is in order."""
    first = {record.event: record for record in reversed(seen.log)}
    last: dict[tuple[int, bytes], Place] = {}
    for event in seen.effects:
        record = first.get(event)
        if record is None or record.key is None or event in seen.retried:
            continue
        lane = (record.place[0], record.key)
        if lane in last and record.place < last[lane]:
            yield f"{seen.consumer}: {record.place} of key {record.key!r} took effect after {last[lane]}: out of order"
        last[lane] = max(last.get(lane, record.place), record.place)


def at_rest(seen: Observed) -> Iterator[str]:
    """All is read, and nothing waits but behind what a person holds."""
    ends: dict[int, int] = {}
    for record in seen.log:
        ends[record.place[0]] = max(ends.get(record.place[0], 0), record.place[1] + 1)
    for partition, end in ends.items():
        if seen.offsets.get(partition, 0) != end:
            yield f"{seen.consumer}: partition {partition} ends at {end}, read up to {seen.offsets.get(partition, 0)}"
    for job in seen.jobs:
        if job.status == "waiting" and not _behind(job, seen.jobs):
            when = "is due and was never run" if job.due else "has no due time though its fence is open: stranded"
            yield f"{seen.consumer}: the waiting row of {job.place} of key {job.key!r} {when}"


def _behind(job: Job, jobs: Sequence[Job]) -> bool:
    """Whether a person holds what stands before it."""
    return job.key is not None and any(
        one.status == "held" and one.key == job.key and one.place[0] == job.place[0] and one.place < job.place
        for one in jobs
    )


@dataclass(frozen=True)
class Row:
    """A claimed row at the end of a run."""

    id: UUID
    status: str
    leased: bool


@dataclass(frozen=True)
class Performance:
    """One effect on the outside: was it performed as a possible repetition?"""

    id: UUID
    uncertain: bool


def outside(rows: Sequence[Row], sink: Sequence[Performance], on_unknown: str, ended: Sequence[UUID]) -> Iterator[str]:
    """Each claimed row was performed once; again only as a repetition that is marked, where its policy says so."""
    certain = Counter(one.id for one in sink if not one.uncertain)
    times = Counter(one.id for one in sink)
    for row in rows:
        if row.leased or row.status in {"claimed", "started"}:
            yield f"work {row.id} is {row.status} with a lease of the dead"
        if row.status == "pending":
            yield f"work {row.id} was never performed"
        if row.status == "done" and not times[row.id]:
            yield f"work {row.id} is done and was not performed: lost"
        if row.status == "failed" and times[row.id]:
            yield f"work {row.id} failed and was performed"
        if certain[row.id] > 1:
            yield f"work {row.id} was performed {certain[row.id]} times without a mark: a duplicate"
        if on_unknown == "leave" and times[row.id] > 1:
            yield f"work {row.id} was repeated, and its policy is to leave it"
        if (ends := ended.count(row.id)) != 1:
            yield f"the end of work {row.id} was recorded {ends} times"
    for stranger in times.keys() - {row.id for row in rows}:
        yield f"work {stranger} was performed and is nowhere written"


def told(effects: Sequence[tuple[bytes, UUID]], log: Sequence[tuple[bytes, UUID]], left: int) -> Iterator[str]:
    """The outbox is drained: `log` tells what `effects` made, (key, id) each, in the order of each key."""
    if left:
        yield f"the outbox holds {left} rows"
    for key in {key for key, _ in (*effects, *log)}:
        made = [event for one, event in effects if one == key]
        arrived = list(dict.fromkeys(event for one, event in log if one == key))
        if sorted(made) != sorted(arrived):
            yield f"of key {key!r} {len(made)} events were made and {len(arrived)} arrived in Kafka"
        elif made != arrived:
            yield f"the events of key {key!r} lie out of order in Kafka"

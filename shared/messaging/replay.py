"""Replay: read a topic's range again into one consumer.

    python -m services.detector replay detector.chains --topic data.chains --since 1h [--dry-run] [--rate 500]

By default (`--missing`) every event passes through the inbox: only what was never dealt with runs. It ends where the
consumer's own place is (`consumer_offsets`): what lies ahead of it is read by the consumer anyway, and run from here it
would overtake what comes before it. What runs late runs after newer events that the consumer has had already; to keep
the order, replay while the consumer's service is stopped. `--again RUN`
deliberately runs all of them once more under that run's name: each event takes an id derived from its own and
RUN, so that derived events are new facts, and a second replay of the same RUN does nothing. Order against live
events is not promised then, so consumers that hold refuse it. Failures are parked as usual.
"""

import argparse
import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid5

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError
from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database
from shared.errors import Invalid
from shared.messaging import raw_fetch
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode
from shared.messaging.kafka import KafkaAddress, Reader
from shared.messaging.lane import Lanes
from shared.messaging.record import Record, open_envelope

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PLACES: Final = text(
    "select partition, next_offset, cluster from consumer_offsets where consumer = :consumer and topic = :topic"
)
_SEEN: Final = text("select event_id from inbox where consumer = :consumer and event_id = any(cast(:ids as uuid[]))")


@dataclass(frozen=True, slots=True)
class Range:
    """What to read: a topic from offsets or times on, up to where the consumer is now (`again`: what is there now)."""

    topic: str
    partition: int | None = None
    from_offset: int | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(slots=True)
class Progress:
    """How far a replay is: counts, and for each partition the next offset and the one to stop before.

    `ahead` counts the offsets between the consumer's place and Kafka's end, which are left to the consumer.
    """

    counts: Counter[str] = field(
        default_factory=lambda: Counter(read=0, skipped=0, known=0, run=0, nameless=0, ahead=0)
    )
    following: dict[int, int] = field(default_factory=dict[int, int])
    ends: dict[int, int] = field(default_factory=dict[int, int])

    @classmethod
    def read(cls, written: Mapping[str, Any], counts: Mapping[str, int]) -> "Progress":
        """Read back what `written` gave."""
        progress = cls()
        progress.counts.update(counts)
        for name, place in (("following", progress.following), ("ends", progress.ends)):
            place.update({int(number): offset for number, offset in written.get(name, {}).items()})
        return progress

    def written(self) -> dict[str, Any]:
        """Return the offsets as JSON."""
        return {
            "following": {str(number): offset for number, offset in self.following.items()},
            "ends": {str(number): offset for number, offset in self.ends.items()},
        }


class Replay:
    """Reads a range again into one consumer of a service."""

    def __init__(self, consumer: Consumer, lanes: Lanes, db: Database, address: KafkaAddress, clock: Clock) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._db = db
        self._address = address
        self._clock = clock

    def check(self, wanted: Range, again: str | None) -> Range:
        """Return the range with its topic, which is the consumer's only one by default.

        Raises Invalid for a topic that the consumer does not read and for `again` on a consumer that holds.
        """
        topics = [topic.name for topic in self._consumer.topics]
        if not wanted.topic and len(topics) == 1:
            wanted = replace(wanted, topic=topics[0])
        if wanted.topic not in topics:
            raise Invalid(f"{self._consumer.name} reads {', '.join(topics)}: say which; {wanted.topic!r} is none")
        if again is not None and self._consumer.policy.hold:
            raise Invalid(f"{self._consumer.name} keeps its keys in order and cannot run events again")
        return wanted

    async def run(
        self, wanted: Range, *, again: str | None = None, dry_run: bool = False, rate: float | None = None
    ) -> Counter[str]:
        """Replay; return how many records were read, skipped (no handler), known, run (or would be), and left ahead.

        Events without a readable id are `nameless`: they park once and then stay as they are. Raises as `check`.
        """
        progress = Progress()
        async with aclosing(self.steps(wanted, progress, again=again, dry_run=dry_run, rate=rate)) as steps:
            async for _ in steps:
                pass
        return progress.counts

    async def steps(
        self,
        wanted: Range,
        progress: Progress,
        *,
        again: str | None = None,
        dry_run: bool = False,
        rate: float | None = None,
    ) -> AsyncGenerator[None]:
        """Replay page by page from where `progress` stands; it is true whenever a page is yielded.

        Raises Invalid as `check` does, FuseOpen while the consumer is stopped, KafkaError.
        """
        wanted = self.check(wanted, again)
        size = min(self._consumer.max_batch, max(1, int(rate))) if rate else self._consumer.max_batch
        async with aclosing(self._read(wanted, progress, size, to_the_end=again is not None)) as pages:
            async for number, after, records in pages:
                began = time.monotonic()
                now = self._clock()
                items = [item for record in records if (item := self._item(record, again, now)) is not None]
                counts = await self._counted(records, items)
                if not dry_run:
                    await self._lanes.settle(items, asyncio.Event())
                progress.counts.update(counts)
                progress.following[number] = after
                if rate:
                    await asyncio.sleep(max(0.0, len(items) / rate - (time.monotonic() - began)))
                yield

    async def _counted(self, records: Sequence[Record], items: Sequence[Item]) -> Counter[str]:
        ids = {item.event_id for item in items if item.event_id is not None}
        async with self._db.read() as tx:
            known = {row["event_id"] for row in await tx.fetch(_SEEN, consumer=self._consumer.name, ids=list(ids))}
        nameless = sum(item.event_id is None for item in items)
        return Counter(
            read=len(records),
            skipped=len(records) - len(items),
            nameless=nameless,
            run=len(ids - known),
            known=len(items) - nameless - len(ids - known),
        )

    def _item(self, record: Record, again: str | None, now: datetime) -> Item | None:
        if again is not None:
            record = _renamed(record, again)
        return decode(self._consumer, record, now)

    async def _read(
        self, wanted: Range, progress: Progress, size: int, *, to_the_end: bool
    ) -> AsyncGenerator[tuple[int, int, list[Record]]]:
        """Yield (partition, offset after it, records) by page, one partition after the other."""
        kafka = Reader(**self._address.connection(), enable_auto_commit=False, isolation_level="read_committed")
        try:
            await kafka.start()
            await know_topics(kafka)
            numbers = sorted(kafka.partitions_for_topic(wanted.topic) or ())
            parts = [TopicPartition(wanted.topic, one) for one in numbers if wanted.partition in {None, one}]
            if not parts:
                raise Invalid(f"{wanted.topic} has no partition {wanted.partition}")
            kafka.assign(parts)
            if not progress.ends:
                await self._set_ends(kafka, parts, progress, to_the_end=to_the_end)
            for part in parts:
                number = part.partition
                following = progress.following.get(number) or await _start(kafka, part, wanted)
                while following < progress.ends[number]:
                    found, after = await raw_fetch.fetch(kafka, part, following)
                    if after == following:
                        raise KafkaConnectionError(
                            f"{part} gave nothing at {following}, before {progress.ends[number]}"
                        )
                    records = [
                        one
                        for one in found
                        if isinstance(one, Record) and one.offset < progress.ends[number] and _wanted(one, wanted)
                    ]
                    for first in range(0, len(records), size):
                        page = records[first : first + size]
                        yield number, page[-1].offset + 1, page
                    following = after
                    yield number, after, []
        finally:
            await kafka.stop()

    async def _set_ends(
        self, kafka: Reader, parts: Sequence[TopicPartition], progress: Progress, *, to_the_end: bool
    ) -> None:
        """Set where each partition ends: at the consumer's place, if it has one in this Kafka; else nothing is read."""
        async with self._db.read() as tx:
            rows = await tx.fetch(_PLACES, consumer=self._consumer.name, topic=parts[0].topic)
        cluster = await kafka.cluster_id()
        firsts, ends = await kafka.beginning_offsets(parts), await kafka.end_offsets(parts)
        places = {
            row["partition"]: row["next_offset"]
            for row in rows
            if not (row["cluster"] and cluster and row["cluster"] != cluster)
        }
        for part in parts:
            first, end, place = firsts[part], ends[part], places.get(part.partition, 0)
            if place > end:
                place = 0  # of a longer log: the consumer reads this one from its start
            progress.ends[part.partition] = end if to_the_end else place
            progress.counts["ahead"] += 0 if to_the_end else end - max(place, first)


async def know_topics(kafka: AIOKafkaConsumer) -> None:
    """Learn all topics with their partitions, which a client that follows none does not. Raises KafkaError.

    `topics()` would tell their names and forget the rest.
    """
    client: Any = kafka._client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - aiokafka has no public way
    if not await client.force_metadata_update():
        raise KafkaConnectionError("no broker tells which topics there are")


async def _start(kafka: AIOKafkaConsumer, part: TopicPartition, wanted: Range) -> int:
    first: int = (await kafka.beginning_offsets([part]))[part]
    if wanted.since is not None:
        found = (await kafka.offsets_for_times({part: int(wanted.since.timestamp() * 1000)}))[part]
        if found is None:
            return int((await kafka.end_offsets([part]))[part])
        return int(found.offset)
    return max(first, wanted.from_offset or 0)


def _wanted(record: Record, wanted: Range) -> bool:
    return wanted.until is None or record.time is None or record.time < wanted.until


def _renamed(record: Record, run: str) -> Record:
    """Give the event the id that it has in that run; a record without a readable envelope stays as it is."""
    try:
        envelope = open_envelope(dict(record.headers))
    except ValueError:
        return record
    fresh = str(uuid5(envelope.id, f"replay/{run}")).encode()
    headers = tuple((name, fresh if name == b"ce_id" else value) for name, value in record.headers)
    return replace(record, headers=headers)


def parse(arguments: Sequence[str], now: datetime) -> tuple[str, Range, argparse.Namespace]:
    """Read the command line after `replay`; exits with a usage message when it is wrong."""
    parser = argparse.ArgumentParser(prog="replay", description="Read a topic's range again into one consumer.")
    parser.add_argument("consumer", help="for example detector.chains")
    parser.add_argument("--topic", help="the consumer's only topic by default")
    parser.add_argument("--partition", type=int)
    parser.add_argument("--from-offset", type=int)
    parser.add_argument("--since", type=lambda word: moment(word, now), help="a time, or an age such as 90m")
    parser.add_argument("--until", type=lambda word: moment(word, now))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--missing", action="store_true", help="only what was never dealt with (the default)")
    which.add_argument("--again", metavar="RUN", help="run all of them again, under this name")
    parser.add_argument("--dry-run", action="store_true", help="count, change nothing")
    parser.add_argument("--rate", type=float, help="events a second, at most")
    found = parser.parse_args(arguments)
    return found.consumer, Range(found.topic or "", found.partition, found.from_offset, found.since, found.until), found


def moment(word: str, now: datetime) -> datetime:
    """Read `90m`, `2h`, `7d` as ages, anything else as an ISO time with its zone. Raises ValueError."""
    if match := re.fullmatch(r"(\d+)([smhd])", word):
        return now - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    found = datetime.fromisoformat(word)
    if found.tzinfo is None:
        raise ValueError(f"{word} has no time zone")
    return found


def report(counts: Counter[str], *, dry_run: bool) -> None:
    """Print what happened."""
    verb = "would run" if dry_run else "ran"
    sys.stdout.write(
        f"read {counts['read']}, {verb} {counts['run']}, already known {counts['known']}, "
        f"no handler {counts['skipped']}, no readable id {counts['nameless']}; what failed is in failed jobs\n"
        f"ahead of the consumer, left for it to read: {counts['ahead']}\n"
    )

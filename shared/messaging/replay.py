"""Replay: read a topic's range again into one consumer.

    python -m services.detector replay detector.chains --topic data.chains --since 1h [--dry-run] [--rate 500]

By default (`--missing`) every event passes through the inbox: only what was never dealt with runs. `--again RUN`
deliberately runs all of them once more under that run's name: each event takes an id derived from its own and
RUN, so that derived events are new facts, and a second replay of the same RUN does nothing. Order against live
events is not promised then, so consumers that hold refuse it. Failures are parked as usual.
"""

import argparse
import asyncio
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid5

from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database
from shared.errors import Invalid
from shared.messaging import raw_fetch
from shared.messaging.consumer import Consumer
from shared.messaging.decode import Item, decode
from shared.messaging.kafka import KafkaAddress
from shared.messaging.lane import Lanes
from shared.messaging.record import Record, lane_of, open_envelope

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SEEN: Final = text("select event_id from inbox where consumer = :consumer and event_id = any(cast(:ids as uuid[]))")


@dataclass(frozen=True, slots=True)
class Range:
    """What to read: a topic from offsets or times on, up to what is there now (or a time)."""

    topic: str
    partition: int | None = None
    from_offset: int | None = None
    since: datetime | None = None
    until: datetime | None = None


class Replay:
    """Reads a range again into one consumer of a service."""

    def __init__(self, consumer: Consumer, lanes: Lanes, db: Database, address: KafkaAddress, clock: Clock) -> None:
        self._consumer = consumer
        self._lanes = lanes
        self._db = db
        self._address = address
        self._clock = clock

    async def run(
        self, wanted: Range, *, again: str | None = None, dry_run: bool = False, rate: float | None = None
    ) -> Counter[str]:
        """Replay; return how many records were read, skipped (no handler), already known and run (or would be).

        Raises Invalid for a topic that the consumer does not read and for `again` on a consumer that holds.
        """
        topics = [topic.name for topic in self._consumer.topics]
        if wanted.topic not in topics:
            raise Invalid(f"{self._consumer.name} does not read {wanted.topic}; it reads {', '.join(topics)}")
        if again is not None and self._consumer.policy.hold:
            raise Invalid(f"{self._consumer.name} keeps its keys in order and cannot run events again")
        counts: Counter[str] = Counter(read=0, skipped=0, known=0, run=0)
        async for records in self._read(wanted):
            began = time.monotonic()
            counts["read"] += len(records)
            now = self._clock()
            items = [item for record in records if (item := self._item(record, again, now)) is not None]
            counts["skipped"] += len(records) - len(items)
            known = await self._known(items)
            counts["known"] += known
            counts["run"] += len(items) - known
            if not dry_run:
                await self._settle(items)
            if rate:
                await asyncio.sleep(max(0.0, len(items) / rate - (time.monotonic() - began)))
        return counts

    def _item(self, record: Record, again: str | None, now: datetime) -> Item | None:
        if again is not None:
            record = _renamed(record, again)
        return decode(self._consumer, record, now)

    async def _known(self, items: Sequence[Item]) -> int:
        ids = [item.event_id for item in items if item.event_id is not None]
        async with self._db.read() as tx:
            return len(await tx.fetch(_SEEN, consumer=self._consumer.name, ids=ids))

    async def _settle(self, items: Sequence[Item]) -> None:
        lanes: defaultdict[int, list[Item]] = defaultdict(list)
        for item in items:
            lanes[lane_of(item.record, Lanes.count)].append(item)
        never = asyncio.Event()
        await asyncio.gather(*(self._lanes.settle(lane, some, never) for lane, some in lanes.items()))

    async def _read(self, wanted: Range) -> AsyncGenerator[list[Record]]:
        """Yield the range's records, one partition after the other, in pages."""
        kafka = AIOKafkaConsumer(bootstrap_servers=self._address.bootstrap, enable_auto_commit=False)
        await kafka.start()
        try:
            await kafka.topics()  # partitions are known only after somebody asked
            numbers = sorted(kafka.partitions_for_topic(wanted.topic) or ())
            parts = [TopicPartition(wanted.topic, one) for one in numbers if wanted.partition in {None, one}]
            if not parts:
                raise Invalid(f"{wanted.topic} has no partition {wanted.partition}")
            kafka.assign(parts)
            ends = await kafka.end_offsets(parts)
            for part in parts:
                following = await _start(kafka, part, wanted)
                while following < ends[part]:
                    found, after = await raw_fetch.fetch(kafka, part, following)
                    if after == following:
                        break
                    following = after
                    records = [one for one in found if isinstance(one, Record) and _wanted(one, wanted)]
                    for first in range(0, len(records), self._consumer.max_batch):
                        yield records[first : first + self._consumer.max_batch]
        finally:
            await kafka.stop()


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
        f"no handler {counts['skipped']}; what failed is in failed jobs\n"
    )

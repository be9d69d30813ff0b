"""Lanes: some keys of one partition, in order, in one transaction with inbox, fence, handlers and outbox.

    lock the lanes > insert inbox rows > read the fence > run handlers > park what failed > add events > commit

Lanes run at once, which is what handlers of one event need: each waits for Postgres. A few events, and the batch of a
batch handler while all goes well and fast, take all their lanes in one transaction: fewer round trips. Such a batch
stores the partition's position with its inbox rows (docs/adr/0009 has the figures).

What fails outside a handler (an event that cannot be published, a constraint at the commit) halves the lane until the
failing record stands alone; it is then parked. What is not the event's fault (deadlock, lost connection, unknown
commit) runs again and never counts.
"""

import asyncio
import logging
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import text

from shared import telemetry
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Database, Row, Tx, is_rerun
from shared.errors import Transient
from shared.messaging import metrics
from shared.messaging.consumer import Consumer
from shared.messaging.deadline import TookTooLong, cut_off
from shared.messaging.decode import Item
from shared.messaging.failed import BEHIND, Failure, Lane, Parked, dead_letter, fenced_keys, judge, park, settle_heads
from shared.messaging.fuse import Fuse
from shared.messaging.handling import Pace, run
from shared.messaging.outbox import Message, Outbox
from shared.messaging.record import Record, lane_of

T = TypeVar("T")

_ENTER: Final = text(
    """
    with locked as materialized (
        select pg_advisory_xact_lock(cast(:space as int), lane) from unnest(cast(:lanes as int[])) lane
    ), ready as materialized (select count(*) from locked
    ), stored as (
        insert into consumer_offsets (consumer, topic, partition, next_offset, cluster)
        select :consumer, :topic, :partition, :next_offset, :cluster from ready
        where cast(:next_offset as bigint) is not null
        on conflict (consumer, topic, partition) do update
        set next_offset = excluded.next_offset, cluster = coalesce(excluded.cluster, consumer_offsets.cluster),
            updated_at = now()
    )
    insert into inbox (consumer, event_id, day)
    select :consumer, r.event_id, r.day
    from ready, unnest(cast(:ids as uuid[]), cast(:days as date[])) r(event_id, day)
    on conflict do nothing
    returning event_id
    """
)
_LOCK_LANE: Final = text("select pg_advisory_xact_lock(cast(:space as int), cast(:lane as int))")

_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """Where to read a partition on, and the name of the Kafka that this is true of, where it has one."""

    next_offset: int
    cluster: str | None


class Stopped(Exception):  # not an error: the way out of a retry loop at shutdown
    """The partition is being given up; nothing more is settled."""


class FuseOpen(Exception):  # not an error: the batch is read again when the fuse closes
    """The consumer's fuse opened while a batch was under way."""


class TooManyWaiting(Transient):
    """Too many rows wait behind failing keys; the partition stands until some are done."""

    code = "TOO_MANY_WAITING"


def lane_space(consumer: str, topic: str, partition: int) -> int:
    """Return the first half of a lane's advisory lock."""
    return zlib.crc32(f"lane/{consumer}/{topic}/{partition}".encode()) - 2**31


def lane_of_row(row: Row) -> Lane:
    """Return the lane that a row of failed_jobs belongs to."""
    record = Record(row["topic"], row["partition"], row["record_offset"], row["key"], None, ())
    return row["consumer"], row["topic"], row["partition"], lane_of(record, Lanes.count)


async def lock_lane(tx: Tx, lane: Lane) -> None:
    """Lock a lane until the commit: nothing else runs there, nor parks behind a key of it."""
    consumer, topic, partition, number = lane
    await tx.execute(_LOCK_LANE, space=lane_space(consumer, topic, partition), lane=number)


class Lanes:
    """Settles items of one consumer; every transaction of live records goes through here."""

    count: Final = 4
    few: Final = 16
    quick_s: Final = 0.5
    deadline_s: Final = 30.0

    def __init__(  # noqa: PLR0917 - wired in one place, shared.service
        self, consumer: Consumer, db: Database, outbox: Outbox, fuse: Fuse, clock: Clock, random: Random
    ) -> None:
        self._consumer = consumer
        self._db = db
        self._outbox = outbox
        self._fuse = fuse
        self._clock = clock
        self._random = random
        self._pace = Pace()
        self._quick = True  # whether the last batch was settled within quick_s
        self._about = {"consumer": consumer.name}
        # Of this consumer's rows in failed_jobs, as the retry worker last counted them:
        self.waiting = 0  # those that wait
        self.due = 0  # those of them that run by themselves, and so can be the fuse's probe
        self.gaps = 0  # notes of records that were gone before they were read
        self._held_up: dict[object, str] = {}
        self.parked: Callable[[], None] = lambda: None  # tells the retry worker

    @property
    def held_up(self) -> str | None:
        """Why transactions have been running again for seconds; None when all goes well."""
        return next(iter(self._held_up.values()), None)

    async def settle(
        self, items: Sequence[Item], stopping: asyncio.Event, position: Position | None = None, *, probe: bool = False
    ) -> bool:
        """Make every item of a partition done or parked, in lanes or all together.

        Returns whether `position`, which is true when all of them are settled, was stored with them.
        Raises Stopped or FuseOpen with the rest untouched.
        """
        began = asyncio.get_running_loop().time()
        if len(items) <= self.few or self._go_together(items):
            stored = await self._settle(items, stopping, position, probe=probe) if items else False
        else:
            stored = await self._settle_lanes(items, stopping, probe=probe)
        self._quick = asyncio.get_running_loop().time() - began < self.quick_s
        return stored

    def _go_together(self, items: Sequence[Item]) -> bool:
        return self._quick and self._pace.calm and all(item.route and item.route.batch for item in items)

    async def _settle_lanes(self, items: Sequence[Item], stopping: asyncio.Event, *, probe: bool) -> bool:
        lanes: defaultdict[int, list[Item]] = defaultdict(list)
        for item in items:
            lanes[self._lane(item)].append(item)
        outcomes = await asyncio.gather(
            *(self._settle(some, stopping, None, probe=probe) for some in lanes.values()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return False

    async def _settle(
        self, items: Sequence[Item], stopping: asyncio.Event, position: Position | None, *, probe: bool
    ) -> bool:
        if self._fuse.is_open and not probe:
            raise FuseOpen
        try:
            await self.rerun(lambda: self._together(items, position, probe=probe), stopping)
        except (Stopped, FuseOpen, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - a handler may raise anything; nothing may be lost
            if len(items) == 1:
                await self._give_up(items[0], error, stopping, probe=probe)
                return False
            hung = error.item if isinstance(error, TookTooLong) else None
            for some in _around(items, hung) if hung is not None else _halves(items):
                if hung is not None and some[0] is hung:
                    await self._give_up(hung, error, stopping, probe=probe)
                else:
                    await self._settle(some, stopping, None, probe=probe)
            return False
        return position is not None

    def _lane(self, item: Item) -> int:
        return lane_of(item.record, self.count)

    async def rerun(self, action: Callable[[], Awaitable[T]], stopping: asyncio.Event) -> T:
        """Run until it works or fails for a reason of its own; waits 50 ms to 5 s between runs."""
        delay_s = 0.05
        me = object()
        try:
            while True:
                try:
                    return await action()
                except Exception as error:
                    if not isinstance(error, TooManyWaiting) and not is_rerun(error):
                        raise
                    name = type(error).__name__
                metrics.RERUNS.labels(self._consumer.name).inc()
                _log.warning("transaction_rerun", extra=self._about | {"error": name, "delay_s": delay_s})
                if delay_s > 1:
                    self._held_up[me] = f"runs again and again: {name}"
                if await happens(stopping, delay_s):
                    raise Stopped
                delay_s = min(delay_s * 2, 5.0)
        finally:
            self._held_up.pop(me, None)

    async def _together(self, items: Sequence[Item], position: Position | None, *, probe: bool) -> None:
        async with cut_off(self._db, self.deadline_s) as turn, self._db.transaction() as tx:
            fresh = await self._enter(tx, items, position)
            behind, rest = await self._split(tx, fresh)
            runnable = [item for item in rest if item.failure is None]
            broken = [(item, item.failure) for item in rest if item.failure is not None]
            with telemetry.processing(self._consumer.name, [item.record for item in runnable]):
                await telemetry.remember(tx)
                ran = await run(tx, runnable, self._judge, turn, self._consumer.policy.fuse_keys, self._pace)
                if probe and any(failure.status == "waiting" for _, failure in ran.failed):
                    raise FuseOpen  # it stays where it is: attempts do not count while the fuse is open
                behind += ran.behind
                broken += ran.failed
                waiting = [(item, Failure("waiting", BEHIND, "waits behind its key")) for item in behind]
                parked = await self._park(tx, sorted([*waiting, *broken], key=lambda one: one[0].record.offset))
                known = [item for item, _ in broken if item.record.offset not in parked]
                broken = [(item, failure) for item, failure in broken if item.record.offset in parked]
                if known and waiting:
                    await self._settle_heads(tx, known)
                await self._publish(tx, ran.events, broken)
        for outcome, number in (
            ("done", len(ran.done)),
            ("duplicate", len(items) - len(ran.done) - len(behind) - len(broken)),
            ("behind", len(behind)),
            ("parked", len(broken)),
        ):
            if number:
                metrics.EVENTS.labels(self._consumer.name, outcome).inc(number)
        for item, failure in broken:
            self._tell(item, failure)
        if ran.done:
            self._fuse.succeeded(len(ran.done))
        elif probe and not broken:
            self._fuse.unspent()

    def _judge(self, item: Item, error: Exception) -> Failure:
        del item
        return judge(error, 0, self._consumer.policy, self._clock(), self._random.uniform(-1, 1))

    async def _enter(self, tx: Tx, items: Sequence[Item], position: Position | None = None) -> list[Item]:
        """Take the lanes and the inbox rows; return the items that nobody has dealt with."""
        first = items[0].record
        space = lane_space(self._consumer.name, first.topic, first.partition)
        known = [item for item in items if item.event_id is not None]
        rows = await tx.fetch(
            _ENTER,
            space=space,
            lanes=sorted({self._lane(item) for item in items}),
            consumer=self._consumer.name,
            topic=first.topic,
            partition=first.partition,
            next_offset=position.next_offset if position else None,
            cluster=position.cluster if position else None,
            ids=[item.event_id for item in known],
            days=[item.day for item in known],
        )
        new = {row["event_id"] for row in rows}
        fresh: list[Item] = []
        for item in items:
            if item.event_id is None or item.event_id in new:
                fresh.append(item)
                new.discard(item.event_id)  # the same event twice in one batch is one event
        return fresh

    async def _split(self, tx: Tx, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Part the items whose key is fenced from the others. A held item fences what follows it."""
        keys = list({item.record.key for item in items if item.record.key is not None})
        if not keys:
            return [], list(items)
        first = items[0].record
        fenced = await fenced_keys(tx, self._consumer.name, first.topic, first.partition, keys)
        behind: list[Item] = []
        rest: list[Item] = []
        for item in items:
            key = item.record.key
            if key is not None and key in fenced and item.failure is None:
                behind.append(item)
                fenced[key] += 1
            else:
                rest.append(item)
                if key is not None and item.failure is not None and item.failure.status == "held":
                    fenced[key] = fenced.get(key, 0) + 1
        policy = self._consumer.policy
        if behind and (max(fenced.values()) > policy.max_waiting_per_key or self.waiting > policy.max_waiting):
            raise TooManyWaiting(topic=first.topic, partition=first.partition)
        return behind, rest

    async def _give_up(self, item: Item, error: Exception, stopping: asyncio.Event, *, probe: bool) -> None:
        failure = self._judge(item, error)
        if probe and failure.status == "waiting":
            raise FuseOpen from error  # it stays where it is: attempts do not count while the fuse is open
        outcome = await self.rerun(lambda: self._park_alone(item, failure), stopping)
        metrics.EVENTS.labels(self._consumer.name, outcome).inc()
        if outcome == "parked":
            self._tell(item, failure)

    async def _park_alone(self, item: Item, failure: Failure) -> str:
        async with cut_off(self._db, self.deadline_s), self._db.transaction() as tx:
            fresh = await self._enter(tx, [item])
            if not fresh:
                return "duplicate"
            behind, _ = await self._split(tx, fresh)
            if behind:
                await self._park(tx, [(item, Failure("waiting", BEHIND, "waits behind its key"))])
                return "behind"
            if not await self._park(tx, [(item, failure)]):
                return "duplicate"
            await self._publish(tx, (), [(item, failure)])
        return "parked"

    async def _park(self, tx: Tx, parked: Sequence[tuple[Item, Failure]]) -> set[int]:
        if not parked:
            return set()
        rows = [Parked(item.record, failure, item.job_type, item.event_id) for item, failure in parked]
        return await park(tx, self._consumer.name, rows, self._clock())

    async def _settle_heads(self, tx: Tx, known: Sequence[Item]) -> None:
        """See to what was just parked behind records whose rows were there: they may fence nothing any more."""
        now = self._clock()
        record = known[0].record
        lane = self._consumer.name, record.topic, record.partition, self._lane(known[0])
        await settle_heads(tx, lane, {one.record.key: now for one in known if one.record.key is not None}, now)
        tx.after_commit(self.parked)

    async def _publish(self, tx: Tx, events: Sequence[Event], failed: Sequence[tuple[Item, Failure]]) -> None:
        letters: list[Message] = [
            dead_letter(self._consumer.name, item.record, failure)
            for item, failure in failed
            if failure.status != "waiting"
        ]
        await self._outbox.add(tx, events, letters)

    def _tell(self, item: Item, failure: Failure) -> None:
        record = item.record
        self._fuse.failed(record.key if record.key is not None else (record.topic, record.partition, record.offset))
        _log.warning(
            "event_parked",
            extra=self._about
            | {
                "status": failure.status,
                "code": failure.code,
                "reason": failure.message,
                "type": item.job_type,
                "event_id": str(item.event_id) if item.event_id else None,
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
            },
        )
        self.parked()


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event; tell whether it came in time."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


def _halves(items: Sequence[Item]) -> tuple[Sequence[Item], ...]:
    middle = len(items) // 2
    return items[:middle], items[middle:]


def _around(items: Sequence[Item], one: Item) -> list[Sequence[Item]]:
    """Part the items into those before one, itself, and those after it."""
    at = next(n for n, item in enumerate(items) if item is one)
    return [some for some in (items[:at], items[at : at + 1], items[at + 1 :]) if some]

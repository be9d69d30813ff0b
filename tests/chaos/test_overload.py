"""More comes than can be done, and handlers that hang: memory is bounded, lag is seen, nobody has to help.

The producer sends for OPENBELL_OVERLOAD_S seconds (3; the long form is 120); the handlers do one event for five that
are sent, however fast this machine is, and then at the rate that the producer had.
"""

import asyncio
import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition

from shared.contracts.base import Event
from shared.db import Tx
from shared.messaging import metrics
from shared.messaging.kafka import KafkaAddress, Reader
from shared.messaging.record import headers_of
from tests.chaos.memory import Memory
from tests.conftest import eventually
from tests.messaging.harness import INSERT, Deposited, Probe, record_effect

OVERLOAD_S = float(os.environ.get("OPENBELL_OVERLOAD_S", "3"))
RATE = 500
"""Events a second that the producer sends where the machine lets it."""
TIMES = 5
PAD = 16_384
"""Bytes of each event."""
BOUND_MB = 100
"""What the process may take more than before, however long the queue is: a fetch of 4 MiB for each of two partitions,
one that is read ahead, their events, and the producer's own buffers."""


@dataclass(frozen=True)
class Counted(KafkaAddress):
    """Notes a member's name each time that it is given partitions."""

    generations: list[str] = field(default_factory=list[str])

    def reader(self, group: str, member: str) -> Reader:
        reader = super().reader(group, member)
        subscribe, generations = reader.subscribe, self.generations

        class Heard(ConsumerRebalanceListener):
            def __init__(self, listener: Any) -> None:
                self._listener = listener

            async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - as in the runtime
                self, revoked: set[TopicPartition]
            ) -> None:
                await self._listener.on_partitions_revoked(revoked)

            async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride] - as in the runtime
                self, assigned: list[TopicPartition]
            ) -> None:
                generations.append(member)
                await self._listener.on_partitions_assigned(assigned)

        def heard(topics: Sequence[str], *, listener: Any) -> None:
            subscribe(topics, listener=Heard(listener))

        reader.subscribe = heard  # type: ignore[method-assign]
        return reader


class Pace:
    """Lets so many events through in a second, one after the other."""

    def __init__(self, rate: float) -> None:
        self._every_s = 1 / rate
        self._next = 0.0

    async def step(self, events: int = 1) -> None:
        self._next = max(self._next, monotonic()) + self._every_s * events
        await asyncio.sleep(self._next - monotonic())


class Overload:
    """Holds the handlers to one event for TIMES that were sent, until the sending ends."""

    def __init__(self) -> None:
        self.sent = 0
        self.over = False
        self._done = 0
        self._changed = asyncio.Condition()

    async def add(self, events: int) -> None:
        async with self._changed:
            self.sent += events
            self._changed.notify_all()

    async def end(self) -> None:
        async with self._changed:
            self.over = True
            self._changed.notify_all()

    async def do(self, events: int) -> None:
        async with self._changed:
            self._done += events
            upto = self._done
            await self._changed.wait_for(lambda: self.over or upto * TIMES <= self.sent)


@pytest.mark.apache  # the embedded broker drops what exceeds its cap
@pytest.mark.slow
@pytest.mark.timeout(120 + 8 * OVERLOAD_S)
@pytest.mark.parametrize("batch", [False, True])
async def test_five_times_more_than_can_be_done_is_done_later_and_costs_no_memory(probe: Probe, batch: bool) -> None:
    overload = Overload()

    async def slow(event: Deposited, tx: Tx) -> list[Event]:
        await overload.do(1)
        return await record_effect(event, tx)

    async def slow_batch(events: Sequence[Deposited], tx: Tx) -> list[Event]:
        await overload.do(len(events))
        await tx.execute_many(INSERT, [{"account": event.account, "n": event.n} for event in events])
        return []

    where = probe.address
    probe.address = kafka = Counted(where.bootstrap, where.static_members, where.small_topics)
    replicas = [probe.start(slow_batch if batch else slow, batch=batch, member=name) for name in ("a", "b")]
    await eventually(lambda: all(one.delivery.health() == (True, "1 partitions") for one in replicas))
    joined = len(kafka.generations)
    gc.collect()
    memory = Memory()
    await _send(probe, overload)
    sent = overload.sent
    await eventually(lambda: _lag(probe) > sent / 2)  # the gauge shows what is not done yet
    lag = _lag(probe)
    assert all(one.delivery.health()[0] for one in replicas), "behind is not broken"
    await overload.end()
    if os.environ.get("OPENBELL_OVERLOAD_S"):
        print(f"sent {sent}, lag {lag:.0f}, peak {memory.peak_mb():.0f} MB")  # noqa: T201 - the long form's report
    await eventually(lambda: _done(probe, sent), 60 + 8 * OVERLOAD_S)
    await eventually(lambda: _lag(probe) == 0)
    assert memory.peak_mb() < BOUND_MB
    assert len(kafka.generations) == joined, "nobody left the group for being slow"
    for account in "abcdefgh":
        numbers = await probe.effects(account)
        assert numbers == sorted(set(numbers))
    assert await probe.jobs() == []


async def _send(probe: Probe, overload: Overload) -> None:
    pace = Pace(RATE)
    until = monotonic() + OVERLOAD_S
    waiting: set[asyncio.Future[Any]] = set()
    pad = os.urandom(PAD // 2).hex().encode()
    while monotonic() < until:
        for _ in range(20):
            event = probe.make("abcdefgh"[overload.sent % 8], overload.sent)
            body = event.to_bytes()[:-1] + b',"pad":"' + pad + b'"}'
            headers = [(name.decode(), value) for name, value in headers_of(event, "/t")]
            future = await probe.producer.send(probe.topic.name, body, key=event.key.encode(), headers=headers)
            waiting.add(future)
            future.add_done_callback(waiting.discard)
            await overload.add(1)
        await pace.step(20)
    await asyncio.gather(*waiting)


async def _done(probe: Probe, count: int) -> bool:
    await asyncio.sleep(0.2)  # the table is large: asked now and then
    return len(await probe.effects()) >= count


def _lag(probe: Probe) -> float:
    return sum(
        sample.value
        for metric in metrics.LAG.collect()
        for sample in metric.samples
        if sample.labels["consumer"] == probe.name
    )


# Handlers that hang


async def _hang(events: Sequence[Deposited]) -> None:
    if any(event.n == 1 for event in events):
        await asyncio.Event().wait()


async def _hang_and_swallow(events: Sequence[Deposited]) -> None:
    """Does not end when it is asked to, twice."""
    if any(event.n == 1 for event in events):
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        await asyncio.Event().wait()


@pytest.mark.parametrize("hang", [_hang, _hang_and_swallow])
@pytest.mark.parametrize("batch", [False, True])
async def test_a_handler_that_hangs_is_cut_and_only_its_event_is_parked(probe: Probe, batch: bool, hang: Any) -> None:
    async def one(event: Deposited, tx: Tx) -> list[Event]:
        await hang([event])
        return await record_effect(event, tx)

    async def many(events: Sequence[Deposited], tx: Tx) -> list[Event]:
        await hang(events)
        for event in events:
            await record_effect(event, tx)
        return []

    for n in (0, 2, 3):
        await probe.send(probe.make("a", n))
    await probe.send(probe.make("hanging", 1))
    for n in (4, 5):
        await probe.send(probe.make("a", n))
    replica = probe.start(many if batch else one, batch=batch)
    replica.lanes.deadline_s = 0.3  # type: ignore[misc]
    await eventually(lambda: _parked(probe, "DEADLINE"), 60)
    await eventually(lambda: _effects(probe, "a", [0, 2, 3, 4, 5]), 60)
    await eventually(lambda: replica.delivery.health()[0])


async def _parked(probe: Probe, code: str) -> bool:
    return [job["error_code"] for job in await probe.jobs()] == [code]


async def _effects(probe: Probe, account: str, expected: list[int]) -> bool:
    return await probe.effects(account) == expected

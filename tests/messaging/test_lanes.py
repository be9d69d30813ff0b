"""How the events of a batch share transactions: together while that is well and fast, else in lanes."""

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from time import monotonic

import pytest

from shared.clock import utc_now
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.consumer import Consumer
from shared.messaging.decode import decode_all
from shared.messaging.fuse import Fuse
from shared.messaging.lane import Lanes, Position
from shared.messaging.outbox import Outbox
from shared.messaging.record import Record, headers_of
from tests.messaging.harness import INSERT, Deposited, Probe

ACCOUNTS = [f"account-{n}" for n in range(40)]


class Teller:
    """A batch handler that notes what it was called with, and fails for some events."""

    def __init__(self, probe: Probe, *, batch: bool = True) -> None:
        self.calls: list[set[str]] = []
        self.bad: set[int] = set()
        self._probe = probe
        self._consumer = Consumer(probe.name)
        (self._consumer.on_batch(probe.event, self.many) if batch else self._consumer.on(probe.event, self.one))
        fuse = Fuse(probe.name, self._consumer.policy, monotonic)
        outbox = Outbox("probe", lambda: None)
        self._lanes = Lanes(self._consumer, probe.db, outbox, fuse, utc_now, Random(1))
        self._offset = 0

    async def one(self, event: Deposited, tx: Tx) -> Sequence[Event]:
        return await self.many([event], tx)

    async def many(self, events: Sequence[Deposited], tx: Tx) -> Sequence[Event]:
        self.calls.append({event.account for event in events})
        if any(event.n in self.bad for event in events):
            raise Transient("not now")
        for event in events:
            await tx.execute(INSERT, account=event.account, n=event.n)
        return []

    async def settle(self) -> bool:
        """Settle an event for each account; tell whether the position was stored with it."""
        records: list[Record] = []
        for n, account in enumerate(ACCOUNTS):
            event = self._probe.event(id=uuid.uuid4(), time=datetime.now(UTC), account=account, n=n)
            key, headers = account.encode(), headers_of(event, "/test")
            records.append(Record(self._probe.topic.name, 0, self._offset + n, key, event.to_bytes(), headers))
        self._offset += len(records)
        self.calls.clear()
        items = decode_all(self._consumer, records, utc_now())
        return await self._lanes.settle(items, asyncio.Event(), Position(self._offset, None))


async def test_a_batch_handler_gets_a_whole_batch_and_its_position_is_stored_with_it(probe: Probe) -> None:
    teller = Teller(probe)
    assert await teller.settle()
    assert teller.calls == [set(ACCOUNTS)]


async def test_after_a_failure_a_batch_goes_in_lanes_which_run_at_once(probe: Probe) -> None:
    teller = Teller(probe)
    teller.bad = {7}
    await teller.settle()
    teller.bad = set()
    assert not await teller.settle()
    assert len(teller.calls) >= Lanes.count
    assert len(await probe.effects()) == 2 * len(ACCOUNTS) - 2, "the one that failed, and its account's next behind it"


async def test_a_batch_that_took_long_goes_in_lanes_the_next_time(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller = Teller(probe)
    monkeypatch.setattr(Lanes, "quick_s", 0.0)
    await teller.settle()
    await teller.settle()
    assert len(teller.calls) == Lanes.count
    assert set[str]().union(*teller.calls) == set(ACCOUNTS)


async def test_handlers_of_one_event_run_in_lanes(probe: Probe) -> None:
    teller = Teller(probe, batch=False)
    assert not await teller.settle()
    assert len(teller.calls) == len(ACCOUNTS)

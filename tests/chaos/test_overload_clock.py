"""A clock that jumps by an hour. What is promised:

Nothing takes effect twice, and nothing is lost. Forward: what was due within the hour runs at once. Back: what had a
due time by the wrong clock runs when the right one reaches it, up to an hour late; the row says when, and a person may
retry it at once. A job's missed times are one run, and a time that it ran at does not come again. Leases of other
replicas look as if they had run out to one whose clock is ahead: it takes their rows over by the stated policy, and
who lost one records nothing. Deadlines, fuses, the relay and new events do not look at the clock. An event from a
producer whose clock is an hour off takes effect: the inbox remembers 34 days back and one ahead.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.ops import FailedJobs
from tests.conftest import ManualClock, eventually
from tests.messaging.harness import FAST, Deposited, Probe, record_effect
from tests.shared.test_schedule import Bench, bench

__all__ = ["bench"]

HOUR_S = 3600
SLOW = replace(FAST, delays_s=(5.0, 10.0, 20.0))


class Broken:
    """Fails every event until it is mended."""

    def __init__(self) -> None:
        self.mended = False

    async def __call__(self, event: Deposited, tx: Tx) -> Sequence[Event]:
        if not self.mended:
            raise Transient("not now")
        return await record_effect(event, tx)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime.now(UTC))


async def test_forward_what_waits_runs_at_once_and_once(probe: Probe, clock: ManualClock) -> None:
    handler = Broken()
    replica = probe.start(handler, policy=SLOW, clock=clock)
    for n in range(5):
        await probe.send(probe.make("a", n))
    await eventually(lambda: _waiting(probe, 5))
    handler.mended = True
    clock.advance(HOUR_S)
    await eventually(lambda: _effects(probe, "a", [0, 1, 2, 3, 4]))
    assert {job["status"] for job in await probe.jobs()} == {"resolved"}
    assert replica.delivery.health()[0]


async def test_back_what_waits_keeps_its_due_time_and_a_person_may_run_it(probe: Probe, clock: ManualClock) -> None:
    handler = Broken()
    probe.start(handler, policy=SLOW, clock=clock)
    await probe.send(probe.make("a", 1))
    await eventually(lambda: _waiting(probe, 1))
    (job,) = await probe.jobs("waiting")
    clock.advance(-HOUR_S)
    await probe.send(probe.make("b", 2))
    await eventually(lambda: _waiting(probe, 2))
    handler.mended = True
    clock.advance(30)
    await eventually(lambda: _effects(probe, "b", [2]))  # parked by the right clock: due by it
    assert await probe.effects("a") == []
    assert job["due_at"] > clock() + timedelta(minutes=50), "the row says why it waits"
    await probe.act(lambda tx: FailedJobs("probe", clock).retry(tx, job["id"], "test"))
    await eventually(lambda: _effects(probe, "a", [1]))


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_events_go_on_through_a_jump_and_are_known_again(probe: Probe, clock: ManualClock, jump_s: int) -> None:
    replica = probe.start(record_effect, clock=clock)
    before = probe.make("a", 1)
    await probe.send(before)
    await eventually(lambda: _effects(probe, "a", [1]))
    clock.advance(jump_s)
    ahead, behind = (probe.make("a", 2, time=clock.now), probe.make("a", 3, time=clock.now - timedelta(seconds=jump_s)))
    for event in (before, ahead, behind, ahead):
        await probe.send(event)
    await eventually(lambda: _effects(probe, "a", [1, 2, 3]))
    await probe.send(probe.make("a", 4))
    await eventually(lambda: _effects(probe, "a", [1, 2, 3, 4]))
    assert await probe.jobs() == []
    assert replica.delivery.health()[0]


async def test_a_job_runs_once_for_an_hour_skipped_and_not_again_for_an_hour_repeated(bench: Bench) -> None:
    scheduler = bench.scheduler()  # every ten minutes
    await bench.turn(scheduler)
    bench.clock.advance(HOUR_S)
    await bench.turn(scheduler)
    ran = list(bench.runs)
    assert len(ran) == 1
    bench.clock.advance(-HOUR_S)
    for _ in range(6):
        await bench.turn(scheduler)
        bench.clock.advance(600)
    assert bench.runs == ran, "these times were run already"
    bench.clock.advance(600)
    await bench.turn(scheduler)
    assert len(bench.runs) == 2


async def _waiting(probe: Probe, count: int) -> bool:
    return len(await probe.jobs("waiting")) == count


async def _effects(probe: Probe, account: str, expected: list[int]) -> bool:
    return await probe.effects(account) == expected

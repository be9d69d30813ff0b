"""Jobs by the clock: when they run, who runs them, and what is recorded."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db import Database
from shared.errors import NotFound, Permanent
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.schedule import Job, RunView, Scheduler, latest_time, next_time
from tests.conftest import ManualClock

MONDAY = datetime(2025, 6, 2, 14, 30, tzinfo=UTC)


async def nothing(at: datetime) -> None:
    pass


def is_weekday(at: datetime) -> bool:
    return at.weekday() < 5


def test_the_next_time_is_after_now_and_in_utc() -> None:
    assert next_time(Job("j", "30 14 * * *", nothing), MONDAY) == MONDAY + timedelta(days=1)


def test_a_calendar_skips_closed_days() -> None:
    friday = datetime(2025, 6, 6, 15, tzinfo=UTC)
    assert next_time(Job("j", "30 14 * * *", nothing, calendar=is_weekday), friday) == datetime(
        2025, 6, 9, 14, 30, tzinfo=UTC
    )


def test_many_missed_times_are_one_run_told_the_latest() -> None:
    job = Job("j", "*/5 * * * *", nothing)
    assert latest_time(job, MONDAY, MONDAY + timedelta(hours=3, minutes=2)) == MONDAY + timedelta(hours=3)


def test_missed_times_that_the_calendar_refuses_are_no_run() -> None:
    saturday = datetime(2025, 6, 7, tzinfo=UTC)
    job = Job("j", "0 * * * *", nothing, calendar=is_weekday)
    assert latest_time(job, saturday, saturday + timedelta(hours=30)) is None


def test_a_calendar_that_refuses_for_very_long_is_looked_at_again_later() -> None:
    job = Job("j", "* * * * *", nothing, calendar=lambda at: at.year >= 2026)
    found = next_time(job, MONDAY)
    assert found is not None
    assert MONDAY < found < datetime(2026, 1, 1, tzinfo=UTC)
    assert latest_time(job, found, found) is None


@given(
    minutes=st.sampled_from([1, 5, 7, 30]),
    first=st.integers(0, 3000),
    late=st.floats(0, 100_000),
)
def test_the_latest_time_is_due_and_nothing_due_lies_between_it_and_now(minutes: int, first: int, late: float) -> None:
    job = Job("j", f"*/{minutes} * * * *", nothing)
    begin = next_time(job, MONDAY + timedelta(minutes=first))
    assert begin is not None
    now = begin + timedelta(seconds=late)
    latest = latest_time(job, begin, now)
    assert latest is not None
    assert begin <= latest <= now
    following = next_time(job, latest)
    assert following is not None
    assert following > now


class Bench:
    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.door = Door(database, Outbox("alerts", lambda: None))
        self.clock = clock
        self.runs: list[datetime] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.began = asyncio.Event()

    async def job(self, at: datetime) -> None:
        self.runs.append(at)
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error

    def scheduler(self, runner: str = "one", cron: str = "*/10 * * * *", stop_s: float = 10) -> Scheduler:
        return Scheduler([Job("chores", cron, self.job)], self.door, self.clock, runner=runner, stop_s=stop_s)

    async def turn(self, scheduler: Scheduler) -> float:
        wait_s = await scheduler.turn()
        await scheduler.idle()
        return wait_s

    async def history(self, scheduler: Scheduler) -> list[RunView]:
        return await scheduler.runs("chores")


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("alerts"), ManualClock(MONDAY))


async def test_a_job_runs_at_its_time_and_not_before(bench: Bench) -> None:
    scheduler = bench.scheduler()
    await bench.turn(scheduler)
    assert bench.runs == []
    bench.clock.advance(600)
    await bench.turn(scheduler)
    assert bench.runs == [MONDAY + timedelta(minutes=10)]
    (run,) = await bench.history(scheduler)
    assert (run.outcome, run.trigger, run.scheduled_for) == ("done", "clock", MONDAY + timedelta(minutes=10))
    assert run.finished_at is not None


async def test_only_one_replica_runs_it(bench: Bench) -> None:
    one, two = bench.scheduler("one"), bench.scheduler("two")
    await asyncio.gather(bench.turn(one), bench.turn(two))
    bench.clock.advance(600)
    await asyncio.gather(bench.turn(one), bench.turn(two))
    assert len(bench.runs) == 1


async def test_what_was_missed_while_nobody_ran_is_caught_up_once(bench: Bench) -> None:
    await bench.turn(bench.scheduler())
    bench.clock.advance(3 * 3600 + 60)
    later = bench.scheduler("after the restart")
    await bench.turn(later)
    await bench.turn(later)
    assert bench.runs == [MONDAY + timedelta(hours=3)]


async def test_a_failing_job_is_recorded_with_its_reason_and_runs_again_next_time(bench: Bench) -> None:
    bench.error = Permanent("the disk is full")
    scheduler = bench.scheduler()
    await bench.turn(scheduler)
    bench.clock.advance(600)
    await bench.turn(scheduler)
    bench.error = None
    bench.clock.advance(600)
    await bench.turn(scheduler)
    second, first = await bench.history(scheduler)
    assert (first.outcome, first.error) == ("failed", "the disk is full")
    assert second.outcome == "done"


async def test_a_run_whose_runner_died_is_recorded_as_lost_and_the_job_goes_on(bench: Bench) -> None:
    bench.gate = asyncio.Event()
    dying = bench.scheduler("dying")
    await dying.turn()
    bench.clock.advance(600)
    await dying.turn()  # it begins, and never renews its lease
    bench.clock.advance(20)
    other = bench.scheduler("other")
    await other.turn()
    assert [run.outcome for run in await bench.history(other)] == ["running"]
    bench.clock.advance(20)
    await other.turn()
    assert [run.outcome for run in await bench.history(other)] == ["lost"]
    bench.gate.set()
    await dying.idle()
    assert [run.outcome for run in await bench.history(other)] == ["lost"]
    bench.clock.advance(600)
    await bench.turn(other)
    assert [(run.outcome, run.runner) for run in await bench.history(other)] == [
        ("done", "other"),
        ("lost", "dying"),
    ]


async def test_a_long_run_keeps_its_lease(bench: Bench) -> None:
    bench.gate = asyncio.Event()
    one, two = bench.scheduler("one"), bench.scheduler("two")
    await one.turn()
    bench.clock.advance(600)
    await one.turn()
    for _ in range(10):
        bench.clock.advance(12)
        await one.turn()
        await two.turn()
    bench.gate.set()
    await one.idle()
    assert [run.outcome for run in await bench.history(one)] == ["done"]


async def test_a_run_asked_for_now_is_picked_up_by_any_replica(bench: Bench) -> None:
    one, two = bench.scheduler("one"), bench.scheduler("two")
    await one.turn()
    await one.run_now("chores")
    await bench.turn(two)
    (run,) = await bench.history(two)
    assert (run.trigger, run.runner, run.outcome) == ("manual", "two", "done")
    view = (await two.jobs())[0]
    assert view.next_at == MONDAY + timedelta(minutes=10)
    assert (view.last_outcome, view.requested_at) == ("done", None)


async def test_a_run_asked_for_during_a_run_follows_it(bench: Bench) -> None:
    bench.gate = asyncio.Event()
    scheduler = bench.scheduler()
    await scheduler.turn()
    await scheduler.run_now("chores")
    await scheduler.turn()
    await scheduler.run_now("chores")
    await scheduler.turn()
    bench.gate.set()
    await scheduler.idle()
    assert len(bench.runs) == 1
    await bench.turn(scheduler)
    assert len(bench.runs) == 2


async def test_a_job_that_nobody_knows_cannot_be_asked_for(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.scheduler().run_now("other")


async def test_a_changed_expression_begins_anew(bench: Bench) -> None:
    await bench.scheduler().turn()
    changed = bench.scheduler(cron="0 20 * * *")
    await changed.turn()
    assert (await changed.jobs())[0].next_at == MONDAY.replace(hour=20, minute=0)
    bench.clock.advance(3600)
    await bench.turn(changed)
    assert bench.runs == []


async def test_a_run_cut_off_by_a_stop_is_recorded_as_lost(bench: Bench) -> None:
    bench.gate = asyncio.Event()
    scheduler = bench.scheduler(stop_s=0)
    await scheduler.turn()
    await scheduler.run_now("chores")
    await scheduler.turn()
    await bench.began.wait()
    await scheduler.stop()
    assert [run.outcome for run in await bench.history(scheduler)] == ["lost"]


def test_a_bad_expression_stops_the_start(bench: Bench) -> None:
    with pytest.raises(Exception, match="Bad"):
        bench.scheduler(cron="61 * * * *")

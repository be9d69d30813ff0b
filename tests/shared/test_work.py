"""Claimed rows: what a crash leaves, what an error leads to, and who may work on what."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from sqlalchemy import text

from shared import work
from shared.contracts.base import Event
from shared.db import Database, Row, Tx
from shared.errors import Permanent, Transient
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.work import Busy, OutcomeUnknown, Performed, Policy, Settled, Started, Work, Worker, backoff_s, decide
from tests.conftest import ManualClock, eventually

NOW = datetime(2025, 6, 2, 14, 30, tzinfo=UTC)
POLICY = Policy(concurrency=4, lease_s=30, max_attempts=3, max_age_s=3600, base_s=2, cap_s=60)


def decided(error: Exception | None, **changed: Any) -> work.Decision:
    state: dict[str, Any] = {"attempts": 0, "uncertain": False, "created_at": NOW, "now": NOW, "draw": 0.5, **changed}
    on_unknown = state.pop("on_unknown", "resend")
    return decide(POLICY, on_unknown, error, **state)


def test_a_success_is_done() -> None:
    assert decided(None).status == "done"


def test_a_refusal_fails_at_once_with_its_reason() -> None:
    decision = decided(Permanent("no such webhook"))
    assert (decision.status, decision.reason) == ("failed", "no such webhook")


def test_a_transient_error_waits_for_what_was_asked_when_that_is_longer() -> None:
    assert decided(Transient(retry_after_s=40)).due_at == NOW + timedelta(seconds=40)
    assert decided(Transient(retry_after_s=0.1)).due_at == NOW + timedelta(seconds=1.5)


def test_the_last_attempt_fails() -> None:
    assert decided(Transient(), attempts=1).status == "pending"
    assert decided(Transient(), attempts=2).status == "failed"


def test_a_row_that_would_be_too_old_fails() -> None:
    assert decided(Transient(retry_after_s=100), created_at=NOW - timedelta(seconds=3550)).status == "failed"


def test_being_asked_to_wait_costs_no_attempt() -> None:
    decision = decided(Busy(retry_after_s=0.75), attempts=2)
    assert (decision.status, decision.attempts) == ("pending", 2)
    assert decision.due_at == NOW + timedelta(seconds=0.75)


def test_an_unknown_outcome_follows_the_stated_policy() -> None:
    assert decided(OutcomeUnknown()).status == "pending"
    assert decided(OutcomeUnknown()).uncertain
    assert decided(OutcomeUnknown(), on_unknown="look_up").uncertain
    assert decided(OutcomeUnknown(), on_unknown="leave").status == "unknown"


def test_a_row_that_was_once_uncertain_never_ends_as_plainly_failed_for_want_of_attempts() -> None:
    assert decided(Transient(), attempts=2, uncertain=True).status == "unknown"


def test_an_unexpected_error_counts_as_unknown_and_tells_only_its_type() -> None:
    decision = decided(ValueError("https://secret"))
    assert decision.unknown
    assert decision.reason == "unexpected ValueError"


@given(attempts=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_the_cap_and_never_beyond(attempts: int, draw: float) -> None:
    wait = backoff_s(POLICY, attempts, draw)
    assert 1 <= wait <= 60
    assert wait <= backoff_s(POLICY, attempts + 1, draw)


class Bench:
    """A table of claimed rows, an effect that does what it is told, and workers on them."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.database = database
        self.clock = clock
        self.door = Door(database, Outbox("alerts", lambda: None))
        self.performed: list[Row] = []
        self.settled: list[Settled] = []
        self.changed = asyncio.Event()
        self.effect: Callable[[Row], Awaitable[Performed]] = self.succeed
        self.look_up: Callable[[Row], Awaitable[bool]] | None = None
        self.prepare: Callable[[Row], Awaitable[Row | Started]] | None = None

    def worker(self, policy: Policy = POLICY, on_unknown: work.OnUnknown = "resend") -> Worker:
        async def perform(row: Row) -> Performed:
            self.performed.append(row)
            self.changed.set()
            return await self.effect(row)

        async def settled(settled: Settled, tx: Tx) -> Sequence[Event]:
            self.settled.append(settled)
            self.changed.set()
            return ()

        chores = Work(
            kind="chore",
            table="chores",
            prepare=self.prepare,
            perform=perform,
            on_unknown=on_unknown,
            settled=work.one_by_one(settled),
            look_up=self.look_up,
            policy=policy,
        )
        return Worker(chores, self.door, self.clock, draw=lambda: 0.5)

    async def succeed(self, row: Row) -> Performed:
        return Performed()

    def fail(self, *errors: Exception | None) -> None:
        left = list(errors)

        async def effect(row: Row) -> Performed:
            error = left.pop(0) if left else None
            if error is not None:
                raise error
            return Performed()

        self.effect = effect

    async def add(self, *lanes: str | None, due_in_s: float = 0) -> list[UUID]:
        ids = [uuid4() for _ in lanes]
        async with self.database.transaction() as tx:
            for n, (row_id, lane) in enumerate(zip(ids, lanes, strict=True)):
                await tx.execute(
                    text("""insert into chores (id, lane, due_at, created_at)
                        values (:id, cast(:lane as text), :due, :now)"""),
                    id=row_id,
                    lane=lane,
                    due=self.clock() + timedelta(seconds=due_in_s, microseconds=n),
                    now=self.clock(),
                )
        self.clock.advance(0.001)
        return ids

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was performed or settled meets a condition."""
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def row(self, row_id: UUID) -> Row:
        async with self.database.read() as tx:
            row = await tx.fetchrow(text("select * from chores where id = :id"), id=row_id)
        assert row is not None
        return row

    async def run(self, worker: Worker) -> float:
        wait_s = await worker.turn()
        await worker.idle()
        return wait_s

    async def refuse_starts(self) -> None:
        """Make Postgres refuse every row on its way into `started`."""
        async with self.database.transaction() as tx:
            for statement in (
                "create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$",
                """create trigger refuse before update on chores
                    for each row when (new.status = 'started') execute function refuse()""",
            ):
                await tx.execute(text(statement))

    async def crash(self, row_id: UUID, status: str) -> None:
        """Leave the row as a worker that died would."""
        async with self.database.transaction() as tx:
            await tx.execute(
                text("update chores set status = :status, token = :token, lease_until = :until where id = :id"),
                status=status,
                token=uuid4(),
                until=self.clock() + timedelta(seconds=30),
                id=row_id,
            )


@pytest.fixture
async def bench(open_database: Callable[[str], Database]) -> Bench:
    database = open_database("alerts")
    statements = [f"create table chores (id uuid primary key, {work.COLUMNS})"]

    class Op:
        def execute(self, statement: str) -> None:
            statements.append(statement)

    work.create_indexes(Op(), "chores")
    async with database.transaction() as tx:
        for statement in statements:
            await tx.execute(text(statement))
    return Bench(database, ManualClock(NOW))


def unknown_count() -> float:
    return REGISTRY.get_sample_value("openbell_work_unknown_total", {"kind": "chore"}) or 0.0


async def test_a_due_row_is_performed_once_and_done(bench: Bench) -> None:
    (row_id,) = await bench.add(None)
    await bench.run(bench.worker())
    await bench.run(bench.worker())
    assert [row["id"] for row in bench.performed] == [row_id]
    assert (await bench.row(row_id))["status"] == "done"
    assert [settled.status for settled in bench.settled] == ["done"]


async def test_a_lone_row_costs_one_claim(bench: Bench) -> None:
    await bench.add("a")
    claims: list[str] = []
    async with bench.database.read() as tx:
        tx.connection.add_query_logger(lambda said: claims.append(said.query) if "limit $" in said.query else None)
    worker = bench.worker()
    await worker.turn()
    assert len(claims) == 1
    await worker.idle()


async def test_the_next_turn_comes_when_the_next_row_is_due_and_not_before(bench: Bench) -> None:
    await bench.add(None, due_in_s=0.4)
    worker = bench.worker()
    wait_s = await bench.run(worker)
    assert bench.performed == []
    assert 0.39 < wait_s < 0.4
    bench.clock.advance(wait_s)
    await bench.run(worker)
    assert len(bench.performed) == 1


async def test_a_worker_killed_before_the_effect_leaves_a_row_that_happens_once_and_is_not_uncertain(
    bench: Bench,
) -> None:
    (row_id,) = await bench.add(None)
    await bench.crash(row_id, "claimed")
    worker = bench.worker()
    await bench.run(worker)
    assert bench.performed == []
    before = unknown_count()
    bench.clock.advance(31)
    await bench.run(worker)
    assert [row["uncertain"] for row in bench.performed] == [False]
    assert unknown_count() == before


async def test_a_worker_killed_in_the_effect_leaves_a_row_that_is_counted_and_sent_again_as_a_repeat(
    bench: Bench,
) -> None:
    (row_id,) = await bench.add(None)
    await bench.crash(row_id, "started")
    worker = bench.worker()
    before = unknown_count()
    bench.clock.advance(31)
    await bench.run(worker)
    assert unknown_count() == before + 1
    bench.clock.advance(5)
    await bench.run(worker)
    assert [row["uncertain"] for row in bench.performed] == [True]
    assert (await bench.row(row_id))["status"] == "done"


async def test_under_leave_a_row_cut_off_in_the_effect_ends_unknown_and_is_told(bench: Bench) -> None:
    (row_id,) = await bench.add(None)
    await bench.crash(row_id, "started")
    bench.clock.advance(31)
    await bench.run(bench.worker(on_unknown="leave"))
    assert (await bench.row(row_id))["status"] == "unknown"
    assert [settled.status for settled in bench.settled] == ["unknown"]
    assert bench.performed == []


@pytest.mark.parametrize("happened", [True, False])
async def test_under_look_up_only_what_the_other_side_does_not_know_is_performed_again(
    bench: Bench, happened: bool
) -> None:
    async def look_up(row: Row) -> bool:
        return happened

    bench.look_up = look_up
    (row_id,) = await bench.add(None)
    await bench.crash(row_id, "started")
    worker = bench.worker(on_unknown="look_up")
    bench.clock.advance(31)
    await bench.run(worker)
    bench.clock.advance(5)
    await bench.run(worker)
    assert len(bench.performed) == (0 if happened else 1)
    assert (await bench.row(row_id))["status"] == "done"


async def test_what_fails_before_the_effect_is_tried_again_without_a_doubt(bench: Bench) -> None:
    failures: list[Exception] = [asyncpg.QueryCanceledError("cut off"), KeyError("column")]

    async def prepare(row: Row) -> Row:
        if failures:
            raise failures.pop()
        return row

    bench.prepare = prepare
    (row_id,) = await bench.add(None)
    worker, before = bench.worker(), unknown_count()
    for attempts in (1, 2):
        await bench.run(worker)
        row = await bench.row(row_id)
        assert (row["status"], row["uncertain"], row["attempts"]) == ("pending", False, attempts)
        bench.clock.advance(10)
    await bench.run(worker)
    assert len(bench.performed) == 1
    assert (await bench.row(row_id))["status"] == "done"
    assert unknown_count() == before


async def test_a_start_that_cannot_be_recorded_begins_nothing_and_leaves_no_doubt(bench: Bench) -> None:
    (row_id,) = await bench.add(None)
    await bench.refuse_starts()
    worker = bench.worker()
    await bench.run(worker)
    row = await bench.row(row_id)
    assert (row["status"], row["uncertain"], row["attempts"]) == ("pending", False, 1)
    assert bench.performed == []


async def test_a_transient_failure_is_tried_again_when_due(bench: Bench) -> None:
    bench.fail(Transient("503", retry_after_s=7))
    (row_id,) = await bench.add(None)
    worker = bench.worker()
    await bench.run(worker)
    row = await bench.row(row_id)
    assert (row["status"], row["attempts"], row["last_error"]) == ("pending", 1, "503")
    bench.clock.advance(6.9)
    await bench.run(worker)
    assert len(bench.performed) == 1
    bench.clock.advance(0.2)
    await bench.run(worker)
    assert (await bench.row(row_id))["status"] == "done"


async def test_a_lane_has_one_effect_in_flight_even_across_replicas(bench: Bench) -> None:
    finish = asyncio.Event()
    flying: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def effect(row: Row) -> Performed:
        flying[row["lane"]] += 1
        most[row["lane"]] = max(most[row["lane"]], flying[row["lane"]])
        await finish.wait()
        flying[row["lane"]] -= 1
        return Performed()

    bench.effect = effect
    await bench.add(*["b", *["a"] * 40])  # more than one claim looks at
    one, two = bench.worker(), bench.worker()
    await asyncio.gather(one.turn(), two.turn())
    await bench.until(lambda: len(bench.performed) == 2)
    await asyncio.gather(one.turn(), two.turn())
    assert sorted(row["lane"] for row in bench.performed) == ["a", "b"]
    finish.set()
    await asyncio.gather(one.idle(), two.idle())
    while len(bench.performed) < 41:
        await asyncio.gather(bench.run(one), bench.run(two))
    assert most == {"a": 1, "b": 1}


async def test_a_lane_that_asks_to_wait_is_left_alone_while_others_go_on(bench: Bench) -> None:
    bench.fail(Busy(retry_after_s=3.5))
    await bench.add("a")
    worker = bench.worker()
    await bench.run(worker)
    await bench.add("a", "b")
    await bench.run(worker)
    assert [row["lane"] for row in bench.performed] == ["a", "b"]
    bench.clock.advance(3.5)
    await bench.run(worker)
    await bench.run(worker)
    assert [row["lane"] for row in bench.performed] == ["a", "b", "a", "a"]


async def test_a_wait_holds_for_every_replica_and_is_forgotten_when_it_is_over(bench: Bench) -> None:
    bench.fail(Busy(retry_after_s=40))
    await bench.add("a")
    await bench.run(bench.worker())
    await bench.add("a", "b")
    other = bench.worker()
    wait_s = await bench.run(other)
    assert [row["lane"] for row in bench.performed] == ["a", "b"]
    assert wait_s <= POLICY.poll_s
    bench.clock.advance(39)
    await bench.run(other)
    assert len(bench.performed) == 2
    bench.clock.advance(11)
    await bench.run(other)
    assert [row["lane"] for row in bench.performed] == ["a", "b", "a"]
    async with bench.database.read() as tx:
        assert await tx.fetch(text("select * from work_pauses")) == []


async def test_a_wait_that_everyone_is_asked_for_holds_for_every_replica(bench: Bench) -> None:
    bench.fail(Busy(retry_after_s=5, everyone=True))
    await bench.add("a")
    await bench.run(bench.worker())
    await bench.add("b", None)
    other = bench.worker()
    await bench.run(other)
    assert len(bench.performed) == 1
    bench.clock.advance(5)
    await bench.run(other)
    assert len(bench.performed) == 4


async def test_a_global_wait_stops_every_lane(bench: Bench) -> None:
    bench.fail(Busy(retry_after_s=0.8, everyone=True))
    await bench.add("a")
    worker = bench.worker()
    await bench.run(worker)
    await bench.add("b")
    wait_s = await bench.run(worker)
    assert len(bench.performed) == 1
    assert 0.7 < wait_s <= 0.8


async def test_a_success_may_ask_for_a_pause_of_its_lane(bench: Bench) -> None:
    async def effect(row: Row) -> Performed:
        return Performed(pause_s=0.5)

    bench.effect = effect
    await bench.add("a", "a")
    worker = bench.worker()
    await bench.run(worker)
    wait_s = await bench.run(worker)
    assert len(bench.performed) == 1
    assert 0 < wait_s <= 0.5


async def test_a_lease_is_renewed_while_an_effect_takes_long(bench: Bench) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        await finish.wait()
        return Performed()

    bench.effect = effect
    (row_id,) = await bench.add(None)
    slow, other = bench.worker(), bench.worker()
    await slow.turn()
    await bench.until(lambda: bool(bench.performed))
    for _ in range(5):
        bench.clock.advance(11)
        await slow.turn()
        await bench.run(other)
    finish.set()
    await slow.idle()
    assert len(bench.performed) == 1
    assert (await bench.row(row_id))["status"] == "done"


async def test_a_worker_that_lost_its_lease_records_nothing(bench: Bench) -> None:
    finish = asyncio.Event()

    async def effect(row: Row) -> Performed:
        await finish.wait()
        return Performed()

    bench.effect = effect
    (row_id,) = await bench.add(None)
    stuck = bench.worker()
    await stuck.turn()
    await bench.until(lambda: bool(bench.performed))
    bench.clock.advance(60)
    await bench.run(bench.worker(on_unknown="leave"))
    finish.set()
    await stuck.idle()
    assert (await bench.row(row_id))["status"] == "unknown"
    assert [settled.status for settled in bench.settled] == ["unknown"]


async def test_stopping_gives_back_what_has_not_started(bench: Bench) -> None:
    (row_id,) = await bench.add(None)
    worker = bench.worker(Policy(concurrency=1))
    await worker.turn()  # claimed; its task has not had a turn of the loop yet
    await worker.stop()
    row = await bench.row(row_id)
    assert (row["status"], row["token"]) == ("pending", None)
    assert bench.performed == []


async def test_stopping_waits_for_what_is_in_flight(bench: Bench) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def effect(row: Row) -> Performed:
        begun.set()
        await finish.wait()
        return Performed()

    bench.effect = effect
    (row_id,) = await bench.add(None)
    running = asyncio.create_task(bench.worker().run())
    await begun.wait()
    running.cancel()
    await asyncio.sleep(0)
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await bench.row(row_id))["status"] == "done"


async def test_a_wake_up_right_after_the_commit_needs_no_poll(bench: Bench) -> None:
    worker = bench.worker(Policy(poll_s=3600))
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    await bench.add(None)
    worker.wake()
    await bench.until(lambda: bool(bench.settled))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_wake_up_at_the_moment_of_a_stop_does_not_keep_it_running(bench: Bench) -> None:
    worker = bench.worker(Policy(poll_s=3600))
    running = asyncio.create_task(worker.run())
    await bench.add(None)
    worker.wake()
    await bench.until(lambda: bool(bench.settled))
    await eventually(lambda: bool(worker._wake._waiters))  # it rests again
    worker.wake()
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=5)
    assert done
    assert running.cancelled()


async def test_two_workers_share_a_heap_of_rows_without_doing_one_twice(bench: Bench) -> None:
    ids = await bench.add(*[f"lane{n % 7}" for n in range(60)])
    one, two = bench.worker(), bench.worker()
    async with asyncio.timeout(30):
        while len(bench.settled) < 60:
            await asyncio.gather(bench.run(one), bench.run(two))
    assert sorted(row["id"] for row in bench.performed) == sorted(ids)


def test_a_look_up_and_its_policy_go_together(environment_free_work: Work) -> None:
    with pytest.raises(ValueError, match="look_up"):
        Worker(environment_free_work, None)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def environment_free_work() -> Work:
    async def perform(row: Row) -> Performed:
        return Performed()

    return Work(kind="chore", table="chores", perform=perform, on_unknown="look_up")


async def test_a_worker_with_nothing_to_do_waits_for_no_lock_and_a_due_row_for_no_second_look(bench: Bench) -> None:
    worker = bench.worker()
    await bench.add("later", due_in_s=0.5)
    async with bench.database.transaction() as other:
        await other.execute(worker._serialise)
        assert 0 < await worker.turn() <= 0.5
    bench.clock.advance(1)
    await bench.run(worker)
    assert len(bench.performed) == 1

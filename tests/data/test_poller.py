"""The poller against the fake Cboe and a real Postgres. Time is ours: `sleep` moves it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import stamina

from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulator import SimulatorSource
from services.data.domain.columns import Floats
from services.data.ports import ChainSource
from services.data.service import DataService
from services.data.store import SnapshotStore
from services.data.workers.chains import Phase, Poller
from shared.contracts.api import StockAdded, StockRemoved
from shared.contracts.data import ChainCollected
from shared.db import Database
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.sessions import Sessions
from tests.conftest import eventually
from tests.data.fake_cboe import FakeCboe, Reply, answer

FRIDAY = datetime(2026, 7, 24, 18, 0, 30, tzinfo=UTC)


class Time:
    """A clock that only sleeping moves; it stops at `until`, and whoever sleeps then never wakes."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.until = now
        self.stopped = asyncio.Event()

    def __call__(self) -> datetime:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        if seconds <= 0:
            return
        if self.now + timedelta(seconds=seconds) > self.until:
            self.stopped.set()
            await asyncio.Event().wait()
        self.now += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=3, cap=True):
        yield


@pytest.fixture
def time() -> Time:
    return Time(FRIDAY)


@pytest.fixture
def door(data_db: Database) -> Door:
    return Door(data_db, Outbox("data", lambda: None))


@pytest_asyncio.fixture
async def live(cboe: FakeCboe, sessions: Sessions, time: Time) -> AsyncIterator[CboeSource]:
    source = CboeSource(base_url=cboe.url, sessions=sessions, clock=time, sleep=time.sleep, rate_per_s=1e6)
    yield source
    await source.aclose()


def poller(source: ChainSource, door: Door, time: Time, *symbols: str, **settings: Any) -> Poller:
    async def open_source() -> ChainSource:
        await asyncio.sleep(0)
        return source

    return Poller(
        open_source=open_source,
        service=DataService(SnapshotStore(), time),
        door=door,
        clock=time,
        symbols=symbols,
        sleep=time.sleep,
        **settings,
    )


@contextlib.asynccontextmanager
async def running(poller: Poller) -> AsyncGenerator[asyncio.Task[None]]:
    task = asyncio.create_task(poller.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run_for(poller: Poller, time: Time, seconds: float) -> None:
    time.until = time.now + timedelta(seconds=seconds)
    time.stopped.clear()
    async with running(poller) as task:
        stopped = asyncio.create_task(time.stopped.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            await task


async def told(db: Database) -> list[tuple[str, str]]:
    """Return (topic, key) of what waits in the outbox, in order."""
    async with db.read() as tx:
        rows = await tx.connection.fetch("select topic, key from outbox order by id")
    return [(row["topic"], row["key"].decode()) for row in rows]


async def test_a_new_chain_is_told_once_and_unchanged_ones_not_at_all(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", answer())
    await run_for(poller(live, door, time, "AAPL"), time, 170)
    assert len(cboe.asked) == 3
    assert "if-none-match" in cboe.asked[2].headers
    assert await told(data_db) == [("data.chains", "AAPL"), ("data.quotes", "AAPL")]


async def test_a_later_timestamp_is_told_and_the_same_one_under_a_new_etag_is_not(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    later = answer(timestamp="2026-07-24 18:01:00")
    cboe.says("AAPL", answer(), answer(data={"volume": 1}), later)
    await run_for(poller(live, door, time, "AAPL"), time, 170)
    assert [topic for topic, _ in await told(data_db)] == ["data.chains", "data.quotes"] * 2


async def test_what_waits_in_the_outbox_reads_back(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", answer())
    await run_for(poller(live, door, time, "AAPL"), time, 1)
    async with data_db.read() as tx:
        chain, quote = await tx.connection.fetch("select value from outbox order by id")
    read = ChainCollected.from_bytes(chain["value"], id=uuid4(), time=FRIDAY)
    assert read.contracts.num_rows == 2
    assert read.header.session.isoformat() == "2026-07-24"
    assert json.loads(quote["value"])["close"] == 333.02


async def test_a_restart_asks_conditionally_and_tells_nothing_twice(
    cboe: FakeCboe, sessions: Sessions, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", answer())
    for _ in range(2):
        source = CboeSource(base_url=cboe.url, sessions=sessions, clock=time, sleep=time.sleep)
        await run_for(poller(source, door, time, "AAPL"), time, 1)
    assert [("if-none-match" in asked.headers) for asked in cboe.asked] == [False, True]
    assert len(await told(data_db)) == 2


async def test_outside_the_session_nothing_is_asked_until_it_opens(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    time.now = datetime(2026, 7, 26, 12, 0, tzinfo=UTC)  # Sunday
    cboe.says("AAPL", answer(timestamp="2026-07-27 13:45:00"))
    watcher = poller(live, door, time, "AAPL")
    await run_for(watcher, time, 3600)
    assert not cboe.asked
    assert watcher.phase is Phase.OUTSIDE_SESSION
    assert watcher.health() == (True, "cboe: outside session")


async def test_the_first_question_comes_with_the_session_as_the_source_shows_it(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    time.now = datetime(2026, 7, 27, 13, 29, tzinfo=UTC)
    cboe.says("AAPL", answer(timestamp="2026-07-27 13:45:00"))
    watcher = poller(live, door, time, "AAPL")
    await run_for(watcher, time, 16 * 60 + 30)  # New York opens at 13:30, Cboe shows it at 13:45
    assert len(cboe.asked) == 1
    assert watcher.phase is Phase.POLLING


async def test_a_failing_fetch_is_tried_again_and_keeps_the_last_good_answer(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", answer(), Reply(b"", 500), Reply(b"", 429, {"retry-after": "1"}), b"<html>", b"garbage")
    watcher = poller(live, door, time, "AAPL")
    await run_for(watcher, time, 70)
    assert len(cboe.asked) == 4  # once, then three attempts
    assert len(await told(data_db)) == 2
    async with door.read() as tx:
        last = await DataService(SnapshotStore(), time).last_good("AAPL", None, tx)
    assert (last.failures, last.header.close) == (1, 333.02)


async def test_a_wait_that_is_too_long_is_not_waited_for(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    cboe.says("AAPL", Reply(b"", 429, {"retry-after": "3600"}))
    await run_for(poller(live, door, time, "AAPL"), time, 1)
    assert len(cboe.asked) == 1


async def test_a_bad_symbol_costs_no_other(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", b"garbage")
    cboe.says("MSFT", answer("MSFT"))
    await run_for(poller(live, door, time, "AAPL", "ZZZZ", "MSFT"), time, 1)
    assert await told(data_db) == [("data.chains", "MSFT"), ("data.quotes", "MSFT")]


async def test_an_unknown_symbol_is_asked_again_after_an_hour_only(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    cboe.says("AAPL", answer())
    await run_for(poller(live, door, time, "AAPL", "ZZZZ"), time, 3599)
    assert cboe.symbols_asked().count("ZZZZ") == 1
    assert cboe.symbols_asked().count("AAPL") == 60


async def test_the_breaker_opens_asks_nothing_and_says_so(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    names = [f"S{number}" for number in range(8)]
    for name in names:
        cboe.says(name, Reply(b"", 500))
    watcher = poller(live, door, time, *names, batch=1, attempts=1, breaker_threshold=3, breaker_s=3600)
    stamina.set_testing(testing=True, attempts=1)
    await run_for(watcher, time, 170)
    assert cboe.symbols_asked() == ["S0", "S1", "S2"]
    assert watcher.phase is Phase.BREAKER_OPEN
    assert watcher.health() == (True, "cboe: breaker open")


async def test_after_the_breaker_those_who_waited_longest_are_asked_first(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    for name in ("A", "B", "C", "D"):
        cboe.says(name, Reply(b"", 500))
    stamina.set_testing(testing=True, attempts=1)
    watcher = poller(live, door, time, "A", "B", "C", "D", batch=1, breaker_threshold=2, breaker_s=3600)
    await watcher.round(live)
    assert cboe.symbols_asked() == ["A", "B"]
    watcher._breakers = type(watcher._breakers)(100, 1)  # as after its time
    for name in ("A", "B", "C", "D"):
        cboe.forget(name)
        cboe.says(name, answer(name))
    await watcher.round(live)
    assert cboe.symbols_asked()[2:] == ["C", "D", "A", "B"]
    assert watcher.phase is Phase.POLLING


async def test_unknown_symbols_do_not_open_the_breaker(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    watcher = poller(live, door, time, "A", "B", "C", batch=1, breaker_threshold=1)
    await watcher.round(live)
    assert cboe.symbols_asked() == ["A", "B", "C"]


async def test_what_users_watch_is_asked_for_besides_the_settings_symbols_up_to_a_cap(
    cboe: FakeCboe, live: CboeSource, door: Door, time: Time
) -> None:
    for name in ("AAPL", "MSFT", "TSLA"):
        cboe.says(name, answer(name))
    service = DataService(SnapshotStore(), time)
    watcher = poller(live, door, time, "AAPL", batch=1, max_watched=2)
    ada, bob = uuid4(), uuid4()
    stocks = [(ada, "TSLA"), (bob, "TSLA"), (ada, "AAPL"), (ada, "JUNK"), (ada, "MSFT"), (ada, "XOM")]
    async with door.transaction() as tx:
        for user_id, symbol in stocks:
            added = StockAdded(id=uuid4(), time=FRIDAY, user_id=user_id, symbol=symbol)
            assert await service.watch(added, tx) == await service.watch(added, tx) == []
    await watcher.round(live)
    assert cboe.symbols_asked() == ["AAPL", "TSLA", "JUNK"]
    await watcher.round(live)  # what is not known takes nobody's place
    assert sorted(cboe.symbols_asked()[3:]) == ["AAPL", "MSFT", "TSLA"]
    async with door.transaction() as tx:
        for user_id in (ada, bob):
            await service.unwatch(StockRemoved(id=uuid4(), time=FRIDAY, user_id=user_id, symbol="TSLA"), tx)
    await watcher.round(live)
    assert sorted(cboe.symbols_asked()[6:]) == ["AAPL", "MSFT", "XOM"]


async def test_being_blocked_makes_no_symbol_unknown_and_opens_the_breaker(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    names = ("A", "B", "C", "D")
    for name in names:
        cboe.says(name, answer(name))
    stamina.set_testing(testing=True, attempts=1)
    watcher = poller(live, door, time, *names, batch=1, breaker_threshold=3, breaker_s=3600)
    cboe.blocked = True
    await watcher.round(live)
    assert cboe.symbols_asked() == ["A", "B", "C"]
    assert watcher.phase is Phase.BREAKER_OPEN
    cboe.blocked = False
    watcher._breakers = type(watcher._breakers)(100, 1)  # as after its time
    await watcher.round(live)
    assert sorted(key for topic, key in await told(data_db) if topic == "data.chains") == list(names)


async def test_a_replay_is_told_once_and_then_it_says_that_it_ended(
    tmp_path: Path, sessions: Sessions, door: Door, data_db: Database, time: Time
) -> None:
    for number, symbol in enumerate(["AAPL", "MSFT", "AAPL"]):
        told_at = f"2026-07-24 18:0{number}:00"
        (tmp_path / f"{number}.json").write_text(json.dumps(answer(symbol, timestamp=told_at)))
    for _ in range(2):  # a restart replays the folder, which tells nothing new
        watcher = poller(ReplaySource(folder=tmp_path, sessions=sessions, clock=time), door, time)
        async with running(watcher):
            await eventually(lambda watcher=watcher: watcher.phase is Phase.ENDED)
        assert watcher.health() == (True, "replay: ended")
    chains = [key for topic, key in await told(data_db) if topic == "data.chains"]
    assert chains == ["AAPL", "MSFT", "AAPL"]


async def test_the_simulator_streams_quotes_between_chains(
    closes: dict[str, Floats], sessions: Sessions, door: Door, data_db: Database, time: Time
) -> None:
    source = SimulatorSource(
        closes=closes,
        sessions=sessions,
        clock=time,
        seed=1,
        unusual=5,
        session_s=86_400.0,
        tick_s=2.0,
        poll_every_s=10.0,
    )
    await run_for(poller(source, door, time, "AAPL", "IBM"), time, 60)
    topics = [topic for topic, _ in await told(data_db)]
    assert topics.count("data.chains") >= 4
    assert topics.count("data.quotes") > 2 * topics.count("data.chains")


async def test_a_worker_that_is_cancelled_mid_fetch_stops_at_once(
    cboe: FakeCboe, live: CboeSource, door: Door, data_db: Database, time: Time
) -> None:
    cboe.says("AAPL", Reply(None))
    async with running(poller(live, door, time, "AAPL")):
        await eventually(lambda: bool(cboe.asked))
    assert await told(data_db) == []


async def test_a_loop_that_no_longer_turns_is_not_healthy(live: CboeSource, door: Door, time: Time) -> None:
    watcher = poller(live, door, time, "AAPL")
    assert watcher.health() == (False, "none: starting")
    await watcher.round(live)
    assert watcher.health()[0]
    time.now += timedelta(hours=1)
    assert watcher.health() == (False, "none: polling, stalled")

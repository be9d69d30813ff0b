"""Workers, real adapters and the stand-ins together, in real time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from services.alerts.adapters.discord import Discord
from services.alerts.service import Options
from services.alerts.workers import Delivery
from shared.clock import utc_now
from shared.db import Database
from shared.work import Busy, Worker
from tests.alerts.conftest import Bench, activity, contract
from tests.alerts.test_notices import receipt
from tests.conftest import ManualClock, eventually
from tests.fakes.discord import Answer, FakeDiscord


@asynccontextmanager
async def delivering(bench: Bench, server: FakeDiscord) -> AsyncGenerator[None]:
    sender = Discord()
    work = Delivery(
        *("discord", sender, bench.store, bench.notices, bench.door),
        router=bench.router,
        targets=bench.targets,
        clicks=bench.clicks,
        clock=bench.clock,
    ).work(8)
    worker = Worker(work, bench.door, utc_now, draw=lambda: 0.0)
    bench.offer(Options(discord_base=server.base), utc_now, worker.wake)
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await sender.close()


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("alerts"), ManualClock(utc_now()))


async def watcher(bench: Bench, url: str, *symbols: str) -> UUID:
    user_id = await bench.user(*symbols)
    await bench.channel(user_id, "discord", url)
    return user_id


async def test_a_burst_to_one_webhook_keeps_to_its_bucket_and_meets_no_429(bench: Bench) -> None:
    with FakeDiscord(limit=2, window_s=0.2) as server:
        async with delivering(bench, server):
            symbols = [f"S{n}" for n in range(7)]
            await watcher(bench, server.webhook(), *symbols)
            await bench.tell(*(activity(symbol=symbol) for symbol in symbols))
            await eventually(lambda: len(server.posts) == 7)
    assert {post.status for post in server.requests} == {200}


async def test_a_503_then_a_429_then_it_arrives_once(bench: Bench) -> None:
    with FakeDiscord() as server:
        async with delivering(bench, server):
            url = server.webhook()
            server.answer(url, Answer(503), Answer(429, {"retry_after": 0.35}, {"Via": "1.1 google"}))
            await watcher(bench, url, "AAPL")
            await bench.tell(activity())

            async def done() -> bool:
                return [row["status"] for row in await bench.rows("deliveries")] == ["done"]

            await eventually(done)
    assert [post.status for post in server.requests] == [503, 429, 200]
    times = [post.at for post in server.requests]
    assert times[1] - times[0] >= 0.5
    assert times[2] - times[1] >= 0.35


async def test_a_webhook_that_does_not_answer_hinders_no_other(bench: Bench) -> None:
    with FakeDiscord() as server:
        async with delivering(bench, server):
            stuck, well = server.webhook(), server.webhook()
            server.answer(stuck, Answer(503, headers={"Retry-After": "3600"}))
            await watcher(bench, stuck, "AAPL")
            await watcher(bench, well, "AAPL")
            await bench.tell(activity())
            await eventually(lambda: sum(post.url == well for post in server.posts) == 1)
            await bench.tell(activity(contract(score=99)))
            await eventually(lambda: sum(post.url == well for post in server.posts) == 2)
    assert sum(post.url == stuck for post in server.posts) <= 1


async def test_a_wait_that_a_channel_asks_for_over_an_alert_holds_for_its_notices(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.tell(activity())
    bench.discord.errors = [Busy(retry_after_s=30)]
    await bench.deliver()
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    assert len(bench.discord.sent) == 1  # which was answered with the wait
    bench.clock.advance(30.001)
    await bench.deliver()
    await bench.deliver()
    assert len(bench.discord.sent) == 3

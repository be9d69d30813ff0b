"""One signal that 100,000 rules look at, through the alerts service as a process, and what few look at beside it.

First 50 events a second, each of one user's symbol, to their Discord posts: the baseline. Then the same again while one
event of a symbol that everybody watches fans out. "Matched and queued" is from the event published to the last alert,
delivery and told event committed; its baseline is Postgres copying as many rows of the same tables, no more. Deliveries
a second are those to the stand-in for Discord once the fan-out has ended; their baseline is bare posts to it.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from statistics import quantiles
from typing import Any, Final

import asyncpg
import httpx
import psutil
from aiokafka import AIOKafkaProducer

from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from services.alerts.domain.channels import lane_of
from shared.clock import new_id, utc_now
from shared.contracts.base import Event
from shared.contracts.detector import ActivityDetected, ScoreParts, UnusualContract
from shared.contracts.topics import TOPICS
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of
from tests.fakes.discord import FakeDiscord

CROWD: Final = 100_000
FEW: Final = 150  # a webhook takes 5 posts in 2 s
RATE: Final = 50
WARM: Final = 250
QUIET_S: Final = 10
BESIDE_S: Final = 15
SINK_S: Final = 5
FAN_OUT_BAR_S: Final = 10.0
FAN_OUT_GOAL_S: Final = 2.0
LATENCY_BAR_MS: Final = 300.0
MEMORY_BAR_MB: Final = 100.0
SINK_BAR: Final = 5_000.0
FIRST_DAY: Final = date(2026, 1, 1)
MB: Final = 1_048_576

_PLACE: Final = re.compile(r"\b(Q\d{3})\b")
_DAY: Final = re.compile(r"\b(\d{4}-\d\d-\d\d)\b")
_BARE: Final = """
    create table bare_{table} (like alerts.{table} including all);
    insert into bare_{table} select * from alerts.{table} where {which}"""


def run() -> list[dict[str, Any]]:
    """Measure; return a row a metric."""
    with servers() as below, FakeDiscord() as discord:
        return asyncio.run(_measure(below, discord))


async def _measure(below: Stack, discord: FakeDiscord) -> list[dict[str, Any]]:
    address = KafkaAddress(below.kafka.bootstrap)
    await ensure_topics(address, TOPICS)
    admin = await asyncpg.connect(below.admin_url)
    try:
        await _people(admin, discord)
        bare_sink = await _bare_posts(discord)
        async with (
            _producer(address) as producer,
            service(below, "alerts", OPENBELL_ALERTS_DISCORD_BASE=discord.base) as (pid, _),
        ):
            beats = _Beats(producer, discord)
            await beats.at_rate(WARM)
            quiet = await beats.at_rate(RATE * QUIET_S)
            process = psutil.Process(pid)
            rest = process.memory_info().rss / MB
            beside, (took, most) = await asyncio.gather(
                beats.at_rate(RATE * BESIDE_S), _fan_out(producer, admin, process)
            )
            sink = await _sink(discord)
        bare = await _bare_rows(admin)
    finally:
        await admin.close()
    ours, plain = quantiles(beside, n=100), quantiles(quiet, n=100)
    grown = most - rest
    return [
        row(
            "one signal to 100,000 rules, matched and queued",
            took,
            "s",
            baseline=bare,
            bar=FAN_OUT_BAR_S,
            goal=FAN_OUT_GOAL_S,
            holds=took < FAN_OUT_BAR_S,
        ),
        row("memory it adds", grown, "MB", baseline=rest, bar=MEMORY_BAR_MB, holds=grown < MEMORY_BAR_MB),
        row("event to Discord post beside it, p50", ours[49], "ms", baseline=plain[49], holds=True),
        row(
            "event to Discord post beside it, p99",
            ours[98],
            "ms",
            baseline=plain[98],
            bar=LATENCY_BAR_MS,
            holds=ours[98] < LATENCY_BAR_MS,
        ),
        row("deliveries to a stand-in", sink, "posts/s", baseline=bare_sink, bar=SINK_BAR, holds=sink >= SINK_BAR),
    ]


async def _people(admin: "asyncpg.Connection[Any]", discord: FakeDiscord) -> None:
    """Make everybody who watches CROWD, and a few with a symbol of their own."""
    now = utc_now()
    symbols = ["CROWD"] * CROWD + [f"Q{number:03d}" for number in range(FEW)]
    people = [(new_id(), symbol, discord.webhook()) for symbol in symbols]
    await admin.copy_records_to_table(
        "users",
        schema_name="alerts",
        columns=["user_id", "min_score", "min_premium_usd"],
        records=[(user, 0.0, Decimal(0)) for user, _, _ in people],
    )
    await admin.copy_records_to_table(
        "watched",
        schema_name="alerts",
        columns=["user_id", "symbol"],
        records=[(user, symbol) for user, symbol, _ in people],
    )
    await admin.copy_records_to_table(
        "channels",
        schema_name="alerts",
        columns=["user_id", "channel", "target", "lane", "enabled", "confirmed_at", "created_at", "updated_at"],
        records=[(user, "discord", hook, lane_of("discord", hook), True, now, now, now) for user, _, hook in people],
    )
    await admin.execute("analyze alerts.users; analyze alerts.watched; analyze alerts.channels")


class _Beats:
    """Events of one user's symbol each, no symbol and session twice, and the milliseconds to their posts."""

    def __init__(self, producer: AIOKafkaProducer, discord: FakeDiscord) -> None:
        self._producer = producer
        self._discord = discord
        self._number = 0

    async def at_rate(self, total: int) -> list[float]:
        sent: dict[tuple[str, str], float] = {}
        posts = len(self._discord.posts)
        began = time.monotonic()
        for number in range(total):
            symbol, day = f"Q{self._number % FEW:03d}", FIRST_DAY + timedelta(days=self._number // FEW)
            self._number += 1
            event = _activity(symbol, day)
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            sent[symbol, day.isoformat()] = time.time()
            await _tell(self._producer, event)
        taken: dict[tuple[str, str], float] = {}

        async def arrived() -> bool:
            nonlocal posts
            for post in self._discord.posts[posts:]:
                posts += 1
                said = str(post.payload)
                if place := _PLACE.search(said):
                    day = next(day for day in _DAY.findall(said) if (place[1], day) in sent)
                    taken[place[1], day] = (post.at - sent[place[1], day]) * 1000
            return len(taken) == total

        await until(arrived, 120)
        return list(taken.values())


async def _fan_out(
    producer: AIOKafkaProducer, admin: "asyncpg.Connection[Any]", process: psutil.Process
) -> tuple[float, float]:
    """Tell of a symbol that everybody watches; return seconds until all is queued, and the most memory held."""
    await asyncio.sleep(1)
    began = time.time()
    await _tell(producer, _activity("CROWD", FIRST_DAY))
    most = 0.0

    async def done() -> bool:
        nonlocal most
        most = max(most, process.memory_info().rss / MB)
        return bool(await admin.fetchval("select exists (select from alerts.fan_outs where status = 'done')"))

    await until(done, 300)
    ended: datetime = await admin.fetchval("select max(settled_at) from alerts.fan_outs")
    assert await admin.fetchval("select count(*) from alerts.alerts where symbol = 'CROWD'") == CROWD
    assert await admin.fetchval("select count(*) from alerts.deliveries where bulk") == CROWD
    return ended.timestamp() - began, most


async def _sink(discord: FakeDiscord) -> float:
    posts, began = len(discord.posts), time.monotonic()
    await asyncio.sleep(SINK_S)
    return (len(discord.posts) - posts) / (time.monotonic() - began)


async def _bare_posts(discord: FakeDiscord) -> float:
    """Post as fast as may be, 32 at once, each to a webhook of its own; return posts a second."""
    hooks = iter([discord.webhook() for _ in range(100_000)])
    done = 0

    async def posting(http: httpx.AsyncClient, until_s: float) -> None:
        nonlocal done
        while time.monotonic() < until_s:
            await http.post(next(hooks), params={"wait": "true"}, json={"content": "hello"})
            done += 1

    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(trust_env=False, limits=limits) as http, asyncio.TaskGroup() as tasks:
        for _ in range(32):
            tasks.create_task(posting(http, time.monotonic() + SINK_S))
    return done / SINK_S


async def _bare_rows(admin: "asyncpg.Connection[Any]") -> float:
    """Copy the rows that the fan-out wrote into tables of the same form; return seconds. An alert is an event told."""
    began = time.monotonic()
    for table, which in (("alerts", "symbol = 'CROWD'"), ("deliveries", "bulk")):
        await admin.execute(_BARE.format(table=table, which=which))
    await admin.execute("create table bare_outbox (like alerts.outbox including all)")
    await admin.execute("""
        insert into bare_outbox (topic, key, value, headers)
        select 'alerts.alerts', uuid_send(user_id), convert_to(to_jsonb(a)::text, 'UTF8'), ''
        from alerts.alerts a where symbol = 'CROWD'""")
    return time.monotonic() - began


async def _tell(producer: AIOKafkaProducer, event: Event) -> None:
    headers = [(name.decode(), value) for name, value in headers_of(event, "/bench")]
    await producer.send_and_wait(event.topic.name, event.to_bytes(), event.key.encode(), headers=headers)


@asynccontextmanager
async def _producer(address: KafkaAddress) -> AsyncGenerator[AIOKafkaProducer]:
    producer = address.writer("bench")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def _activity(symbol: str, session: date) -> ActivityDetected:
    contracts = tuple(
        UnusualContract(
            contract=f"{symbol}{session:%y%m%d}C{strike:05d}000",
            right="C",
            expiration=session + timedelta(days=30),
            strike=Decimal(strike),
            bid=Decimal("1.00"),
            ask=Decimal("1.10"),
            last=Decimal("1.10"),
            volume=5_000,
            open_interest=1_000,
            volume_oi_ratio=5.0,
            volume_change=5_000,
            premium_usd=Decimal(550_000),
            dte=30,
            otm_pct=3.0,
            iv=0.4,
            side="ask",
            score=80.0,
            parts=ScoreParts(volume_oi=30, premium=20, otm=10, dte=10, side=5, change=5),
        )
        for strike in range(100, 105)
    )
    return ActivityDetected(
        id=new_id(),
        time=utc_now(),
        symbol=symbol,
        session=session,
        as_of=datetime(session.year, session.month, session.day, 15, tzinfo=UTC),
        source="bench",
        simulated=False,
        delay_s=0,
        underlying_usd=Decimal(100),
        contracts=contracts,
    )


if __name__ == "__main__":
    for line in run():
        print(line)

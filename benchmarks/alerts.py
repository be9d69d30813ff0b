"""One signal that 100,000 rules look at, through the alerts service as a process, and what few look at beside it.

First 50 events a second, each of one user's symbol, to their Discord posts: without charts, then with them, the
baseline of what follows. Then the same again while one event of a symbol that everybody watches fans out, and while its
deliveries go out. Then the deliveries alone, and, the rest of them ended, a fan-out alone. "Matched and queued" is from
the event published to the last alert, delivery and told event committed; its baseline is Postgres copying as many rows
of the same tables, no more. Deliveries a second are those to a sink (benchmarks/sink.py); their baseline is bare posts
to it. Processor time a row is that of the service, and of all of Postgres.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from statistics import quantiles
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import msgspec
from aiokafka import AIOKafkaProducer

from benchmarks.costs import Costs
from benchmarks.sink import Sink, sink
from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from services.alerts.adapters.charts.artist import Artist
from services.alerts.domain.channels import lane_of
from services.alerts.domain.charts import Bar, Chart
from services.alerts.domain.matching import sightings
from services.alerts.service.targets import seal
from services.alerts.settings import DEVELOPMENT_KEYS
from services.alerts.store.targets import Place
from shared.clock import new_id, utc_now
from shared.contracts.base import Event
from shared.contracts.detector import ActivityDetected, ScoreParts, UnusualContract
from shared.contracts.topics import TOPICS
from shared.envelope import Envelope, Keys
from shared.identity import HEADER, Identity, Signer, identity_secret
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of

CROWD: Final = 100_000
FEW: Final = 150  # a webhook takes 5 posts in 2 s
RATE: Final = 50
WARM: Final = 250
QUIET_S: Final = 10
BESIDE_S: Final = 30
SINK_S: Final = 5
FAN_OUT_BAR_S: Final = 10.0
FAN_OUT_GOAL_S: Final = 2.0
LATENCY_BAR_MS: Final = 300.0
MEMORY_BAR_MB: Final = 100.0
SINK_BAR: Final = 5_000.0
FIRST_DAY: Final = date(2026, 1, 1)

CHARTS_WARM: Final = 5
CHARTS: Final = 100
CHART_BAR_MS: Final = 200.0
KEPT: Final = 100_000

_END_THE_REST: Final = """
    update alerts.deliveries set status = 'suppressed', settled_at = now() where id in (
        select id from alerts.deliveries where bulk and status = 'pending' for update skip locked)"""
_BARE: Final = """
    create table bare_{table} (like alerts.{table} including all);
    insert into bare_{table} select * from alerts.{table} where {which}"""


def run() -> list[dict[str, Any]]:
    """Measure; return a row a metric."""
    with servers() as below:
        return asyncio.run(_measure(below))


async def _measure(below: Stack) -> list[dict[str, Any]]:
    address = KafkaAddress(below.kafka.bootstrap)
    await ensure_topics(address, TOPICS)
    rows = await charts()
    async with contextlib.AsyncExitStack() as stack:
        admin = await asyncpg.connect(below.admin_url)
        stack.push_async_callback(admin.close)
        there = await stack.enter_async_context(sink())
        producer = await stack.enter_async_context(_producer(address))
        await _people(admin, there)
        bare = await _bare_posts(there)
        beats = _Beats(producer, there)
        base = {"OPENBELL_ALERTS_DISCORD_BASE": there.base}
        async with service(below, "alerts", **base, OPENBELL_ALERTS_CHARTS="false"):
            await beats.at_rate(WARM)
            without = await beats.at_rate(RATE * QUIET_S)
        async with service(below, "alerts", **base) as (pid, port):
            costs = Costs(pid, await admin.fetchval("select pg_backend_pid()"))
            await beats.at_rate(WARM)
            quiet = await beats.at_rate(RATE * QUIET_S)
            rows += _latency("event to Discord post", quiet, without)
            rest = costs.memory_mb()
            fanned = _fan_out(producer, admin, costs, FIRST_DAY)
            beside, slowed = await asyncio.gather(beats.at_rate(RATE * BESIDE_S), fanned)
            rows += _latency("event to Discord post beside a fan-out", beside, quiet, bar=LATENCY_BAR_MS)
            rows += await _sink_rows(there, costs, bare)
            await admin.execute(_END_THE_REST)
            await asyncio.sleep(1)
            before = costs.now()
            took = await _fan_out(producer, admin, costs, FIRST_DAY + timedelta(days=1))
            rows += costs.rows("a rule fanned out", before, CROWD)
            rows += _fanned(took, slowed, await _bare_rows(admin))
            grown = costs.most_mb - rest
            rows.append(
                row("memory it adds", grown, "MB", baseline=rest, bar=MEMORY_BAR_MB, holds=grown < MEMORY_BAR_MB)
            )
            rows.append(await _trial(below, admin, port))
    return rows


def _fanned(took: float, slowed: float, bare: float) -> list[dict[str, Any]]:
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
        row(f"the same beside {RATE} events a second", slowed, "s", baseline=took, holds=True),
    ]


def _latency(what: str, ours: list[float], plain: list[float], bar: float | None = None) -> list[dict[str, Any]]:
    found, base = quantiles(ours, n=100), quantiles(plain, n=100)
    holds = bar is None or found[98] < bar
    return [
        row(f"{what}, p50", found[49], "ms", baseline=base[49], holds=True),
        row(f"{what}, p99", found[98], "ms", baseline=base[98], bar=bar, holds=holds),
    ]


async def charts() -> list[dict[str, Any]]:
    """Draw charts of full sessions, one after the other, in the process that draws for the service."""
    artist, took = Artist(burst=1_000, timeout_s=30.0), list[float]()
    try:
        for number in range(CHARTS_WARM + CHARTS):
            chart = Chart(
                symbol=f"Q{number:03d}",
                session=FIRST_DAY,
                points=tuple((1_767_277_800 + 60 * minute, 100 + (minute * number) % 7) for minute in range(390)),
                marked=1_767_277_800 + 3_600,
                bars=tuple(Bar(f"20 Jun {strike} call", 5_000 + number, 1_000) for strike in range(100, 105)),
                simulated=False,
            )
            began = time.monotonic()
            assert await artist.draw(chart) is not None
            took.append((time.monotonic() - began) * 1000)
    finally:
        await artist.close()
    found = quantiles(took[CHARTS_WARM:], n=100)
    return [
        row("a chart drawn, p50", found[49], "ms", holds=True),
        row("a chart drawn, p99", found[98], "ms", bar=CHART_BAR_MS, holds=found[98] < CHART_BAR_MS),
    ]


async def _trial(below: Stack, admin: "asyncpg.Connection[Any]", port: int) -> dict[str, Any]:
    """Try a rule on KEPT events of activity: as many are looked at as a trial looks at."""
    lines = json.dumps({"lines": [msgspec.to_builtins(line) for line in sightings(_activity("TRIAL", FIRST_DAY))]})
    now = utc_now()
    await admin.copy_records_to_table(
        "kept_events",
        schema_name="alerts",
        columns=["id", "kind", "symbol", "session", "at", "fields"],
        records=[
            (new_id(), "activity", f"T{number % 500}", FIRST_DAY, now - timedelta(seconds=10 * number + 1), lines)
            for number in range(KEPT)
        ],
    )
    await admin.execute("analyze alerts.kept_events")
    user = new_id()
    secret = identity_secret(below.settings())
    headers = {HEADER: Signer(secret, utc_now).sign(Identity(user, "user"), audience="alerts", request_id="bench")}
    rule = {"name": "trial", "symbols": [], "min_score": 79, "min_premium_usd": 1}
    url = f"http://127.0.0.1:{port}/api/alerts/{user}/rules/try"
    async with httpx.AsyncClient(trust_env=False, timeout=120, headers=headers) as http:
        began = time.monotonic()
        answer = await http.post(url, json=rule)
    took = time.monotonic() - began
    assert answer.status_code == httpx.codes.OK.value, answer.text
    told = answer.json()
    return row(f"a rule tried on {KEPT:,} kept events, {told['examined']:,} looked at", took, "s", holds=True)


async def _people(admin: "asyncpg.Connection[Any]", there: Sink) -> None:
    """Make everybody who watches CROWD, and a few with a symbol of their own."""
    now = utc_now()
    symbols = ["CROWD"] * CROWD + [f"Q{number:03d}" for number in range(FEW)]
    people = [(new_id(), symbol, there.webhook()) for symbol in symbols]
    envelope = Envelope(Keys(DEVELOPMENT_KEYS), os.urandom)
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
        columns=[
            *("user_id", "channel", "lane", "target", "key_id", "wrapped", "body", "shown"),
            *("enabled", "confirmed_at", "created_at", "updated_at"),
        ],
        records=[(*_sealed(envelope, user, hook), True, now, now, now) for user, _, hook in people],
    )
    await admin.execute("analyze alerts.users; analyze alerts.watched; analyze alerts.channels")


def _sealed(envelope: Envelope, user: UUID, hook: str) -> tuple[Any, ...]:
    place = Place(user, "discord", lane_of("discord", hook))
    return (*place.params().values(), *seal(envelope, place, hook).params().values())


class _Beats:
    """Events of one user's symbol each, no symbol and session twice, and the milliseconds to their posts."""

    def __init__(self, producer: AIOKafkaProducer, there: Sink) -> None:
        self._producer = producer
        self._there = there
        self._number = 0

    async def at_rate(self, total: int) -> list[float]:
        sent: dict[tuple[str, str], float] = {}
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
            _, seen = await self._there.seen()
            for symbol, days, at in seen:
                if (day := next((day for day in days if (symbol, day) in sent), None)) is not None:
                    taken[symbol, day] = (at - sent[symbol, day]) * 1000
            return len(taken) == total

        await until(arrived, 300, every_s=0.25)
        return list(taken.values())


async def _fan_out(producer: AIOKafkaProducer, admin: "asyncpg.Connection[Any]", costs: Costs, session: date) -> float:
    """Tell of a symbol that everybody watches; return seconds until all is queued."""
    await asyncio.sleep(1)
    began = time.time()
    await _tell(producer, _activity("CROWD", session))

    async def done() -> bool:
        costs.memory_mb()
        ended = "select bool_and(settled_at is not null) from alerts.fan_outs where session = $1"
        return bool(await admin.fetchval(ended, session))

    await until(done, 600)
    for table in ("alerts where symbol = 'CROWD' and", "deliveries where bulk and"):
        assert await admin.fetchval(f"select count(*) from alerts.{table} session = $1", session) == CROWD
    ended: datetime = await admin.fetchval("select max(settled_at) from alerts.fan_outs")
    return ended.timestamp() - began


async def _sink_rows(there: Sink, costs: Costs, bare: float) -> list[dict[str, Any]]:
    """Let the fan-out's deliveries go on, with nothing beside them."""
    (posts, _), before, began = await there.seen(), costs.now(), time.monotonic()
    while time.monotonic() - began < SINK_S:
        await asyncio.sleep(0.25)
        costs.memory_mb()
    count, took = (await there.seen())[0] - posts, time.monotonic() - began
    return [
        row(
            "deliveries to a sink", count / took, "posts/s", baseline=bare, bar=SINK_BAR, holds=count / took >= SINK_BAR
        ),
        *costs.rows("a delivery", before, count),
    ]


async def _bare_posts(there: Sink) -> float:
    """Post as fast as may be, 32 at once, each to a webhook of its own; return posts a second."""
    hooks = iter([there.webhook() for _ in range(100_000)])
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
    day = f"session = '{FIRST_DAY}'"
    for table, which in (("alerts", f"symbol = 'CROWD' and {day}"), ("deliveries", f"bulk and {day}")):
        await admin.execute(_BARE.format(table=table, which=which))
    await admin.execute("create table bare_outbox (like alerts.outbox including all)")
    await admin.execute("""
        insert into bare_outbox (topic, key, value, headers)
        select 'alerts.alerts', uuid_send(user_id), convert_to(to_jsonb(a)::text, 'UTF8'), ''
        from bare_alerts a""")
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

"""From a snapshot published to its Discord post received: detector and alerts as processes, 50 alerts/s, many webhooks.

The baseline is the least that could be done: a plain consumer that posts each record to the same webhooks, with no
state, no detection and no promise, at the same rate in the same run.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from statistics import quantiles
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import pyarrow as pa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.market import ticker
from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from shared.clock import new_id, utc_now
from shared.contracts.api import StockAdded, UserSettingsChanged, UserSignedUp
from shared.contracts.base import Event
from shared.contracts.data import CHAIN_SCHEMA, ChainCollected, ChainHeader
from shared.contracts.topics import TOPICS, Topic
from shared.identity import HEADER, Identity, Signer
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of
from tests.fakes.discord import FakeDiscord

RATE: Final = 50
USERS: Final = 150  # a webhook takes 5 posts in 2 s
SECONDS: Final = 20
WARM: Final = 250  # what is loaded at first use is loaded, as in a process that has run a minute
BAR_MS: Final = 500.0
FIRST_DAY: Final = date(2026, 1, 1)
BLANK: Final = Topic("bench.posts", partitions=8)

Send = Callable[[int], Awaitable[None]]


def run() -> list[dict[str, Any]]:
    """Measure; return rows for p50 and p99."""
    with servers() as below, FakeDiscord() as discord:
        return asyncio.run(measure(below, discord))


async def measure(below: Stack, discord: FakeDiscord) -> list[dict[str, Any]]:
    """Measure on servers that run already."""
    address = KafkaAddress(below.kafka.bootstrap)
    await ensure_topics(address, [*TOPICS, BLANK])
    users = [new_id() for _ in range(USERS)]
    hooks = [discord.webhook() for _ in range(USERS)]
    async with _producer(address) as producer:
        plain = await _plainly(address, producer, discord)
        async with (
            service(below, "detector"),
            service(below, "alerts", OPENBELL_ALERTS_DISCORD_BASE=discord.base) as (_, port),
        ):
            await _settle_users(below, producer, users, hooks, port)
            ours = await _through(producer, discord)
    p50, p99 = _percentiles(ours)
    plain50, plain99 = _percentiles(plain)
    return [
        row("snapshot published to Discord post, p50", p50, "ms", baseline=plain50, holds=True),
        row("snapshot published to Discord post, p99", p99, "ms", baseline=plain99, bar=BAR_MS, holds=p99 < BAR_MS),
    ]


async def _settle_users(
    below: Stack, producer: AIOKafkaProducer, users: list[UUID], hooks: list[str], port: int
) -> None:
    """Make users that watch a symbol each and have a webhook each."""
    for number, user in enumerate(users):
        about: dict[str, Any] = {"user_id": user, "time": utc_now()}
        await _tell(producer, UserSignedUp(**about, id=new_id(), email=f"u{number}@x.example", role="user"))
        settings = {"timezone": "UTC", "alerts_enabled": True, "min_score": 0, "min_premium_usd": 0}
        await _tell(producer, UserSettingsChanged.model_validate(about | settings | {"id": new_id()}))
        await _tell(producer, StockAdded(**about, id=new_id(), symbol=ticker(number)))
    admin = await asyncpg.connect(below.admin_url)

    async def known() -> bool:
        return (
            await admin.fetchval("select count(*) from alerts.watched") == USERS
            and await admin.fetchval("select count(*) from alerts.users where min_score = 0") == USERS
        )

    try:
        await until(known, 60)
    finally:
        await admin.close()
    signer = Signer(below.settings().identity_secret.get_secret_value(), utc_now)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        for user, hook in zip(users, hooks, strict=True):
            token = signer.sign(Identity(user, "user"), audience="alerts", request_id="bench")
            answer = await http.put(
                f"/api/alerts/{user}/channels/discord", json={"target": hook}, headers={HEADER: token}
            )
            answer.raise_for_status()


async def _through(producer: AIOKafkaProducer, discord: FakeDiscord) -> list[float]:
    """Publish snapshots at the rate, each of which is one alert of one user; return milliseconds to the posts."""
    sent: dict[tuple[str, str], float] = {}
    total = WARM + RATE * SECONDS
    places = [(ticker(number % USERS), FIRST_DAY + timedelta(days=number // USERS)) for number in range(total)]
    chains = [_chain(symbol, session) for symbol, session in places]
    bodies = [chain.to_bytes() for chain in chains]  # making them is not what is measured

    async def publish(number: int) -> None:
        symbol, session = places[number]
        sent[symbol, session.isoformat()] = time.time()
        await _tell(producer, chains[number], bodies[number])

    discord.posts.clear()
    await _at_rate(total, publish)
    await until(lambda: _count(discord, total), 60)
    taken: list[float] = []
    for post in discord.posts[WARM:]:
        said = str(post.payload)
        symbol = post.payload["content"].replace("[", " ").replace(":", " ").split()[0]
        session = next(day for (name, day) in sent if name == symbol and day in said)
        taken.append((post.at - sent[symbol, session]) * 1000)
    return taken


async def _plainly(address: KafkaAddress, producer: AIOKafkaProducer, discord: FakeDiscord) -> list[float]:
    """Consume and post, no more; return milliseconds."""
    hooks = [discord.webhook() for _ in range(USERS)]
    consumer = AIOKafkaConsumer(bootstrap_servers=address.bootstrap, fetch_max_wait_ms=40, auto_offset_reset="earliest")
    await consumer.start()
    parts = [TopicPartition(BLANK.name, number) for number in range(BLANK.partitions)]
    consumer.assign(parts)
    sent: dict[str, float] = {}
    total = RATE * 6

    async def publish(number: int) -> None:
        sent[str(number)] = time.time()
        await producer.send_and_wait(BLANK.name, str(number).encode(), str(number).encode())

    async def post(http: httpx.AsyncClient, number: bytes) -> None:
        hook = hooks[int(number) % USERS]
        (await http.post(hook, params={"wait": "true"}, json={"content": number.decode()})).raise_for_status()

    async with httpx.AsyncClient(trust_env=False) as http, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_at_rate(total, publish))
        while len(discord.posts) < total:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    tasks.create_task(post(http, record.value or b""))
        await sending
    await consumer.stop()
    return [(one.at - sent[one.payload["content"]]) * 1000 for one in discord.posts]


async def _at_rate(total: int, send: Send) -> None:
    began = time.monotonic()
    for number in range(total):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        await send(number)


async def _count(discord: FakeDiscord, total: int) -> bool:
    return len(discord.posts) >= total


async def _tell(producer: AIOKafkaProducer, event: Event, body: bytes | None = None) -> None:
    headers = [(name.decode(), value) for name, value in headers_of(event, "/bench")]
    await producer.send_and_wait(event.topic.name, body or event.to_bytes(), event.key.encode(), headers=headers)


@asynccontextmanager
async def _producer(address: KafkaAddress) -> AsyncGenerator[AIOKafkaProducer]:
    producer = address.writer("bench")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def _chain(symbol: str, session: date) -> ChainCollected:
    expiration = session + timedelta(days=30)
    contracts = pa.Table.from_pylist(
        [
            {
                "contract": f"{symbol}{expiration:%y%m%d}C{strike:05d}000",
                "expiration": expiration,
                "right": "C",
                "strike": float(strike),
                "bid": 1.0,
                "ask": 1.1,
                "last": 1.1,
                "volume": 5000.0 if strike == 100 else 5.0,
                "open_interest": 1000.0,
            }
            for strike in range(80, 121)
        ],
        schema=CHAIN_SCHEMA,
    )
    as_of = datetime(session.year, session.month, session.day, 15, tzinfo=UTC)
    header = ChainHeader(
        symbol=symbol, session=session, as_of=as_of, source="simulator", simulated=False, delay_s=0, close=100.0
    )
    return ChainCollected(id=new_id(), time=utc_now(), header=header, contracts=contracts)


def _percentiles(taken: list[float]) -> tuple[float, float]:
    cuts = quantiles(taken, n=100)
    return cuts[49], cuts[98]

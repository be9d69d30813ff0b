"""Webhooks: how fast they are taken, against a bare endpoint of the same framework, and how soon they are settled.

    python -m benchmarks.payment

Intake: POST /pay/webhooks/stripe over real sockets from 32 connections, each webhook signed and new; the service keeps
it and tells of it in one transaction. The baseline is a Litestar endpoint that reads the id out of the body and
inserts the same row, and nothing else. Each server is a process of its own; rounds alternate, the ratio is the median
of the rounds' ratios.

Settled: 10,000 webhooks of customers who begin, pay and renew go to the whole service on Apache Kafka, in front of the
stand-in for Stripe (a thread of this process, so its time is in the figure); from the first post until nothing is left
to ask and all is told.
"""

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson
import uvloop
from litestar import Litestar, Request, Response, post

from benchmarks.client import Figures, load
from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from services.payment.main import build
from shared import migrate
from shared.lean import collect_rarely
from shared.process import http_server
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.fakes.stripe import WEBHOOK_SECRET, FakeStripe
from tests.infra import postgres_server
from tests.payment.lives import Life

CONNECTIONS: Final = 32
ROUNDS: Final = 5
REQUESTS: Final = 4_000
BAR: Final = 0.70
P99_MS: Final = 50.0
WEBHOOKS: Final = 10_000
PLANS: Final = (
    '[{"name":"pro","title":"Pro","price_usd":"29","entitlements":["pro"],"stripe_price":"price_pro"},'
    '{"name":"max","title":"Max","price_usd":"59","entitlements":["max"],"stripe_price":"price_max"}]'
)
ENV: Final = {
    "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS": WEBHOOK_SECRET,
    "OPENBELL_PAYMENT_PLANS": PLANS,
    "OPENBELL_LOG_LEVEL": "ERROR",
}

_INSERT: Final = """
    insert into webhooks (event_id, created, type, object_kind, object_id, customer, livemode, swept, body, received_at)
    values ($1, $2, $3, $4, $5, $6, $7, false, $8, $9) on conflict do nothing"""


def run() -> list[dict[str, Any]]:
    """Return the figures."""
    taken = uvloop.run(_intake())
    with servers() as below, FakeStripe(int(time.time()) - 40 * 86_400) as fake:
        return [*taken, uvloop.run(_settling(below, fake))]


async def _intake() -> list[dict[str, Any]]:
    with postgres_server() as dsn:
        await migrate.upgrade_all(dsn)
        numbers = itertools.count()
        async with _server(dsn, "serve") as ours, _server(dsn, "bare") as bare:
            for port in (ours, bare):
                await _load(port, _requests(numbers, CONNECTIONS * 4))
            rounds = [
                (await _load(bare, _requests(numbers, REQUESTS)), await _load(ours, _requests(numbers, REQUESTS)))
                for _ in range(ROUNDS)
            ]
        await _all_kept(dsn, 2 * (CONNECTIONS * 4 + ROUNDS * REQUESTS))
    rate, p99 = (statistics.median(ours[figure] for _, ours in rounds) for figure in (0, 1))
    raw, raw_p99 = (statistics.median(bare[figure] for bare, _ in rounds) for figure in (0, 1))
    ratio = statistics.median(ours[0] / bare[0] for bare, ours in rounds)
    metric = f"webhook intake, {CONNECTIONS} connections (baseline: bare endpoint, same insert)"
    return [
        row(metric, rate, "requests/s (bar: ratio)", baseline=raw, ratio=ratio, bar=BAR, holds=ratio >= BAR),
        row(f"{metric}, p99", p99 * 1000, "ms", baseline=raw_p99 * 1000, bar=P99_MS, holds=p99 * 1000 < P99_MS),
    ]


async def _all_kept(dsn: str, expected: int) -> None:
    admin = await asyncpg.connect(dsn)
    kept = await admin.fetchval("select count(*) from payment.webhooks")
    told = await admin.fetchval("select count(*) from payment.outbox")
    await admin.close()
    assert (kept, told) == (expected, expected // 2), (kept, told)


def _requests(numbers: Iterator[int], count: int) -> list[bytes]:
    """Return so many requests, each a webhook that never came before."""
    fake = FakeStripe()
    fake.price(2900, price_id="price_pro")
    life = Life(fake, UUID(int=1), "")
    life.begin()
    life.buy()
    (like,) = (event for event in fake.events if event["type"] == "invoice.paid")
    like["created"] = int(time.time())
    found: list[bytes] = []
    for number in itertools.islice(numbers, count):
        body, headers = fake.signed(like | {"id": f"evt_bench{number}"})
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = ["POST /pay/webhooks/stripe HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *lines]
        found.append(("\r\n".join(head) + "\r\n\r\n").encode() + body)
    return found


@contextlib.asynccontextmanager
async def _server(dsn: str, what: str) -> AsyncGenerator[int]:
    env = {**os.environ, **ENV, "OPENBELL_DATABASE_URL": dsn}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.payment", what, env=env, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def _load(port: int, requests: Sequence[bytes]) -> Figures:
    return await load(port, [iter(requests)] * CONNECTIONS)  # which share them


async def _settling(below: Stack, fake: FakeStripe) -> dict[str, Any]:
    events, users = _lives(fake)
    admin = await asyncpg.connect(below.settings().database_url)
    env = {**ENV, "OPENBELL_PAYMENT_STRIPE_KEY": fake.key, "OPENBELL_PAYMENT_STRIPE_BASE": fake.url}
    async with service(below, "payment", **env, OPENBELL_PAYMENT_STRIPE_CONCURRENCY="16") as (_, port):
        await admin.executemany(
            "insert into payment.customers values ($1, 'a@example.com', null, now())", [(one,) for one in users]
        )
        requests = [_request(fake, event) for event in events]
        began = time.perf_counter()
        await _load(port, requests)

        async def settled() -> bool:
            left = """select (select count(*) from payment.refreshes where status <> 'done')
                + (select count(*) from payment.outbox) + (select count(*) from payment.failed_jobs) as left_,
                (select count(*) from payment.refreshes) as known"""
            counts = await admin.fetchrow(left)
            return counts is not None and counts["left_"] == 0 and counts["known"] > len(users)

        await until(settled, 900)
        rate = len(events) / (time.perf_counter() - began)
        active = await admin.fetchval("select count(*) from payment.subscriptions where status = 'active'")
        assert active == len(users), active
    await admin.close()
    return row(f"{WEBHOOKS:,} webhooks to settled state", rate, "events/s", holds=True)


def _lives(fake: FakeStripe) -> tuple[list[dict[str, Any]], list[UUID]]:
    """Let users come, pay and renew until there are enough events."""
    product = fake.price(2900, price_id="price_pro")["product"]
    fake.price(5900, product=product, price_id="price_max")
    lives: list[Life] = []
    while len(fake.events) < WEBHOOKS * 0.65:
        life = Life(fake, UUID(int=len(lives) + 1, version=4), "")
        life.begin()
        life.buy()
        lives.append(life)
    fake.advance(days=40)
    return fake.events[:WEBHOOKS], [life.user_id for life in lives]


def _request(fake: FakeStripe, event: dict[str, Any]) -> bytes:
    body, headers = fake.signed(event)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST /pay/webhooks/stripe HTTP/1.1", "host: localhost", f"content-length: {len(body)}", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


async def _serve(app: Litestar) -> None:
    collect_rarely()  # as a service's process does
    server = http_server(app, "127.0.0.1", 0)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


def _bare() -> Litestar:
    pool = Service("payment", Environment(SharedSettings())).db.pool

    @post("/pay/webhooks/stripe", status_code=200)
    async def webhook(request: Request[Any, Any, Any]) -> Response[bytes]:
        body = await request.body()
        event = orjson.loads(body)
        thing = event["data"]["object"]
        at = datetime.fromtimestamp(event["created"], UTC)
        names = (event["id"], at, event["type"], thing["object"], thing["id"], thing["customer"], event["livemode"])
        connection = await pool.acquire()
        try:
            await connection.execute(_INSERT, *names, body, datetime.now(UTC))
        finally:
            pool.release(connection)
        return Response(b"{}", media_type="application/json")

    return Litestar([webhook], openapi_config=None)


def main() -> None:
    """Run what the first argument says: one of the servers, or the benchmark."""
    match sys.argv[1:]:
        case ["serve"]:
            uvloop.run(_serve(build(Environment()).app))
        case ["bare"]:
            uvloop.run(_serve(_bare()))
        case _:
            print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()

"""The gateway's point read against raw asyncpg through the same fair pool, 64 callers each, on the same machine.

    python -m benchmarks.gateway

The read is GET /api/user/{id}/settings with an API key, limits, metrics and request ids, over real sockets; the server
is a process of its own, and so is the raw loop. Rounds alternate; the ratio is the median of the rounds' ratios.
"""

import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import uvloop

from benchmarks.client import Figures, figures, load
from benchmarks.stack import row
from services.api.main import build
from services.api.service import By, Keys, Users
from services.api.settings import ApiSettings
from shared import migrate
from shared.clock import new_id
from shared.lean import collect_rarely
from shared.process import http_server
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.infra import postgres_server

CONNECTIONS: Final = 64
ROUNDS: Final = 3
ROUND_S: Final = 3.0
BAR: Final = 0.20
GOAL: Final = 0.45

_QUERY: Final = (
    "select user_id, timezone, alerts_enabled, min_score, min_premium_usd from user_settings where user_id = $1"
)


async def run() -> list[dict[str, Any]]:
    """Return the figures: requests a second and the slow end of the latencies, both against raw reads."""
    with postgres_server() as dsn:
        await migrate.upgrade_all(dsn)
        users = await _sign_up(dsn)
        async with _server(dsn) as port:
            await _load(port, users, 1.0)
            rounds = [(await _raw(dsn, users), await _load(port, users, ROUND_S)) for _ in range(ROUNDS)]
    rate, p99 = (_middle([ours for _, ours in rounds], figure) for figure in (0, 1))
    raw, raw_p99 = (_middle([raw for raw, _ in rounds], figure) for figure in (0, 1))
    ratio = statistics.median(ours[0] / raw[0] for raw, ours in rounds)
    holds = ratio >= BAR
    metric = "gateway point read, 64 connections (baseline: raw asyncpg)"
    return [
        row(
            metric, rate, "requests/s (bar and goal: ratio)", baseline=raw, ratio=ratio, bar=BAR, goal=GOAL, holds=holds
        ),
        row(f"{metric}, p99", p99 * 1000, "ms", baseline=raw_p99 * 1000, holds=True),
    ]


def _middle(rounds: list[Figures], figure: int) -> float:
    return statistics.median(one[figure] for one in rounds)


async def _sign_up(dsn: str) -> list[tuple[UUID, str]]:

    gateway = build(Environment(SharedSettings(database_url=dsn)))
    keys = Keys(ApiSettings().key_secret.get_secret_value(), forget=lambda _: None)
    by = By("system", datetime.now(UTC), new_id)
    found: list[tuple[UUID, str]] = []
    for number in range(CONNECTIONS):
        address = f"user{number}@example.com"
        done = await gateway.door.run(lambda tx, address=address: Users(keys).sign_up(tx, by, address))
        found.append((done.user.id, keys.show(done.key_id)))
    await gateway.stop()
    return found


@contextlib.asynccontextmanager
async def _server(dsn: str) -> AsyncGenerator[int]:
    env = {**os.environ, "OPENBELL_DATABASE_URL": dsn, "OPENBELL_API_USER_QUOTA": "100000000"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.gateway", "serve", env=env, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


async def _raw(dsn: str, users: list[tuple[UUID, str]]) -> Figures:
    env = {**os.environ, "OPENBELL_DATABASE_URL": dsn}
    ids = ",".join(str(user_id) for user_id, _ in users)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.gateway", "raw", ids, env=env, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    rate, p99 = out.split()
    return float(rate), float(p99)


async def _load(port: int, users: list[tuple[UUID, str]], seconds: float) -> Figures:
    until = time.perf_counter() + seconds

    def asking(user_id: UUID, key: str) -> Iterator[bytes]:
        request = (
            f"GET /api/user/{user_id}/settings HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
            "accept: application/json\r\nuser-agent: bench\r\n\r\n"
        ).encode()
        while time.perf_counter() < until:
            yield request

    return await load(port, [asking(*user) for user in users])


async def _serve() -> None:

    gateway = build(Environment())
    collect_rarely()  # as a service's process does
    server = http_server(gateway.app, "127.0.0.1", 0)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


async def _read_raw(ids: list[UUID]) -> Figures:

    pool = Service("api", Environment()).db.pool
    until = time.perf_counter() + ROUND_S
    latencies: list[float] = []

    async def caller(start: int) -> None:
        for user_id in itertools.islice(itertools.cycle(ids), start, None):
            asked = time.perf_counter()
            connection = await pool.acquire()
            try:
                assert await connection.fetchrow(_QUERY, user_id)
            finally:
                pool.release(connection)
            now = time.perf_counter()
            latencies.append(now - asked)
            if now > until:
                break

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CONNECTIONS)))
    found = figures(latencies, time.perf_counter() - began)
    await pool.close()
    return found


def main() -> None:
    """Run what the first argument says: a server, the raw loop, or the benchmark."""
    match sys.argv[1:]:
        case ["serve"]:
            uvloop.run(_serve())
        case ["raw", ids]:
            print(*uvloop.run(_read_raw([UUID(one) for one in ids.split(",")])))
        case _:
            for line in uvloop.run(run()):
                print(line)


if __name__ == "__main__":
    main()

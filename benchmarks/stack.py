"""Servers and service processes of a benchmark: Apache Kafka and a Postgres that really syncs, in a fresh folder."""

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from deploy.local import postgres, stack
from deploy.local.stack import Stack

ROOT: Final = Path(__file__).parents[1]


@contextmanager
def servers() -> Generator[Stack]:
    """Start Postgres and Kafka (Apache, unless KAFKA says otherwise), migrated; remove all of it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="openbell-bench-"))
    folder.chmod(0o711)
    try:
        with stack.running(folder, lambda _: None) as running:
            yield running
    finally:
        postgres.remove(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def service(below: Stack, name: str, **env: str) -> AsyncGenerator[tuple[int, int]]:
    """Run a service as a process; yields (pid, port) once it is ready."""
    settings = below.settings()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{name}"),
        cwd=ROOT,
        env={
            **os.environ,
            "OPENBELL_DATABASE_URL": settings.database_url,
            "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "OPENBELL_KAFKA_STATIC_MEMBERS": str(settings.kafka_static_members),
            "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
            "OPENBELL_HTTP_PORT": str(port),
            "OPENBELL_LOG_LEVEL": "ERROR",
            **env,
        },
    )
    try:
        await until(lambda: _ready(port), 90)
        yield process.pid, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float, every_s: float = 0.05) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what we wait for lies in other processes
            await asyncio.sleep(every_s)


async def _ready(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == httpx.codes.OK.value
        except httpx.HTTPError:
            return False


def row(
    metric: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    bar: float | None = None,
    goal: float | None = None,
    holds: bool,
    ratio: float | None = None,
) -> dict[str, Any]:
    """Return one line of the table. `bar` and `goal` are of the ratio where a unit says so, else of the value."""
    if ratio is None and baseline:
        ratio = value / baseline
    return {
        "metric": metric,
        "value": round(value, 2),
        "unit": unit,
        "baseline": None if baseline is None else round(baseline, 2),
        "ratio": None if ratio is None else round(ratio, 3),
        "bar": bar,
        "goal": goal,
        "holds": holds,
    }

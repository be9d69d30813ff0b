"""Fixtures for real infrastructure. A test asks for what it needs and gets it empty:

- `database_url`: an administrator's URL of a fresh database with every service's schema migrated;
- `open_database(service)`: a shared.db.Database of that service in it, closed at the end;
- `settings`: SharedSettings that point at both servers (the database of `database_url`);
- `environment`: a shared.service.Environment with these settings and a clock that moves only when told
  (`environment.clock` is a `ManualClock`: `.now`, `.advance(seconds)`); real-time tests build their own;
- `kafka`: where the session's Kafka is (RunningKafka: bootstrap, kind); `clean_kafka`: the same, with all topics
  deleted at the end; `address`: its shared.messaging.kafka.KafkaAddress.

Whether containers, child processes or a cluster stand behind them is decided in tests/infra.py.
"""

import asyncio
import contextlib
import gc
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import settings as hypothesis_settings

from deploy.local.kafka import RunningKafka
from shared import migrate
from shared.db import Database
from shared.messaging.kafka import KafkaAddress
from shared.service import Environment
from shared.sessions import Sessions
from shared.settings import SharedSettings
from shared.xnys import load_sessions
from tests.infra import kafka_server, postgres_server

hypothesis_settings.register_profile("openbell", deadline=None)  # no test depends on how fast the machine is
hypothesis_settings.load_profile("openbell")

KAFKA_TOLD = pytest.StashKey[str]()

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Recorded data beside the repository; tests that read it skip where it is absent."""


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


async def eventually(condition: Callable[[], Awaitable[bool] | bool], timeout_s: float = 60) -> None:
    """Wait until a condition holds; fails with its name when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if await held if isinstance(held, Awaitable) else held:
                return
            await asyncio.sleep(0.02)


def recorded(*parts: str) -> Path:
    """Return a path under the shared folder; skips the test when it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"recorded data is not here: {path}")
    return path


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Generator[None]:
    """What a module forgot to close is told here, not in whatever test the garbage collector happens to run."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def postgres() -> Generator[str]:
    with postgres_server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Generator[RunningKafka]:
    with kafka_server() as running:
        worker_output: dict[str, object] | None = getattr(pytestconfig, "workeroutput", None)  # of xdist
        if worker_output is None:
            pytestconfig.stash[KAFKA_TOLD] = running.why
        else:
            worker_output["kafka"] = running.why
        yield running


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Hear which Kafka a worker process used."""
    if error is None and "kafka" in node.workeroutput:
        node.config.stash[KAFKA_TOLD] = node.workeroutput["kafka"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell which Kafka the results came from."""
    if KAFKA_TOLD in config.stash:
        terminalreporter.write_line(config.stash[KAFKA_TOLD])


@pytest.fixture(scope="session")
async def sessions() -> Sessions:
    """Those of the New York exchange."""
    return await load_sessions()


@pytest.fixture(scope="session")
async def template(postgres: str) -> str:
    """A database with all migrations, to be copied."""
    admin = await asyncpg.connect(postgres)
    with contextlib.suppress(asyncpg.DuplicateDatabaseError):
        await admin.execute("create database openbell_template")
    await admin.close()
    await migrate.upgrade_all(_with_database(postgres, "openbell_template"))
    return "openbell_template"


@pytest.fixture
async def database_url(postgres: str, template: str) -> AsyncGenerator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name} template {template}")
    yield _with_database(postgres, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
def settings(database_url: str, address: KafkaAddress) -> SharedSettings:
    return SharedSettings(
        database_url=database_url,
        kafka_bootstrap=address.bootstrap,
        kafka_static_members=address.static_members,
        kafka_small_topics=address.small_topics,
    )


@pytest.fixture
def environment(settings: SharedSettings) -> Environment:
    return Environment(settings, ManualClock(datetime.now(UTC)), Random(1), "test")


@pytest.fixture
async def open_database(database_url: str) -> AsyncGenerator[Callable[[str], Database]]:
    opened: list[Database] = []

    def open_it(service: str) -> Database:
        url = SharedSettings(database_url=database_url).service_database_url(service)
        opened.append(Database(url, schema=service, size=8))
        return opened[-1]

    yield open_it
    for database in opened:
        await database.close()


@pytest.fixture(scope="session")
def address(kafka: RunningKafka) -> KafkaAddress:
    embedded = kafka.kind == "embedded"
    return KafkaAddress(kafka.bootstrap, static_members=embedded, small_topics=embedded)


@pytest.fixture
async def clean_kafka(kafka: RunningKafka) -> AsyncGenerator[RunningKafka]:
    yield kafka
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()

    async def topics() -> list[str]:
        return [name for name in await admin.list_topics() if not name.startswith("__")]

    if names := await topics():
        await admin.delete_topics(names)

    async def gone() -> bool:
        return not await topics()

    await eventually(gone)
    await admin.close()


def _with_database(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Kafka: the rest is the same whichever Kafka there is (`-m kafka`).

    Files that are slow begin: on several cores nobody waits at the end for one that began last.
    """
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker("kafka")
    slow = {item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "chaos"))}
    items.sort(key=lambda item: item.path not in slow)

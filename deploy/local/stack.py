"""Postgres and Kafka of this machine, and the settings that point at them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from deploy.local import kafka, postgres
from shared import migrate
from shared.schema import SERVICES
from shared.settings import SharedSettings

HOME: Final = Path(".openbell")
DATABASE: Final = "openbell"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs below the services."""

    admin_url: str
    kafka: kafka.RunningKafka

    def settings(self, **changes: object) -> SharedSettings:
        """Return settings for services on this stack; `changes` win."""
        embedded = self.kafka.kind == "embedded"
        found = {
            "database_url": self.admin_url,
            "kafka_bootstrap": self.kafka.bootstrap,
            "kafka_static_members": embedded,
            "kafka_small_topics": embedded,
        }
        return SharedSettings.model_validate({**SharedSettings().model_dump(), **found, **changes})


@contextmanager
def running(home: Path, say: Say) -> Generator[Stack]:
    """Start Postgres and Kafka below `home`, migrate, and stop both at the end."""
    with contextlib.ExitStack() as held:
        with step(say, "Postgres"):
            server = held.enter_context(postgres.start(home / "postgres"))
            admin_url = asyncio.run(_database(server.dsn))
        with step(say, "Kafka (the first time, its jars are fetched: about a minute)"):
            broker = held.enter_context(kafka.resolve(home / "kafka"))
        say(f"  {broker.why}")
        with step(say, "Migrations"):
            asyncio.run(migrate.upgrade_all(admin_url))
        _note_kafka(home / "kafka" / "last", broker.kind, admin_url)
        yield Stack(admin_url, broker)


@contextmanager
def step(say: Say, name: str) -> Generator[None]:
    """Say what begins, and how long it took."""
    say(f"· {name} ...")
    began = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - began:.1f} s")


def _note_kafka(file: Path, kind: str, admin_url: str) -> None:
    """Forget where to read on when this is another Kafka than last time: its offsets mean other records.

    Everything that it holds is read then, and the inbox knows what is not new.
    """
    if file.exists() and file.read_text() != kind:
        asyncio.run(_forget_offsets(admin_url))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(kind)


async def _forget_offsets(admin_url: str) -> None:
    admin = await asyncpg.connect(admin_url)
    for service in SERVICES:
        await admin.execute(f"delete from {service}.consumer_offsets")  # noqa: S608 - a constant of ours
    await admin.close()


async def _database(dsn: str) -> str:
    admin = await asyncpg.connect(dsn)
    with contextlib.suppress(asyncpg.DuplicateDatabaseError):
        await admin.execute(f"create database {DATABASE}")
    await admin.close()
    return f"{dsn.rpartition('/')[0]}/{DATABASE}"

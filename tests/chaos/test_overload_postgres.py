"""Postgres full of other people's connections, or locked, or with a full disk: the service waits, says so, goes on."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import asyncpg
import pytest

from deploy.local import postgres
from shared.contracts.base import Event
from shared.db import Tx
from shared.messaging.kafka import KafkaAddress
from shared.messaging.record import headers_of
from tests.conftest import eventually
from tests.messaging.harness import INSERT, Deposited, Probe, Replica, make_schema, probing, record_effect


class Own:
    """A Postgres of this test's own, on a small disk where one can be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = postgres.start(folder / "postgres")

    @property
    def url(self) -> str:
        return self.running.dsn

    def fill(self) -> None:
        """Leave no byte free."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb") as filler, contextlib.suppress(OSError):
            os.posix_fallocate(filler.fileno(), 0, free)
        with (self.folder / "filler").open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"\0" * 4096)

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def see_to_it(self) -> bool:
        """Start it again if it ended, as whoever runs it would; tell whether it had to."""
        if self.running.server.process.poll() is None:
            return False
        self.running.stop()
        self.running = postgres.start(self.folder / "postgres")
        return True


@pytest.fixture
def small_disk() -> Generator[Path]:
    """A folder on a disk of 300 MB."""
    folder = Path(tempfile.mkdtemp(prefix="openbell-disk-"))
    folder.chmod(0o711)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m,mode=0711", "tmpfs", str(folder)],  # noqa: S607 - whichever is here
        check=False,
        capture_output=True,
        text=True,
    )
    try:
        if mounted.returncode:
            pytest.skip(f"a small disk cannot be made here: {mounted.stderr.strip()}")
        yield folder
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607 - as above
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder() -> Generator[Path]:
    made = Path(tempfile.mkdtemp(prefix="openbell-own-"))
    made.chmod(0o711)
    yield made
    postgres.remove(made / "postgres")
    shutil.rmtree(made, ignore_errors=True)


@contextlib.asynccontextmanager
async def own_probe(folder: Path, address: KafkaAddress) -> AsyncGenerator[tuple[Own, Probe]]:
    own = Own(folder)
    try:
        await make_schema(own.url)
        async with probing(own.url, address) as probe:
            yield own, probe
    finally:
        own.running.stop()


def is_red(replica: Replica, word: str) -> bool:
    works, why = replica.delivery.health()
    return not works and word in why


async def all_there(probe: Probe, count: int) -> bool:
    return await probe.effects("a") == list(range(count))


@pytest.mark.chaos
async def test_a_postgres_without_a_free_connection_is_waited_for(folder: Path, address: KafkaAddress) -> None:
    async with own_probe(folder, address) as (own, probe), contextlib.AsyncExitStack() as others:
        for n in range(20):
            await probe.send(probe.make("a", n))
        admin = await asyncpg.connect(own.url)
        others.push_async_callback(admin.close)
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                others.push_async_callback((await asyncpg.connect(own.url)).close)
        replica = probe.start(record_effect)
        await eventually(lambda: is_red(replica, "runs again and again: DatabaseUnavailable"), 60)
        assert not replica.relay.health()[0]
        assert await probe.effects() == []
        await others.aclose()
        await eventually(lambda: all_there(probe, 20), 60)
        await eventually(lambda: replica.delivery.health()[0] and replica.relay.health()[0], 60)
        assert await probe.jobs() == []


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_a_full_disk_loses_nothing_and_needs_room_only(small_disk: Path, address: KafkaAddress) -> None:
    async def bulky(event: Deposited, tx: Tx) -> list[Event]:
        await tx.execute(INSERT, account=os.urandom(4000).hex(), n=event.n)
        return await record_effect(event, tx)

    async with own_probe(small_disk, address) as (own, probe):
        replica = probe.start(bulky)
        await probe.send(probe.make("a", 0))
        await eventually(lambda: all_there(probe, 1))
        own.fill()
        for n in range(1, 3000):
            await probe.producer.send(**await _as_sent(probe, n))
        await probe.producer.flush()
        await eventually(lambda: not replica.delivery.health()[0], 90)
        assert not await _answers(probe, 3000)
        own.empty()

        async def recovered() -> bool:
            own.see_to_it()
            return await _answers(probe, 3000)

        await eventually(recovered, 120)
        await eventually(lambda: replica.delivery.health()[0] and replica.relay.health()[0], 60)
        assert await probe.jobs() == [], "a full disk is no event's fault"


async def _as_sent(probe: Probe, n: int) -> dict[str, object]:
    event = probe.make("a", n)
    headers = [(name.decode(), value) for name, value in headers_of(event, "/t")]
    return {"topic": probe.topic.name, "value": event.to_bytes(), "key": b"a", "headers": headers}


async def _answers(probe: Probe, count: int) -> bool:
    try:
        async with asyncio.timeout(5):
            return await all_there(probe, count)
    except Exception:  # noqa: BLE001 - it is down, or comes up
        return False


@pytest.mark.chaos
async def test_a_table_that_is_locked_for_long_is_nobodys_attempt(probe: Probe) -> None:
    """The handler's own table, by a migration, say: the lock time-out of the role ends the wait, and it runs again."""
    admin = await asyncpg.connect(probe.url.replace("openbell_probe@", "postgres@"))
    database = probe.url.rpartition("/")[2]
    await admin.execute(f"alter role openbell_probe in database {database} set lock_timeout = '200ms'")
    await admin.execute("begin; lock table probe.effects in access exclusive mode")
    replica = probe.start(record_effect)
    await probe.send(probe.make("a", 0))
    await eventually(lambda: is_red(replica, "runs again and again: LockNotAvailableError"))
    await admin.execute("commit")
    await admin.close()
    await eventually(lambda: all_there(probe, 1))
    assert await probe.jobs() == []
    await eventually(lambda: replica.delivery.health()[0])

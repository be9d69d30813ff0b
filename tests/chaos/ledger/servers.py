"""Postgres, Apache Kafka and the replicas as child processes, with a proxy before each server.

All are started from one thread that lives as long as the run, for a child dies with the thread that started it.
Kafka advertises the proxy to the replicas and itself, on a second listener, to the driver.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from deploy.local import kafka, postgres, processes
from deploy.local.postgres import RunningPostgres
from deploy.local.processes import Server
from tests.chaos.ledger.book import SERVICE
from tests.chaos.proxy import Proxy

T = TypeVar("T")

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv" / "bin" / "python"


class Keeper:
    """The thread that starts processes; `run` keeps the event loop free meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeper")

    async def run(self, action: Callable[[], T]) -> T:
        """Run in that thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def close(self) -> None:
        """End the thread, and with it whatever it started that still runs."""
        self._thread.shutdown()


class Postgres:
    """The database, fsync on."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self.folder = folder / "postgres"
        self.lock = asyncio.Lock()
        self._keeper = keeper
        self._running: RunningPostgres | None = None

    @property
    def running(self) -> RunningPostgres:
        """The server; raises when it was never started."""
        if self._running is None:
            raise RuntimeError("Postgres was not started")
        return self._running

    @property
    def admin_url(self) -> str:
        """Where the driver connects, past the proxies."""
        return self.running.dsn

    async def start(self) -> None:
        """Start or start again, on the same port; recovers from its log after a kill."""
        port = self._running.port if self._running else None
        log = self.folder / "server.log"
        if log.exists():
            log.rename(self.folder / f"server-{len(list(self.folder.glob('server-*.log'))):03}.log")
        self._running = await self._keeper.run(partial(postgres.start, self.folder, port))

    async def kill(self) -> None:
        """SIGKILL the postmaster."""
        await self._keeper.run(self.running.kill)

    async def quit(self) -> None:
        """Immediate shutdown: SIGQUIT, no checkpoint."""
        server = self.running.server
        server.process.send_signal(signal.SIGQUIT)
        await self._keeper.run(server.stop)

    async def stop(self) -> None:
        """Stop and delete the data; the logs stay."""
        if self._running is not None:
            await self._keeper.run(self._running.stop)
        data = self.folder / "data"
        if data.exists():
            await self._keeper.run(partial(_forget_data, self.folder))


class Kafka:
    """Apache Kafka, one node, on the same ports and data after a kill."""

    def __init__(self, folder: Path, keeper: Keeper, random: Random) -> None:
        self.folder = folder / "kafka"
        self.lock = asyncio.Lock()
        self._keeper = keeper
        self._server: Server | None = None
        self._inside, self._direct, self._controller = processes._free_ports(3)
        self.proxy = Proxy(self._inside, random)
        self._starts = 0

    @property
    def direct(self) -> str:
        """The bootstrap address past the proxy, for the driver."""
        return f"127.0.0.1:{self._direct}"

    @property
    def bootstrap(self) -> str:
        """The bootstrap address for the replicas."""
        return f"127.0.0.1:{self.proxy.port}"

    @property
    def server(self) -> Server:
        """The broker; raises when it was never started."""
        if self._server is None:
            raise RuntimeError("Kafka was not started")
        return self._server

    async def start(self) -> None:
        """Start it and wait until it answers."""
        if self._starts == 0:
            await self.proxy.start()
        log = self.folder / "server.log"
        if log.exists():
            log.rename(self.folder / f"server-{self._starts:03}.log")
        self._starts += 1
        self._server = await self._keeper.run(self._launch)
        await asyncio.to_thread(self._server.wait_until, partial(kafka._answers, self._direct), 60)

    def _launch(self) -> Server:
        lock = processes.claim(self.folder)
        properties = self.folder / "server.properties"
        properties.write_text(
            kafka._properties(self.folder / "data", self._inside, self._controller) + self._listeners()
        )
        (self.folder / "log4j2.properties").write_text(kafka._LOGGING)
        run = [*kafka._jvm(kafka._java(), self.folder), "-cp", f"{kafka.jars()}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            kafka._format(run, self.folder)
        command = [*run, "kafka.Kafka", str(properties)]
        # SIGKILL when the driver dies: a broker that stands still (SIGSTOP) hears nothing milder.
        return processes.start("Kafka", command, folder=self.folder, lock=lock, stop_signal=signal.SIGKILL)

    def _listeners(self) -> str:
        """Return what overrides the one listener of `make run`: the last line of a name counts."""
        names = {"PROXIED": self._inside, "DIRECT": self._direct, "CONTROLLER": self._controller}
        told = {"PROXIED": self.proxy.port, "DIRECT": self._direct}
        return "".join(
            f"{line}\n"
            for line in (
                "listeners=" + ",".join(f"{name}://127.0.0.1:{port}" for name, port in names.items()),
                "advertised.listeners=" + ",".join(f"{name}://127.0.0.1:{port}" for name, port in told.items()),
                "listener.security.protocol.map=" + ",".join(f"{name}:PLAINTEXT" for name in names),
                "inter.broker.listener.name=DIRECT",
            )
        )

    async def kill(self) -> None:
        """SIGKILL."""
        await self._keeper.run(self.server.kill)

    async def stop(self) -> None:
        """End it; its data is deleted with the folder."""
        await self.proxy.stop()
        if self._server is not None:
            await self._keeper.run(self._server.kill)


class Replica:
    """A place for a process of the service: at most one runs there at a time, with its own way to Postgres."""

    def __init__(self, name: str, folder: Path, keeper: Keeper, proxy: Proxy, env: dict[str, str]) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.proxy = proxy
        self.starts = 0
        self._folder = folder
        self._keeper = keeper
        self._env = env
        self.server: Server | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; raises when none was started."""
        if self.server is None:
            raise RuntimeError(f"{self.name} was not started")
        return self.server.process

    @property
    def runs(self) -> bool:
        """Whether a process lives there."""
        return self.server is not None and self.server.process.poll() is None

    async def start(self) -> None:
        """Start a process with a folder of its own for its log."""
        if self.proxy.port == 0:
            await self.proxy.start()
        self.starts += 1
        name = f"{self.name}-{self.starts:03}"
        env = {
            **self._env,
            "PYTHONPATH": str(ROOT),
            "CHAOS_REPLICA": name,
            "OPENBELL_DATABASE_URL": f"postgresql://127.0.0.1:{self.proxy.port}/postgres",
            "OPENBELL_LOG_LEVEL": "WARNING",
        }
        self.server = await self._keeper.run(partial(self._launch, self._folder / name, env))

    def _launch(self, folder: Path, env: dict[str, str]) -> Server:
        command = [str(PYTHON), "-m", f"{__package__}.replica"]
        lock = processes.claim(folder)
        return processes.start(self.name, command, folder=folder, lock=lock, stop_signal=signal.SIGKILL, env=env)

    async def started(self, within_s: float = 60) -> None:
        """Return when its consumers, relay and workers were started. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while self.server is None or b"service_started" not in self.server.log.read_bytes():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.runs:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL."""
        if self.server is not None:
            await self._keeper.run(self.server.kill)

    async def stop(self, grace_s: float = 20) -> bool:
        """SIGTERM, then SIGKILL; whether it ended by itself in time."""
        if self.server is None:
            return True
        self.signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGUSR1)  # say where you hang
            await asyncio.sleep(0.5)
            await self.kill()
            return False
        await self.kill()
        return True


def settings_of(kafka_: Kafka, sink: tuple[str, int]) -> dict[str, str]:
    """Return the environment that all replicas share."""
    return {
        "OPENBELL_KAFKA_BOOTSTRAP": kafka_.bootstrap,
        "OPENBELL_KAFKA_STATIC_MEMBERS": "false",
        "OPENBELL_KAFKA_SMALL_TOPICS": "false",
        "OPENBELL_DATABASE_POOL_SIZE": "16",
        "CHAOS_SINK": f"{sink[0]}:{sink[1]}",
        "PYTHONUNBUFFERED": "1",
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
    }


def role_of() -> str:
    """Return the service's database role."""
    return f"openbell_{SERVICE}"


def _forget_data(folder: Path) -> None:
    data = folder / "data"
    shutil.rmtree(data.resolve(), ignore_errors=True)
    if data.is_symlink():
        data.unlink()

"""A service as a process: its HTTP server, the signals that end it, and the command line of its `__main__`."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

import uvicorn
import uvloop

from shared import logs, telemetry
from shared.errors import Invalid
from shared.http.sockets import Sockets
from shared.lean import collect_rarely, keep_pandas_out
from shared.messaging.lane import happens
from shared.messaging.replay import parse, report
from shared.service import Environment, Service, StopBudget

MAX_SOCKET_MESSAGE_BYTES: Final = 16_384
"""Of what a client sends; no WebSocket of ours expects more."""
PING_S: Final = 20.0
"""How often a WebSocket's other end is asked for a sign of life, and how long it may take to give one."""


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling, whoever runs it stops it; and idle while nothing is asked of it.

    uvicorn looks ten times a second whether it should exit. This waits to be told, and wakes once a second for the
    date that answers carry.
    """

    tick_s: Final = 1.0

    def __init__(self, config: uvicorn.Config) -> None:
        self._told = asyncio.Event()
        super().__init__(config)

    @property
    def should_exit(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - to hear of it at once
        """Whether it was told to exit."""
        return self._told.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._told.set()
        else:
            self._told.clear()

    async def main_loop(self) -> None:
        """Serve until told to exit."""
        while not await self.on_tick(0):
            await happens(self._told, self.tick_s)

    @contextlib.contextmanager
    def capture_signals(self):  # noqa: ANN201 - uvicorn's own signature
        """Leave signals to the process."""
        yield


def http_server(app: Callable[..., object], host: str, port: int, stop_s: int = StopBudget.http_s) -> HttpServer:
    """Return a server for an ASGI app, not started. Told to exit, it gives requests `stop_s` and cancels them then."""
    return HttpServer(
        uvicorn.Config(
            app,  # pyright: ignore[reportArgumentType]
            host=host,
            port=port,
            http="httptools",
            ws=Sockets,
            ws_max_size=MAX_SOCKET_MESSAGE_BYTES,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the gateway decides whom to believe (OPENBELL_API_TRUSTED_PROXIES)
            timeout_graceful_shutdown=stop_s,
        )
    )


async def until_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def run(service: Service, until: Callable[[], Coroutine[None, None, object]] = until_signal) -> None:
    """Serve HTTP and run the service until a signal; then end requests and runners side by side (StopBudget)."""
    settings = service.settings
    server = http_server(service.app, settings.http_host, settings.http_port, service.budget.http_s)
    async with service.running():
        serving = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(until())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        server.should_exit = True
        await asyncio.gather(serving, service.drain())


async def replay(service: Service, arguments: Sequence[str]) -> int:
    """Run the command line `replay ...`; return the exit code."""
    name, wanted, options = parse(arguments, service.clock())
    try:
        counts = await service.replay(name).run(wanted, again=options.again, dry_run=options.dry_run, rate=options.rate)
    except Invalid as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    finally:
        await service.db.close()
    report(counts, dry_run=options.dry_run)
    return 0


def main(build: Callable[[Environment], Service]) -> None:
    """Run a service as a process of its own, or `replay ...` for one of its consumers."""
    env = Environment()
    logs.configure(env.settings.log_level)
    keep_pandas_out()

    async def start() -> int:
        service = build(env)
        if sys.argv[1:2] == ["replay"]:
            return await replay(service, sys.argv[2:])
        telemetry.configure(env.settings, service.name)
        collect_rarely()
        await run(service)
        return 0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(start()))

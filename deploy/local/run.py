"""`make run`: everything on this machine, on one command.

    python -m deploy.local.run               all services as tasks of one process
    python -m deploy.local.run --processes   one process each, started again when their code changes

State stays under `.openbell/`; Ctrl-C stops all.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import psutil
import uvloop
import watchfiles

from deploy.local import demo, stack
from deploy.local.stack import Stack
from services.alerts.settings import AlertsSettings
from shared import logs, telemetry
from shared.lean import collect_rarely, keep_pandas_out
from shared.process import http_server, until_signal
from shared.schema import SERVICES
from shared.service import Environment, Service

PORT: Final = 8100
READY_S: Final = 90
LOG: Final = "services.log"
if TYPE_CHECKING:
    from services.api.main import Gateway

Readiness = Callable[[], Awaitable[dict[str, tuple[bool, str]]]]

OTHERS: Final = tuple(name for name in SERVICES if name != "api")


def main() -> int:
    """Run until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--processes", action="store_true", help="one process for each service, with reload")
    parser.add_argument("--port", type=int, default=PORT, help="where the gateway listens (default %(default)s)")
    arguments = parser.parse_args()
    home = stack.HOME
    home.mkdir(exist_ok=True)
    began = psutil.Process().create_time()
    imports = threading.Thread(target=_import_services)  # as long as Kafka's start: do both at once
    imports.start()
    with stack.running(home, _say) as below:
        imports.join()
        port = _free(arguments.port)
        tell_address(port)
        run = _processes if arguments.processes else _one_process
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.suppress(KeyboardInterrupt):
            runner.run(run(below, home, port, began))
        _say("stopping Postgres and Kafka ...")
    return 0


def tell_address(port: int) -> None:
    """Let links in mails lead to the gateway of this run, unless somebody has set where they lead."""
    if "public_url" not in AlertsSettings().model_fields_set:
        os.environ["OPENBELL_ALERTS_PUBLIC_URL"] = f"http://127.0.0.1:{port}"


def _import_services() -> None:
    for name in SERVICES:
        importlib.import_module(f"services.{name}.main")


async def _one_process(below: Stack, home: Path, port: int, began: float) -> None:
    settings = below.settings(http_port=port)
    logs.configure(settings.log_level, home / LOG)
    telemetry.configure(settings, "local")
    keep_pandas_out()
    env = Environment(settings)
    async with contextlib.AsyncExitStack() as running:
        with stack.step(_say, "Services"):
            gateway = _gateway(env)
            services: list[Service] = [gateway]
            for name in OTHERS:
                service: Service = importlib.import_module(f"services.{name}.main").build(env)
                gateway.neighbours[name] = service.app
                services.append(service)
            collect_rarely()
            server = http_server(gateway.app, settings.http_host, port)
            for service in services:
                await running.enter_async_context(service.running())
            serving = asyncio.create_task(server.serve())
            await _until_ready([one.name for one in services], [one.readiness for one in services])
        async with _client(port) as http:
            await _greet(home, http, gateway, began, f"logs: {home / LOG}")
        await until_signal()
        _say("\nstopping services ...")
        server.should_exit = True
        await asyncio.gather(serving, *(service.drain() for service in services))


async def _processes(below: Stack, home: Path, port: int, began: float) -> None:
    ports = {name: _free(0) for name in OTHERS} | {"api": port}
    upstreams = {name: f"http://127.0.0.1:{ports[name]}" for name in OTHERS}
    settings = below.settings(http_port=port, upstreams=upstreams)
    common = {
        **os.environ,
        "OPENBELL_DATABASE_URL": settings.database_url,
        "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "OPENBELL_KAFKA_STATIC_MEMBERS": str(settings.kafka_static_members),
        "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
        "OPENBELL_UPSTREAMS": json.dumps(upstreams),
    }
    gateway = _gateway(Environment(settings))  # for its door only: it makes the demo's administrator
    async with contextlib.AsyncExitStack() as running:
        with stack.step(_say, "Services, one process each"):
            for name in SERVICES:
                env = {**common, "OPENBELL_HTTP_PORT": str(ports[name])}
                await running.enter_async_context(_process(name, env, home / f"{name}.log"))
            async with _client(port) as http:
                checks = [_ready_over_http(http, ports[name]) for name in SERVICES]
                await _until_ready(list(SERVICES), checks)
                where = ", ".join(f"{name} {ports[name]}" for name in OTHERS)
                await _greet(home, http, gateway, began, f"ports: {where}; logs: {home}/<service>.log")
        await until_signal()
        _say("\nstopping services ...")
    await gateway.stop()


@asynccontextmanager
async def _process(name: str, env: dict[str, str], log: Path) -> AsyncGenerator[None]:
    """Run one service as a process, anew whenever code that it may use changes or it ends by itself."""
    task = asyncio.create_task(_keep_running(name, env, log))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_running(name: str, env: dict[str, str], log: Path) -> None:
    while True:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"services.{name}", env=env, stdout=output, stderr=output, start_new_session=True
            )
        ended = asyncio.create_task(process.wait())
        changed = asyncio.create_task(_changed(f"services/{name}", "shared"))
        try:
            await asyncio.wait((ended, changed), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                _say(f"{name}: its code changed, starting it again")
            elif not changed.done():
                _say(f"{name} ended with {process.returncode}; see {log}")
                await asyncio.sleep(1)
        finally:
            changed.cancel()
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await ended
            await asyncio.gather(changed, return_exceptions=True)


async def _changed(*folders: str) -> None:
    async for _ in watchfiles.awatch(*folders, watch_filter=watchfiles.PythonFilter()):
        return


def _ready_over_http(http: httpx.AsyncClient, port: int) -> Readiness:
    async def ready() -> dict[str, tuple[bool, str]]:
        try:
            answer = await http.get(f"http://127.0.0.1:{port}/readyz")
        except httpx.HTTPError as error:
            return {"http": (False, type(error).__name__)}
        return {name: (check["ok"], check["detail"]) for name, check in answer.json()["checks"].items()}

    return ready


async def _until_ready(names: list[str], checks: list[Readiness]) -> None:
    """Wait for all; says what is missing every few seconds. Raises TimeoutError with what never came."""
    deadline = time.monotonic() + READY_S
    said = time.monotonic()
    while True:
        missing = [
            f"{name}: {what} ({detail})"
            for name, check in zip(names, checks, strict=True)
            for what, (ok, detail) in (await check()).items()
            if not ok
        ]
        if not missing:
            return
        if time.monotonic() > deadline:
            raise TimeoutError("not ready: " + "; ".join(missing))
        if time.monotonic() - said > 5:  # noqa: PLR2004 - seconds
            said = time.monotonic()
            _say("  waiting for " + "; ".join(missing))
        await asyncio.sleep(0.1)


async def _greet(home: Path, http: httpx.AsyncClient, gateway: "Gateway", began: float, where: str) -> None:
    place = {"database_url": gateway.db.url, "kafka_bootstrap": gateway.kafka.bootstrap}
    made = await demo.seed(home, http, demo.admin_maker(gateway), place)
    base = str(http.base_url)
    key = f'-H "Authorization: Bearer {made["api_key"]}"'
    _say(
        f"""
Openbell is up, {time.time() - began:.1f} s after its start.

  API     {base}        docs: {base}/docs
  demo    user {made["user_id"]} watches {", ".join(demo.SYMBOLS)}
  keys    in {home / demo.FILE} (the user's and an administrator's)
  {where}

Try:
  curl -s {base}/api/health
  curl -s {base}/leaderboard {key}
  curl -s {base}/api/alerts/{made["user_id"]} {key}
  .venv/bin/openbell lag

Ctrl-C stops everything; the data stays."""
    )


def _gateway(env: Environment) -> "Gateway":
    built: Gateway = importlib.import_module("services.api.main").build(env)
    return built


def _client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False)


def _free(port: int) -> int:
    """Return the port if it is free, else one that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return _free(0)
        return int(probe.getsockname()[1])


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

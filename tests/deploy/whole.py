"""All services in one process, as `make run` has them, at an exchange that never closes.

python -m tests.deploy.whole
"""

import asyncio
import contextlib

import uvloop

from services.alerts.main import build as build_alerts
from services.api.main import build as build_api
from services.data.main import build as build_data
from services.detector.main import build as build_detector
from services.payment.main import build as build_payment
from shared import logs
from shared.process import http_server, until_signal
from shared.service import Environment, Service
from tests.flows.test_trading import brokerage


async def main() -> None:
    """Serve until told to stop."""
    env = Environment()
    logs.configure("INFO")
    gateway = build_api(env)
    others: list[Service] = [build_alerts(env), build_data(env), build_detector(env), build_payment(env)]
    others.append(brokerage(env.settings))
    for service in others:
        gateway.neighbours[service.name] = service.app
    async with contextlib.AsyncExitStack() as running:
        server = http_server(gateway.app, "127.0.0.1", env.settings.http_port)
        for service in (gateway, *others):
            await running.enter_async_context(service.running())
        serving = asyncio.create_task(server.serve())
        await until_signal()
        server.should_exit = True
        await asyncio.gather(serving, *(service.drain() for service in (gateway, *others)))


if __name__ == "__main__":
    uvloop.run(main())

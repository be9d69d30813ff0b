"""A process ends within its budget, whatever hangs."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from litestar import get

from shared import schedule
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.db import Tx
from shared.http import Caller
from shared.messaging.consumer import Consumer
from shared.messaging.delivery import Delivery
from shared.messaging.record import headers_of
from shared.process import http_server, run
from shared.service import Environment, Service, StopBudget
from shared.settings import SharedSettings
from shared.work.rules import Policy
from tests.conftest import eventually
from tests.contracts.examples import EXAMPLES


class Hanging:
    """Things that never end by themselves, and what became of them, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.begun = {name: asyncio.Event() for name in ("handler", "request", "worker")}
        self.name = "worker that will not stop"

    async def hang(self, name: str) -> NoReturn:
        self.begun[name].set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.told.append(f"{name} cancelled")
            raise
        raise AssertionError("nobody sets that event")

    async def handle(self, event: ChainCollected, tx: Tx) -> Sequence[Event]:
        del event, tx
        await self.hang("handler")

    async def run(self) -> None:
        """Work; when cancelled, insist on finishing."""
        with contextlib.suppress(asyncio.CancelledError):
            await self.hang("worker")
        await self.hang("worker")


async def _send_a_chain(settings: SharedSettings) -> None:
    example = next(one for one in EXAMPLES if isinstance(one, ChainCollected))
    chain = example.model_copy(update={"time": datetime.now(UTC)})
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    headers: Any = [(name.decode(), value) for name, value in headers_of(chain, "/openbell/data")]
    await producer.send_and_wait(chain.topic.name, key=chain.key.encode(), value=chain.to_bytes(), headers=headers)
    await producer.stop()


@pytest.mark.usefixtures("clean_kafka")
async def test_a_hanging_handler_a_hanging_request_and_a_stubborn_worker_end_with_the_process(
    settings: SharedSettings, environment: Environment
):
    hanging, stop = Hanging(), asyncio.Event()

    @get("/hang", caller=Caller.PUBLIC)
    async def hang() -> None:
        await hanging.hang("request")

    settings.http_port = _free_port()
    service = Service("detector", environment, reads=[ChainCollected])
    service.budget = StopBudget(http_s=1, drain_s=0.5, relay_s=5)
    consumer = Consumer("detector.hanging")
    consumer.on(ChainCollected, hanging.handle)
    service.consume(consumer)
    service.work(hanging)
    service.serve([hang])
    (delivery,) = [runner for runner in service._runners if isinstance(runner, Delivery)]
    delivery.drain_s = 0.1

    running = asyncio.create_task(run(service, stop.wait))
    await eventually(hanging.begun["worker"].is_set)  # the topics are there
    await _send_a_chain(settings)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.http_port}", trust_env=False) as client:
        asking = asyncio.create_task(client.get("/hang"))
        await eventually(lambda: all(one.is_set() for one in hanging.begun.values()))
        stop.set()
        await running
        await asyncio.wait((asking,))
    assert hanging.told == ["worker cancelled", "handler cancelled", "worker cancelled", "request cancelled"]
    left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("detector")]
    assert left == []
    assert service.db.pool.in_use == 0


def test_the_parts_of_a_stop_fit_into_fifteen_seconds_and_into_each_other():
    budget = StopBudget()
    assert budget.drain_s + budget.relay_s + budget.close_s <= 15
    assert budget.http_s < budget.drain_s + budget.relay_s, "requests need the pool"
    for within in (Delivery.drain_s, Policy().stop_s, schedule.STOP_S):
        assert within < budget.drain_s


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_server_told_to_exit_waits_for_no_tick() -> None:
    server = http_server(answers_nothing, "127.0.0.1", 0)
    server.tick_s = 3600  # type: ignore[misc]
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    server.should_exit = True
    async with asyncio.timeout(10):
        await serving
    assert server.should_exit


async def answers_nothing(scope: object, receive: object, send: object) -> None:
    del scope, receive, send

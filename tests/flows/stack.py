"""All services for a flow: gateway, data and detector in this process, alerts in one of its own that can be killed."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from services.api.main import Gateway, create_admin
from services.api.main import build as build_api
from services.detector.main import build as build_detector
from shared.contracts.topics import TOPICS
from shared.messaging.kafka import ensure_topics
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import eventually

REPOSITORY = Path(__file__).parents[2]


@dataclass
class ServiceProcess:
    """A service as a process."""

    env: dict[str, str]
    log: Path
    module: str = "services.alerts"
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-m", self.module),
                env=self.env,
                cwd=REPOSITORY,
                stdout=output,
                stderr=output,
            )

    async def ready(self) -> None:
        """Wait until it says that it is."""
        async with httpx.AsyncClient(trust_env=False) as http:

            async def answers() -> bool:
                try:
                    answer = await http.get(f"http://127.0.0.1:{self.env['OPENBELL_HTTP_PORT']}/readyz")
                except httpx.HTTPError:
                    return False
                return answer.status_code == 200

            await eventually(answers, 90)

    async def kill(self) -> None:
        """SIGKILL."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, as an orderly stop."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()


@dataclass
class Flow:
    """A running stack with one user."""

    settings: SharedSettings
    gateway: Gateway
    detector: Service
    alerts: ServiceProcess
    http: httpx.AsyncClient
    admin: asyncpg.Connection
    user_id: str = ""
    user: dict[str, str] = field(default_factory=dict)
    operator: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, *, expect: int = 200, **options: Any) -> Any:
        """Call the gateway as the user; fails unless the status is the one expected."""
        options.setdefault("headers", self.user)
        answer = await self.http.request(method, path, **options)
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def sign_up(self) -> None:
        """Make the user and an administrator."""
        body = await self.call("POST", "/api/users", json={"email": "trader@example.com"}, headers={}, expect=201)
        self.user_id = body["user"]["id"]
        self.user = {"authorization": f"Bearer {body['api_key']}"}
        self.operator = {"authorization": f"Bearer {await create_admin(self.gateway, 'ops@example.com')}"}

    async def watch(self, *symbols: str) -> None:
        """Watch symbols and take every unusual contract."""
        await self.call(
            "POST",
            f"/api/user/{self.user_id}/onboarding",
            json={"investing_style": "trader", "tickers": list(symbols)},
        )
        path = f"/api/user/{self.user_id}/settings"
        await self.call("PATCH", path, json={"min_score": 0, "min_premium_usd": "0"})

    async def channel(self, name: str, target: str) -> None:
        """Add a channel; waits until the alerts service knows the user."""

        async def added() -> bool:
            path = f"/api/alerts/{self.user_id}/channels/{name}"
            answer = await self.http.put(path, json={"target": target}, headers=self.user)
            assert answer.status_code in {200, 201, 404, 503}, answer.text
            return answer.status_code in {200, 201}

        await eventually(added)

    async def confirm(self, link: str) -> None:
        """Open the link of a confirmation mail and press its button."""
        path = "/links/confirm-email?token=" + link.partition("token=")[2]
        for method in ("GET", "POST"):
            answer = await self.http.request(method, path)
            assert answer.status_code == 200, answer.text

    async def rows(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Look into the database as an administrator."""
        return await self.admin.fetch(statement, *values)

    async def knows_rules(self, symbols: int) -> None:
        """Wait until alerts has the user's watchlist and settings."""

        async def known() -> bool:
            watched = await self.rows("select count(*) as n from alerts.watched")
            settings = await self.rows("select 1 from alerts.users where min_score = 0")
            return watched[0]["n"] == symbols and bool(settings)

        await eventually(known)

    async def drained(self, consumer: str, topic: str) -> None:
        """Wait until a consumer has settled everything that a topic holds."""
        kafka = AIOKafkaConsumer(bootstrap_servers=self.settings.kafka_bootstrap)
        await kafka.start()
        try:
            parts = partitions(topic)
            ends = await kafka.end_offsets(parts)
        finally:
            await kafka.stop()
        schema = consumer.partition(".")[0]

        async def settled() -> bool:
            rows = await self.rows(
                f"select partition, next_offset from {schema}.consumer_offsets where consumer = $1 and topic = $2",
                consumer,
                topic,
            )
            known = {row["partition"]: row["next_offset"] for row in rows}
            return all(known.get(part.partition, 0) >= end for part, end in ends.items())

        await eventually(settled)

    async def produce(self, topic: str, key: bytes | None, value: bytes | None, headers: Any) -> None:
        """Put a record into Kafka from outside."""
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.kafka_bootstrap, max_request_size=16_000_000)
        await producer.start()
        try:
            await producer.send_and_wait(topic, value, key, headers=headers)
        finally:
            await producer.stop()


@contextlib.asynccontextmanager
async def flowing(
    settings: SharedSettings, database_url: str, folder: Path, alerts_env: dict[str, str]
) -> AsyncGenerator[Flow]:
    """Run gateway, detector and alerts; data is for the test to bring."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = settings.model_copy(update={"upstreams": {"alerts": f"http://127.0.0.1:{port}"}})
    env = {
        **os.environ,
        "OPENBELL_DATABASE_URL": settings.database_url,
        "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "OPENBELL_KAFKA_STATIC_MEMBERS": str(settings.kafka_static_members),
        "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
        "OPENBELL_HTTP_PORT": str(port),
        **alerts_env,
    }
    await ensure_topics(_address(settings), TOPICS)
    environment = Environment(settings)
    gateway, detector = build_api(environment), build_detector(environment)
    gateway.neighbours["detector"] = detector.app
    alerts = ServiceProcess(env, folder / "alerts.log")
    admin = await asyncpg.connect(database_url)
    transport = httpx.ASGITransport(app=cast("Any", gateway.app))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(admin.close)
        stack.push_async_callback(alerts.stop)
        await stack.enter_async_context(gateway.running())
        await stack.enter_async_context(detector.running())
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://gateway"))
        flow = Flow(settings, gateway, detector, alerts, http, admin)
        await alerts.start()
        await alerts.ready()
        for service in (gateway, detector):

            async def ready(service: Service = service) -> bool:
                return all(ok for ok, _ in (await service.readiness()).values())

            await eventually(ready, 60)
        yield flow


def partitions(topic: str) -> list[TopicPartition]:
    """All partitions of one of our topics."""
    (shape,) = (one for one in TOPICS if one.name == topic)
    return [TopicPartition(topic, number) for number in range(shape.partitions)]


def _address(settings: SharedSettings) -> Any:
    from shared.messaging.kafka import KafkaAddress  # noqa: PLC0415

    return KafkaAddress(settings.kafka_bootstrap, settings.kafka_static_members, settings.kafka_small_topics)

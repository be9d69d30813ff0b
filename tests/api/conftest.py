"""The gateway over a fresh database, without Kafka: its events stay in the outbox, where a test can count them."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import httpx
import pytest
from asyncpg import Record
from sqlalchemy import text

from services.api.main import Gateway, build
from services.api.service import By, Keys, Users
from shared.clock import new_id
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import ManualClock

KEY_SECRET = "development-only-api-key-secret-00000"


@dataclass(frozen=True)
class Person:
    id: UUID
    email: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 7, 1, 14, 30, tzinfo=UTC))


@pytest.fixture
async def make_gateway(database_url: str, clock: ManualClock) -> AsyncGenerator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        env = Environment(SharedSettings(database_url=database_url, **settings), clock, Random(1), "test")
        made.append(build(env))
        return made[-1]

    yield make
    for gateway in made:
        await gateway.stop()


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    return make_gateway()


def client_of(app: Any, address: str = "203.0.113.7") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.fixture
async def client(gateway: Gateway) -> AsyncGenerator[httpx.AsyncClient]:
    async with client_of(gateway.app) as client:
        yield client


@pytest.fixture
def join(gateway: Gateway, clock: ManualClock) -> Callable[..., Awaitable[Person]]:
    async def join(email: str, role: Any = "user", external_id: str | None = None) -> Person:
        keys = Keys(KEY_SECRET, forget=lambda _: None)
        by = By("system", clock(), new_id)
        done = await gateway.door.run(lambda tx: Users(keys).sign_up(tx, by, email, role=role, external_id=external_id))
        return Person(done.user.id, email, keys.show(done.key_id))

    return join


@pytest.fixture
async def ada(join: Callable[..., Awaitable[Person]]) -> Person:
    return await join("ada@example.com")


@pytest.fixture
async def bob(join: Callable[..., Awaitable[Person]]) -> Person:
    return await join("bob@example.com")


@pytest.fixture
async def admin(join: Callable[..., Awaitable[Person]]) -> Person:
    return await join("root@example.com", role="admin")


async def rows(gateway: Gateway, sql: str) -> list[Record]:
    async with gateway.door.read() as tx:
        return await tx.fetch(text(sql))


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, after checking its shape."""
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return error

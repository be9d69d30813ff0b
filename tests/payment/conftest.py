"""What tests of payment share."""

import uuid
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

import asyncpg
import pytest

from shared.db import Database
from tests.conftest import ManualClock, _with_database
from tests.fakes.stripe import FakeStripe
from tests.payment.buying import Shop
from tests.payment.inprocess import InProcess, started


@pytest.fixture
async def other_database_url(postgres: str, template: str) -> AsyncGenerator[str]:
    """A second database like `database_url`."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name} template {template}")
    yield _with_database(postgres, name)
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def shop(open_database: Callable[[str], Database]) -> AsyncGenerator[Shop]:
    """The shop at work, in front of an account of its own."""
    with FakeStripe() as fake:
        clock = ManualClock(datetime.fromtimestamp(fake.now, UTC))
        async with Shop(open_database("payment"), fake, clock).open() as shop:
            yield shop


@pytest.fixture
async def running(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[InProcess]:
    """The service in this process, with two plans, in front of an account of its own."""
    with FakeStripe(after_retries="past_due") as fake:
        fake.price(2900, price_id="price_pro")
        fake.price(5900, price_id="price_max")
        running = started(fake, database_url, monkeypatch)
        yield running
        await running.close()
        await fake.close()
